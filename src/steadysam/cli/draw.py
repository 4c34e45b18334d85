"""`steadysam draw`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter


def draw(
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    images: int = 800,
    size: int = 192,
    seed: int = 0,
) -> None:
    """Draw a data set of pictures with the masks of their objects, from random numbers: no data, no network.

    A detector that begins with random weights needs many real pictures. One that has found drawn objects before can get
    further with few of them, where objects are hard to find.

    For example:

        steadysam draw -o Dataset900_Drawn
        steadysam train Dataset900_Drawn --config examples/drawn_cpu.toml -o runs/drawn
        steadysam train DATASET --config examples/ldfsam_cpu.toml --set start.begin=runs/drawn -o runs/ldf

    Parameters
    ----------
    output
        New folder, in nnU-Net v2 raw layout; label 1 is `object`.
    images
        How many; one in 20 is a test picture.
    size
        Pixels per side.
    seed
        The same seed draws the same pictures.
    """
    from rich.console import Console

    from steadysam.cli.tables import progress
    from steadysam.synthetic.dataset import draw_pictures

    draw_pictures(output, images, seed, size=size, track=progress("drawing"))
    Console(highlight=False, markup=False).print(f"{images} pictures in {output}")

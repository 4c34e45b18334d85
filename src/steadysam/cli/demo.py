"""`steadysam demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table


def demo(
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"])] = Path("demo"),
    seed: int = 2026,
    train_cases: int = 48,
    test_cases: int = 8,
    threads: int = 0,
) -> None:
    """Draw volumes, train both stages, segment with raw prompts and with SPD, and write a page of pictures.

    Needs no data, no weights and no network; takes a few minutes on two CPU cores. What a folder holds already is
    used again.

    Examples
    --------
        steadysam demo -o demo

    Parameters
    ----------
    output
        Folder to write; open report.html in it.
    seed
        Seed of the drawn volumes, of the weights and of training.
    train_cases
        Volumes to train on.
    test_cases
        Volumes to segment.
    threads
        CPU threads; 0 as torch chooses.
    """
    from steadysam.demo import DemoOptions, run_demo

    console = Console()
    options = DemoOptions(seed, train_cases, test_cases, threads=threads)
    page, rows = run_demo(output, options, console.print)
    table = Table("prompts", "DSC", "95 %", "DSC, target", "volume Dice", "FP on empty", "HD95 px", box=None)
    for row in rows:
        numbers = [_number(row[key]) for key in ("dsc_positive", "volume_dice", "fp_rate_empty", "hd95_px")]
        table.add_row(row["row"], _number(row["dsc"]), _interval(row.get("dsc_95")), *numbers)
    console.print(table)
    console.print(f"{test_cases} test volumes, shaky centreline prompts, seed {seed}; pictures: {page}")


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _interval(pair: tuple[float, float] | None) -> str:
    return "–" if pair is None else f"{pair[0]:.3f} to {pair[1]:.3f}"

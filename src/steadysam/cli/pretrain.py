"""`steadysam pretrain`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from steadysam.errors import UsageError

log = logging.getLogger(__name__)


def pretrain(
    *,
    output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
    config: Path | None = None,
    device: Annotated[str | None, Parameter(name=["--device", "-d"])] = None,
    sheet: Path | None = None,
    settings: Annotated[tuple[str, ...], Parameter(name="--set", negative="")] = (),
    resume: Annotated[bool, Parameter(name=["--continue", "-c"], negative="")] = False,
) -> None:
    """Pretrain the small promptable model on images that are drawn from random numbers: no data, no network.

    The run folder holds the configuration, checkpoints, logs (CSV and TensorBoard; after every epoch the Dice on
    held-out drawn images after one and three clicks and with a box), snapshots of the weights as the number of images
    doubles, and at the end model.safetensors in half precision, which every --backbone and -m takes by its path.

    For example:

    Look at what would be drawn; then train for hours on a CPU, and go on after an interruption:

        steadysam pretrain --sheet sheet.png
        steadysam pretrain --config benchmarks/pretrain/tiny_cpu.toml -o runs/tiny
        steadysam pretrain --config benchmarks/pretrain/tiny_cpu.toml -o runs/tiny --continue

    On several GPUs of one machine:

        accelerate launch --multi_gpu -m steadysam pretrain --config benchmarks/pretrain/tiny_cuda.toml -o runs/tiny

    Parameters
    ----------
    output
        Run folder to write.
    config
        TOML file; without it the defaults, which are those of the shipped weights.
    device
        auto, cpu, cuda, cuda:N or mps.
    sheet
        Write a contact sheet of drawn images with their targets and prompts (PNG), and train nothing.
    settings
        section.key=value, any number of times; wins over everything.
    resume
        Go on with the run in the output folder.
    """
    from steadysam.config import apply_settings, read_config
    from steadysam.pretraining.config import make_pretrain_config

    values = apply_settings(read_config(config) if config else {}, settings)
    if device is not None:
        values.setdefault("compute", {})["device"] = device
    checked = make_pretrain_config(values)
    if sheet is not None:
        from steadysam.files import write_bytes
        from steadysam.report.contactsheet import contact_sheet

        log.info("%s", write_bytes(sheet, contact_sheet(checked, checked.compute.seed)))
        return
    if output is None:
        raise UsageError("OUTPUT_MISSING", "where to?", expected="-o FOLDER, or --sheet FILE.png", fix="add -o FOLDER")
    from steadysam.pretraining.run import pretrain as run_pretraining

    log.info("weights: %s", run_pretraining(checked, output, resume=resume))

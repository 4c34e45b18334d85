"""What one training step of the masks costs, beside that of the segmenter by itself (acceptance check 16 of LDFSAM).

    python benchmarks/training_step.py benchmarks/suites/ldfsam.toml --slices 2 --repeats 5 \\
        -o benchmarks/results/ldfsam_step_full.md

A step is all that the loop does for a batch: augmentation, forward and backward pass, optimiser. Images are noise with
a disc as the mask, weights random, numbers of 32 bits. Each row takes turns with the first in one process, so that
ratios can be trusted further than times. Training the detectors is not in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from cost import BARE, Built, build, detail_of, noise
from timing import headline, measuring_parser, turns

from steadysam.bench.suite import Suite, read_suite
from steadysam.embeddings import EmbeddingCache
from steadysam.files import write_text
from steadysam.loop import StageStep
from steadysam.methods import METHODS
from steadysam.methods.contract import Chance, TrainingCase
from steadysam.optimisation import make_optimisation
from steadysam.report.table import to_markdown
from steadysam.trainable import select_trainable, stage_buffers

ROWS = (BARE, "boxes, student", "S+D, student", "LDFSAM, detector frozen")
NOTE = (
    "A step: augmentation, forward and backward pass, optimiser, for a batch of so many slices; the detector's part in "
    "the mask stage is in it, its own training is not. Time: ratios of the same turn, their median and range."
)


def main() -> None:
    """Measure and write."""
    parser = measuring_parser(__doc__, "of a batch")
    parser.add_argument("--rows", nargs="+", default=ROWS, help="the first is the unit; default: %(default)s")
    flags = parser.parse_args()
    torch.set_num_threads(flags.threads)
    text = [
        headline("training_step.py", flags, "slices in a batch"),
        table(read_suite(flags.suite), flags.rows, flags.slices, flags.repeats),
        NOTE,
    ]
    print(write_text(flags.output, "\n".join(text) + "\n"))


def table(suite: Suite, rows: Sequence[str], slices: int, repeats: int) -> str:
    """A line per row; times are relative to the first, with which each takes turns alone."""
    unit = rows[0]
    base = build(suite, unit, slices)
    base_step = training_step(base, slices)
    lines: list[dict[str, Any]] = []
    for row in rows:
        built = base if row == unit else build(suite, row, slices)
        times = turns({unit: base_step, row: base_step if row == unit else training_step(built, slices)}, repeats)
        trained = sum(p.numel() for p in built.model.parameters() if p.requires_grad) / 1e6
        ratios = [mine / its for mine, its in zip(times[row], times[unit], strict=True)]
        line = {"row": row, "trained": f"{trained:.3f}", "seconds": f"{np.median(times[row]):.2f}"}
        lines.append(line | {"ratio": f"{np.median(ratios):.3f}", "range": f"{min(ratios):.3f}–{max(ratios):.3f}"})
    headings = {"row": "", "trained": "trained, M", "seconds": "s per step", "ratio": f"time, {unit} = 1"}
    return to_markdown(lines, [*headings, "range"], headings=headings)


def training_step(built: Built, slices: int) -> Callable[[], None]:
    """One step of the row's last stage, the one that trains masks."""
    settings = built.config.method_config()
    stage = METHODS[built.config.method_name].stages(settings)[-1]
    work = make_optimisation(stage, select_trainable(built.model, stage), stage_buffers(built.model, stage))
    case = discs(built.config.preprocess.size, detail_of(built.config), slices)
    samples = stage.samples(built.model, [case], EmbeddingCache())
    module, chance = StageStep(built.model, stage), Chance(0, stage.name, 0, training=True)

    def step() -> None:
        module(samples.batch(range(len(samples)), chance))["loss"].backward()
        work.optimizer.step()
        work.optimizer.zero_grad()

    return step


def discs(size: int, detail: int, slices: int) -> TrainingCase:
    """Slices of noise, each with a disc as its mask."""
    stack, points = noise(size, detail, slices)
    across = np.linspace(-1, 1, size)
    disc = across[:, None] ** 2 + across**2 < 0.25
    return TrainingCase("noise", stack, np.stack([disc] * slices), tuple(points))


if __name__ == "__main__":
    main()

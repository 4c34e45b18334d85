"""What the rows of a suite cost: parameters, operations and time per slice, and the training that a store tells of.

    python benchmarks/cost.py benchmarks/suites/ldfsam_cpu.toml --store benchmarks/results/ldfsam \\
        -o benchmarks/results/ldfsam_cost.md
    python benchmarks/cost.py benchmarks/suites/ldfsam.toml --slices 1 --repeats 3 \\
        -o benchmarks/results/ldfsam_cost_full.md

Networks have random weights, as neither count depends on them; a row with boxes is given one per slice. Each row takes
turns with the segmenter by itself, in one process, so that ratios can be trusted further than times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from timing import headline, in_turns, measuring_parser, random_weights, records, trained_seconds
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from steadysam.bench.group import Folders, Group
from steadysam.bench.run import rows_of_tables
from steadysam.bench.suite import Suite, read_suite
from steadysam.config import RunConfig
from steadysam.detection.average_precision import FoundBoxes
from steadysam.embeddings import EmbeddingCache
from steadysam.files import write_text
from steadysam.methods import METHODS, ldfsam
from steadysam.methods.contract import traits_of
from steadysam.report.table import to_markdown
from steadysam.runs import merge_adapters, release
from steadysam.trainable import select_trainable
from steadysam.types import Frame, Preprocess, SlicePoints, SliceStack

BARE = "SAM-Med2D style, no prompts"
NOTE = (
    "All: parameters that segment, without a teacher that only taught. Trained: those of them that any stage trains, "
    "the detector's included, whichever run trained them. GFLOPs: operations of one slice from image to mask, a "
    "multiplication and an addition are two; LoRA merged, one box where boxes prompt."
)
TRAINING = (
    " Training: minutes of one core with every run that the row starts from, means over the targets and seeds of the "
    "store; a detector's run trains a teacher and a student."
)


@dataclass(frozen=True, eq=False)
class Built:
    """A row's network, and what calls it on the slices."""

    model: nn.Module
    config: RunConfig
    work: Callable[[], object]


def main() -> None:
    """Measure and write."""
    parser = measuring_parser(__doc__, "that are segmented at a time")
    parser.add_argument("--store", type=Path, help="of the suite, for the cost of training")
    parser.add_argument("--rows", nargs="+", help="default: those of prompt form and comparison, and LDFSAM")
    flags = parser.parse_args()
    torch.set_num_threads(flags.threads)
    suite = read_suite(flags.suite)
    wanted = flags.rows or [*rows_of_tables(suite, ["prompt form", "comparison"]), "LDFSAM"]
    rows = [row for row in suite.rows if row in wanted and suite.runs[suite.rows[row].run].nnunet is None]
    text = [
        headline("cost.py", flags, "slices at a time"),
        table(suite, rows, flags.store, flags.slices, flags.repeats),
        NOTE + (TRAINING if flags.store else ""),
    ]
    print(write_text(flags.output, "\n".join(text) + "\n"))


def table(suite: Suite, rows: Sequence[str], store: Path | None, slices: int, repeats: int) -> str:
    """A line per row; times are relative to the segmenter without prompts, or else to the first row.

    Each row takes turns with that one alone: of a dozen large networks in one memory the later ones would be slower.
    """
    unit = BARE if BARE in rows else rows[0]
    base = build(suite, unit, slices)
    own = counts(base, slices)
    lines: list[dict[str, Any]] = []
    for row in rows:
        built = base if row == unit else build(suite, row, slices)
        sizes = [built.config.preprocess.size, *([detail] if (detail := detail_of(built.config)) else [])]
        line = {"row": row, "pixels": " + ".join(map(str, sizes)), **(own if row == unit else counts(built, slices))}
        seconds = in_turns({unit: base.work, row: built.work}, repeats)
        line |= {"ms": f"{1000 * seconds[row] / slices:.1f}", "ratio": f"{seconds[row] / seconds[unit]:.2f}"}
        lines.append(line | {"training": _minutes(suite, row, store) if store else None})
    headings = {"row": "", "pixels": "px", "all": "all, M", "trained": "trained, M", "gflops": "GFLOPs per slice"}
    headings |= {"ms": "ms per slice", "ratio": f"time, {unit} = 1"}
    headings |= {"training": "training, core min"} if store else {}
    return to_markdown(lines, list(headings), headings=headings)


def build(suite: Suite, row: str, slices: int) -> Built:
    """The network of a row, ready to segment `slices` slices of noise."""
    nowhere = Path("nowhere")
    config = Group(suite, next(iter(suite.targets)), 0, Folders(nowhere, nowhere, nowhere)).config(suite.rows[row].run)
    method, settings = METHODS[config.method_name], config.method_config()
    traits = traits_of(method, settings)
    size = config.preprocess.size
    backbone = random_weights(config.backbone.name, size) if traits.backbone else None
    model = method.build(settings, backbone).eval()
    stack, points = noise(size, detail_of(config), slices)
    points = points if traits.prompted else [SlicePoints.empty()] * slices

    def work() -> None:
        with one_box_each():
            method.segment(model, settings, stack, points, EmbeddingCache())

    return Built(model, config, work)


def counts(built: Built, slices: int) -> dict[str, str]:
    """Parameters in millions and GFLOPs of one slice; afterwards the model is as it segments."""
    model, settings = built.model, built.config.method_config()
    stages = METHODS[built.config.method_name].stages(settings)
    trained = {name for stage in stages for name in select_trainable(model, stage)}
    left = dict(release(model).named_parameters())
    numbers = {"all": sum(p.numel() for p in left.values())}
    numbers["trained"] = sum(p.numel() for name, p in left.items() if name in trained)
    merge_adapters(model).eval().requires_grad_(False)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        built.work()
    shown = {name: f"{number / 1e6:.3f}" for name, number in numbers.items()}
    return {**shown, "gflops": f"{counter.get_total_flops() / slices / 1e9:.2f}"}


def noise(size: int, detail: int, slices: int) -> tuple[SliceStack, list[SlicePoints]]:
    """Coloured slices of noise, and a box on each."""
    rng = np.random.default_rng(0)
    images = rng.random((slices, 3, size, size)).astype(np.float32)
    stack = SliceStack(images, Frame(size, size, size), Preprocess(size=size), f"noise-{size}-{slices}")
    if detail:
        stack = replace(stack, detail=rng.integers(0, 256, (slices, 3, detail, detail)).astype(np.uint8))
    box = np.array([size / 4, size / 4, size / 2, size / 2], np.float32)
    return stack, [replace(SlicePoints.empty(), box=box)] * slices


@contextmanager
def one_box_each() -> Iterator[None]:
    """LDFSAM's detector finds one box on each slice; one of random weights finds none, or hundreds."""
    real = ldfsam.detect_stack

    def found(detector: Any, stack: SliceStack, config: Any) -> list[FoundBoxes]:
        here = real(detector, stack, config)
        box = np.array([[1.0, 1.0, 9.0, 9.0]], np.float32)
        return [FoundBoxes(box, np.ones(1, np.float32))] * len(here)

    with mock.patch.object(ldfsam, "detect_stack", found):
        yield


def detail_of(config: RunConfig) -> int:
    """The second image size of methods with a detector, or 0."""
    settings = config.method_config()
    detector = getattr(settings, "detector", settings)
    sees = getattr(settings, "mode", "box") != "none"
    return int(getattr(detector, "image_size", 0)) if sees else 0


def _minutes(suite: Suite, row: str, store: Path) -> str | None:
    found = [cell for cell in records(suite, row, store) if all(record.exists() for record in cell)]
    return f"{np.mean([sum(map(trained_seconds, cell)) for cell in found]) / 60:.1f}" if found else None


if __name__ == "__main__":
    main()

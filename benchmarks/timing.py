"""Wall seconds: measured so that their ratios can be trusted, and those of training that a store tells of."""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from steadysam.backbones import BACKBONES
from steadysam.backbones.build import random_backbone
from steadysam.bench.group import run_place
from steadysam.bench.run import trained_runs
from steadysam.bench.store import run_path
from steadysam.bench.suite import Suite
from steadysam.files import read_json


def measuring_parser(doc: str | None, slices: str) -> argparse.ArgumentParser:
    """The flags of a script that times rows of a suite; `slices` says what `--slices` are."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", type=Path)
    parser.add_argument("--slices", type=int, default=8, help=slices)
    parser.add_argument("--repeats", type=int, default=5, help="turns; the median counts")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("-o", "--output", type=Path, required=True)
    return parser


def headline(script: str, flags: argparse.Namespace, slices: str) -> str:
    """How and where it was measured, above the table."""
    return (
        f"`python benchmarks/{script} benchmarks/suites/{flags.suite.name}` · {platform.machine()}, "
        f"{flags.threads} threads, torch {torch.__version__}, {slices}: {flags.slices}, "
        f"median of {flags.repeats}; random weights.\n"
    )


def random_weights(name: str, image_size: int) -> Any:
    """A backbone of `BACKBONES` with random weights: times and gradients do not need those that were trained."""
    return random_backbone(BACKBONES[name].architecture, image_size, seed=0, name=name)


def in_turns(works: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median wall seconds of each, see `turns`."""
    return {name: float(np.median(found)) for name, found in turns(works, repeats).items()}


def turns(works: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Wall seconds of each, called one after the other `repeats` times, after one round that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats + 1):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            times[name].append(time.perf_counter() - start)
    return {name: found[1:] for name, found in times.items()}


def records(suite: Suite, row: str, store: Path) -> Iterator[list[Path]]:
    """For each cell of a row the records of its run and of those that it starts from, in the store or yet to come."""
    for target in suite.targets:
        for seed in suite.seeds:
            if suite.scores(row, target, seed):
                runs = [(*run_place(suite, run, target, seed), run) for run in trained_runs(suite, [row])]
                yield [run_path(store, *run) for run in runs]


def trained_seconds(record: Path) -> float:
    """Of all stages of a run."""
    return float(sum(read_json(record)["seconds"].values()))

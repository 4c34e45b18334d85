"""What several test files share: a trained run, prompts that hit and miss, the command line in process."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from steadysam.config import make_config
from steadysam.geometry import slice_to_ras
from steadysam.training import train
from steadysam.types import Grid, Point, Prompts, Volume

STAGE = {"epochs": 24, "batch_size": 5, "learning_rate": 5e-3}


def toy_run_values(dataset: Path, **method: Any) -> dict[str, Any]:
    """The configuration of a run that trains for a few seconds and has learnt something then."""
    return {
        "data": {"dataset": str(dataset), "label": "blob"},
        "preprocess": {"size": 32},
        "backbone": {"name": "sam-test"},
        "method": {
            "name": "spd",
            "adapt": "full",
            "stage1": STAGE,
            "stage2": {**STAGE, "epochs": 4},
            **method,
        },
        "compute": {"device": "cpu", "cache": "off", "threads": 1},
    }


def train_toy(dataset: Path, folder: Path, **method: Any) -> Path:
    """A finished run folder."""
    return train(make_config(toy_run_values(dataset, **method)), folder)


def make_volume(grid: Grid, seed: int = 0) -> Volume:
    """A bright ellipse on noise, on every slice, as float32 `(I, J, K)`; looks like the toy data set."""
    rng = np.random.default_rng(seed)
    axes = grid.plane_axes
    index = np.indices(grid.shape)
    inside = sum(((index[a] - grid.shape[a] / 2) / (grid.shape[a] / 4)) ** 2 for a in axes) < 1
    return Volume((rng.normal(100, 12, grid.shape) + 90 * inside).astype(np.float32), grid)


def click(name: str, xy: tuple[float, float], index: int, grid: Grid, **more: Any) -> Point:
    """A point given by slice pixels, as RAS mm."""
    x, y, z = slice_to_ras(np.array([xy]), index, grid)[0].tolist()
    return Point(name, (x, y, z), **more)


def some_prompts(grid: Grid, seed: int = 3) -> Prompts:
    """On every slice but the last of several: one point in the middle and one or two anywhere."""
    rng = np.random.default_rng(seed)
    height, width = grid.slice_shape
    points = []
    for t in range(max(1, grid.depth - 1)):
        points.append(click(f"hit{t}", (width / 2 + 0.2, height / 2 - 0.3), t, grid))
        for n in range(1 + t % 2):
            xy = (float(rng.uniform(0, width - 1)), float(rng.uniform(0, height - 1)))
            points.append(click(f"stray{t}.{n}", xy, t, grid))
    return Prompts(tuple(points))


def steadysam(*words: Any) -> int:
    """Run a command line in this process; returns the exit code that a shell would see."""
    from steadysam.cli import app

    loggers = [logging.getLogger(name) for name in ("steadysam", "steadysam.data")]
    levels = [logger.level for logger in loggers]
    try:
        code = app.meta([str(word) for word in words])
    except SystemExit as stop:
        code = stop.code
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)  # a process of its own would leave none behind
    return code if isinstance(code, int) else int(code is not None)


def leftovers(folder: Path) -> list[Path]:
    """Temporary files and folders, and locks, below a folder; there must never be any."""
    return sorted([*folder.rglob(".tmp-*"), *folder.rglob(".lock*")]) if folder.exists() else []


_HOLD = """
import sys
from steadysam.locks import alone_in

with alone_in(sys.argv[1]):
    print("in", flush=True)
    sys.stdin.read()
"""


class Holder:
    """Another process that writes into `folder` until it is told to leave, or killed."""

    def __init__(self, folder: Path) -> None:
        words = [sys.executable, "-c", _HOLD, str(folder)]
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "in\n"

    def leave(self) -> None:
        self.process.communicate()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

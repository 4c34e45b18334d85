"""What the tests of promptable methods share: a case in memory, and a method trained on the toy data set."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from steadysam.config import make_config
from steadysam.data.volumes import read_label_map, read_volume
from steadysam.methods.contract import TrainingCase
from steadysam.runs import load_run
from steadysam.segmenting import segment
from steadysam.training import train
from steadysam.training_data import simulate
from steadysam.types import Frame, Mask, Preprocess, SlicePoints, SliceStack

SIZE = 32


def slice_points(*xy: tuple[float, float], positive: list[bool] | None = None, name: str = "p") -> SlicePoints:
    """Points of one slice in model pixels; positive unless said otherwise."""
    sign = np.ones(len(xy), bool) if positive is None else np.array(positive, bool)
    return SlicePoints(np.array(xy, np.float32).reshape(-1, 2), sign, tuple(f"{name}{i}" for i in range(len(xy))))


def small_case(*points: SlicePoints, seed: int = 0) -> TrainingCase:
    """A case of noise with as many slices as `points`, and the object on all but the first."""
    depth = len(points)
    images = np.random.default_rng(seed).random((depth, 1, SIZE, SIZE)).astype(np.float32)
    masks = np.zeros((depth, SIZE, SIZE), bool)
    masks[1:, 8:20, 10:26] = True
    stack = SliceStack(images, Frame(SIZE, SIZE, SIZE), Preprocess(size=SIZE), f"small-{seed}-{depth}")
    return TrainingCase(f"case{seed}", stack, masks, points)


def learnt_dice(dataset: Path, folder: Path, backbone: str, tuning: dict[str, Any], **method: Any) -> float:
    """Dice of the toy data set's test case after training a method on the others, all on simulated points."""
    values = {
        "data": {"dataset": str(dataset), "label": "blob"},
        "preprocess": {"size": SIZE},
        "backbone": {"name": backbone},
        "method": {**method, "tuning": {"batch_size": 5, **tuning}},
        "compute": {"device": "cpu", "cache": "off", "threads": 1},
    }
    config = make_config(values)
    run = load_run(train(config, folder), "cpu")
    volume = read_volume(dataset / "imagesTs" / "toy_5_0000.nii.gz", slice_axis=2)
    labels, _ = read_label_map(dataset / "labelsTs" / "toy_5.nii.gz", slice_axis=2)
    truth = Mask(labels > 0, volume.grid)
    found = segment(run, volume, simulate(config, "toy_5", truth)).mask.array
    return 2 * float((found & truth.array).sum()) / float(found.sum() + truth.array.sum())


def with_box(points: SlicePoints, *xyxy: float) -> SlicePoints:
    """The same points and a box that somebody drew."""
    return replace(points, box=np.array(xyxy, np.float32))

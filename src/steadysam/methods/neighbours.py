"""Prompts of neighbouring slices, unfiltered: the control that asks whether it is a filter or the extra points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from steadysam.methods.contract import TrainingCase
from steadysam.types import SlicePoints


def gather_neighbours(points: Sequence[SlicePoints], n: int) -> tuple[SlicePoints, ...]:
    """Own and neighbours' points of every slice, from slice t - n to t + n in order; they keep their (x, y)."""
    depth = len(points)
    result = []
    for t in range(depth):
        window = [points[j] for j in range(max(0, t - n), min(depth, t + n + 1))]
        result.append(
            SlicePoints(
                np.concatenate([p.xy for p in window]),
                np.concatenate([p.positive for p in window]),
                tuple(name for p in window for name in p.ids),
            )
        )
    return tuple(result)


def with_neighbours(case: TrainingCase, n: int) -> TrainingCase:
    """The case with the points of 2n neighbours on every slice, redrawn ones too."""
    drawn = case.redraw
    redraw = None if drawn is None else (lambda generator: gather_neighbours(drawn(generator), n))
    return replace(case, points=gather_neighbours(case.points, n), redraw=redraw)

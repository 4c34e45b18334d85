"""Centreline prompts as a shaky hand draws them: overshoot, drift, slips onto a twin, gaps, stray clicks.

The hand knows where the target is, so these prompts are derived from the drawn truth: their source is
`simulated`, and the history says how.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from steadysam.geometry import nearest_slices, ras_to_voxel, slice_to_ras
from steadysam.phantom.case import PhantomCase
from steadysam.types import ImageRef, Point, Prompts


@dataclass(frozen=True)
class Shake:
    """How shaky the hand is.

    Args:
        overshoot_slices: fewest and most slices drawn on beyond either end of the target.
        drift_mm: standard deviation of the smooth sideways drift.
        slips: fewest and most runs of slices on which the line lies on the nearest twin.
        slip_slices: fewest and most slices of such a run.
        gap_share: probability that a slice of the line was left out.
        strays: fewest and most stray clicks, anywhere in the body.
        per_slice: points of the line on each slice.
    """

    overshoot_slices: tuple[int, int] = (1, 4)
    drift_mm: float = 2.5
    slips: tuple[int, int] = (1, 2)
    slip_slices: tuple[int, int] = (1, 3)
    gap_share: float = 0.12
    strays: tuple[int, int] = (2, 5)
    per_slice: int = 2


SHAKY = Shake()
STEADIER = Shake(overshoot_slices=(0, 1), drift_mm=1.5, slips=(0, 0), strays=(0, 1))


def shaky_centerline(generator: np.random.Generator, case: PhantomCase, shake: Shake = SHAKY) -> Prompts:
    """Noisy centreline prompts for a drawn case, all positive, all inside the volume."""
    grid = case.volume.grid
    positive = np.flatnonzero(case.mask.array.any(axis=(0, 1)))
    before, after = generator.integers(*_closed(shake.overshoot_slices), 2)
    slices = np.arange(max(0, positive[0] - before), min(grid.depth - 1, positive[-1] + after) + 1)
    heights = np.linspace(slices[0] - 0.5, slices[-1] + 0.5, len(slices) * shake.per_slice + 1)
    heights = (heights[:-1] + heights[1:]) / 2
    line = _at_heights(ras_to_voxel(case.loop_mm, grid), heights)
    line = _slip(generator, line, case, shake)
    drift = _smooth_walk(generator, len(line), every=2 * shake.per_slice) * shake.drift_mm
    line[:, :2] += drift / grid.spacing_mm[:2]
    keep = generator.random(len(slices)) >= shake.gap_share
    line = line[np.repeat(keep, shake.per_slice)]
    inner = np.array(grid.shape) - 1
    voxels = np.clip(np.concatenate([line, _strays(generator, case, shake)]), 0, inner)
    # every click is made on a slice, not between slices
    index = nearest_slices(voxels, grid)
    points_mm = slice_to_ras(voxels[:, :2], index, grid)
    points = tuple(
        Point(f"p{number:03d}", (x, y, z), source="simulated", description=words)
        for number, ((x, y, z), words) in enumerate(
            zip(points_mm.tolist(), ["centreline"] * len(line) + ["stray"] * len(voxels), strict=False)
        )
    )
    image = ImageRef(case.volume.name, grid.shape, grid.key())
    step = {"simulator": "phantom-shaky-centerline", "derived_from_truth": True, **asdict(shake)}
    return Prompts(points, (), image, (step,))


def _slip(
    generator: np.random.Generator, line: NDArray[np.float64], case: PhantomCase, shake: Shake
) -> NDArray[np.float64]:
    """Runs of slices on which the line follows the twin that is nearest there."""
    line = line.copy()
    spacing = np.array(case.volume.grid.spacing_mm)
    twins = [_at_heights(ras_to_voxel(twin, case.volume.grid), line[:, 2]) for twin in case.twins_mm]
    for _ in range(int(generator.integers(*_closed(shake.slips)))):
        length = int(generator.integers(*_closed(shake.slip_slices))) * shake.per_slice
        first = int(generator.integers(0, max(1, len(line) - length)))
        run = slice(first, first + length)
        away = [np.linalg.norm((twin[run] - line[run]) * spacing, axis=1).mean() for twin in twins]
        line[run] = twins[int(np.argmin(away))][run]
    return line


def _strays(generator: np.random.Generator, case: PhantomCase, shake: Shake) -> NDArray[np.float64]:
    """(M, 3) voxels inside the body."""
    body = np.argwhere(case.volume.array > 0.25 * np.percentile(case.volume.array, 95))
    count = int(generator.integers(*_closed(shake.strays)))
    return body[generator.integers(0, len(body), count)].astype(np.float64)


def _at_heights(axis: NDArray[np.float64], heights: NDArray[np.float64]) -> NDArray[np.float64]:
    """The points of an axis (N, 3) in voxels where its third coordinate takes the given values."""
    return np.column_stack([np.interp(heights, axis[:, 2], axis[:, column]) for column in range(3)])


def _smooth_walk(generator: np.random.Generator, length: int, every: int) -> NDArray[np.float64]:
    """(length, 2) with unit variance at knots `every` samples apart, straight between them."""
    knots = np.arange(0, length + every, every)
    values = generator.standard_normal((len(knots), 2))
    return np.column_stack([np.interp(np.arange(length), knots, values[:, axis]) for axis in (0, 1)])


def _closed(bounds: tuple[int, int]) -> tuple[int, int]:
    return bounds[0], bounds[1] + 1

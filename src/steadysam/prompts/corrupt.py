"""Corruptions: prompts made worse by a known amount; the table `CORRUPTIONS`.

Every row takes `(prompts, severity, grid, generator)` with a severity from 0 to 1 and returns prompts.
Severity 0 returns the same object. Each adds a step to the history. Points stay within the volume.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steadysam.errors import ConfigError, InputError
from steadysam.geometry import (
    nearest_slices,
    ras_to_voxel,
    slice_to_ras,
    voxel_to_ras,
)
from steadysam.prompts.options import entropy
from steadysam.prompts.rows import triple, unique_id
from steadysam.types import Box, Grid, Point, Prompts, take_slice

MAX_JITTER_MM = 20.0
MAX_SHIFT_MM = 20.0
MAX_DISTRACTORS = 8
MAX_SLICES_OFF = 3
LOOKALIKE_MM = 15.0

Corruption = Callable[[Prompts, float, Grid, np.random.Generator], Prompts]


def jitter(prompts: Prompts, severity: float, grid: Grid, generator: np.random.Generator) -> Prompts:
    """Every point moves within its slice by a Gaussian of deviation 20 mm x severity along each axis."""
    ijk = ras_to_voxel(prompts.points_mm(), grid)
    moved = ijk + _in_plane(generator.normal(0, MAX_JITTER_MM * severity, (len(ijk), 2)), grid)
    return _placed(prompts, moved, grid)


def drop(prompts: Prompts, severity: float, grid: Grid, generator: np.random.Generator) -> Prompts:
    """Every prompt vanishes with a probability of severity; at 1 none is left."""
    points = tuple(point for point in prompts.points if generator.random() >= severity)
    boxes = tuple(box for box in prompts.boxes if generator.random() >= severity)
    return replace(prompts, points=points, boxes=boxes)


def distractors(prompts: Prompts, severity: float, grid: Grid, generator: np.random.Generator) -> Prompts:
    """Every prompted slice gets up to 8 x severity more positive points, uniform over the slice."""
    ids, added = _ids(prompts), []
    for t in sorted(set(_slices(prompts, grid).tolist())):
        mean = MAX_DISTRACTORS * severity
        count = math.floor(mean) + int(generator.random() < mean % 1)
        xy = _uniform(count, grid, generator)
        added += [_new_point(f"x{t:03d}-{n}", row, ids) for n, row in enumerate(slice_to_ras(xy, t, grid))]
    return replace(prompts, points=(*prompts.points, *added))


def shift(prompts: Prompts, severity: float, grid: Grid, generator: np.random.Generator) -> Prompts:
    """All prompts move together by 20 mm x severity in one random direction within the slice (bad
    registration).
    """
    angle = generator.uniform(0, 2 * np.pi)
    offset_mm = MAX_SHIFT_MM * severity * np.array([[np.cos(angle), np.sin(angle)]])
    offset = _in_plane(offset_mm, grid)
    moved = _placed(prompts, ras_to_voxel(prompts.points_mm(), grid) + offset, grid)
    step = grid.affine[:3, :3] @ offset[0]
    boxes = tuple(replace(box, centre_mm=triple(np.array(box.centre_mm) + step)) for box in prompts.boxes)
    return replace(moved, boxes=boxes)


def wrong_slice(prompts: Prompts, severity: float, grid: Grid, generator: np.random.Generator) -> Prompts:
    """Every point moves with a probability of severity to a slice one to three away, same place within the
    slice.
    """
    ijk = ras_to_voxel(prompts.points_mm(), grid)
    hit = generator.random(len(ijk)) < severity
    off = generator.integers(1, MAX_SLICES_OFF + 1, len(ijk)) * generator.choice([-1, 1], len(ijk))
    inside = (ijk[:, grid.slice_axis] + off >= 0) & (ijk[:, grid.slice_axis] + off <= grid.depth - 1)
    off = np.where(inside, off, -off)  # at the ends of the volume the other way
    ijk[:, grid.slice_axis] += np.where(hit, off, 0)
    return _placed(prompts, ijk, grid)


def overshoot(prompts: Prompts, severity: float, grid: Grid, generator: np.random.Generator) -> Prompts:
    """The prompts run on beyond their first and last slice, by severity x their number of slices at each end.

    One point per new slice, on a random walk from the mean of the positive points of the end slice.
    """
    ids, added = _ids(prompts), []
    ijk = ras_to_voxel(prompts.points_mm(), grid)[[point.sign == "positive" for point in prompts.points]]
    if not len(ijk):
        return prompts
    slices = nearest_slices(ijk, grid)
    extra = math.ceil(severity * (int(slices.max()) - int(slices.min()) + 1))
    for end, direction in ((int(slices.min()), -1), (int(slices.max()), 1)):
        here = ijk[slices == end].mean(axis=0)[list(grid.plane_axes)]
        for t in range(end + direction, end + direction * (extra + 1), direction):
            step = _in_plane(generator.normal(0, grid.spacing_mm[grid.slice_axis] / 2, (1, 2)), grid)
            here = _clip_xy(here + step[0, list(grid.plane_axes)], grid)
            if 0 <= t < grid.depth:
                added.append(_new_point(f"o{t:03d}", slice_to_ras(here, t, grid)[0], ids))
    return replace(prompts, points=(*prompts.points, *added))


def sign_swap(prompts: Prompts, severity: float, grid: Grid, generator: np.random.Generator) -> Prompts:
    """Every point changes its sign with a probability of severity."""
    swapped = {"positive": "negative", "negative": "positive"}
    hit = generator.random(len(prompts.points)) < severity
    points = tuple(
        replace(point, sign=swapped[point.sign]) if wrong else point  # type: ignore[arg-type]
        for point, wrong in zip(prompts.points, hit, strict=True)
    )
    return replace(prompts, points=points)


def loose_box(prompts: Prompts, severity: float, grid: Grid, generator: np.random.Generator) -> Prompts:
    """Every side of every box moves outwards by U(0, severity) x the box's length; at 1 up to three times as
    long.
    """
    return replace(prompts, boxes=tuple(_loosened(box, severity, generator) for box in prompts.boxes))


def lookalike(
    prompts: Prompts,
    severity: float,
    grid: Grid,
    generator: np.random.Generator,
    *,
    image: NDArray[Any] | None = None,
) -> Prompts:
    """Every point moves with a probability of severity to a place of the same slice that looks alike, 15 mm
    away or more.

    Alike is the pixel whose smoothed grey value (5 x 5 mean) is closest to the point's; one of the best
    percent is drawn. `image` is the volume (I, J, K[, C]).

    Raises:
        ConfigError: `PROMPT_OPTION` without `image`; `InputError` `PROMPT_GRID` if its shape is not the
            grid's.
    """
    if image is None:
        raise ConfigError("PROMPT_OPTION", "look-alikes are found in the image", fix="name it, for example --image")
    if image.shape[:3] != grid.shape:
        raise InputError("PROMPT_GRID", "the image lies on another grid", seen=image.shape, expected=grid.shape)
    ijk = ras_to_voxel(prompts.points_mm(), grid)
    hit = generator.random(len(ijk)) < severity
    for t in sorted(set(_slices(prompts, grid)[hit].tolist())):
        plane = take_slice(image, grid, t).astype(np.float64)
        smooth = _smooth(plane.mean(axis=2) if plane.ndim == 3 else plane)
        for n in np.flatnonzero(hit & (nearest_slices(ijk, grid) == t)):
            ijk[n, list(grid.plane_axes)] = _alike(smooth, ijk[n, list(grid.plane_axes)], grid, generator)
    return _placed(prompts, ijk, grid)


def _alike(
    smooth: NDArray[np.float64], xy: NDArray[np.float64], grid: Grid, generator: np.random.Generator
) -> NDArray[np.float64]:
    """A pixel (x, y) of the slice that is far enough and looks like `xy`; `xy` itself if the slice is too
    small.
    """
    rows, columns = np.indices(smooth.shape)
    spacing_y, spacing_x = grid.slice_spacing_mm
    far = np.hypot((columns - xy[0]) * spacing_x, (rows - xy[1]) * spacing_y) >= LOOKALIKE_MM
    if not far.any():
        return xy
    x, y = np.clip(np.rint(xy), 0, np.array(smooth.shape[::-1]) - 1).astype(int)
    difference = np.where(far, np.abs(smooth - smooth[y, x]), np.inf).ravel()
    best = np.argsort(difference, kind="stable")[: max(1, int(far.sum()) // 100)]
    row, column = np.unravel_index(int(generator.choice(best)), smooth.shape)
    return np.array([float(column), float(row)])


def _smooth(plane: NDArray[np.float64]) -> NDArray[np.float64]:
    from scipy.ndimage import uniform_filter

    return np.asarray(uniform_filter(plane, 5))


def _loosened(box: Box, severity: float, generator: np.random.Generator) -> Box:
    half = np.array(box.half_axes_mm)
    low, high = generator.uniform(0, severity, (2, 3, 1)) * 2 * half  # a side's length is two half-axes
    centre = np.array(box.centre_mm) + ((high - low) / 2).sum(axis=0)
    rows = half + (high + low) / 2
    return replace(box, centre_mm=triple(centre), half_axes_mm=(triple(rows[0]), triple(rows[1]), triple(rows[2])))


def _in_plane(move_mm: NDArray[np.float64], grid: Grid) -> NDArray[np.float64]:
    """(N, 2) mm along the slice's x and y -> (N, 3) voxels."""
    move = np.zeros((len(move_mm), 3))
    for column, axis in enumerate(grid.plane_axes):
        move[:, axis] = move_mm[:, column] / grid.spacing_mm[axis]
    return move


def _placed(prompts: Prompts, ijk: NDArray[np.float64], grid: Grid) -> Prompts:
    """The points at `ijk`, clamped into the volume; a point that did not move keeps its coordinates bit for
    bit.
    """
    before = ras_to_voxel(prompts.points_mm(), grid)
    same = (ijk == before).all(axis=1)
    rows = voxel_to_ras(np.clip(ijk, 0, np.array(grid.shape) - 1), grid)
    points = tuple(
        point if stays else replace(point, xyz_mm=triple(row))
        for point, stays, row in zip(prompts.points, same, rows, strict=True)
    )
    return replace(prompts, points=points)


def _slices(prompts: Prompts, grid: Grid) -> NDArray[np.int64]:
    return nearest_slices(ras_to_voxel(prompts.points_mm(), grid), grid)


def _clip_xy(xy: NDArray[Any], grid: Grid) -> NDArray[np.float64]:
    height, width = grid.slice_shape
    return np.clip(xy, 0, [width - 1, height - 1])


def _uniform(count: int, grid: Grid, generator: np.random.Generator) -> NDArray[np.float64]:
    height, width = grid.slice_shape
    return generator.uniform(0, [width - 1, height - 1], (count, 2))


def _new_point(name: str, xyz: NDArray[Any], ids: set[str]) -> Point:
    return Point(unique_id(name, ids), triple(xyz), source="simulated")


def _ids(prompts: Prompts) -> set[str]:
    return {row.id for row in (*prompts.points, *prompts.boxes)}


def _graded(function: Callable[..., Prompts]) -> Callable[..., Prompts]:
    """A row of the table: checks the severity, makes 0 the identity and writes the history."""

    @functools.wraps(function)
    def call(prompts: Prompts, severity: float, grid: Grid, generator: np.random.Generator, **options: Any) -> Prompts:
        if not 0 <= severity <= 1:
            raise ConfigError("PROMPT_OPTION", "a severity lies from 0 to 1", seen=severity)
        if severity == 0:
            return prompts
        step = {
            "step": "corrupt",
            "corruption": function.__name__,
            "severity": float(severity),
            "entropy": entropy(generator),
        }
        worse = function(prompts, severity, grid, generator, **options)
        return replace(worse, history=(*prompts.history, step))

    return call


CORRUPTIONS: dict[str, Callable[..., Prompts]] = {
    "jitter": _graded(jitter),
    "drop": _graded(drop),
    "distractors": _graded(distractors),
    "shift": _graded(shift),
    "wrong_slice": _graded(wrong_slice),
    "overshoot": _graded(overshoot),
    "sign_swap": _graded(sign_swap),
    "loose_box": _graded(loose_box),
    "lookalike": _graded(lookalike),
}

"""Centreline prompts that overshoot the structure, drift off it and have gaps (spd.md 3.3, centreline
simulator).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge, Gt
from numpy.typing import NDArray

from steadysam.errors import ConfigError
from steadysam.geometry import distance_outside_mm, ras_to_voxel, voxel_to_ras
from steadysam.prompts.curves import slice_crossings
from steadysam.prompts.options import NonNegative, Share
from steadysam.prompts.rows import check_mask, simulated, triple
from steadysam.prompts.skeleton import geodesic_path, slice_path
from steadysam.types import Grid, Point, Prompts

_MEMORY = 0.8  # how much of its turn the walk keeps per step: it wanders about the tangent, not in circles
Whole = Annotated[int, Ge(1)]


def centerline(
    mask: NDArray[np.bool_],
    grid: Grid,
    generator: np.random.Generator,
    *,
    route: Literal["slices", "geodesic"] = "slices",
    overshoot: NonNegative = 0.5,
    wander: NonNegative = 0.2,
    drift_mm: NonNegative = 3.0,
    drift_length_mm: Annotated[float, Gt(0)] = 30.0,
    gap_rate: Share = 0.1,
    gap_range: tuple[Whole, Whole] = (1, 4),
) -> Prompts:
    """A tracing of the structure, one point per slice crossing, clamped into the volume; all positive.

    Args:
        route: `slices` joins the middle of the structure from slice to slice; `geodesic`, for tubes, follows
            the largest connected part from end to end, also where it runs within slices or turns back.
        overshoot: how far the tracing runs on beyond *each* end, as a share of the structure's length.
        wander: how much the random walk beyond the ends turns per step of one slice distance, as a
            deviation of its unit direction (0 runs straight on along the end tangent).
        drift_mm: deviation of the smooth sideways drift, along each axis of the slice.
        drift_length_mm: length along the tracing over which the drift forgets itself.
        gap_rate: probability that a gap begins at a slice outside a gap.
        gap_range: smallest and largest number of slices in a gap.

    Raises:
        ConfigError: `PROMPT_OPTION` if `gap_range` runs backwards.
        InputError: `PROMPT_GRID` if mask and grid differ in shape.
    """
    check_mask(mask, grid)
    if gap_range[0] > gap_range[1]:
        raise ConfigError("PROMPT_OPTION", "gap_range runs backwards", seen=gap_range, expected="smallest, largest")
    path = slice_path(mask, grid) if route == "slices" else geodesic_path(mask, grid)
    path = extended(path, grid, generator, overshoot, wander)
    path = drifted(path, grid, generator, drift_mm, drift_length_mm)
    rows = _with_gaps(_clamped(slice_crossings(path, grid), grid), grid, generator, gap_rate, gap_range)
    options = {
        "route": route,
        "overshoot": overshoot,
        "wander": wander,
        "drift_mm": drift_mm,
        "drift_length_mm": drift_length_mm,
        "gap_rate": gap_rate,
        "gap_range": list(gap_range),
    }
    points = tuple(Point(f"c{n:03d}", triple(row), source="simulated") for n, row in enumerate(rows))
    return simulated(grid, "centerline", options, generator, points=points)


def extended(
    path_mm: NDArray[Any], grid: Grid, generator: np.random.Generator, overshoot: float, wander: float
) -> NDArray[np.float64]:
    """(N, 3) -> (M, 3) RAS+ mm: a random walk of length `overshoot` x length of the path, added at each
    end.
    """
    if not len(path_mm):
        return path_mm
    step = float(grid.spacing_mm[grid.slice_axis])
    reach = overshoot * max(_length(path_mm), step)  # a structure on one slice counts as one slice long
    ahead = _walk(path_mm, grid, generator, reach, step, wander)
    back = _walk(path_mm[::-1], grid, generator, reach, step, wander)
    return np.concatenate([back[::-1], path_mm, ahead])


def _walk(
    path_mm: NDArray[Any],
    grid: Grid,
    generator: np.random.Generator,
    reach: float,
    step: float,
    wander: float,
) -> NDArray[np.float64]:
    """Vertices beyond the last point of `path_mm`; the walk ends with its first vertex outside the volume."""
    tangent, turn = _end_direction(path_mm, grid), np.zeros(3)
    here, rows, done = path_mm[-1], [], 0.0
    while reach - done > 1e-9:
        length = min(step, reach - done)
        turn = _MEMORY * turn + generator.normal(0, wander, 3)
        direction = (tangent + turn) / max(float(np.linalg.norm(tangent + turn)), 1e-9)
        here = here + direction * length
        done += length
        rows.append(here)
        if distance_outside_mm(here, grid)[0] > 0:
            break
    return np.array(rows).reshape(-1, 3)


def _end_direction(path_mm: NDArray[Any], grid: Grid) -> NDArray[np.float64]:
    """Unit tangent at the last point, over the last three steps; the slice axis if there is no step."""
    tangent = path_mm[-1] - path_mm[max(0, len(path_mm) - 4)]
    if np.linalg.norm(tangent) < 1e-9:
        tangent = grid.affine[:3, grid.slice_axis]
    return tangent / np.linalg.norm(tangent)


def drifted(
    path_mm: NDArray[Any], grid: Grid, generator: np.random.Generator, sigma_mm: float, length_mm: float
) -> NDArray[np.float64]:
    """(N, 3) -> (N, 3) RAS+ mm: moved within the slices by smooth noise of deviation `sigma_mm` per slice
    axis.
    """
    if sigma_mm == 0 or not len(path_mm):
        return path_mm
    arc = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(path_mm, axis=0), axis=1))])
    knots = np.arange(-3.0, arc[-1] / length_mm + 4.0) * length_mm
    weights = np.exp(-0.5 * ((arc[:, None] - knots) / (length_mm / 2)) ** 2)
    weights = weights / np.linalg.norm(weights, axis=1, keepdims=True)  # unit variance everywhere on the path
    noise = weights @ generator.normal(0, sigma_mm, (len(knots), 2))
    axes = grid.affine[:3, list(grid.plane_axes)]
    return path_mm + noise @ (axes / np.linalg.norm(axes, axis=0)).T


def _clamped(points_mm: NDArray[Any], grid: Grid) -> NDArray[np.float64]:
    return voxel_to_ras(np.clip(ras_to_voxel(points_mm, grid), 0, np.array(grid.shape) - 1), grid)


def _with_gaps(
    points_mm: NDArray[Any],
    grid: Grid,
    generator: np.random.Generator,
    rate: float,
    gap_range: tuple[int, int],
) -> NDArray[np.float64]:
    """Leave out runs of slices; the first and the last slice of the tracing stay, so that a gap is a gap."""
    slices = np.rint(ras_to_voxel(points_mm, grid)[:, grid.slice_axis]).astype(int)
    if not len(slices):
        return points_mm
    missing: set[int] = set()
    t, last = int(slices.min()) + 1, int(slices.max())
    while t < last:
        if generator.random() < rate:
            size = int(generator.integers(gap_range[0], gap_range[1] + 1))
            missing.update(range(t, min(t + size, last)))
            t += size
        t += 1
    return points_mm[~np.isin(slices, list(missing))]


def _length(path_mm: NDArray[Any]) -> float:
    return float(np.linalg.norm(np.diff(path_mm, axis=0), axis=1).sum())

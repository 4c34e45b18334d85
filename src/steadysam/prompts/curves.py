"""Polylines in space, cut by the slices of a volume."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from steadysam.geometry import ras_to_voxel, voxel_to_ras
from steadysam.types import Grid


def slice_crossings(path_mm: NDArray[Any], grid: Grid) -> NDArray[np.float64]:
    """Where a polyline crosses the mid-planes of slices: one point per crossing, in the order of the path.

    Args:
        path_mm: (N, 3) vertices, RAS+ mm. A single vertex, or a path that stays between two mid-planes,
            gives the vertices' mean moved onto the slice it lies in.

    Returns:
        (M, 3) RAS+ mm. Crossings beyond the first and the last slice are left out.
    """
    path = ras_to_voxel(path_mm, grid)
    if not len(path):
        return np.zeros((0, 3))
    axis = grid.slice_axis
    found = [row for a, b in zip(path[:-1], path[1:], strict=True) for row in _segment(a, b, axis, grid.depth)]
    closed = len(path) > 1 and np.allclose(path[0], path[-1])  # then its end is its start, already counted
    if not closed and abs(path[-1, axis] - round(path[-1, axis])) < 1e-6 and 0 <= round(path[-1, axis]) < grid.depth:
        found.append(path[-1])
    if not found:
        middle = path.mean(axis=0)
        nearest = np.floor(middle[axis] + 0.5)
        if 0 <= nearest < grid.depth:
            middle[axis] = nearest
            found.append(middle)
    return voxel_to_ras(np.array(found).reshape(-1, 3), grid)


def _segment(a: NDArray[Any], b: NDArray[Any], axis: int, depth: int) -> list[NDArray[np.float64]]:
    """Crossings in [a, b): the end belongs to the next segment, so that no vertex counts twice."""
    start, end = a[axis], b[axis]
    if start == end:
        return []  # runs within a plane: only its ends can be crossings of the neighbouring segments
    if end > start:
        planes = np.arange(np.ceil(start), np.ceil(end))
    else:
        planes = np.arange(np.floor(start), np.floor(end), -1)
    rows = []
    for plane in planes[(planes >= 0) & (planes < depth)]:
        row = a + (b - a) * (plane - start) / (end - start)
        row[axis] = plane
        rows.append(row)
    return rows


def smooth_curve(knots_mm: NDArray[Any], *, closed: bool = False, step_mm: float = 1.0) -> NDArray[np.float64]:
    """(N, 3) knots -> (M, 3) vertices at most about `step_mm` apart, RAS+ mm.

    A cubic spline over chord length (natural ends; periodic if closed), which is how Slicer draws curves
    within a fraction of the knots' distance. Knots that coincide count once.
    """
    knots = np.asarray(knots_mm, np.float64).reshape(-1, 3)
    if closed and len(knots) > 1:
        knots = np.concatenate([knots, knots[:1]])
    steps = np.linalg.norm(np.diff(knots, axis=0), axis=1)
    knots = knots[np.concatenate([[True], steps > 1e-9])]
    if len(knots) < 3:
        return knots
    from scipy.interpolate import CubicSpline

    arc = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(knots, axis=0), axis=1))])
    if closed:
        knots[-1] = knots[0]  # exactly, as the periodic spline demands
    spline = CubicSpline(arc, knots, bc_type="periodic" if closed else "natural")
    count = min(int(np.ceil(arc[-1] / step_mm)) + 1, 100_000)
    return spline(np.union1d(np.linspace(0, arc[-1], count), arc))

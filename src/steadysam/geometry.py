"""The only place where coordinates change frame: world <-> voxel <-> slice, LPS <-> RAS.

Inside, world coordinates are RAS+ millimetres and voxel centres lie at integer indices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from steadysam.errors import InputError
from steadysam.types import Box, Frame, Grid, Prompts, SlicePoints

WorldFrame = Literal["RAS", "LPS"]
PromptFrame = Literal["RAS", "LPS", "ijk"]
Outside = Literal["error", "drop", "clip"]

_FLIP = np.array([-1.0, -1.0, 1.0])


def flip_lps_ras(points_mm: NDArray[Any]) -> NDArray[np.float64]:
    """LPS -> RAS and RAS -> LPS: the same change of sign of x and y. (..., 3) -> (..., 3)."""
    return np.asarray(points_mm, np.float64) * _FLIP


def to_ras(coordinates: NDArray[Any], frame: PromptFrame, grid: Grid | None = None) -> NDArray[np.float64]:
    """(N, 3) in `frame` -> (N, 3) RAS+ mm; `ijk` needs the grid.

    Raises:
        InputError: `PROMPT_GRID_MISSING` for ijk without a grid.
    """
    coordinates = np.asarray(coordinates, np.float64).reshape(-1, 3)
    if frame == "RAS":
        return coordinates
    if frame == "LPS":
        return flip_lps_ras(coordinates)
    if grid is None:
        raise InputError(
            "PROMPT_GRID_MISSING",
            "prompts in array indices (ijk) need their image to become millimetres",
            fix="name the image, for example with --image",
        )
    return voxel_to_ras(coordinates, grid)


def from_ras(points_mm: NDArray[Any], frame: PromptFrame, grid: Grid | None = None) -> NDArray[np.float64]:
    """(N, 3) RAS+ mm -> (N, 3) in `frame`; the inverse of `to_ras`."""
    points_mm = np.asarray(points_mm, np.float64).reshape(-1, 3)
    if frame == "RAS":
        return points_mm
    if frame == "LPS":
        return flip_lps_ras(points_mm)
    if grid is None:
        raise InputError("PROMPT_GRID_MISSING", "array indices (ijk) need an image", fix="name the image")
    return ras_to_voxel(points_mm, grid)


def voxel_to_ras(ijk: NDArray[Any], grid: Grid) -> NDArray[np.float64]:
    """(N, 3) continuous voxel indices -> (N, 3) RAS+ mm."""
    ijk = np.asarray(ijk, np.float64).reshape(-1, 3)
    return ijk @ grid.affine[:3, :3].T + grid.affine[:3, 3]


def ras_to_voxel(points_mm: NDArray[Any], grid: Grid) -> NDArray[np.float64]:
    """(N, 3) RAS+ mm -> (N, 3) continuous voxel indices.

    Rounded to 1e-6 voxel, so that a point stored on a voxel border does not change sides by floating-point noise.
    """
    points_mm = np.asarray(points_mm, np.float64).reshape(-1, 3)
    return np.round((points_mm - grid.affine[:3, 3]) @ np.linalg.inv(grid.affine[:3, :3]).T, 6)


def distance_outside_mm(points_mm: NDArray[Any], grid: Grid) -> NDArray[np.float64]:
    """(N,) mm from each point to the volume's outer voxel borders; 0 inside (the border belongs to the volume)."""
    ijk = ras_to_voxel(points_mm, grid)
    nearest = np.clip(ijk, -0.5, np.array(grid.shape) - 0.5)
    return np.linalg.norm((ijk - nearest) @ grid.affine[:3, :3].T, axis=1)


def slice_to_voxel(xy: NDArray[Any], index: int | NDArray[Any], grid: Grid) -> NDArray[np.float64]:
    """(N, 2) pixels of slice `index` -> (N, 3) voxel indices."""
    xy = np.asarray(xy, np.float64).reshape(-1, 2)
    ijk = np.empty((len(xy), 3))
    x_axis, y_axis = grid.plane_axes
    ijk[:, x_axis], ijk[:, y_axis], ijk[:, grid.slice_axis] = xy[:, 0], xy[:, 1], index
    return ijk


def slice_to_ras(xy: NDArray[Any], index: int | NDArray[Any], grid: Grid) -> NDArray[np.float64]:
    """(N, 2) pixels of slice `index` -> (N, 3) RAS+ mm."""
    return voxel_to_ras(slice_to_voxel(xy, index, grid), grid)


def nearest_slices(ijk: NDArray[Any], grid: Grid) -> NDArray[np.int64]:
    """(N, 3) voxel indices -> (N,) index of the slice each lies in; a border belongs to the upper slice."""
    along = np.floor(np.asarray(ijk)[:, grid.slice_axis] + 0.5).astype(np.int64)
    return np.clip(along, 0, grid.depth - 1)  # only reached by points on the outer border


def slice_points(prompts: Prompts, grid: Grid, outside: Outside = "error") -> tuple[SlicePoints, ...]:
    """The points of every slice, in slice pixels; one entry per slice.

    Args:
        outside: what to do with points beyond the volume: refuse (default), leave out, or move to the border.

    Raises:
        InputError: `PROMPT_OUTSIDE`, with the worst point and its distance in mm.
    """
    points_mm = prompts.points_mm()
    distance = distance_outside_mm(points_mm, grid)
    beyond = distance > 0
    if beyond.any() and outside == "error":
        worst = int(distance.argmax())
        raise InputError(
            "PROMPT_OUTSIDE",
            f"{int(beyond.sum())} of {len(beyond)} points lie outside the volume; the farthest is "
            f"{prompts.points[worst].id!r}, {distance[worst]:.1f} mm away",
            seen=np.round(ras_to_voxel(points_mm[worst], grid)[0], 1).tolist(),
            expected=f"voxel indices from 0 to {[n - 1 for n in grid.shape]}",
            fix="run `steadysam prompts check` (it tells a wrong frame from a stray click), "
            "or let predict and train drop or clip such points (outside)",
        )
    ijk = ras_to_voxel(points_mm, grid)
    ijk = np.where(beyond[:, None], np.clip(ijk, 0, np.array(grid.shape) - 1), ijk)
    keep = ~beyond if outside == "drop" else np.ones(len(beyond), bool)
    index = nearest_slices(ijk, grid)
    positive = np.array([point.sign == "positive" for point in prompts.points], bool)
    ids = np.array([point.id for point in prompts.points], dtype=object)
    x_axis, y_axis = grid.plane_axes
    result = []
    for t in range(grid.depth):
        here = keep & (index == t)
        xy = ijk[here][:, [x_axis, y_axis]].astype(np.float32)
        result.append(SlicePoints(xy.reshape(-1, 2), positive[here], tuple(ids[here])))
    return tuple(result)


def box_corners_voxel(box: Box, grid: Grid) -> NDArray[np.float64]:
    """The tight voxel-aligned bounds of a (possibly oblique) box: (2, 3), minimum and maximum index."""
    centre, half = np.array(box.centre_mm), np.array(box.half_axes_mm)
    signs = np.array(np.meshgrid([-1, 1], [-1, 1], [-1, 1])).reshape(3, -1).T
    ijk = ras_to_voxel(centre + signs @ half, grid)
    return np.stack([ijk.min(axis=0), ijk.max(axis=0)])


def box_is_outside(box: Box, grid: Grid) -> bool:
    """Whether no part of a box lies inside the volume's outer voxel borders."""
    low, high = box_corners_voxel(box, grid)
    return bool((low > np.array(grid.shape) - 0.5).any() or (high < -0.5).any())


def slice_boxes_xyxy(prompts: Prompts, grid: Grid) -> tuple[NDArray[np.float32], ...]:
    """(B, 4) boxes xyxy in slice pixels for every slice that the boxes cross, clipped to the slice."""
    x_axis, y_axis = grid.plane_axes
    height, width = grid.slice_shape
    rows: list[list[list[float]]] = [[] for _ in range(grid.depth)]
    for box in prompts.boxes:
        low, high = box_corners_voxel(box, grid)
        first = max(0, int(np.floor(low[grid.slice_axis] + 0.5)))
        last = min(grid.depth - 1, int(np.floor(high[grid.slice_axis] + 0.5)))
        xyxy = [
            float(np.clip(low[x_axis], 0, width - 1)),
            float(np.clip(low[y_axis], 0, height - 1)),
            float(np.clip(high[x_axis], 0, width - 1)),
            float(np.clip(high[y_axis], 0, height - 1)),
        ]
        for t in range(first, last + 1):
            rows[t].append(xyxy)
    return tuple(np.array(row, np.float32).reshape(-1, 4) for row in rows)


def to_model_points(points: Sequence[SlicePoints], frame: Frame) -> tuple[SlicePoints, ...]:
    """Slice pixels -> model pixels, slice by slice, boxes included."""
    return tuple(_moved(p, frame.to_model) for p in points)


def to_slice_points(points: Sequence[SlicePoints], frame: Frame) -> tuple[SlicePoints, ...]:
    """Model pixels -> slice pixels, slice by slice, boxes included."""
    return tuple(_moved(p, frame.to_slice) for p in points)


def _moved(points: SlicePoints, move: Callable[[NDArray[Any]], NDArray[np.float32]]) -> SlicePoints:
    box = None if points.box is None else move(points.box.reshape(2, 2)).reshape(4)
    return SlicePoints(move(points.xy), points.positive, points.ids, box)


def grids_agree(a: Grid, b: Grid, tolerance_mm: float = 1e-3) -> bool:
    """Whether the corners of two grids of the same shape lie within `tolerance_mm` of each other."""
    if a.shape != b.shape:
        return False
    corners = np.array(np.meshgrid(*[[0, n - 1] for n in a.shape])).reshape(3, -1).T
    return bool(np.abs(voxel_to_ras(corners, a) - voxel_to_ras(corners, b)).max() <= tolerance_mm)


def describe_grid(grid: Grid) -> str:
    """Shape, spacing, orientation and origin in one line, for error messages and logs."""
    spacing = " x ".join(f"{s:g}" for s in np.round(grid.spacing_mm, 4))
    return (
        f"shape {grid.shape}, spacing {spacing} mm, axes {axis_codes(grid)}, "
        f"origin {np.round(grid.affine[:3, 3], 3).tolist()}"
    )


def axis_codes(grid: Grid) -> str:
    """Letters of the directions in which the array axes run, such as `LPS`."""
    directions = grid.affine[:3, :3] / np.sqrt((grid.affine[:3, :3] ** 2).sum(axis=0))
    letters, used = [], set()
    for axis in range(3):
        order = np.argsort(-np.abs(directions[:, axis]))
        world = next(int(w) for w in order if int(w) not in used)
        used.add(world)
        letters.append(("LR", "PA", "IS")[world][int(directions[world, axis] > 0)])
    return "".join(letters)

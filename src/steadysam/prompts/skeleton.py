"""The centreline of a structure, as a polyline in millimetres."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from steadysam.geometry import slice_to_ras, voxel_to_ras
from steadysam.types import Grid, take_slice

_MAX_NODES = 60_000  # of the graph over the structure's voxels; larger structures are thinned


def slice_path(mask: NDArray[np.bool_], grid: Grid) -> NDArray[np.float64]:
    """(N, 3) RAS+ mm: the middle of the structure on every slice that has it, in slice order.

    Of several parts on one slice the one that continues the previous slice's is followed (the largest at
    first). The middle of a part is its centroid, or the pixel farthest from the border where the centroid
    lies outside (crescents).
    """
    from scipy.ndimage import distance_transform_edt, label

    rows: list[NDArray[np.float64]] = []
    before: NDArray[np.bool_] | None = None
    for t in range(grid.depth):
        plane = take_slice(mask, grid, t)
        if not plane.any():
            continue
        labelled, count = label(plane, structure=np.ones((3, 3)))  # type: ignore[misc]
        part = labelled == _followed(labelled, count, before)
        y, x = np.nonzero(part)
        centre = np.array([x.mean(), y.mean()])
        if not part[round(centre[1]), round(centre[0])]:
            inside = np.asarray(distance_transform_edt(np.pad(part, 1), sampling=grid.slice_spacing_mm))[1:-1, 1:-1]
            row, column = np.unravel_index(inside.argmax(), inside.shape)
            centre = np.array([float(column), float(row)])
        rows.append(slice_to_ras(centre, t, grid)[0])
        before = part
    return np.array(rows).reshape(-1, 3)


def _followed(labelled: NDArray[Any], count: int, before: NDArray[np.bool_] | None) -> int:
    sizes = np.bincount(labelled.ravel(), minlength=count + 1)
    sizes[0] = 0
    if before is not None:
        shared = np.bincount(labelled[before], minlength=count + 1)
        shared[0] = 0
        if shared.any():
            return int(shared.argmax())
    return int(sizes.argmax())


def geodesic_path(mask: NDArray[np.bool_], grid: Grid) -> NDArray[np.float64]:
    """(N, 3) RAS+ mm: from end to end through the largest connected part, kept away from its border.

    The ends are the two voxels farthest from each other along the structure (found by two sweeps); between
    them the path of least cost is taken, where a step costs its length divided by the squared distance to
    the border.
    """
    from scipy.ndimage import distance_transform_edt, label
    from scipy.sparse.csgraph import dijkstra

    labelled, count = label(mask, structure=np.ones((3, 3, 3)))  # type: ignore[misc]
    if not count:
        return np.zeros((0, 3))
    part = labelled == 1 + int(np.bincount(labelled.ravel())[1:].argmax())
    depth_mm = np.asarray(distance_transform_edt(np.pad(part, 1), sampling=grid.spacing_mm))[1:-1, 1:-1, 1:-1]
    voxels = np.argwhere(part)
    stride = int(np.ceil((len(voxels) / _MAX_NODES) ** (1 / 3)))
    nodes = voxels[(voxels % stride == 0).all(axis=1)] if stride > 1 else voxels
    if not len(nodes):
        nodes, stride = voxels, 1
    lengths, costs = _graph(nodes, stride, depth_mm, grid)
    first = int(dijkstra(lengths, indices=0).argmax()) if _connected(lengths) else 0
    reach = dijkstra(lengths, indices=first)
    last = int(np.where(np.isfinite(reach), reach, -1).argmax())
    _, before = dijkstra(costs, indices=first, return_predecessors=True)
    order = [last]
    while order[-1] != first:
        order.append(int(before[order[-1]]))
    return _smoothed(voxel_to_ras(nodes[order[::-1]], grid))


def _connected(graph: Any) -> bool:
    from scipy.sparse.csgraph import connected_components

    return connected_components(graph, directed=False, return_labels=False) == 1


def _graph(nodes: NDArray[Any], stride: int, depth_mm: NDArray[Any], grid: Grid) -> tuple[Any, Any]:
    """Sparse matrices of the lengths and the costs of steps between neighbouring nodes (26 neighbours)."""
    from scipy.sparse import coo_array

    number = np.full([n + 2 * stride for n in grid.shape], -1, np.int64)
    number[tuple((nodes + stride).T)] = np.arange(len(nodes))
    near = depth_mm[tuple(nodes.T)]
    rows, columns, lengths, costs = [], [], [], []
    for offset in np.array(np.meshgrid(*[[-1, 0, 1]] * 3)).reshape(3, -1).T:
        other = number[tuple((nodes + stride + offset * stride).T)]
        here = np.flatnonzero(other >= 0)
        if not offset.any() or not len(here):
            continue
        length = float(np.linalg.norm(grid.affine[:3, :3] @ (offset * stride)))
        rows.append(here)
        columns.append(other[here])
        lengths.append(np.full(len(here), length))
        costs.append(length / np.minimum(near[here], near[other[here]]) ** 2)
    if not rows:  # a structure of one voxel
        empty = coo_array((len(nodes), len(nodes))).tocsr()
        return empty, empty
    ends = (np.concatenate(rows), np.concatenate(columns))
    shape = (len(nodes), len(nodes))
    return tuple(coo_array((np.concatenate(v), ends), shape=shape).tocsr() for v in (lengths, costs))  # type: ignore


def _smoothed(path_mm: NDArray[np.float64]) -> NDArray[np.float64]:
    """Moving average over three vertices; the ends stay."""
    if len(path_mm) < 3:
        return path_mm
    middle = (path_mm[:-2] + path_mm[1:-1] + path_mm[2:]) / 3
    return np.concatenate([path_mm[:1], middle, path_mm[-1:]])

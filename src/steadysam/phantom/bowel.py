"""Bowel loops: the one with the target, and its twins. Lengths in mm along the array axes (no affine yet)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from steadysam.phantom.fields import soft_step

BACKGROUND, TARGET, TWIN = 0, 1, 2
_NOWHERE = (np.inf, -np.inf)
_FIELD_MM = 200.0  # the field of view for which the sizes below are meant


@dataclass(frozen=True)
class Look:
    """A loop in cross-section: share of the radius that is wall, brightness of wall and lumen, mottling."""

    wall_share: float
    wall: float
    lumen: float
    mottle: float


@dataclass(frozen=True, eq=False)
class Loop:
    """A winding tube that crosses every slice once.

    Args:
        axis_mm: (N, 3), third coordinate ascending.
        radius_mm: (N,).
        look: how it looks; `beyond` is the look outside of `target_z_mm`.
        target_z_mm: lowest and highest height of the target.
    """

    axis_mm: NDArray[np.float64]
    radius_mm: NDArray[np.float64]
    look: Look
    beyond: Look
    target_z_mm: tuple[float, float] = _NOWHERE

    def is_target(self, z_mm: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Which heights belong to the target."""
        return (z_mm > self.target_z_mm[0]) & (z_mm < self.target_z_mm[1])


def draw_loops(
    generator: np.random.Generator, shape: tuple[int, int, int], spacing_mm: tuple[float, float, float]
) -> list[Loop]:
    """The loop with the target first, then three to five twins around it."""
    extent = np.array(shape) * spacing_mm
    unit = float(extent[:2].min()) / (0.86 * _FIELD_MM)
    height = np.linspace(-0.15, 1.15, 131)
    middle = extent[:2] * (0.5, 0.42) + generator.uniform(-12, 12, 2) * unit
    sway = _sway(generator, height) * 11 * unit
    count = int(generator.integers(3, 6))
    looks = [_healthy(generator, int(kind)) for kind in generator.permutation(np.arange(count) % 3)]
    span = _target_heights(generator, shape[2], spacing_mm[2])
    radius = _radius(generator, height) * unit
    axis = np.column_stack([middle + sway, height * extent[2]])
    loops = [Loop(axis, radius, _diseased(generator), looks[0], span)]
    turn = generator.uniform(0, 2 * np.pi)
    for number, look in enumerate(looks):
        angle = turn + number * 2 * np.pi / count
        away = generator.uniform(28, 36) * unit * np.array([1.15 * np.cos(angle), np.sin(angle)])
        path = middle + away + 0.6 * sway + _sway(generator, height) * 7 * unit
        radius = _radius(generator, height) * unit
        loops.append(Loop(np.column_stack([path, height * extent[2]]), radius, look, look))
    return loops


def paint_loops(
    background: NDArray[np.float64],
    loops: list[Loop],
    voxels_mm: NDArray[np.float64],
    warp: NDArray[np.float64],
    mottle: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.int8]]:
    """Loops over the background; where loops meet, a voxel belongs to the one in which it lies deepest.

    Args:
        voxels_mm: (I, J, K, 3) places of the voxels; the third coordinate is the same within a slice.
        warp, mottle: (I, J, K) fields that dent the loops and mottle their content.

    Returns:
        image, and labels `BACKGROUND`, `TARGET`, `TWIN`.
    """
    depth, owner = _deepest(loops, voxels_mm, warp)
    image, labels = background.copy(), np.zeros(background.shape, np.int8)
    for index, loop in enumerate(loops):
        mine = (owner == index) & (depth < 1.12)
        target = mine & loop.is_target(voxels_mm[..., 2])
        for part, look in ((target, loop.look), (mine & ~target, loop.beyond)):
            image[part] = _profile(depth[part], look, image[part], mottle[part])
        labels[mine & (depth <= 1)] = TWIN
        labels[target & (depth <= 1)] = TARGET
    return image, labels


def _deepest(
    loops: list[Loop], voxels_mm: NDArray[np.float64], warp: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Per voxel the smallest distance to an axis in radii (infinite far away), and the index of that loop."""
    from scipy.spatial import KDTree

    depth, owner = np.full(warp.shape, np.inf), np.full(warp.shape, -1)
    for index, loop in enumerate(loops):
        reach = 2.2 * loop.radius_mm.max()  # a steep part of a loop is wider in the slice than across
        at = np.searchsorted(loop.axis_mm[:, 2], voxels_mm[0, 0, :, 2])
        near = np.nonzero((np.abs(voxels_mm[..., :2] - loop.axis_mm[at, :2]) < reach).all(axis=-1))
        distance, sample = KDTree(loop.axis_mm).query(voxels_mm[near])
        share = distance / loop.radius_mm[sample] * (1 + 0.08 * warp[near])
        deeper = share < depth[near]
        place = tuple(axis[deeper] for axis in near)
        depth[place], owner[place] = share[deeper], index
    return depth, owner


def _profile(
    depth: NDArray[np.float64], look: Look, outside: NDArray[np.float64], mottle: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Brightness at `depth` (0 axis, 1 outer border): lumen, wall, a dark thin line, what lies outside."""
    wall = soft_step(depth, 1 - look.wall_share, 0.12)
    inside = look.lumen + (look.wall - look.lumen) * wall + look.mottle * mottle
    inside -= 0.22 * np.exp(-0.5 * ((depth - 1.0) / 0.07) ** 2)
    return inside + (outside - inside) * soft_step(depth, 1.03, 0.12)


def _diseased(generator: np.random.Generator) -> Look:
    between = generator.uniform
    return Look(between(0.46, 0.58), between(0.78, 0.95), between(0.2, 0.42), 0.04)


def _healthy(generator: np.random.Generator, kind: int) -> Look:
    """Filled with fluid; collapsed; or, hardest, a ring like the target, thinner and less bright."""
    between = generator.uniform
    if kind == 0:
        return Look(between(0.2, 0.3), between(0.4, 0.55), between(0.75, 0.95), 0.06)
    if kind == 1:
        return Look(between(0.5, 0.6), between(0.5, 0.62), between(0.42, 0.58), 0.1)
    return Look(between(0.2, 0.3), between(0.55, 0.7), between(0.2, 0.42), 0.05)


def _target_heights(generator: np.random.Generator, depth: int, spacing_mm: float) -> tuple[float, float]:
    """Four to six tenths of the slices, whole ones, with at least two slices without target at either end."""
    count = min(max(1, round(depth * generator.uniform(0.4, 0.6))), depth - 4)
    first = int(generator.integers(2, depth - count - 1))
    return (first - 0.5) * spacing_mm, (first + count - 0.5) * spacing_mm


def _radius(generator: np.random.Generator, height: NDArray[np.float64]) -> NDArray[np.float64]:
    beat = np.sin(2 * np.pi * (generator.uniform(2, 4) * height + generator.uniform()))
    return generator.uniform(15.5, 18.5) * (1 + 0.12 * beat)


def _sway(generator: np.random.Generator, height: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, 2) smooth side-to-side movement along a loop, about one unit large."""
    phase = generator.uniform(0, 2 * np.pi, (2, 2))
    weight = np.array([1.0, 0.45]) * generator.uniform(0.7, 1.2, (2, 2))
    waves = np.sin(2 * np.pi * np.array([0.7, 1.4]) * height[:, None, None] + phase)
    return (weight * waves).sum(axis=2)

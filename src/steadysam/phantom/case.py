"""One drawn case: image, target, twins, and the axes of the loops in the patient."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from steadysam.errors import ConfigError
from steadysam.geometry import voxel_to_ras
from steadysam.phantom.body import draw_organs, paint_organs, scan
from steadysam.phantom.bowel import TARGET, TWIN, draw_loops, paint_loops
from steadysam.phantom.fields import grain, indices, smooth_field
from steadysam.types import Grid, Mask, Volume

SHAPE = (112, 96, 14)
SPACING_MM = (1.8, 1.8, 4.0)
_LEAST = (32, 32, 6)
_SUBSLICES = (-1 / 3, 0.0, 1 / 3)  # a slice is as thick as the slice distance: average over its thickness


@dataclass(frozen=True, eq=False)
class PhantomCase:
    """One drawn case.

    Args:
        volume: image, `(I, J, K)` int16.
        mask: the target.
        twins: everything that looks like the target without being it; disjoint from `mask`.
        centerline_mm: (N, 3) RAS+ mm, the axis of the target, from one end to the other.
        loop_mm: (L, 3) RAS+ mm, the axis of the whole loop of which the target is a part.
        twins_mm: axes of the other loops, each (M, 3) RAS+ mm.
    """

    volume: Volume
    mask: Mask
    twins: Mask
    centerline_mm: NDArray[np.float64]
    loop_mm: NDArray[np.float64]
    twins_mm: tuple[NDArray[np.float64], ...]


def draw_case(
    generator: np.random.Generator,
    shape: tuple[int, int, int] = SHAPE,
    spacing_mm: tuple[float, float, float] = SPACING_MM,
    name: str = "phantom",
) -> PhantomCase:
    """One case, a function of the generator's state only; slices are cut across axis 2.

    Args:
        shape: `(I, J, K)` voxels.
        spacing_mm: voxel size along the array axes.

    Raises:
        ConfigError: `PHANTOM_SHAPE`, too few voxels for the anatomy.
    """
    if any(n < least for n, least in zip(shape, _LEAST, strict=True)):
        raise ConfigError("PHANTOM_SHAPE", "too small a volume", seen=shape, expected=f"at least {_LEAST}")
    grid = Grid(shape, _oblique_affine(generator, shape, spacing_mm))
    spacing = np.array(spacing_mm)
    loops = draw_loops(generator, shape, spacing_mm)
    warp = smooth_field(generator, shape, (9, 8, 5))
    mottle = grain(generator, shape)
    background = paint_organs(draw_organs(generator), shape, warp)
    image, labels = np.zeros(shape), np.zeros(shape, np.int8)
    for offset in _SUBSLICES:
        voxels_mm = (indices(shape) + (0, 0, offset)) * spacing
        painted, owner = paint_loops(background, loops, voxels_mm, warp, mottle)
        image += painted / len(_SUBSLICES)
        if offset == 0:
            labels = owner
    axes_mm = [voxel_to_ras(loop.axis_mm / spacing, grid) for loop in loops]
    return PhantomCase(
        volume=Volume(scan(generator, image), grid, name),
        mask=Mask(labels == TARGET, grid),
        twins=Mask(labels == TWIN, grid),
        centerline_mm=axes_mm[0][loops[0].is_target(loops[0].axis_mm[:, 2])],
        loop_mm=axes_mm[0],
        twins_mm=tuple(axes_mm[1:]),
    )


def _oblique_affine(
    generator: np.random.Generator, shape: tuple[int, int, int], spacing_mm: tuple[float, float, float]
) -> NDArray[np.float64]:
    """Axial slices as a scanner stores them (first axis to the left, second to the back), somewhat tilted."""
    tilt, turn = np.deg2rad(generator.uniform(-15, 15, 2))
    about_x = np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
    about_z = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = about_z @ about_x @ np.diag([-1, -1, 1]) @ np.diag(spacing_mm)
    affine[:3, 3] = generator.uniform(-20, 20, 3) - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    # NIfTI keeps the affine in float32: what a reader gets back is then exactly this one
    return affine.astype(np.float32).astype(np.float64)

"""Small array tools of the phantom: random fields, soft steps, index grids."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def smooth_field(
    generator: np.random.Generator, shape: tuple[int, int, int], cells: tuple[int, int, int]
) -> NDArray[np.float64]:
    """A smooth random field of about unit variance: `cells` random knots per axis under Gaussian bumps."""
    field = generator.standard_normal(cells)
    for axis, (size, count) in enumerate(zip(shape, cells, strict=True)):
        position = np.linspace(0, count - 1, size)
        bumps = np.exp(-0.5 * ((position[:, None] - np.arange(count)) / 0.7) ** 2)
        bumps /= np.sqrt((bumps**2).sum(axis=1, keepdims=True))
        field = np.moveaxis(np.tensordot(bumps, field, axes=(1, axis)), 0, axis)
    return field


def grain(generator: np.random.Generator, shape: tuple[int, int, int]) -> NDArray[np.float64]:
    """White noise smoothed within slices to spots of about two voxels, unit variance."""
    noise = generator.standard_normal(shape)
    for axis in (0, 1):
        noise = (np.roll(noise, 1, axis) + 2 * noise + np.roll(noise, -1, axis)) / np.sqrt(6)
    return noise


def soft_step(value: NDArray[np.float64], at: float, width: float) -> NDArray[np.float64]:
    """0 below `at - width / 2`, 1 above `at + width / 2`, smooth between."""
    t = np.clip((value - at) / width + 0.5, 0, 1)
    return t * t * (3 - 2 * t)


def indices(shape: tuple[int, int, int]) -> NDArray[np.float64]:
    """(I, J, K, 3): the index of every voxel."""
    return np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1).astype(np.float64)

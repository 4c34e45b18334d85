"""Random pairs of masks for the comparison with MedPy: blobs, specks, and masks that touch the edge."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def random_pair(seed: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_], tuple[float, ...]]:
    """Two non-empty masks of one shape, and an anisotropic spacing; 2-D for even seeds, 3-D for odd."""
    generator = np.random.default_rng(seed)
    ndim = 2 if seed % 2 == 0 else 3
    shape = tuple(int(n) for n in generator.integers(5, 40 if ndim == 2 else 18, ndim))
    spacing = tuple(float(s) for s in np.round(generator.uniform(0.3, 5.0, ndim), 3))
    pred, true = (_mask(generator, shape) for _ in range(2))
    return pred, true, spacing


def _mask(generator: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    coordinates = np.indices(shape).astype(float)
    mask = np.zeros(shape, bool)
    for _ in range(int(generator.integers(1, 4))):
        centre = generator.uniform(-1, np.array(shape))
        radius = generator.uniform(0.8, 0.5 * np.array(shape) + 1)
        offset = (coordinates - centre.reshape(-1, *[1] * len(shape))) / radius.reshape(-1, *[1] * len(shape))
        mask |= (offset**2).sum(axis=0) <= 1
    if generator.random() < 0.5:  # specks
        mask |= generator.random(shape) < 0.02
    mask[tuple(generator.integers(0, shape))] = True
    return mask

"""Everything around the bowel: body wall, fat, liver, kidneys, spine, vessels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from steadysam.phantom.fields import indices, smooth_field, soft_step

_ROWS = np.array(
    [  # centre x, y, z and half-axes as shares of the volume; brightness; texture
        (0.5, 0.52, 0.5, 0.47, 0.46, 9, 0.80, 0.04),  # fat under the skin
        (0.5, 0.52, 0.5, 0.41, 0.39, 9, 0.20, 0.05),  # muscle
        (0.5, 0.47, 0.5, 0.37, 0.335, 9, 0.56, 0.05),  # cavity, filled with mesenteric fat
        (0.16, 0.36, 1.0, 0.16, 0.26, 0.75, 0.40, 0.03),  # liver, from above
        (0.22, 0.68, 0.7, 0.10, 0.10, 0.6, 0.60, 0.03),  # right kidney, cortex and pelvis
        (0.22, 0.68, 0.7, 0.04, 0.05, 0.4, 0.85, 0.03),
        (0.78, 0.66, 0.8, 0.10, 0.10, 0.6, 0.60, 0.03),  # left kidney
        (0.78, 0.66, 0.8, 0.04, 0.05, 0.4, 0.85, 0.03),
        (0.36, 0.80, 0.5, 0.10, 0.09, 9, 0.24, 0.04),  # psoas and back muscles
        (0.64, 0.80, 0.5, 0.10, 0.09, 9, 0.24, 0.04),
        (0.5, 0.77, 0.5, 0.095, 0.085, 9, 0.46, 0.06),  # vertebral body
        (0.5, 0.88, 0.5, 0.04, 0.035, 9, 0.95, 0.02),  # spinal canal
        (0.54, 0.655, 0.5, 0.032, 0.036, 9, 0.08, 0.01),  # aorta
        (0.45, 0.66, 0.5, 0.034, 0.028, 9, 0.12, 0.01),  # vena cava
    ]
)
_CAVITY, _FIRST_BEHIND = 2, 8  # organs between these rows end at the border of the cavity
_SMALL_VESSELS = 40


@dataclass(frozen=True, eq=False)
class Organs:
    """Ellipsoids in shares of the volume, painted in order; `inner` ones do not leave the cavity."""

    centre: NDArray[np.float64]
    half: NDArray[np.float64]
    brightness: NDArray[np.float64]
    texture: NDArray[np.float64]
    inner: NDArray[np.bool_]


def draw_organs(generator: np.random.Generator) -> Organs:
    """The body with small individual differences, and small vessels in the fat."""
    table = _ROWS.copy()
    table[_CAVITY + 1 :, :2] += generator.uniform(-0.015, 0.015, (len(table) - _CAVITY - 1, 2))
    table[:, 3:5] *= generator.uniform(0.96, 1.04, (len(table), 2))
    low, high = [0.2, 0.2, 0, 0.006, 0.006, 0.1, 0.3, 0], [0.8, 0.7, 1, 0.014, 0.014, 0.5, 0.45, 0]
    vessels = generator.uniform(low, high, (_SMALL_VESSELS, 8))
    table[:, 6] *= generator.uniform(0.93, 1.07, len(table))
    inner = (np.arange(len(table)) > _CAVITY) & (np.arange(len(table)) < _FIRST_BEHIND)
    after = _CAVITY + 1
    table = np.concatenate([table[:after], vessels, table[after:]])
    inner = np.concatenate([inner[:after], np.ones(len(vessels), bool), inner[after:]])
    return Organs(table[:, :3], table[:, 3:6], table[:, 6], table[:, 7], inner)


def paint_organs(organs: Organs, shape: tuple[int, int, int], warp: NDArray[np.float64]) -> NDArray[np.float64]:
    """(I, J, K) brightness; borders are about one voxel soft and bent by the smooth field `warp`."""
    image, cavity = np.full(shape, 0.02), np.ones(shape)
    bent = (indices(shape) + 0.5) / shape
    bent += 0.012 * np.stack([warp, np.roll(warp, 7, axis=0), np.zeros(shape)], axis=-1)
    for index, (centre, half) in enumerate(zip(organs.centre, organs.half, strict=True)):
        low = np.floor((centre - 1.2 * half - 0.06) * shape).clip(0, shape).astype(int)
        high = np.ceil((centre + 1.2 * half + 0.06) * shape).clip(0, shape).astype(int)
        box = tuple(map(slice, low, high))
        radius = np.sqrt((((bent[box] - centre) / half) ** 2).sum(axis=-1))
        cover = 1 - soft_step(radius, 1.0, 0.012 / float(half[:2].mean()))
        if index == _CAVITY:
            cavity = np.zeros(shape)
            cavity[box] = cover
        if organs.inner[index]:
            cover = cover * cavity[box]
        image[box] += (organs.brightness[index] + organs.texture[index] * warp[box] - image[box]) * cover
    return image


def scan(generator: np.random.Generator, image: NDArray[np.float64]) -> NDArray[np.int16]:
    """What a scanner makes of brightness: coil shading, Rician noise, an arbitrary scale."""
    shape = (image.shape[0], image.shape[1], image.shape[2])
    shading = np.exp(0.18 * smooth_field(generator, shape, (3, 3, 2)))
    sigma = generator.uniform(0.025, 0.045)
    real = np.clip(image, 0, None) * shading + sigma * generator.standard_normal(shape)
    signal = np.hypot(real, sigma * generator.standard_normal(shape))
    return np.clip(np.rint(signal * generator.uniform(500, 1500)), 0, 32767).astype(np.int16)

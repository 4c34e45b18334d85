"""Augmentation that moves image, mask and points together.

One `Augmentation` is drawn per sample (or per volume and stored variant) and applied to everything that belongs to it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.nn import functional as F

from steadysam.types import SlicePoints


class AugmentConfig(BaseModel):
    """What may be drawn. The defaults are the paper's (rotation and flip); the rest is off unless asked for.

    Rotation in degrees, shift as a share of the image side, scale as a factor `1 ± scale`, gamma as `exp(±gamma)`.
    """

    TRAINING_ONLY: ClassVar[bool] = True

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    rotate_degrees: float = Field(default=15.0, ge=0, le=180)
    rotate_probability: float = Field(default=0.5, ge=0, le=1)
    flip_probability: float = Field(default=0.5, ge=0, le=1)
    scale: float = Field(default=0.0, ge=0, lt=1)
    shift: float = Field(default=0.0, ge=0, lt=1)
    gamma: float = Field(default=0.0, ge=0)


@dataclass(frozen=True)
class Augmentation:
    """One drawn augmentation. Output pixel = flip(scale * rotate(input pixel)) + shift, about the image centre."""

    angle: float = 0.0
    flip: bool = False
    scale: float = 1.0
    shift_xy: tuple[float, float] = (0.0, 0.0)
    gamma: float = 1.0

    @property
    def matrix(self) -> np.ndarray:
        """(2, 2) forward map of centred coordinates."""
        cosine, sine = math.cos(self.angle) * self.scale, math.sin(self.angle) * self.scale
        rotation = np.array([[cosine, -sine], [sine, cosine]])
        return np.diag([-1.0, 1.0]) @ rotation if self.flip else rotation


IDENTITY = Augmentation()


def draw(config: AugmentConfig, generator: np.random.Generator) -> Augmentation:
    """One augmentation; always the same number of draws, so that settings do not shift one another's chance."""
    u = generator.random(7)
    return Augmentation(
        angle=math.radians(config.rotate_degrees) * (2 * u[1] - 1) if u[0] < config.rotate_probability else 0.0,
        flip=bool(u[2] < config.flip_probability),
        scale=1 + config.scale * (2 * u[3] - 1),
        shift_xy=(config.shift * (2 * u[4] - 1), config.shift * (2 * u[5] - 1)),
        gamma=math.exp(config.gamma * (2 * u[6] - 1)),
    )


def move_images(images: Tensor, augmentations: list[Augmentation], *, nearest: bool = False) -> Tensor:
    """(B, C, S, S) -> (B, C, S, S), one augmentation per row; pixels from outside become 0.

    `gamma` acts on images (values in [0, 1]) and is left out for masks (`nearest=True`).
    """
    if all(a == IDENTITY for a in augmentations):
        return images
    rows = []
    for a in augmentations:
        inverse = np.linalg.inv(a.matrix)
        # affine_grid maps output to input in coordinates where the image spans [-1, 1]
        offset = -inverse @ (2 * np.array(a.shift_xy))
        rows.append(np.concatenate([inverse, offset[:, None]], axis=1))
    theta = torch.as_tensor(np.stack(rows), dtype=torch.float32)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, mode="nearest" if nearest else "bilinear", align_corners=False)
    if nearest or all(a.gamma == 1.0 for a in augmentations):
        return moved
    gammas = torch.tensor([a.gamma for a in augmentations], dtype=torch.float32)
    return moved.clamp(0, 1) ** gammas[:, None, None, None]


def move_points(points: SlicePoints, augmentation: Augmentation, size: int) -> SlicePoints:
    """The points of one slice in model pixels, moved with the image; those that leave it are dropped."""
    if augmentation == IDENTITY or not len(points):
        return points
    centred = (points.xy.astype(np.float64) + 0.5) / size * 2 - 1
    moved = centred @ augmentation.matrix.T + 2 * np.array(augmentation.shift_xy)
    xy = ((moved + 1) / 2 * size - 0.5).astype(np.float32)
    inside: NDArray[np.bool_] = np.all((xy >= -0.5) & (xy <= size - 0.5), axis=1)
    return SlicePoints(xy, points.positive, points.ids).only(inside)

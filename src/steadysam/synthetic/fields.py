"""Smooth random fields, in slabs of neighbouring slices."""

from __future__ import annotations

import torch
from torch import Generator, Tensor
from torch.nn import functional as F


def uniform(generator: Generator, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Uniform numbers in [low, high) on the generator's device."""
    return torch.rand(shape, generator=generator, device=generator.device) * (high - low) + low


def normal(generator: Generator, *shape: int) -> Tensor:
    """Standard normal numbers on the generator's device."""
    return torch.randn(shape, generator=generator, device=generator.device)


def happens(generator: Generator, probability: float, *shape: int) -> Tensor:
    """True with `probability`."""
    return uniform(generator, *shape) < probability


def log_uniform(generator: Generator, *shape: int, low: float, high: float) -> Tensor:
    """Numbers whose logarithm is uniform between those of `low` and `high`."""
    ratio = torch.tensor(high / low, device=generator.device)
    return low * ratio ** uniform(generator, *shape)


def smooth_field(generator: Generator, channels: int, z: Tensor, size: int, cells: int) -> Tensor:
    """Noise on a lattice with `cells` cells per image width, cut at z and grown to pixels.

    Args:
        z: (B, D) heights of the slices of B slabs, in half widths, 0 or more.

    Returns:
        (B * D, channels, size, size), about standard normal; slices of a slab are cuts of one 3-D field.
    """
    count, depth = z.shape
    height = z * (cells / 2)
    planes = int(height.max().item()) + 2
    lattice = normal(generator, count, planes, channels, cells + 1, cells + 1)
    below = height.floor().long()
    share = (height - below)[..., None, None, None]
    rows = torch.arange(count, device=z.device)[:, None]
    cut = lattice[rows, below] * (1 - share) + lattice[rows, below + 1] * share
    cut = cut / (share**2 + (1 - share) ** 2).sqrt()
    return F.interpolate(cut.flatten(0, 1), (size, size), mode="bicubic", align_corners=True).view(
        count * depth, channels, size, size
    )


def mixed_field(generator: Generator, channels: int, z: Tensor, size: int, scales: tuple[int, ...]) -> Tensor:
    """`smooth_field` at several scales, mixed with weights that differ from slab to slab; (B * D, channels, s, s)."""
    count, depth = z.shape
    weights = uniform(generator, count, len(scales)) ** 3
    weights = (weights / weights.norm(dim=1, keepdim=True)).repeat_interleave(depth, 0)
    total = torch.zeros(count * depth, channels, size, size, device=generator.device)
    for index, cells in enumerate(scales):
        total += weights[:, index, None, None, None] * smooth_field(generator, channels, z, size, cells)
    return total


def coordinates(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(1, 1, size, size) x and y of pixel centres, from -1 to 1."""
    centres = (torch.arange(size, device=device) + 0.5) * (2 / size) - 1
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    return x[None, None], y[None, None]

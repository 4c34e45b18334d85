"""Label maps: a background of regions, shapes painted over it, and how bright and rough each label is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from steadysam.synthetic.config import SceneConfig
from steadysam.synthetic.fields import coordinates, happens, log_uniform, mixed_field, normal, uniform
from steadysam.synthetic.shapes import depth_inside, draw_shapes

GRAINS = 4  # textures: fine, medium and coarse grain, and a grating


@dataclass(frozen=True, eq=False)
class Scenes:
    """B slabs of D slices; M = B * D images, L labels.

    Labels are the background's regions, then for every shape its body and its lumen, last the void around the field of
    view.

    Args:
        labels: (M, S, S) int64.
        whole: (M, N, S, S) bool, each shape with all that was painted over it, cut at the void.
        level: (B, L) brightness in [0, 1].
        tint: (B, L, 3) what is added per colour channel; zeros for grey slabs.
        grain: (B, L, GRAINS) amplitudes of textures.
        cells: (B,) bool, the background's regions are compact cells that can be targets.
        regions: number of the background's regions.
        z: (B, D) heights of the slices.
        shade: (M, S, S) brightness that grows from a shape's border to its middle.
        soft: (M, S, S) in [0, 1]: how far the image is to be blurred here, along the borders of diffuse shapes.
    """

    labels: Tensor
    whole: Tensor
    level: Tensor
    tint: Tensor
    grain: Tensor
    cells: Tensor
    regions: int
    z: Tensor
    shade: Tensor
    soft: Tensor

    @property
    def void(self) -> int:
        """The label outside of the field of view."""
        return self.level.shape[1] - 1


def draw_scenes(generator: Generator, count: int, config: SceneConfig, size: int) -> Scenes:
    """`count` slabs of `config.depth` slices of `size` x `size` pixels; `size` is even."""
    device, n = generator.device, config.objects
    gap = log_uniform(generator, count, low=0.01, high=0.12)
    z = gap[:, None] * torch.arange(config.depth, device=device)
    labels, cells = _background(generator, z, config.regions, size)
    shapes, twin_of = draw_shapes(generator, count, config, span=z[:, -1])
    half = size // 2  # outlines are smooth: half the resolution is enough for their distance, not for their edge
    warp = mixed_field(generator, 2, z, half, (3, 6, 12))
    strength = (uniform(generator, count) ** 2 * 0.12).repeat_interleave(config.depth)[:, None, None, None]
    inside = depth_inside(shapes, z, half, warp * strength)
    inside = F.interpolate(inside, (size, size), mode="bilinear", align_corners=False)
    lumen = shapes.wall * shapes.radius
    lumen = torch.where(shapes.kind == 1, lumen, 9.0).repeat_interleave(config.depth, 0)
    level, grain = _materials(generator, count, config)
    reference = torch.arange(count, device=device) * config.depth + config.depth // 2
    middle = shapes.centre.clamp(-0.99, 0.99)
    place = ((middle + 1) * (size / 2)).long().clamp(0, size - 1)
    faint = happens(generator, config.faint, count, n)
    shift = uniform(generator, count, n, low=0.05, high=0.18) * torch.where(happens(generator, 0.5, count, n), 1, -1)
    rows = torch.arange(count, device=device)
    shade, soft = torch.zeros(labels.shape, device=device), torch.zeros(labels.shape, device=device)
    edge = shapes.radius * uniform(generator, count, n, low=0.05, high=0.4)
    diffuse = happens(generator, 0.35, count, 1) & happens(generator, 0.4, count, n)
    slope = normal(generator, count, n) * 0.25 * happens(generator, 0.4, count, n)
    slope = (slope / shapes.radius).repeat_interleave(config.depth, 0)[..., None, None]
    edge = torch.where(diffuse, edge, 0.0)
    for i in range(n):
        body = config.regions + 2 * i
        under = labels[reference, place[:, i, 1], place[:, i, 0]]
        near = (level[rows, under] + shift[:, i]).clamp(0, 1)
        level[:, body] = torch.where(faint[:, i], near, level[:, body])
        twin = twin_of[:, i] >= 0
        source = config.regions + 2 * twin_of[:, i].clamp(min=0)
        for offset in range(2):
            old = source + offset
            level[:, body + offset] = torch.where(twin, level[rows, old], level[:, body + offset])
            grain[:, body + offset] = torch.where(twin[:, None], grain[rows, old], grain[:, body + offset])
        within = inside[:, i] > 0
        labels = torch.where(within, body, labels)
        shade = torch.where(within, inside[:, i] * slope[:, i], shade)
        labels = torch.where(inside[:, i] > lumen[:, i, None, None], body + 1, labels)
        if diffuse[:, i].any():
            width = edge[:, i].repeat_interleave(config.depth)[:, None, None]
            border = (1 - (inside[:, i].abs() / width.clamp(min=1e-4)) ** 2).clamp(min=0)
            soft = torch.maximum(soft, border * (width > 0))
    void = _void(generator, z, size)
    labels = torch.where(void, config.regions + 2 * n, labels)
    whole = (inside > 0) & ~void[:, None]
    tint = _tints(generator, level.shape, config)
    return Scenes(labels, whole, level, tint, grain, cells, config.regions, z, shade, soft)


def _background(generator: Generator, z: Tensor, regions: int, size: int) -> tuple[Tensor, Tensor]:
    """(M, S, S) labels of regions, and (B,) whether they are compact cells around seeds rather than a maze."""
    count, depth = z.shape
    half = size // 2
    field = mixed_field(generator, regions, z, half, (3, 6, 12))
    cells = happens(generator, 0.5, count)
    seeds = uniform(generator, count, regions, 2, low=-1, high=1).repeat_interleave(depth, 0)
    x, y = coordinates(half, z.device)
    square = (x - seeds[..., 0, None, None]) ** 2 + (y - seeds[..., 1, None, None]) ** 2
    pull = torch.where(cells, 8.0, 0.5 * uniform(generator, count)).repeat_interleave(depth)[:, None, None, None]
    # some slabs have fewer regions than others
    unused = uniform(generator, count, regions) > uniform(generator, count, 1, low=0.2, high=1.0)
    unused[:, 0] = False
    score = field * 0.7 - pull * square - unused.repeat_interleave(depth, 0)[..., None, None] * 1e3
    score = F.interpolate(score, (size, size), mode="bilinear", align_corners=False)
    labels = torch.zeros(len(score), size, size, dtype=torch.long, device=z.device)
    best = score[:, 0].clone()
    for region in range(1, regions):  # argmax over a strided axis is slow on a CPU
        labels = torch.where(score[:, region] > best, region, labels)
        best = torch.maximum(best, score[:, region])
    return labels, cells


def _void(generator: Generator, z: Tensor, size: int) -> Tensor:
    """(M, S, S) bool: outside of a disc, a body or a rectangle; most slabs have none."""
    count, depth = z.shape
    x, y = coordinates(size, z.device)
    dice = uniform(generator, count)

    def per(values: Tensor) -> Tensor:
        return values.repeat_interleave(depth)[:, None, None]

    half_x = per(uniform(generator, count, low=0.6, high=1.1))
    half_y = per(uniform(generator, count, low=0.6, high=1.1))
    x, y = x[0], y[0]
    wobble = 0.08 * mixed_field(generator, 1, z, size, (3, 6))[:, 0]
    oval = (x / half_x) ** 2 + (y / half_y) ** 2 + wobble > 1
    frame = (x.abs() > half_x) | (y.abs() > half_y)
    return (oval & (per(dice) < 0.2)) | (frame & (per(dice) > 0.85))


def _materials(generator: Generator, count: int, config: SceneConfig) -> tuple[Tensor, Tensor]:
    """Brightness (B, L) and texture amplitudes (B, L, GRAINS)."""
    total = config.regions + 2 * config.objects + 1
    level = uniform(generator, count, total)
    level[:, -1] = torch.where(happens(generator, 0.85, count), 0.0, level[:, -1])
    overall = uniform(generator, count, 1, 1) ** 2 * 0.22
    grain = normal(generator, count, total, GRAINS).abs() * overall
    grain *= uniform(generator, count, total, GRAINS) < torch.tensor([0.5, 0.5, 0.5, 0.15], device=generator.device)
    grain[:, -1] = 0
    return level, grain if config.textures else torch.zeros_like(grain)


def _tints(generator: Generator, shape: torch.Size, config: SceneConfig) -> Tensor:
    """(B, L, 3) offsets per channel: a common tone for the slab and a smaller one per label."""
    coloured = happens(generator, config.colour, shape[0])[:, None, None]
    common = normal(generator, shape[0], 1, 3) * 0.25
    own = normal(generator, *shape, 3) * 0.1
    tint = torch.where(coloured, common + own, 0.0)
    tint[:, -1] = 0
    return tint

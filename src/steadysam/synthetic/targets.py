"""Which object a row asks for, and the prompts on it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from steadysam.synthetic.fields import happens, uniform
from steadysam.synthetic.scenes import Scenes

VISIBLE = 0.4  # of a shape
_SMALLEST, _LARGEST = 0.001, 0.7  # of the image


@dataclass(frozen=True, eq=False)
class Targets:
    """One target per image for each of R rows; M images.

    Args:
        masks: (R, M, S, S) bool; all False where the object is absent from the slice.
        elsewhere: (R, M, S, S) bool, the same object on another slice of the slab.
    """

    masks: Tensor
    elsewhere: Tensor


def draw_targets(generator: Generator, scenes: Scenes, by_area: tuple[float, ...]) -> Targets:
    """Choose for every slab and row one object that is visible on some slice: the same on all its slices.

    A click at a random place hits an object as often as its area says. Were all objects chosen equally often, a click
    would mostly ask for the smallest of the things it may mean: P(object | place) is P(object) / area.

    Args:
        by_area: for each row, the share of targets that are drawn in proportion to their area; the others are drawn
            equally.

    Candidates are compact regions of the background, bodies with their lumen, bodies, lumina, and whole shapes with
    all that lies on them.
    """
    count, depth = scenes.z.shape
    shapes, regions = scenes.whole.shape[1], scenes.regions
    area = label_areas(scenes)
    background = torch.where(scenes.cells.repeat_interleave(depth)[:, None], area[:, :regions], 0.0)
    body, lumen = area[:, regions:-1:2], area[:, regions + 1 : -1 : 2]
    whole = scenes.whole.flatten(2).float().mean(2)
    visible = body + lumen
    # what is mostly hidden is no fair question
    visible = torch.where(visible > VISIBLE * whole, visible, 0.0)
    hollow = lumen > _SMALLEST
    candidates = torch.cat(
        [
            background * 0.999,
            visible,
            torch.where(hollow, body, 0.0),
            torch.where(hollow, lumen, 0.0),
            torch.where(whole - body - lumen > 0.05 * whole, whole, 0.0),
        ],
        1,
    )
    fit = ((candidates > _SMALLEST) & (candidates < _LARGEST)).view(count, depth, -1).any(1).float()
    kinds = torch.cat([torch.full((regions,), 0.3)] + [torch.full((shapes,), w) for w in (1.0, 0.5, 0.8, 0.5)])
    equal = fit * kinds.to(fit.device) + 1e-9
    large = equal * candidates.view(count, depth, -1).amax(1)
    equal, total = equal / equal.sum(1, keepdim=True), large.sum(1, keepdim=True)
    large = torch.where(total > 0, large / total, equal)  # where all is hidden, nothing has an area
    chosen = [torch.multinomial(a * large + (1 - a) * equal, 1, generator=generator) for a in by_area]
    return _masks(scenes, torch.cat(chosen, 1))


def label_areas(scenes: Scenes) -> Tensor:
    """(M, L) share of each image that each label has."""
    area = torch.zeros(len(scenes.labels), scenes.level.shape[1], device=scenes.labels.device)
    flat = scenes.labels.flatten(1)
    area.scatter_add_(1, flat, torch.ones_like(flat, dtype=area.dtype))
    return area / scenes.labels.shape[-1] ** 2


def _masks(scenes: Scenes, chosen: Tensor) -> Targets:
    count, depth = scenes.z.shape
    shapes, regions = scenes.whole.shape[1], scenes.regions
    kind = torch.where(chosen < regions, 0, 1 + (chosen - regions).clamp(min=0) // shapes)
    index = torch.where(chosen < regions, chosen, (chosen - regions).clamp(min=0) % shapes)
    labels = scenes.labels
    images = torch.arange(count * depth, device=labels.device)
    slab = images // depth
    masks = []
    for row in range(chosen.shape[1]):
        k, i = kind[slab, row], index[slab, row]
        wanted = torch.where(k == 0, i, regions + 2 * i)[:, None, None]
        k = k[:, None, None]
        is_first, is_second = labels == wanted, labels == wanted + 1
        mask = torch.where(k == 1, is_first | is_second, is_first)
        mask = torch.where(k == 3, is_second, mask)
        masks.append(torch.where(k == 4, scenes.whole[images, i.clamp(max=shapes - 1)], mask))
    found = torch.stack(masks)
    by_slab = found.view(len(found), count, depth, *found.shape[2:])
    return Targets(found, by_slab.roll(1, 2).reshape(found.shape))


def draw_clicks(generator: Generator, masks: Tensor, count: int, interior: Tensor) -> Tensor:
    """(M, count, 2) x, y of pixels inside `masks` (M, S, S); anywhere where a mask is empty.

    Args:
        interior: (M,) bool: prefer pixels far from the mask's border.
    """
    size = masks.shape[-1]
    inside = masks.float()[:, None]
    small = F.avg_pool2d(inside, 2)
    kernel = max(3, size // 24) | 1
    near = F.avg_pool2d(small, kernel, stride=1, padding=kernel // 2)
    wide = F.avg_pool2d(F.avg_pool2d(near, 2), kernel, stride=1, padding=kernel // 2)
    deep = F.interpolate(near, (size, size)) * F.interpolate(wide, (size, size))
    weight = (inside * torch.where(interior[:, None, None, None], deep**3 + 1e-6, 1.0)).flatten(1)
    weight = torch.where(weight.sum(1, keepdim=True) > 0, weight, 1.0)
    ladder = weight.double().cumsum(1)
    picks = uniform(generator, len(masks), count).double() * ladder[:, -1:]
    index = torch.searchsorted(ladder, picks, right=True).clamp(max=size * size - 1)
    return torch.stack([index % size, index // size], -1).float()


def draw_boxes(generator: Generator, masks: Tensor) -> Tensor:
    """(M, 4) x0, y0, x1, y1 around `masks` (M, S, S), each side moved in or out by up to a fifth of the length."""
    size = masks.shape[-1]
    steps = torch.arange(size, device=masks.device)
    sides = []
    for axis in (1, 2):  # reduce over y for x, over x for y
        present = masks.any(axis)
        low = torch.where(present, steps, size).amin(1).clamp(max=size - 1)
        high = torch.where(present, steps, -1).amax(1).clamp(min=0)
        sides.append((low.float(), torch.maximum(low, high).float()))
    (x0, x1), (y0, y1) = sides
    width, height = x1 - x0 + 1, y1 - y0 + 1
    jitter = (uniform(generator, len(masks), 4) - 0.4) * 0.4 * uniform(generator, len(masks), 1) ** 2 * 1.25
    grow = torch.stack([-width, -height, width, height], 1) * jitter
    return (torch.stack([x0, y0, x1, y1], 1) + grow).clamp(0, size - 1)


def draw_wrong_clicks(generator: Generator, masks: Tensor) -> Tensor:
    """(M, 1, 2) clicks beside the masks, most of them near by."""
    size = masks.shape[-1]
    small = F.max_pool2d(masks.float()[:, None], 8)
    wide = F.interpolate(F.max_pool2d(small, 3, stride=1, padding=1), (size, size))[:, 0] > 0
    near = happens(generator, 0.6, len(masks))[:, None, None]
    ring = torch.where(near, wide, torch.ones_like(wide)) & ~masks
    return draw_clicks(generator, ring, 1, torch.zeros(len(masks), dtype=torch.bool, device=masks.device))

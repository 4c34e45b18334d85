"""From label maps to images: materials, partial volume, and what scanners, lenses and software do to them."""

from __future__ import annotations

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from steadysam.synthetic.config import SceneConfig
from steadysam.synthetic.fields import coordinates, happens, log_uniform, normal, smooth_field, uniform
from steadysam.synthetic.scenes import GRAINS, Scenes


def render(generator: Generator, scenes: Scenes, config: SceneConfig) -> Tensor:
    """(M, 3, S, S) images in [0, 1]."""
    count, depth = scenes.z.shape
    labels = scenes.labels.flatten(1)

    def per_pixel(values: Tensor) -> Tensor:
        return values.repeat_interleave(depth, 0).gather(1, labels).view_as(scenes.labels)

    image = per_pixel(scenes.level)
    if config.textures:
        image = image + scenes.shade
        grains = _grains(generator, scenes.z, scenes.labels.shape[-1])
        for index in range(GRAINS):
            image = image + per_pixel(scenes.grain[..., index]) * grains[:, index]
    images = torch.stack([image + per_pixel(scenes.tint[..., c]) for c in range(3)], 1)
    if not config.corruption:
        return _blur(images, torch.full((len(images), 2), 0.6, device=images.device)).clamp(0, 1)
    return _corrupt(generator, images, scenes)


def _grains(generator: Generator, z: Tensor, size: int) -> Tensor:
    """(M, GRAINS, S, S): noise of three sizes and a grating, each about of unit variance."""
    fine = normal(generator, z.numel(), 1, size, size)
    medium = smooth_field(generator, 1, z, size, size // 4)
    coarse = smooth_field(generator, 1, z, size, size // 10)
    x, y = coordinates(size, z.device)
    angle = uniform(generator, len(z), high=torch.pi)
    wavelength = log_uniform(generator, len(z), low=0.06, high=0.4)

    def per(values: Tensor) -> Tensor:
        return values.repeat_interleave(z.shape[1])[:, None, None, None]

    along = x * per(angle.cos()) + y * per(angle.sin()) + 0.1 * coarse
    grating = torch.sin(2 * torch.pi * along / per(wavelength)) * 1.4
    return torch.cat([fine, medium, coarse, grating], 1)


def _corrupt(generator: Generator, images: Tensor, scenes: Scenes) -> Tensor:
    """What varies from slab to slab is drawn per slab; noise is drawn per slice."""
    count, depth = scenes.z.shape
    size = images.shape[-1]

    def per(values: Tensor) -> Tensor:
        return values.repeat_interleave(depth, 0)[(...,) + (None,) * (4 - values.ndim)]

    images = _diffuse(images, scenes.soft)
    images = _curves(generator, images, scenes.z)
    bias = smooth_field(generator, 1, scenes.z, size, 3)
    images = images * torch.exp(per(uniform(generator, count) ** 2 * 0.5) * bias)
    # the two axes are blurred differently, as in anisotropic resolution
    sharp = log_uniform(generator, count, 1, low=0.4, high=1.6) * log_uniform(generator, count, 2, low=0.7, high=1.5)
    images = _blur(images, (sharp * (size / 128)).repeat_interleave(depth, 0))
    streaks = uniform(generator, count) ** 2 * 0.3 * happens(generator, 0.35, count)
    images = images + per(streaks) * _shadow(generator, scenes.z, size)
    noise = _noise(generator, scenes.z, size)
    amount = uniform(generator, count) ** 2 * 0.12
    kind = uniform(generator, count)
    speckled = images * (1 + per(amount * 2.5) * noise[:, :1])
    rician = ((images + per(amount) * noise[:, :1]) ** 2 + (per(amount) * noise[:, 1:]) ** 2).sqrt()
    images = torch.where(per(kind) < 0.4, images + per(amount) * noise[:, :1], images)
    images = torch.where((per(kind) >= 0.4) & (per(kind) < 0.6), rician, images)
    images = torch.where((per(kind) >= 0.6) & (per(kind) < 0.85), speckled, images)
    images = _window(generator, images, depth)
    return torch.where(per(happens(generator, 0.15, count)), 1 - images, images)


def _diffuse(images: Tensor, soft: Tensor) -> Tensor:
    """Blend towards a heavily blurred image where `soft` is high."""
    size = images.shape[-1]
    small = F.avg_pool2d(images, max(2, size // 16))
    blurred = F.interpolate(small, (size, size), mode="bicubic", align_corners=False)
    return images + soft[:, None] * (blurred - images)


def _window(generator: Generator, images: Tensor, depth: int) -> Tensor:
    """Stretch to the slab's own range, cut its ends at random, and bend by gamma."""
    slabs = images.view(-1, depth, *images.shape[1:])
    flat = slabs.flatten(1)
    mean, deviation = flat.mean(1), flat.std(1)
    reach = uniform(generator, 2, len(slabs), low=1.8, high=4.0)
    low = torch.maximum(flat.amin(1), mean - reach[0] * deviation)
    high = torch.minimum(flat.amax(1), mean + reach[1] * deviation)
    gamma = log_uniform(generator, len(slabs), low=0.6, high=1.7)

    def wide(values: Tensor) -> Tensor:
        return values[:, None, None, None, None]

    unit = ((slabs - wide(low)) / wide(high - low + 1e-3)).clamp(1e-6, 1)
    return (unit ** wide(gamma)).view_as(images)


def _noise(generator: Generator, z: Tensor, size: int) -> Tensor:
    """(M, 2, S, S) unit noise, white for some slabs and of coarser grain for others."""
    count, depth = z.shape
    white = normal(generator, count * depth, 2, size, size)
    coarse = F.interpolate(
        normal(generator, count * depth, 2, size // 2, size // 2), (size, size), mode="bilinear", align_corners=False
    )
    choice = happens(generator, 0.4, count).repeat_interleave(depth)[:, None, None, None]
    return torch.where(choice, coarse * 1.5, white)


def _shadow(generator: Generator, z: Tensor, size: int) -> Tensor:
    """(M, 1, S, S) stripes along one axis, as acoustic shadows or streaks."""
    count, depth = z.shape
    bars = normal(generator, count, 1, 1, 17)
    bars = F.interpolate(bars, (1, size), mode="bicubic", align_corners=False).expand(-1, -1, size, -1)
    turned = happens(generator, 0.5, count)[:, None, None, None]
    return torch.where(turned, bars.transpose(2, 3), bars).repeat_interleave(depth, 0)


def _curves(generator: Generator, images: Tensor, z: Tensor) -> Tensor:
    """Thin dark or bright curves on top that belong to no label: hairs, vessels, wires, instruments."""
    count, depth = z.shape
    lines, size = 4, images.shape[-1]
    present = happens(generator, 0.2, count, 1) & happens(generator, 0.7, count, lines)
    x, y = coordinates(size, z.device)

    def per(values: Tensor) -> Tensor:
        return values.repeat_interleave(depth, 0)[..., None, None]

    angle = uniform(generator, count, lines, high=2 * torch.pi)
    u = x * per(angle.cos()) + y * per(angle.sin())
    v = y * per(angle.cos()) - x * per(angle.sin())
    bend = uniform(generator, count, lines, low=-0.3, high=0.3)
    wave = per(bend) * torch.sin(u * 2 + per(uniform(generator, count, lines, high=6.3)))
    distance = (v - per(uniform(generator, count, lines, low=-0.9, high=0.9)) - wave).abs()
    width = log_uniform(generator, count, lines, low=0.006, high=0.04)
    on = ((distance < per(width)) & per(present)).any(1, keepdim=True)
    tone = uniform(generator, count, 3) * happens(generator, 0.4, count, 1)
    return torch.where(on, tone.repeat_interleave(depth, 0)[..., None, None], images)


def _blur(images: Tensor, deviation: Tensor) -> Tensor:
    """Gaussian blur with (M, 2) standard deviations along y and x, in pixels."""
    count, channels = images.shape[:2]
    reach = int(min(15, 2 + 2.5 * float(deviation.max().item())))
    offset = torch.arange(-reach, reach + 1, device=images.device)
    kernel = torch.exp(-0.5 * (offset / deviation[..., None]) ** 2)
    kernel = (kernel / kernel.sum(-1, keepdim=True)).repeat_interleave(channels, 0)[:, :, None]
    flat = images.reshape(1, count * channels, *images.shape[2:])
    flat = F.pad(flat, (reach,) * 4, mode="replicate")
    flat = F.conv2d(flat, kernel[:, 0, :, :, None], groups=count * channels)
    flat = F.conv2d(flat, kernel[:, 1, :, None, :], groups=count * channels)
    return flat.view_as(images)

"""Random shapes: their numbers, and how far inside of them each pixel lies.

Warped ellipses with wavy outlines, rings with a lumen, crescents, and tubes that bend; nested, touching, or repeated
elsewhere in the image as look-alikes. Shapes are bodies in space: a slab's slices cut them at different heights.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Generator, Tensor

from steadysam.synthetic.config import SceneConfig
from steadysam.synthetic.fields import coordinates, happens, log_uniform, normal, uniform

_WAVES = 4  # outline harmonics 2 .. 5
_SOLID, _RING, _CRESCENT, _TUBE = range(4)


@dataclass(frozen=True, eq=False)
class Shapes:
    """N shapes of B slabs; all tensors start with (B, N).

    Args:
        kind: solid, ring, crescent or tube.
        centre: (B, N, 2) x, y at the height `middle`.
        drift: (B, N, 2) shift of the centre per unit of height.
        middle, reach: height of the shape's centre and its half extent along z.
        radius, aspect, angle: of the ellipse, or a tube's length, width and direction.
        wave, phase: (B, N, 4) amplitudes relative to the radius, and phases of the outline.
        wall: thickness of a ring's wall, relative to the radius.
        bite: a crescent's missing ellipse: shift relative to the radius.
        bend, bend_phase: a tube's bending.
    """

    kind: Tensor
    centre: Tensor
    drift: Tensor
    middle: Tensor
    reach: Tensor
    radius: Tensor
    aspect: Tensor
    angle: Tensor
    wave: Tensor
    phase: Tensor
    wall: Tensor
    bite: Tensor
    bend: Tensor
    bend_phase: Tensor


def draw_shapes(generator: Generator, count: int, config: SceneConfig, span: Tensor) -> tuple[Shapes, Tensor]:
    """Shapes for `count` slabs whose slices lie between heights 0 and `span` (count,).

    Returns:
        the shapes, and `twin_of` (B, N): the earlier shape that this one repeats, or -1.
    """
    b, n = count, config.objects
    radius = log_uniform(generator, b, n, low=0.05, high=0.95)
    kinds = torch.tensor([_SOLID] * 9 + [_RING] * 5 + [_CRESCENT] * 2 + [_TUBE] * 4, device=generator.device)
    kind = kinds[(uniform(generator, b, n) * len(kinds)).long()]
    decay = 1 / torch.arange(2, 2 + _WAVES, device=generator.device)
    roughness = uniform(generator, b, n, 1) ** 2 * 0.5
    shapes = Shapes(
        kind=kind,
        centre=uniform(generator, b, n, 2, low=-0.9, high=0.9),
        drift=normal(generator, b, n, 2) * 0.3,
        middle=uniform(generator, b, n) * span[:, None],
        reach=radius * log_uniform(generator, b, n, low=0.6, high=4.0),
        radius=radius,
        aspect=torch.where(kind == _TUBE, log_uniform(generator, b, n, low=0.06, high=0.3), 1.0)
        * torch.where(kind == _TUBE, 1.0, log_uniform(generator, b, n, low=0.45, high=1.0)),
        angle=uniform(generator, b, n, high=2 * torch.pi),
        wave=normal(generator, b, n, _WAVES) * decay * roughness,
        phase=uniform(generator, b, n, _WAVES, high=2 * torch.pi),
        wall=log_uniform(generator, b, n, low=0.05, high=0.5),
        bite=uniform(generator, b, n, low=0.4, high=0.9),
        bend=uniform(generator, b, n, low=-1.2, high=1.2),
        bend_phase=uniform(generator, b, n, high=2 * torch.pi),
    )
    # large shapes first, so that they do not hide small ones; some order is left to chance
    order = (shapes.radius * log_uniform(generator, b, n, low=0.5, high=2.0)).argsort(1, descending=True)
    shapes = _take(shapes, order)
    _relate(generator, shapes)
    return _repeat(generator, shapes, config)


def _take(shapes: Shapes, order: Tensor) -> Shapes:
    rows = torch.arange(len(order), device=order.device)[:, None]
    return Shapes(**{f.name: getattr(shapes, f.name)[rows, order] for f in fields(shapes)})


def _relate(generator: Generator, shapes: Shapes) -> None:
    """Put some shapes into, and some beside, the one before them (changes `centre`, `radius` and `middle`)."""
    b, n = shapes.radius.shape
    nested, touching = happens(generator, 0.3, b, n), happens(generator, 0.15, b, n)
    direction = uniform(generator, b, n, high=2 * torch.pi)
    unit = torch.stack([direction.cos(), direction.sin()], -1)
    smaller = uniform(generator, b, n, low=0.2, high=0.65)
    away = uniform(generator, b, n)
    for i in range(1, n):
        before, mine = shapes.radius[:, i - 1], shapes.radius[:, i]
        inside = before * smaller[:, i]
        radius = torch.where(nested[:, i], torch.minimum(inside, mine.clamp(min=0.05)), mine)
        step = torch.where(nested[:, i], (before - radius).clamp(min=0) * 0.6 * away[:, i], (before + radius) * 0.9)
        related = (nested | touching)[:, i]
        place = shapes.centre[:, i - 1] + unit[:, i] * step[:, None]
        shapes.centre[:, i] = torch.where(related[:, None], place, shapes.centre[:, i])
        shapes.middle[:, i] = torch.where(related, shapes.middle[:, i - 1], shapes.middle[:, i])
        shapes.radius[:, i] = radius


def _repeat(generator: Generator, shapes: Shapes, config: SceneConfig) -> tuple[Shapes, Tensor]:
    """Make some shapes look-alikes of an earlier one: the same numbers at another place and angle."""
    b, n = shapes.radius.shape
    steps = torch.arange(n, device=generator.device)
    source = (uniform(generator, b, n) * steps.clamp(min=1)).long()
    repeats = happens(generator, config.lookalikes, b, n) & (steps > 0)
    twin_of = torch.where(repeats, source, -1)
    index = torch.where(repeats, source, steps.expand(b, n))
    copied = _take(shapes, index)
    size = torch.where(repeats, uniform(generator, b, n, low=0.75, high=1.3), 1.0)
    turned = torch.where(repeats, copied.angle + normal(generator, b, n) * 0.7, copied.angle)
    kept = {name: getattr(shapes, name) for name in ("centre", "drift", "middle")}
    values = {f.name: getattr(copied, f.name) for f in fields(copied)} | kept
    return Shapes(**values | {"radius": copied.radius * size, "angle": turned}), twin_of


def depth_inside(shapes: Shapes, z: Tensor, size: int, warp: Tensor) -> Tensor:
    """How far inside of each shape every pixel lies, in half widths; negative outside.

    Args:
        z: (B, D) heights of the slices.
        warp: (B * D, 2, size, size) displacement of the coordinates.

    Returns:
        (B * D, N, size, size); a ring's lumen is where this exceeds `wall * radius`.
    """
    depth = z.shape[1]
    rise = z[:, :, None] - shapes.middle[:, None]  # (B, D, N)
    cut = (1 - (rise / shapes.reach[:, None]) ** 2).flatten(0, 1)[..., None, None]
    centre = (shapes.centre[:, None] + rise[..., None] * shapes.drift[:, None]).flatten(0, 1)  # (B * D, N, 2)

    def per(values: Tensor) -> Tensor:
        return values.repeat_interleave(depth, 0)[..., None, None]

    x, y = coordinates(size, z.device)
    dx = x + warp[:, :1] - centre[..., 0, None, None]
    dy = y + warp[:, 1:] - centre[..., 1, None, None]
    cosine, sine = per(shapes.angle.cos()), per(shapes.angle.sin())
    u, v = dx * cosine + dy * sine, dy * cosine - dx * sine
    radius = per(shapes.radius)
    radius = radius * cut.clamp(min=0).sqrt()
    tube = per(shapes.kind) == _TUBE
    stretched = v / torch.where(tube, torch.ones_like(radius), per(shapes.aspect))
    distance = (u**2 + stretched**2).sqrt() + 1e-6
    inside = _outline(shapes, u / distance, stretched / distance, per) * radius - distance
    bitten = ((u - per(shapes.bite) * radius) ** 2 + stretched**2).sqrt() - 0.85 * radius
    inside = torch.where(per(shapes.kind) == _CRESCENT, torch.minimum(inside, bitten), inside)
    middle_line = per(shapes.bend) * radius * torch.sin(u / radius.clamp(min=1e-3) * 2 + per(shapes.bend_phase))
    width = per(shapes.aspect) * radius
    inside = torch.where(tube, torch.minimum(width - (v - 0.5 * middle_line).abs(), radius - u.abs()), inside)
    return torch.where(cut > 0, inside, -1.0)


def _outline(shapes: Shapes, cosine: Tensor, sine: Tensor, per) -> Tensor:  # noqa: ANN001
    """1 + sum of harmonics 2 .. 5 of the angle, by recursion instead of trigonometry per pixel."""
    total = torch.ones_like(cosine)
    c, s = cosine, sine
    for k in range(_WAVES):
        c, s = c * cosine - s * sine, s * cosine + c * sine
        amplitude, phase = shapes.wave[..., k], shapes.phase[..., k]
        total = total + c * per(amplitude * phase.cos()) - s * per(amplitude * phase.sin())
    return total

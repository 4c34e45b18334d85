"""Simulated prompts, drawn from a ground-truth mask and a generator; the table `SIMULATORS`.

Every simulator takes `(mask (I, J, K) bool, grid, generator, **options)` and returns prompts whose history
says that they were derived from the ground truth. The same mask, grid, options and generator give the same
prompts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Ge
from numpy.typing import NDArray

from steadysam.errors import ConfigError
from steadysam.files import content_key
from steadysam.geometry import slice_to_ras
from steadysam.prompts.centerline import centerline
from steadysam.prompts.options import NonNegative, Share, with_checked_options
from steadysam.prompts.rows import check_mask, simulated, slice_box, triple
from steadysam.types import Box, Grid, Point, Prompts, take_slice

EmptyRule = Literal["matched", "k_only", "none"]
Count = Annotated[int, Ge(0)]

_WITHIN = 0.49  # a point stays inside its pixel even after rounding to 1e-6 voxel
_PAPER_SIZE = 512  # the pixel size in which the paper states its noise


def generator_for(seed: int, *words: Any) -> np.random.Generator:
    """A generator that depends on `seed` and `words` only, in every process and on every machine."""
    return np.random.default_rng(int(content_key([int(seed), *map(str, words)])[:16], 16))


def paper(
    mask: NDArray[np.bool_],
    grid: Grid,
    generator: np.random.Generator,
    *,
    empty_rule: EmptyRule = "matched",
    k_range: tuple[Count, Count] = (2, 5),
    k: Count | None = None,
    drop: Share = 0.0,
    jitter_px: NonNegative = 0.0,
) -> Prompts:
    """The paper's noisy points (SPD, implementation details): one in-mask point and K uniform ones per slice.

    Positive slice: one point drawn jointly in (x, y) over the mask's area, then K ~ U{k_range} over the
    whole slice. All are positive. Order within a slice is shuffled, so that the position in the file does not
    tell the true one.

    Args:
        empty_rule: slices without the structure get 1 + K uniform points (`matched`, default: the number of
            points does not tell an empty slice), K points (`k_only`) or none (`none`).
        k: a fixed K instead of a draw.
        drop: probability that the in-mask point of a slice is left out.
        jitter_px: deviation of the in-mask point, in pixels of a 512 x 512 slice; it stays within the slice.

    Raises:
        ConfigError: `PROMPT_OPTION` if `k_range` runs backwards.
        InputError: `PROMPT_GRID` if mask and grid differ in shape.
    """
    check_mask(mask, grid)
    if k_range[0] > k_range[1]:
        raise ConfigError("PROMPT_OPTION", "k_range runs backwards", seen=k_range, expected="smallest, largest")
    points: list[Point] = []
    for t in range(grid.depth):
        plane = take_slice(mask, grid, t)
        extra = k if k is not None else int(generator.integers(k_range[0], k_range[1] + 1))
        if plane.any():
            keep = generator.random() >= drop
            inside = _jitter(_draw(plane, 1, generator), jitter_px, plane.shape, generator)
            xy = np.concatenate([inside[: int(keep)], _draw(np.ones_like(plane), extra, generator)])
        else:
            count = {"matched": extra + 1, "k_only": extra, "none": 0}[empty_rule]
            xy = _draw(np.ones_like(plane), count, generator)
        points += _points(generator.permutation(xy), t, grid)
    options = {
        "empty_rule": empty_rule,
        "k_range": list(k_range) if k is None else None,
        "k": k,
        "drop": drop,
        "jitter_px": jitter_px,
    }
    return simulated(grid, "paper", options, generator, points=tuple(points))


def clicks(
    mask: NDArray[np.bool_],
    grid: Grid,
    generator: np.random.Generator,
    *,
    n: Annotated[int, Ge(1)] = 1,
    depth: Share = 0.5,
) -> Prompts:
    """Clean clicks: `n` pixel centres per positive slice, well inside the structure.

    Args:
        depth: a click lies at least this share of the slice's greatest distance to the border away from it.
    """
    from scipy.ndimage import distance_transform_edt

    check_mask(mask, grid)
    points: list[Point] = []
    for t in range(grid.depth):
        plane = take_slice(mask, grid, t)
        if not plane.any():
            continue
        inside = np.asarray(distance_transform_edt(np.pad(plane, 1), sampling=grid.slice_spacing_mm))[1:-1, 1:-1]
        y, x = np.nonzero(plane & (inside >= depth * inside.max()))
        chosen = generator.choice(len(x), size=min(n, len(x)), replace=False)
        points += _points(np.stack([x[chosen], y[chosen]], axis=1), t, grid)
    return simulated(grid, "clicks", {"n": n, "depth": depth}, generator, points=tuple(points))


def boxes(mask: NDArray[np.bool_], grid: Grid, generator: np.random.Generator, *, loose: NonNegative = 0.0) -> Prompts:
    """The tight box of every positive slice (outer borders of its pixels), source `ground_truth`.

    Args:
        loose: each side moves outwards by U(0, loose) of the box's width or height, at most to the slice's
            border.
    """
    check_mask(mask, grid)
    rows: list[Box] = []
    for t in range(grid.depth):
        plane = take_slice(mask, grid, t)
        if not plane.any():
            continue
        y, x = np.nonzero(plane)
        low, high = np.array([x.min(), y.min()]) - 0.5, np.array([x.max(), y.max()]) + 0.5
        room = generator.uniform(0, loose, (2, 2)) * (high - low)
        limit = np.array(plane.shape[::-1]) - 0.5
        rows.append(slice_box(f"s{t:03d}", np.maximum(low - room[0], -0.5), np.minimum(high + room[1], limit), t, grid))
    return simulated(grid, "boxes", {"loose": loose}, generator, boxes=tuple(rows))


def _draw(plane: NDArray[np.bool_], count: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """(count, 2) positions, uniform over the area of the true pixels of `plane` (H, W)."""
    y, x = np.nonzero(plane)
    chosen = generator.integers(len(x), size=count)
    return np.stack([x[chosen], y[chosen]], axis=1) + generator.uniform(-_WITHIN, _WITHIN, (count, 2))


def _jitter(
    xy: NDArray[Any], sigma_px: float, shape: tuple[int, ...], generator: np.random.Generator
) -> NDArray[np.float64]:
    if sigma_px == 0:
        return xy
    wide = np.array(shape[::-1])
    moved = xy + generator.normal(0, sigma_px, xy.shape) * wide / _PAPER_SIZE
    return np.clip(moved, -_WITHIN, wide - 1 + _WITHIN)


def _points(xy: NDArray[Any], t: int, grid: Grid) -> list[Point]:
    rows = slice_to_ras(xy, t, grid)
    return [Point(f"s{t:03d}-{n}", triple(row), source="simulated") for n, row in enumerate(rows)]


SIMULATORS: dict[str, Callable[..., Prompts]] = {
    "paper": with_checked_options(paper),
    "centerline": with_checked_options(centerline),
    "clicks": with_checked_options(clicks),
    "boxes": with_checked_options(boxes),
}

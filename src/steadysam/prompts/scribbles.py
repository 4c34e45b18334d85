"""Scribble label volumes as points."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from steadysam.errors import ConfigError, InputError
from steadysam.geometry import describe_grid, grids_agree, slice_to_ras
from steadysam.prompts.options import entropy
from steadysam.prompts.rows import triple
from steadysam.types import Grid, ImageRef, Point, Prompts, Sign, take_slice


def scribble_points(
    labels: NDArray[Any],
    grid: Grid,
    *,
    value: int,
    per_slice: int,
    generator: np.random.Generator,
    image_grid: Grid | None = None,
    ignore: tuple[int, ...] = (0,),
    negatives: int = 0,
) -> Prompts:
    """Points drawn from the strokes of one structure, slice by slice; source `scribble`.

    Args:
        labels: (I, J, K) integers: 0 or `ignore` where nobody drew, else the structure that the stroke marks.
        value: the structure wanted. Its stroke pixels become positive points.
        per_slice: positive points per slice with a stroke (fewer where the stroke has fewer pixels).
        image_grid: the image's grid, which the scribbles must share.
        ignore: values that are no strokes.
        negatives: negative points per slice, drawn from the strokes of all other structures.

    Raises:
        InputError: `PROMPT_GRID` if the grids differ; `PROMPT_VALUES` if no voxel has `value`.
        ConfigError: `PROMPT_OPTION` for impossible options.
    """
    if per_slice < 1 or negatives < 0 or value in ignore:
        raise ConfigError(
            "PROMPT_OPTION",
            "scribbles need at least one point per slice, and a value that is not ignored",
            seen=f"per_slice {per_slice}, negatives {negatives}, value {value}, ignore {ignore}",
        )
    if labels.shape != grid.shape or (image_grid is not None and not grids_agree(grid, image_grid)):
        raise InputError(
            "PROMPT_GRID",
            "the scribbles lie on another grid than the image",
            seen=describe_grid(grid),
            expected=describe_grid(image_grid or grid),
            fix="resample the scribbles with nearest neighbours onto the image",
        )
    if not (labels == value).any():
        seen = sorted(np.unique(labels).tolist())[:20]
        raise InputError("PROMPT_VALUES", f"no scribble has the value {value}", seen=seen, expected=value)
    points: list[Point] = []
    for t in range(grid.depth):
        plane = take_slice(labels, grid, t)
        points += _drawn(plane == value, per_slice, "positive", t, grid, generator)
        if negatives:
            other = ~np.isin(plane, (value, *ignore))
            points += _drawn(other, negatives, "negative", t, grid, generator)
    step = {
        "step": "scribbles",
        "value": int(value),
        "per_slice": per_slice,
        "negatives": negatives,
        "ignore": [int(v) for v in ignore],
        "entropy": entropy(generator),
    }
    target = image_grid or grid
    return Prompts(tuple(points), image=ImageRef(shape=target.shape, grid_key=target.key()), history=(step,))


def _drawn(
    stroke: NDArray[np.bool_], count: int, sign: Sign, t: int, grid: Grid, generator: np.random.Generator
) -> list[Point]:
    y, x = np.nonzero(stroke)
    chosen = np.sort(generator.choice(len(x), size=min(count, len(x)), replace=False)) if len(x) else []
    rows = slice_to_ras(np.stack([x[chosen], y[chosen]], axis=1), t, grid) if len(x) else []
    return [Point(f"s{t:03d}{sign[0]}{n}", triple(row), sign, source="scribble") for n, row in enumerate(rows)]

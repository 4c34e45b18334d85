"""Building rows of prompts from slice pixels, shared by the simulators."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steadysam.errors import InputError
from steadysam.geometry import slice_to_ras
from steadysam.prompts.options import entropy
from steadysam.types import Box, Grid, ImageRef, Point, Prompts, PromptSource


def slice_box(
    name: str,
    low_xy: NDArray[Any],
    high_xy: NDArray[Any],
    index: int,
    grid: Grid,
    source: PromptSource = "ground_truth",
) -> Box:
    """A flat box on slice `index` from its corners in slice pixels."""
    corners = np.array([low_xy, [high_xy[0], low_xy[1]], [low_xy[0], high_xy[1]]])
    origin, along_x, along_y = slice_to_ras(corners, index, grid)
    half_x, half_y = (along_x - origin) / 2, (along_y - origin) / 2
    centre = origin + half_x + half_y
    return Box(name, triple(centre), (triple(half_x), triple(half_y), (0.0, 0.0, 0.0)), source=source)


def simulated(
    grid: Grid,
    simulator: str,
    options: dict[str, Any],
    generator: np.random.Generator,
    *,
    points: tuple[Point, ...] = (),
    boxes: tuple[Box, ...] = (),
) -> Prompts:
    """Prompts with the reference to their image and the step that made them."""
    step = {
        "step": "simulate",
        "simulator": simulator,
        "options": {name: value for name, value in options.items() if value is not None},
        "entropy": entropy(generator),
        "derived_from": "ground_truth",
    }
    return Prompts(points, boxes, ImageRef(shape=grid.shape, grid_key=grid.key()), (step,))


def check_mask(mask: NDArray[Any], grid: Grid) -> None:
    """Refuse a mask that does not lie on `grid` (`PROMPT_GRID`)."""
    if mask.shape != grid.shape:
        raise InputError("PROMPT_GRID", "the mask lies on another grid", seen=mask.shape, expected=grid.shape)


def triple(row: NDArray[Any]) -> tuple[float, float, float]:
    """A row of three numbers as a tuple of floats."""
    x, y, z = (float(value) + 0.0 for value in row)  # -0.0 becomes 0.0
    return x, y, z


def stamped(prompts: Prompts, **facts: Any) -> Prompts:
    """The same prompts with `facts` (such as the seed) added to the last step of their history."""
    if not prompts.history:
        return replace(prompts, history=(facts,))
    return replace(prompts, history=(*prompts.history[:-1], {**prompts.history[-1], **facts}))


def unique_id(wanted: str, taken: set[str]) -> str:
    """`wanted`, or with a number behind it if `taken` has it; the result is added to `taken`."""
    name, n = wanted, 2
    while name in taken:
        name, n = f"{wanted}.{n}", n + 1
    taken.add(name)
    return name

"""The clicks of a simulated user on one slice: into the object, then into the largest mistake.

The usual protocol of interactive segmentation (RITM, Sofiiuk et al., ICIP 2022; SAM, Kirillov et al., ICCV 2023).
Clicks are drawn from the truth, so what they give is a measurement and never a result on unseen cases.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Xy = tuple[int, int]


def interior_click(mask: NDArray[np.bool_], generator: np.random.Generator, depth: float = 0.5) -> Xy:
    """(x, y) of a pixel well inside the largest connected part of `mask` (H, W).

    Args:
        depth: only pixels at least so far from the border, as a share of the largest distance, are drawn.

    Raises:
        ValueError: the mask is empty.
    """
    inside = _largest_part(mask)
    distance = distance_inside(inside)
    rows, columns = np.nonzero(distance >= max(depth * float(distance.max()), 1e-9))
    index = int(generator.integers(len(rows)))
    return int(columns[index]), int(rows[index])


def next_click(truth: NDArray[np.bool_], answer: NDArray[np.bool_]) -> tuple[Xy, bool]:
    """The middle of the largest mistake of `answer` (H, W), and whether something was missed there (positive).

    Without a mistake, the middle of the truth's largest part.

    Raises:
        ValueError: there is no mistake, and the truth is empty.
    """
    missed, excess = truth & ~answer, answer & ~truth
    parts = [
        (part, sign) for region, sign in ((missed, True), (excess, False)) if (part := _largest(region)) is not None
    ]
    part, sign = max(parts, key=lambda pair: int(pair[0].sum())) if parts else (_largest_part(truth), True)
    row, column = np.unravel_index(int(distance_inside(part).argmax()), part.shape)
    return (int(column), int(row)), sign


def tight_box(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """(4,) x0, y0, x1, y1 of the mask's outermost pixels.

    Raises:
        ValueError: the mask is empty.
    """
    rows, columns = np.nonzero(mask)
    if not len(rows):
        raise ValueError("an empty mask has no box")
    return np.array([columns.min(), rows.min(), columns.max(), rows.max()], np.float32)


def distance_inside(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(H, W) distance to the nearest pixel outside, in pixels; what lies beyond the image counts as outside."""
    return ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]  # pyright: ignore


def _largest_part(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    part = _largest(mask)
    if part is None:
        raise ValueError("an empty mask has no inside")
    return part


def _largest(mask: NDArray[np.bool_]) -> NDArray[np.bool_] | None:
    labels, count = ndimage.label(mask)  # pyright: ignore
    if not count:
        return None
    return labels == 1 + int(np.bincount(labels[labels > 0] - 1).argmax())


def keep_clicked(mask: NDArray[np.bool_], xy: NDArray[np.float32], positive: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The connected parts of `mask` (H, W) that hold a positive click; the mask itself where none does.

    A click means the thing at its place: what looks alike elsewhere on the slice is not asked for.

    Args:
        xy, positive: (K, 2) slice pixels and (K,) bool.
    """
    labels, _ = ndimage.label(mask)  # pyright: ignore
    places = np.rint(xy[positive]).astype(int).reshape(-1, 2)
    columns, rows = places[:, 0].clip(0, mask.shape[1] - 1), places[:, 1].clip(0, mask.shape[0] - 1)
    hit = np.unique(labels[rows, columns])
    hit = hit[hit > 0]
    return np.isin(labels, hit) if len(hit) else mask

"""Prompts mined from a coarse mask (SAMRefiner, Lin et al., ICLR 2025): two points, a box, a mask; pure functions.

All coordinates are pixels of the mask (H, W), centres at integers, (x, y). Distances are Euclidean and end at the
image's border: what lies beyond it is neither object nor background, unless there is no background at all.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Xy = tuple[int, int]
Box = tuple[int, int, int, int]  # x0, y0, x1, y1 of the outermost pixels
Sides = tuple[bool, bool, bool, bool]  # left, top, right, bottom


def inner_distance(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(H, W) distance of every object pixel to the nearest background pixel, 0 outside the object.

    A mask without background is measured from the image's border, as there is nothing else to measure from.
    """
    if mask.all():
        return ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]  # pyright: ignore
    return ndimage.distance_transform_edt(mask)  # pyright: ignore


def bounding_box(mask: NDArray[np.bool_]) -> Box:
    """The outermost pixels of a mask that holds at least one.

    Raises:
        ValueError: the mask is empty.
    """
    rows, columns = np.nonzero(mask)
    if not len(rows):
        raise ValueError("an empty mask has no box")
    return int(columns.min()), int(rows.min()), int(columns.max()), int(rows.max())


def positive_point(mask: NDArray[np.bool_]) -> Xy:
    """The pixel deepest inside the object; the first in reading order among equals."""
    row, column = np.unravel_index(int(inner_distance(mask).argmax()), mask.shape)
    return int(column), int(row)


def negative_point(mask: NDArray[np.bool_]) -> Xy | None:
    """The pixel of the mask's box farthest from the object, the first among equals; None if the object fills its box.

    (The plain maximum would then be a pixel of the object itself.)
    """
    x0, y0, x1, y1 = bounding_box(mask)
    if mask[y0 : y1 + 1, x0 : x1 + 1].all():
        return None
    away: NDArray[np.float64] = ndimage.distance_transform_edt(~mask)  # pyright: ignore
    inside = away[y0 : y1 + 1, x0 : x1 + 1]
    row, column = np.unravel_index(int(inside.argmax()), inside.shape)
    return int(column) + x0, int(row) + y0


def likeness(features: NDArray[np.float32], mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(C, h, h) embedding and (S, S) mask -> (h, h) cosine of every cell with the mean feature of the mask.

    Every pixel has the feature of the cell it lies in, so the mean over pixels is a mean over cells weighted by the
    number of mask pixels in each: the embedding need not be resized to S.
    """
    channels, cells = features.shape[0], features.shape[1]
    of_pixel = cell_index(mask.shape[0], cells)
    rows, columns = np.nonzero(mask)
    share = np.zeros((cells, cells))
    np.add.at(share, (of_pixel[rows], of_pixel[columns]), 1.0)
    flat = features.reshape(channels, -1).astype(np.float64)
    mean = flat @ share.reshape(-1) / max(len(rows), 1)
    length = np.linalg.norm(flat, axis=0) * np.linalg.norm(mean)
    return (mean @ flat / np.maximum(length, 1e-12)).reshape(cells, cells)


def cell_index(pixels: int, cells: int) -> NDArray[np.int64]:
    """(pixels,) the cell of an embedding's row in which each pixel's centre lies."""
    return (2 * np.arange(pixels) + 1) * cells // (2 * pixels)


def strips(box: Box, size: int, share: float = 0.1, widest: int = 10) -> tuple[Box | None, ...]:
    """The strips outside the left, top, right and bottom side of `box`, each as long as its side; None off the image.

    A strip is `share` of the box's extent across it wide, rounded down, at least one and at most `widest` pixels, and
    is cut where the image ends.
    """
    x0, y0, x1, y1 = box
    wide = max(1, min(int(share * (x1 - x0 + 1)), widest))
    high = max(1, min(int(share * (y1 - y0 + 1)), widest))
    around = (
        (x0 - wide, y0, x0 - 1, y1),
        (x0, y0 - high, x1, y0 - 1),
        (x1 + 1, y0, x1 + wide, y1),
        (x0, y1 + 1, x1, y1 + high),
    )
    cut = [(max(a, 0), max(b, 0), min(c, size - 1), min(d, size - 1)) for a, b, c, d in around]
    return tuple((a, b, c, d) if a <= c and b <= d else None for a, b, c, d in cut)


def elastic_box(box: Box, alike: NDArray[np.float64], size: int, threshold: float, share: float) -> tuple[Box, Sides]:
    """CEBox: each side moves to the far end of its strip where more than `share` of the strip looks like the object.

    Args:
        alike: (h, h) of `likeness`.
        threshold: a pixel looks like the object if its cosine is larger.

    Returns:
        The box, and which sides moved.
    """
    of_pixel = cell_index(size, alike.shape[0])
    ends, moved = list(box), []
    for side, strip in enumerate(strips(box, size)):
        moved.append(False)
        if strip is not None:
            a, b, c, d = strip
            seen = alike[np.ix_(of_pixel[b : d + 1], of_pixel[a : c + 1])] > threshold
            if seen.mean() > share:
                ends[side], moved[side] = strip[side], True  # a strip's own far end has the side's place in it
    return (ends[0], ends[1], ends[2], ends[3]), (moved[0], moved[1], moved[2], moved[3])


def mask_prompt(mask: NDArray[np.bool_], gamma: float, strength: float) -> NDArray[np.float32]:
    """(H, W) logits: `strength` times exp(-(d - d_max)^2 / (area / gamma)) inside the object, -`strength` outside.

    d is the distance to the background: the middle of the object is trusted, its rim hardly. An empty mask is all
    background.
    """
    distance = inner_distance(mask)
    spread = max(float(mask.sum()), 1.0) / gamma
    bell = np.exp(-((distance - distance.max()) ** 2) / spread)
    return np.where(mask, strength * bell, -strength).astype(np.float32)

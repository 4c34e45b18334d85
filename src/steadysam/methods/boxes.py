"""Boxes made of points, for models whose native prompt is a box."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from steadysam.types import SlicePoints


def box_of_points(points: SlicePoints, size: int, least: float) -> NDArray[np.float32] | None:
    """(4,) x0, y0, x1, y1 around the positive points of a slice, in model pixels; None without any.

    Args:
        size: side of the model's image; the box is kept inside it.
        least: smallest side in pixels; a narrower box is widened about its middle, and moved where the image ends.
    """
    xy = points.xy[points.positive].astype(np.float64)
    if not len(xy):
        return None
    low, high = np.clip(xy.min(0), 0, size - 1), np.clip(xy.max(0), 0, size - 1)
    side = np.minimum(np.maximum(high - low, least), size - 1)
    start = np.clip((low + high - side) / 2, 0, size - 1 - side)
    return np.concatenate([start, start + side]).astype(np.float32)


def loosen_box(box: NDArray[np.float32], size: int, most: float, generator: np.random.Generator) -> NDArray[np.float32]:
    """Each side moved outwards by 0 to `most` pixels, not beyond the image."""
    shift = generator.uniform(0, most, 4) * np.array([-1, -1, 1, 1])
    return np.clip(box + shift, 0, size - 1).astype(np.float32)

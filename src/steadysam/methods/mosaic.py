"""What may happen to a detector's training images: four slices in one picture (mosaic), moved, mirrored, recoloured.

YOLOv8's augmentation, written from its public description: mosaic, scale, shift, flip, and jitter of hue, saturation
and value. Masks are moved with the images and boxes drawn around what is left of each component, so that no box is
clipped or guessed. Coordinates are continuous: pixel i covers [i, i + 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from steadysam.detection.boxes import boxes_of_mask
from steadysam.methods.contract import FrozenConfig


class MosaicConfig(FrozenConfig):
    """The detector's image, and what may happen to it in training; the defaults are YOLOv8's.

    Args:
        image_size: side, px; a multiple of 32.
        min_area: components with fewer pixels are no objects.
        mosaic: probability of a mosaic of four slices; 0 in the last `close_mosaic` epochs.
        hsv: most relative change of hue (as a share of the circle), saturation and value; of grey images only the
            value changes.
        scale: factors from 1 - scale to 1 + scale.
        translate: as a share of the side, in both directions.
        flip: probability of a mirror image, left for right.
    """

    image_size: int = Field(default=640, ge=32, multiple_of=32)
    min_area: float = Field(default=16.0, ge=0)
    mosaic: float = Field(default=1.0, ge=0, le=1)
    close_mosaic: int = Field(default=10, ge=0)
    hsv: tuple[float, float, float] = (0.015, 0.7, 0.4)
    scale: float = Field(default=0.5, ge=0, lt=1)
    translate: float = Field(default=0.1, ge=0, lt=1)
    flip: float = Field(default=0.5, ge=0, le=1)


@dataclass(frozen=True)
class Tile:
    """One slice in a picture: it is seen in a window, and its pixel p lies at `p * scale + shift`.

    Args:
        source: which of the slices.
        window: x0, y0, x1, y1, whole pixels of the picture.
        shift: x, y, px.
    """

    source: int
    window: tuple[int, int, int, int]
    scale: float
    shift: tuple[float, float]


@dataclass(frozen=True)
class Picture:
    """What is drawn for one sample: its tiles, which do not overlap, whether it is mirrored, and the jitter."""

    tiles: tuple[Tile, ...]
    mirrored: bool = False
    hsv: tuple[float, float, float] = (0.0, 1.0, 1.0)


def draw_picture(config: MosaicConfig, generator: np.random.Generator, *, mosaic: bool = True) -> Picture:
    """One augmentation; always the same number of draws, so that settings do not shift one another's chance.

    Four slices meet at a point of a canvas twice as wide and high, which lies in its middle half. The canvas (or the
    one slice) is scaled about its centre, and the centre is shifted from the middle of the picture.
    """
    size, u = config.image_size, generator.random(10)
    scale = 1 + config.scale * (2 * u[0] - 1)
    middle = size * (0.5 + config.translate * (2 * u[1:3] - 1))
    signs = 2 * u[5:8] - 1
    hsv = (config.hsv[0] * signs[0], 1 + config.hsv[1] * signs[1], 1 + config.hsv[2] * signs[2])
    mirrored = bool(u[3] < config.flip)
    if not (mosaic and u[4] < config.mosaic):
        shift = middle - scale * size / 2
        tiles = (Tile(0, (0, 0, size, size), scale, (shift[0], shift[1])),)
        return Picture(tiles, mirrored, hsv)
    meeting = size * (0.5 + u[8:10])
    x, y = middle + scale * (meeting - size)  # where the four meet in the picture
    # the first column (row) whose centre lies on the far side
    column, row = (int(np.clip(np.ceil(at - 0.5), 0, size)) for at in (x, y))
    near_x, near_y = x - scale * size, y - scale * size  # the corner of the first slice, which ends where they meet
    tiles = (
        Tile(0, (0, 0, column, row), scale, (near_x, near_y)),
        Tile(1, (column, 0, size, row), scale, (x, near_y)),
        Tile(2, (0, row, column, size), scale, (near_x, y)),
        Tile(3, (column, row, size, size), scale, (x, y)),
    )
    return Picture(tiles, mirrored, hsv)


def compose(sources: Sequence[Tensor], picture: Picture, size: int) -> Tensor:
    """(C, F, F) slices -> the picture (C, F, F), bilinear; 0 where no slice is. A grey slice among colour is grey."""
    channels = max(len(source) for source in sources)
    result = torch.zeros(channels, size, size)
    for tile in picture.tiles:
        x0, y0, x1, y1 = tile.window
        source = sources[tile.source].expand(channels, -1, -1)
        rows, columns = (_lines(tile, axis, source.shape[-1]) for axis in (1, 0))
        part = _blend(_blend(source, rows, 1), columns, 2)
        result[:, y0:y1, x0:x1] = part
    return result.flip(2) if picture.mirrored else result


def moved_boxes(
    masks: Sequence[NDArray[np.bool_]], picture: Picture, size: int, min_area: float
) -> NDArray[np.float32]:
    """(K, 4) boxes of the components of each tile's moved mask, tile by tile: neighbours do not grow together."""
    found = [np.zeros((0, 4), np.float32)]
    for tile in picture.tiles:
        x0, y0, _, _ = tile.window
        part = moved_mask(masks[tile.source], tile)
        if part.size:
            boxes = boxes_of_mask(part, min_area) + np.array([x0, y0, x0, y0], np.float32)
            found.append(boxes)
    boxes = np.concatenate(found).astype(np.float32)
    if picture.mirrored:
        boxes[:, [0, 2]] = size - boxes[:, [2, 0]]
    return boxes


def moved_mask(mask: NDArray[np.bool_], tile: Tile) -> NDArray[np.bool_]:
    """(F, F) -> the window of a tile, nearest pixel; False where the slice is not."""
    y, x = (_places(tile, axis) for axis in (1, 0))
    side = mask.shape[-1]
    part = mask[np.clip(np.floor(y), 0, side - 1).astype(int)[:, None], np.clip(np.floor(x), 0, side - 1).astype(int)]
    return part & ((y >= 0) & (y < side))[:, None] & ((x >= 0) & (x < side))


def _places(tile: Tile, axis: int) -> NDArray[Any]:
    """Where in the slice the centres of the window's columns (axis 0) or rows (axis 1) lie."""
    centres = np.arange(tile.window[axis], tile.window[axis + 2]) + 0.5
    return (centres - tile.shift[axis]) / tile.scale


@dataclass(frozen=True, eq=False)
class _Lines:
    """The two lines of a slice between which each line of a window lies, and their weights (0 and 0 outside)."""

    low: Tensor
    high: Tensor
    low_weight: Tensor
    high_weight: Tensor


def _lines(tile: Tile, axis: int, side: int) -> _Lines:
    places = _places(tile, axis)
    inside = (places >= 0) & (places < side)
    before = np.floor(places - 0.5)
    weight = places - 0.5 - before
    low, high = (torch.from_numpy(np.clip(before + step, 0, side - 1).astype(np.int64)) for step in (0, 1))
    weights = (torch.from_numpy((w * inside).astype(np.float32)) for w in (1 - weight, weight))
    return _Lines(low, high, *weights)


def _blend(image: Tensor, lines: _Lines, axis: int) -> Tensor:
    shape = [-1 if k == axis else 1 for k in range(3)]
    low, high = image.index_select(axis, lines.low), image.index_select(axis, lines.high)
    return low * lines.low_weight.reshape(shape) + high * lines.high_weight.reshape(shape)


def jitter(image: Tensor, hsv: tuple[float, float, float]) -> Tensor:
    """(C, F, F) in [0, 1] with its hue turned by hsv[0] of a circle, saturation and value times hsv[1] and hsv[2].

    Grey images have neither hue nor saturation.
    """
    if len(image) == 1:
        return (image * hsv[2]).clamp(0, 1)
    value = image.amax(0)
    chroma = value - image.amin(0)
    red, green, blue = image
    safe = chroma.clamp_min(1e-12)
    sixths = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    turned = sixths + 6 * hsv[0]
    saturation = (chroma / value.clamp_min(1e-12) * hsv[1]).clamp(0, 1)
    value = (value * hsv[2]).clamp(0, 1)
    planes = []
    for offset in (5.0, 3.0, 1.0):  # of red, green, blue on the colour circle
        k = (turned + offset).remainder(6)
        planes.append(value * (1 - saturation * torch.minimum(k, 4 - k).clamp(0, 1)))
    return torch.stack(planes)

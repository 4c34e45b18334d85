"""Training material of detectors: slices with the boxes of their objects, four of them in one picture (mosaic).

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
from torch.nn import functional as F

from steadysam.detection.boxes import boxes_of_mask
from steadysam.errors import InputError
from steadysam.methods.contract import Batch, Chance, FrozenConfig, TrainingCase
from steadysam.methods.samples import list_slices
from steadysam.types import SliceStack


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


class DetectionSamples:
    """Slices at the detector's size, with the boxes of their objects.

    Args:
        epochs: of the stage; the last `close_mosaic` of them have no mosaic.

    Raises:
        InputError: `DETECT_NO_OBJECT` if there is a target but all its components are too small to be objects.
    """

    def __init__(self, cases: Sequence[TrainingCase], config: MosaicConfig, epochs: int) -> None:
        self.cases, self.config = cases, config
        self.slices = list_slices(cases)
        self.mosaic_epochs = epochs - config.close_mosaic
        self._refuse_only_small()

    def __len__(self) -> int:
        return len(self.slices)

    def batch(self, indices: Sequence[int], chance: Chance) -> Batch:
        """`images` (B, 3, F, F) RGB in [0, 1], `boxes` (B, K, 4) filled up with zeros, and `counts` (B,)."""
        pairs = [self.sample(index, chance) for index in indices]
        counts = [len(boxes) for _, boxes in pairs]
        boxes = torch.zeros(len(pairs), max(counts), 4)
        for row, (_, here) in zip(boxes, pairs, strict=True):
            row[: len(here)] = torch.from_numpy(here)
        images = torch.stack([image.expand(3, -1, -1) for image, _ in pairs])
        return Batch({"images": images, "boxes": boxes, "counts": torch.tensor(counts)})

    def sample(self, index: int, chance: Chance) -> tuple[Tensor, NDArray[np.float32]]:
        """(1 or 3, F, F) image and (K, 4) boxes of one sample."""
        size = self.config.image_size
        if not chance.training:
            image, mask = self._read(index)
            return image, boxes_of_mask(mask, self.config.min_area)
        c, t = self.slices[index]
        generator = chance.generator(self.cases[c].name, t)
        others = generator.integers(len(self.slices), size=3).tolist()
        picture = draw_picture(self.config, generator, mosaic=chance.epoch < self.mosaic_epochs)
        sources = [self._read(i) for i in [index, *others][: len(picture.tiles)]]
        image = jitter(compose([image for image, _ in sources], picture, size), picture.hsv)
        return image, moved_boxes([mask for _, mask in sources], picture, size, self.config.min_area)

    def _refuse_only_small(self) -> None:
        """Looks as far as the first object; a network that is shown none learns to find none, with a splendid loss."""
        size, least = self.config.image_size, self.config.min_area
        largest = 0
        for index in range(len(self.slices)):
            mask = self._mask(index)
            if len(boxes_of_mask(mask, least)):
                return
            largest = max(largest, int(mask.sum()))
        if largest:
            raise InputError(
                "DETECT_NO_OBJECT",
                "every component of the target is too small to be an object",
                seen=f"at most {largest} pixels of target on a slice of {size} x {size}",
                expected=f"components of min_area = {least:g} pixels or more",
                fix="lower detector.min_area, or raise detector.image_size",
            )

    def _read(self, index: int) -> tuple[Tensor, NDArray[np.bool_]]:
        c, t = self.slices[index]
        return _fitted(self.cases[c].stack, slice(t, t + 1), self.config.image_size)[0], self._mask(index)

    def _mask(self, index: int) -> NDArray[np.bool_]:
        """(F, F) bool."""
        c, t = self.slices[index]
        case, size = self.cases[c], self.config.image_size
        mask = np.asarray(case.masks[t] if case.detail_masks is None else case.detail_masks[t])
        if mask.shape[-1] != size:
            nearest = (2 * np.arange(size) + 1) * mask.shape[-1] // (2 * size)
            mask = mask[nearest[:, None], nearest[None, :]]
        return mask


def detector_images(stack: SliceStack, rows: slice, size: int) -> Tensor:
    """(B, 3, F, F) in [0, 1]: some slices as the detector sees them; grey becomes three equal channels."""
    return _fitted(stack, rows, size).expand(-1, 3, -1, -1)


def _fitted(stack: SliceStack, rows: slice, size: int) -> Tensor:
    """(B, C, F, F): the stack's `detail` where it has that size, else its images, resized."""
    # copies: the stack may be a read-only map of a file
    if stack.detail is None:
        images = torch.from_numpy(np.array(stack.images[rows], np.float32))
    else:
        images = torch.from_numpy(np.array(stack.detail[rows])).float() / 255
    if images.shape[-1] == size:
        return images
    return F.interpolate(images, (size, size), mode="bilinear", align_corners=False, antialias=True).clamp(0, 1)


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

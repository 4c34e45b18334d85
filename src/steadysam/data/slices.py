"""From a volume to what a model sees, and back: window, fit, normalise; fit and unfit masks.

Pixel centres lie at integers, and all maps agree with `Frame`: images shrink with antialiasing and grow
bilinearly with half-pixel centres, masks take the nearest pixel.
"""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from steadysam.errors import ConfigError, InputError
from steadysam.files import content_key
from steadysam.types import Frame, Grid, Preprocess, SliceStack, Volume, put_slices, stack_slices

if TYPE_CHECKING:
    from torch import Tensor

_PERCENTILES = (0.5, 99.5)
# of the ImageNet training images, per channel, in units of 0 to 255 (the values SAM was trained with)
_IMAGENET_MEAN = (123.675, 116.28, 103.53)
_IMAGENET_STD = (58.395, 57.12, 57.375)
_CT = re.compile(r"ct:\s*([-+]?\d+(?:\.\d+)?)\s*,\s*([-+]?\d+(?:\.\d+)?)")


def prepare_stack(volume: Volume, preprocess: Preprocess, detail: int = 0) -> SliceStack:
    """Window a volume to [0, 1] and fit its slices to the model's size (spd.md 3.1).

    The window is one for the whole volume. With `fit="pad"` the padding right and below is black (0), as air
    is.

    Args:
        detail: pixels per side of the stack's second images, `stack.detail`; 0: none.

    Raises:
        ConfigError: `WINDOW_SYNTAX`, `SIZE`.
        InputError: `WINDOW_COLOUR` (a CT window for a colour picture).
    """
    if preprocess.size < 1 or detail < 0:
        seen = preprocess.size if preprocess.size < 1 else detail
        raise ConfigError("SIZE", "the model's image needs pixels", seen=seen, expected="1 or more")
    images = _windowed(volume, preprocess)
    frame = frame_of(volume, preprocess)
    key = content_key(volume.array, volume.grid.slice_axis, asdict(preprocess))
    second = _detail(images, frame, detail) if detail else None
    return SliceStack(_fit(images, frame), frame, preprocess, key, detail=second)


def detail_images(volume: Volume, preprocess: Preprocess, size: int) -> NDArray[np.uint8]:
    """(D, C, F, F), F = `size`: the `detail` of the stack that `prepare_stack` makes of `volume`."""
    return _detail(_windowed(volume, preprocess), frame_of(volume, preprocess), size)


def _detail(images: NDArray[np.float32], frame: Frame, size: int) -> NDArray[np.uint8]:
    """[0, 1] -> 0 to 255: 8 bits are what detectors see anyway, and thousands of pictures have to be held in memory."""
    return np.rint(_fit(images, replace(frame, size=size)) * 255).astype(np.uint8)


def frame_of(volume: Volume, preprocess: Preprocess) -> Frame:
    """The frame of the volume's slices."""
    return Frame(*volume.grid.slice_shape, preprocess.size, preprocess.fit)


def _windowed(volume: Volume, preprocess: Preprocess) -> NDArray[np.float32]:
    """(D, C, H, W) in [0, 1], as large as the volume's slices."""
    low, high = window_bounds(volume.array, preprocess.window)
    images = stack_slices(_to_unit(volume.array, low, high), volume.grid)  # (D, H, W[, C])
    return np.moveaxis(images, 3, 1) if volume.array.ndim == 4 else images[:, None]


def window_bounds(array: NDArray[Any], window: str) -> tuple[float, float]:
    """The values that become 0 and 1.

    `percentile`: 0.5 and 99.5 % of the non-zero voxels (8-bit colour pictures: 0 and 255); `range`: minimum
    and maximum; `ct:WIDTH,LEVEL`: LEVEL -+ WIDTH / 2 in HU.

    Raises:
        ConfigError: `WINDOW_SYNTAX`.
        InputError: `WINDOW_COLOUR`.
    """
    if window == "range":
        return float(array.min()), float(array.max())
    if window == "percentile":
        if array.ndim == 4 and array.dtype == np.uint8:
            return 0.0, 255.0
        return _percentile_bounds(array)
    match = _CT.fullmatch(window)
    if match is None or float(match[1]) <= 0:
        raise ConfigError(
            "WINDOW_SYNTAX",
            "unknown intensity window",
            seen=window,
            expected="percentile, range, or ct:WIDTH,LEVEL with WIDTH above 0, such as ct:400,40",
        )
    if array.ndim == 4:
        raise InputError("WINDOW_COLOUR", "a CT window does not apply to a colour picture", seen=window)
    half, level = float(match[1]) / 2, float(match[2])
    return level - half, level + half


def channels_of(array: NDArray[Any]) -> int:
    """Of an image as `Volume` holds it: 1, or 3 of colours."""
    return array.shape[3] if array.ndim == 4 else 1


def normalise(
    images: NDArray[np.float32] | Tensor,
    norm: Literal["spd", "sam", "medsam"],
    frame: Frame | None = None,
) -> Tensor:
    """(B, 1 or 3, S, S) in [0, 1] -> (B, 3, S, S) float32 as a model was trained to see it.

    `spd` is [-1, 1] (spd.md 3.1), `sam` subtracts ImageNet's mean and divides by its deviation, `medsam`
    stays in [0, 1]. Grey becomes three equal channels.

    Args:
        frame: if given with `fit="pad"` and `norm="sam"`, the padding becomes 0 *after* normalisation, as in
            SAM's own preprocessing; otherwise padding is what a black pixel becomes.
    """
    import torch

    tensor = torch.as_tensor(images, dtype=torch.float32)
    tensor = tensor.expand(-1, 3, -1, -1)
    if norm == "spd":
        return tensor * 2 - 1
    if norm == "medsam":
        return tensor.clone()
    if norm != "sam":
        raise ConfigError("NORM", "unknown normalisation", seen=norm, expected="spd, sam or medsam")
    mean = torch.tensor(_IMAGENET_MEAN, device=tensor.device).view(1, 3, 1, 1)
    deviation = torch.tensor(_IMAGENET_STD, device=tensor.device).view(1, 3, 1, 1)
    result = (tensor * 255 - mean) / deviation
    if frame is not None:
        height, width = frame.fitted_hw
        result[:, :, height:] = 0
        result[:, :, :, width:] = 0
    return result


def fit_masks(mask: NDArray[Any], grid: Grid, frame: Frame) -> NDArray[np.bool_]:
    """(I, J, K) bool -> (D, S, S) bool in model pixels, nearest neighbour; padding is False."""
    slices = stack_slices(np.asarray(mask, bool), grid)
    height, width = frame.fitted_hw
    rows, columns = _nearest(frame.height, height), _nearest(frame.width, width)
    result = np.zeros((len(slices), frame.size, frame.size), bool)
    result[:, :height, :width] = slices[:, rows[:, None], columns[None, :]]
    return result


def unfit_masks(masks: NDArray[Any], grid: Grid, frame: Frame) -> NDArray[np.bool_]:
    """(D, S, S) bool in model pixels -> (I, J, K) bool on the grid, nearest neighbour; undoes `fit_masks`."""
    return unfit_values(np.asarray(masks, bool), grid, frame)


def unfit_values(values: NDArray[Any], grid: Grid, frame: Frame) -> NDArray[Any]:
    """The same for any numbers, such as probabilities: what `unfit_masks` makes of a cut is the cut of these."""
    height, width = frame.fitted_hw
    rows, columns = _nearest(height, frame.height), _nearest(width, frame.width)
    return put_slices(values[:, rows[:, None], columns[None, :]], grid)


def _nearest(source: int, target: int) -> NDArray[np.int64]:
    """For each target pixel the source pixel under its centre: floor((t + 1/2) source / target), exactly."""
    return (2 * np.arange(target) + 1) * source // (2 * target)


def _percentile_bounds(array: NDArray[Any]) -> tuple[float, float]:
    inside = array[array != 0]
    if inside.size == 0:
        return 0.0, 0.0
    low, high = np.percentile(inside, _PERCENTILES).tolist()
    if high > low:
        return low, high
    return float(array.min()), float(array.max())  # nearly binary image: the percentiles coincide


def _to_unit(array: NDArray[Any], low: float, high: float) -> NDArray[np.float32]:
    """Clip to [low, high] and scale to [0, 1]; a constant image becomes 0."""
    exact = np.float64 if array.dtype.itemsize > 4 else np.float32  # wide types may not fit into 32 bits
    span = exact(high) - exact(low)
    if not span > 0:
        return np.zeros(array.shape, np.float32)
    unit = array.astype(exact)
    unit -= exact(low)
    unit /= span
    return np.clip(unit, 0, 1, out=unit).astype(np.float32, copy=False)


def _fit(images: NDArray[np.float32], frame: Frame) -> NDArray[np.float32]:
    """(D, C, H, W) -> (D, C, S, S): bilinear, antialiased where it shrinks, zeros right and below."""
    import torch
    from torch.nn.functional import interpolate

    height, width = frame.fitted_hw
    result = np.zeros((*images.shape[:2], frame.size, frame.size), np.float32)
    for image, fitted in zip(images, result, strict=True):  # one slice at a time keeps the peak memory small
        tensor = torch.from_numpy(np.ascontiguousarray(image))[None]
        if (height, width) != (frame.height, frame.width):
            tensor = interpolate(tensor, (height, width), mode="bilinear", align_corners=False, antialias=True)
        fitted[:, :height, :width] = tensor[0].clamp(0, 1).numpy()
    return result

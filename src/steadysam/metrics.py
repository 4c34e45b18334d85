"""Overlap and surface metrics of binary masks, and the scores of one case (spd.md 6.1-6.3).

Conventions, said once:
    Overlap     both masks empty -> 1, exactly one empty -> 0.
    Surface     defined only where both masks are non-empty; None elsewhere, and counted.
    HD95, ASSD  95th percentile and mean of the distances of both directions pooled; ASD is one-way,
                prediction -> truth. These are MedPy's definitions (0.5.2, checked to 1e-6); tools differ.
    px          pixels of the grid on which slices are scored (by default the slice stretched to 512 x 512).
    mm          true spacing, on the native grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steadysam.errors import InputError

BoolArray = NDArray[np.bool_]

METRICS: dict[str, tuple[str, str]] = {
    "dsc": ("Dice per slice, mean over all slices (paper style; both empty = 1)", "0-1, higher is better"),
    "iou": (
        "intersection over union per slice, mean over all slices (both empty = 1)",
        "0-1, higher is better",
    ),
    "dsc_positive": ("Dice per slice, mean over slices where the target is present", "0-1, higher is better"),
    "iou_positive": ("IoU per slice, mean over slices where the target is present", "0-1, higher is better"),
    "volume_dice": ("Dice of whole volumes, native grid, mean over volumes", "0-1, higher is better"),
    "fp_rate_empty": ("share of target-free slices on which something was predicted", "0-1, lower is better"),
    "tnr": ("share of target-free slices left empty", "0-1, higher is better"),
    "hd95_px": ("95th percentile of pooled two-way surface distances, valid slices", "px, lower is better"),
    "asd_px": ("mean distance from predicted to true surface (one-way), valid slices", "px, lower is better"),
    "assd_px": ("mean of pooled two-way surface distances, valid slices", "px, lower is better"),
    "hd95_penalised_px": (
        "HD95 in which a slice with exactly one empty mask counts as the image diagonal",
        "px, lower is better",
    ),
    "hd95_mm": ("HD95 per slice at true spacing, valid slices", "mm, lower is better"),
    "asd_mm": ("one-way ASD per slice at true spacing, valid slices", "mm, lower is better"),
    "assd_mm": ("ASSD per slice at true spacing, valid slices", "mm, lower is better"),
    "volume_hd95_mm": ("HD95 of whole volumes at true spacing, valid volumes", "mm, lower is better"),
    "volume_asd_mm": ("one-way ASD of whole volumes at true spacing, valid volumes", "mm, lower is better"),
    "volume_assd_mm": ("ASSD of whole volumes at true spacing, valid volumes", "mm, lower is better"),
}


@dataclass(frozen=True)
class SurfaceScores:
    """HD95, one-way ASD and ASSD in the unit of the spacing; None where a mask is empty."""

    hd95: float | None = None
    asd: float | None = None
    assd: float | None = None


@dataclass(frozen=True)
class SliceScore:
    """The scores of one slice. `valid`: both masks are non-empty on the scored grid, so `_px` values exist.

    `hd95_penalised_px` is None only where both masks are empty; `_mm` are None without physical spacing.
    """

    slice: int
    true_empty: bool
    pred_empty: bool
    dsc: float
    iou: float
    hd95_px: float | None
    asd_px: float | None
    assd_px: float | None
    hd95_penalised_px: float | None
    hd95_mm: float | None
    asd_mm: float | None
    assd_mm: float | None

    @property
    def valid(self) -> bool:
        """Whether surface distances in pixels are defined."""
        return not (self.true_empty or self.pred_empty)


@dataclass(frozen=True)
class VolumeScore:
    """The scores of one whole volume on its native grid."""

    dice: float
    iou: float
    true_voxels: int
    pred_voxels: int
    hd95_mm: float | None
    asd_mm: float | None
    assd_mm: float | None


@dataclass(frozen=True)
class CaseScores:
    """Everything measured on one case.

    Args:
        name: case name.
        slices: one row per slice, in slice order.
        volume: scores of the whole volume.
        scored_shape: `(H, W)` of the grid of the `_px` values.
        spacing_mm: voxel size along the array axes, or None for pictures.
        slice_axis: the array axis across which slices were cut.
    """

    name: str
    slices: tuple[SliceScore, ...]
    volume: VolumeScore
    scored_shape: tuple[int, int]
    spacing_mm: tuple[float, float, float] | None = None
    slice_axis: int = 2


def dice(pred: NDArray[Any], true: NDArray[Any]) -> float:
    """2|A and B| / (|A| + |B|) of two masks of equal shape; both empty -> 1."""
    pred, true = _same_shape(pred, true)
    total = int(pred.sum()) + int(true.sum())
    return 2.0 * int((pred & true).sum()) / total if total else 1.0


def iou(pred: NDArray[Any], true: NDArray[Any]) -> float:
    """|A and B| / |A or B| of two masks of equal shape; both empty -> 1."""
    pred, true = _same_shape(pred, true)
    union = int((pred | true).sum())
    return int((pred & true).sum()) / union if union else 1.0


def surface_distances(
    pred: NDArray[Any], true: NDArray[Any], spacing: Sequence[float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Distances from each border element of one mask to the nearest border element of the other.

    The border is the mask without its erosion by the cross-shaped (connectivity 1) neighbourhood; elements at
    the edge of the array belong to it. Distances are exact (Euclidean transform). Cropping to the box
    of the union changes no value: all outside it is background, as is all outside the array.

    Args:
        pred, true: masks of equal shape, 2-D or 3-D, both non-empty.
        spacing: element size along each axis.

    Returns:
        (P,) distances prediction -> truth and (T,) truth -> prediction, in the unit of `spacing`.

    Raises:
        InputError: `METRIC_EMPTY` if a mask is empty, `METRIC_SHAPE` if shapes or the spacing do not fit.
    """
    from scipy.ndimage import distance_transform_edt

    pred, true = _same_shape(pred, true)
    if len(spacing) != pred.ndim:
        raise InputError("METRIC_SHAPE", "one spacing per axis", seen=len(spacing), expected=pred.ndim)
    if not pred.any() or not true.any():
        raise InputError("METRIC_EMPTY", "surface distances need two non-empty masks")
    box = _bounding_box(pred | true)
    border_pred, border_true = _border(pred[box]), _border(true[box])
    to_true = np.asarray(distance_transform_edt(~border_true, sampling=spacing))
    to_pred = np.asarray(distance_transform_edt(~border_pred, sampling=spacing))
    return to_true[border_pred], to_pred[border_true]


def surface_scores(pred: NDArray[Any], true: NDArray[Any], spacing: Sequence[float]) -> SurfaceScores:
    """HD95, ASD and ASSD from one pair of distance transforms; all None if a mask is empty."""
    if not np.any(pred) or not np.any(true):
        _same_shape(pred, true)
        return SurfaceScores()
    forth, back = surface_distances(pred, true, spacing)
    return SurfaceScores(
        hd95=float(np.percentile(np.concatenate([forth, back]), 95)),
        asd=float(forth.mean()),
        assd=float(np.concatenate([forth, back]).mean()),
    )


def hd95(pred: NDArray[Any], true: NDArray[Any], spacing: Sequence[float]) -> float:
    """95th percentile (linear interpolation) of the pooled two-way surface distances; masks non-empty."""
    return float(np.percentile(np.concatenate(surface_distances(pred, true, spacing)), 95))


def asd(pred: NDArray[Any], true: NDArray[Any], spacing: Sequence[float]) -> float:
    """Mean surface distance, one-way prediction -> truth; needs non-empty masks."""
    return float(surface_distances(pred, true, spacing)[0].mean())


def assd(pred: NDArray[Any], true: NDArray[Any], spacing: Sequence[float]) -> float:
    """Mean of the pooled two-way surface distances; needs non-empty masks."""
    return float(np.concatenate(surface_distances(pred, true, spacing)).mean())


def stretch_mask(mask: BoolArray, size: int) -> BoolArray:
    """(..., H, W) -> (..., size, size) by the nearest source pixel (pixel centres aligned at halves).

    `size` 0 returns the mask unchanged.
    """
    if size == 0:
        return mask
    rows, columns = (_nearest_index(n, size) for n in mask.shape[-2:])
    return mask[..., rows[:, None], columns]


def slice_scores(
    pred: NDArray[Any], true: NDArray[Any], spacing_mm: Sequence[float] | None, size: int = 0
) -> tuple[SliceScore, ...]:
    """Score every slice of a stack.

    Args:
        pred, true: (D, H, W) masks on the native grid.
        spacing_mm: `(row, column)` pixel size, or None for pictures (mm values are then None).
        size: overlap and pixel distances are taken on the slice stretched to `size` x `size`; 0 means native.

    Raises:
        InputError: `METRIC_SHAPE`.
    """
    pred, true = _same_shape(pred, true)
    if pred.ndim != 3:
        raise InputError("METRIC_SHAPE", "a stack of slices has three axes", seen=pred.shape, expected="(D, H, W)")
    return tuple(_slice_score(t, pred[t], true[t], spacing_mm, size) for t in range(len(pred)))


def volume_scores(pred: NDArray[Any], true: NDArray[Any], spacing_mm: Sequence[float] | None) -> VolumeScore:
    """Score one whole volume (I, J, K) with the voxel size along its axes, or None for pictures."""
    pred, true = _same_shape(pred, true)
    surface = SurfaceScores() if spacing_mm is None else surface_scores(pred, true, spacing_mm)
    return VolumeScore(
        dice=dice(pred, true),
        iou=iou(pred, true),
        true_voxels=int(true.sum()),
        pred_voxels=int(pred.sum()),
        hd95_mm=surface.hd95,
        asd_mm=surface.asd,
        assd_mm=surface.assd,
    )


def all_empty_scores(case: CaseScores) -> CaseScores:
    """What a predictor that never marks anything would have scored on the same case."""
    undefined = {
        "asd_px": None,
        "assd_px": None,
        "hd95_px": None,
        "hd95_mm": None,
        "asd_mm": None,
        "assd_mm": None,
    }
    rows = tuple(
        replace(
            row,
            pred_empty=True,
            dsc=float(row.true_empty),
            iou=float(row.true_empty),
            hd95_penalised_px=None if row.true_empty else diagonal_px(case.scored_shape),
            **undefined,
        )
        for row in case.slices
    )
    whole = float(case.volume.true_voxels == 0)
    volume = replace(case.volume, dice=whole, iou=whole, pred_voxels=0, hd95_mm=None, asd_mm=None, assd_mm=None)
    return replace(case, slices=rows, volume=volume)


def diagonal_px(shape: tuple[int, int]) -> float:
    """Length of the image diagonal, the penalty for a slice with exactly one empty mask (724.1 px at 512)."""
    return float(np.hypot(*shape))


def _slice_score(
    index: int, pred: BoolArray, true: BoolArray, spacing_mm: Sequence[float] | None, size: int
) -> SliceScore:
    pred_px, true_px = stretch_mask(pred, size), stretch_mask(true, size)
    pred_empty, true_empty = not pred_px.any(), not true_px.any()
    pixels = surface_scores(pred_px, true_px, (1.0, 1.0))
    mm = SurfaceScores() if spacing_mm is None else surface_scores(pred, true, spacing_mm)
    penalised = pixels.hd95 if pred_empty == true_empty else diagonal_px((true_px.shape[0], true_px.shape[1]))
    return SliceScore(
        slice=index,
        true_empty=true_empty,
        pred_empty=pred_empty,
        dsc=dice(pred_px, true_px),
        iou=iou(pred_px, true_px),
        hd95_px=pixels.hd95,
        asd_px=pixels.asd,
        assd_px=pixels.assd,
        hd95_penalised_px=penalised,
        hd95_mm=mm.hd95,
        asd_mm=mm.asd,
        assd_mm=mm.assd,
    )


def _nearest_index(n: int, size: int) -> NDArray[np.int64]:
    # floor((x + 1/2) * n / size) in whole numbers, so that no rounding can move a pixel
    return (2 * np.arange(size, dtype=np.int64) + 1) * n // (2 * size)


def _bounding_box(mask: BoolArray) -> tuple[slice, ...]:
    box = []
    for axis in range(mask.ndim):
        others = tuple(a for a in range(mask.ndim) if a != axis)
        hit = np.flatnonzero(mask.any(axis=others))
        box.append(slice(int(hit[0]), int(hit[-1]) + 1))
    return tuple(box)


def _border(mask: BoolArray) -> BoolArray:
    # erosion by the cross: an element stays inside if both neighbours along every axis are set
    padded = np.pad(mask, 1)
    inside = mask.copy()
    centre = [slice(1, -1)] * mask.ndim
    for axis in range(mask.ndim):
        for neighbour in (slice(0, -2), slice(2, None)):
            window = list(centre)
            window[axis] = neighbour
            inside &= padded[tuple(window)]
    return mask & ~inside


def _same_shape(pred: NDArray[Any], true: NDArray[Any]) -> tuple[BoolArray, BoolArray]:
    if np.shape(pred) != np.shape(true):
        raise InputError(
            "METRIC_SHAPE",
            "prediction and truth differ in shape",
            seen=np.shape(pred),
            expected=np.shape(true),
            fix="evaluate masks on the grid of their label map",
        )
    return np.asarray(pred).astype(bool, copy=False), np.asarray(true).astype(bool, copy=False)

"""Average precision as COCO defines it: greedy matching, 101 recall levels; class by class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

RECALLS = np.linspace(0, 1, 101)
PRECISIONS = ("AP50", "AP75", "AP")  # what `average_precision_summary` gives
OVERLAPS = tuple(float(value) for value in np.linspace(0.5, 0.95, 10))


class Scored(Protocol):
    """Boxes with scores: `boxes.Detections`, `FoundBoxes`."""

    @property
    def boxes(self) -> Any: ...

    @property
    def scores(self) -> Any: ...


@dataclass(frozen=True, eq=False)
class FoundBoxes:
    """Boxes (K, 4) xyxy and scores (K,) of one image, in any order."""

    boxes: NDArray[np.floating]
    scores: NDArray[np.floating]


def average_precision(
    found: Sequence[Scored], truth: Sequence[ArrayLike], overlap: float = 0.5, *, most: int = 100
) -> float:
    """Area under the interpolated precision over recall, of one class over all images; Lin et al., ECCV 2014.

    Each image's boxes, best first, take the free true box that they overlap most, if by at least `overlap`.

    Args:
        found: the boxes of each image.
        truth: (K, 4) true boxes of each image, xyxy.
        overlap: least IoU of a match.
        most: the best so many boxes of an image count.

    Returns:
        A share in [0, 1]; NaN if no image has a true box.

    Raises:
        ValueError: `found` and `truth` are not of equally many images.
    """
    return _area(*_matches(_ranked(found, truth, most), overlap))


def average_precision_summary(
    found: Sequence[Scored], truth: Sequence[ArrayLike], *, most: int = 100
) -> dict[str, float]:
    """`AP50`, `AP75` and `AP`, the mean over IoU 0.50, 0.55, ..., 0.95; arguments as in `average_precision`."""
    ranked = _ranked(found, truth, most)
    values = {overlap: _area(*_matches(ranked, overlap)) for overlap in OVERLAPS}
    return {"AP50": values[OVERLAPS[0]], "AP75": values[OVERLAPS[5]], "AP": float(np.mean(list(values.values())))}


# per image: scores (K,), best first, and IoU (K, G) with the true boxes
_Ranked = list[tuple[NDArray[np.float64], NDArray[np.float64]]]


def _ranked(found: Sequence[Scored], truth: Sequence[ArrayLike], most: int) -> _Ranked:
    if len(found) != len(truth):
        raise ValueError(f"boxes of {len(found)} images but truth of {len(truth)}")
    ranked = []
    for image, true in zip(found, truth, strict=True):
        scores = np.asarray(image.scores, np.float64).reshape(-1)
        order = np.argsort(-scores, kind="stable")[:most]
        boxes = np.asarray(image.boxes, np.float64).reshape(-1, 4)[order]
        ranked.append((scores[order], _overlaps(boxes, np.asarray(true, np.float64).reshape(-1, 4))))
    return ranked


def _overlaps(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    common = np.clip(high - low, 0, None).prod(axis=-1)
    areas = [np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(axis=-1) for boxes in (a, b)]
    return common / np.maximum(areas[0][:, None] + areas[1][None] - common, 1e-12)


def _matches(ranked: _Ranked, overlap: float) -> tuple[NDArray[np.float64], NDArray[np.bool_], int]:
    """Scores and hits of all boxes of all images, and the number of true boxes."""
    scores: list[NDArray[np.float64]] = [np.zeros(0)]
    hits: list[NDArray[np.bool_]] = [np.zeros(0, bool)]
    for image_scores, overlaps in ranked:
        free = np.ones(overlaps.shape[1], bool)
        hit = np.zeros(len(image_scores), bool)
        for row, values in enumerate(overlaps):
            candidates = np.where(free, values, -1.0)
            best = int(candidates.argmax()) if len(candidates) else -1
            # COCO's own tolerance: an overlap of exactly the threshold is a match
            if best >= 0 and candidates[best] >= overlap - 1e-10:
                free[best], hit[row] = False, True
        scores.append(image_scores)
        hits.append(hit)
    return np.concatenate(scores), np.concatenate(hits), sum(o.shape[1] for _, o in ranked)


def _area(scores: NDArray[np.float64], hits: NDArray[np.bool_], positives: int) -> float:
    if positives == 0:
        return float("nan")
    hits = hits[np.argsort(-scores, kind="stable")]
    true = np.cumsum(hits)
    precision = true / np.arange(1, len(hits) + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    # the first place at which each recall level is reached; levels beyond the last have precision 0
    places = np.searchsorted(true / positives, RECALLS, side="left")
    return float(np.append(envelope, 0.0)[places].mean())

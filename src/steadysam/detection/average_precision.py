"""Average precision as COCO defines it: greedy matching, 101 recall levels; class by class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

RECALLS = np.linspace(0, 1, 101)
_TOGETHER = 2**22  # numbers in memory at a time, of all boxes in so many draws
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


@dataclass(frozen=True, eq=False)
class Hits:
    """The boxes found in some images, matched: all of them that average precision looks at.

    Args:
        scores: (K,), image after image.
        hits: (K, 10) bool, whether a box takes a true one at each of `OVERLAPS`.
        true: how many true boxes there are.
    """

    scores: NDArray[np.float64]
    hits: NDArray[np.bool_]
    true: int


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
    matched = _matches(_ranked(found, truth, most), (overlap,))
    order = np.argsort(-matched.scores, kind="stable")
    true = np.array([matched.true], np.float64)
    return float(_areas(matched.hits[order], np.ones((1, len(order))), true)[0, 0])


def average_precision_summary(
    found: Sequence[Scored], truth: Sequence[ArrayLike], *, most: int = 100
) -> dict[str, float]:
    """`AP50`, `AP75` and `AP`, the mean over IoU 0.50, 0.55, ..., 0.95; arguments as in `average_precision`."""
    return precisions([match_boxes(found, truth, most=most)])


def match_boxes(found: Sequence[Scored], truth: Sequence[ArrayLike], *, most: int = 100) -> Hits:
    """Arguments as in `average_precision`, which says what a match is."""
    return _matches(_ranked(found, truth, most), OVERLAPS)


def precisions(groups: Sequence[Hits]) -> dict[str, float]:
    """`AP50`, `AP75` and `AP` of all images of all groups; NaN if none has a true box."""
    return {name: float(value) for name, (value,) in precision_draws(groups, np.ones((1, len(groups)))).items()}


def precision_draws(groups: Sequence[Hits], times: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """`AP50`, `AP75` and `AP` of sets in which every group of images is there so often.

    Args:
        groups: G of them, such as the slices of a case.
        times: (draws, G), how often each is there.

    Returns:
        (draws,) each; NaN for a draw without a true box.
    """
    scores = np.concatenate([np.zeros(0), *(group.scores for group in groups)])
    hits = np.concatenate([np.zeros((0, len(OVERLAPS)), bool), *(group.hits for group in groups)])
    owner = np.repeat(np.arange(len(groups)), [len(group.scores) for group in groups])
    order = np.argsort(-scores, kind="stable")
    hits, owner = hits[order], owner[order]
    true = times @ np.array([group.true for group in groups], np.float64)
    step = max(1, _TOGETHER // max(1, len(owner)))
    parts = [slice(start, start + step) for start in range(0, len(times), step)]
    values = np.concatenate([_areas(hits, times[part][:, owner], true[part]) for part in parts], axis=1)
    return {"AP50": values[0], "AP75": values[5], "AP": values.mean(axis=0)}


def redrawn_precision(groups: Sequence[Hits], times: NDArray[np.float64], measure: str) -> NDArray[np.float64]:
    """(draws,) of one of `PRECISIONS` for a bootstrap; a draw without a true box takes the value of all groups.

    Arguments as in `precision_draws`. NaN only if no group has a true box.
    """
    drawn = precision_draws(groups, times)[measure]
    return np.where(np.isnan(drawn), precisions(groups)[measure], drawn)


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


def _matches(ranked: _Ranked, overlaps: Sequence[float]) -> Hits:
    """All boxes of all images, with a column of hits for each of `overlaps`."""
    scores: list[NDArray[np.float64]] = [np.zeros(0)]
    hits: list[NDArray[np.bool_]] = [np.zeros((0, len(overlaps)), bool)]
    for image_scores, with_true in ranked:
        scores.append(image_scores)
        hits.append(np.stack([_hits(with_true, overlap) for overlap in overlaps], axis=1))
    return Hits(np.concatenate(scores), np.concatenate(hits), sum(one.shape[1] for _, one in ranked))


def _hits(with_true: NDArray[np.float64], overlap: float) -> NDArray[np.bool_]:
    """IoU (K, G) of an image's boxes, best first, with the true ones -> (K,), whether a box takes one."""
    free = np.ones(with_true.shape[1], bool)
    hit = np.zeros(len(with_true), bool)
    for row, values in enumerate(with_true):
        candidates = np.where(free, values, -1.0)
        best = int(candidates.argmax()) if len(candidates) else -1
        # COCO's own tolerance: an overlap of exactly the threshold is a match
        if best >= 0 and candidates[best] >= overlap - 1e-10:
            free[best], hit[row] = False, True
    return hit


def _areas(hits: NDArray[np.bool_], times: NDArray[np.float64], true: NDArray[np.float64]) -> NDArray[np.float64]:
    """Boxes in order of score: hits (K, overlaps), how often each is there (draws, K), true boxes (draws,).

    Precision counts at hits alone, as it falls between them. (overlaps, draws)
    """
    seen = np.maximum(times.cumsum(axis=1), 1)
    areas = np.zeros((hits.shape[1], len(times)))
    for row, at in enumerate(map(np.flatnonzero, hits.T)):
        right = times[:, at].cumsum(axis=1)
        envelope = np.maximum.accumulate((right / seen[:, at])[:, ::-1], axis=1)[:, ::-1]
        recall = right / np.maximum(true, 1)[:, None]
        # at each hit the recall levels that it is the first to reach; those beyond the last have precision 0
        reached = np.searchsorted(RECALLS, recall.ravel(), side="right").reshape(recall.shape)
        areas[row] = (np.diff(reached, axis=1, prepend=0) * envelope).sum(axis=1) / len(RECALLS)
    return np.where(true > 0, areas, np.nan)

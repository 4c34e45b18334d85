"""Boxes: from distributions to pixels, overlaps, non-maximum suppression, and the boxes of a mask.

All boxes are (x0, y0, x1, y1) in continuous pixels; see `steadysam.detection`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steadysam.detection.yolo import Predictions

EPS = 1e-7


@dataclass(frozen=True, eq=False)
class Detections:
    """The K boxes found in one image, best first; on the CPU.

    Args:
        boxes: (K, 4) float32 xyxy pixels.
        scores: (K,) float32 in [0, 1].
        classes: (K,) int64.
    """

    boxes: Tensor
    scores: Tensor
    classes: Tensor


def expected_edges(edges: Tensor) -> Tensor:
    """Mean distance under each edge's distribution, in strides: (..., 16) logits -> (...); Li et al. 2020 (GFL)."""
    bins = torch.arange(edges.shape[-1], device=edges.device, dtype=torch.float32)
    return (edges.float().softmax(dim=-1) * bins).sum(dim=-1)


def decode_boxes(predictions: Predictions) -> Tensor:
    """The boxes of all locations: (B, A, 4) float32 xyxy pixels, not cut at the image's border."""
    distances = expected_edges(predictions.edges) * predictions.strides[:, None]
    left_top, right_bottom = distances.split(2, dim=-1)
    return torch.cat([predictions.centres - left_top, predictions.centres + right_bottom], dim=-1)


def _area(low: Tensor, high: Tensor) -> Tensor:
    width, height = (high - low).clamp_min(0).unbind(dim=-1)
    return width * height


def _overlap(a: Tensor, b: Tensor) -> Tensor:
    """IoU of boxes whose leading dimensions broadcast; 0 where both are empty."""
    common = _area(torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:]))
    either = _area(a[..., :2], a[..., 2:]) + _area(b[..., :2], b[..., 2:]) - common
    return common / either.clamp_min(EPS)


def _distance(a: Tensor, b: Tensor) -> Tensor:
    """Squared distance of the centres over the squared diagonal of the enclosing box."""
    low, high = torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:])
    apart = (a[..., :2] + a[..., 2:] - b[..., :2] - b[..., 2:]).square().sum(dim=-1) / 4
    return apart / (high - low).square().sum(dim=-1).clamp_min(EPS)


def iou_matrix(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of every pair: (..., N, 4) and (..., M, 4) -> (..., N, M)."""
    return _overlap(a.float()[..., :, None, :], b.float()[..., None, :, :])


def diou_matrix(a: Tensor, b: Tensor) -> Tensor:
    """DIoU of every pair, in (-1, 1]: (..., N, 4) and (..., M, 4) -> (..., N, M); Zheng et al., AAAI 2020."""
    a, b = a.float()[..., :, None, :], b.float()[..., None, :, :]
    return _overlap(a, b) - _distance(a, b)


def complete_iou(a: Tensor, b: Tensor) -> Tensor:
    """CIoU elementwise: (..., 4) and (..., 4), which may broadcast -> (...); Zheng et al., AAAI 2020.

    IoU - distance - alpha v, with v the squared difference of the aspect angles times 4 / pi^2 and
    alpha = v / (1 - IoU + v), which carries no gradient.
    """
    a, b = a.float(), b.float()
    overlap = _overlap(a, b)
    angle_a, angle_b = (_aspect_angle(box) for box in (a, b))
    aspect = (4 / math.pi**2) * (angle_a - angle_b).square()
    with torch.no_grad():
        alpha = aspect / (1 - overlap + aspect).clamp_min(EPS)
    return overlap - _distance(a, b) - alpha * aspect


def _aspect_angle(boxes: Tensor) -> Tensor:
    width, height = (boxes[..., 2:] - boxes[..., :2]).clamp_min(0).unbind(dim=-1)
    return torch.atan(width / (height + EPS))


def non_maximum_suppression(
    boxes: Tensor, scores: Tensor, overlap: float, *, classes: Tensor | None = None, most: int | None = None
) -> Tensor:
    """Greedy suppression: the best box stays, all others with an IoU above `overlap` go, and so on.

    Args:
        boxes: (K, 4) xyxy.
        scores: (K,); of equal scores the earlier box goes first.
        classes: (K,); with it, only boxes of the same class suppress each other.
        most: stop after so many boxes.

    Returns:
        The kept indices, best first, (k,) int64 on the CPU.
    """
    boxes, scores = boxes.detach().float().cpu(), scores.detach().float().cpu()
    left = torch.sort(scores, descending=True, stable=True).indices
    kinds = None if classes is None else classes.cpu()
    kept: list[int] = []
    while len(left) > 0 and (most is None or len(kept) < most):
        best = int(left[0])
        kept.append(best)
        left = left[1:]
        gone = _overlap(boxes[best], boxes[left]) > overlap
        if kinds is not None:
            gone &= kinds[left] == kinds[best]
        left = left[~gone]
    return torch.tensor(kept, dtype=torch.int64)


@torch.no_grad()
def detect(
    predictions: Predictions, *, confidence: float = 0.25, overlap: float = 0.7, most: int = 300
) -> list[Detections]:
    """The boxes of each image: one class per location, threshold, suppression per class, cut at the border.

    Args:
        confidence: lowest score that is kept, exclusive.
        overlap: IoU above which the weaker of two boxes goes.
        most: boxes per image.
    """
    boxes, (scores, classes) = decode_boxes(predictions), predictions.scores.float().sigmoid().max(dim=-1)
    size = (predictions.centres + predictions.strides[:, None] / 2).amax(dim=0).repeat(2)
    boxes = torch.minimum(boxes.clamp_min(0), size)
    found = []
    for row in range(len(boxes)):
        chosen = scores[row] > confidence
        b, s, c = boxes[row][chosen].cpu(), scores[row][chosen].cpu(), classes[row][chosen].cpu()
        kept = non_maximum_suppression(b, s, overlap, classes=c, most=most)
        found.append(Detections(b[kept], s[kept], c[kept]))
    return found


def boxes_of_mask(mask: NDArray[np.bool_], min_area: float) -> NDArray[np.float32]:
    """One box per 8-connected component, in reading order of their upper left corners (row first, then column).

    Args:
        mask: (H, W).
        min_area: pixels; smaller components give no box.

    Returns:
        (K, 4) xyxy, K may be 0; columns c0..c1 give x0 = c0 and x1 = c1 + 1.
    """
    from scipy import ndimage

    labels, count = ndimage.label(np.asarray(mask, bool), np.ones((3, 3), int))  # pyright: ignore
    areas = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    boxes = [
        (columns.start, rows.start, columns.stop, rows.stop)
        for (rows, columns), area in zip(ndimage.find_objects(labels), areas, strict=True)
        if area >= min_area
    ]
    boxes.sort(key=lambda box: (box[1], box[0]))
    return np.array(boxes, np.float32).reshape(-1, 4)

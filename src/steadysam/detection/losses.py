"""The detector's loss: 7.5 CIoU + 0.5 BCE + 1.5 DFL over task-aligned targets (`ldfsam.md 3.4`); all in float32."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from steadysam.detection.assign import Assignment, Truth, task_aligned_assign
from steadysam.detection.boxes import complete_iou, decode_boxes
from steadysam.detection.yolo import Predictions


def detection_losses(
    predictions: Predictions,
    truth: Truth,
    *,
    box: float = 7.5,
    cls: float = 0.5,
    dfl: float = 1.5,
    top_k: int = 10,
    alpha: float = 0.5,
    beta: float = 6.0,
) -> tuple[dict[str, Tensor], Assignment]:
    """The weighted terms `box`, `cls` and `dfl`, scalars to be summed, and the assignment they came from.

    Each is a sum over the batch's locations divided by Sigma, the sum of the target scores (at least 1), so it does
    not grow with the batch; `box` and `dfl` weigh a location by its target score. A batch without objects has `box`
    and `dfl` 0.

    Args:
        truth: per image boxes (K, 4) xyxy pixels and classes (K,).
        box, cls, dfl: the gains.
        top_k, alpha, beta: of `task_aligned_assign`.

    Raises:
        ValueError: `truth` is not of as many images as `predictions`.
    """
    assignment = task_aligned_assign(predictions, truth, top_k=top_k, alpha=alpha, beta=beta)
    sigma, here = assignment.normaliser, assignment.foreground
    weight = assignment.scores.sum(dim=-1)[here]
    overlap = complete_iou(decode_boxes(predictions)[here], assignment.boxes[here])
    distances = edge_distances(predictions, assignment.boxes)[here]
    terms = {
        "box": box * ((1 - overlap) * weight).sum() / sigma,
        "cls": cls * _class_loss(predictions.scores, assignment.scores) / sigma,
        "dfl": dfl * (distribution_focal_loss(predictions.edges[here], distances).mean(dim=-1) * weight).sum() / sigma,
    }
    return terms, assignment


def edge_distances(predictions: Predictions, boxes: Tensor) -> Tensor:
    """Distances, in strides, from each location's centre to the four edges of its box: (B, A, 4) -> (B, A, 4)."""
    left_top, right_bottom = predictions.centres - boxes[..., :2], boxes[..., 2:] - predictions.centres
    return torch.cat([left_top, right_bottom], dim=-1) / predictions.strides[:, None]


def distribution_focal_loss(edges: Tensor, distances: Tensor) -> Tensor:
    """Cross-entropy with the two bins around the true distance, each weighted by the nearness to it.

    (..., 16) logits and (...) distances in strides -> (...). Distances are cut to the bins' range [0, 15].
    Li et al., Generalized Focal Loss, NeurIPS 2020.
    """
    last = edges.shape[-1] - 1
    distances = distances.float().clamp(0, last)
    lower = distances.floor().clamp_max(last - 1)  # so that a bin above exists
    upper_share = distances - lower
    logs = edges.float().log_softmax(dim=-1)
    at_lower, at_upper = (logs.gather(-1, (lower + step).long()[..., None])[..., 0] for step in (0, 1))
    return -(1 - upper_share) * at_lower - upper_share * at_upper


def _class_loss(logits: Tensor, target: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits.float(), target, reduction="sum")

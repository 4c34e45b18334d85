"""Localization distillation: the student's box edges, and its classes, learn from a larger detector (`ldfsam.md 3.4`).

Teacher and student see the same images on the same grid, so location k of one is location k of the other. The teacher
carries no gradient; all is computed in float32. Terms are sums over locations divided by Sigma, the assignment's
normaliser, and come without gains.

Source: Zheng et al., Localization Distillation for Dense Object Detection, CVPR 2022. The KL divergence of an edge is
summed over its bins here, 16 times the mean over bins that the authors' code takes.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from steadysam.detection.assign import Assignment, Truth
from steadysam.detection.boxes import diou_matrix, iou_matrix
from steadysam.detection.yolo import Predictions

Region = Literal["diou", "all_neg"]

PRIOR_SIDE = 8  # strides; the side of the square that stands for a location
NEAREST = 9  # priors per level among which a truth's threshold is found (ATSS, Zhang et al., CVPR 2020)


def edge_kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(teacher || student) of softened distributions, summed over bins: logits (..., bins) -> (...).

    No factor temperature^2; no gradient to the teacher.
    """
    log_student = (student.float() / temperature).log_softmax(dim=-1)
    log_teacher = (teacher.detach().float() / temperature).log_softmax(dim=-1)
    return (log_teacher.exp() * (log_teacher - log_student)).sum(dim=-1)


@torch.no_grad()
def valuable_region(centres: Tensor, strides: Tensor, boxes: Tensor, gamma: float = 0.25) -> tuple[Tensor, Tensor]:
    """The valuable localization region of one image: locations near a truth, though not good enough to stand for it.

    A location stands for a square prior of 8 strides around its centre. Per truth, alpha is the mean plus the
    (unbiased) standard deviation of its IoU with the 9 nearest priors of each level; a location belongs to the region
    where gamma * alpha <= DIoU < alpha for any truth. Positives of the assigner are not removed here.

    Args:
        centres, strides: (A, 2) xy pixels and (A,) pixels.
        boxes: (K, 4) xyxy pixels, K may be 0.
        gamma: 1 gives an empty region, smaller values larger ones.

    Returns:
        (A,) bool, and (A,) float32: each prior's IoU with its best truth.
    """
    if len(boxes) == 0:
        return torch.zeros_like(strides, dtype=torch.bool), torch.zeros_like(strides, dtype=torch.float32)
    centres, strides, boxes = centres.float(), strides.float(), boxes.to(centres.device).float()
    half = strides[:, None] * (PRIOR_SIDE / 2)
    priors = torch.cat([centres - half, centres + half], dim=-1)
    overlaps = iou_matrix(priors, boxes)
    alpha = _thresholds(centres, strides, boxes, overlaps)
    near = diou_matrix(priors, boxes)
    region = ((near >= gamma * alpha) & (near < alpha)).any(dim=1)
    return region, overlaps.amax(dim=1)


def _thresholds(centres: Tensor, strides: Tensor, boxes: Tensor, overlaps: Tensor) -> Tensor:
    """Alpha of each truth, (K,), from (A, K) IoUs."""
    middles = (boxes[:, :2] + boxes[:, 2:]) / 2
    distances = (centres[:, None] - middles).square().sum(dim=-1)
    candidates = []
    for stride in strides.unique():
        level = strides == stride
        nearest = distances[level].sort(dim=0, stable=True).indices[:NEAREST]  # of equals, the first in reading order
        candidates.append(overlaps[level].gather(0, nearest))
    values = torch.cat(candidates)
    return values.mean(dim=0) + values.std(dim=0)


def localization_distillation(
    student: Predictions,
    teacher: Predictions,
    assignment: Assignment,
    truth: Truth,
    *,
    temperature: float = 10.0,
    gamma: float = 0.25,
    region: Region = "diou",
) -> dict[str, Tensor]:
    """The terms `main` and `vlr`: weighted means of l_k = temperature^2 / 4 * sum of the four edges' KL.

    `main`: over the assignment's foreground, weighted by the target scores. `vlr`: over the valuable region without
    the foreground, weighted by the prior's IoU with its best truth ("diou"), or over all other locations of images
    with a truth, weighted by the student's own best class probability ("all_neg"). An image without a
    truth adds nothing to either; both are then zero, with a zero gradient.

    Args:
        student, teacher: predictions for the same batch; only the student gets a gradient.
        assignment: of the student.
        truth: per image boxes (K, 4) and classes (K,).
        temperature: tau of ldfsam.md 3.4.
        gamma: see `valuable_region`; "all_neg" does not use it.

    Raises:
        ValueError: teacher and student differ in their grids, or `truth` is not of as many images.
    """
    _check(student.edges, teacher.edges)
    if len(truth) != len(student.edges):
        raise ValueError(f"truth of {len(truth)} images but predictions of {len(student.edges)}")
    if region == "all_neg":
        places, weights = _negatives(student, assignment, truth)
    else:
        places, weights = _near(student, assignment, truth, gamma)
    chosen = {
        "main": (assignment.foreground, assignment.scores.sum(dim=-1)),
        "vlr": (places, weights),
    }
    return {
        name: (weight[here] * _location_loss(student.edges[here], teacher.edges[here], temperature)).sum()
        / assignment.normaliser
        for name, (here, weight) in chosen.items()
    }


def _location_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """(N, 4, bins) logits -> (N,)."""
    return temperature**2 * edge_kl(student, teacher, temperature).mean(dim=-1)


def _near(student: Predictions, assignment: Assignment, truth: Truth, gamma: float) -> tuple[Tensor, Tensor]:
    found = [valuable_region(student.centres, student.strides, boxes, gamma) for boxes, _ in truth]
    places, weights = (torch.stack(parts) for parts in zip(*found, strict=True))
    return places & ~assignment.foreground, weights


def _negatives(student: Predictions, assignment: Assignment, truth: Truth) -> tuple[Tensor, Tensor]:
    filled = torch.tensor([len(boxes) > 0 for boxes, _ in truth], device=student.scores.device)
    best = student.scores.detach().float().sigmoid().amax(dim=-1)
    return ~assignment.foreground & filled[:, None], best


def classification_distillation(
    student: Predictions, teacher: Predictions, assignment: Assignment, *, temperature: float = 2.0
) -> Tensor:
    """Binary KL of each class's softened sigmoid, times temperature^2, summed over the foreground, over Sigma.

    A softmax over a single class is constant and would distil nothing; a sigmoid per class is what the detector's
    scores mean, whatever their number. Zero, with a zero gradient, where there is no foreground.

    Raises:
        ValueError: teacher and student differ in their grids or classes.
    """
    _check(student.scores, teacher.scores)
    here = assignment.foreground
    z_student = student.scores[here].float() / temperature
    z_teacher = teacher.scores[here].detach().float() / temperature
    yes, no = z_teacher.sigmoid(), (-z_teacher).sigmoid()
    divergence = yes * (F.logsigmoid(z_teacher) - F.logsigmoid(z_student))
    divergence = divergence + no * (F.logsigmoid(-z_teacher) - F.logsigmoid(-z_student))
    return temperature**2 * divergence.sum() / assignment.normaliser


@torch.no_grad()
def edge_divergence(student: Predictions, teacher: Predictions, assignment: Assignment) -> Tensor:
    """Mean KL(teacher || student) per edge over the foreground, at temperature 1: how far the student still is.

    NaN without a foreground, where there is no mean; leave such batches out.

    Raises:
        ValueError: teacher and student differ in their grids.
    """
    _check(student.edges, teacher.edges)
    here = assignment.foreground
    return edge_kl(student.edges[here], teacher.edges[here]).mean()


def _check(student: Tensor, teacher: Tensor) -> None:
    if student.shape != teacher.shape:
        raise ValueError(f"predictions of a student {tuple(student.shape)} and of a teacher {tuple(teacher.shape)}")

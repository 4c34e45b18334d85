"""Which locations answer for which true box: task-aligned assignment (Feng et al., TOOD, ICCV 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from steadysam.detection.boxes import complete_iou, decode_boxes
from steadysam.detection.yolo import Predictions

# per image: boxes (K, 4) xyxy pixels and classes (K,) int64; K may be 0
Truth = Sequence[tuple[Tensor, Tensor]]

TINY = 1e-30


@dataclass(frozen=True, eq=False)
class Assignment:
    """What each of the A locations of B images shall say; no part of it carries a gradient.

    Args:
        foreground: (B, A) bool, the locations with a true box.
        boxes: (B, A, 4) float32, that box; zeros elsewhere.
        scores: (B, A, classes) float32 target scores in [0, 1]; zero elsewhere and for other classes.
        normaliser: max(sum of `scores`, 1), a scalar; Sigma of `ldfsam.md 3.4`.
    """

    foreground: Tensor
    boxes: Tensor
    scores: Tensor
    normaliser: Tensor


@torch.no_grad()
def task_aligned_assign(
    predictions: Predictions, truth: Truth, *, top_k: int = 10, alpha: float = 0.5, beta: float = 6.0
) -> Assignment:
    """For each true box, the locations inside it that already score and overlap best.

    Alignment is t = score^alpha * overlap^beta, with the score of the box's class and the overlap CIoU cut at 0, as
    YOLOv8 has it. Each box takes the `top_k` locations of highest t whose centre lies inside it. A location that
    several boxes take goes to the one it overlaps most. A target score is t divided by the box's greatest t, times
    the box's greatest overlap. Of equals, the lower location and the earlier box win. A box without a centre inside
    (narrower than the finest stride) gets no location.

    Raises:
        ValueError: `truth` is not of as many images as `predictions`.
    """
    if len(truth) != len(predictions.scores):
        raise ValueError(f"truth of {len(truth)} images but predictions of {len(predictions.scores)}")
    probabilities, decoded = predictions.scores.float().sigmoid(), decode_boxes(predictions)
    foreground = torch.zeros(decoded.shape[:2], dtype=torch.bool, device=decoded.device)
    boxes, scores = torch.zeros_like(decoded), torch.zeros_like(probabilities)
    for row, (true, classes) in enumerate(truth):
        true, classes = true.to(decoded).reshape(-1, 4), classes.to(decoded.device).reshape(-1)
        inside = _inside(predictions.centres, true)
        places = inside.any(dim=0).nonzero()[:, 0]  # all else is background: no need to look at it
        if len(places) == 0:
            continue
        overlap = complete_iou(decoded[row, places], true[:, None]).clamp_min(0)
        alignment = probabilities[row, places][:, classes].T.pow(alpha) * overlap.pow(beta)
        taken, owner, target = _match(inside[:, places], overlap, alignment, top_k)
        places, owner = places[taken], owner[taken]
        foreground[row, places] = True
        boxes[row, places] = true[owner]
        scores[row, places, classes[owner]] = target[taken]
    return Assignment(foreground, boxes, scores, scores.sum().clamp_min(1))


def _inside(centres: Tensor, boxes: Tensor) -> Tensor:
    """(K, A): whether a centre lies strictly inside a box."""
    low, high = centres - boxes[:, None, :2], boxes[:, None, 2:] - centres
    return torch.minimum(low, high).amin(dim=-1) > 0


def _match(inside: Tensor, overlap: Tensor, alignment: Tensor, top_k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of A places: whether one is taken, by which box, and its target score; arguments are (K, A)."""
    order = alignment.masked_fill(~inside, -1).sort(dim=1, descending=True, stable=True).indices[:, :top_k]
    selected = torch.zeros_like(inside).scatter_(1, order, True) & inside
    owner = overlap.masked_fill(~selected, -1).argmax(dim=0)
    mine = selected & (owner == torch.arange(len(inside), device=inside.device)[:, None])
    alignment, overlap = alignment * mine, overlap * mine
    share = alignment / alignment.amax(dim=1, keepdim=True).clamp_min(TINY)
    target = (share * overlap.amax(dim=1, keepdim=True)).amax(dim=0)
    return selected.any(dim=0), owner, target

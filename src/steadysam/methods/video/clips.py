"""Tuning material: clips of consecutive slices with their masks and prompts; and the losses of SAM 2's training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from steadysam.augment import IDENTITY, AugmentConfig, draw, move_images, move_points
from steadysam.losses import dice_loss, focal_loss
from steadysam.methods.contract import Batch, Chance, TrainingCase
from steadysam.methods.samples import list_slices
from steadysam.methods.video.lanes import Plan
from steadysam.methods.video.propagation import Answer, unroll
from steadysam.types import SlicePoints

FOCAL, DICE, IOU, OBJECT = 20.0, 1.0, 1.0, 1.0  # weights of the terms in SAM 2's training


class Clips:
    """One clip around every slice: up to `length` consecutive slices of its case, all moved together.

    Args:
        redraw: draw the points anew at each visit where the case can (simulated prompts).
    """

    def __init__(
        self, cases: Sequence[TrainingCase], augment: AugmentConfig, *, length: int, redraw: bool = False
    ) -> None:
        self.cases, self.augment, self.length, self.redraw = cases, augment, length, redraw
        self.slices = list_slices(cases)

    def __len__(self) -> int:
        return len(self.slices)

    def window(self, index: int) -> tuple[TrainingCase, range]:
        """The case of sample `index` and the slices of its clip, with its own slice in the middle where that fits."""
        c, t = self.slices[index]
        case = self.cases[c]
        length = min(self.length, case.stack.depth)
        start = min(max(t - length // 2, 0), case.stack.depth - length)
        return case, range(start, start + length)

    def batch(self, indices: Sequence[int], chance: Chance) -> Batch:
        """`images` (B, T, C, S, S) in [0, 1], `masks` (B, T, S, S), `frames` (B,); B * T point sets, clip by clip.

        Clips shorter than the longest of the batch end with black frames, which `frames` leaves out.
        """
        clips = [self._clip(index, chance) for index in indices]
        most = max(len(images) for images, _, _ in clips)
        points: list[SlicePoints] = []
        for images, _, own in clips:
            points += [*own, *[SlicePoints.empty()] * (most - len(images))]
        tensors = {
            "images": torch.stack([_padded(images, most) for images, _, _ in clips]),
            "masks": torch.stack([_padded(masks, most) for _, masks, _ in clips]),
            "frames": torch.tensor([len(images) for images, _, _ in clips]),
        }
        return Batch(tensors, tuple(points))

    def _clip(self, index: int, chance: Chance) -> tuple[Tensor, Tensor, list[SlicePoints]]:
        case, window = self.window(index)
        own = self.slices[index][1]
        moved = draw(self.augment, chance.generator(case.name, own)) if chance.training else IDENTITY
        given = case.points
        if self.redraw and chance.training and case.redraw is not None:
            given = case.redraw(chance.generator(case.name, own, "redraw"))
        images = torch.from_numpy(np.array(case.stack.images[window.start : window.stop]))
        masks = torch.from_numpy(case.masks[window.start : window.stop].astype(np.float32))
        moves = [moved] * len(window)
        points = [move_points(given[t], moved, case.stack.preprocess.size) for t in window]
        return move_images(images, moves), move_images(masks[:, None], moves, nearest=True)[:, 0], points


def clip_terms(video: Any, images: Tensor, masks: Tensor, plan: Plan) -> dict[str, Tensor]:
    """The terms of one clip, each () and a mean over its frames: focal, dice, iou and object.

    Of three masks the one with the smallest focal and Dice loss is taught, and the predicted IoU of all; on frames
    without the object only the object score is (Ravi et al., arXiv 2408.00714, appendix D). The focal loss is the
    house's, without class balance. A clip in which nothing is asked teaches nothing.

    Args:
        images, masks: (T, C, S, S) in [0, 1] and (T, S, S) in {0, 1}, without padding.
    """
    answers = unroll(video, images, plan) if plan.key is not None else {}
    if not answers:
        nothing = 0 * video.mask_decoder.iou_token.weight.sum()  # stays in the graph: a batch may hold no other clip
        return dict.fromkeys(("focal", "dice", "iou", "object"), nothing)
    rows = [_mask_terms(answer, masks[t]) for t, answer in answers.items() if masks[t].any()]
    there = torch.stack([masks[t].any().float() for t in answers])
    scores = torch.stack([answer.score for answer in answers.values()]).float()
    nothing = 0 * scores.sum()
    focal, dice, iou = (torch.stack(terms).mean() for terms in zip(*rows, strict=True)) if rows else [nothing] * 3
    found = F.binary_cross_entropy_with_logits(scores, there)
    return {"focal": FOCAL * focal, "dice": DICE * dice, "iou": IOU * iou, "object": OBJECT * found}


def _mask_terms(answer: Answer, truth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Focal and Dice loss of the best mask, and the mean error of the predicted IoU of all."""
    logits = F.interpolate(answer.logits[None].float(), truth.shape, mode="bilinear", align_corners=False)[0]
    target = truth.expand_as(logits)
    focal, dice = focal_loss(logits, target), dice_loss(logits.sigmoid(), target)
    best = (FOCAL * focal + DICE * dice).detach().argmin()
    shown = logits.detach() > 0
    both, either = (shown & (target > 0)).flatten(1).sum(1), (shown | (target > 0)).flatten(1).sum(1)
    return focal[best], dice[best], (answer.iou.float() - both / either).abs().mean()


def _padded(frames: Tensor, length: int) -> Tensor:
    return torch.cat([frames, frames.new_zeros(length - len(frames), *frames.shape[1:])])

"""A promptable model by itself: points, boxes and masks in, several masks with their predicted IoU out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from steadysam.backbones.backbone import Backbone
from steadysam.methods.slicewise import ask
from steadysam.prompts.clicks import interior_click, keep_clicked, next_click, tight_box
from steadysam.types import Frame, SlicePoints


def to_slice(logits: Tensor, frame: Frame) -> Tensor:
    """(B, M, m, m) logits -> (B, M, H, W) on the slice's own pixels, bilinear with half-pixel centres."""
    fitted_h, fitted_w = frame.fitted_hw
    full = F.interpolate(logits, (frame.size, frame.size), mode="bilinear", align_corners=False)
    cut = full[..., :fitted_h, :fitted_w]
    return F.interpolate(cut, (frame.height, frame.width), mode="bilinear", align_corners=False)


@dataclass(frozen=True, eq=False)
class Rounds:
    """Dice of B slices, (B,) each: after one and after three clicks, with a box, and what IoU was predicted for one."""

    one: NDArray[np.float64]
    three: NDArray[np.float64]
    box: NDArray[np.float64]
    predicted_iou: NDArray[np.float64]
    oracle: NDArray[np.float64]


@torch.no_grad()
def simulate_user(
    backbone: Backbone,
    embeddings: Tensor,
    truths: Sequence[NDArray[np.bool_]],
    frame: Frame,
    generator: np.random.Generator,
    connected: bool = True,
) -> Rounds:
    """Ask for each of B objects with an interior click, correct twice, and ask again with the tight box.

    Args:
        embeddings: (B, C, h, h), one per object.
        truths: B masks (H, W) in slice pixels, none empty.
        frame: slice pixels <-> model pixels.
        connected: keep only the parts of an answer that hold a positive click.
    """
    xy = [[interior_click(truth, generator)] for truth in truths]
    sign = [[True] for _ in truths]
    first = ask(backbone, embeddings, _rows(xy, sign, frame))
    shown = (to_slice(first.logits, frame) > 0).numpy()
    if connected:
        shown = np.stack(
            [[_clicked(m, at, yes) for m in masks] for masks, at, yes in zip(shown, xy, sign, strict=True)]
        )
    best = np.array([max(dice(mask, truth) for mask in masks) for masks, truth in zip(shown, truths, strict=True)])
    answers, current = first, shown[:, 0]
    one = _dices(current, truths)
    for _ in range(2):
        for row, truth in enumerate(truths):
            place, positive = next_click(truth, current[row])
            xy[row].append(place)
            sign[row].append(positive)
        answers = ask(backbone, embeddings, _rows(xy, sign, frame), answers.logits[:, :1])
        current = (to_slice(answers.logits[:, :1], frame) > 0)[:, 0].numpy()
        if connected:
            current = np.stack([_clicked(m, at, yes) for m, at, yes in zip(current, xy, sign, strict=True)])
    three = _dices(current, truths)
    boxes = [replace(SlicePoints.empty(), box=frame.to_model(tight_box(t).reshape(2, 2)).reshape(4)) for t in truths]
    boxed = to_slice(ask(backbone, embeddings, boxes).logits[:, :1], frame) > 0
    return Rounds(one, three, _dices(boxed[:, 0].numpy(), truths), first.iou[:, 0].numpy().astype(float), best)


def dice(mask: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """2 |A and B| / (|A| + |B|); 1 if both are empty."""
    total = int(mask.sum()) + int(truth.sum())
    return 2 * int((mask & truth).sum()) / total if total else 1.0


def _clicked(mask: NDArray[np.bool_], xy: Sequence[tuple[int, int]], sign: Sequence[bool]) -> NDArray[np.bool_]:
    return keep_clicked(mask, np.array(xy, np.float32), np.array(sign))


def _dices(masks: NDArray[np.bool_], truths: Sequence[NDArray[np.bool_]]) -> NDArray[np.float64]:
    return np.array([dice(mask, truth) for mask, truth in zip(masks, truths, strict=True)])


def _rows(xy: Sequence[Sequence[tuple[int, int]]], sign: Sequence[Sequence[bool]], frame: Frame) -> list[SlicePoints]:
    return [
        SlicePoints(
            frame.to_model(np.array(places, float)), np.array(signs), tuple(f"p{i}" for i in range(len(places)))
        )
        for places, signs in zip(xy, sign, strict=True)
    ]

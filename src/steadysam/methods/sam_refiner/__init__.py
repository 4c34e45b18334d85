"""SAMRefiner: a coarse mask refined without training, by prompts mined from it (Lin et al., ICLR 2025).

A frozen promptable model is asked with the deepest point of the mask and the farthest point of its box outside it, with
a box that grows where the image beyond it looks like the object, and with a bell-shaped mask; of three answers the one
with the highest predicted IoU is mined again, five times in all, on one embedding. Written from the paper's
description; SAMRefiner++, which trains the IoU head, is left out.

Where we had to choose: the embedding of our own backbone takes the place of SAM's in the comparison of features; an
object that fills its box gets no negative point; strips are at least one pixel wide; no box grows with `lambda_ = 0`,
which is how the released code switches this step off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from steadysam.backbones.backbone import Backbone
from steadysam.embeddings import EmbeddingCache
from steadysam.errors import InputError
from steadysam.methods.contract import FrozenConfig, Stage, Traits
from steadysam.methods.sam_refiner.mining import (
    bounding_box,
    elastic_box,
    likeness,
    mask_prompt,
    negative_point,
    positive_point,
)
from steadysam.methods.slicewise import BackboneOnly, ask, encode_stack, encoder_key, only_slices, to_model
from steadysam.types import Segmentation, SlicePoints, SliceStack

__all__ = ["TRAITS", "Config", "build", "segment", "stages"]

TRAITS = Traits(points=False, coarse=True, untrained=True)


class Config(FrozenConfig):
    """Which prompts are mined, and how.

    Args:
        iterations: how often the mask is mined and asked for again.
        empty: what an empty mask becomes, at the start or on the way: `pass_empty` leaves it empty; `as_is` asks with
            the point (0, 0) and the box (0, 0, 0, 0), as the released code does, whatever comes of it.
        points, box, mask: which prompts are used.
        cebox: let the box grow; `lambda_` is the share of a strip that must look like the object (0: off, the released
            default), `cosine` what counts as alike.
        gamma, strength: of the mask prompt; where the box grew its strength is 1.
    """

    iterations: int = Field(default=5, ge=1)
    empty: Literal["pass_empty", "as_is"] = "pass_empty"
    points: bool = True
    box: bool = True
    mask: bool = True
    cebox: bool = True
    lambda_: float = Field(default=0.1, ge=0, le=1)
    cosine: float = Field(default=0.5, ge=-1, le=1)
    gamma: float = Field(default=4.0, gt=0)
    strength: float = Field(default=30.0, gt=0)

    @model_validator(mode="after")
    def _some_prompt(self) -> Self:
        if not (self.points or self.box or self.mask):
            raise ValueError("one of points, box and mask must be used")
        return self


@dataclass(frozen=True, eq=False)
class Mined:
    """The prompts of one slice: points and box, the mask's logits (S, S) or None, and whether the box grew."""

    points: SlicePoints
    mask: NDArray[np.float32] | None
    grown: bool = False


def build(config: Config, backbone: Backbone) -> BackboneOnly:
    """The backbone as it came."""
    return BackboneOnly(backbone)


def stages(config: Config) -> tuple[Stage, ...]:
    """Nothing is trained."""
    return ()


@torch.no_grad()
def segment(
    model: nn.Module, config: Config, stack: SliceStack, points: Sequence[SlicePoints], cache: EmbeddingCache
) -> Segmentation:
    """Refine `stack.coarse`. `notes` has the predicted IoU of every refined slice, and where boxes grew.

    Raises:
        InputError: `COARSE_MISSING`.
    """
    if stack.coarse is None:
        raise InputError("COARSE_MISSING", "there is no mask to refine", fix="pass --coarse")
    backbone = cast(BackboneOnly, model).sam
    probability = np.zeros(stack.coarse.shape, np.float32)
    empty = [t for t, mask in enumerate(stack.coarse) if not mask.any()]
    asked = [t for t in range(stack.depth) if config.empty == "as_is" or t not in empty]
    scores, grown = np.zeros(0, np.float32), np.zeros(0, int)
    if asked:
        embeddings = encode_stack(backbone, only_slices(stack, asked), cache, encoder_key(backbone))
        probability[asked], scores, grown = refine(backbone, embeddings, stack.coarse[asked], config)
    notes: dict[str, Any] = {
        "iterations": config.iterations,
        "empty_policy": config.empty,
        "empty_coarse_slices": empty,
        "predicted_iou": {str(t): round(float(score), 4) for t, score in zip(asked, scores, strict=True)},
        "grown_boxes": {str(t): int(count) for t, count in zip(asked, grown, strict=True) if count},
    }
    return Segmentation(probability, notes=notes)


def refine(
    backbone: Backbone, embeddings: Tensor, coarse: NDArray[np.bool_], config: Config
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
    """(B, C, h, h) and (B, S, S) -> probabilities, predicted IoU (B,) and in how many rounds the box grew (B,)."""
    masks = coarse.copy()
    probability = np.zeros(coarse.shape, np.float32)
    scores, grown = np.zeros(len(coarse), np.float32), np.zeros(len(coarse), int)
    features = embeddings.float().cpu().numpy()
    for _ in range(config.iterations):
        rows = [b for b, mask in enumerate(masks) if config.empty == "as_is" or mask.any()]
        if not rows:
            break
        mined = [mine(masks[b], features[b], config) for b in rows]
        prior = [prior_logits(m.mask, backbone.mask_size) for m in mined]
        # three masks for every row, the best first
        answers = ask(backbone, embeddings[rows], [m.points for m in mined], prior, choice="best")
        probability[rows] = to_model(answers.logits[:, 0], backbone.image_size).sigmoid().numpy()
        masks[rows] = probability[rows] > 0.5
        scores[rows] = answers.iou[:, 0].numpy()
        grown[rows] += [m.grown for m in mined]
    return probability, scores, grown


def mine(mask: NDArray[np.bool_], features: NDArray[np.float32], config: Config) -> Mined:
    """The prompts of one (S, S) mask with the embedding (C, h, h) of its slice."""
    if not mask.any():
        return junk(mask, config)
    box, grew = bounding_box(mask), False
    if config.box and config.cebox and config.lambda_ > 0:
        box, sides = elastic_box(box, likeness(features, mask), len(mask), config.cosine, config.lambda_)
        grew = any(sides)
    away = negative_point(mask)
    xy = [positive_point(mask)] + ([away] if away is not None else [])
    found = SlicePoints(np.array(xy, np.float32), np.arange(len(xy)) == 0, ("inside", "outside")[: len(xy)])
    strength = 1.0 if grew else config.strength
    return _chosen(found, box, mask_prompt(mask, config.gamma, strength) if config.mask else None, grew, config)


def junk(mask: NDArray[np.bool_], config: Config) -> Mined:
    """What the released code asks with for an empty mask."""
    corner = SlicePoints(np.zeros((1, 2), np.float32), np.ones(1, bool), ("inside",))
    prior = mask_prompt(mask, config.gamma, config.strength) if config.mask else None
    return _chosen(corner, (0, 0, 0, 0), prior, False, config)


def prior_logits(mask: NDArray[np.float32] | None, size: int) -> Tensor | None:
    """(S, S) logits -> (1, m, m) for the model's mask input, bilinear with half-pixel centres."""
    if mask is None:
        return None
    whole = torch.from_numpy(mask)[None, None]
    return F.interpolate(whole, (size, size), mode="bilinear", align_corners=False)[0]


def _chosen(
    points: SlicePoints, box: Sequence[int], mask: NDArray[np.float32] | None, grew: bool, config: Config
) -> Mined:
    """The prompts that are switched on."""
    given = points if config.points else SlicePoints.empty()
    return Mined(replace(given, box=np.array(box, np.float32) if config.box else None), mask, grew)

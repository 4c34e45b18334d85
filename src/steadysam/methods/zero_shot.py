"""A promptable model as it is, without training: every prompt is obeyed, slices without prompts stay empty."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

import numpy as np
import torch
from torch import nn

from steadysam.backbones.backbone import Backbone
from steadysam.embeddings import EmbeddingCache
from steadysam.methods.contract import FrozenConfig, Stage, Traits
from steadysam.methods.slicewise import BackboneOnly, accept_all, ask, encode_stack, encoder_key, only_slices, to_model
from steadysam.prompts.clicks import keep_clicked
from steadysam.types import Segmentation, SlicePoints, SliceStack

TRAITS = Traits(boxes=True, untrained=True)


class Config(FrozenConfig):
    """Which of the model's masks is taken.

    `auto` is SAM's advice: of three masks the one with the highest predicted IoU where a slice has a single click, the
    one mask for clear prompts elsewhere; `single` and `best` take the one or the best of three everywhere. Parts of a
    mask that hold no positive click are dropped unless `islands` is set.
    """

    masks: Literal["auto", "single", "best"] = "auto"
    islands: bool = False


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
    """Encode, and decode the slices that have prompts. `notes` has the predicted IoU of each of them."""
    backbone = cast(BackboneOnly, model).sam
    probability = np.zeros((stack.depth, stack.preprocess.size, stack.preprocess.size), np.float32)
    asked = [t for t, here in enumerate(points) if len(here) or here.box is not None]
    scores: list[float] = []
    if asked:
        embeddings = encode_stack(backbone, only_slices(stack, asked), cache, encoder_key(backbone))
        answers = ask(backbone, embeddings, [points[t] for t in asked], choice=config.masks)
        probability[asked] = to_model(answers.logits[:, 0], backbone.image_size).sigmoid().numpy()
        if not config.islands:
            for t in asked:
                inside = probability[t] > 0.5
                probability[t][inside & ~keep_clicked(inside, points[t].xy, points[t].positive)] = 0.0
        scores = [round(float(score), 4) for score in answers.iou[:, 0]]
    decisions = accept_all(points)
    notes = {"predicted_iou": dict(zip(map(str, asked), scores, strict=True)), "masks": config.masks}
    return Segmentation(probability, None, tuple(points), decisions, notes)

"""Medical SAM Adapter: bottleneck adapters in the frozen image encoder, and the whole mask decoder.

After Wu et al. (arXiv 2304.12620), written from its description; the 2-D form, on all noisy points. The adapter after
attention acts on what attention gives, before it is added to the block's input. A backbone without attention, our own,
has a 1x1 bottleneck after every residual block instead (`steadysam.backbones.adapters`). The paper's hyper-prompting
adapter is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from steadysam.augment import AugmentConfig
from steadysam.backbones.adapters import Order, inject_adapters
from steadysam.backbones.backbone import Backbone
from steadysam.embeddings import EmbeddingCache
from steadysam.losses import cross_entropy, dice_loss
from steadysam.methods.contract import Batch, FrozenConfig, Stage, StageSettings
from steadysam.methods.samples import AugmentedSlices
from steadysam.methods.slicewise import (
    BackboneOnly,
    accept_all,
    decode_rows,
    decode_stack,
    encode_stack,
    encoder_key,
    mean_terms,
)
from steadysam.types import Segmentation, SlicePoints, SliceStack


class Tuning(StageSettings):
    """The authors' rate: Adam without weight decay."""

    weight_decay: float = Field(default=0.0, ge=0)


class Config(FrozenConfig):
    """Where windows are cut (`order`, see `AdaptedLayer`), how adapters start, and the loss.

    `bce` weighs the pixels of the object by `positive_weight`, as the authors do in 2-D; `dice_ce` is the sum of Dice
    and plain cross-entropy, theirs in 3-D. The authors' adapters start at random; with `zero_init` the untrained
    network is the backbone.
    """

    FIXED: ClassVar[frozenset[str]] = frozenset(("order", "zero_init", "loss", "positive_weight", "redraw"))

    order: Order = "sam"
    zero_init: bool = False
    loss: Literal["bce", "dice_ce"] = "bce"
    positive_weight: float = Field(default=2.0, gt=0)
    redraw: bool = False
    augment: AugmentConfig = AugmentConfig()
    tuning: Tuning = Tuning()


def build(config: Config, backbone: Backbone) -> BackboneOnly:
    """The backbone with fresh adapters."""
    model = BackboneOnly(backbone)
    inject_adapters(model.backbone, order=config.order, zero_init=config.zero_init)
    return model


def stages(config: Config) -> tuple[Stage, ...]:
    """One stage: adapters and mask decoder."""
    return (
        Stage(
            name="tuning",
            trainable=("backbone.mask_decoder.*", "backbone.image_encoder.*adapter.*"),
            samples=lambda model, cases, cache: AugmentedSlices(
                cases, config.augment, prompted=True, redraw=config.redraw
            ),
            losses=lambda model, batch: tuning_losses(cast(BackboneOnly, model), batch, config),
            settings=config.tuning,
        ),
    )


def tuning_losses(model: BackboneOnly, batch: Batch, config: Config) -> dict[str, Tensor]:
    """Weighted cross-entropy, or Dice and cross-entropy, on the decoder's mask at the image size."""
    embeddings = model.sam.encode(batch.tensors["images"])
    logits, masks = decode_rows(model.sam, embeddings, batch.points), batch.tensors["masks"]
    if config.loss == "bce":
        return mean_terms({"bce": cross_entropy(logits, masks, config.positive_weight)})
    dice = dice_loss(torch.sigmoid(logits.float()), masks)
    return mean_terms({"dice": dice, "bce": cross_entropy(logits, masks)})


def segment(
    model: nn.Module, config: Config, stack: SliceStack, points: Sequence[SlicePoints], cache: EmbeddingCache
) -> Segmentation:
    """Encode and decode with the prompts as they came."""
    sam = cast(BackboneOnly, model).sam
    embeddings = encode_stack(sam, stack, cache, encoder_key(sam))
    probability = decode_stack(sam, embeddings, points)
    notes = {"decoder_points": sum(map(len, points))}
    return Segmentation(probability, None, tuple(points), accept_all(points), notes)

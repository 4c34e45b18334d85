"""LoRA-SAM without prompts: low-rank adapters on queries and values, the mask decoder and a learnt default prompt.

After SAMed (Zhang and Liu, arXiv 2304.13785), written from its description, for one object. Every slice is decoded,
always without points: with SAM's not-a-point token and, in place of a drawn prompt, its no-mask embedding, which is
trained. Our own convolutional backbone has no queries; LoRA wraps its `lora_targets` there, and the default prompt is
added to its embedding, which is where SAM's decoder adds it too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from steadysam.augment import AugmentConfig
from steadysam.backbones.backbone import Backbone
from steadysam.backbones.lora import AdaptableBackbone, draw_seed, inject_lora, inject_query_value_lora
from steadysam.backbones.sam import SamBackbone
from steadysam.embeddings import EmbeddingCache
from steadysam.losses import cross_entropy, dice_loss
from steadysam.methods.contract import Batch, FrozenConfig, Stage, StageSettings, Traits
from steadysam.methods.samples import AugmentedSlices
from steadysam.methods.slicewise import decode_rows, decode_stack, encode_stack, encoder_key, mean_terms
from steadysam.types import Segmentation, SlicePoints, SliceStack

TRAITS = Traits(points=False)


class Tuning(StageSettings):
    """The authors' rate: AdamW at 5e-3 after a warm-up of 250 steps."""

    optimizer: Literal["adam", "adamw", "sgd"] = "adamw"
    learning_rate: float = Field(default=5e-3, gt=0)
    weight_decay: float = Field(default=0.1, ge=0)
    warmup_steps: int = Field(default=250, ge=0)


class Config(FrozenConfig):
    """The rank of the adapters, which are not scaled, and the weights of the two losses."""

    FIXED: ClassVar[frozenset[str]] = frozenset(("rank", "dice_weight", "bce_weight"))

    rank: int = Field(default=4, ge=1)
    dice_weight: float = Field(default=0.8, ge=0)
    bce_weight: float = Field(default=0.2, ge=0)
    augment: AugmentConfig = AugmentConfig()
    tuning: Tuning = Tuning()


class DefaultPrompt(nn.Module):
    """What is learnt on top of the backbone's own no-mask embedding: (B, C, h, h) embeddings -> the same, shifted.

    SAM's decoder adds the dense prompt to the embedding, so that this is the same as training the no-mask embedding.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(channels))

    def forward(self, embeddings: Tensor) -> Tensor:
        return embeddings + self.shift[:, None, None]


class LoraSam(nn.Module):
    """A backbone with LoRA, and the default prompt."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = cast(nn.Module, backbone)
        self.default_prompt = DefaultPrompt(backbone.embedding_channels)

    @property
    def sam(self) -> Backbone:
        """The backbone under its contract."""
        return cast(Backbone, self.backbone)


def build(config: Config, backbone: Backbone) -> LoraSam:
    """The backbone with fresh LoRA and a default prompt that starts as the backbone's own; it computes the same."""
    if isinstance(backbone, SamBackbone):
        inject_query_value_lora(backbone, config.rank)
    else:
        adaptable = cast(AdaptableBackbone, backbone)
        inject_lora(adaptable, config.rank, alpha=config.rank, dropout=0.0, seed=draw_seed())
    return LoraSam(backbone)


def stages(config: Config) -> tuple[Stage, ...]:
    """One stage."""
    return (
        Stage(
            name="tuning",
            trainable=("backbone.mask_decoder.*", "backbone.image_encoder.*lora_*", "default_prompt.*"),
            samples=lambda model, cases, cache: AugmentedSlices(cases, config.augment, prompted=False),
            losses=lambda model, batch: tuning_losses(cast(LoraSam, model), batch, config),
            settings=config.tuning,
        ),
    )


def tuning_losses(model: LoraSam, batch: Batch, config: Config) -> dict[str, Tensor]:
    """0.8 Dice + 0.2 cross-entropy on the decoder's mask at the image size."""
    embeddings = model.default_prompt(model.sam.encode(batch.tensors["images"]))
    logits, masks = decode_rows(model.sam, embeddings, _nothing(len(embeddings))), batch.tensors["masks"]
    dice = dice_loss(torch.sigmoid(logits.float()), masks)
    bce = cross_entropy(logits, masks)
    return mean_terms({"dice": config.dice_weight * dice, "bce": config.bce_weight * bce})


@torch.no_grad()
def segment(
    model: nn.Module, config: Config, stack: SliceStack, points: Sequence[SlicePoints], cache: EmbeddingCache
) -> Segmentation:
    """Encode and decode every slice without prompts; `points` are not looked at."""
    lora_sam = cast(LoraSam, model)
    embeddings = encode_stack(lora_sam.sam, stack, cache, encoder_key(lora_sam.sam))
    shifted = embeddings.float() + lora_sam.default_prompt.shift.cpu()[:, None, None]
    return Segmentation(decode_stack(lora_sam.sam, shifted, _nothing(stack.depth)))


def _nothing(rows: int) -> list[SlicePoints]:
    return [SlicePoints.empty()] * rows

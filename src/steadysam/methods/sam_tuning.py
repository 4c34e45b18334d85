"""SAM-Tuning: SPD's network and budget with the filter removed.

LoRA in the encoder and the mask decoder are trained jointly on the raw noisy points; the prompt encoder is frozen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

from torch import Tensor, nn

from steadysam.augment import AugmentConfig
from steadysam.backbones.backbone import Backbone
from steadysam.backbones.lora import AdaptableBackbone, draw_seed, inject_lora
from steadysam.embeddings import EmbeddingCache
from steadysam.losses import segmentation_terms
from steadysam.methods.contract import Batch, FrozenConfig, LoraConfig, Stage, StageSettings
from steadysam.methods.samples import AugmentedSlices
from steadysam.methods.slicewise import decode_rows, decode_stack, encode_stack, encoder_key, mean_terms
from steadysam.types import Decision, Segmentation, SlicePoints, SliceStack


class Config(FrozenConfig):
    """How the encoder is adapted, and whether prompts are drawn anew at each visit."""

    adapt: Literal["lora", "full"] = "lora"
    lora: LoraConfig = LoraConfig()
    redraw: bool = False
    dice_weight: float = 0.7
    focal_weight: float = 0.3
    augment: AugmentConfig = AugmentConfig()
    tuning: StageSettings = StageSettings()


class SamTuning(nn.Module):
    """A backbone, nothing else."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = cast(nn.Module, backbone)

    @property
    def sam(self) -> Backbone:
        """The backbone under its contract."""
        return cast(Backbone, self.backbone)


def build(config: Config, backbone: Backbone) -> SamTuning:
    """The backbone, with LoRA where the encoder is adapted by it."""
    if config.adapt == "lora":
        lora = config.lora
        sam = cast(AdaptableBackbone, backbone)
        inject_lora(sam, lora.rank, lora.alpha, lora.dropout, lora.targets, seed=draw_seed())
    return SamTuning(backbone)


def stages(config: Config) -> tuple[Stage, ...]:
    """One stage."""
    encoder = "backbone.image_encoder.*lora_*" if config.adapt == "lora" else "backbone.image_encoder.*"
    return (
        Stage(
            name="tuning",
            trainable=("backbone.mask_decoder.*", encoder),
            samples=lambda model, cases, cache: AugmentedSlices(
                cases, config.augment, prompted=True, redraw=config.redraw
            ),
            losses=lambda model, batch: tuning_losses(cast(SamTuning, model), batch, config),
            settings=config.tuning,
        ),
    )


def tuning_losses(model: SamTuning, batch: Batch, config: Config) -> dict[str, Tensor]:
    """0.7 Dice + 0.3 focal on the decoder's mask."""
    embeddings = model.sam.encode(batch.tensors["images"])
    logits = decode_rows(model.sam, embeddings, batch.points)
    terms = segmentation_terms(logits, batch.tensors["masks"], dice=config.dice_weight, focal=config.focal_weight)
    return mean_terms(terms)


def segment(
    model: nn.Module, config: Config, stack: SliceStack, points: Sequence[SlicePoints], cache: EmbeddingCache
) -> Segmentation:
    """Encode and decode with the prompts as they came."""
    sam = cast(SamTuning, model).sam
    embeddings = encode_stack(sam, stack, cache, encoder_key(sam))
    probability = decode_stack(sam, embeddings, points)
    decisions = tuple(
        Decision(name, t, t, "accepted", "not checked: this method obeys every prompt", xy=(float(x), float(y)))
        for t, here in enumerate(points)
        for name, (x, y) in zip(here.ids, here.xy, strict=True)
    )
    return Segmentation(probability, None, tuple(points), decisions, {"decoder_points": sum(map(len, points))})

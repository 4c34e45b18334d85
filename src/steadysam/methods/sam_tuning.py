"""SAM-Tuning: SPD's network and budget with the filter removed.

LoRA in the encoder and the mask decoder are trained jointly on the raw noisy points; the prompt encoder is frozen.
Two controls: the decoder alone is trained (`train = "decoder"`), and every slice is given its neighbours' points too,
unfiltered (`prompts = "neighbours"`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, cast

from pydantic import Field
from torch import Tensor, nn

from steadysam.augment import AugmentConfig
from steadysam.backbones.backbone import Backbone
from steadysam.backbones.lora import AdaptableBackbone, draw_seed, inject_lora
from steadysam.embeddings import EmbeddingCache
from steadysam.losses import segmentation_terms
from steadysam.methods.contract import Batch, FrozenConfig, LoraConfig, Stage, StageSettings, TrainingCase
from steadysam.methods.neighbours import gather_neighbours, with_neighbours
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


class Config(FrozenConfig):
    """How the encoder is adapted, and whether prompts are drawn anew at each visit.

    With `train = "decoder"` the encoder stays as it came, whatever `adapt` says. With `prompts = "neighbours"` a slice
    has the points of n slices on each side besides its own, in training and at test.
    """

    FIXED: ClassVar[frozenset[str]] = frozenset(("adapt", "train", "redraw", "dice_weight", "focal_weight"))

    adapt: Literal["lora", "full"] = "lora"
    lora: LoraConfig = LoraConfig()
    train: Literal["joint", "decoder"] = "joint"
    prompts: Literal["raw", "neighbours"] = "raw"
    n: int = Field(default=2, ge=0)
    redraw: bool = False
    dice_weight: float = 0.7
    focal_weight: float = 0.3
    augment: AugmentConfig = AugmentConfig()
    tuning: StageSettings = StageSettings()


def build(config: Config, backbone: Backbone) -> BackboneOnly:
    """The backbone, with LoRA where the encoder is adapted by it."""
    if config.train == "joint" and config.adapt == "lora":
        lora = config.lora
        sam = cast(AdaptableBackbone, backbone)
        inject_lora(sam, lora.rank, lora.alpha, lora.dropout, lora.targets, seed=draw_seed())
    return BackboneOnly(backbone)


def stages(config: Config) -> tuple[Stage, ...]:
    """One stage."""
    encoder = "backbone.image_encoder.*lora_*" if config.adapt == "lora" else "backbone.image_encoder.*"
    return (
        Stage(
            name="tuning",
            trainable=("backbone.mask_decoder.*", encoder) if config.train == "joint" else ("backbone.mask_decoder.*",),
            samples=lambda model, cases, cache: AugmentedSlices(
                prompted_cases(cases, config), config.augment, prompted=True, redraw=config.redraw
            ),
            losses=lambda model, batch: tuning_losses(cast(BackboneOnly, model), batch, config),
            settings=config.tuning,
        ),
    )


def prompted_cases(cases: Sequence[TrainingCase], config: Config) -> Sequence[TrainingCase]:
    """The cases with the points that the decoder is to be given."""
    return cases if config.prompts == "raw" else [with_neighbours(case, config.n) for case in cases]


def tuning_losses(model: BackboneOnly, batch: Batch, config: Config) -> dict[str, Tensor]:
    """0.7 Dice + 0.3 focal on the decoder's mask."""
    embeddings = model.sam.encode(batch.tensors["images"])
    logits = decode_rows(model.sam, embeddings, batch.points)
    terms = segmentation_terms(logits, batch.tensors["masks"], dice=config.dice_weight, focal=config.focal_weight)
    return mean_terms(terms)


def segment(
    model: nn.Module, config: Config, stack: SliceStack, points: Sequence[SlicePoints], cache: EmbeddingCache
) -> Segmentation:
    """Encode and decode with the prompts as they came, or with the neighbours' too."""
    sam = cast(BackboneOnly, model).sam
    embeddings = encode_stack(sam, stack, cache, encoder_key(sam))
    given = tuple(points) if config.prompts == "raw" else gather_neighbours(points, config.n)
    probability = decode_stack(sam, embeddings, given)
    return Segmentation(probability, None, given, accept_all(points), {"decoder_points": sum(map(len, given))})

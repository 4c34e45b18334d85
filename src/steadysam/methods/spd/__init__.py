"""SPD: saliency-guided prompt distillation (Kang et al., arXiv 2604.23314).

Stage 1 (`saliency`) trains LoRA on the encoder and a saliency head. Contextual prompt distillation (`distill`) then
checks every prompt against the saliency of its own and the neighbouring slices. Stage 2 (`decoder`) trains the mask
decoder alone on the consensus, with pairwise slice consistency. `prompts = both` adds a detector's features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

from torch import nn

from steadysam.backbones.backbone import Backbone
from steadysam.backbones.rows import FeaturePrompts
from steadysam.detection.yolo import Detector
from steadysam.embeddings import EmbeddingCache
from steadysam.methods.adaptation import adapt_encoder, encoder_parameters
from steadysam.methods.contract import Stage
from steadysam.methods.detecting import detector_images, detector_stages
from steadysam.methods.feature_prompting import make_prompter
from steadysam.methods.samples import AugmentedSlices
from steadysam.methods.slicewise import decode_stack, encode_stack, encoder_key
from steadysam.methods.spd.config import Config
from steadysam.methods.spd.saliency import SaliencyHead, Spd, saliency_maps
from steadysam.methods.spd.stages import (
    ConsistencySamples,
    choose_points,
    decoder_losses,
    saliency_losses,
)
from steadysam.types import Segmentation, SlicePoints, SliceStack

__all__ = ["Config", "build", "segment", "stages"]


def build(config: Config, backbone: Backbone) -> Spd:
    """SPD on `backbone`; with `adapt = lora` the encoder gets adapters that start as the identity."""
    adapt_encoder(backbone, config.adapt, config.lora)
    head = SaliencyHead(
        backbone.embedding_channels,
        backbone.embedding_size,
        backbone.image_size,
        config.saliency_bias,
        config.saliency_temperature,
    )
    features = config.feature_prompts
    if features is None:
        return Spd(backbone, head)
    teacher = Detector(features.detector.teacher) if features.detector.teacher else None
    detector = Detector(features.detector.size)
    prompter = make_prompter(
        detector, backbone, channels=features.channels, tokens=features.tokens, alpha=features.alpha
    )
    return Spd(backbone, head, detector, teacher, prompter)


def stages(config: Config) -> tuple[Stage, ...]:
    """Stage 1 trains {encoder LoRA, saliency head}; stage 2 trains {mask decoder} with all else frozen.

    Where features prompt, the detector's stages come between them, and stage 2 trains the prompter, too.
    """
    features = config.feature_prompts
    return (
        Stage(
            name="saliency",
            trainable=("saliency_head.*", encoder_parameters(config.adapt)),
            samples=lambda model, cases, cache: AugmentedSlices(cases, config.augment, prompted=False),
            losses=lambda model, batch: saliency_losses(cast(Spd, model), batch, config),
            settings=config.stage1,
        ),
        *(() if features is None else detector_stages(features.detector)),
        Stage(
            name="decoder",
            trainable=("backbone.mask_decoder.*", *(() if features is None else ("prompter.*",))),
            samples=lambda model, cases, cache: ConsistencySamples(cast(Spd, model), cases, cache, config),
            losses=lambda model, batch: decoder_losses(cast(Spd, model), batch, config),
            settings=config.stage2,
        ),
    )


def segment(
    model: nn.Module, config: Config, stack: SliceStack, points: Sequence[SlicePoints], cache: EmbeddingCache
) -> Segmentation:
    """Encode, saliency, distil, decode; see `Segmentation`. Points are in model pixels, one entry per slice."""
    spd = cast(Spd, model)
    embeddings = encode_stack(spd.sam, stack, cache, encoder_key(spd.sam))
    saliency = saliency_maps(spd.saliency_head, embeddings).numpy()
    if config.output == "saliency":
        return Segmentation(saliency, saliency, notes={"output": "saliency"})
    chosen = choose_points(points, saliency, config)
    probability = decode_stack(spd.sam, embeddings, chosen.points, _features(spd, config, stack))
    if config.empty == "empty_mask":
        probability[list(chosen.empty_slices)] = 0.0
    notes = {
        "prompts": config.prompts,
        "raw_points": sum(map(len, points)),
        "decoder_points": sum(map(len, chosen.points)),
        "empty_consensus_slices": list(chosen.empty_slices),
        "empty_policy": config.empty,
    }
    return Segmentation(probability, saliency, chosen.points, chosen.decisions, notes)


def _features(model: Spd, config: Config, stack: SliceStack) -> Callable[[slice], FeaturePrompts | None] | None:
    """The feature prompts of any slices of the stack."""
    if config.feature_prompts is None:
        return None
    device = next(model.parameters()).device
    return lambda rows: model.prompts(detector_images(stack, rows, config.detail_size).to(device))

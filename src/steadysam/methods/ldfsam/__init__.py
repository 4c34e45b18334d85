"""LDFSAM: a detector, refined by localization distillation, prompts SAM with features (Zhao et al., J. Imaging 2026).

No clicks, no boxes: the detector's P3 to P5 become one map that is added to SAM's embedding and one token for its
decoder. Stages `teacher` and `student` train the detector, stage `masks` everything between its features and the mask.
Written from ldfsam.md; there is no released code.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from steadysam.backbones.backbone import Backbone
from steadysam.embeddings import EmbeddingCache
from steadysam.methods.adaptation import adapt_encoder, encoder_parameters
from steadysam.methods.contract import Stage, Traits
from steadysam.methods.detecting import box_rows, detect_stack, detector_images, detector_stages
from steadysam.methods.ldfsam.config import Config
from steadysam.methods.ldfsam.masks import MaskSamples, boxed, mask_losses
from steadysam.methods.ldfsam.model import LdfSam
from steadysam.methods.slicewise import best_mask, encode_stack, encoder_key, to_model
from steadysam.types import Segmentation, SlicePoints, SliceStack

__all__ = ["TRAITS", "Config", "build", "segment", "stages"]

TRAITS = Traits(points=False)
_ROWS = 8  # slices per forward pass; fixed, so that results do not depend on what else runs


def build(config: Config, backbone: Backbone) -> LdfSam:
    """The backbone, and a fresh detector, teacher and prompter as the configuration asks for them."""
    adapt_encoder(backbone, config.adapt, config.lora)
    return LdfSam(config, backbone)


def stages(config: Config) -> tuple[Stage, ...]:
    """Detector first, if it is one that is trained: the teacher, then the student; then the masks."""
    wanted = {"student": ("teacher", "student"), "teacher": ("teacher",)}.get(config.generator, ())
    detector = [] if config.mode == "none" else detector_stages(config.detector)
    return (*(stage for stage in detector if stage.name in wanted), _mask_stage(config))


def _mask_stage(config: Config) -> Stage:
    source = "teacher" if config.generator == "teacher" else "detector"
    trained = [encoder_parameters(config.adapt), "backbone.mask_decoder.*", "backbone.prompt_encoder.*"]
    if config.feature_mode:
        trained.append("prompter.*")
    if config.tuned:
        trained += [f"{source}.backbone.*", f"{source}.neck.*"]
    return Stage(
        name="masks",
        trainable=tuple(trained),
        samples=lambda model, cases, cache: MaskSamples(cases, config),
        losses=lambda model, batch: mask_losses(cast(LdfSam, model), batch, config),
        settings=config.masks,
        rate_factors={f"{source}.*": config.detector_rate} if config.tuned else {},
        fixed_statistics=(f"{source}.*",),  # those of detection, also while it is tuned
    )


@torch.no_grad()
def segment(
    model: nn.Module, config: Config, stack: SliceStack, points: Sequence[SlicePoints], cache: EmbeddingCache
) -> Segmentation:
    """Encode, prompt with features, decode; `points` are not looked at."""
    ldfsam = cast(LdfSam, model)
    embeddings = encode_stack(ldfsam.sam, stack, cache, encoder_key(ldfsam.sam))
    if config.mode == "box":
        return _from_boxes(ldfsam, config, stack, embeddings)
    device = next(ldfsam.parameters()).device
    found = []
    for start in range(0, stack.depth, _ROWS):
        rows = embeddings[start : start + _ROWS].to(device).float()
        detail = rows
        if config.feature_mode:
            detail = detector_images(stack, slice(start, start + _ROWS), config.detector.image_size).to(device)
        logits, _ = ldfsam.decode(rows, ldfsam.prompts(detail), config.multimask)
        found.append(to_model(logits, stack.preprocess.size).sigmoid().cpu())
    notes: dict[str, object] = {"mode": config.mode, "generator": config.generator}
    if ldfsam.prompter is not None:
        notes["alpha"] = round(float(ldfsam.prompter.alpha), 4)
    return Segmentation(torch.cat(found).numpy(), notes=notes)


def _from_boxes(model: LdfSam, config: Config, stack: SliceStack, embeddings: Tensor) -> Segmentation:
    """The union of the masks of all boxes found; a slice without one stays empty."""
    found = detect_stack(model.source, stack, config.detector)
    places = [(t, box) for t, here in enumerate(found) for box in here.boxes]
    probability = np.zeros((stack.depth, stack.preprocess.size, stack.preprocess.size), np.float32)
    device = next(model.parameters()).device
    for start in range(0, len(places), _ROWS):
        part = places[start : start + _ROWS]
        rows = embeddings[[t for t, _ in part]].to(device).float()
        prompts = [boxed(box) for _, box in part]
        logits, _ = best_mask(*model.sam.decode_full(rows, prompts, multimask=config.multimask))
        for (t, _), mask in zip(part, to_model(logits, stack.preprocess.size).sigmoid().cpu().numpy(), strict=True):
            np.maximum(probability[t], mask, out=probability[t])
    notes = {"mode": config.mode, "generator": config.generator, "boxes": box_rows(found)}
    return Segmentation(probability, notes=notes)

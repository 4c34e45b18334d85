"""The whole recipe of a method on SAM 2; `sam2` and `medsam2` differ in their defaults."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, ClassVar, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from steadysam.augment import AugmentConfig
from steadysam.backbones.video.table import VIDEO_MODELS
from steadysam.embeddings import EmbeddingCache
from steadysam.methods.contract import Batch, FrozenConfig, Stage, StageSettings, Traits
from steadysam.methods.slicewise import to_model
from steadysam.methods.video.clips import Clips, clip_terms
from steadysam.methods.video.lanes import Lane, decide, largest_component, make_plan
from steadysam.methods.video.propagation import propagate
from steadysam.types import Segmentation, SlicePoints, SliceStack

logger = logging.getLogger(__name__)

TRAITS = Traits(boxes=True, backbone=False, untrained=True)
NATIVE_SIZE = 1024  # SAM 2's image, in whose pixels the margin of boxes is given


class VideoConfig(FrozenConfig):
    """Which weights, and how slices are prompted.

    Tuning prompts clips as segmenting prompts volumes. In the lane `all` the memory therefore learns from slices
    without prompts alone, and the masks for a single click from slices with one point: tune in the lane `key` to train
    the memory.

    Args:
        weights: a row of the video models in `steadysam models list`, a folder with `config.json` and
            `model.safetensors`, or that file. The default has random weights: name others.
        size: pixels of the network's image, a multiple of 32, to which the run's own are resized; 0 takes what the
            weights were made for (1024, MedSAM2 512).
        lane: `all` prompts every slice that has prompts, `key` the slice with most positive points, `box` the same
            slice with the box of these points; what is not prompted is propagated to.
        margin_px: smallest side of a box of points, in pixels of a 1024 px image.
        keep_largest: only the largest connected part of the volume is kept.
        conditioning: so many prompted slices, the nearest, are remembered at most; 0 means all, which is SAM 2's own
            setting and slow where every slice is prompted.
        clip: slices per training sample.
        train_encoder: tune the image encoder, too.
        redraw: draw simulated points anew at each visit.
    """

    FIXED: ClassVar[frozenset[str]] = frozenset(("train_encoder", "redraw"))

    weights: str = "sam2-test"
    size: int = Field(default=0, ge=0)
    lane: Lane = "all"
    margin_px: float = Field(default=20.0, ge=0)
    keep_largest: bool = False
    conditioning: int = Field(default=8, ge=0)
    clip: int = Field(default=8, ge=1)
    train_encoder: bool = False
    redraw: bool = False
    augment: AugmentConfig = AugmentConfig()
    tuning: StageSettings = StageSettings()


class VideoSam(nn.Module):
    """A `transformers.Sam2VideoModel`, nothing else."""

    def __init__(self, video: Any) -> None:
        super().__init__()
        self.video = video


def build(config: VideoConfig, backbone: None) -> VideoSam:
    """The network with the weights that the settings name.

    Raises:
        ConfigError: `BACKBONE_UNKNOWN`, `BACKBONE_SIZE`. CheckpointError: `CKPT_*`.
    """
    if config.weights in VIDEO_MODELS and VIDEO_MODELS[config.weights].from_scratch:
        logger.warning("%s has random weights; set method.weights to use others", config.weights)
    return _network(config, weights=True)


def blank(config: VideoConfig) -> VideoSam:
    """The same network without its weights, for a run that brings its own."""
    return _network(config, weights=False)


def stages(config: VideoConfig) -> tuple[Stage, ...]:
    """One stage: mask decoder and memory, and the image encoder if asked for."""
    parts = ("mask_decoder", "memory_attention", "memory_encoder", *(["vision_encoder"] * config.train_encoder))
    return (
        Stage(
            name="tuning",
            trainable=tuple(f"video.{part}.*" for part in parts),
            samples=lambda model, cases, cache: Clips(cases, config.augment, length=config.clip, redraw=config.redraw),
            losses=lambda model, batch: tuning_losses(cast(VideoSam, model), batch, config),
            settings=config.tuning,
        ),
    )


def tuning_losses(model: VideoSam, batch: Batch, config: VideoConfig) -> dict[str, Tensor]:
    """20 focal + Dice + IoU + object, means over clips."""
    images, masks, frames = (batch.tensors[name] for name in ("images", "masks", "frames"))
    most, size = images.shape[1], images.shape[-1]
    rows = []
    for row, count in enumerate(frames.tolist()):
        points = batch.points[row * most : row * most + count]
        plan = make_plan(points, config.lane, size, config.margin_px * size / NATIVE_SIZE)
        rows.append(clip_terms(model.video, images[row, :count], masks[row, :count], plan))
    return {name: torch.stack([row[name] for row in rows]).mean() for name in rows[0]}


@torch.no_grad()
def segment(
    model: nn.Module, config: VideoConfig, stack: SliceStack, points: Sequence[SlicePoints], cache: EmbeddingCache
) -> Segmentation:
    """Propagate through the stack. `notes` has the lane, the key slice and the object score of every slice.

    A slice whose object score is not positive is empty: the model says that the object is absent. The cache is not
    used, as a slice's answer depends on the slices before it.
    """
    size = stack.preprocess.size
    plan = make_plan(points, config.lane, size, config.margin_px * size / NATIVE_SIZE)
    logits, scores = propagate(cast(VideoSam, model).video, torch.from_numpy(stack.images), plan)
    probability = to_model(logits, size).sigmoid().numpy()
    if config.keep_largest:
        probability = largest_component(probability)
    given = [plan.prompts.get(t, SlicePoints.empty()) for t in range(stack.depth)]
    notes = {
        "weights": config.weights,
        "lane": config.lane,
        "key_slice": None if config.lane == "all" else plan.key,
        "prompted_slices": sorted(plan.prompts),
        "unused_box_slices": [t for t, here in enumerate(points) if here.box is not None and t not in plan.prompts],
        "object_scores": {str(t): round(float(score), 4) for t, score in enumerate(scores) if not score.isnan()},
        "absent_slices": [t for t, score in enumerate(scores) if score <= 0],
        "keep_largest": config.keep_largest,
    }
    return Segmentation(probability, None, tuple(given), decide(points, config.lane, plan.key), notes)


def _network(config: VideoConfig, *, weights: bool) -> VideoSam:
    from steadysam.backbones.video.build import video_model

    video = video_model(config.weights, config.size, weights=weights)
    video.config.max_cond_frame_num = config.conditioning or -1
    return VideoSam(video)

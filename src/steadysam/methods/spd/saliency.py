"""The saliency head of stage 1 (spd.md 3.2): a light convolutional decoder on the encoder's embedding."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from steadysam.backbones.backbone import Backbone
from steadysam.backbones.rows import FeaturePrompts
from steadysam.detection.feature_prompts import FeaturePrompter
from steadysam.detection.yolo import Detector


class SaliencyHead(nn.Module):
    """(B, C, h, h) embedding -> (B, 1, S, S) logits, S = h * 2^steps.

    Conv 3x3 to 128 channels (C where that is less), then per step: bilinear x2, conv 3x3 that halves the channels
    (not below 16), GroupNorm(8), GELU; last a 1x1 convolution. About 0.39 M parameters at C = 256, h = 32, S = 512.

    Args:
        channels: C.
        embedding_size: h.
        image_size: S.
        bias_init: bias of the last layer (0; `logit(0.15) = -1.735` is the ablation).
        temperature: the logits are divided by it.
    """

    def __init__(
        self,
        channels: int,
        embedding_size: int,
        image_size: int,
        bias_init: float = 0.0,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        steps = round(math.log2(image_size / embedding_size))
        if embedding_size * 2**steps != image_size:
            raise ValueError(
                f"image size {image_size} must be embedding size {embedding_size} times a power of two; "
                "choose another patch size or image size"
            )
        widths = [max(16, min(128, channels) >> step) for step in range(steps + 1)]
        self.stem = nn.Sequential(nn.Conv2d(channels, widths[0], 3, padding=1), nn.GroupNorm(8, widths[0]), nn.GELU())
        self.steps = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.GroupNorm(8, b), nn.GELU())
            for a, b in zip(widths[:-1], widths[1:], strict=True)
        )
        self.last = nn.Conv2d(widths[-1], 1, 1)
        self.temperature = temperature
        nn.init.constant_(self.last.bias, bias_init)  # pyright: ignore[reportArgumentType]

    def forward(self, embeddings: Tensor) -> Tensor:
        """(B, C, h, h) -> (B, 1, S, S) logits."""
        x = self.stem(embeddings)
        for step in self.steps:
            x = step(F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False))
        return self.last(x) / self.temperature


class Spd(nn.Module):
    """The parts, handed over: a backbone (with LoRA in its encoder, or not), a saliency head, and what prompts with
    features: a detector with its teacher and the prompter, or None.
    """

    def __init__(
        self,
        backbone: Backbone,
        saliency_head: SaliencyHead,
        detector: Detector | None = None,
        teacher: Detector | None = None,
        prompter: FeaturePrompter | None = None,
    ) -> None:
        super().__init__()
        self.backbone = cast(nn.Module, backbone)
        self.saliency_head = saliency_head
        self.detector, self.teacher, self.prompter = detector, teacher, prompter

    def release(self) -> None:
        """Drop the teacher, once it has taught."""
        self.teacher = None

    def prompts(self, detail: Tensor) -> FeaturePrompts | None:
        """(B, 3, F, F) images in [0, 1] -> feature prompts; None for a model without a detector."""
        if self.detector is None or self.prompter is None:
            return None
        with torch.no_grad():
            features = self.detector.features(detail)  # trained before, and not by this stage
        return self.prompter(features)

    @property
    def sam(self) -> Backbone:
        """The backbone under its contract."""
        return cast(Backbone, self.backbone)


@torch.no_grad()
def saliency_maps(head: SaliencyHead, embeddings: Tensor, rows: int = 8) -> Tensor:
    """(D, C, h, h) float16 embeddings -> (D, S, S) float32 saliency in [0, 1], computed `rows` slices at a time."""
    device = next(head.parameters()).device
    maps = [torch.sigmoid(head(part.to(device).float()))[:, 0].float().cpu() for part in embeddings.split(rows)]
    return torch.cat(maps)

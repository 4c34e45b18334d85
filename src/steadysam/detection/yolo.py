"""YOLOv8 with one distribution per box edge: backbone, neck, head (`ldfsam.md 3.1`).

Written from the published layer table. The network of the papers is named by its size: `n` has 3.011 M parameters at
one class, `x` 68.15 M.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from steadysam.detection.blocks import SPPF, C2f, Conv
from steadysam.detection.table import BINS, EDGES, SCALES, STRIDES, Scale, Size
from steadysam.errors import ConfigError

Features = tuple[Tensor, Tensor, Tensor]

# objects that an image of this side holds before anything is learnt; the prior of the class head (YOLOv5, YOLOv8)
PRIOR_OBJECTS, PRIOR_SIDE = 5, 640


@dataclass(frozen=True, eq=False)
class Predictions:
    """What the head says at the A locations of B images of one size; P3's locations first, row by row.

    Args:
        scores: (B, A, classes) float32 logits.
        edges: (B, A, 4, 16) float32 logits over the distances 0..15, in strides, of the left, top, right and bottom
            edge from the location's centre.
        centres: (A, 2) float32 xy pixels.
        strides: (A,) float32 pixels.
    """

    scores: Tensor
    edges: Tensor
    centres: Tensor
    strides: Tensor


class Backbone(nn.Module):
    """(B, 3, H, W) -> maps at strides 8, 16 and 32."""

    def __init__(self, scale: Scale) -> None:
        super().__init__()
        c = [scale.channels(full) for full in (64, 128, 256, 512, 1024)]
        self.stem = Conv(3, c[0], 3, 2)
        stages = [
            nn.Sequential(Conv(before, after, 3, 2), C2f(after, after, scale.repeats(full), residual=True))
            for before, after, full in zip(c, c[1:], (3, 6, 6, 3), strict=False)
        ]
        stages[-1].append(SPPF(c[-1]))
        self.stages = nn.ModuleList(stages)
        self.channels = (c[2], c[3], c[4])

    def forward(self, images: Tensor) -> Features:
        maps = [self.stem(images)]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps[2], maps[3], maps[4]


class Neck(nn.Module):
    """Path aggregation, down the pyramid and up again: the backbone's three maps -> P3, P4, P5."""

    def __init__(self, channels: tuple[int, int, int], repeats: int) -> None:
        super().__init__()
        c3, c4, c5 = channels
        self.down4, self.down3 = C2f(c5 + c4, c4, repeats), C2f(c4 + c3, c3, repeats)
        self.stride3, self.stride4 = Conv(c3, c3, 3, 2), Conv(c4, c4, 3, 2)
        self.up4, self.up5 = C2f(c3 + c4, c4, repeats), C2f(c4 + c5, c5, repeats)

    def forward(self, maps: Features) -> Features:
        m3, m4, m5 = maps
        d4 = self.down4(torch.cat([F.interpolate(m5, scale_factor=2.0, mode="nearest"), m4], dim=1))
        p3 = self.down3(torch.cat([F.interpolate(d4, scale_factor=2.0, mode="nearest"), m3], dim=1))
        p4 = self.up4(torch.cat([self.stride3(p3), d4], dim=1))
        p5 = self.up5(torch.cat([self.stride4(p4), m5], dim=1))
        return p3, p4, p5


def _branch(c1: int, hidden: int, out: int) -> nn.Sequential:
    return nn.Sequential(Conv(c1, hidden, 3), Conv(hidden, hidden, 3), nn.Conv2d(hidden, out, 1))


class Head(nn.Module):
    """Two branches per level, one for the four edges and one for the classes: P3, P4, P5 -> two lists of maps."""

    def __init__(self, channels: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        edge_hidden = max(EDGES * BINS, channels[0] // 4)
        class_hidden = max(channels[0], min(classes, 100))
        self.edges = nn.ModuleList(_branch(c, edge_hidden, EDGES * BINS) for c in channels)
        self.scores = nn.ModuleList(_branch(c, class_hidden, classes) for c in channels)
        self._set_biases(classes)

    def _set_biases(self, classes: int) -> None:
        """Edges start uniform over the bins; a class starts as rare as a few objects among all locations."""
        for edges, scores, stride in zip(self.edges, self.scores, STRIDES, strict=True):
            prior = PRIOR_OBJECTS / classes / (PRIOR_SIDE / stride) ** 2
            nn.init.zeros_(edges[-1].bias)  # pyright: ignore
            nn.init.constant_(scores[-1].bias, math.log(prior))  # pyright: ignore

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        return (
            [branch(p) for branch, p in zip(self.edges, features, strict=True)],
            [branch(p) for branch, p in zip(self.scores, features, strict=True)],
        )


def grid(heights_widths: Sequence[tuple[int, int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Centres ((i + 0.5) s, (j + 0.5) s), (A, 2) xy pixels, and strides (A,) of three levels, row by row.

    Args:
        heights_widths: of P3, P4 and P5.
    """
    centres, strides = [], []
    for (height, width), stride in zip(heights_widths, STRIDES, strict=True):
        y, x = torch.meshgrid(
            torch.arange(height, device=device, dtype=torch.float32),
            torch.arange(width, device=device, dtype=torch.float32),
            indexing="ij",
        )
        centres.append((torch.stack([x, y], dim=-1).reshape(-1, 2) + 0.5) * stride)
        strides.append(torch.full((height * width,), float(stride), device=device))
    return torch.cat(centres), torch.cat(strides)


class Detector(nn.Module):
    """YOLOv8 of one size; random weights from torch's generator. Parameters lie below `backbone.`, `neck.`, `head.`.

    Args:
        size: a row of `table.SCALES`.
        classes: number of classes, at least 1.

    Attributes:
        channels: of P3, P4 and P5.

    Raises:
        ConfigError: `DETECTOR_UNKNOWN`, `DETECTOR_CLASSES`.
    """

    def __init__(self, size: Size, classes: int = 1) -> None:
        super().__init__()
        if size not in SCALES:
            raise ConfigError("DETECTOR_UNKNOWN", "no detector of this size", seen=size, expected=", ".join(SCALES))
        if classes < 1:
            raise ConfigError("DETECTOR_CLASSES", "a detector needs a class", seen=classes, expected="at least 1")
        scale = SCALES[size]
        self.size: Size = size
        self.classes = classes
        self.backbone = Backbone(scale)
        self.channels = self.backbone.channels
        self.neck = Neck(self.channels, scale.repeats(3))
        self.head = Head(self.channels, classes)

    def features(self, images: Tensor) -> Features:
        """P3, P4, P5: the neck's maps at strides 8, 16, 32.

        Args:
            images: (B, 3, H, W) in [0, 1]; H and W multiples of 32.

        Raises:
            ConfigError: `DETECTOR_IMAGE`.
        """
        sides = tuple(images.shape[-2:])
        if images.ndim != 4 or images.shape[1] != 3 or any(side % STRIDES[-1] for side in sides) or 0 in sides:
            raise ConfigError(
                "DETECTOR_IMAGE",
                "images do not fit the detector's grids",
                seen=tuple(images.shape),
                expected=f"(B, 3, H, W) with H and W multiples of {STRIDES[-1]}",
                fix="choose an image size that is a multiple of 32",
            )
        faster = images.contiguous(memory_format=torch.channels_last)  # by a sixth in bfloat16 on a CPU
        return self.neck(self.backbone(faster))

    def predict(self, features: Sequence[Tensor]) -> Predictions:
        """The head alone, on P3, P4, P5; float32 also under autocast."""
        edge_maps, score_maps = self.head(features)
        edges = torch.cat([m.flatten(2) for m in edge_maps], dim=2).transpose(1, 2).float()
        scores = torch.cat([m.flatten(2) for m in score_maps], dim=2).transpose(1, 2).float()
        centres, strides = grid([(p.shape[-2], p.shape[-1]) for p in features], edges.device)
        return Predictions(scores, edges.reshape(*edges.shape[:2], EDGES, BINS), centres, strides)

    def forward(self, images: Tensor) -> Predictions:
        return self.predict(self.features(images))

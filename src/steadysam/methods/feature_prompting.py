"""What methods share that prompt a promptable model with a detector's features (LDFSAM's eqs. 1-3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from steadysam.augment import Augmentation, move_images
from steadysam.backbones.backbone import Backbone
from steadysam.backbones.rows import FeaturePrompts
from steadysam.detection.feature_prompts import FeaturePrompter
from steadysam.detection.yolo import Detector
from steadysam.methods.contract import TrainingCase
from steadysam.methods.detecting import detector_images


def make_prompter(source: Detector, backbone: Backbone, *, channels: int, tokens: int, alpha: float) -> FeaturePrompter:
    """A fresh prompter between a detector's feature maps and a backbone's decoder."""
    return FeaturePrompter(
        source.channels,
        width=channels,
        grid=backbone.embedding_size,
        embedding_channels=backbone.embedding_channels,
        token_channels=backbone.token_channels,
        tokens=tokens,
        alpha=alpha,
    )


def feature_prompts(source: Detector, prompter: FeaturePrompter, detail: Tensor, parts: str = "SD") -> FeaturePrompts:
    """(B, 3, F, F) images in [0, 1] -> feature prompts; no box is decoded.

    Args:
        parts: `S` for the sparse prompts, `D` for the dense one, or both.
    """
    found = prompter(source.features(detail))
    return FeaturePrompts(found.sparse if "S" in parts else None, found.dense if "D" in parts else None)


def moved_details(
    cases: Sequence[TrainingCase], places: Sequence[tuple[int, int]], moves: Sequence[Augmentation], size: int
) -> Tensor:
    """The slices `(case, slice)` as the detector sees them, moved as their images are: (B, 3, `size`, `size`)."""
    rows = [detector_images(cases[c].stack, slice(t, t + 1), size) for c, t in places]
    return move_images(torch.cat(rows), list(moves))

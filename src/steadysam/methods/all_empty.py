"""The all-empty predictor: marks nothing. What every other method must beat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import Field
from torch import nn

from steadysam.embeddings import EmbeddingCache
from steadysam.methods.contract import FrozenConfig, Stage, Traits
from steadysam.types import Segmentation, SlicePoints, SliceStack

TRAITS = Traits(points=False, backbone=False, untrained=True)


class Config(FrozenConfig):
    """Nothing but the value that every pixel gets."""

    probability: float = Field(default=0.0, ge=0, le=1)


def build(config: Config, backbone: None) -> nn.Module:
    """A module without parameters."""
    return nn.Identity()


def stages(config: Config) -> tuple[Stage, ...]:
    """Nothing is trained."""
    return ()


def segment(
    model: nn.Module, config: Any, stack: SliceStack, points: Sequence[SlicePoints], cache: EmbeddingCache
) -> Segmentation:
    """The same value everywhere."""
    shape = (stack.depth, stack.preprocess.size, stack.preprocess.size)
    return Segmentation(np.full(shape, config.probability, np.float32), None)

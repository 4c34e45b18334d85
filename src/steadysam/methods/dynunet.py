"""MONAI's DynUNet in nnU-Net's plan: slices alone, no prompts. Not nnU-Net itself, which is `steadysam nnunet`."""

from __future__ import annotations

from pydantic import Field

from steadysam.methods.contract import Traits
from steadysam.methods.dense import DenseConfig, segment, stages
from steadysam.methods.networks import IMAGE_CHANNELS, Network, dynunet

__all__ = ["TRAITS", "Config", "build", "segment", "stages"]

TRAITS = Traits(points=False, backbone=False)


class Config(DenseConfig):
    """Levels (`networks.levels_for(size)` says how many nnU-Net would take), and channels of the first and at most."""

    levels: int = Field(default=5, ge=3, le=8)
    first: int = Field(default=32, ge=1)
    most: int = Field(default=512, ge=1)


def build(config: Config, backbone: None) -> Network:
    """The network, from random weights."""
    return dynunet(IMAGE_CHANNELS, config.levels, config.first, config.most)

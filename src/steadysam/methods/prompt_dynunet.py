"""Prompt-channel DynUNet in nnU-Net's plan: the points of own and neighbouring slices as channels."""

from __future__ import annotations

from pydantic import Field

from steadysam.methods.contract import Traits
from steadysam.methods.dense import PromptedConfig, segment, stages
from steadysam.methods.networks import IMAGE_CHANNELS, Network, dynunet

__all__ = ["TRAITS", "Config", "build", "segment", "stages"]

TRAITS = Traits(backbone=False)


class Config(PromptedConfig):
    """Levels, and channels of the first and at most; see `dynunet`."""

    levels: int = Field(default=5, ge=3, le=8)
    first: int = Field(default=32, ge=1)
    most: int = Field(default=512, ge=1)


def build(config: Config, backbone: None) -> Network:
    """The network, from random weights."""
    return dynunet(IMAGE_CHANNELS + config.channels, config.levels, config.first, config.most)

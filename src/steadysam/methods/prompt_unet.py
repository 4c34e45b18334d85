"""Prompt-channel UNet: the points of own and neighbouring slices as channels, the same information as SPD gets."""

from __future__ import annotations

from steadysam.methods.contract import Traits
from steadysam.methods.dense import PromptedConfig, segment, stages
from steadysam.methods.networks import IMAGE_CHANNELS, Network, unet

__all__ = ["TRAITS", "Config", "build", "segment", "stages"]

TRAITS = Traits(backbone=False)


class Config(PromptedConfig):
    """Channels of the five levels and of the last layer."""

    features: tuple[int, int, int, int, int, int] = (32, 32, 64, 128, 256, 32)


def build(config: Config, backbone: None) -> Network:
    """The network, from random weights."""
    return unet(IMAGE_CHANNELS + config.channels, config.features)

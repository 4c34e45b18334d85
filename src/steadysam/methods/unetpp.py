"""UNet++ (Zhou et al., DLMIA 2018), MONAI's BasicUNetPlusPlus: slices alone, no prompts."""

from __future__ import annotations

from steadysam.methods.contract import Traits
from steadysam.methods.dense import DenseConfig, segment, stages
from steadysam.methods.networks import IMAGE_CHANNELS, Network, unet_plus_plus

__all__ = ["TRAITS", "Config", "build", "segment", "stages"]

TRAITS = Traits(points=False, backbone=False)


class Config(DenseConfig):
    """Channels of the five levels and of the last layer; with deep supervision four outputs are trained."""

    features: tuple[int, int, int, int, int, int] = (32, 32, 64, 128, 256, 32)
    deep_supervision: bool = True


def build(config: Config, backbone: None) -> Network:
    """The network, from random weights."""
    return unet_plus_plus(IMAGE_CHANNELS, config.features, config.deep_supervision)

"""TransUNet (Chen et al., arXiv 2102.04306): a ViT between a ResNet and a UNet's decoder; slices alone, no prompts."""

from __future__ import annotations

from typing import Literal

from steadysam.methods.contract import Traits
from steadysam.methods.dense import DenseConfig, segment, stages
from steadysam.methods.hybrid import SHAPES, TransUnet
from steadysam.methods.networks import Network

__all__ = ["TRAITS", "Config", "build", "segment", "stages"]

TRAITS = Traits(points=False, backbone=False)


class Config(DenseConfig):
    """`r50-vit-b16` is the paper's network, without its ImageNet weights; `small` is the same design for CPUs."""

    variant: Literal["small", "r50-vit-b16"] = "small"


def build(config: Config, backbone: None) -> Network:
    """The network, from random weights."""
    return Network(TransUnet(SHAPES[config.variant]), 16)

"""From a name to a backbone: random weights, weights of the registry, or a file of the user's."""

from __future__ import annotations

from pathlib import Path

from steadysam.backbones.configure import random_model, sam_config
from steadysam.backbones.sam import SamBackbone
from steadysam.backbones.table import BACKBONES
from steadysam.errors import ConfigError


def build(name: str, image_size: int, *, seed: int, weights: bool, home: Path | None) -> SamBackbone:
    """See `steadysam.backbones.build_backbone`."""
    spec = BACKBONES.get(name)
    if spec is not None and (spec.from_scratch or not weights):
        return SamBackbone(random_model(sam_config(spec.architecture, image_size), seed), name).eval()
    raise unknown_backbone(name)


def unknown_backbone(name: str) -> ConfigError:
    """The error for a name that is neither a row of the table nor a file."""
    return ConfigError(
        "BACKBONE_UNKNOWN",
        "no such backbone, folder or file",
        seen=name,
        expected=", ".join(BACKBONES),
        fix="`steadysam models list` shows the names",
    )

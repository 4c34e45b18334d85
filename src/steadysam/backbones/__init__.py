"""Promptable models behind three verbs: `encode`, `embed`, `decode`.

`BACKBONES` is the table; importing it loads neither torch nor transformers. `build_backbone` loads them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from steadysam.backbones.table import BACKBONES, Architecture, BackboneSpec, ConvArchitecture

__all__ = ["BACKBONES", "Architecture", "BackboneSpec", "ConvArchitecture", "build_backbone"]


def build_backbone(
    name: str | Path,
    image_size: int,
    *,
    seed: int = 0,
    weights: bool = True,
    home: Path | None = None,
    architecture: Architecture | ConvArchitecture | None = None,
) -> Any:
    """The backbone `name`, a `SamBackbone` or a `ConvBackbone`, for square images; in eval mode, on the CPU.

    Args:
        name: a row of `BACKBONES`, a folder with `config.json` and `model.safetensors`, or a `.safetensors`
        file in
            the layout of `transformers` or of the official `segment-anything` package.
        image_size: side of the images in pixels, a multiple of the patch; position tables are resized to it.
        seed: decides the random weights of from-scratch rows.
        weights: False gives a backbone of zeros, quickly, for a run folder that brings its own weights.
        home: folder of downloaded weights; None means `STEADYSAM_HOME`.
        architecture: with `weights=False`, what to build (`backbone.architecture` of an earlier build);
            a file that `name` once meant is then not needed again.

    Raises:
        ConfigError: `BACKBONE_UNKNOWN`, `BACKBONE_SIZE`.
        CheckpointError: `CKPT_*`, among them `CKPT_MISSING` when the weights were never downloaded.
    """
    from steadysam.backbones.build import blank_backbone, build

    if not weights:
        return blank_backbone(str(name), image_size, architecture)
    return build(str(name), image_size, seed=seed, home=home)

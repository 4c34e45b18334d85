"""SegFormer (Xie et al., NeurIPS 2021), `transformers`' own network: slices alone, no prompts."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, cast

from torch import Tensor, nn
from torch.nn import functional as F

from steadysam.backbones.checkpoints import read_safetensors
from steadysam.errors import CheckpointError
from steadysam.methods.contract import Traits
from steadysam.methods.dense import DenseConfig, segment, stages
from steadysam.methods.networks import IMAGE_CHANNELS, Network

__all__ = ["TRAITS", "Config", "blank", "build", "segment", "stages"]

logger = logging.getLogger(__name__)

TRAITS = Traits(points=False, backbone=False)

Variant = Literal["b0", "b1", "b2", "b3", "b4", "b5"]
_NARROW, _WIDE = (32, 64, 160, 256), (64, 128, 320, 512)
# variant -> layers of the four stages, their widths, width of the decoder
SHAPES: dict[Variant, tuple[tuple[int, ...], tuple[int, ...], int]] = {
    "b0": ((2, 2, 2, 2), _NARROW, 256),
    "b1": ((2, 2, 2, 2), _WIDE, 256),
    "b2": ((3, 4, 6, 3), _WIDE, 768),
    "b3": ((3, 4, 18, 3), _WIDE, 768),
    "b4": ((3, 8, 27, 3), _WIDE, 768),
    "b5": ((3, 6, 40, 3), _WIDE, 768),
}
# the coarsest map is at stride 32, and the first attention pools its map at stride 4 by 8
_DIVISOR = 32
# names of the published files -> those of the library's present layers, in this order
_RENAMED = (
    (r"^segformer\.encoder\.patch_embeddings\.(\d+)\.", r"segformer.stages.\1.patch_embeddings."),
    (r"^segformer\.encoder\.block\.(\d+)\.", r"segformer.stages.\1.blocks."),
    (r"^segformer\.encoder\.layer_norm\.(\d+)\.", r"segformer.stages.\1.layer_norm."),
    (r"\.attention\.self\.query\.", ".attention.q_proj."),
    (r"\.attention\.self\.key\.", ".attention.k_proj."),
    (r"\.attention\.self\.value\.", ".attention.v_proj."),
    (r"\.attention\.self\.sr\.", ".attention.sequence_reduction.sequence_reduction."),
    (r"\.attention\.self\.layer_norm\.", ".attention.sequence_reduction.layer_norm."),
    (r"\.attention\.output\.dense\.", ".attention.o_proj."),
    (r"\.mlp\.dense(\d)\.", r".mlp.fc\1."),
    (r"\.layer_norm_1\.", ".layernorm_before."),
    (r"\.layer_norm_2\.", ".layernorm_after."),
    (r"^decode_head\.linear_c\.", "decode_head.linear_projections."),
)


class Config(DenseConfig):
    """Which of the paper's six networks, and its weights.

    Args:
        variant: `b0` to `b5`, in millions of parameters with one output 3.7, 13.7, 27.3, 47.2, 64.0 and 84.6.
        weights: a folder with `model.safetensors`, or that file: published weights, for ImageNet classes (the encoder
            alone is taken) or for segmentation (all but the layer of classes). They want `preprocess.norm = "sam"`.
            Without it weights start at random.
    """

    variant: Variant = "b0"
    weights: str = ""


class FullSize(nn.Module):
    """A `transformers.SegformerForSemanticSegmentation` whose logits are resized to the image."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> logits (B, 1, H, W), bilinear from a quarter of each side."""
        logits = self.model(pixel_values=images).logits
        return F.interpolate(logits, size=images.shape[-2:], mode="bilinear", align_corners=False)


def build(config: Config, backbone: None) -> Network:
    """The network, from random weights or those that the settings name.

    Raises:
        CheckpointError: `CKPT_MISSING`, `CKPT_FORMAT`, `CKPT_SHAPE` and those of `read_safetensors`.
    """
    network = blank(config)
    if config.weights:
        named = Path(config.weights)
        file = named if named.suffix else named / "model.safetensors"
        load_published(model_of(network), read_safetensors(file), file)
    return network


def blank(config: Config) -> Network:
    """The same network without its weights, for a run that brings its own."""
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    depths, widths, decoder = SHAPES[config.variant]
    shape = SegformerConfig(
        num_channels=IMAGE_CHANNELS, depths=depths, hidden_sizes=widths, decoder_hidden_size=decoder
    )
    shape.num_labels = 1
    return Network(FullSize(SegformerForSemanticSegmentation(shape)), _DIVISOR)


def model_of(network: Network) -> nn.Module:
    """The library's own network."""
    return cast(FullSize, network.net).model


def load_published(model: nn.Module, tensors: Mapping[str, Tensor], file: Path) -> None:
    """Copy published tensors into a `SegformerForSemanticSegmentation` with another layer of classes.

    The layer of classes stays as it was drawn, and the whole decoder where the file is of an encoder alone.

    Raises:
        CheckpointError: `CKPT_SHAPE` lists missing, unexpected and differently shaped tensors; nothing is loaded.
    """
    found = {present_name(name): tensor for name, tensor in tensors.items()}
    found = {name: t for name, t in found.items() if not re.match(r"(decode_head\.)?classifier\.", name)}
    own = dict(model.state_dict())
    decoder = any(name.startswith("decode_head.") for name in found)
    drawn = "decode_head.classifier." if decoder else "decode_head."
    missing = sorted(name for name in own if name not in found and not name.startswith(drawn))
    extra = sorted(set(found) - set(own))
    shapes = sorted(name for name in found if name in own and found[name].shape != own[name].shape)
    if missing or extra or shapes:
        raise CheckpointError(
            "CKPT_SHAPE",
            f"weights do not fit the network: {len(missing)} missing, {len(extra)} unexpected, "
            f"{len(shapes)} of another shape",
            file=file,
            seen=", ".join((missing + extra + shapes)[:5]),
            fix="set method.variant to the one that the weights were made for",
        )
    logger.info("%s: %s taken over", file, "encoder and decoder" if decoder else "encoder")
    model.load_state_dict({**own, **found})


def present_name(name: str) -> str:
    """The library's present name of a tensor; published files have names of an earlier version."""
    for old, new in _RENAMED:
        name = re.sub(old, new, name)
    return name

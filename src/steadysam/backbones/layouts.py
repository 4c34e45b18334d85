"""The three layouts in which SAM weights come, brought to the names of `SamBackbone`.

`transformers` calls the encoder `vision_encoder` and keeps the table of positions twice; the official
`segment-anything` package numbers the members of its `Sequential`s; `SamBackbone` has the names of
transformers under `image_encoder` and the table once.

The released weights of SAM-Med2D have the official layout and an `Adapter` in every block. They were trained on images
in the order blue, green, red, normalised with the mean and deviation of red, green, blue (ldfsam.md 1.7); here that is
put into the first layer, so that the model sees images as every other SAM does and computes the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from steadysam.data.slices import normalise
from steadysam.errors import CheckpointError

_FIRST = "image_encoder.patch_embed.projection"
_POSITIONS = "shared_image_embedding.positional_embedding"
_SECOND_POSITIONS = "prompt_encoder.shared_embedding.positional_embedding"

# official name -> ours, applied in order to the whole name
_OFFICIAL: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), ours)
    for pattern, ours in (
        (r"^image_encoder\.patch_embed\.proj\.", "image_encoder.patch_embed.projection."),
        (r"^image_encoder\.blocks\.(\d+)\.norm(\d)\.", r"image_encoder.layers.\1.layer_norm\2."),
        (r"^image_encoder\.blocks\.(\d+)\.Adapter\.", r"image_encoder.layers.\1.mlp.adapter."),
        (r"^image_encoder\.blocks\.", "image_encoder.layers."),
        (r"^image_encoder\.neck\.0\.", "image_encoder.neck.conv1."),
        (r"^image_encoder\.neck\.1\.", "image_encoder.neck.layer_norm1."),
        (r"^image_encoder\.neck\.2\.", "image_encoder.neck.conv2."),
        (r"^image_encoder\.neck\.3\.", "image_encoder.neck.layer_norm2."),
        (r"^prompt_encoder\.pe_layer\.positional_encoding_gaussian_matrix$", _POSITIONS),
        (r"^prompt_encoder\.point_embeddings\.", "prompt_encoder.point_embed."),
        (r"^prompt_encoder\.mask_downscaling\.0\.", "prompt_encoder.mask_embed.conv1."),
        (r"^prompt_encoder\.mask_downscaling\.1\.", "prompt_encoder.mask_embed.layer_norm1."),
        (r"^prompt_encoder\.mask_downscaling\.3\.", "prompt_encoder.mask_embed.conv2."),
        (r"^prompt_encoder\.mask_downscaling\.4\.", "prompt_encoder.mask_embed.layer_norm2."),
        (r"^prompt_encoder\.mask_downscaling\.6\.", "prompt_encoder.mask_embed.conv3."),
        (r"^(mask_decoder\.transformer\.layers\.\d+)\.norm(\d)\.", r"\1.layer_norm\2."),
        (r"^mask_decoder\.transformer\.norm_final_attn\.", "mask_decoder.transformer.layer_norm_final_attn."),
        (r"^mask_decoder\.output_upscaling\.0\.", "mask_decoder.upscale_conv1."),
        (r"^mask_decoder\.output_upscaling\.1\.", "mask_decoder.upscale_layer_norm."),
        (r"^mask_decoder\.output_upscaling\.3\.", "mask_decoder.upscale_conv2."),
    )
)
_OFFICIAL_MLP = re.compile(
    r"^(mask_decoder\.(?:output_hypernetworks_mlps\.\d+|iou_prediction_head))\.layers\.(\d+)\.(weight|bias)$"
)
_OFFICIAL_BUFFERS = ("pixel_mean", "pixel_std")


def to_backbone(state: Mapping[str, Tensor], file: str | Path) -> dict[str, Tensor]:
    """Weights in any of the three layouts -> the same tensors under the names of `SamBackbone`.

    Raises:
        CheckpointError: `CKPT_CONFIG`, the layout is none of the three, or the two tables of positions
        differ.
    """
    if any(name.startswith("vision_encoder.") for name in state):
        return _from_transformers(state, file)
    if "image_encoder.patch_embed.proj.weight" in state:
        renamed = from_official(state)
        return _colours_in_order(renamed, file) if "image_encoder.blocks.0.Adapter.norm.weight" in state else renamed
    if "image_encoder.patch_embed.projection.weight" in state:
        return dict(state)
    raise CheckpointError(
        "CKPT_CONFIG",
        "these are not the weights of a SAM",
        file=file,
        seen=", ".join(sorted(state)[:3]) or "no tensors",
        expected="the layout of transformers' SamModel or of segment-anything",
        fix="SAM 2 and other architectures cannot be loaded as a SAM",
    )


def from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The layout of `segment-anything` -> the names of `SamBackbone`. Unknown names stay as they are."""
    depths: dict[str, int] = {}
    for name in state:
        if match := _OFFICIAL_MLP.match(name):
            depths[match[1]] = max(depths.get(match[1], 0), int(match[2]))
    return {_official_name(name, depths): value for name, value in state.items() if name not in _OFFICIAL_BUFFERS}


def _colours_in_order(state: Mapping[str, Tensor], file: str | Path) -> dict[str, Tensor]:
    """A first layer for red, green, blue normalised as `sam` in place of SAM-Med2D's; the patches do not overlap.

    Its channel c is a_c v + b_c of colour 2 - c, which we have as a_(2-c) v + b_(2-c): a linear map of one into the
    other, which goes into weights and bias.
    """
    weight, bias = (state.get(f"{_FIRST}.{kind}") for kind in ("weight", "bias"))
    if weight is None or bias is None or weight.ndim != 4 or weight.shape[1] != 3:
        raise CheckpointError("CKPT_SHAPE", "the first layer is not one for colours", file=file, expected=_FIRST)
    b = normalise(torch.zeros(1, 3, 1, 1), "sam")[0].double()
    a = normalise(torch.ones(1, 3, 1, 1), "sam")[0].double() - b
    factor, shift = a / a.flip(0), b - b.flip(0) * a / a.flip(0)
    theirs = weight.double()
    ours = {
        f"{_FIRST}.weight": (theirs * factor).flip(1).float(),
        f"{_FIRST}.bias": (bias.double() + (theirs * shift).sum((1, 2, 3))).float(),
    }
    return {**state, **ours}


def _official_name(name: str, depths: Mapping[str, int]) -> str:
    if match := _OFFICIAL_MLP.match(name):
        # transformers names the first and the last layer and counts those between from zero
        stem, layer, kind = match[1], int(match[2]), match[3]
        place = {0: "proj_in", depths[stem]: "proj_out"}.get(layer, f"layers.{layer - 1}")
        return f"{stem}.{place}.{kind}"
    for pattern, ours in _OFFICIAL:
        name = pattern.sub(ours, name)
    return name


def _from_transformers(state: Mapping[str, Tensor], file: str | Path) -> dict[str, Tensor]:
    renamed = {re.sub(r"^vision_encoder\.", "image_encoder.", name): value for name, value in state.items()}
    second = renamed.pop(_SECOND_POSITIONS, None)
    first = renamed.setdefault(_POSITIONS, second) if second is not None else renamed.get(_POSITIONS)
    if second is not None and first is not None and not torch.equal(first, second):
        raise CheckpointError(
            "CKPT_CONFIG",
            "image and prompts have different tables of positions",
            file=file,
            expected="one table, as in every SAM",
        )
    return renamed

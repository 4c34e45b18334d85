"""The two layouts in which SAM 2 weights come, brought to the names of `transformers.Sam2VideoModel`.

The official `sam2` package, and with it MedSAM2, numbers the members of its `Sequential`s and keeps each kind of point
in a table of its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from steadysam.errors import CheckpointError

_POSITIONS = ("shared_image_embedding.positional_embedding", "prompt_encoder.shared_embedding.positional_embedding")
_POINTS = re.compile(r"^prompt_encoder\.point_embed\.(\d)\.weight$")

# official name -> the library's, applied in order to the whole name
_OFFICIAL: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"^image_encoder\.trunk\.", "vision_encoder.backbone."),
        (r"^image_encoder\.neck\.convs\.(\d+)\.conv\.", r"vision_encoder.neck.convs.\1."),
        (r"^vision_encoder\.backbone\.patch_embed\.proj\.", "vision_encoder.backbone.patch_embed.projection."),
        (r"^sam_prompt_encoder\.pe_layer\.positional_encoding_gaussian_matrix$", _POSITIONS[1]),
        (r"^sam_prompt_encoder\.point_embeddings\.", "prompt_encoder.point_embed."),
        (r"^sam_prompt_encoder\.mask_downscaling\.0\.", "prompt_encoder.mask_embed.conv1."),
        (r"^sam_prompt_encoder\.mask_downscaling\.1\.", "prompt_encoder.mask_embed.layer_norm1."),
        (r"^sam_prompt_encoder\.mask_downscaling\.3\.", "prompt_encoder.mask_embed.conv2."),
        (r"^sam_prompt_encoder\.mask_downscaling\.4\.", "prompt_encoder.mask_embed.layer_norm2."),
        (r"^sam_prompt_encoder\.mask_downscaling\.6\.", "prompt_encoder.mask_embed.conv3."),
        (r"^sam_(prompt_encoder|mask_decoder)\.", r"\1."),
        (r"^mask_decoder\.output_upscaling\.0\.", "mask_decoder.upscale_conv1."),
        (r"^mask_decoder\.output_upscaling\.1\.", "mask_decoder.upscale_layer_norm."),
        (r"^mask_decoder\.output_upscaling\.3\.", "mask_decoder.upscale_conv2."),
        (r"^obj_ptr_proj\.", "object_pointer_proj."),
        (r"^obj_ptr_tpos_proj\.", "temporal_positional_encoding_projection_layer."),
        (r"^no_obj_ptr$", "no_object_pointer"),
        (r"^no_obj_embed_spatial$", "occlusion_spatial_embedding_parameter"),
        (r"^no_mem_embed$", "no_memory_embedding"),
        (r"^no_mem_pos_enc$", "no_memory_positional_encoding"),
        (r"^maskmem_tpos_enc$", "memory_temporal_positional_encoding"),
        (r"^memory_encoder\.mask_downsampler\.encoder\.12\.", "memory_encoder.mask_downsampler.final_conv."),
        (r"^memory_encoder\.pix_feat_proj\.", "memory_encoder.feature_projection."),
        (r"^memory_encoder\.out_proj\.", "memory_encoder.projection."),
        (r"^memory_encoder\.fuser\.layers\.(\d+)\.dwconv\.", r"memory_encoder.memory_fuser.layers.\1.depthwise_conv."),
        (r"^memory_encoder\.fuser\.layers\.(\d+)\.pwconv", r"memory_encoder.memory_fuser.layers.\1.pointwise_conv"),
        (r"^memory_encoder\.fuser\.layers\.(\d+)\.gamma$", r"memory_encoder.memory_fuser.layers.\1.scale"),
        (r"^memory_encoder\.fuser\.", "memory_encoder.memory_fuser."),
        (r"\.out_proj\.", ".o_proj."),
        (r"\.norm(\d?|_final_attn)\.", r".layer_norm\1."),
    )
)
_DOWNSAMPLER = re.compile(r"^(memory_encoder\.mask_downsampler)\.encoder\.(\d+)\.(weight|bias)$")
_MLP = re.compile(r"^(.+(?:mlp|mlps\.\d+|_head|pointer_proj))\.layers\.(\d+)\.(weight|bias)$")


def to_video(state: Mapping[str, Tensor], file: str | Path) -> dict[str, Tensor]:
    """Weights in either layout under the names of `Sam2VideoModel`, with its table of positions in both places.

    Raises:
        CheckpointError: `CKPT_CONFIG`, the layout is neither of the two.
    """
    if "image_encoder.trunk.patch_embed.proj.weight" in state:
        named = from_official(state)
    elif "vision_encoder.backbone.patch_embed.projection.weight" in state:
        named = dict(state)
    else:
        raise CheckpointError(
            "CKPT_CONFIG",
            "these are not the weights of a SAM 2",
            file=file,
            seen=", ".join(sorted(state)[:3]) or "no tensors",
            expected="the layout of transformers' Sam2VideoModel or of the sam2 package",
        )
    for here, there in (_POSITIONS, _POSITIONS[::-1]):
        if here in named:  # files that were saved as tied hold one of the two
            named.setdefault(there, named[here])
    return named


def from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The layout of the `sam2` package -> the names of `Sam2VideoModel`. Unknown names stay as they are."""
    named: dict[str, Tensor] = {}
    for name, value in state.items():
        for pattern, other in _OFFICIAL:
            name = pattern.sub(other, name)
        named[name] = value
    depths: dict[str, int] = {}
    for name in named:
        if match := _MLP.match(name):
            depths[match[1]] = max(depths.get(match[1], 0), int(match[2]))
    renamed = {_numbered(name, depths): value for name, value in named.items()}
    points = {int(match[1]): name for name in renamed if (match := _POINTS.match(name))}
    if points:
        renamed["prompt_encoder.point_embed.weight"] = torch.cat([renamed.pop(points[kind]) for kind in sorted(points)])
    return renamed


def _numbered(name: str, depths: Mapping[str, int]) -> str:
    """Layers that the official package counts through: of small networks, and of the mask's way down."""
    if match := _MLP.match(name):
        # the library names the first and the last layer and counts those between from zero
        stem, layer, kind = match[1], int(match[2]), match[3]
        place = {0: "proj_in", depths[stem]: "proj_out"}.get(layer, f"layers.{layer - 1}")
        return f"{stem}.{place}.{kind}"
    if match := _DOWNSAMPLER.match(name):
        level, member = divmod(int(match[2]), 3)  # convolution, norm, activation
        return f"{match[1]}.layers.{level}.{('conv', 'layer_norm')[member]}.{match[3]}" if member < 2 else name
    return name

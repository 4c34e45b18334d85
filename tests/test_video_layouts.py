"""SAM 2 weights in the layout of the official package: names by hand, and a whole model there and back."""

import re

import pytest
import torch

from steadysam.backbones.video.build import video_model
from steadysam.backbones.video.layouts import from_official, to_video
from steadysam.errors import CheckpointError

PAIRS = {
    "image_encoder.trunk.pos_embed_window": "vision_encoder.backbone.pos_embed_window",
    "image_encoder.trunk.patch_embed.proj.bias": "vision_encoder.backbone.patch_embed.projection.bias",
    "image_encoder.trunk.blocks.3.norm1.weight": "vision_encoder.backbone.blocks.3.layer_norm1.weight",
    "image_encoder.trunk.blocks.3.attn.qkv.weight": "vision_encoder.backbone.blocks.3.attn.qkv.weight",
    "image_encoder.trunk.blocks.3.proj.weight": "vision_encoder.backbone.blocks.3.proj.weight",
    "image_encoder.neck.convs.0.conv.bias": "vision_encoder.neck.convs.0.bias",
    "memory_attention.layers.1.self_attn.out_proj.bias": "memory_attention.layers.1.self_attn.o_proj.bias",
    "memory_attention.layers.1.norm3.bias": "memory_attention.layers.1.layer_norm3.bias",
    "memory_attention.norm.weight": "memory_attention.layer_norm.weight",
    "memory_encoder.mask_downsampler.encoder.3.weight": "memory_encoder.mask_downsampler.layers.1.conv.weight",
    "memory_encoder.mask_downsampler.encoder.10.bias": "memory_encoder.mask_downsampler.layers.3.layer_norm.bias",
    "memory_encoder.mask_downsampler.encoder.12.bias": "memory_encoder.mask_downsampler.final_conv.bias",
    "memory_encoder.out_proj.weight": "memory_encoder.projection.weight",
    "memory_encoder.fuser.layers.0.norm.weight": "memory_encoder.memory_fuser.layers.0.layer_norm.weight",
    "memory_encoder.fuser.layers.1.pwconv2.bias": "memory_encoder.memory_fuser.layers.1.pointwise_conv2.bias",
    "memory_encoder.fuser.layers.0.gamma": "memory_encoder.memory_fuser.layers.0.scale",
    "sam_prompt_encoder.not_a_point_embed.weight": "prompt_encoder.not_a_point_embed.weight",
    "sam_prompt_encoder.mask_downscaling.6.weight": "prompt_encoder.mask_embed.conv3.weight",
    "sam_mask_decoder.transformer.norm_final_attn.bias": "mask_decoder.transformer.layer_norm_final_attn.bias",
    "sam_mask_decoder.transformer.final_attn_token_to_image.out_proj.bias": (
        "mask_decoder.transformer.final_attn_token_to_image.o_proj.bias"
    ),
    "sam_mask_decoder.output_upscaling.1.weight": "mask_decoder.upscale_layer_norm.weight",
    "no_obj_ptr": "no_object_pointer",
    "no_obj_embed_spatial": "occlusion_spatial_embedding_parameter",
    "maskmem_tpos_enc": "memory_temporal_positional_encoding",
    "mask_downsample.weight": "mask_downsample.weight",
    "obj_ptr_tpos_proj.bias": "temporal_positional_encoding_projection_layer.bias",
}


@pytest.mark.parametrize(("official", "ours"), PAIRS.items())
def test_names(official, ours):
    assert list(from_official({official: torch.zeros(1)})) == [ours]


def test_layers_are_counted_within_a_network():
    """Two layers have a first and a last; three have one between them."""
    for stem, ours in (
        ("image_encoder.trunk.blocks.0.mlp", "vision_encoder.backbone.blocks.0.mlp"),
        ("sam_mask_decoder.transformer.layers.1.mlp", "mask_decoder.transformer.layers.1.mlp"),
    ):
        found = from_official({f"{stem}.layers.{n}.weight": torch.tensor(n) for n in range(2)})
        assert found == {f"{ours}.proj_in.weight": 0, f"{ours}.proj_out.weight": 1}
    for stem, ours in (
        ("obj_ptr_proj", "object_pointer_proj"),
        ("sam_mask_decoder.pred_obj_score_head", "mask_decoder.pred_obj_score_head"),
        ("sam_mask_decoder.iou_prediction_head", "mask_decoder.iou_prediction_head"),
        ("sam_mask_decoder.output_hypernetworks_mlps.2", "mask_decoder.output_hypernetworks_mlps.2"),
    ):
        found = from_official({f"{stem}.layers.{n}.bias": torch.tensor(n) for n in range(3)})
        assert found == {f"{ours}.proj_in.bias": 0, f"{ours}.layers.0.bias": 1, f"{ours}.proj_out.bias": 2}


BACK = (
    (r"vision_encoder\.backbone\.blocks\.(\d+)\.mlp\.proj_in", r"image_encoder.trunk.blocks.\1.mlp.layers.0"),
    (r"vision_encoder\.backbone\.blocks\.(\d+)\.mlp\.proj_out", r"image_encoder.trunk.blocks.\1.mlp.layers.1"),
    (r"vision_encoder\.backbone", "image_encoder.trunk"),
    (r"vision_encoder\.neck\.convs\.(\d)", r"image_encoder.neck.convs.\1.conv"),
    (r"patch_embed\.projection", "patch_embed.proj"),
    (r"(transformer\.layers\.\d\.mlp)\.proj_in", r"\1.layers.0"),
    (r"(transformer\.layers\.\d\.mlp)\.proj_out", r"\1.layers.1"),
    (r"(_head|mlps\.\d|pointer_proj)\.layers\.0", r"\1.layers.1"),
    (r"(_head|mlps\.\d|pointer_proj)\.proj_in", r"\1.layers.0"),
    (r"(_head|mlps\.\d|pointer_proj)\.proj_out", r"\1.layers.2"),
    (r"^object_pointer_proj", "obj_ptr_proj"),
    (r"^temporal_positional_encoding_projection_layer", "obj_ptr_tpos_proj"),
    (r"^memory_temporal_positional_encoding", "maskmem_tpos_enc"),
    (r"^no_object_pointer", "no_obj_ptr"),
    (r"^occlusion_spatial_embedding_parameter", "no_obj_embed_spatial"),
    (r"^no_memory_embedding", "no_mem_embed"),
    (r"^no_memory_positional_encoding", "no_mem_pos_enc"),
    (r"^memory_encoder\.projection", "memory_encoder.out_proj"),
    (r"feature_projection", "pix_feat_proj"),
    (r"memory_fuser", "fuser"),
    (r"depthwise_conv", "dwconv"),
    (r"pointwise_conv", "pwconv"),
    (r"(fuser\.layers\.\d)\.scale", r"\1.gamma"),
    (r"mask_downsampler\.final_conv", "mask_downsampler.encoder.12"),
    (r"upscale_conv1", "output_upscaling.0"),
    (r"upscale_layer_norm", "output_upscaling.1"),
    (r"upscale_conv2", "output_upscaling.3"),
    (r"mask_embed\.conv1", "mask_downscaling.0"),
    (r"mask_embed\.layer_norm1", "mask_downscaling.1"),
    (r"mask_embed\.conv2", "mask_downscaling.3"),
    (r"mask_embed\.layer_norm2", "mask_downscaling.4"),
    (r"mask_embed\.conv3", "mask_downscaling.6"),
    (r"shared_embedding\.positional_embedding", "pe_layer.positional_encoding_gaussian_matrix"),
    (r"^(prompt_encoder|mask_decoder)", r"sam_\1"),
    (r"\.layer_norm", ".norm"),
    (r"\.o_proj", ".out_proj"),
)


def test_a_whole_model_there_and_back():
    state = video_model("sam2-test").state_dict()
    official = {}
    for name, value in state.items():
        if name == "shared_image_embedding.positional_embedding":
            continue  # once only
        if match := re.match(r"memory_encoder\.mask_downsampler\.layers\.(\d)\.(conv|layer_norm)\.(.*)", name):
            place = 3 * int(match[1]) + (match[2] == "layer_norm")
            official[f"memory_encoder.mask_downsampler.encoder.{place}.{match[3]}"] = value
            continue
        if name == "prompt_encoder.point_embed.weight":
            official |= {f"sam_prompt_encoder.point_embeddings.{n}.weight": value[n : n + 1] for n in range(4)}
            continue
        for pattern, other in BACK:
            name = re.sub(pattern, other, name)
        official[name] = value
    assert not set(official) & (set(state) - {"mask_downsample.weight", "mask_downsample.bias"} - same_names(state))
    found = to_video(official, "x")
    assert set(found) == set(state)
    assert all(torch.equal(found[name], state[name]) for name in state)


def same_names(state) -> set[str]:
    """Parameters that both layouts call the same."""
    return {name for name in state if re.search(r"memory_attention.*(linear|[qkv]_proj)", name)}


def test_other_weights_are_refused():
    with pytest.raises(CheckpointError, match="CKPT_CONFIG"):
        to_video({"encoder.weight": torch.zeros(1)}, "x")

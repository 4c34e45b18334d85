"""From an `Architecture` and an image size to a `transformers.SamModel` with or without weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from steadysam.backbones.table import Architecture
from steadysam.errors import ConfigError


def sam_config(architecture: Architecture, image_size: int) -> Any:
    """The `transformers.SamConfig` of `architecture` for `image_size` x `image_size` images.

    Two defaults of the library suit pretrained weights only and are replaced: `initializer_range` 1e-10, and
    the standard deviation of the Fourier features (half the encoder's width; 1 in the SAM paper's code).

    Raises:
        ConfigError: `BACKBONE_SIZE`, the image size is not a positive multiple of the patch.
    """
    from transformers import SamConfig, SamMaskDecoderConfig, SamPromptEncoderConfig, SamVisionConfig

    check_size(image_size, architecture.patch)
    vision: Any = SamVisionConfig(
        hidden_size=architecture.hidden,
        output_channels=architecture.channels,
        num_hidden_layers=architecture.layers,
        num_attention_heads=architecture.heads,
        mlp_dim=architecture.mlp,
        image_size=image_size,
        patch_size=architecture.patch,
        window_size=architecture.window,
        global_attn_indexes=list(architecture.global_layers),
        num_pos_feats=architecture.channels // 2,
        initializer_range=0.02,
    )
    vision.scale = 1.0
    prompt = SamPromptEncoderConfig(
        hidden_size=architecture.channels,
        image_size=image_size,
        patch_size=architecture.patch,
        mask_input_channels=architecture.mask_channels,
    )
    decoder = SamMaskDecoderConfig(
        hidden_size=architecture.channels,
        mlp_dim=architecture.decoder_mlp,
        num_attention_heads=architecture.decoder_heads,
        iou_head_hidden_dim=architecture.channels,
    )
    return SamConfig(vision_config=vision, prompt_encoder_config=prompt, mask_decoder_config=decoder)


def check_size(image_size: int, patch: int) -> None:
    """Refuse image sizes that the patches do not tile."""
    if image_size <= 0 or image_size % patch:
        raise ConfigError(
            "BACKBONE_SIZE",
            "the image size does not fit the model's patches",
            seen=image_size,
            expected=f"a positive multiple of {patch}",
            fix=f"use {max(patch, round(image_size / patch) * patch)}",
        )


def empty_model(config: Any) -> Any:
    """A `SamModel` on the meta device: shapes without memory."""
    from transformers import SamModel

    with torch.device("meta"):
        return SamModel(config)


def random_model(config: Any, seed: int, *, align: bool = True) -> Any:
    """A `SamModel` with random weights that depend on `seed` only; the global generator is left as it was.

    Args:
        align: start the query and key projections of the decoder's cross-attentions equal, see
        `align_attention`.
    """
    from transformers import SamModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SamModel(config)
        # a deviation of 0.02, right for the encoder, would start the decoder with logits near 0.001
        _draw_as_torch_does(model.prompt_encoder)
        _draw_as_torch_does(model.mask_decoder)
        if align:
            align_attention(model.mask_decoder)
    return model.eval()


def _draw_as_torch_does(part: nn.Module) -> None:
    """Each layer's own initialisation, which is what SAM's authors trained from."""
    for module in part.modules():
        if isinstance(module, nn.Linear | nn.Embedding | nn.Conv2d | nn.ConvTranspose2d):
            module.reset_parameters()


def align_attention(mask_decoder: nn.Module, gain: float = 1.5) -> None:
    """Give query and key of every cross-attention one common orthogonal projection and no bias.

    Both sides carry Fourier features of positions, so a click then attends to its own place from the first
    step; with independent projections a SAM trained from scratch needs thousands of images to find it.
    """
    crossings = ("cross_attn_token_to_image", "cross_attn_image_to_token", "final_attn_token_to_image")
    for name, module in mask_decoder.named_modules():
        if name.endswith(crossings):
            query, key = module.get_submodule("q_proj"), module.get_submodule("k_proj")
            nn.init.orthogonal_(query.get_parameter("weight"), gain=gain)
            nn.init.zeros_(query.get_parameter("bias"))
            key.load_state_dict(query.state_dict())

"""From a `VideoArchitecture` and an image size to `transformers`' SAM 2, and back from its `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from steadysam.backbones.configure import check_size
from steadysam.backbones.video.table import VideoArchitecture
from steadysam.errors import CheckpointError


def video_config(architecture: VideoArchitecture, image_size: int) -> Any:
    """The `Sam2VideoConfig` for `image_size` x `image_size` images.

    No weight depends on the image size: Hiera stretches its table of positions, and the memory's are rotations.

    Raises:
        ConfigError: `BACKBONE_SIZE`, the size is no positive multiple of 32.
    """
    from transformers import Sam2HieraDetConfig, Sam2VideoConfig, Sam2VisionConfig
    from transformers.models.sam2_video import Sam2VideoMaskDecoderConfig, Sam2VideoPromptEncoderConfig

    check_size(image_size, architecture.patch)
    grid, channels = image_size // 16, architecture.channels
    hiera: Any = Sam2HieraDetConfig(
        image_size=[image_size, image_size],
        hidden_size=architecture.widths[0],
        num_attention_heads=architecture.heads[0],
        embed_dim_per_stage=list(architecture.widths),
        num_attention_heads_per_stage=list(architecture.heads),
        blocks_per_stage=list(architecture.blocks),
        window_size_per_stage=list(architecture.windows),
        global_attention_blocks=list(architecture.global_blocks),
        window_positional_embedding_background_size=[architecture.background] * 2,
    )
    vision: Any = Sam2VisionConfig(
        backbone_config=hiera,
        backbone_channel_list=list(reversed(architecture.widths)),
        backbone_feature_sizes=[[scale * grid] * 2 for scale in (4, 2, 1)],
        fpn_hidden_size=channels,
    )
    prompts: Any = Sam2VideoPromptEncoderConfig(
        hidden_size=channels, image_size=image_size, mask_input_channels=architecture.mask_channels
    )
    decoder: Any = Sam2VideoMaskDecoderConfig(
        hidden_size=channels,
        mlp_dim=architecture.decoder_mlp,
        num_attention_heads=architecture.decoder_heads,
        iou_head_hidden_dim=channels,
    )
    return Sam2VideoConfig(
        vision_config=vision,
        prompt_encoder_config=prompts,
        mask_decoder_config=decoder,
        image_size=image_size,
        memory_attention_hidden_size=channels,
        memory_attention_num_layers=architecture.memory_layers,
        memory_attention_feed_forward_hidden_size=architecture.memory_mlp,
        memory_attention_rope_feat_sizes=[grid, grid],
        memory_encoder_hidden_size=channels,
        mask_downsampler_embed_dim=channels,
        memory_fuser_embed_dim=channels,
        memory_fuser_intermediate_dim=architecture.fuser_mlp,
        memory_fuser_num_layers=architecture.fuser_layers,
    )


def stated_architecture(config: Any, file: Path) -> tuple[VideoArchitecture, int]:
    """Architecture and image size that a `config.json` of `transformers` states; the library's defaults are not in it.

    Only numbers are taken from the file, and nothing in it is handed to the library.

    Raises:
        CheckpointError: `CKPT_CONFIG`, it is of another kind of model, or its numbers make no sense.
    """
    if not isinstance(config, Mapping) or config.get("model_type") not in ("sam2_video", "sam2"):
        seen = config.get("model_type") if isinstance(config, Mapping) else config
        raise CheckpointError(
            "CKPT_CONFIG", "the folder belongs to another kind of model", file=file, seen=seen, expected="sam2_video"
        )
    try:
        return _architecture(config), _side(config.get("image_size", 1024))
    except (TypeError, ValueError, AttributeError, LookupError) as error:
        raise CheckpointError("CKPT_CONFIG", "the stated architecture cannot be used", file=file) from error


def _architecture(config: Mapping[str, Any]) -> VideoArchitecture:
    vision = config.get("vision_config") or {}
    hiera, decoder = vision.get("backbone_config") or {}, config.get("mask_decoder_config") or {}
    plain = VideoArchitecture()

    def numbers(key: str, usual: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(int(number) for number in hiera.get(key) or usual)

    return VideoArchitecture(
        widths=numbers("embed_dim_per_stage", plain.widths),
        heads=numbers("num_attention_heads_per_stage", plain.heads),
        blocks=numbers("blocks_per_stage", plain.blocks),
        windows=numbers("window_size_per_stage", plain.windows),
        global_blocks=numbers("global_attention_blocks", plain.global_blocks),
        background=_side(hiera.get("window_positional_embedding_background_size") or plain.background),
        channels=int(vision.get("fpn_hidden_size", plain.channels)),
        decoder_mlp=int(decoder.get("mlp_dim", plain.decoder_mlp)),
        decoder_heads=int(decoder.get("num_attention_heads", plain.decoder_heads)),
        memory_layers=int(config.get("memory_attention_num_layers", plain.memory_layers)),
        memory_mlp=int(config.get("memory_attention_feed_forward_hidden_size", plain.memory_mlp)),
        fuser_layers=int(config.get("memory_fuser_num_layers", plain.fuser_layers)),
        fuser_mlp=int(config.get("memory_fuser_intermediate_dim", plain.fuser_mlp)),
        mask_channels=int((config.get("prompt_encoder_config") or {}).get("mask_input_channels", plain.mask_channels)),
    )


def _side(size: Any) -> int:
    """A size that is stated as one number or as two equal ones."""
    sides = {int(side) for side in (size if isinstance(size, list | tuple) else [size])}
    if len(sides) != 1:
        raise ValueError(f"not square: {size}")
    return sides.pop()


def draw_afresh(model: Any) -> None:
    """Random weights that answer to prompts, in place of the library's, which leave the memory and the masks near 0.

    Each layer draws as torch does; prompts and image share one table of positions, as in every SAM; and a model that
    has learnt nothing says that the object is there.
    """
    parts = (model.prompt_encoder, model.mask_decoder, model.memory_attention, model.memory_encoder)
    for part in (*parts, model.object_pointer_proj, model.vision_encoder):
        for module in part.modules():
            if isinstance(module, nn.Linear | nn.Embedding | nn.Conv2d | nn.ConvTranspose2d):
                module.reset_parameters()
    model.prompt_encoder.shared_embedding.load_state_dict(model.shared_image_embedding.state_dict())
    nn.init.constant_(model.mask_decoder.pred_obj_score_head.proj_out.bias, 1.0)

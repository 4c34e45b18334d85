"""The architecture of a SAM from the shapes of its tensors, so that a weights file alone can be loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from steadysam.backbones.table import Architecture
from steadysam.errors import CheckpointError


def infer_architecture(state: Mapping[str, Tensor], file: str | Path, *, decoder_heads: int = 8) -> Architecture:
    """What `state` (in the names of `SamBackbone`) was made for; the image size is not part of it.

    Args:
        state: weights.
        file: named in errors.
        decoder_heads: the decoder's heads, which leave no trace in any shape (8 in every published SAM).

    Raises:
        CheckpointError: `CKPT_SHAPE`, a tensor that tells something is missing or has the wrong number of
        axes.
    """
    try:
        return _infer(state, decoder_heads)
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise CheckpointError(
            "CKPT_SHAPE",
            "the weights are not complete",
            file=file,
            seen=f"{error}",
            expected="every tensor of a SAM with relative positions",
        ) from error


def _infer(state: Mapping[str, Tensor], decoder_heads: int) -> Architecture:
    hidden, _, patch, _ = state["image_encoder.patch_embed.projection.weight"].shape
    _, grid, _, _ = state["image_encoder.pos_embed"].shape
    layers = sum(name.endswith(".attn.rel_pos_h") for name in state)
    lengths = [len(state[f"image_encoder.layers.{layer}.attn.rel_pos_h"]) for layer in range(layers)]
    everywhere = tuple(layer for layer in range(layers) if lengths[layer] == 2 * grid - 1)
    windowed = {length for length in lengths if length != 2 * grid - 1}
    if len(windowed) > 1:
        raise ValueError(f"windows of several sizes: {sorted(windowed)}")
    mlp, _ = state["image_encoder.layers.0.mlp.lin1.weight"].shape
    decoder_mlp, _ = state["mask_decoder.transformer.layers.0.mlp.lin1.weight"].shape
    channels, mask_channels, _, _ = state["prompt_encoder.mask_embed.conv3.weight"].shape
    return Architecture(
        hidden=hidden,
        layers=layers,
        heads=hidden // state["image_encoder.layers.0.attn.rel_pos_h"].shape[1],
        mlp=mlp,
        patch=patch,
        window=(windowed.pop() + 1) // 2 if windowed else 0,
        global_layers=everywhere if len(everywhere) < layers else (),
        channels=channels,
        decoder_mlp=decoder_mlp,
        decoder_heads=decoder_heads,
        mask_channels=mask_channels,
        adapter="sam-med2d" if "image_encoder.layers.0.mlp.adapter.norm.weight" in state else "",
    )

"""How methods adapt a backbone's image encoder: LoRA, SAM-Med2D's adapters, or all of its weights."""

from __future__ import annotations

from typing import Literal, cast

from torch import nn

from steadysam.backbones.adapters import ensure_med2d_adapters
from steadysam.backbones.backbone import Backbone
from steadysam.backbones.lora import AdaptableBackbone, draw_seed, inject_lora
from steadysam.methods.contract import LoraConfig

Adaptation = Literal["lora", "full", "adapters"]
_TRAINED = {"lora": ".*lora_*", "full": ".*", "adapters": ".*adapter.*"}


def adapt_encoder(backbone: Backbone, how: Adaptation, lora: LoraConfig, *, zero_init: bool = True) -> None:
    """Put into the image encoder, in place, what `how` trains there; fresh LoRA changes no result.

    Args:
        lora: for `how = "lora"`; its weights are drawn from torch's generator.
        zero_init: for `how = "adapters"`, see `ensure_med2d_adapters`; adapters that are there already are kept.

    Raises:
        ValueError: those of `inject_lora` and `ensure_med2d_adapters`.
    """
    if how == "lora":
        sam = cast(AdaptableBackbone, backbone)
        inject_lora(sam, lora.rank, lora.alpha, lora.dropout, lora.targets, seed=draw_seed())
    elif how == "adapters":
        ensure_med2d_adapters(cast(nn.Module, backbone), zero_init=zero_init)


def encoder_parameters(how: Adaptation) -> str:
    """Pattern of the encoder's parameters that are trained, in a model whose backbone lies below `backbone.`."""
    return f"backbone.image_encoder{_TRAINED[how]}"

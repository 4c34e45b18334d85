"""Low-rank adapters on the image encoder: by `peft`, and on queries and values alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from steadysam.backbones.conv.model import ConvBackbone
from steadysam.backbones.qv_lora import QueryValueLora
from steadysam.backbones.sam import SamBackbone
from steadysam.errors import CheckpointError

AdaptableBackbone = SamBackbone | ConvBackbone
Adapted = TypeVar("Adapted", bound=SamBackbone | ConvBackbone)
_MARK = ".lora_"


def inject_lora(
    backbone: Adapted,
    r: int = 8,
    alpha: int = 16,
    dropout: float = 0.1,
    targets: Sequence[str] = (),
    *,
    seed: int = 0,
) -> Adapted:
    """Wrap the layers `targets` of the image encoder in place; only the adapters stay trainable.

    Without `targets` it is the backbone's own choice, `lora_targets`: the qkv projections of a SAM (spd.md 2.1), the
    3x3 convolutions of the residual blocks of our own model.

    A fresh adapter changes nothing: its second factor is zero (spd.md 3.1). The adapters' names end in
    `lora_A.default.weight` and `lora_B.default.weight` below `image_encoder.`; those of the wrapped layers
    get a `base_layer.` between. The random first factors depend on `seed` only; the global generator is left
    as it was.

    Raises:
        ValueError: the encoder has adapters already, or no layer is called like one of `targets`.
    """
    from peft import LoraConfig, inject_adapter_in_model

    if has_lora(backbone):
        raise ValueError("the backbone has adapters already")
    config = LoraConfig(
        r=r, lora_alpha=alpha, lora_dropout=dropout, target_modules=list(targets or backbone.lora_targets), bias="none"
    )
    backbone.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, backbone.image_encoder)
    backbone.train(backbone.training)  # the new dropout layers come in training mode
    for name, parameter in backbone.named_parameters():
        parameter.requires_grad_(_MARK in name)
    return backbone


def inject_query_value_lora(backbone: SamBackbone, rank: int) -> None:
    """Wrap the `qkv` layer of every layer of a SAM's encoder, in place; first factors come from torch's generator.

    Raises:
        ValueError: the encoder has LoRA already.
    """
    if has_lora(backbone):
        raise ValueError("the backbone has adapters already")
    for layer in backbone.image_encoder.layers:
        layer.attn.qkv = QueryValueLora(layer.attn.qkv, rank)
    backbone.train(backbone.training)


def draw_seed() -> int:
    """A seed for `inject_lora` from torch's generator, as the other fresh weights of a method are drawn from it."""
    return int(torch.randint(2**31, (1,)))


def has_lora(backbone: AdaptableBackbone) -> bool:
    """True if adapters are present (and not merged away)."""
    return any(_MARK in name for name, _ in backbone.named_parameters())


def lora_state(backbone: AdaptableBackbone) -> dict[str, Tensor]:
    """The adapters' tensors by their names in `backbone`, detached."""
    return {name: value.detach() for name, value in backbone.state_dict().items() if _MARK in name}


def load_lora(backbone: AdaptableBackbone, state: Mapping[str, Tensor]) -> None:
    """Copy `state` into the adapters of `backbone`.

    Raises:
        CheckpointError: `CKPT_SHAPE`, names or shapes differ; nothing has been copied then.
    """
    own = lora_state(backbone)
    wrong = sorted(own.keys() ^ state.keys()) or [name for name in own if own[name].shape != state[name].shape]
    if wrong:
        raise CheckpointError(
            "CKPT_SHAPE",
            "the adapter does not fit this backbone",
            seen=f"{wrong[0]} and {len(wrong) - 1} more",
            expected=f"{len(own)} tensors of the same names and shapes",
            fix="use the backbone and the rank that the adapter was trained with",
        )
    backbone.load_state_dict(dict(state), strict=False)


def merge_lora(backbone: Adapted) -> Adapted:
    """Add the adapters into the weights and drop them, in place; names are those of a plain backbone."""
    for parent, name, layer in list(_adapted(backbone)):
        layer.merge()
        setattr(parent, name, layer.get_base_layer())
    return backbone


@contextmanager
def lora_disabled(backbone: Adapted) -> Iterator[Adapted]:
    """Inside the block the encoder computes what it did before `inject_lora`, bit for bit."""
    layers = [layer for _, _, layer in _adapted(backbone)]
    trainable = [parameter.requires_grad for parameter in backbone.parameters()]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield backbone
    finally:
        for layer in layers:
            layer.enable_adapters(True)
        # peft switches gradients off with the adapters and on again for all of them
        for parameter, flag in zip(backbone.parameters(), trainable, strict=True):
            parameter.requires_grad_(flag)


def _adapted(backbone: AdaptableBackbone) -> Iterator[tuple[nn.Module, str, Any]]:
    """(parent, attribute, adapted layer) of every wrapped layer."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for parent in backbone.image_encoder.modules():
        for name, child in parent.named_children():
            if isinstance(child, (BaseTunerLayer, QueryValueLora)):
                yield parent, name, child

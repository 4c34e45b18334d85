"""LoRA on queries and values alone, where one layer makes queries, keys and values together, as SAM's does."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from steadysam.backbones.lora import has_lora
from steadysam.backbones.sam import SamBackbone


class QueryValueLora(nn.Module):
    """(..., d) -> (..., 3d): a `qkv` layer, with B A x added to its first and its last third (Hu et al., ICLR 2022).

    `peft` wraps whole layers and would adapt the keys too. The factors are not scaled.
    """

    def __init__(self, base_layer: nn.Linear, rank: int) -> None:
        super().__init__()
        width = base_layer.in_features
        self.base_layer = base_layer
        self.lora_query_A = nn.Linear(width, rank, bias=False)
        self.lora_query_B = nn.Linear(rank, width, bias=False)
        self.lora_value_A = nn.Linear(width, rank, bias=False)
        self.lora_value_B = nn.Linear(rank, width, bias=False)
        nn.init.zeros_(self.lora_query_B.weight)  # a fresh adapter changes nothing
        nn.init.zeros_(self.lora_value_B.weight)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.base_layer(x).chunk(3, dim=-1)
        query = query + self.lora_query_B(self.lora_query_A(x))
        value = value + self.lora_value_B(self.lora_value_A(x))
        return torch.cat([query, key, value], dim=-1)


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

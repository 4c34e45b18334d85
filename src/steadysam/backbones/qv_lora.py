"""LoRA on queries and values alone, where one layer makes queries, keys and values together, as SAM's does."""

from __future__ import annotations

import torch
from torch import Tensor, nn


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

        self.enabled = True

    def forward(self, x: Tensor) -> Tensor:
        if not self.enabled:
            return self.base_layer(x)
        query, key, value = self.base_layer(x).chunk(3, dim=-1)
        query = query + self.lora_query_B(self.lora_query_A(x))
        value = value + self.lora_value_B(self.lora_value_A(x))
        return torch.cat([query, key, value], dim=-1)

    # what follows has the names of peft's layers, so that one function serves both

    def enable_adapters(self, enabled: bool) -> None:
        """Off: what `base_layer` computes, bit for bit."""
        self.enabled = enabled

    @torch.no_grad()
    def merge(self) -> None:
        """Add the products into `base_layer`, in place."""
        query, _, value = self.base_layer.weight.chunk(3)
        query += self.lora_query_B.weight @ self.lora_query_A.weight
        value += self.lora_value_B.weight @ self.lora_value_A.weight

    def get_base_layer(self) -> nn.Linear:
        """The wrapped layer."""
        return self.base_layer

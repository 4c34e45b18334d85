"""Random Fourier features of positions, as in SAM (Kirillov et al., ICCV 2023; Tancik et al., NeurIPS 2020)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class FourierPositions(nn.Module):
    """(..., 2) places in [0, 1] -> (..., E); neighbouring places get related codes. Never trained."""

    positional_embedding: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("positional_embedding", torch.randn(2, channels // 2))

    def forward(self, unit: Tensor) -> Tensor:
        angles = 2 * math.pi * ((2 * unit - 1) @ self.positional_embedding)
        return torch.cat([angles.sin(), angles.cos()], dim=-1)

    def of_grid(self, height: int, width: int) -> Tensor:
        """(1, E, height, width): the features of the centres of a grid's cells."""
        table = self.positional_embedding
        y = (torch.arange(height, device=table.device, dtype=table.dtype) + 0.5) / height
        x = (torch.arange(width, device=table.device, dtype=table.dtype) + 0.5) / width
        grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
        return self(grid).permute(2, 0, 1)[None]

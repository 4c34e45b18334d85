"""Building blocks of YOLOv8 (`ldfsam.md 3.1`); every convolution keeps the grid unless its stride is 2."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn


class Conv(nn.Sequential):
    """Convolution without bias, batch norm (eps 1e-3, momentum 0.03), SiLU: (B, c1, H, W) -> (B, c2, H/s, W/s)."""

    def __init__(self, c1: int, c2: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(c1, c2, kernel, stride, padding=kernel // 2, bias=False),
            nn.BatchNorm2d(c2, eps=1e-3, momentum=0.03),
            nn.SiLU(),
        )


class Bottleneck(nn.Module):
    """Two 3x3 convolutions at constant width, with a residual connection or without: (B, c, H, W) -> the same."""

    def __init__(self, channels: int, residual: bool) -> None:
        super().__init__()
        self.first, self.second = Conv(channels, channels, 3), Conv(channels, channels, 3)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.first(x))
        return x + y if self.residual else y


class C2f(nn.Module):
    """Halves of a 1x1 convolution, bottlenecks chained on the last half, everything kept and mixed.

    (B, c1, H, W) -> (B, c2, H, W).
    """

    def __init__(self, c1: int, c2: int, repeats: int, *, residual: bool = False) -> None:
        super().__init__()
        half = c2 // 2
        self.enter, self.leave = Conv(c1, 2 * half), Conv((2 + repeats) * half, c2)
        self.bottlenecks = nn.ModuleList(Bottleneck(half, residual) for _ in range(repeats))

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.enter(x).chunk(2, dim=1))
        for bottleneck in self.bottlenecks:
            parts.append(cast(Tensor, bottleneck(parts[-1])))
        return self.leave(torch.cat(parts, dim=1))


class SPPF(nn.Module):
    """Spatial pyramid pooling by three chained 5x5 max-pools at stride 1: (B, c, H, W) -> the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.enter, self.leave = Conv(channels, channels // 2), Conv(4 * (channels // 2), channels)
        self.pool = nn.MaxPool2d(5, stride=1, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.enter(x)]
        for _ in range(3):
            parts.append(self.pool(parts[-1]))
        return self.leave(torch.cat(parts, dim=1))

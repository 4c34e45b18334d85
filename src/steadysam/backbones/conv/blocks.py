"""The pieces that encoder and decoder are made of."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

_GROUPS = 8


class ResidualBlock(nn.Module):
    """(B, c, h, w) -> (B, c, h, w): norm, ReLU, conv 3x3, twice, added to the input (He et al., ECCV 2016).

    Group norm (Wu and He, ECCV 2018) keeps no statistics of the training images, which are drawn and not real.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(_GROUPS, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(_GROUPS, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)  # a fresh block is the identity
        nn.init.zeros_(self.conv2.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.relu(self.norm1(x)))
        return x + self.conv2(F.relu(self.norm2(y)))


class Down(nn.Module):
    """(B, fine, H, W) -> (B, coarse, H / 2, W / 2), rounded up: norm, ReLU, strided conv 3x3.

    The norm matters: a sum of residuals grows from block to block, and without it each level would multiply that growth
    until the finest details are lost beside it.
    """

    def __init__(self, fine: int, coarse: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(_GROUPS, fine)
        self.conv = nn.Conv2d(fine, coarse, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.relu(self.norm(x)))


class Join(nn.Module):
    """Coarse (B, a, h, w) and skip (B, b, H, W) -> (B, b, H, W): norm, ReLU, conv 1x1, bilinear to the skip, sum."""

    def __init__(self, coarse: int, skip: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(_GROUPS, coarse)
        self.project = nn.Conv2d(coarse, skip, 1)

    def forward(self, coarse: Tensor, skip: Tensor) -> Tensor:
        projected = self.project(F.relu(self.norm(coarse)))
        return skip + F.interpolate(projected, skip.shape[-2:], mode="bilinear", align_corners=False)


def blocks(channels: int, count: int) -> nn.Sequential:
    """`count` residual blocks one after the other."""
    return nn.Sequential(*(ResidualBlock(channels) for _ in range(count)))

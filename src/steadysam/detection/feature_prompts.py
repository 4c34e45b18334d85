"""Prompts for a promptable segmenter, computed from a detector's feature maps instead of its boxes (`ldfsam.md 3.2`).

Zhao et al., LDFSAM, J. Imaging 2026, 12(2), 74: equations (1) to (3). No box is decoded and nothing is suppressed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from steadysam.backbones.rows import FeaturePrompts
from steadysam.detection.blocks import Conv

DENSE_STD = 1e-3  # small, so that training starts near the pretrained segmenter; zero would stop alpha's gradient


class FeaturePrompter(nn.Module):
    """P3, P4, P5 of a detector -> a dense prompt for the segmenter's grid and a few sparse tokens.

    Both views of an image must be plain resizes of the same picture, or the cells of the two grids do not meet.

    Args:
        channels: of P3, P4 and P5, at strides 8, 16 and 32.
        width: channels of the mixed map.
        grid: side h of the segmenter's image embedding, in cells.
        embedding_channels: C of the image embedding.
        token_channels: E of the segmenter's prompt tokens.
        tokens: N, the number of sparse tokens, at least 1.
        alpha: initial weight of the dense prompt; learnt.
    """

    def __init__(
        self,
        channels: tuple[int, int, int],
        width: int = 256,
        *,
        grid: int,
        embedding_channels: int,
        token_channels: int,
        tokens: int = 1,
        alpha: float = 1.0,
    ) -> None:
        super().__init__()
        self.grid, self.tokens, self.token_channels = grid, tokens, token_channels
        self.mix = Conv(sum(channels), width)
        self.dense = nn.Conv2d(width, embedding_channels, 1)
        self.sparse = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, tokens * token_channels))
        self.alpha = nn.Parameter(torch.tensor(float(alpha)))
        nn.init.normal_(self.dense.weight, std=DENSE_STD)
        nn.init.zeros_(self.dense.bias)  # pyright: ignore[reportArgumentType]

    def fused(self, p3: Tensor, p4: Tensor, p5: Tensor) -> Tensor:
        """Equation (1): the three maps at P3's resolution, mixed.

        (B, c3, H/8, W/8), (B, c4, H/16, W/16), (B, c5, H/32, W/32) -> (B, width, H/8, W/8).
        """
        p4 = F.interpolate(p4, scale_factor=2.0, mode="nearest")
        p5 = F.interpolate(p5, scale_factor=4.0, mode="nearest")
        return self.mix(torch.cat([p3, p4, p5], dim=1))

    def dense_prompt(self, fused: Tensor) -> Tensor:
        """The second term of equation (2), alpha * P_dense: (B, width, H/8, W/8) -> (B, C, h, h)."""
        return self.alpha * self.dense(self._pooled(fused))

    def sparse_prompt(self, fused: Tensor) -> Tensor:
        """Equation (3): an MLP of the map's mean, (B, width, H/8, W/8) -> (B, N, E)."""
        return self.sparse(fused.mean(dim=(2, 3))).view(-1, self.tokens, self.token_channels)

    def forward(self, features: Sequence[Tensor]) -> FeaturePrompts:
        """Both prompts from (P3, P4, P5); either may be left out afterwards by a `FeaturePrompts` of the other."""
        fused = self.fused(*features)
        return FeaturePrompts(self.sparse_prompt(fused), self.dense_prompt(fused))

    def _pooled(self, fused: Tensor) -> Tensor:
        high, wide = fused.shape[-2:]
        if high % self.grid or wide % self.grid:
            return F.adaptive_avg_pool2d(fused, self.grid)
        # the same means; the adaptive form has no deterministic gradient on CUDA
        return F.avg_pool2d(fused, (high // self.grid, wide // self.grid))

"""The image encoder: a residual U-Net whose finest level, a quarter of the image, is the embedding."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from steadysam.backbones.conv.blocks import Down, Join, blocks
from steadysam.backbones.table import ConvArchitecture


class ConvEncoder(nn.Module):
    """(B, 3, S, S) images -> (B, C, S/4, S/4) embeddings.

    A stem of two strided convolutions, levels at 1/4, 1/8, 1/16 and 1/32 of the image, and the way back up with sums
    at each level. Boundaries stay in the one tensor that is cached; no skips leave the encoder.
    """

    def __init__(self, architecture: ConvArchitecture) -> None:
        super().__init__()
        widths, depths = architecture.widths, architecture.depths
        self.stem1 = nn.Conv2d(3, widths[0] // 2, 3, stride=2, padding=1)
        self.stem2 = Down(widths[0] // 2, widths[0])
        self.levels = nn.ModuleList(blocks(w, d) for w, d in zip(widths, depths, strict=True))
        self.downs = nn.ModuleList(Down(a, b) for a, b in zip(widths, widths[1:], strict=False))
        self.joins = nn.ModuleList(Join(b, a) for a, b in zip(widths, widths[1:], strict=False))
        self.ups = nn.ModuleList(blocks(w, 1) for w in widths[:-1])
        self.norm = nn.GroupNorm(8, widths[0])
        self.last = nn.Conv2d(widths[0], architecture.channels, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.levels[0](self.stem2(self.stem1(images)))
        skips = [x]
        for step, level in zip(self.downs, list(self.levels)[1:], strict=True):
            x = level(step(x))
            skips.append(x)
        for index in reversed(range(len(self.ups))):
            x = self.ups[index](self.joins[index](x, skips[index]))
        return self.last(F.relu(self.norm(x)))

"""TransUNet's network: a ResNet trunk, a ViT on its last feature map, and a decoder that takes the trunk's skips.

After the description of Chen et al. (arXiv 2102.04306) and the shapes of R50 + ViT-B/16; weights start at random.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class HybridShape:
    """The numbers of a TransUNet.

    Args:
        root: channels of the first layer, at 1/2; block k has 4 * root * 2^k channels at 1/4, 1/8, 1/16.
        units: residual units of the three blocks.
        hidden, layers, heads, mlp: the transformer.
        grid: side of the position table in tokens, resized to what comes.
        middle: channels after the transformer; decoder: of the four upsampling blocks.
        groups: of group norm.
    """

    root: int = 64
    units: tuple[int, int, int] = (3, 4, 9)
    hidden: int = 768
    layers: int = 12
    heads: int = 12
    mlp: int = 3072
    grid: int = 14
    middle: int = 512
    decoder: tuple[int, int, int, int] = (256, 128, 64, 16)
    groups: int = 32


SHAPES = {
    "r50-vit-b16": HybridShape(),
    "small": HybridShape(32, (2, 2, 2), 192, 4, 3, 768, 6, 128, (128, 64, 32, 16), 16),
}


class StandardisedConv(nn.Conv2d):
    """A convolution whose kernels have mean 0 and variance 1 (Qiao et al., arXiv 1903.10520)."""

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), keepdim=True, unbiased=False)
        weight = (self.weight - mean) / torch.sqrt(variance + 1e-5)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 with group norm, the sum rectified; the shortcut is projected where shapes differ."""

    def __init__(self, channels: int, out: int, stride: int, groups: int) -> None:
        super().__init__()
        inner = out // 4
        self.conv1 = StandardisedConv(channels, inner, 1, bias=False)
        self.conv2 = StandardisedConv(inner, inner, 3, stride, 1, bias=False)
        self.conv3 = StandardisedConv(inner, out, 1, bias=False)
        self.norm1, self.norm2 = (nn.GroupNorm(min(groups, inner), inner, eps=1e-6) for _ in range(2))
        self.norm3 = nn.GroupNorm(min(groups, out), out, eps=1e-6)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != out:
            self.shortcut = nn.Sequential(
                StandardisedConv(channels, out, 1, stride, bias=False), nn.GroupNorm(out, out, eps=1e-5)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        y = F.relu(self.norm2(self.conv2(y)))
        return F.relu(self.shortcut(x) + self.norm3(self.conv3(y)))


class Trunk(nn.Module):
    """(B, 3, S, S) -> features at 1/16, and skips at 1/8, 1/4 and 1/2."""

    def __init__(self, shape: HybridShape) -> None:
        super().__init__()
        self.root = StandardisedConv(3, shape.root, 7, 2, 3, bias=False)
        self.norm = nn.GroupNorm(min(shape.groups, shape.root), shape.root, eps=1e-6)
        blocks, channels = [], shape.root
        for k, units in enumerate(shape.units):
            out = 4 * shape.root * 2**k
            rows = [Bottleneck(channels, out, 1 if k == 0 else 2, shape.groups)]
            rows += [Bottleneck(out, out, 1, shape.groups) for _ in range(units - 1)]
            blocks.append(nn.Sequential(*rows))
            channels = out
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        x = F.relu(self.norm(self.root(x)))
        skips = [x]
        x = F.max_pool2d(x, 3, 2, 1)
        for block in self.blocks:
            x = block(x)
            skips.append(x)
        return x, skips[-2::-1]


class UpBlock(nn.Module):
    """Twice the size, bilinearly; the skip beside it; two 3x3 convolutions with group norm."""

    def __init__(self, channels: int, skip: int, out: int) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(*_conv(channels + skip, out), *_conv(out, out))

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
        return self.convolutions(x if skip is None else torch.cat([x, skip], 1))


class TransUnet(nn.Module):
    """(B, 3, S, S), S a multiple of 16 -> logits (B, classes, S, S)."""

    def __init__(self, shape: HybridShape, classes: int = 1) -> None:
        super().__init__()
        self.trunk = Trunk(shape)
        wide = 16 * shape.root
        self.embed = nn.Conv2d(wide, shape.hidden, 1)
        self.positions = nn.Parameter(torch.zeros(1, shape.hidden, shape.grid, shape.grid))
        layer = nn.TransformerEncoderLayer(
            shape.hidden, shape.heads, shape.mlp, 0.1, "gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True
        )
        self.transformer = nn.TransformerEncoder(layer, shape.layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(shape.hidden, eps=1e-6)
        self.middle = nn.Sequential(*_conv(shape.hidden, shape.middle))
        skips: Sequence[int] = (8 * shape.root, 4 * shape.root, shape.root, 0)
        widths = (shape.middle, *shape.decoder)
        self.up = nn.ModuleList(UpBlock(a, s, b) for a, s, b in zip(widths, skips, shape.decoder, strict=False))
        self.head = nn.Conv2d(shape.decoder[-1], classes, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        x, skips = self.trunk(images)
        x = self.embed(x)
        sides = x.shape[-2:]
        table = self.positions
        if table.shape[-2:] != sides:
            table = F.interpolate(table, sides, mode="bilinear", align_corners=False)
        tokens = self.norm(self.transformer((x + table).flatten(2).transpose(1, 2)))
        x = self.middle(tokens.transpose(1, 2).unflatten(2, sides))
        for block, skip in zip(self.up, [*skips, None], strict=True):
            x = block(x, skip)
        return self.head(x)


def _conv(channels: int, out: int) -> list[nn.Module]:
    # the authors have batch norm: batches of a few slices have poor statistics, and these are no trained weights
    return [nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.GroupNorm(8, out), nn.ReLU()]

"""Bottleneck adapters in the blocks of the image encoder (Medical SAM Adapter, Wu et al., arXiv 2304.12620)."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from steadysam.backbones.conv.blocks import ResidualBlock
from steadysam.backbones.conv.model import ConvBackbone
from steadysam.backbones.sam import SamBackbone

Order = Literal["sam", "released"]
RATIO = 4  # width of a block over width of its adapter's bottleneck


class Adapter(nn.Module):
    """Down to a quarter of the width, GELU, up again; the skip is left to the caller.

    Args:
        width: features of input and output, last axis; with `conv` channels, second axis (1x1 convolutions).
        zero_init: the second layer starts at zero, so that a fresh adapter adds nothing.
    """

    def __init__(self, width: int, *, zero_init: bool, conv: bool = False) -> None:
        super().__init__()
        layer = partial(nn.Conv2d, kernel_size=1) if conv else nn.Linear
        self.down = layer(width, width // RATIO)
        self.up = layer(width // RATIO, width)
        if zero_init:
            nn.init.zeros_(self.up.weight)
            nn.init.zeros_(self.up.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, x: Tensor) -> Tensor:
        return self.up(F.gelu(self.down(x)))


class AdaptedLayer(nn.Module):
    """A layer of SAM's encoder with two adapters: (B, h, w, d) -> (B, h, w, d).

    a = attention(LN1 x); a <- a + Adapter(a); x <- x + a; y = MLP(LN2 x) + 0.5 Adapter(LN2 x); x <- x + y.

    Args:
        layer: a `SamVisionLayer` of `transformers`; its parts are called, it is not changed.
        order: `sam` normalises before the tokens are cut into windows, so that padding is zero, as SAM was trained;
            `released` cuts first, as the authors' code does: padding then goes through LN1 and is its bias.
    """

    def __init__(self, layer: Any, width: int, *, order: Order, zero_init: bool) -> None:
        super().__init__()
        self.layer, self.order = layer, order
        self.attention_adapter = Adapter(width, zero_init=zero_init)
        self.mlp_adapter = Adapter(width, zero_init=zero_init)

    def forward(self, x: Tensor) -> Tensor:
        attended = self._attend(x)
        x = x + (attended + self.attention_adapter(attended))
        normed = self.layer.layer_norm2(x)
        return x + (self.layer.mlp(normed) + 0.5 * self.mlp_adapter(normed))

    def _attend(self, x: Tensor) -> Tensor:
        layer, window = self.layer, self.layer.window_size
        if not window:
            return layer.attn(layer.layer_norm1(x))[0]
        if self.order == "sam":
            windows, padded = layer.window_partition(layer.layer_norm1(x), window)
        else:
            windows, padded = layer.window_partition(x, window)
            windows = layer.layer_norm1(windows)
        return layer.window_unpartition(layer.attn(windows)[0], window, padded, (x.shape[1], x.shape[2]))


class AdaptedBlock(nn.Module):
    """A residual block with an adapter after it: (B, c, h, w) -> (B, c, h, w), x <- block(x), x <- x + Adapter(x)."""

    def __init__(self, block: ResidualBlock, *, zero_init: bool) -> None:
        super().__init__()
        self.block = block
        self.adapter = Adapter(block.conv2.out_channels, zero_init=zero_init, conv=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(x)
        return x + self.adapter(x)


def inject_adapters(backbone: nn.Module, *, order: Order = "sam", zero_init: bool = False) -> None:
    """Put adapters into every block of the image encoder, in place; their names end in `adapter.` and a layer's.

    In a SAM there are two in every layer (`AdaptedLayer`). Our own convolutional model has no attention; there a 1x1
    bottleneck of the same ratio follows every residual block of the encoder (`AdaptedBlock`), and `order` has no
    meaning. Fresh weights come from torch's generator.

    Raises:
        ValueError: the encoder has adapters already, or is of another kind.
    """
    if any("adapter." in name for name, _ in backbone.named_parameters()):
        raise ValueError("the backbone has adapters already")
    if isinstance(backbone, ConvBackbone):
        for parent in list(backbone.image_encoder.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, ResidualBlock):
                    setattr(parent, name, AdaptedBlock(child, zero_init=zero_init))
    elif isinstance(backbone, SamBackbone):
        layers = backbone.image_encoder.layers
        for index, layer in enumerate(layers):
            layers[index] = AdaptedLayer(layer, backbone.architecture.hidden, order=order, zero_init=zero_init)
    else:
        raise ValueError(f"no adapters are known for {type(backbone).__name__}")
    backbone.train(backbone.training)

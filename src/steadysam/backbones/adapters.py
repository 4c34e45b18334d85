"""Adapters in the blocks of an image encoder that came without: those of Medical SAM Adapter, those of SAM-Med2D.

Bottlenecks after attention and beside the MLP for the first (Wu et al., arXiv 2304.12620); `steadysam.backbones.med2d`
for the second.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from steadysam.backbones.conv.blocks import ResidualBlock
from steadysam.backbones.conv.model import ConvBackbone
from steadysam.backbones.med2d import Med2dAdapter, insert_med2d
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
    """A residual block with an adapter after it: (B, c, h, w) -> (B, c, h, w), x <- block(x), x <- x + adapter(x)."""

    def __init__(self, block: ResidualBlock, adapter: nn.Module) -> None:
        super().__init__()
        self.block, self.adapter = block, adapter

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
        _adapt_blocks(backbone, partial(Adapter, zero_init=zero_init, conv=True))
    elif isinstance(backbone, SamBackbone):
        layers = backbone.image_encoder.layers
        for index, layer in enumerate(layers):
            layers[index] = AdaptedLayer(layer, backbone.architecture.hidden, order=order, zero_init=zero_init)
    else:
        raise ValueError(f"no adapters are known for {type(backbone).__name__}")
    backbone.train(backbone.training)


def ensure_med2d_adapters(backbone: nn.Module, *, zero_init: bool = True) -> None:
    """Give the encoder SAM-Med2D's adapters, in place, unless it has them; their names hold `adapter.`.

    A SAM gets one beside the MLP of every layer, as SAM-Med2D was made from SAM. Our own convolutional model has no
    MLP; there the same adapter, on channels and space, follows every residual block of the encoder (`AdaptedBlock`).
    Fresh weights come from torch's generator.

    Args:
        zero_init: a fresh adapter adds nothing. The authors' start as a normalised map, which a pretrained encoder
            has to be trained to bear.

    Raises:
        ValueError: the encoder is of another kind.
    """
    if any(isinstance(module, Med2dAdapter) for module in backbone.modules()):
        return
    if isinstance(backbone, ConvBackbone):
        _adapt_blocks(backbone, partial(Med2dAdapter, zero_init=zero_init, conv=True))
    elif isinstance(backbone, SamBackbone):
        insert_med2d(backbone.image_encoder, backbone.architecture.hidden, zero_init=zero_init)
    else:
        raise ValueError(f"no adapters are known for {type(backbone).__name__}")
    backbone.train(backbone.training)


def _adapt_blocks(backbone: ConvBackbone, make: Callable[[int], nn.Module]) -> None:
    """Put the adapter that `make` gives for a number of channels after every residual block of the encoder."""
    for parent in list(backbone.image_encoder.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, ResidualBlock):
                setattr(parent, name, AdaptedBlock(child, make(child.conv2.out_channels)))

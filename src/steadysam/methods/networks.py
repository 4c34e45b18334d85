"""Networks of their own, from images (and prompt channels) to logits: MONAI's, and the wrapper that all share."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

IMAGE_CHANNELS = 3  # what `data.slices.normalise` gives


class Network(nn.Module):
    """(B, C, S, S) -> logits (B, 1, S, S), the final one first; further ones are supervised in training only.

    Args:
        net: gives a tensor (B, 1, S, S), or (B, K, 1, S, S), or a list of K tensors whose last is the final one.
        divisor: its sides must be multiples of this; the image is padded on the right and below.
        decay: the weight of each further output is that of the one before, times this.
    """

    def __init__(self, net: nn.Module, divisor: int, decay: float = 0.5) -> None:
        super().__init__()
        self.net, self.divisor, self.decay = net, divisor, decay

    def forward(self, images: Tensor) -> list[Tensor]:
        height, width = images.shape[-2:]
        # twice the divisor at least: instance norm needs more than one pixel at the coarsest level
        sides = [max(2, -(-side // self.divisor)) * self.divisor for side in (height, width)]
        found = self.net(F.pad(images, (0, sides[1] - width, 0, sides[0] - height)))
        if isinstance(found, Tensor):
            outputs = list(found.unbind(1)) if found.ndim == 5 else [found]
        else:
            outputs = list(found)[::-1]
        # the loop sets the mode of what it trains, `net.*`, and leaves this wrapper in eval mode
        kept = outputs if self.net.training else outputs[:1]
        return [output[..., :height, :width] for output in kept]

    def weights(self, count: int) -> list[float]:
        """The weights of `count` outputs; they sum to 1."""
        raw = [self.decay**k for k in range(count)]
        return [weight / sum(raw) for weight in raw]


def unet(channels: int, features: Sequence[int]) -> Network:
    """MONAI's BasicUNet: six numbers of channels, five levels and the last layer (Ronneberger et al., MICCAI 2015)."""
    from monai.networks.nets.basic_unet import BasicUNet

    return Network(BasicUNet(spatial_dims=2, in_channels=channels, out_channels=1, features=features), 16)


def unet_plus_plus(channels: int, features: Sequence[int], deep_supervision: bool) -> Network:
    """MONAI's BasicUNetPlusPlus (Zhou et al., DLMIA 2018); its four outputs weigh the same."""
    from monai.networks.nets.basic_unetplusplus import BasicUNetPlusPlus

    with contextlib.redirect_stdout(io.StringIO()):  # it prints its features
        net = BasicUNetPlusPlus(2, channels, 1, features, deep_supervision=deep_supervision)
    return Network(net, 16, decay=1.0)


def dynunet(channels: int, levels: int, first: int, most: int) -> Network:
    """MONAI's DynUNet as nnU-Net would plan it in 2-D (Isensee et al., Nature Methods 2021).

    3x3 kernels, stride 2 between levels, `first` channels doubled per level up to `most`, instance norm, leaky ReLU,
    and deep supervision of all levels but the two coarsest with weights 1, 1/2, 1/4, ...
    """
    from monai.networks.nets.dynunet import DynUNet

    strides = [1] + [2] * (levels - 1)
    net = DynUNet(
        spatial_dims=2,
        in_channels=channels,
        out_channels=1,
        kernel_size=[3] * levels,
        strides=strides,
        upsample_kernel_size=strides[1:],
        filters=[min(first * 2**level, most) for level in range(levels)],
        deep_supervision=levels > 3,
        deep_supr_num=max(1, levels - 3),
    )
    # its skip layers name all other layers once more; unregistered, every weight has one name and is saved once
    skips = net.skip_layers
    del net.skip_layers
    object.__setattr__(net, "skip_layers", skips)
    return Network(net, 2 ** (levels - 1))


def levels_for(size: int, smallest: int = 4) -> int:
    """nnU-Net's rule: halve the image while its side stays at `smallest` pixels or more; 96 px -> 5 levels."""
    levels = 1
    while size // 2 >= smallest and levels < 8:
        size, levels = size // 2, levels + 1
    return levels


@torch.no_grad()
def probabilities(network: nn.Module, images: Tensor) -> Tensor:
    """(B, C, S, S) -> (B, S, S) float32 on the CPU."""
    device = next(network.parameters()).device
    return torch.sigmoid(network(images.to(device))[0][:, 0].float()).cpu()

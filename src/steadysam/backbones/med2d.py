"""The adapters of SAM-Med2D (Cheng et al., arXiv 2308.16184), beside the MLP of every layer of SAM's encoder."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

RATIO = 4  # width of a layer over width of the channel gate's bottleneck


class Med2dAdapter(nn.Module):
    """A channel gate, a branch over space on the gated map, a skip, a norm (ldfsam.md 1.7): (B, h, w, d) -> the same.

    The names of the parameters are those of the released weights. A fresh adapter is a normalised map and no small
    correction; with `zero_init` its norm starts at zero instead, so that it adds nothing.

    Args:
        width: d.
        zero_init: see above.
        conv: channels are the second axis, (B, d, h, w).
    """

    def __init__(self, width: int, *, zero_init: bool = False, conv: bool = False) -> None:
        super().__init__()
        self.conv = conv
        self.norm = nn.LayerNorm(width)
        self.channel = nn.Sequential(
            nn.Linear(width, width // RATIO, bias=False),
            nn.ReLU(),
            nn.Linear(width // RATIO, width, bias=False),
            nn.Sigmoid(),
        )
        self.spatial = nn.Sequential(
            nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False),
            nn.ReLU(),
            nn.ConvTranspose2d(width, width, 4, stride=2, padding=1, bias=False),
            nn.ReLU(),
        )
        for layer in (*self.channel, *self.spatial):
            if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        if zero_init:
            nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        maps = x if self.conv else x.permute(0, 3, 1, 2)
        gate = self.channel(maps.mean((2, 3)))[..., None, None]
        height, width = maps.shape[2:]
        around = self.spatial(gate * maps)[:, :, :height, :width]  # an odd side comes back one pixel longer
        normed = self.norm((maps + around).permute(0, 2, 3, 1))
        return normed.permute(0, 3, 1, 2) if self.conv else normed


class AdaptedMlp(nn.Module):
    """The MLP of a layer with an adapter parallel to it, on the same normalised input: x -> MLP x + adapter x.

    Args:
        mlp: a `SamMLPBlock` of `transformers`; its parts keep their names.
    """

    def __init__(self, mlp: Any, width: int, *, zero_init: bool = False) -> None:
        super().__init__()
        self.lin1, self.act, self.lin2 = mlp.lin1, mlp.act, mlp.lin2
        self.adapter = Med2dAdapter(width, zero_init=zero_init)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin2(self.act(self.lin1(x))) + self.adapter(x)


def insert_med2d(encoder: Any, width: int, *, zero_init: bool = False) -> None:
    """Put an adapter into every layer of a `SamVisionEncoder`, in place; fresh weights come from torch's generator.

    Their names end in `mlp.adapter.` and a layer's; all other names stay.
    """
    for layer in encoder.layers:
        layer.mlp = AdaptedMlp(layer.mlp, width, zero_init=zero_init)

"""How good is a mask? The head that predicts IoU from what the mask covers, and not from the prompt alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_RING = 9  # pixels of the mask grid: the window whose maximum makes a mask grow into its surroundings


class QualityHead(nn.Module):
    """Logits (G, M, m, m), features (G, c, m, m) and read tokens (G, 1 + M, E) -> predicted IoU (G, M) in [0, 1].

    For every mask: its token and the IoU token, the mean features inside and in a ring around it, and four numbers: its
    share of the image, how sure it is inside, how stable it is when the threshold moves (SAM's stability score), and
    how much larger the ring makes it. SAM's own head sees the tokens only; trained for so short a time it says the same
    of every image. Mask scoring by pooled features is that of Mask Scoring R-CNN (Huang et al., CVPR 2019).
    """

    def __init__(self, token_channels: int, feature_channels: int) -> None:
        super().__init__()
        width = 2 * token_channels + 2 * feature_channels + 4
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 1), nn.Sigmoid()
        )

    def forward(self, logits: Tensor, features: Tensor, tokens: Tensor) -> Tensor:
        logits, features, tokens = logits.float(), features.float(), tokens.float()
        inside = logits.sigmoid()
        ring = F.max_pool2d(inside, _RING, stride=1, padding=_RING // 2) - inside
        area, rim = inside.sum((2, 3)), ring.sum((2, 3))
        means = [
            torch.einsum("gmhw,gchw->gmc", weight, features) / (total + 1)[..., None]
            for weight, total in ((inside, area), (ring, rim))
        ]
        sure = (inside**2).sum((2, 3)) / (area + 1)
        stable = (logits - 1).sigmoid().sum((2, 3)) / ((logits + 1).sigmoid().sum((2, 3)) + 1)
        share = area / inside[0, 0].numel()
        numbers = torch.stack([share, sure, stable, rim / (area + rim + 1)], -1)
        whole = tokens[:, :1].expand(-1, logits.shape[1], -1)
        return self.mlp(self.norm(torch.cat([whole, tokens[:, 1:], *means, numbers], -1)))[..., 0]

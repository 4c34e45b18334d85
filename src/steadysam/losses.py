"""Losses as functions of logits or soft maps; all in float32, all means over samples.

Numbers in brackets are equations of the SPD paper.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

EPS = 1e-6


def dice_loss(probability: Tensor, target: Tensor, eps: float = EPS, *, squared: bool = False) -> Tensor:
    """Soft Dice loss (2), summed per sample: (B, ...) and (B, ...) -> (B,).

    With `eps = 1e-6` a slice with empty truth has loss 1 and next to no gradient; `eps = 1` is the ablation.

    Args:
        squared: sums of squares in the denominator, as in V-Net (Milletari et al., 3DV 2016) and MedSAM.
    """
    p, g = probability.float().flatten(1), target.float().flatten(1)
    size = (p**2).sum(1) + (g**2).sum(1) if squared else p.sum(1) + g.sum(1)
    return 1 - (2 * (p * g).sum(1) + eps) / (size + eps)


def cross_entropy(logits: Tensor, target: Tensor, positive_weight: float = 1.0) -> Tensor:
    """Binary cross-entropy, mean over pixels: (B, ...) logits -> (B,).

    Args:
        positive_weight: factor of the pixels of the object.
    """
    z, g = logits.float().flatten(1), target.float().flatten(1)
    weight = torch.tensor(positive_weight, device=z.device)
    return F.binary_cross_entropy_with_logits(z, g, reduction="none", pos_weight=weight).mean(1)


def focal_loss(logits: Tensor, target: Tensor, gamma: float = 2.0) -> Tensor:
    """Focal loss (3) without class balance: (B, ...) logits -> (B,). `gamma = 0` is binary cross-entropy."""
    z, g = logits.float().flatten(1), target.float().flatten(1)
    cross_entropy = F.binary_cross_entropy_with_logits(z, g, reduction="none")
    q = torch.exp(-cross_entropy)  # the probability given to the right answer
    return ((1 - q).clamp_min(0) ** gamma * cross_entropy).mean(1)


def segmentation_terms(
    logits: Tensor, target: Tensor, *, dice: float = 0.7, focal: float = 0.3, gamma: float = 2.0, eps: float = EPS
) -> dict[str, Tensor]:
    """The weighted terms of (1), each (B,): `dice` and `focal`."""
    return {
        "dice": dice * dice_loss(torch.sigmoid(logits.float()), target, eps),
        "focal": focal * focal_loss(logits, target, gamma),
    }


def pairwise_consistency(a: Tensor, b: Tensor, *, squared: bool = False, eps: float = EPS) -> Tensor:
    """Pairwise slice consistency (8) between soft maps of neighbouring slices: (B, ...) and (B, ...) -> (B,).

    The paper's form (`squared=False`) has a known side effect: for two equal flat maps of value p the loss is 1 - p,
    so it pushes empty neighbours up. With `squared=True` the denominator holds squares and equal maps are at the
    minimum whatever their value.
    """
    p, q = a.float().flatten(1), b.float().flatten(1)
    size = (p**2).sum(1) + (q**2).sum(1) if squared else p.sum(1) + q.sum(1)
    return 1 - (2 * (p * q).sum(1) + eps) / (size + eps)

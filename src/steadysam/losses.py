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


def focal_loss(logits: Tensor, target: Tensor, gamma: float = 2.0, alpha: float | None = None) -> Tensor:
    """Focal loss (3), mean over pixels: (B, ...) logits -> (B,). `gamma = 0` is binary cross-entropy.

    Args:
        alpha: weight of the pixels of the object, `1 - alpha` of all others; None: no class balance, as in SPD.
    """
    z, g = logits.float().flatten(1), target.float().flatten(1)
    cross_entropy = F.binary_cross_entropy_with_logits(z, g, reduction="none")
    q = torch.exp(-cross_entropy)  # the probability given to the right answer
    loss = (1 - q).clamp_min(0) ** gamma * cross_entropy
    return (loss if alpha is None else loss * (alpha * g + (1 - alpha) * (1 - g))).mean(1)


def segmentation_terms(
    logits: Tensor, target: Tensor, *, dice: float = 0.7, focal: float = 0.3, gamma: float = 2.0, eps: float = EPS
) -> dict[str, Tensor]:
    """The weighted terms of (1), each (B,): `dice` and `focal`."""
    return {
        "dice": dice * dice_loss(torch.sigmoid(logits.float()), target, eps),
        "focal": focal * focal_loss(logits, target, gamma),
    }


def soft_iou(probability: Tensor, target: Tensor, eps: float = 1e-7) -> Tensor:
    """Intersection over union of a soft map and a mask: (B, ...) and (B, ...) -> (B,); 1 where both are empty."""
    p, g = probability.float().flatten(1), target.float().flatten(1)
    both = (p * g).sum(1)
    return (both + eps) / (p.sum(1) + g.sum(1) - both + eps)


def sam_med2d_terms(
    logits: Tensor,
    predicted_iou: Tensor,
    target: Tensor,
    *,
    focal: float = 20.0,
    gamma: float = 2.0,
    alpha: float = 0.25,
    smooth: float = 1.0,
) -> dict[str, Tensor]:
    """The terms of SAM-Med2D's loss (ldfsam.md 1.7), weighted, each (B,) float32: `focal`, `dice` and `iou`.

    20 focal + Dice with smoothing 1 + (predicted IoU - soft IoU)^2; the last has a gradient to the mask, too, as the
    authors' has. They take Dice and IoU over all pixels of a batch at once; here each sample has its own, so that a
    sample's loss does not depend on the others.

    Args:
        logits, target: (B, ...) of the chosen mask, at the size of the target.
        predicted_iou: (B,) or (B, 1), what the decoder says of that mask.
    """
    probability = torch.sigmoid(logits.float())
    said = predicted_iou.float().reshape(len(logits))
    return {
        "focal": focal * focal_loss(logits, target, gamma, alpha),
        "dice": dice_loss(probability, target, smooth),
        "iou": (said - soft_iou(probability, target)) ** 2,
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

"""What promptable methods share: encode the slices of a stack, decode rows of slices with their points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from steadysam.augment import IDENTITY, Augmentation, move_images
from steadysam.backbones.backbone import Backbone
from steadysam.backbones.fingerprint import fingerprint
from steadysam.data.slices import normalise
from steadysam.embeddings import EmbeddingCache
from steadysam.types import SlicePoints, SliceStack

_ROWS = 8  # slices per forward pass outside training; fixed, so that results do not depend on what else runs


@torch.no_grad()
def encode_stack(
    backbone: Backbone,
    stack: SliceStack,
    cache: EmbeddingCache,
    weights_key: str,
    augmentation: Augmentation = IDENTITY,
) -> Tensor:
    """(D, C, h, h) float16 embeddings of a stack, through the cache.

    Args:
        weights_key: fingerprint of the image encoder with its adapters; part of the cache key.
        augmentation: one for the whole stack.
    """

    def compute() -> Tensor:
        device = next(backbone.image_encoder.parameters()).device
        parts = []
        for start in range(0, stack.depth, _ROWS):
            images = torch.from_numpy(np.array(stack.images[start : start + _ROWS]))
            moved = move_images(images, [augmentation] * len(images))
            embeddings = backbone.encode(normalise(moved, stack.preprocess.norm).to(device))
            parts.append(embeddings.to("cpu", torch.float16))
        return torch.cat(parts)

    return cache.get((stack.key, stack.preprocess.norm, weights_key, repr(augmentation)), compute)


def encoder_key(backbone: Backbone) -> str:
    """Fingerprint of the image encoder, adapters included."""
    return fingerprint(backbone.image_encoder)


def decode_rows(backbone: Backbone, embeddings: Tensor, points: Sequence[SlicePoints]) -> Tensor:
    """(B, C, h, h) embeddings and B point sets -> (B, 1, S, S) logits at the image size."""
    logits = backbone.decode(embeddings, points)
    size = backbone.image_size
    return F.interpolate(logits.float(), (size, size), mode="bilinear", align_corners=False)


@torch.no_grad()
def decode_stack(backbone: Backbone, embeddings: Tensor, points: Sequence[SlicePoints]) -> NDArray[np.float32]:
    """(D, C, h, h) float16 embeddings and D point sets -> (D, S, S) float32 probabilities."""
    device = next(backbone.mask_decoder.parameters()).device
    parts = []
    for start in range(0, len(embeddings), _ROWS):
        rows = embeddings[start : start + _ROWS].to(device).float()
        logits = decode_rows(backbone, rows, points[start : start + _ROWS])
        parts.append(torch.sigmoid(logits[:, 0]).float().cpu())
    return torch.cat(parts).numpy()


def mean_terms(terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Per-sample terms (B,) -> means, as the training loop wants them."""
    return {name: value.mean() for name, value in terms.items()}

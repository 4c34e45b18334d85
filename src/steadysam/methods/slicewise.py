"""What promptable methods share: encode the slices of a stack, decode rows of slices with their points."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from steadysam.augment import IDENTITY, Augmentation, move_images
from steadysam.backbones.backbone import Backbone
from steadysam.backbones.fingerprint import fingerprint
from steadysam.backbones.rows import FeaturePrompts
from steadysam.data.slices import normalise
from steadysam.embeddings import EmbeddingCache
from steadysam.types import Decision, SlicePoints, SliceStack

_ROWS = 8  # slices per forward pass outside training; fixed, so that results do not depend on what else runs


class BackboneOnly(nn.Module):
    """A backbone, nothing else; its parameters lie below `backbone.`."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = cast(nn.Module, backbone)

    @property
    def sam(self) -> Backbone:
        """The backbone under its contract."""
        return cast(Backbone, self.backbone)


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


def only_slices(stack: SliceStack, chosen: Sequence[int]) -> SliceStack:
    """The stack of some slices, with a key of its own."""
    rows = list(chosen)
    detail = None if stack.detail is None else stack.detail[rows]
    coarse = None if stack.coarse is None else stack.coarse[rows]
    return replace(stack, images=stack.images[rows], key=f"{stack.key}:{rows}", detail=detail, coarse=coarse)


def encoder_key(backbone: Backbone) -> str:
    """Fingerprint of the image encoder, adapters included."""
    return fingerprint(backbone.image_encoder)


def decode_rows(
    backbone: Backbone, embeddings: Tensor, points: Sequence[SlicePoints], features: FeaturePrompts | None = None
) -> Tensor:
    """(B, C, h, h) embeddings and B point sets -> (B, 1, S, S) logits at the image size."""
    logits = backbone.decode(embeddings, points, features=features)
    size = backbone.image_size
    return F.interpolate(logits.float(), (size, size), mode="bilinear", align_corners=False)


@torch.no_grad()
def decode_stack(
    backbone: Backbone,
    embeddings: Tensor,
    points: Sequence[SlicePoints],
    features: Callable[[slice], FeaturePrompts | None] | None = None,
) -> NDArray[np.float32]:
    """(D, C, h, h) float16 embeddings and D point sets -> (D, S, S) float32 probabilities.

    Args:
        features: gives the feature prompts of some slices.
    """
    device = next(backbone.mask_decoder.parameters()).device
    parts = []
    for start in range(0, len(embeddings), _ROWS):
        part = slice(start, start + _ROWS)
        rows = embeddings[part].to(device).float()
        logits = decode_rows(backbone, rows, points[part], None if features is None else features(part))
        parts.append(torch.sigmoid(logits[:, 0]).float().cpu())
    return torch.cat(parts).numpy()


@dataclass(frozen=True, eq=False)
class Answers:
    """What a promptable model says to B rows of prompts, the mask it trusts most first.

    Args:
        logits: (B, M, m, m) float32 on the model's mask grid, on the CPU.
        iou: (B, M) predicted IoU, descending.
    """

    logits: Tensor
    iou: Tensor


@torch.no_grad()
def ask(
    backbone: Backbone,
    embeddings: Tensor,
    points: Sequence[SlicePoints],
    masks: Tensor | Sequence[Tensor | None] | None = None,
    choice: Literal["auto", "single", "best"] = "auto",
) -> Answers:
    """Three masks where the prompt is one click, which may mean a part or the whole; else the one for clear prompts.

    That is how SAM is to be used (Kirillov et al., ICCV 2023, section 3). Rows with one mask repeat it, so that all
    rows have the same shape.

    Args:
        embeddings: (B, C, h, h).
        points: B rows of points and boxes in model pixels.
        masks: (B, 1, m, m) logits of an earlier answer, or None, for all rows or row by row; rows that have one are
            clear.
        choice: `single` asks for the one mask, `best` for three, whatever the prompts.
    """
    device = next(backbone.mask_decoder.parameters()).device
    rough: list[Tensor | None] = [None] * len(points) if masks is None else list(masks)
    clear = [len(p) > 1 or p.box is not None or mask is not None for p, mask in zip(points, rough, strict=True)]
    if choice != "auto":
        clear = [choice == "single"] * len(points)
    found: dict[int, tuple[Tensor, Tensor]] = {}
    for single, with_mask in ((True, True), (True, False), (False, True), (False, False)):
        rows = [row for row, mask in enumerate(rough) if (clear[row], mask is not None) == (single, with_mask)]
        for start in range(0, len(rows), _ROWS):
            part = rows[start : start + _ROWS]
            given = [mask for row in part if (mask := rough[row]) is not None]
            prior = torch.stack(given).to(device) if given else None
            chosen = embeddings[part].to(device).float()
            logits, iou = backbone.decode_full(chosen, [points[r] for r in part], masks=prior, multimask=not single)
            order = iou.argsort(1, descending=True)
            for place, row in enumerate(part):
                found[row] = (logits[place][order[place]].float().cpu(), iou[place][order[place]].float().cpu())
    most = max((len(iou) for _, iou in found.values()), default=0)
    pairs = [found[row] for row in range(len(points))]
    full = [(x, i) if len(i) == most else (x.expand(most, -1, -1), i.expand(most)) for x, i in pairs]
    return Answers(torch.stack([x for x, _ in full]), torch.stack([i for _, i in full]))


def to_model(logits: Tensor, size: int) -> Tensor:
    """(B, m, m) logits -> (B, S, S), bilinear with half-pixel centres."""
    return F.interpolate(logits[:, None].float(), (size, size), mode="bilinear", align_corners=False)[:, 0]


def best_mask(logits: Tensor, iou: Tensor) -> tuple[Tensor, Tensor]:
    """(B, M, m, m) logits and (B, M) predicted IoU -> those of the mask that the model trusts most: (B, m, m), (B,)."""
    chosen = iou.argmax(1)
    rows = torch.arange(len(chosen), device=chosen.device)
    return logits[rows, chosen], iou[rows, chosen]


def mean_terms(terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Per-sample terms (B,) -> means, as the training loop wants them."""
    return {name: value.mean() for name, value in terms.items()}


def accept_all(
    points: Sequence[SlicePoints], reason: str = "not checked: this method obeys every prompt"
) -> tuple[Decision, ...]:
    """The verdicts of a method that takes every point of D slices as it is."""
    return tuple(
        Decision(name, t, t, "accepted", reason, xy=(float(x), float(y)))
        for t, here in enumerate(points)
        for name, (x, y) in zip(here.ids, here.xy, strict=True)
    )

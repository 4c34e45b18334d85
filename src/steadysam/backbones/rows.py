"""Rows of prompts in groups of equally many points, so that no padding token ever takes part in attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from steadysam.types import SlicePoints

Group = tuple[list[int], Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class PromptRows:
    """G rows with equally many points, either all with a box or all without.

    Args:
        rows: their numbers in the batch.
        xy, positive: (G, K, 2) float32 model pixels and (G, K) bool.
        boxes: (G, 4) float32 xyxy model pixels, or None.
        masks: (G, 1, m, m) logits of an earlier answer, or None.
    """

    rows: list[int]
    xy: Tensor
    positive: Tensor
    boxes: Tensor | None
    masks: Tensor | None


@dataclass(frozen=True, eq=False)
class FeaturePrompts:
    """Prompts that are computed from features and not drawn by a person (ldfsam.md 3.2); they keep their gradients.

    A row without points and box then has no not-a-point token either, so that `FeaturePrompts()` asks a model with no
    prompt at all, as SAM is without any.

    Args:
        sparse: (B, N, E) tokens, put behind the row's own, or None.
        dense: (B, C, h, h), added to the dense embedding of the row's prompts, or None.
    """

    sparse: Tensor | None = None
    dense: Tensor | None = None


def prompt_rows(points: Sequence[SlicePoints], masks: Tensor | None, device: torch.device) -> Iterator[PromptRows]:
    """The groups of B rows of prompts, fewest points first, rows without a box before those with one.

    Args:
        masks: (B, 1, m, m) logits, or None.
    """
    kinds = [(len(row), row.box is not None) for row in points]
    for count, boxed in sorted(set(kinds)):
        rows = [row for row, kind in enumerate(kinds) if kind == (count, boxed)]
        xy = np.stack([points[row].xy for row in rows]).astype(np.float32).reshape(len(rows), count, 2)
        positive = np.stack([points[row].positive for row in rows]).reshape(len(rows), count)
        boxes = np.array([points[row].box for row in rows], np.float32) if boxed else None
        yield PromptRows(
            rows,
            torch.from_numpy(xy).to(device),
            torch.from_numpy(positive).to(device),
            None if boxes is None else torch.from_numpy(boxes).to(device),
            None if masks is None else masks[rows].to(device),
        )


def with_features(
    groups: Sequence[Group], points: Sequence[SlicePoints], features: FeaturePrompts | None
) -> list[Group]:
    """The groups of B rows of prompts with the features' tokens and dense map; None changes nothing.

    Raises:
        ValueError: the features are of another number of rows.
    """
    if features is None:
        return list(groups)
    for name, value in (("sparse", features.sparse), ("dense", features.dense)):
        if value is not None and len(value) != len(points):
            raise ValueError(f"{len(value)} rows of {name} features but {len(points)} rows of points")
    found: list[Group] = []
    for rows, sparse, dense in groups:
        if not len(points[rows[0]]) and points[rows[0]].box is None:
            sparse = sparse[:, :0]  # the not-a-point token
        if features.sparse is not None:
            sparse = torch.cat([sparse, features.sparse[rows].to(sparse)], 1)
        if features.dense is not None:
            dense = dense + features.dense[rows].to(dense)
        found.append((rows, sparse, dense))
    return found


def decode_groups(
    embeddings: Tensor,
    groups: Sequence[Group],
    count: int,
    decode: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]],
) -> tuple[Tensor, Tensor]:
    """Decode each group by itself, so a row's result does not depend on the rows beside it; rows keep their order.

    Args:
        embeddings: (B, C, h, h).
        groups: `(rows, sparse, dense)` as `embed` gives them, `count` rows in all.
        decode: (embeddings, sparse, dense) of a group -> its logits and scores.

    Raises:
        ValueError: the numbers of embeddings and of rows of prompts differ.
    """
    if len(embeddings) != count:
        raise ValueError(f"{len(embeddings)} embeddings but {count} rows of points")
    order: list[int] = []
    masks: list[Tensor] = []
    scores: list[Tensor] = []
    for rows, sparse, dense in groups:
        index = torch.tensor(rows, device=embeddings.device)
        chosen = embeddings if len(rows) == count else embeddings[index]
        logits, iou = decode(chosen, sparse.to(embeddings.dtype), dense.to(embeddings.dtype))
        order += rows
        masks.append(logits)
        scores.append(iou)
    back = torch.argsort(torch.tensor(order, device=embeddings.device))
    return torch.cat(masks)[back], torch.cat(scores)[back]

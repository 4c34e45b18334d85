"""The contract of a promptable model: three verbs over parts that are handed over.

`encode` turns images into embeddings, `embed` turns prompts into sparse and dense embeddings, `decode` turns one
embedding per prompt row into mask logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, nn

from steadysam.types import SlicePoints


class Backbone(Protocol):
    """What methods may rely on. B is a number of rows (slices), S the image size, C and h the embedding's size."""

    image_size: int
    embedding_channels: int
    embedding_size: int
    name: str

    @property
    def image_encoder(self) -> nn.Module:
        """The part that LoRA adapts; parameters below `image_encoder.`."""
        ...

    @property
    def prompt_encoder(self) -> nn.Module: ...

    @property
    def mask_decoder(self) -> nn.Module: ...

    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) normalised images -> (B, C, h, h) embeddings; keeps gradients."""
        ...

    def embed(self, points: Sequence[SlicePoints]) -> list[tuple[list[int], Tensor, Tensor]]:
        """Prompts of B rows in model pixels -> groups `(rows, sparse, dense)` of rows with equally many points.

        sparse (G, T, C), dense (G, C, h, h). Rows are grouped so that no padding token ever takes part in attention.
        """
        ...

    def decode(self, embeddings: Tensor, points: Sequence[SlicePoints]) -> Tensor:
        """(B, C, h, h) embeddings and the points of each row -> (B, 1, 4h, 4h) logits (single mask)."""
        ...

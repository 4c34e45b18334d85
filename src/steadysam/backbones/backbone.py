"""The contract of a promptable model: three verbs over parts that are handed over.

`encode` turns images into embeddings, `embed` turns prompts into sparse and dense embeddings, `decode` turns one
embedding per prompt row into mask logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, nn

from steadysam.backbones.rows import FeaturePrompts, Group
from steadysam.types import SlicePoints


class Backbone(Protocol):
    """What methods may rely on. B is a number of rows (slices), S the image size, C and h the embedding's size.

    `token_channels` E is the width of prompt tokens (C in a SAM); `mask_size` m is the side of the logits (4h in a SAM,
    2h in our own model); `lora_targets` are the names of the encoder's layers that LoRA wraps unless a method says
    otherwise.
    """

    image_size: int
    embedding_channels: int
    token_channels: int
    embedding_size: int
    mask_size: int
    name: str
    lora_targets: tuple[str, ...]

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

    def embed(
        self, points: Sequence[SlicePoints], masks: Tensor | None = None, features: FeaturePrompts | None = None
    ) -> list[Group]:
        """Prompts of B rows in model pixels -> groups `(rows, sparse, dense)` of rows with the same kind of prompts.

        sparse (G, T, E), dense (G, C, h, h). Rows are grouped by their number of points, and by whether they have a
        box, so that no padding token ever takes part in attention.

        Args:
            masks: (B, 1, m, m) logits of an earlier answer as a further prompt, or None.
            features: prompts computed from features, see `FeaturePrompts`. None keeps the not-a-point token of rows
                without points and box.

        Raises:
            ValueError: the features are of another number of rows.
        """
        ...

    def decode(
        self, embeddings: Tensor, points: Sequence[SlicePoints], *, features: FeaturePrompts | None = None
    ) -> Tensor:
        """(B, C, h, h) embeddings and the prompts of each row -> (B, 1, m, m) logits (single mask)."""
        ...

    def decode_full(
        self,
        embeddings: Tensor,
        points: Sequence[SlicePoints],
        *,
        masks: Tensor | None = None,
        multimask: bool = True,
        features: FeaturePrompts | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Logits (B, M, m, m) and the predicted IoU (B, M); M is 3 with `multimask`, else 1.

        Each group of `embed` is decoded by itself, so a row's result does not depend on the rows beside it.

        Raises:
            ValueError: the numbers of embeddings, of rows of prompts or of rows of features differ.
        """
        ...

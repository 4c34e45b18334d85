"""The SAM family behind the three verbs, over the parts of `transformers.SamModel`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from steadysam.backbones.table import Architecture
from steadysam.types import SlicePoints

Group = tuple[list[int], Tensor, Tensor]


class SamBackbone(nn.Module):
    """A SAM for square images of one size; satisfies `steadysam.backbones.backbone.Backbone`.

    Parameters live below `image_encoder.`, `prompt_encoder.`, `mask_decoder.` and `shared_image_embedding.`.
    The prompt encoder and the Fourier features of positions are frozen (SPD trains neither, spd.md 2.2).

    Args:
        model: a `transformers.SamModel`; its parts are taken over, the wrapper itself is dropped.
        name: row of `BACKBONES`, or the folder or file the weights came from; goes into run records.
        architecture: the numbers that `model` was built from, enough to build it again.
    """

    def __init__(self, model: Any, name: str, architecture: Architecture) -> None:
        super().__init__()
        vision = model.config.vision_config
        self.name = name
        self.architecture = architecture
        self.image_size: int = vision.image_size
        self.patch_size: int = vision.patch_size
        self.embedding_channels: int = vision.output_channels
        self.embedding_size: int = vision.image_size // vision.patch_size
        self.shared_image_embedding = model.shared_image_embedding
        self.image_encoder = model.vision_encoder
        self.prompt_encoder = model.prompt_encoder
        self.mask_decoder = model.mask_decoder
        _own_positions_once(self.prompt_encoder, self.shared_image_embedding)
        self.prompt_encoder.requires_grad_(False)
        self.shared_image_embedding.requires_grad_(False)

    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) normalised images -> (B, C, h, h) embeddings; keeps gradients."""
        return self.image_encoder(images).last_hidden_state

    def embed(self, points: Sequence[SlicePoints]) -> list[Group]:
        """Prompts of B rows in model pixels -> groups `(rows, sparse, dense)` of rows with equally many
        points.

        sparse (G, T, C) with T = points + SAM's own one not-a-point token, dense (G, C, h, h). A row without
        points has exactly that one token. Positive points have label 1, negative ones 0; SAM adds half a
        pixel itself.
        """
        device = self.shared_image_embedding.positional_embedding.device
        groups: list[Group] = []
        for rows in _rows_by_count(points):
            xy = torch.from_numpy(np.stack([points[row].xy for row in rows]).astype(np.float32)).to(device)
            sign = torch.from_numpy(np.stack([points[row].positive for row in rows])).to(device, torch.float32)
            sparse, dense = self.prompt_encoder(xy[:, None], sign[:, None], None, None)
            groups.append((rows, sparse[:, 0], dense))
        return groups

    def decode(self, embeddings: Tensor, points: Sequence[SlicePoints]) -> Tensor:
        """(B, C, h, h) embeddings and the points of each row -> (B, 1, 4h, 4h) logits (single mask)."""
        return self.decode_full(embeddings, points, multimask=False)[0]

    def decode_full(
        self, embeddings: Tensor, points: Sequence[SlicePoints], *, multimask: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Logits (B, M, 4h, 4h) and the predicted IoU (B, M); M is 3 with `multimask`, else 1.

        Each group of `embed` is decoded by itself, so a row's result does not depend on the rows beside it.

        Raises:
            ValueError: the numbers of embeddings and of rows of points differ.
        """
        if len(embeddings) != len(points):
            raise ValueError(f"{len(embeddings)} embeddings but {len(points)} rows of points")
        positions = self.image_positions().to(embeddings.dtype)
        order: list[int] = []
        masks: list[Tensor] = []
        scores: list[Tensor] = []
        for rows, sparse, dense in self.embed(points):
            index = torch.tensor(rows, device=embeddings.device)
            logits, iou = self.mask_decoder(
                image_embeddings=embeddings if len(rows) == len(points) else embeddings[index],
                image_positional_embeddings=positions.expand(len(rows), -1, -1, -1),
                sparse_prompt_embeddings=sparse[:, None].to(embeddings.dtype),
                dense_prompt_embeddings=dense.to(embeddings.dtype),
                multimask_output=multimask,
            )
            order += rows
            masks.append(logits[:, 0])
            scores.append(iou[:, 0])
        back = torch.argsort(torch.tensor(order, device=embeddings.device))
        return torch.cat(masks)[back], torch.cat(scores)[back]

    def image_positions(self) -> Tensor:
        """(1, C, h, h) Fourier features of the centres of the embedding's cells, as `SamModel` makes them."""
        size = self.embedding_size
        table = self.shared_image_embedding.positional_embedding
        centres = (torch.arange(size, device=table.device, dtype=table.dtype) + 0.5) / size
        grid = torch.stack(torch.meshgrid(centres, centres, indexing="xy"), dim=-1)
        return self.shared_image_embedding(grid).permute(2, 0, 1)[None]


def _rows_by_count(points: Sequence[SlicePoints]) -> Iterator[list[int]]:
    """Row numbers in groups of equally many points, fewest points first."""
    counts = [len(row) for row in points]
    for count in sorted(set(counts)):
        yield [row for row, length in enumerate(counts) if length == count]


def _own_positions_once(prompt_encoder: nn.Module, shared: nn.Module) -> None:
    """Let the prompt encoder use `shared` without owning it.

    `SamModel` registers the same table twice; a state dict with one tensor under two names cannot be written
    as safetensors, and its parameter would be counted with the prompt encoder's.
    """
    del prompt_encoder.shared_embedding
    prompt_encoder.__dict__["shared_embedding"] = shared

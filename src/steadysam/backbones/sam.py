"""The SAM family behind the three verbs, over the parts of `transformers.SamModel`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from steadysam.backbones.med2d import insert_med2d
from steadysam.backbones.rows import FeaturePrompts, Group, decode_groups, prompt_rows, with_features
from steadysam.backbones.table import Architecture
from steadysam.types import SlicePoints


class SamBackbone(nn.Module):
    """A SAM for square images of one size; satisfies `steadysam.backbones.backbone.Backbone`.

    Parameters live below `image_encoder.`, `prompt_encoder.`, `mask_decoder.` and `shared_image_embedding.`.
    The prompt encoder and the Fourier features of positions are frozen (SPD trains neither, spd.md 2.2).

    Args:
        model: a `transformers.SamModel`; its parts are taken over, the wrapper itself is dropped.
        name: row of `BACKBONES`, or the folder or file the weights came from; goes into run records.
        architecture: the numbers that `model` was built from, enough to build it again; its adapters, if it has any,
            are put into the encoder here, with fresh weights on torch's default device.
    """

    lora_targets: tuple[str, ...] = ("qkv",)

    def __init__(self, model: Any, name: str, architecture: Architecture) -> None:
        super().__init__()
        vision = model.config.vision_config
        self.name = name
        self.architecture = architecture
        self.image_size: int = vision.image_size
        self.patch_size: int = vision.patch_size
        self.embedding_channels: int = vision.output_channels
        self.token_channels = self.embedding_channels
        self.embedding_size: int = vision.image_size // vision.patch_size
        self.mask_size = 4 * self.embedding_size
        self.shared_image_embedding = model.shared_image_embedding
        self.image_encoder = model.vision_encoder
        self.prompt_encoder = model.prompt_encoder
        self.mask_decoder = model.mask_decoder
        if architecture.adapter:
            insert_med2d(self.image_encoder, architecture.hidden)
        _own_positions_once(self.prompt_encoder, self.shared_image_embedding)
        self.prompt_encoder.requires_grad_(False)
        self.shared_image_embedding.requires_grad_(False)

    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) normalised images -> (B, C, h, h) embeddings; keeps gradients."""
        return self.image_encoder(images).last_hidden_state

    def embed(
        self, points: Sequence[SlicePoints], masks: Tensor | None = None, features: FeaturePrompts | None = None
    ) -> list[Group]:
        """Prompts of B rows -> groups `(rows, sparse, dense)`; see `Backbone.embed`.

        sparse (G, T, C): the points and SAM's own one not-a-point token, or the points and the two corners of the
        box. A row without any prompt has exactly that one token. SAM adds half a pixel itself.
        """
        groups: list[Group] = []
        for group in prompt_rows(points, masks, self.shared_image_embedding.positional_embedding.device):
            boxes = None if group.boxes is None else group.boxes[:, None]
            some = group.xy.shape[1] > 0 or boxes is None  # with a box alone there are no point tokens
            xy = group.xy[:, None] if some else None
            sign = group.positive[:, None].to(torch.float32) if some else None
            prior = None if group.masks is None else self._resized(group.masks)
            sparse, dense = self.prompt_encoder(xy, sign, boxes, prior)
            groups.append((group.rows, sparse[:, 0], dense))
        return with_features(groups, points, features)

    def _resized(self, masks: Tensor) -> Tensor:
        """Logits of a mask prompt at SAM's mask size, 4h; probabilities for SAM-Med2D, which was trained with these."""
        masks = F.interpolate(masks.float(), (self.mask_size,) * 2, mode="bilinear", align_corners=False)
        return masks.sigmoid() if self.architecture.adapter else masks

    def decode(
        self, embeddings: Tensor, points: Sequence[SlicePoints], *, features: FeaturePrompts | None = None
    ) -> Tensor:
        """(B, C, h, h) embeddings and the prompts of each row -> (B, 1, 4h, 4h) logits (single mask)."""
        return self.decode_full(embeddings, points, multimask=False, features=features)[0]

    def decode_full(
        self,
        embeddings: Tensor,
        points: Sequence[SlicePoints],
        *,
        masks: Tensor | None = None,
        multimask: bool = True,
        features: FeaturePrompts | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Logits (B, M, 4h, 4h) and the predicted IoU (B, M); see `Backbone.decode_full`."""
        positions = self.image_positions().to(embeddings.dtype)

        def one(rows: Tensor, sparse: Tensor, dense: Tensor) -> tuple[Tensor, Tensor]:
            logits, iou = self.mask_decoder(
                image_embeddings=rows,
                image_positional_embeddings=positions.expand(len(rows), -1, -1, -1),
                sparse_prompt_embeddings=sparse[:, None],
                dense_prompt_embeddings=dense,
                multimask_output=multimask,
            )
            return logits[:, 0], iou[:, 0]

        return decode_groups(embeddings, self.embed(points, masks, features), len(points), one)

    def image_positions(self) -> Tensor:
        """(1, C, h, h) Fourier features of the centres of the embedding's cells, as `SamModel` makes them."""
        size = self.embedding_size
        table = self.shared_image_embedding.positional_embedding
        centres = (torch.arange(size, device=table.device, dtype=table.dtype) + 0.5) / size
        grid = torch.stack(torch.meshgrid(centres, centres, indexing="xy"), dim=-1)
        return self.shared_image_embedding(grid).permute(2, 0, 1)[None]


def _own_positions_once(prompt_encoder: nn.Module, shared: nn.Module) -> None:
    """Let the prompt encoder use `shared` without owning it.

    `SamModel` registers the same table twice; a state dict with one tensor under two names cannot be written
    as safetensors, and its parameter would be counted with the prompt encoder's.
    """
    del prompt_encoder.shared_embedding
    prompt_encoder.__dict__["shared_embedding"] = shared

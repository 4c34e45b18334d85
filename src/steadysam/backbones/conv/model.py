"""Our own convolutional model behind the three verbs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from steadysam.backbones.conv.decoder import ConvMaskDecoder
from steadysam.backbones.conv.encoder import ConvEncoder
from steadysam.backbones.conv.positions import FourierPositions
from steadysam.backbones.conv.prompts import ConvPromptEncoder
from steadysam.backbones.rows import FeaturePrompts, Group, decode_groups, prompt_rows, with_features
from steadysam.backbones.table import ConvArchitecture
from steadysam.types import SlicePoints


class ConvBackbone(nn.Module):
    """A promptable U-Net for square images of one size; satisfies `steadysam.backbones.backbone.Backbone`.

    It is fully convolutional: the same weights serve every image size that is a multiple of 4.

    Args:
        architecture: its numbers.
        image_size: S, pixels.
        name: row of `BACKBONES`, or the file the weights came from; goes into run records.
    """

    lora_targets: tuple[str, ...] = ("conv1", "conv2")

    def __init__(self, architecture: ConvArchitecture, image_size: int, name: str) -> None:
        super().__init__()
        self.name, self.architecture = name, architecture
        self.patch_size, self.embedding_channels = architecture.patch, architecture.channels
        self.token_channels = architecture.token_channels
        self.resize(image_size)
        self.shared_image_embedding = FourierPositions(architecture.token_channels)
        self.image_encoder = ConvEncoder(architecture)
        self.prompt_encoder = ConvPromptEncoder(
            architecture.channels, architecture.token_channels, self.shared_image_embedding
        )
        self.mask_decoder = ConvMaskDecoder(architecture)

    def resize(self, image_size: int) -> None:
        """Serve images of another size; no weight depends on it."""
        self.image_size = image_size
        self.embedding_size = image_size // self.patch_size
        self.mask_size = 2 * self.embedding_size

    def encode(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) normalised images -> (B, C, h, h) embeddings; keeps gradients."""
        return self.image_encoder(images)

    def embed(
        self, points: Sequence[SlicePoints], masks: Tensor | None = None, features: FeaturePrompts | None = None
    ) -> list[Group]:
        """Prompts of B rows -> groups `(rows, sparse, dense)`; see `Backbone.embed`."""
        groups: list[Group] = []
        for group in prompt_rows(points, masks, self.shared_image_embedding.positional_embedding.device):
            sparse, dense = self.prompt_encoder(
                group.xy, group.positive, group.boxes, group.masks, self.image_size, self.embedding_size
            )
            groups.append((group.rows, sparse, dense))
        return with_features(groups, points, features)

    def decode(
        self, embeddings: Tensor, points: Sequence[SlicePoints], *, features: FeaturePrompts | None = None
    ) -> Tensor:
        """(B, C, h, h) embeddings and the prompts of each row -> (B, 1, 2h, 2h) logits (single mask)."""
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
        """Logits (B, M, 2h, 2h) and the predicted IoU (B, M); see `Backbone.decode_full`."""
        positions = self.image_positions()

        def one(rows: Tensor, sparse: Tensor, dense: Tensor) -> tuple[Tensor, Tensor]:
            return self.mask_decoder(rows, positions, sparse, dense, multimask)

        return decode_groups(embeddings, self.embed(points, masks, features), len(points), one)

    def image_positions(self) -> Tensor:
        """(1, E, h/4, h/4) Fourier features of the cells of the decoder's coarsest level."""
        return self.positions_for(self.embedding_size)

    def positions_for(self, grid: int) -> Tensor:
        """The same for embeddings of `grid` x `grid` cells."""
        coarse = -(-grid // 4)  # two strided convolutions, each rounding up
        return self.shared_image_embedding.of_grid(coarse, coarse)


def random_conv(architecture: ConvArchitecture, image_size: int, *, seed: int, name: str) -> ConvBackbone:
    """Random weights that depend on `seed` only; the global generator is left as it was."""
    from steadysam.backbones.configure import align_attention

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        backbone = ConvBackbone(architecture, image_size, name)
        align_attention(backbone.mask_decoder)
        for head in (*backbone.mask_decoder.hyper, backbone.mask_decoder.iou):
            nn.init.zeros_(head[-1].bias)  # pyright: ignore
    return backbone.eval()

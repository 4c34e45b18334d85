"""The mask decoder: a small U-Net over embedding and prompts, with SAM's two-way transformer at its coarsest level."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from steadysam.backbones.conv.blocks import Down, Join, blocks
from steadysam.backbones.conv.prompts import BOX, NEGATIVE_SPOT, POSITIVE_SPOT, PRIOR
from steadysam.backbones.table import ConvArchitecture

MASKS = 4  # one for clear prompts, three for ambiguous ones
HEADS = 4


class PromptPooling(nn.Module):
    """Where else does the image look as it does at the prompt? (G, C, h, h) twice -> (G, HEADS, h, h) cosines.

    Each head averages half of the embedding's channels with weights that the dense prompt gives (at first: at positive
    points, at negative points, in the box, in the earlier mask) and compares the mean with every cell. It is the
    shortest way from a click to a region: without it the decoder has to find out by itself that a click means what
    looks alike, and spends most of a short training on drawing blobs around clicks.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weights = nn.Conv2d(channels, HEADS, 1)
        with torch.no_grad():
            self.weights.weight.zero_()
            for head, place in enumerate((POSITIVE_SPOT, NEGATIVE_SPOT, BOX, PRIOR)):
                self.weights.weight[head, place] = 8.0

    def forward(self, embeddings: Tensor, dense: Tensor) -> Tensor:
        code = F.normalize(embeddings[:, : embeddings.shape[1] // 2].flatten(2).float(), dim=1)
        share = self.weights(dense).flatten(2).float().softmax(2)
        pooled = F.normalize(torch.einsum("ghn,gcn->ghc", share, code), dim=2)
        likeness = torch.einsum("ghc,gcn->ghn", pooled, code)
        return likeness.view(len(embeddings), HEADS, *embeddings.shape[2:]).to(embeddings.dtype)


class ConvMaskDecoder(nn.Module):
    """(G, C, h, h) embeddings with (G, T, E) tokens and a dense (G, C, h, h) map -> masks and their predicted IoU.

    Tokens of the masks and of the IoU meet the image at h/4 in `transformers`' own two-way transformer; the masks are
    the products of their tokens with the features at 2h, as in SAM.
    """

    def __init__(self, architecture: ConvArchitecture) -> None:
        super().__init__()
        from transformers import SamMaskDecoderConfig
        from transformers.models.sam.modeling_sam import SamTwoWayTransformer

        c, c8, c16 = architecture.channels, architecture.middle_channels, architecture.token_channels
        self.pooling = PromptPooling(c)
        self.mix = nn.Conv2d(c + HEADS, c, 3, padding=1)
        self.down8, self.level8 = Down(c, c8), blocks(c8, 1)
        self.down16, self.level16 = Down(c8, c16), blocks(c16, architecture.decoder_depth)
        config = SamMaskDecoderConfig(
            hidden_size=c16,
            mlp_dim=architecture.decoder_mlp,
            num_attention_heads=architecture.decoder_heads,
            num_hidden_layers=2,
        )
        config._attn_implementation = "eager"  # a handful of tokens: the fused kernel has nothing to save
        self.transformer = SamTwoWayTransformer(config)
        self.join8, self.up8 = Join(c16, c8), blocks(c8, 1)
        self.join4, self.up4 = Join(c8, c), blocks(c, 1)
        self.norm = nn.GroupNorm(8, c)
        self.grow = nn.ConvTranspose2d(c, c // 2, 2, stride=2)
        self.tokens = nn.Embedding(1 + MASKS, c16)
        self.hyper = nn.ModuleList(_mlp(c16, c // 2) for _ in range(MASKS))
        self.iou = _mlp(c16, MASKS)

    def forward(
        self, embeddings: Tensor, positions: Tensor, sparse: Tensor, dense: Tensor, multimask: bool
    ) -> tuple[Tensor, Tensor]:
        """Logits (G, M, 2h, 2h) and predicted IoU (G, M); M is 3 with `multimask`, else 1.

        Args:
            positions: (1, E, h/4, h/4) Fourier features.
        """
        logits, iou = self.all_masks(embeddings, positions, sparse, dense)
        chosen = slice(1, None) if multimask else slice(0, 1)
        return logits[:, chosen], iou[:, chosen]

    def all_masks(self, embeddings: Tensor, positions: Tensor, sparse: Tensor, dense: Tensor) -> tuple[Tensor, Tensor]:
        """All four logits (G, 4, 2h, 2h) and IoUs (G, 4), as training wants them."""
        together = embeddings + dense
        x4 = together + F.relu(self.mix(torch.cat([together, self.pooling(embeddings, dense)], 1)))
        x8 = self.level8(self.down8(x4))
        x16 = self.level16(self.down16(x8))
        tokens = torch.cat([self.tokens.weight.expand(len(x16), -1, -1).to(sparse.dtype), sparse], 1)
        read, x16 = self._attend(tokens, x16, positions)
        y8 = self.up8(self.join8(x16, x8))
        y4 = self.up4(self.join4(y8, x4))
        y2 = F.relu(self.grow(F.relu(self.norm(y4))))
        weights = torch.stack([head(read[:, 1 + index]) for index, head in enumerate(self.hyper)], 1)
        logits = torch.einsum("gmc,gchw->gmhw", weights.to(y2.dtype), y2)
        return logits, self.iou(read[:, 0])

    def _attend(self, tokens: Tensor, x16: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        read, flat, *_ = self.transformer(
            point_embeddings=tokens[:, None],
            image_embeddings=x16,
            image_positional_embeddings=positions.expand(len(x16), -1, -1, -1).to(x16.dtype),
            attention_similarity=None,
        )
        return read[:, 0], flat[:, 0].transpose(1, 2).reshape(x16.shape)


def _mlp(channels: int, out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, out)
    )

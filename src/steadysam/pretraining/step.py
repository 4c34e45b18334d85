"""Losses of one step: every row's rounds of prompting, against its target."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from steadysam.backbones.conv.model import ConvBackbone
from steadysam.data.slices import normalise
from steadysam.pretraining.batch import PretrainBatch, Row
from steadysam.pretraining.config import LossConfig
from steadysam.synthetic.fields import happens
from steadysam.synthetic.targets import draw_clicks


class PretrainStep(nn.Module):
    """Model and losses as one module, so that data-parallel wrappers see one forward pass."""

    def __init__(self, backbone: ConvBackbone, config: LossConfig, norm: Any) -> None:
        super().__init__()
        self.backbone, self.config, self.norm = backbone, config, norm

    def forward(self, batch: PretrainBatch, generator: Generator, share: float) -> dict[str, Tensor]:
        """Named mean terms; `loss` is their weighted sum.

        Args:
            share: of focal and Dice loss against balanced cross-entropy, 0 to 1.
        """
        images = normalise(batch.images, self.norm).contiguous(memory_format=torch.channels_last)
        embeddings = self.backbone.encode(images)
        terms: dict[str, list[Tensor]] = {}
        for row in batch.rows:
            for name, value in self._rounds(embeddings, row, generator, share):
                terms.setdefault(name, []).append(value)
        means = {name: torch.stack(values).mean() for name, values in terms.items()}
        weighted = means["mask"] + self.config.iou * means["iou"]
        if self.config.affinity:
            means["affinity"] = affinity_loss(embeddings, batch.labels, generator)
            weighted = weighted + self.config.affinity * means["affinity"]
        return {"loss": weighted, **means}

    def _rounds(self, embeddings: Tensor, row: Row, generator: Generator, share: float) -> Any:
        model, size, grid = self.backbone, row.target.shape[-1], embeddings.shape[-1]
        target = F.interpolate(row.target.float()[:, None], (2 * grid, 2 * grid), mode="area")[:, 0]
        positions = model.positions_for(grid)
        present = row.target.flatten(1).any(1)
        xy, positive, prior = row.xy, row.positive, None
        for turn in range(row.rounds + 1):
            sparse, dense = model.prompt_encoder(xy, positive, row.boxes, prior, size, grid)
            logits, iou = model.mask_decoder.all_masks(embeddings, positions, sparse, dense)
            logits, iou = logits.float(), iou.float()
            mask, error, quality = row_losses(logits, iou, target, present, share, self.config)
            yield "mask", mask
            yield "iou", error
            yield f"dice{turn}" if row.rounds else "dice_other", quality
            if turn < row.rounds:
                chosen = 1 + iou[:, 1:].argmax(1) if xy.shape[1] <= 1 else torch.zeros_like(iou[:, 0]).long()
                answer = logits[torch.arange(len(logits), device=logits.device), chosen][:, None]
                xy, positive = _correct(generator, xy, positive, answer.detach(), row.target)
                keep = bool(happens(generator, 0.7, 1).item())
                prior = answer.detach() if keep else None


def affinity_loss(embeddings: Tensor, labels: Tensor, generator: Generator, count: int = 128) -> Tensor:
    """Do two cells carry the same label? Balanced cross-entropy on the cosine of half of the embedding's channels.

    Args:
        embeddings: (M, C, h, h).
        labels: (M, S, S) int64, S = 4h.
        count: cells drawn per image; all pairs among them are asked.
    """
    grid = embeddings.shape[-1]
    step = labels.shape[-1] // grid
    cells = labels[:, step // 2 :: step, step // 2 :: step].flatten(1)
    index = torch.randint(grid * grid, (len(labels), count), generator=generator, device=labels.device)
    code = embeddings[:, : embeddings.shape[1] // 2].flatten(2).float()
    code = F.normalize(code.gather(2, index[:, None].expand(-1, code.shape[1], -1)), dim=1)
    drawn = cells.gather(1, index)
    same = (drawn[:, :, None] == drawn[:, None]).float()
    logits = 8.0 * (torch.einsum("mci,mcj->mij", code, code) - 0.5)
    entropy = F.binary_cross_entropy_with_logits(logits, same, reduction="none")
    share = same.mean((1, 2), keepdim=True).clamp(0.02, 0.98)
    return (entropy * torch.where(same > 0, 0.5 / share, 0.5 / (1 - share))).mean()


def row_losses(
    logits: Tensor, iou: Tensor, target: Tensor, present: Tensor, share: float, config: LossConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss of the clear mask plus that of the best of three, IoU regression, and the Dice of the mask SAM would give.

    Args:
        logits, iou: (M, 4, m, m), (M, 4).
        target: (M, m, m) in [0, 1]; present: (M,) bool, rows whose object is on the slice. The others teach the IoU
            only: a mask of nothing has no right shape, but it must be known to be poor.
    """
    truth = target[:, None].expand_as(logits)
    probability = logits.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    overlap = (probability * truth).sum((2, 3))
    dice = 1 - (2 * overlap + 1) / (probability.sum((2, 3)) + truth.sum((2, 3)) + 1)
    wrong = (probability - truth).abs()
    focal = (wrong**2 * entropy).mean((2, 3))
    inside = truth.sum((2, 3)) + 1e-3
    outside = (1 - truth).sum((2, 3)) + 1e-3
    balanced = 0.5 * (entropy * truth).sum((2, 3)) / inside + 0.5 * (entropy * (1 - truth)).sum((2, 3)) / outside
    each = share * (config.focal * focal + config.dice * dice) + (1 - share) * balanced
    weight = present.float()
    count = weight.sum().clamp(min=1)
    mask = ((each[:, 0] + each[:, 1:].amin(1)) * weight).sum() / count
    with torch.no_grad():
        hard, real = logits > 0, truth > 0.5
        union = (hard | real).sum((2, 3)).clamp(min=1)
        actual = (hard & real).sum((2, 3)) / union
        chosen = actual[:, 1:].gather(1, iou[:, 1:].argmax(1, keepdim=True))[:, 0]
        quality = (2 * chosen / (1 + chosen) * weight).sum() / count
    return mask, F.mse_loss(iou, actual), quality


@torch.no_grad()
def _correct(
    generator: Generator, xy: Tensor, positive: Tensor, answer: Tensor, target: Tensor
) -> tuple[Tensor, Tensor]:
    """Add the click that a person would make next: into the larger of what was missed and what was marked wrongly."""
    marked = F.interpolate(answer, target.shape[-2:], mode="bilinear", align_corners=False)[:, 0] > 0
    missed, excess = target & ~marked, marked & ~target
    missing = missed.flatten(1).sum(1) >= excess.flatten(1).sum(1)
    region = torch.where(missing[:, None, None], missed, excess)
    nothing = ~region.flatten(1).any(1)
    region = torch.where((nothing & target.flatten(1).any(1))[:, None, None], target, region)
    interior = torch.ones(len(target), dtype=torch.bool, device=target.device)
    click = draw_clicks(generator, region, 1, interior)
    sign = (missing | nothing)[:, None]
    return torch.cat([xy, click], 1), torch.cat([positive, sign], 1)


def model_of(step: Any) -> ConvBackbone:
    """The backbone inside a `PretrainStep`, whatever wraps it."""
    return cast(ConvBackbone, getattr(step, "module", step).backbone)

"""The last stage of pretraining: on the finished network, the quality head alone learns which masks are good."""

from __future__ import annotations

import logging

import torch
from accelerate import Accelerator
from torch import Generator, Tensor
from torch.nn import functional as F

from steadysam.backbones.conv.model import ConvBackbone
from steadysam.data.slices import normalise
from steadysam.pretraining.batch import Row, draw_batch
from steadysam.pretraining.config import PretrainConfig
from steadysam.pretraining.draws import size_at, step_generator
from steadysam.pretraining.step import correct

logger = logging.getLogger(__name__)


def train_quality(backbone: ConvBackbone, config: PretrainConfig, accelerator: Accelerator, norm: str) -> float:
    """Train `mask_decoder.quality` for `optim.quality_steps` steps, all else frozen; returns the last mean error.

    The steps follow those of the first stage, so that no image comes twice. It takes minutes and keeps no checkpoints:
    killed, it begins anew. Several processes take the same steps.
    """
    steps, device = config.optim.quality_steps, accelerator.device
    head = backbone.mask_decoder.quality
    backbone.eval().requires_grad_(False)
    head.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(head.parameters(), lr=config.optim.rate, weight_decay=config.optim.weight_decay)
    recent = 0.0
    for number in range(steps):
        step = config.optim.steps + number
        generator = step_generator(config, step, 0, device)
        size = size_at(config, step)
        batch = draw_batch(
            generator, config.optim.images_at(size), size, config.scene, config.prompts, config.loss.rounds
        )
        with accelerator.autocast():
            with torch.no_grad():
                images = normalise(batch.images, norm).contiguous(memory_format=torch.channels_last)  # pyright: ignore
                embeddings = backbone.encode(images)
            errors = [error for row in batch.rows for error in _rounds(backbone, embeddings, row, generator)]
        loss = torch.stack(errors).mean()
        for group in optimizer.param_groups:
            group["lr"] = config.optim.rate * min(1.0, (number + 1) / 20, 2 * (steps - number) / steps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        recent = 0.98 * recent + 0.02 * float(loss.detach()) if number else float(loss.detach())
        if (number + 1) % 100 == 0:
            logger.info("quality head: step %d of %d, squared error %.4f", number + 1, steps, recent)
    head.eval()
    backbone.mask_decoder.judged.fill_(float(steps > 0))
    return recent


def _rounds(backbone: ConvBackbone, embeddings: Tensor, row: Row, generator: Generator) -> list[Tensor]:
    """Squared error of the predicted IoU in every round of a row; the rounds are those of the first stage."""
    size, grid = row.target.shape[-1], embeddings.shape[-1]
    decoder, positions = backbone.mask_decoder, backbone.positions_for(grid)
    real = F.interpolate(row.target.float()[:, None], (2 * grid, 2 * grid), mode="area") > 0.5
    xy, positive, prior = row.xy, row.positive, None
    errors = []
    for turn in range(row.rounds + 1):
        with torch.no_grad():
            sparse, dense = backbone.prompt_encoder(xy, positive, row.boxes, prior, size, grid)
            logits, features, tokens = decoder.masks_and_features(embeddings, positions, sparse, dense)
            hard = logits > 0
            actual = (hard & real).sum((2, 3)) / (hard | real).sum((2, 3)).clamp(min=1)
        iou = decoder.quality(logits, features, tokens)
        errors.append(F.mse_loss(iou, actual.float()))
        if turn < row.rounds:
            chosen = 1 + iou[:, 1:].argmax(1) if xy.shape[1] <= 1 else torch.zeros_like(iou[:, 0]).long()
            answer = logits[torch.arange(len(logits), device=logits.device), chosen][:, None].float()
            xy, positive = correct(generator, xy, positive, answer, row.target)
            prior = answer
    return errors

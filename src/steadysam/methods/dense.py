"""What networks of their own share as methods: settings, training material, losses and the way over a stack."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from steadysam.augment import IDENTITY, Augmentation, AugmentConfig, draw, move_points
from steadysam.data.slices import normalise
from steadysam.embeddings import EmbeddingCache
from steadysam.losses import cross_entropy, dice_loss
from steadysam.methods.contract import Batch, Chance, FrozenConfig, Stage, StageSettings, TrainingCase
from steadysam.methods.networks import Network, probabilities
from steadysam.methods.samples import AugmentedSlices
from steadysam.methods.slicewise import accept_all, mean_terms
from steadysam.types import Segmentation, SlicePoints, SliceStack

_ROWS = 8  # slices per forward pass; fixed, so that results do not depend on what else runs


class DenseConfig(FrozenConfig):
    """Weights of cross-entropy and Dice, augmentation, and the one stage of training."""

    FIXED: ClassVar[frozenset[str]] = frozenset(("ce_weight", "dice_weight"))

    ce_weight: float = Field(default=0.5, ge=0)
    dice_weight: float = Field(default=0.5, ge=0)
    augment: AugmentConfig = AugmentConfig()
    tuning: StageSettings = StageSettings()


class PromptedConfig(DenseConfig):
    """Prompts as channels: Gaussian spots of deviation `sigma_px` (model pixels), own slice and n on each side.

    With `redraw` simulated prompts are drawn anew at each visit.
    """

    sigma_px: float = Field(default=3.0, gt=0)
    n: int = Field(default=2, ge=0)
    redraw: bool = False

    @property
    def channels(self) -> int:
        """Own positive and negative points, and the positive points of 2n neighbours."""
        return 2 + 2 * self.n


def stages(config: Any) -> tuple[Stage, ...]:
    """One stage that trains everything."""
    prompted = isinstance(config, PromptedConfig)
    return (
        Stage(
            name="tuning",
            trainable=("net.*",),
            samples=lambda model, cases, cache: (
                ChannelSamples(cases, config) if prompted else AugmentedSlices(cases, config.augment, prompted=False)
            ),
            losses=lambda model, batch: dense_losses(cast(Network, model), batch, config),
            settings=config.tuning,
        ),
    )


def dense_losses(model: Network, batch: Batch, config: DenseConfig) -> dict[str, Tensor]:
    """Cross-entropy and Dice on every output, weighted as the network says."""
    images, target = batch.tensors["images"], batch.tensors["masks"]
    if "channels" in batch.tensors:
        images = torch.cat([images, batch.tensors["channels"]], 1)
    outputs = model(images)
    terms: dict[str, Tensor] = {"ce": torch.zeros(len(target), device=target.device)}
    terms["dice"] = torch.zeros_like(terms["ce"])
    for weight, logits in zip(model.weights(len(outputs)), outputs, strict=True):
        terms["ce"] = terms["ce"] + weight * config.ce_weight * cross_entropy(logits, target)
        probability = torch.sigmoid(logits.float())
        # one pixel in numerator and denominator: an empty slice must have a gradient here
        terms["dice"] = terms["dice"] + weight * config.dice_weight * dice_loss(probability, target, eps=1.0)
    return mean_terms(terms)


def segment(
    model: nn.Module, config: Any, stack: SliceStack, points: Sequence[SlicePoints], cache: EmbeddingCache
) -> Segmentation:
    """Slice by slice; with a `PromptedConfig` every point is a spot in a channel and accepted."""
    prompted = isinstance(config, PromptedConfig)
    parts = []
    for start in range(0, stack.depth, _ROWS):
        rows = range(start, min(stack.depth, start + _ROWS))
        images = normalise(torch.from_numpy(np.array(stack.images[rows.start : rows.stop])), stack.preprocess.norm)
        if prompted:
            spots = [prompt_channels(points, t, config, stack.preprocess.size) for t in rows]
            images = torch.cat([images, torch.from_numpy(np.stack(spots))], 1)
        parts.append(probabilities(model, images))
    probability = torch.cat(parts).numpy()
    if not prompted:
        return Segmentation(probability, None)
    decisions = accept_all(points, "given to the network as a channel")
    return Segmentation(probability, None, tuple(points), decisions)


class ChannelSamples:
    """Slices with masks and prompt channels; image, mask and points of all slices are moved together."""

    def __init__(self, cases: Sequence[TrainingCase], config: PromptedConfig) -> None:
        self.slices = AugmentedSlices(cases, config.augment, prompted=False)
        self.cases, self.config = cases, config

    def __len__(self) -> int:
        return len(self.slices)

    def batch(self, indices: Sequence[int], chance: Chance) -> Batch:
        """`images` (B, 3, S, S), `masks` (B, 1, S, S) and `channels` (B, 2 + 2n, S, S)."""
        channels = []
        for index in indices:
            c, t = self.slices.slices[index]
            case, points, move = self.cases[c], self.cases[c].points, IDENTITY
            if chance.training:
                move = draw(self.config.augment, chance.generator(case.name, t))  # as AugmentedSlices draws it
                if self.config.redraw and case.redraw is not None:
                    points = case.redraw(chance.generator(case.name, t, "redraw"))
            spots = prompt_channels(points, t, self.config, case.stack.preprocess.size, move)
            channels.append(torch.from_numpy(spots))
        base = self.slices.batch(indices, chance)
        return Batch({**base.tensors, "channels": torch.stack(channels)})


def prompt_channels(
    points: Sequence[SlicePoints], t: int, config: PromptedConfig, size: int, move: Augmentation = IDENTITY
) -> NDArray[np.float32]:
    """(2 + 2n, S, S): own positive points, own negative points, positive points of slices t - n .. t + n but t.

    Beyond the ends of the stack there are no points.
    """
    near = [s for s in range(t - config.n, t + config.n + 1) if s != t]
    rows = [(t, True), (t, False), *((s, True) for s in near)]
    planes = []
    for s, sign in rows:
        here = move_points(points[s], move, size) if 0 <= s < len(points) else SlicePoints.empty()
        planes.append(spots(here.xy[here.positive == sign], size, config.sigma_px))
    return np.stack(planes)


def spots(xy: NDArray[np.float32], size: int, sigma: float) -> NDArray[np.float32]:
    """(K, 2) points -> (S, S): exp(-d^2 / 2 sigma^2) of the nearest point; 0 without points."""
    if not len(xy):
        return np.zeros((size, size), np.float32)
    axis = np.arange(size, dtype=np.float32)
    x = (axis[None] - xy[:, :1]) ** 2
    y = (axis[None] - xy[:, 1:]) ** 2
    return np.exp(-(y[:, :, None] + x[:, None, :]).min(0) / (2 * sigma**2)).astype(np.float32)

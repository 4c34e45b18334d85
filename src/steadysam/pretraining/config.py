"""Everything that decides a pretraining run; one TOML file regenerates the weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from steadysam.config import validated
from steadysam.methods.contract import FrozenConfig
from steadysam.synthetic.config import PromptMix, SceneConfig


class ModelConfig(FrozenConfig):
    """A row of `steadysam models list` of our own kind, and the seed of its random start.

    `start` is a weights file of the same shape to go on from.
    """

    name: str = "steadysam-tiny-scratch"
    seed: int = 0
    start: str | None = None


class OptimConfig(FrozenConfig):
    """AdamW with a linear warm-up, a constant rate, and a linear fall to zero over the last `decay` of all steps.

    Args:
        steps: in all; an epoch is `steps_per_epoch` of them, after which a checkpoint and a row of the log are written.
        sizes, shares: image sizes in pixels and how often each is drawn; the same weights must serve all of them.
        images: per step and process at the smallest size; larger images come in proportionally smaller batches.
        rate, warmup, decay, weight_decay, clip: as named.
        ema: decay of the averaged weights, which are what is shipped.
        snapshots: keep the averaged weights whenever the number of epochs doubles.
        balanced: steps over which class-balanced cross-entropy hands over to focal and Dice loss.
    """

    steps: int = Field(default=1000, ge=1)
    steps_per_epoch: int = Field(default=250, ge=1)
    sizes: tuple[int, ...] = Field(default=(128, 256), min_length=1)
    shares: tuple[float, ...] = (0.8, 0.2)
    images: int = Field(default=16, ge=1)
    rate: float = Field(default=1e-3, gt=0)
    warmup: int = Field(default=200, ge=0)
    decay: float = Field(default=0.3, ge=0, le=1)
    weight_decay: float = Field(default=0.02, ge=0)
    clip: float = Field(default=1.0, ge=0)
    ema: float = Field(default=0.998, ge=0, lt=1)
    balanced: int = Field(default=600, ge=0)
    snapshots: bool = True

    @model_validator(mode="after")
    def _one_share_per_size(self) -> OptimConfig:
        if len(self.sizes) != len(self.shares) or min(self.shares) < 0 or sum(self.shares) <= 0:
            raise ValueError("shares: one number, 0 or more, for each of sizes")
        return self

    def images_at(self, size: int) -> int:
        """Images per step that cost as much as `images` of the smallest size."""
        return max(1, round(self.images * (min(self.sizes) / size) ** 2))


class LossConfig(FrozenConfig):
    """Weights of the terms (SAM's 20 focal + 1 Dice + 1 IoU), and the most rounds of prompting of a row.

    `affinity` teaches the embedding itself which pixels belong together, so that the decoder finds regions in it from
    the start; without it a network from random weights first learns to draw blobs around clicks without looking.
    """

    focal: float = Field(default=20.0, ge=0)
    dice: float = Field(default=1.0, ge=0)
    iou: float = Field(default=1.0, ge=0)
    affinity: float = Field(default=1.0, ge=0)
    rounds: int = Field(default=3, ge=1)


class PretrainCompute(FrozenConfig):
    """How to compute; see `steadysam.config.ComputeConfig`. `bf16` halves the time on CPUs with AVX-512 BF16."""

    seed: int = 0
    device: str = "auto"
    precision: Literal["no", "bf16", "fp16"] = "no"
    threads: int = Field(default=0, ge=0)
    matmul: Literal["highest", "high"] = "highest"


class PretrainConfig(FrozenConfig):
    """One run."""

    model: ModelConfig = ModelConfig()
    scene: SceneConfig = SceneConfig()
    prompts: PromptMix = PromptMix()
    optim: OptimConfig = OptimConfig()
    loss: LossConfig = LossConfig()
    compute: PretrainCompute = PretrainCompute()


def make_pretrain_config(values: Mapping[str, Any]) -> PretrainConfig:
    """Validate nested values.

    Raises:
        ConfigError: `CONFIG_UNKNOWN_KEY` (with the nearest known key) or `CONFIG_VALUE`.
    """
    return validated(PretrainConfig, values)

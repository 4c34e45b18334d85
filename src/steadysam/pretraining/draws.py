"""What a step of pretraining is given: its learning rate, the size of its images, its generator."""

from __future__ import annotations

import numpy as np
import torch
from torch import Generator

from steadysam.pretraining.config import OptimConfig, PretrainConfig


def rate_at(optim: OptimConfig, step: int) -> float:
    """Learning rate of a step: linear warm-up, constant, linear to zero over the last `decay` of the steps."""
    up = min(1.0, (step + 1) / optim.warmup) if optim.warmup else 1.0
    fall = optim.decay * optim.steps
    down = min(1.0, (optim.steps - step) / fall) if fall else 1.0
    return optim.rate * min(up, down)


def size_at(config: PretrainConfig, step: int) -> int:
    """The image size of a step, the same on all processes."""
    chance = np.random.default_rng([config.compute.seed, step])
    shares = np.array(config.optim.shares)
    return int(chance.choice(config.optim.sizes, p=shares / shares.sum()))


def step_generator(config: PretrainConfig, step: int, process: int, device: torch.device) -> Generator:
    """The generator of one step: the same images and prompts whenever this step is taken."""
    number = (config.compute.seed * 1_000_003 + step) * 1_009 + process
    return torch.Generator(device).manual_seed(number)

"""The loop of pretraining: every step draws its own images; what happens is a function of (seed, step, process)."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Generator, Tensor, nn

from steadysam.checkpoints import Progress, load_optimizer, newest_step, optimizer_tensors, save_step
from steadysam.errors import OutputError
from steadysam.logs import EpochBar, TrainingLog
from steadysam.methods.contract import StageSettings
from steadysam.pretraining.batch import draw_batch
from steadysam.pretraining.config import OptimConfig, PretrainConfig
from steadysam.pretraining.export import export
from steadysam.pretraining.score import averaged, held_out_score
from steadysam.pretraining.step import PretrainStep, model_of

logger = logging.getLogger(__name__)

STAGE = "pretrain"


def run_steps(
    step_module: PretrainStep, config: PretrainConfig, accelerator: Accelerator, folder: Path
) -> dict[str, Tensor]:
    """Train from the newest checkpoint (or the start) to the end; returns the averaged weights.

    Args:
        folder: `checkpoints/` and `logs/` are written below it.

    Raises:
        OutputError: `NUMERIC_LOSS` if a loss is not finite; the last checkpoint stays as it was.
    """
    optim = config.optim
    step_module.to(accelerator.device).to(memory_format=torch.channels_last)  # pyright: ignore
    names = {n: p for n, p in step_module.backbone.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(names.values(), lr=optim.rate, weight_decay=optim.weight_decay)
    average = {name: p.detach().clone() for name, p in names.items()}
    done = _resume(folder / "checkpoints", names, average, optimizer, accelerator)
    wrapped, optimizer = accelerator.prepare(step_module, optimizer)
    # both rounded up: the last epoch may be a short one, and once done it is not to be taken again
    epochs, begun = -(-optim.steps // optim.steps_per_epoch), -(-done // optim.steps_per_epoch)
    main = accelerator.is_main_process
    settings = StageSettings(batch_size=1, slices_per_epoch=optim.steps_per_epoch)
    log = TrainingLog(folder / "logs", STAGE, begun, enabled=main)
    with log, EpochBar(STAGE, epochs, begun, main) as bar:
        for epoch in range(begun, epochs):
            started, first = time.monotonic(), epoch * optim.steps_per_epoch
            last = min(optim.steps, first + optim.steps_per_epoch)
            total: dict[str, list[float]] = {}
            for step in range(first, last):
                terms = _one_step(wrapped, optimizer, config, accelerator, step)
                _follow(average, names, optim.ema, step)
                for name, value in terms.items():
                    total.setdefault(name, []).append(value)
                bar.step(step - first, optim.steps_per_epoch, settings, 1)
            means = {name: sum(values) / len(values) for name, values in sorted(total.items())}
            images = sum(optim.images_at(size_at(config, step)) for step in range(last))
            means["images"] = float(images * accelerator.num_processes)
            if main:
                backbone = model_of(wrapped)
                with averaged(backbone, average):
                    score = held_out_score(backbone, config.scene, min(optim.sizes), step_module.norm)
                    if optim.snapshots and (epoch + 1) & epoch == 0:
                        name = f"{int(means['images']):09d}.safetensors"
                        export(backbone, backbone.state_dict(), folder / "snapshots" / name)
                log.epoch(epoch + 1, rate_at(optim, last - 1), means, score, time.monotonic() - started)
                bar.note(epoch + 1, f"one click {score['one']:.3f}, three {score['three']:.3f}, box {score['box']:.3f}")
                progress = Progress(names, average, optimizer_tensors(optimizer, list(names)), {"step": last})
                save_step(folder / "checkpoints", STAGE, epoch + 1, progress)
            accelerator.wait_for_everyone()
    return average


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


def _one_step(
    wrapped: nn.Module, optimizer: Any, config: PretrainConfig, accelerator: Accelerator, step: int
) -> dict[str, float]:
    optim = config.optim
    generator = step_generator(config, step, accelerator.process_index, accelerator.device)
    size = size_at(config, step)
    batch = draw_batch(generator, optim.images_at(size), size, config.scene, config.prompts, config.loss.rounds)
    share = min(1.0, max(0.0, step / optim.balanced - 0.2)) if optim.balanced else 1.0
    for group in optimizer.param_groups:
        group["lr"] = rate_at(optim, step)
    with accelerator.autocast():
        terms = wrapped(batch, generator, share)
    numbers = {name: float(value.detach()) for name, value in terms.items()}
    if not all(value == value and abs(value) < 1e30 for value in numbers.values()):
        raise OutputError(
            "NUMERIC_LOSS",
            f"the loss is not finite at step {step + 1}",
            fix="lower optim.rate or train with compute.precision = 'no'; the last checkpoint is intact",
        )
    accelerator.backward(terms["loss"])
    if optim.clip:
        accelerator.clip_grad_norm_(model_of(wrapped).parameters(), optim.clip)
    optimizer.step()
    optimizer.zero_grad()
    return numbers


@torch.no_grad()
def _follow(average: dict[str, Tensor], names: dict[str, nn.Parameter], decay: float, step: int) -> None:
    """Exponential moving average, short at the start so that the random weights are soon forgotten."""
    decay = min(decay, (step + 1) / (step + 10))
    for name, value in average.items():
        value.lerp_(names[name].detach(), 1 - decay)


def _resume(
    folder: Path,
    names: dict[str, nn.Parameter],
    average: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
) -> int:
    progress = newest_step(folder, STAGE)
    if progress is None:
        return 0
    with torch.no_grad():
        for name in names:
            names[name].copy_(progress.trained[name])
            average[name].copy_(progress.best[name])
    load_optimizer(optimizer, list(names), {n: t.to(accelerator.device) for n, t in progress.optimizer.items()})
    logger.info("going on after step %d", progress.numbers["step"])
    return int(progress.numbers["step"])

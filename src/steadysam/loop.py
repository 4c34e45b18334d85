"""The one training loop. A method brings parameters and losses; everything that happens to them happens here.

Every random draw is a function of (seed, stage, epoch, step), so an epoch that was interrupted is simply run again
and a resumed run ends with the same bytes as one that was never stopped (CPU, same number of threads).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from steadysam.checkpoints import (
    Progress,
    load_optimizer,
    newest_step,
    optimizer_tensors,
    save_step,
)
from steadysam.embeddings import EmbeddingCache
from steadysam.errors import ConfigError, OutputError
from steadysam.logs import EpochBar, TrainingLog
from steadysam.methods.contract import Batch, Chance, Samples, Stage, StageSettings, TrainingCase

_SCHEDULER_NUMBERS = ("best", "num_bad_epochs", "cooldown_counter", "last_epoch")


class StageStep(nn.Module):
    """Model and losses as one module, so that data-parallel wrappers see one forward pass."""

    def __init__(self, model: nn.Module, stage: Stage) -> None:
        super().__init__()
        self.model = model
        self.losses = stage.losses

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Batch -> named loss terms (means over samples) and `loss`, their sum."""
        terms = dict(self.losses(self.model, batch))
        return {"loss": torch.stack(list(terms.values())).sum(), **terms}


@dataclass(eq=False)
class StageState:
    """Where a stage stands; all of it goes into every checkpoint."""

    epoch: int = 0  # epochs finished
    best_loss: float = math.inf
    best_epoch: int = -1
    best: dict[str, Tensor] = field(default_factory=dict)
    finished: bool = False


def train_stage(
    model: nn.Module,
    stage: Stage,
    cases: tuple[Sequence[TrainingCase], Sequence[TrainingCase]],
    cache: EmbeddingCache,
    accelerator: Accelerator,
    run_folder: Path,
    seed: int,
) -> StageState:
    """Train one stage from its newest checkpoint (or from the start) and leave the best weights in the model.

    Args:
        cases: training and validation cases; without validation cases the training loss decides.
        run_folder: `checkpoints/` and `logs/` are written below it.

    Raises:
        OutputError: `NUMERIC_LOSS` if a loss is not finite; the last checkpoint stays as it was.
    """
    settings = stage.settings
    parameters = select_trainable(model, stage)
    training = stage.samples(model, cases[0], cache)
    validation = stage.samples(model, cases[1], cache) if cases[1] else None
    optimizer = make_optimizer(settings, list(parameters.values()))
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=settings.factor, patience=settings.patience
    )
    state = _resume(run_folder / "checkpoints", stage.name, parameters, optimizer, scheduler, accelerator.device)
    step_module, optimizer = accelerator.prepare(StageStep(model, stage), optimizer)
    log = TrainingLog(run_folder / "logs", stage.name, state.epoch, enabled=accelerator.is_main_process)
    with log, EpochBar(stage.name, settings.epochs, state.epoch, accelerator.is_main_process) as bar:
        while state.epoch < settings.epochs and not state.finished:
            started = time.monotonic()
            chance = Chance(seed, stage.name, state.epoch, training=True)
            if settings.schedule == "poly":
                optimizer.param_groups[0]["lr"] = settings.learning_rate * (1 - state.epoch / settings.epochs) ** 0.9
            rate = optimizer.param_groups[0]["lr"]
            trained = _train_epoch(step_module, stage, training, optimizer, accelerator, chance, bar)
            watched = trained
            if validation is not None:
                watched = _validate(step_module, stage, validation, accelerator, seed)
            if settings.schedule == "plateau":
                scheduler.step(watched["loss"])
            state.epoch += 1
            if watched["loss"] < state.best_loss:
                state.best_loss, state.best_epoch = watched["loss"], state.epoch
                state.best = {name: p.detach().to("cpu", copy=True) for name, p in parameters.items()}
            state.finished = state.epoch - state.best_epoch >= settings.early_stop
            log.epoch(state.epoch, rate, trained, watched, time.monotonic() - started)
            bar.epoch(state.epoch, watched["loss"], state.best_loss)
            _save(run_folder / "checkpoints", stage.name, state, parameters, optimizer, scheduler, accelerator)
    with torch.no_grad():
        for name, tensor in state.best.items():
            parameters[name].copy_(tensor)
    model.eval().requires_grad_(False)
    accelerator.free_memory()
    return state


def make_optimizer(settings: StageSettings, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimiser of a stage."""
    rate, decay = settings.learning_rate, settings.weight_decay
    if settings.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=rate, weight_decay=decay, momentum=settings.momentum, nesterov=True)
    kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, lr=rate, weight_decay=decay)


def select_trainable(model: nn.Module, stage: Stage) -> dict[str, nn.Parameter]:
    """Freeze everything but the stage's parameters; put their modules in train mode and all others in eval mode.

    Raises:
        ConfigError: `CONFIG_VALUE` if a pattern names no parameter.
    """
    named = dict(model.named_parameters())
    for pattern in stage.trainable:
        if not any(fnmatchcase(name, pattern) for name in named):
            raise ConfigError("CONFIG_VALUE", f"stage {stage.name!r} trains {pattern!r}, which the model lacks")
    chosen = {n: p for n, p in named.items() if any(fnmatchcase(n, pattern) for pattern in stage.trainable)}
    for name, parameter in named.items():
        parameter.requires_grad_(name in chosen)
    model.eval()
    for pattern in stage.trainable:
        model.get_submodule(pattern.split("*")[0].rstrip(".")).train()
    return chosen


def batches(
    samples: Samples, settings: StageSettings, chance: Chance, rank: int = 0, world: int = 1
) -> Iterator[tuple[Batch, float]]:
    """The batches of one epoch for one process, each with the weight that makes the mean over processes exact.

    The order is a function of `chance`. A global batch of `batch_size * world` samples is dealt out sample by sample;
    a process that gets none in the last batch computes one sample with weight 0, so that all stay in step.
    """
    order = np.arange(len(samples))
    if chance.training:
        order = chance.generator("order").permutation(len(samples))
        order = order[: settings.slices_per_epoch or None]
    size = settings.batch_size * world
    for start in range(0, len(order), size):
        together = order[start : start + size]
        mine = together[rank::world]
        weight = len(mine) * world / len(together)
        yield samples.batch([int(i) for i in (mine if len(mine) else together[:1])], chance), weight


def _train_epoch(
    step_module: nn.Module,
    stage: Stage,
    samples: Samples,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    chance: Chance,
    bar: EpochBar,
) -> dict[str, float]:
    settings = stage.settings
    total = _Mean()
    rank, world = accelerator.process_index, accelerator.num_processes
    rate = optimizer.param_groups[0]["lr"]
    step_before = chance.epoch * math.ceil(len(samples) / (settings.batch_size * world))
    for step, (batch, weight) in enumerate(batches(samples, settings, chance, rank, world)):
        torch.manual_seed(int(chance.generator("dropout", step, rank).integers(2**62)))
        warm = min(1.0, (step_before + step + 1) / settings.warmup_steps) if settings.warmup_steps else 1.0
        optimizer.param_groups[0]["lr"] = rate * warm
        with accelerator.autocast():
            terms = step_module(batch.to(accelerator.device))
        _check_finite(terms, stage.name, chance.epoch, step)
        accelerator.backward(terms["loss"] * weight)
        if settings.clip_norm:
            accelerator.clip_grad_norm_(step_module.parameters(), settings.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        total.add(terms, len(batch) if weight else 0)
        bar.step(step, len(samples), settings, world)
    optimizer.param_groups[0]["lr"] = rate
    return total.over(accelerator)


@torch.no_grad()
def _validate(
    step_module: nn.Module, stage: Stage, samples: Samples, accelerator: Accelerator, seed: int
) -> dict[str, float]:
    """Mean losses over all validation samples, without augmentation or dropout."""
    chance = Chance(seed, stage.name, 0, training=False)
    modes = {module: module.training for module in step_module.modules()}
    step_module.eval()
    total = _Mean()
    rank, world = accelerator.process_index, accelerator.num_processes
    for batch, weight in batches(samples, stage.settings, chance, rank, world):
        terms = accelerator.unwrap_model(step_module)(batch.to(accelerator.device))
        total.add(terms, len(batch) if weight else 0)
    for module, mode in modes.items():
        module.training = mode
    return total.over(accelerator)


class _Mean:
    """Sample-weighted means of named terms, over batches and then over processes."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.count = 0

    def add(self, terms: Mapping[str, Tensor], count: int) -> None:
        self.count += count
        for name, value in terms.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value.detach()) * count

    def over(self, accelerator: Accelerator) -> dict[str, float]:
        values = torch.tensor([*self.sums.values(), float(self.count)], dtype=torch.float64)
        if accelerator.num_processes > 1:
            values = accelerator.reduce(values.to(accelerator.device), reduction="sum").cpu()  # pyright: ignore
        return {name: float(v / values[-1]) for name, v in zip(self.sums, values[:-1], strict=True)}


def _check_finite(terms: Mapping[str, Tensor], stage: str, epoch: int, step: int) -> None:
    bad = [name for name, value in terms.items() if not bool(torch.isfinite(value))]
    if bad:
        raise OutputError(
            "NUMERIC_LOSS",
            f"the loss is not finite ({', '.join(bad)}) in stage {stage}, epoch {epoch + 1}, step {step + 1}",
            fix="lower the learning rate, or train with compute.precision = 'no'; the last checkpoint is intact",
        )


def _resume(
    folder: Path,
    stage: str,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.ReduceLROnPlateau,
    device: torch.device,
) -> StageState:
    progress = newest_step(folder, stage)
    if progress is None:
        return StageState()
    with torch.no_grad():
        for name, tensor in progress.trained.items():
            parameters[name].copy_(tensor)
    load_optimizer(optimizer, list(parameters), {n: t.to(device) for n, t in progress.optimizer.items()})
    numbers = progress.numbers
    scheduler.load_state_dict({**scheduler.state_dict(), **numbers["scheduler"]})
    optimizer.param_groups[0]["lr"] = numbers["learning_rate"]
    return StageState(
        numbers["epoch"], numbers["best_loss"], numbers["best_epoch"], dict(progress.best), numbers["finished"]
    )


def _save(
    folder: Path,
    stage: str,
    state: StageState,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.ReduceLROnPlateau,
    accelerator: Accelerator,
) -> None:
    if accelerator.is_main_process:
        numbers = {
            "best_loss": state.best_loss,
            "best_epoch": state.best_epoch,
            "finished": state.finished,
            "learning_rate": optimizer.param_groups[0]["lr"],
            "scheduler": {name: getattr(scheduler, name) for name in _SCHEDULER_NUMBERS},
        }
        progress = Progress(dict(parameters), state.best, optimizer_tensors(optimizer, list(parameters)), numbers)
        save_step(folder, stage, state.epoch, progress)
    accelerator.wait_for_everyone()

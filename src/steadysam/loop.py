"""The one training loop. A method brings parameters and losses; everything that happens to them happens here.

Every random draw is a function of (seed, stage, epoch, step), so an epoch that was interrupted is simply run again
and a resumed run ends with the same bytes as one that was never stopped (CPU, same number of threads).
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
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
from steadysam.optimisation import Optimisation, make_optimisation, set_rate
from steadysam.trainable import select_trainable, stage_buffers

logger = logging.getLogger(__name__)

SAVE_SECONDS = 20  # with short epochs of large networks, checkpoints would take as long as the training
_LARGEST_OF_ADAM = 0.02  # a rate; the rates of SGD, which `optimizer` alone would leave, make the weights diverge


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
    best_loss: float = math.inf  # or the least Dice term, as the stage selects
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

    A checkpoint is written after an epoch, but not within `SAVE_SECONDS` of the last; results do not depend on it.

    Args:
        cases: training and validation cases; without validation slices that the stage can use, its training slices
            decide, or the last epoch is taken (`Stage.needs_validation`).
        run_folder: `checkpoints/` and `logs/` are written below it.

    Raises:
        ConfigError: `CONFIG_VALUE` if the stage's losses have no term to select by.
        OutputError: `NUMERIC_LOSS` if a loss is not finite, and the last checkpoint stays as it was; or if that of
            validation never was. An epoch in which that is not finite is not the best one.
    """
    settings = stage.settings
    parameters = select_trainable(model, stage)
    training = stage.samples(model, cases[0], cache)
    of_validation = stage.validation_samples or stage.samples
    validation = (of_validation(model, cases[1], cache) if cases[1] else None) or None  # or none that it can use
    _warn_of_rate(stage.name, settings, len(training), accelerator.num_processes)
    work = make_optimisation(stage, parameters, stage_buffers(model, stage))
    state = _resume(run_folder / "checkpoints", stage.name, work, accelerator.device)
    step_module, work.optimizer = accelerator.prepare(StageStep(model, stage), work.optimizer)
    work.buffers = stage_buffers(model, stage)  # moving a module puts new tensors in the place of its buffers
    log = TrainingLog(run_folder / "logs", stage.name, state.epoch, enabled=accelerator.is_main_process)
    saved = time.monotonic()
    with log, EpochBar(stage.name, settings.epochs, state.epoch, accelerator.is_main_process) as bar:
        while state.epoch < settings.epochs and not state.finished:
            started = time.monotonic()
            chance = Chance(seed, stage.name, state.epoch, training=True)
            rate = work.rate.at(state.epoch)
            watched = trained = _train_epoch(step_module, stage, training, work, accelerator, chance, bar)
            _share_buffers(work, accelerator)
            state.epoch += 1
            with work.averaged.in_place():
                if validation is not None:
                    watched = _validate(step_module, stage, validation, accelerator, seed)
                chosen_by = _selected(watched, stage, state.epoch)
                blind = validation is None and stage.needs_validation
                if blind or chosen_by < state.best_loss:
                    state.best_loss, state.best_epoch, state.best = chosen_by, state.epoch, work.copies()
            work.rate.after(chosen_by)
            state.finished = state.epoch - state.best_epoch >= settings.early_stop
            log.epoch(state.epoch, rate, trained, watched, time.monotonic() - started)
            bar.epoch(state.epoch, chosen_by, state.best_loss, settings.select_by)
            due = time.monotonic() - saved >= SAVE_SECONDS or accelerator.num_processes > 1  # clocks may differ
            if due or state.finished or state.epoch == settings.epochs:
                _save(run_folder / "checkpoints", stage.name, state, work, accelerator)
                saved = time.monotonic()
    if settings.epochs and state.best_epoch < 0:
        raise OutputError(
            "NUMERIC_LOSS",
            f"the validation loss of stage {stage.name} was finite in no epoch: there are no weights to keep",
            seen=f"learning_rate = {settings.learning_rate:g} with {settings.optimizer}",
            fix="lower the learning rate, and choose another -o",
        )
    work.put(state.best)
    model.eval().requires_grad_(False)
    accelerator.free_memory()
    return state


def _warn_of_rate(name: str, settings: StageSettings, slices: int, world: int) -> None:
    if settings.optimizer != "sgd" and settings.learning_rate > _LARGEST_OF_ADAM:
        said = "stage %s: a learning rate of %g is one for SGD; %s wants 0.002 or less"
        logger.warning(said, name, settings.learning_rate, settings.optimizer)
    steps = settings.epochs * math.ceil(slices / (settings.batch_size * world))
    if settings.warmup_steps > steps / 2:
        said = "stage %s: the rate grows for %d steps, and there are %d: lower warmup_steps, or raise epochs"
        logger.warning(said, name, settings.warmup_steps, steps)


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
    work: Optimisation,
    accelerator: Accelerator,
    chance: Chance,
    bar: EpochBar,
) -> dict[str, float]:
    settings = stage.settings
    total = _Mean()
    rank, world = accelerator.process_index, accelerator.num_processes
    rate = work.rate.at(chance.epoch)
    step_before = chance.epoch * math.ceil(len(samples) / (settings.batch_size * world))  # see `StageSettings`
    for step, (batch, weight) in enumerate(batches(samples, settings, chance, rank, world)):
        torch.manual_seed(int(chance.generator("dropout", step, rank).integers(2**62)))
        warm = min(1.0, (step_before + step + 1) / settings.warmup_steps) if settings.warmup_steps else 1.0
        set_rate(work.optimizer, rate * warm)
        with accelerator.autocast():
            terms = step_module(batch.to(accelerator.device))
        _check_finite(terms, stage.name, chance.epoch, step)
        accelerator.backward(terms["loss"] * weight)
        if settings.clip_norm:
            accelerator.clip_grad_norm_(step_module.parameters(), settings.clip_norm)
        work.optimizer.step()
        work.optimizer.zero_grad()
        work.averaged.update()
        total.add(terms, len(batch) if weight else 0)
        bar.step(step, len(samples), settings, world)
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


def _selected(watched: Mapping[str, float], stage: Stage, epoch: int) -> float:
    """The mean that tells whether an epoch is the best one; infinite, and so never the best, where it is no number."""
    wanted = stage.settings.select_by
    if wanted not in watched:
        raise ConfigError(
            "CONFIG_VALUE",
            f"stage {stage.name!r} can't select its epoch by {wanted!r}",
            seen=f"select_by = {wanted!r}",
            expected=f"one of {', '.join(watched)}",
            fix=f"set select_by = 'loss' for stage {stage.name!r}",
        )
    if not math.isfinite(watched[wanted]):
        logger.warning("stage %s: the validation loss of epoch %d is not finite; it is not kept", stage.name, epoch)
        return math.inf
    return watched[wanted]


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


def _share_buffers(work: Optimisation, accelerator: Accelerator) -> None:
    """Every process takes the buffers of the main one, which are those that are saved."""
    if accelerator.num_processes > 1 and work.buffers:
        received = broadcast([buffer.clone() for buffer in work.buffers.values()], from_process=0)
        work.put(dict(zip(work.buffers, received, strict=True)))


def _resume(folder: Path, stage: str, work: Optimisation, device: torch.device) -> StageState:
    progress = newest_step(folder, stage)
    if progress is None:
        return StageState()
    work.put(progress.trained)
    held = {name: tensor.to(device) for name, tensor in progress.optimizer.items()}
    load_optimizer(work.optimizer, list(work.parameters), held)
    numbers = progress.numbers
    work.rate.load(numbers)
    work.averaged.load(progress.averaged, numbers.get("updates", 0))
    best_loss = math.inf if numbers["best_loss"] is None else numbers["best_loss"]
    return StageState(numbers["epoch"], best_loss, numbers["best_epoch"], dict(progress.best), numbers["finished"])


def _save(folder: Path, stage: str, state: StageState, work: Optimisation, accelerator: Accelerator) -> None:
    if accelerator.is_main_process:
        numbers = {
            "best_loss": None if math.isinf(state.best_loss) else state.best_loss,  # none was finite yet
            "best_epoch": state.best_epoch,
            "finished": state.finished,
            **work.rate.numbers(),
        }
        if work.averaged.values:
            numbers["updates"] = work.averaged.updates
        held = optimizer_tensors(work.optimizer, list(work.parameters))
        save_step(folder, stage, state.epoch, Progress(work.tensors, state.best, held, numbers, work.averaged.values))
    accelerator.wait_for_everyone()

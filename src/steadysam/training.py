"""Train a method: configuration in, run folder out."""

from __future__ import annotations

import logging
import os
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import nn

from steadysam.backbones.checkpoints import read_safetensors
from steadysam.backbones.table import Architecture, ConvArchitecture
from steadysam.cachefolder import cache_folder
from steadysam.checkpoints import drop_steps, load_into, save_tensors
from steadysam.config import ComputeConfig, RunConfig, to_toml
from steadysam.embeddings import EmbeddingCache
from steadysam.errors import ConfigError, FileSystemError, SteadyError
from steadysam.files import read_json, remove_folder, sweep_temporaries, write_json, write_text
from steadysam.locks import alone_in
from steadysam.logs import progress_bar
from steadysam.loop import train_stage
from steadysam.methods import METHODS
from steadysam.methods.contract import Stage
from steadysam.runs import FORMAT, build_model, choose_device, release, versions
from steadysam.starting import start_from
from steadysam.trainable import select_trainable, stage_buffers
from steadysam.training_data import TrainingData, load_training_data

logger = logging.getLogger(__name__)

_PARTS = frozenset(("checkpoints", "logs", "prompts"))  # folders of a run


def train(config: RunConfig, folder: str | Path, *, resume: bool = False, wait: bool = False) -> Path:
    """Train `config.method` and write a run folder; returns the folder.

    Args:
        config: see `RunConfig`; made by `make_config`.
        folder: a new folder, or with `resume` one in which the same configuration was started before.
        resume: go on from the newest intact checkpoint.
        wait: until another process that trains in this folder has ended, instead of an error.

    Raises:
        FileSystemError: `FS_EXISTS`. LockedError: `FS_LOCKED`. ConfigError: `RESUME_CONFIG_DIFF`. Those of
        `load_training_data` and of the loop; a run that failed after its first step can be resumed, one that failed
        before leaves nothing.
    """
    folder = Path(folder)
    with computing(config.compute) as accelerator, main_alone(accelerator, folder, wait):
        fresh, there = not (folder / "config.toml").exists(), {name for name in _PARTS if (folder / name).exists()}
        if accelerator.is_main_process:
            open_folder(to_toml(config.model_dump(mode="json")), folder, resume, {"method": config.method_name})
        accelerator.wait_for_everyone()
        record = read_json(folder / "run.json")
        if record["status"] == "finished":
            logger.info("%s is finished; nothing to do", folder)
            return folder
        try:
            data = _load_data(config, folder, accelerator)
            model, settings = build_model(config)
            stages = METHODS[config.method_name].stages(settings)
            started = start_from(config, model, stages, data.record)
            record |= {"data": data.record} | ({"start": started} if started else {})
            if accelerator.is_main_process:  # known before the first stage is: others may start from it
                write_json(folder / "run.json", record)
            cache = EmbeddingCache(cache_folder(config.compute.cache))
            for stage in stages:
                if stage.name not in config.start.skip:
                    _run_stage(config, folder, model, stage, data, cache, accelerator)
        except SteadyError:
            if fresh and accelerator.is_main_process and not _begun(folder):
                _discard(folder, _PARTS - there)
            raise
        if accelerator.is_main_process:
            _finish(folder, record, model)
            drop_steps(folder / "checkpoints")
        accelerator.wait_for_everyone()
    return folder


def main_alone(accelerator: Accelerator, folder: Path, wait: bool = False) -> AbstractContextManager[None]:
    """Of several processes that train together, the first locks the folder for all."""
    return alone_in(folder, wait=wait) if accelerator.is_main_process else nullcontext()


@contextmanager
def computing(compute: ComputeConfig) -> Iterator[Accelerator]:
    """Threads, determinism and matmul setting for the block, and the engine; global settings are put back."""
    threads, matmul = torch.get_num_threads(), torch.get_float32_matmul_precision()
    deterministic = torch.are_deterministic_algorithms_enabled()
    if compute.threads:
        torch.set_num_threads(compute.threads)
    torch.set_float32_matmul_precision(compute.matmul)
    device = choose_device(compute.device)
    if compute.precision == "fp16" and device.type == "cpu":
        raise ConfigError("CONFIG_VALUE", "half precision wants a GPU", seen="fp16 on a CPU", expected="no or bf16")
    # accelerate takes the current GPU, unless a launcher gives each process its own
    named = device.type == "cuda" and device.index is not None and "LOCAL_RANK" not in os.environ
    torch.use_deterministic_algorithms(True, warn_only=device.type != "cpu")
    try:
        with torch.random.fork_rng(devices=[]), torch.cuda.device(device) if named else nullcontext():
            yield Accelerator(
                cpu=device.type == "cpu",
                mixed_precision=compute.precision,
                kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
            )
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(matmul)
        torch.use_deterministic_algorithms(deterministic)


def open_folder(text: str, folder: Path, resume: bool, record: dict[str, Any]) -> None:
    """Make a run folder that holds the configuration `text`, or check that it is the one that was started there.

    Raises:
        FileSystemError: `FS_EXISTS`. ConfigError: `RESUME_CONFIG_DIFF`.
    """
    path = folder / "config.toml"
    begun = (folder / "run.json").exists()
    found = read_json(folder / "run.json") if begun else None
    status = found.get("status") if isinstance(found, dict) else None
    if begun and status not in (("training", "finished") if path.exists() else ("training",)):
        raise FileSystemError(
            "FS_EXISTS",
            "run.json here is that of results of another command, or no record at all",
            file=folder,
            fix="choose another -o",
        )
    if path.exists() and not resume:
        raise FileSystemError(
            "FS_EXISTS", "a run is in this folder already", file=folder, fix="add --continue, or choose another -o"
        )
    if path.exists() and (differences := _differences(path.read_text("utf-8"), text)):
        raise ConfigError(
            "RESUME_CONFIG_DIFF",
            "the run was started with another configuration",
            file=path,
            seen="; ".join(differences),
            fix="use the same settings, or choose another -o",
        )
    for part in (folder, *(folder / name for name in _PARTS)):
        sweep_temporaries(part)
    if not begun:
        write_json(folder / "run.json", {"format": FORMAT, "status": "training", **record})
    if not path.exists():
        write_text(path, text)


def _begun(folder: Path) -> bool:
    """Whether there is an epoch, or a stage, that is worth keeping."""
    return any(folder.glob("logs/*-metrics.csv")) or any(folder.glob("checkpoints/*"))


def _discard(folder: Path, parts: Iterable[str]) -> None:
    """Take back what was written before the first step: bad input must not be in the way of the next attempt.

    Args:
        parts: folders that were not there before.
    """
    for name in ("run.json", "config.toml"):
        (folder / name).unlink(missing_ok=True)
    for name in parts:
        remove_folder(folder / name)


def _differences(old: str, new: str) -> list[str]:
    """`section.key: A in the run, B here`, the first six; two spellings of one path are the same."""
    before, after = (dict(_flat(tomllib.loads(text))) for text in (old, new))
    keys = [key for key in {**before, **after} if not _same(before.get(key), after.get(key))]
    return [f"{key}: {before.get(key, 'nothing')} in the run, {after.get(key, 'nothing')} here" for key in keys[:6]]


def _same(one: Any, other: Any) -> bool:
    if one != other and isinstance(one, str) and isinstance(other, str):
        return os.path.exists(one) and os.path.exists(other) and os.path.samefile(one, other)
    return one == other


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _load_data(config: RunConfig, folder: Path, accelerator: Accelerator) -> TrainingData:
    with progress_bar(accelerator.is_main_process) as bar:
        task = bar.add_task("reading cases", total=None, note="")

        def track(cases: Any) -> Any:
            cases = list(cases)
            bar.update(task, total=len(cases))
            for case in cases:
                yield case
                bar.advance(task)

        return load_training_data(config, folder / "prompts" if accelerator.is_main_process else None, track)


def _run_stage(
    config: RunConfig,
    folder: Path,
    model: nn.Module,
    stage: Stage,
    data: TrainingData,
    cache: EmbeddingCache,
    accelerator: Accelerator,
) -> None:
    """Train one stage, or load it if an earlier part of this run finished it."""
    done = folder / "checkpoints" / f"{stage.name}.safetensors"
    if done.exists():
        parameters = select_trainable(model, stage)
        load_into(model, read_safetensors(done), file=done, strict=False)
        model.to(accelerator.device).eval().requires_grad_(False)
        logger.info("stage %s: finished earlier, %d tensors loaded", stage.name, len(parameters))
        return
    model.to(accelerator.device)
    logger.info("stage %s: up to %d epochs", stage.name, stage.settings.epochs)
    state = train_stage(model, stage, (data.train, data.val), cache, accelerator, folder, config.compute.seed)
    if accelerator.is_main_process:
        trained = select_trainable(model, stage)
        model.eval().requires_grad_(False)
        save_tensors(done, {**trained, **stage_buffers(model, stage)})
        summary: dict[str, Any] = {"epochs": state.epoch, "best_epoch": state.best_epoch, "best_loss": state.best_loss}
        if stage.settings.select_by != "loss":
            summary["selected_by"] = stage.settings.select_by
        if state.best_epoch < 0:  # no epoch was asked for
            summary["best_loss"] = None
        summary["trained_parameters"] = sum(p.numel() for p in trained.values())
        write_json(folder / "checkpoints" / f"{stage.name}.json", summary)
    accelerator.wait_for_everyone()


def _finish(folder: Path, record: Mapping[str, Any], model: nn.Module) -> None:
    release(model)
    digest = save_tensors(folder / "weights.safetensors", model.state_dict())
    stages = {p.stem: read_json(p) for p in sorted((folder / "checkpoints").glob("*.json"))}
    known = {
        "status": "finished",
        "weights_sha256": digest,
        "architecture": _architecture(model),
        "parameters": sum(p.numel() for p in model.parameters()),
        "stages": stages,
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }
    write_json(folder / "run.json", {**record, **known})


def _architecture(model: nn.Module) -> dict[str, Any] | None:
    """The shape of the run's backbone, with which `load_run` builds it without its original weights."""
    shape = getattr(getattr(model, "backbone", None), "architecture", None)
    return asdict(shape) if isinstance(shape, Architecture | ConvArchitecture) else None

"""Weights as safetensors with their own hash, and the step folders from which a killed run goes on.

A step folder is filled under a temporary name and renamed; its manifest holds the SHA-256 of every file in it. The
newest step that passes its check is the one to resume from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from steadysam.backbones.checkpoints import read_safetensors
from steadysam.errors import CheckpointError, SteadyError
from steadysam.files import new_folder, read_json, remove_folder, sha256_file, write_bytes, write_json

_KINDS = ("trained", "best", "optimizer")


@dataclass(frozen=True, eq=False)
class Progress:
    """All that a stage needs to go on: numbers, and tensors of what is trained, of the best epoch, of the optimiser,
    and of averaged weights where there are some."""

    trained: Mapping[str, Tensor]
    best: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    numbers: Mapping[str, Any]
    averaged: Mapping[str, Tensor] = field(default_factory=dict)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], **metadata: str) -> str:
    """Write tensors atomically and return the file's SHA-256."""
    held = {name: tensor.detach().to("cpu").contiguous().clone() for name, tensor in tensors.items()}
    write_bytes(path, save(held, metadata=metadata or None))
    return sha256_file(path)


def load_into(module: nn.Module, tensors: Mapping[str, Tensor], *, file: Path, strict: bool = True) -> None:
    """Copy tensors into a module by name.

    Raises:
        CheckpointError: `CKPT_SHAPE` lists missing, unexpected and differently shaped tensors; nothing is loaded.
    """
    own = dict(module.state_dict())
    missing = sorted(set(own) - set(tensors)) if strict else []
    extra = sorted(set(tensors) - set(own))
    shapes = [n for n in tensors if n in own and tensors[n].shape != own[n].shape]
    if missing or extra or shapes:
        raise CheckpointError(
            "CKPT_SHAPE",
            f"weights do not fit the model: {len(missing)} missing, {len(extra)} unexpected, "
            f"{len(shapes)} of another shape",
            file=file,
            seen=", ".join((missing + extra + shapes)[:5]),
            fix="use the backbone, image size and method that the weights were trained with",
        )
    module.load_state_dict({**own, **tensors})


def save_step(folder: Path, stage: str, epoch: int, progress: Progress) -> Path:
    """Write the step `folder/stage-EPOCH`, verify it, and only then remove older steps of the stage."""
    path = folder / f"{stage}-{epoch:05d}"
    if path.exists():  # a step that failed its check when the run was resumed
        remove_folder(path)
    kinds = [*_KINDS, *(["averaged"] if progress.averaged else [])]
    with new_folder(path) as part:
        hashes = {
            f"{name}.safetensors": save_tensors(part / f"{name}.safetensors", getattr(progress, name)) for name in kinds
        }
        write_json(part / "manifest.json", {"stage": stage, "epoch": epoch, "files": hashes, **progress.numbers})
    if load_step(path) is not None:
        for other in sorted(folder.glob(f"{stage}-*")):
            if other != path:
                remove_folder(other)
    return path


def load_step(path: Path) -> Progress | None:
    """The step, or None if a file is missing or does not have the hash that the manifest says."""
    try:
        manifest = read_json(path / "manifest.json")
        for name, digest in manifest["files"].items():
            if sha256_file(path / name) != digest:
                return None
        tensors = [read_safetensors(path / f"{name}.safetensors") for name in _KINDS]
        averaged = "averaged.safetensors" in manifest["files"]
        more = read_safetensors(path / "averaged.safetensors") if averaged else {}
    except (SteadyError, OSError, KeyError):
        return None
    numbers = {key: value for key, value in manifest.items() if key not in ("files",)}
    return Progress(tensors[0], tensors[1], tensors[2], numbers, more)


def newest_step(folder: Path, stage: str) -> Progress | None:
    """The newest step of a stage that passes its check, by number rather than by time."""
    for path in sorted(folder.glob(f"{stage}-*"), reverse=True):
        progress = load_step(path)
        if progress is not None:
            return progress
    return None


def drop_steps(folder: Path) -> None:
    """Remove the steps of all stages, which a finished run does not go on from."""
    for path in folder.glob("*-*/manifest.json"):
        remove_folder(path.parent)


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: list[str]) -> dict[str, Tensor]:
    """The optimiser's state as named tensors `parameter/key`; `names` are in the order of its parameters."""
    state = optimizer.state_dict()["state"]
    return {
        f"{names[index]}/{key}": torch.as_tensor(value)
        for index, values in state.items()
        for key, value in values.items()
    }


def load_optimizer(optimizer: torch.optim.Optimizer, names: list[str], tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`."""
    held = optimizer.state_dict()
    held["state"] = {}
    for name, tensor in tensors.items():
        parameter, _, key = name.rpartition("/")
        held["state"].setdefault(names.index(parameter), {})[key] = tensor
    optimizer.load_state_dict(held)

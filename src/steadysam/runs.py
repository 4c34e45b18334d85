"""A run folder: everything needed to use a trained model again, and to say where it came from.

RUN/config.toml        the full configuration
RUN/run.json           versions, split, hashes of data and prompts, stages, hash of the weights
RUN/weights.safetensors
RUN/prompts/           the frozen prompt sets it was trained with
RUN/logs/              CSV and TensorBoard
RUN/checkpoints/       for `--continue`
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from steadysam.backbones import BACKBONES, build_backbone
from steadysam.backbones.checkpoints import read_safetensors
from steadysam.backbones.fingerprint import fingerprint
from steadysam.backbones.lora import merge_lora
from steadysam.backbones.table import architecture_from
from steadysam.backbones.video.build import native_size
from steadysam.backbones.video.table import VIDEO_MODELS
from steadysam.checkpoints import load_into
from steadysam.config import RunConfig, make_config, merged, read_config
from steadysam.errors import CheckpointError, ConfigError, ResourceError, SteadyError
from steadysam.files import read_json, sha256_file
from steadysam.methods import METHODS
from steadysam.methods.contract import FrozenConfig, Method, fixed_by_training, traits_of
from steadysam.types import Preprocess

FORMAT = 1
RUNS_FILE = "runs.json"  # in a folder of runs, one per label; see `steadysam.labelwise`


@dataclass(frozen=True, eq=False)
class Run:
    """A trained model, ready to segment.

    Args:
        folder: where it was loaded from.
        config, settings: the run's configuration and its method's settings.
        method: the method's module.
        model: on `device`, in eval mode, LoRA merged.
        record: the content of `run.json`.
    """

    folder: Path
    config: RunConfig
    settings: FrozenConfig
    method: Method
    model: nn.Module
    record: Mapping[str, Any]
    device: torch.device

    @property
    def preprocess(self) -> Preprocess:
        """How slices become inputs of this model."""
        return Preprocess(**self.config.preprocess.model_dump())


def build_model(config: RunConfig) -> tuple[nn.Module, FrozenConfig]:
    """The network of a run before training: backbone weights loaded (or drawn from its seed), the rest drawn."""
    settings = config.method_config()
    backbone = None
    if traits_of(METHODS[config.method_name]).backbone:
        backbone = build_backbone(config.backbone.name, config.preprocess.size, seed=config.backbone.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.compute.seed)
        model = METHODS[config.method_name].build(settings, backbone)
    return model, settings


def load_run(folder: str | Path, device: str = "auto", **overrides: Any) -> Run:
    """Load a trained run for inference.

    Args:
        folder: a run folder.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        overrides: settings of the method that only act at inference, such as `tau=0.3` or `empty="empty_mask"`; of a
            table, such as `detector={"confidence": 0.1}`, what is not named stays.

    Raises:
        CheckpointError: `RUN_MISSING`, `RUN_UNFINISHED`, `RUN_VERSION`, `CKPT_HASH`, `CKPT_SHAPE` and those of
            `read_safetensors`. ConfigError: `SETTING_FIXED`.
    """
    folder = Path(folder)
    record, config = read_record(folder), _read_run_config(folder)
    weights = folder / "weights.safetensors"
    if record.get("status") != "finished":
        raise CheckpointError(
            "RUN_UNFINISHED",
            "this run has not finished training",
            file=folder,
            seen=record.get("status"),
            fix="finish it with `steadysam train … --continue`",
        )
    tensors = read_safetensors(weights)
    if sha256_file(weights) != record.get("weights_sha256"):
        raise CheckpointError(
            "CKPT_HASH",
            "the weights are not those that this run wrote",
            file=weights,
            expected=record.get("weights_sha256"),
            fix="copy the run folder again, or train again",
        )
    if overrides:
        _refuse_fixed(config, overrides)
        values = config.model_dump(mode="json")
        config = make_config({**values, "method": merged(values["method"], overrides)})
    model, settings = empty_model(config, record.get("architecture"))
    load_into(model, tensors, file=weights)
    target = choose_device(device)
    merge_adapters(model).to(target).eval().requires_grad_(False)
    return Run(folder, config, settings, METHODS[config.method_name], model, record, target)


def _refuse_fixed(config: RunConfig, overrides: Mapping[str, Any]) -> None:
    if fixed := fixed_by_training(METHODS[config.method_name].Config, overrides):
        raise ConfigError(
            "SETTING_FIXED",
            f"training has fixed this setting of {config.method_name}: it does nothing afterwards, or does not fit",
            seen=", ".join(fixed),
            fix="leave it out, or train a run with it",
        )


def zero_shot_run(
    name: str,
    device: str = "auto",
    *,
    method: str = "zero_shot",
    size: int = 0,
    window: str = "percentile",
    **settings: Any,
) -> Run:
    """A backbone with its own weights, ready to segment without any training.

    Args:
        name: a row of `BACKBONES` with weights, or a weights file; for a method that brings its own network, a row of
            `VIDEO_MODELS`, or a folder or file that its setting `weights` may name.
        size: pixels of the model's image; 0 takes what the weights were made for.
        method: one that is of use before any training: `zero_shot`, or another whose traits say so.
        window: see `steadysam.types.Preprocess`.
        settings: of the method.

    Raises:
        ConfigError: `BACKBONE_UNKNOWN`, `ZERO_SHOT_RANDOM` (the row has no weights), `METHOD_UNTRAINED`. Those of
            `build_backbone`.
    """
    able = [key for key, module in METHODS.items() if traits_of(module).untrained]
    if method not in able:
        raise ConfigError(
            "METHOD_UNTRAINED",
            "this method is nothing before it is trained",
            seen=method,
            expected=", ".join(able),
            fix="train a run and pass its folder",
        )
    own = not traits_of(METHODS[method]).backbone
    table = VIDEO_MODELS if own else BACKBONES
    spec = table.get(name)
    if spec is not None and spec.from_scratch:
        pretrained = [row.name for row in table.values() if not row.from_scratch]
        raise ConfigError(
            "ZERO_SHOT_RANDOM", "this model has no weights to segment with", seen=name, expected=", ".join(pretrained)
        )
    if own:
        size, settings = size or native_size(name), {"weights": name, **settings}
    preprocess = {"size": size or (spec.native_size if spec else 256), "window": window}
    values = {
        "data": {"dataset": "", "label": "all"},
        "preprocess": preprocess | ({"norm": spec.norm} if spec else {}),
        "backbone": {"name": name},
        "method": {"name": method, **settings},
    }
    config = make_config(values)
    model, method_settings = build_model(config)
    target = choose_device(device)
    model.to(target).eval().requires_grad_(False)
    record = {"weights_sha256": fingerprint(model), "data": {}, "method": method}
    return Run(Path(name), config, method_settings, METHODS[method], model, record, target)


def empty_model(config: RunConfig, architecture: Mapping[str, Any] | None) -> tuple[nn.Module, FrozenConfig]:
    """The network of a run whose weights are about to be loaded; needs no file but the run's own."""
    settings = config.method_config()
    blank = getattr(METHODS[config.method_name], "blank", None)
    if blank is not None:  # the method would load weights of its own, which need not be on this machine
        return release(blank(settings)), settings
    backbone = None
    if traits_of(METHODS[config.method_name]).backbone:
        shape = None if architecture is None else architecture_from(architecture)
        backbone = build_backbone(config.backbone.name, config.preprocess.size, weights=False, architecture=shape)
    return release(METHODS[config.method_name].build(settings, backbone)), settings


def release(model: nn.Module) -> nn.Module:
    """The model without what only training needs, such as a teacher: models that have such a part drop it themselves.

    They say so by a method `release()`; called twice it does nothing more.
    """
    drop = getattr(model, "release", None)
    if callable(drop):
        drop()
    return model


def merge_adapters(model: nn.Module) -> nn.Module:
    """The model with LoRA added into its backbone's weights: faster, and the same but for rounding."""
    if (backbone := getattr(model, "backbone", None)) is not None:
        merge_lora(backbone)
    return model


def read_record(folder: Path) -> dict[str, Any]:
    """`run.json` of a run folder.

    Raises:
        CheckpointError: `RUN_MISSING`, `RUN_VERSION`.
    """
    path, several = Path(folder) / "run.json", (Path(folder) / RUNS_FILE).is_file()
    if not path.is_file():
        raise CheckpointError(
            "RUN_MISSING",
            "no run.json: this is not a run folder" if Path(folder).is_dir() else "no such run folder",
            file=folder,
            fix=f"name the folder of one label in {folder}" if several else "name a folder made by train",
        )
    try:
        record = read_json(path)
    except SteadyError as error:
        raise CheckpointError("RUN_MISSING", f"run.json cannot be read: {error.what}", file=path) from error
    if not isinstance(record, dict) or "format" not in record:
        raise CheckpointError(
            "RUN_MISSING",
            "run.json is the record of results, such as those of predict or detect, and not of a run",
            file=folder,
            fix="name a folder made by train",
        )
    if record["format"] != FORMAT:
        raise CheckpointError(
            "RUN_VERSION", "written in another format", file=path, seen=record["format"], expected=FORMAT
        )
    return record


def choose_device(name: str) -> torch.device:
    """`auto` takes CUDA where there is one, else the CPU.

    Raises:
        ResourceError: `DEVICE_UNAVAILABLE`; never a silent fall-back.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ResourceError(
            "DEVICE_UNAVAILABLE", f"device {name!r} cannot be used here", fix="use --device cpu"
        ) from error
    return device


def versions() -> dict[str, str]:
    """Versions of the package, Python and the libraries that decide numbers."""
    names = ("steadysam", "torch", "transformers", "peft", "accelerate", "numpy", "scipy", "nibabel")
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in names}}


def _read_run_config(folder: Path) -> RunConfig:
    try:
        return make_config(read_config(folder / "config.toml"))
    except SteadyError as error:
        raise CheckpointError("RUN_CONFIG", f"config.toml cannot be used: {error.what}", file=folder) from error

"""From a name to a backbone: random weights, weights of the registry, or a file of the user's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steadysam.backbones import weights as registry
from steadysam.backbones.checkpoints import check_header, load_strict, read_safetensors, refuse_pickle
from steadysam.backbones.configure import check_size, empty_model, random_model, sam_config
from steadysam.backbones.conv.model import ConvBackbone, random_conv
from steadysam.backbones.infer import infer_architecture
from steadysam.backbones.layouts import to_backbone
from steadysam.backbones.resize import resize_positions
from steadysam.backbones.sam import SamBackbone
from steadysam.backbones.table import BACKBONES, Architecture, BackboneSpec, ConvArchitecture, architecture_from
from steadysam.backbones.video.table import VIDEO_MODELS, VideoArchitecture
from steadysam.errors import CheckpointError, ConfigError
from steadysam.files import read_json

AnyArchitecture = Architecture | ConvArchitecture


def build(name: str, image_size: int, *, seed: int, home: Path | None) -> Any:
    """See `steadysam.backbones.build_backbone`."""
    spec = BACKBONES.get(name)
    if spec is None:
        file, state, architecture = _read(name)
        return _filled(architecture, image_size, state, name=name, file=file)
    check_size(image_size, spec.architecture.patch)
    if spec.from_scratch:
        return random_backbone(spec.architecture, image_size, seed=seed, name=name)
    if spec.packaged:
        state = read_safetensors(spec.packaged_file, sha256=spec.sha256)
        return _filled(spec.architecture, image_size, state, name=name, file=spec.packaged_file)
    record = registry.require(spec, home)
    state = to_backbone(read_safetensors(record.file, sha256=record.sha256), record.file)
    return _filled(spec.architecture, image_size, state, name=name, file=record.file)


def blank_backbone(name: str, image_size: int, architecture: AnyArchitecture | None = None) -> Any:
    """A backbone of zeros, to be filled; `architecture` is looked up by `name` if it is not given."""
    shape = architecture
    if shape is None:
        shape = BACKBONES[name].architecture if name in BACKBONES else _read(name)[2]
    backbone = _shell(shape, image_size, name)
    backbone.to_empty(device="cpu")
    backbone.load_state_dict({key: torch.zeros_like(value) for key, value in backbone.state_dict().items()})
    return backbone.eval()


def random_backbone(architecture: AnyArchitecture, image_size: int, *, seed: int, name: str) -> Any:
    """A backbone of any architecture with random weights that depend on `seed` only, in eval mode."""
    if isinstance(architecture, ConvArchitecture):
        return random_conv(architecture, image_size, seed=seed, name=name)
    model = random_model(sam_config(architecture, image_size), seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SamBackbone(model, name, architecture).eval()


def check_weights(spec: BackboneSpec, file: Path) -> None:
    """Raise `CheckpointError` unless `file` holds sound weights of exactly this row, at its native size."""
    if isinstance(spec.architecture, VideoArchitecture):
        from steadysam.backbones.video.build import check_video_weights

        return check_video_weights(spec, file)
    state = to_backbone(read_safetensors(file), file)
    seen = infer_architecture(state, file, decoder_heads=spec.architecture.decoder_heads)
    if seen != spec.architecture:
        raise CheckpointError(
            "CKPT_CONFIG",
            f"these are not the weights of {spec.name}",
            file=file,
            seen=seen,
            expected=spec.architecture,
            fix="import them under the right name, or give the file's path as the backbone",
        )
    _filled(spec.architecture, spec.native_size, state, name=spec.name, file=file)


def weights_file(path: Path) -> Path:
    """The safetensors file that `path` (a file, or a folder with `model.safetensors`) means."""
    refuse_pickle(path)
    if path.is_file():
        return path
    file = path / "model.safetensors"
    pickled = sorted(child for child in path.glob("*.bin") if child.is_file())
    if not file.is_file() and pickled:
        refuse_pickle(pickled[0])
    if not file.is_file():
        raise CheckpointError(
            "CKPT_MISSING", "the folder holds no weights", file=path, expected="model.safetensors in it"
        )
    return file


def _read(name: str) -> tuple[Path, dict[str, Tensor], AnyArchitecture]:
    path = Path(name).expanduser()
    if not path.exists():
        raise ConfigError(
            "BACKBONE_UNKNOWN",
            "no such backbone, folder or file",
            seen=name,
            expected=", ".join(BACKBONES),
            fix="it is a video model: use it with --method sam2 or medsam2"
            if name in VIDEO_MODELS
            else "`steadysam models list` shows the names",
        )
    file = weights_file(path)
    state = read_safetensors(file)
    if (stated := _stated_architecture(file)) is not None:
        return file, state, stated
    state = to_backbone(state, file)
    return file, state, infer_architecture(state, file, decoder_heads=_decoder_heads(path))


def _filled(
    architecture: AnyArchitecture, image_size: int, state: Mapping[str, Tensor], *, name: str, file: Path
) -> Any:
    check_size(image_size, architecture.patch)
    backbone = _shell(architecture, image_size, name)
    if isinstance(architecture, Architecture):
        grid = image_size // architecture.patch
        state = resize_positions(state, grid, architecture.layers_with_global_attention)
    load_strict(backbone, state, file)
    return backbone.eval()


def _shell(architecture: AnyArchitecture, image_size: int, name: str) -> Any:
    """The modules without memory, on the meta device."""
    with torch.device("meta"):
        if isinstance(architecture, Architecture):
            return SamBackbone(empty_model(sam_config(architecture, image_size)), name, architecture)
        return ConvBackbone(architecture, image_size, name)


def _stated_architecture(file: Path) -> ConvArchitecture | None:
    """The architecture that our own pretraining writes into a file's metadata.

    Raises:
        CheckpointError: `CKPT_CONFIG`, it is there but cannot be used.
    """
    text = (check_header(file).get("__metadata__") or {}).get("architecture")
    if text is None:
        return None
    try:
        stated = architecture_from(json.loads(text))
        if not isinstance(stated, ConvArchitecture):
            return None
        _shell(stated, 8 * stated.patch, "")  # numbers may be well written and yet make no network
    except (ValueError, TypeError, AttributeError, ArithmeticError, LookupError, RuntimeError) as error:
        raise CheckpointError("CKPT_CONFIG", "the stated architecture cannot be used", file=file, seen=text) from error
    return stated


def _decoder_heads(path: Path) -> int:
    """The decoder's number of heads, which no tensor's shape tells: from `config.json` if there is one."""
    file = (path if path.is_dir() else path.parent) / "config.json"
    config: Any = read_json(file) if file.is_file() else {}
    if not isinstance(config, dict) or config.get("model_type", "sam") != "sam":
        raise CheckpointError(
            "CKPT_CONFIG",
            "the folder belongs to another kind of model",
            file=file,
            seen=config.get("model_type") if isinstance(config, dict) else config,
            expected="sam",
        )
    decoder = config.get("mask_decoder_config") or {}
    return int(decoder.get("num_attention_heads", 8))

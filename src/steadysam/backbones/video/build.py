"""From a name to a video model: random weights, weights of the registry, or a folder of the user's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from steadysam.backbones import weights as registry
from steadysam.backbones.checkpoints import load_strict, read_safetensors, refuse_pickle
from steadysam.backbones.table import BackboneSpec
from steadysam.backbones.video.configure import draw_afresh, stated_architecture, video_config
from steadysam.backbones.video.layouts import to_video
from steadysam.backbones.video.table import VIDEO_MODELS, VideoArchitecture
from steadysam.errors import CheckpointError, ConfigError
from steadysam.files import read_json


@dataclass(frozen=True)
class _Source:
    """What a name means: the numbers of the model, and its weights unless they are drawn or come later."""

    architecture: VideoArchitecture
    native_size: int
    from_scratch: bool
    file: Path | None = None
    sha256: str | None = None


def video_model(name: str, image_size: int = 0, *, weights: bool = True, home: Path | None = None) -> Any:
    """A `transformers.Sam2VideoModel` for square images, in eval mode, on the CPU.

    Args:
        name: a row of `VIDEO_MODELS`, a folder with `config.json` and `model.safetensors`, or that file. Fresh weights
            come from torch's generator, which is left alone otherwise.
        image_size: pixels, a multiple of 32; 0 takes what the weights were made for.
        weights: False for a model whose weights come from elsewhere: no file is needed for a row of the table.
        home: folder of downloaded weights; None means `STEADYSAM_HOME`.

    Raises:
        ConfigError: `BACKBONE_UNKNOWN`, `BACKBONE_SIZE`. CheckpointError: `CKPT_*`.
    """
    source = _source(name, weights, home)
    config = video_config(source.architecture, image_size or source.native_size)
    if source.from_scratch:
        model = _new(config)
        draw_afresh(model)
        return model.eval()
    with torch.random.fork_rng(devices=[]):
        model = _new(config)
    if weights and source.file is not None:
        load_strict(model, _state(source.file, source.sha256), source.file)
    return model.eval()


def native_size(name: str) -> int:
    """Pixels of the image that the weights `name` were made for; the same names and errors as `video_model`."""
    return _source(name, False, None).native_size


def check_video_weights(spec: BackboneSpec, file: Path) -> None:
    """Raise `CheckpointError` unless `file` holds sound weights of exactly this row."""
    with torch.random.fork_rng(devices=[]):
        model = _new(video_config(spec.architecture, spec.native_size))
    load_strict(model, _state(file, None), file)


def _new(config: Any) -> Any:
    from transformers import Sam2VideoModel

    return Sam2VideoModel(config)


def _state(file: Path, sha256: str | None) -> dict[str, Tensor]:
    return to_video(read_safetensors(file, sha256=sha256), file)


def _source(name: str, weights: bool, home: Path | None) -> _Source:
    spec = VIDEO_MODELS.get(name)
    if spec is None:
        return _own(Path(name).expanduser(), weights)
    if spec.from_scratch or not weights:
        return _Source(spec.architecture, spec.native_size, spec.from_scratch)
    record = registry.require(spec, home)
    return _Source(spec.architecture, spec.native_size, False, record.file, record.sha256)


def _own(path: Path, weights: bool) -> _Source:
    """A folder or file of the user's."""
    if not path.exists():
        raise ConfigError(
            "BACKBONE_UNKNOWN",
            "no such video model, folder or file",
            seen=path,
            expected=", ".join(VIDEO_MODELS),
            fix="`steadysam models list` shows the names",
        )
    refuse_pickle(path)
    folder = path if path.is_dir() else path.parent
    file = path / "model.safetensors" if path.is_dir() else path
    if not (folder / "config.json").is_file():
        raise CheckpointError(
            "CKPT_CONFIG",
            "the numbers of this model are not here",
            file=folder,
            expected="config.json beside model.safetensors",
            fix="where the weights are those of a row of the table: `steadysam models import NAME FILE`",
        )
    if weights and not file.is_file():
        pickled = sorted(child for child in folder.glob("*.*") if child.suffix in (".bin", ".pt", ".pth"))
        if pickled:
            refuse_pickle(pickled[0])
        raise CheckpointError("CKPT_MISSING", "the folder holds no weights", file=path, expected="model.safetensors")
    architecture, size = stated_architecture(read_json(folder / "config.json"), folder / "config.json")
    return _Source(architecture, size, False, file)

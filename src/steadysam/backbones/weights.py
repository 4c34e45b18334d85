"""Published weights on this machine: where they are, how they come here, and that they are what they claim.

Weights live in `STEADYSAM_HOME/weights/NAME/` as `model.safetensors` with a `record.json` beside it (hash,
source, licence). Listing them imports no torch.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from steadysam import cachefolder
from steadysam.backbones.table import BACKBONES, BackboneSpec
from steadysam.backbones.video.table import VIDEO_MODELS
from steadysam.errors import CheckpointError, ConfigError, NetworkError, SteadyError
from steadysam.files import new_folder, read_json, sha256_file, sweep_temporaries, write_json

_FILE = "model.safetensors"
Fetch = Callable[[BackboneSpec, Path], Path]


@dataclass(frozen=True)
class WeightsRecord:
    """What is known of weights on this machine.

    Args:
        name: row of `BACKBONES`.
        file: the safetensors file.
        sha256: hash of its bytes when it came here.
        source: `hub:REPOSITORY@REVISION` or `file:PATH`.
        licence: SPDX name.
    """

    name: str
    file: Path
    sha256: str
    source: str
    licence: str


def is_offline() -> bool:
    """True if `STEADYSAM_OFFLINE` or `HF_HUB_OFFLINE` is set to 1, true, yes or on."""
    values = (os.environ.get(name, "") for name in ("STEADYSAM_OFFLINE", "HF_HUB_OFFLINE"))
    return any(value.strip().lower() in ("1", "true", "yes", "on") for value in values)


def find(spec: BackboneSpec, home: Path | None = None) -> WeightsRecord | None:
    """The record of weights that are here, or None; the file's bytes are checked when they are loaded."""
    folder = _folder(spec, home)
    if not (folder / _FILE).is_file() or not (folder / "record.json").is_file():
        return None
    values = read_json(folder / "record.json")
    try:
        texts = {key: str(values[key]) for key in ("name", "sha256", "source", "licence")}
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            "CKPT_FORMAT",
            "the record of these weights cannot be used",
            file=folder / "record.json",
            fix="delete the folder and download or import the weights again",
        ) from error
    return WeightsRecord(file=folder / _FILE, **texts)


def require(spec: BackboneSpec, home: Path | None = None) -> WeightsRecord:
    """The record of weights that must be here.

    Raises:
        CheckpointError: `CKPT_MISSING`.
    """
    record = find(spec, home)
    if record is None:
        raise CheckpointError(
            "CKPT_MISSING",
            f"the weights of {spec.name} are not on this machine",
            file=_folder(spec, home),
            fix=f"`steadysam models import {spec.name} FILE`, FILE converted as docs/quickstart.md says: its authors"
            " publish a pickle"
            if not spec.safetensors and not spec.hub_id
            else f"`steadysam models download {spec.name}`,"
            f" or without network `steadysam models import {spec.name} FILE`",
        )
    return record


def hub_row(name: str) -> BackboneSpec:
    """The row `name` of the tables of backbones and video models, which must have published weights.

    Raises:
        ConfigError: `BACKBONE_UNKNOWN`.
    """
    rows = {**BACKBONES, **VIDEO_MODELS}
    spec = rows.get(name)
    published = [row.name for row in rows.values() if row.published]
    if spec is None or not spec.published:
        raise ConfigError(
            "BACKBONE_UNKNOWN",
            "no published weights of this name" if spec is None else "this model needs no download",
            seen=name,
            expected=", ".join(published),
        )
    return spec


def download(
    name: str,
    *,
    home: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
    fetch: Fetch | None = None,
) -> WeightsRecord:
    """Get the weights `name` from the hub at the pinned revision; nothing happens if they are here.

    Args:
        name: row of `BACKBONES` with published weights.
        home: folder of weights and caches; None means STEADYSAM_HOME.
        say: is told the licence and the source before anything is downloaded, and what was found afterwards.
        fetch: brings `model.safetensors` into a folder and returns its path; the hub's client by default.

    Raises:
        NetworkError: `NET_OFFLINE`; `NET_DOWNLOAD`; `CKPT_HASH`, the file is not the one that the table
        names.
        CheckpointError: `CKPT_PICKLE_REFUSED`, the repository has pickled weights only; or the file is
        unsound.
    """
    spec = hub_row(name)
    if is_offline():
        raise NetworkError(
            "NET_OFFLINE",
            f"offline mode: {name} is not downloaded",
            fix=f"unset STEADYSAM_OFFLINE and HF_HUB_OFFLINE, or bring the file here and run"
            f" `steadysam models import {name} FILE`",
        )
    if not spec.safetensors:
        raise CheckpointError(
            "CKPT_PICKLE_REFUSED",
            f"{spec.hub_id or spec.source} holds pickled weights only, which can run any code when they are read",
            seen=f"revision {spec.revision}" if spec.hub_id else spec.source,
            expected=_FILE,
            fix=_conversion(spec),
        )
    with _alone(spec, home) as folder:
        if (record := find(spec, home)) is not None:
            say(f"{name} is here already: {record.file}")
            return record
        say(f"{name}: {spec.hub_id} at revision {spec.revision}, licence {spec.licence}")
        with new_folder(folder) as temporary:
            file = (fetch or _fetch_from_hub)(spec, temporary)
            digest = _verified(spec, file)
            if file != temporary / _FILE:
                shutil.move(file, temporary / _FILE)
            _write_record(spec, temporary, digest, f"hub:{spec.hub_id}@{spec.revision}")
    if spec.sha256 is None or not spec.pinned:
        say(f"not pinned in the table: the file's sha256 is {digest}; note it to recognise it again")
    return require(spec, home)


def import_weights(name: str, path: str | Path, *, home: Path | None = None) -> WeightsRecord:
    """Copy weights from a safetensors file, or a folder with `model.safetensors`, after checking them wholly.

    Raises:
        CheckpointError: `CKPT_*`: pickled, cut, foreign architecture, missing or extra tensors, not finite;
        and
            `CKPT_EXISTS`, other weights stand under this name.
    """
    from steadysam.backbones.build import check_weights, weights_file

    spec = hub_row(name)
    source = weights_file(Path(path).expanduser())
    check_weights(spec, source)
    digest = sha256_file(source)
    with _alone(spec, home) as folder:
        present = find(spec, home)
        if present is not None and present.sha256 != digest:
            raise CheckpointError(
                "CKPT_EXISTS",
                f"other weights of {name} are here already",
                file=present.file,
                seen=digest,
                expected=present.sha256,
                fix="delete that folder first, or give the new file's path as the backbone",
            )
        if present is None:
            with new_folder(folder) as temporary:
                shutil.copyfile(source, temporary / _FILE)
                _write_record(spec, temporary, digest, f"file:{source.resolve()}")
    return require(spec, home)


def _conversion(spec: BackboneSpec) -> str:
    """How pickled weights of a row become safetensors, where they are trusted."""
    if spec.name in VIDEO_MODELS:
        return (
            "where you trust it: torch.load(FILE, weights_only=True)['model'], then safetensors.torch.save_file,"
            f" then `steadysam models import {spec.name} FILE.safetensors`"
        )
    if spec.source:
        return (
            "get the file there and, where you trust it: torch.load(FILE, weights_only=True)['model'] (False if an"
            " optimiser is in it, which runs what the file contains), then safetensors.torch.save_file, then"
            f" `steadysam models import {spec.name} FILE.safetensors`"
        )
    return (
        "where you trust it: transformers' SamModel.from_pretrained(ID).save_pretrained(FOLDER),"
        f" then `steadysam models import {spec.name} FOLDER`"
    )


def _folder(spec: BackboneSpec, home: Path | None) -> Path:
    return (home.expanduser() if home else cachefolder.home()) / "weights" / spec.name


def _write_record(spec: BackboneSpec, folder: Path, digest: str, source: str) -> None:
    record = WeightsRecord(spec.name, Path(_FILE), digest, source, spec.licence)
    write_json(folder / "record.json", {**asdict(record), "file": _FILE})


def _verified(spec: BackboneSpec, file: Path) -> str:
    """The hash of a downloaded file, after checking it against the table and its content against the row."""
    from steadysam.backbones.build import check_weights

    digest = sha256_file(file)
    if spec.sha256 is not None and digest != spec.sha256:
        raise NetworkError(
            "CKPT_HASH",
            "the downloaded file is not the one that the table names",
            file=f"{spec.hub_id}@{spec.revision}",
            seen=digest,
            expected=spec.sha256,
            fix="try again; if it stays so, do not use this source",
        )
    check_weights(spec, file)
    return digest


def _fetch_from_hub(spec: BackboneSpec, folder: Path) -> Path:
    """`model.safetensors` of the row, by the hub's client, compared with the hash that the hub states."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    repository = str(spec.hub_id)
    try:
        stated = get_hf_file_metadata(hf_hub_url(repository, _FILE, revision=spec.revision)).etag
        file = Path(hf_hub_download(repository, _FILE, revision=spec.revision, local_dir=folder))
    except SteadyError:
        raise
    except Exception as error:  # the client raises errors of three libraries; all mean that no file came
        raise NetworkError(
            "NET_DOWNLOAD",
            f"the download failed: {type(error).__name__}",
            file=f"{repository}@{spec.revision}",
            fix=f"check the connection and try again, or `steadysam models import {spec.name} FILE`",
        ) from error
    if stated and len(stated) == 64 and sha256_file(file) != stated:
        raise NetworkError("CKPT_HASH", "the download is damaged", file=repository, expected=stated, fix="try again")
    return file


@contextmanager
def _alone(spec: BackboneSpec, home: Path | None) -> Iterator[Path]:
    """The row's folder, while no other process downloads or imports into it."""
    from filelock import FileLock

    folder = _folder(spec, home)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f".{spec.name}.lock"):
        sweep_temporaries(folder.parent)
        yield folder

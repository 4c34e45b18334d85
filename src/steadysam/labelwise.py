"""One run per label of a data set, trained and used as one; `steadysam.combining` puts their masks together.

RUNS/runs.json        the labels, their numbers and folders
RUNS/LABEL/           a run folder, see `steadysam.runs`
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steadysam.combining import LARGEST, Structure, write_label_maps
from steadysam.config import RunConfig, make_config, read_config
from steadysam.data.cases import Dataset, read_dataset
from steadysam.errors import BatchError, CheckpointError, ConfigError, FileSystemError, InputError
from steadysam.files import read_json, write_json
from steadysam.locks import alone_in
from steadysam.methods import METHODS
from steadysam.methods.contract import traits_of
from steadysam.runs import RUNS_FILE, read_record
from steadysam.training import train
from steadysam.training_data import prompt_files

logger = logging.getLogger(__name__)

FORMAT = "steadysam-runs-1"


@dataclass(frozen=True)
class LabelRun:
    """The run of one label: its name and number in `dataset.json`, the run folder, and why there is no run, if so."""

    name: str
    value: int
    folder: Path
    failed: str = ""


def train_each(config: RunConfig, folder: str | Path, *, resume: bool = False) -> tuple[LabelRun, ...]:
    """Train `config` once for every label of its data set, into `folder`/LABEL.

    Everything else is the same for all. Prompts belong to a label: of `prompts.folder`, or `promptsTr` of the data set,
    the subfolder LABEL is taken, and likewise LABEL of `start.run` and `start.begin`, where that is such a folder of
    runs. A label whose data cannot be used, such as one that no training case has, stops no other.

    Args:
        resume: as in `train`; labels that are finished are left as they are.

    Raises:
        ConfigError: `LABEL_EACH`. FileSystemError: `FS_EXISTS`. LockedError: `FS_LOCKED`. BatchError: `LABELS_FAILED`
            after the last label. Those of `read_dataset` and of `train`.
    """
    folder = Path(folder)
    data = read_dataset(config.data.dataset, config.data.channel)
    runs = _runs_of(data, folder)
    configs = [_of_label(config, data, run) for run in runs]
    first = os.environ.get("RANK", "0") == "0"  # of several processes that train together
    with alone_in(folder) if first else nullcontext():
        new = first and _open(folder, runs, resume)
        failed: dict[str, InputError] = {}
        try:
            for number, (run, made) in enumerate(zip(runs, configs, strict=True), 1):
                logger.info("label %s, %d of %d", run.name, number, len(runs))
                try:
                    train(made, run.folder, resume=resume)
                except InputError as error:
                    failed[run.name] = error
                    logger.error("label %s: %s", run.name, error)
        finally:
            if new and not any(run.folder.exists() for run in runs):  # must not be in the way of the next call
                (folder / RUNS_FILE).unlink(missing_ok=True)
        if len(failed) == len(runs):
            raise failed[runs[0].name]
        if first:
            _list(folder, [LabelRun(r.name, r.value, r.folder, _said(failed.get(r.name))) for r in runs])
    if failed:
        raise BatchError(
            "LABELS_FAILED",
            f"{len(failed)} of {len(runs)} labels could not be trained; the others are",
            file=folder / RUNS_FILE,
            seen="; ".join(f"{name}: {error.what}" for name, error in failed.items()),
            fix="correct the data and add --continue; without that, predict leaves these labels out",
        )
    return runs


def label_runs(folder: str | Path) -> tuple[LabelRun, ...]:
    """The runs that `train_each` made in a folder, in the order of their labels; () if it is none of its folders.

    Raises:
        CheckpointError: `RUN_VERSION` if the list of runs is of another format.
    """
    path = Path(folder) / RUNS_FILE
    if not path.is_file():
        return ()
    try:
        record = read_json(path)
        if record["format"] != FORMAT:
            raise CheckpointError(
                "RUN_VERSION", "written in another format", file=path, seen=record["format"], expected=FORMAT
            )
        return tuple(
            LabelRun(str(row["label"]), int(row["value"]), Path(folder) / str(row["folder"]), str(row["failed"]))
            for row in record["runs"]
        )
    except (InputError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError("RUN_VERSION", f"not a list of runs: {error}", file=path, expected=FORMAT) from error


def predict_each(runs: Sequence[LabelRun], output: str | Path, predict: Callable[[LabelRun], Any]) -> dict[str, Any]:
    """Let `predict` write masks and probabilities of every run into `output`/LABEL; put them together in `output`.

    Where two labels claim a voxel, the one with the larger probability keeps it. Labels that could not be trained are
    left out, with a warning.

    Returns:
        The content of `combined.json`.

    Raises:
        CheckpointError: `RUN_UNFINISHED`, `RUN_LABEL`, before anything is predicted. LockedError: `FS_LOCKED`.
        BatchError: `COMBINE_FAILED`, after all labels and cases, if a case lacks the mask of a label.
    """
    output = Path(output)
    for run in runs:
        if run.failed:
            logger.warning("label %s is left out: it was not trained (%s)", run.name, run.failed)
    trained = [run for run in runs if not run.failed]
    for run in trained:
        _require_finished(run)
    with alone_in(output):
        for number, run in enumerate(trained, 1):
            logger.info("label %s, %d of %d", run.name, number, len(trained))
            with suppress(BatchError):  # its cases are told of one by one, and again below
                predict(run)
        structures = [Structure(run.name, run.value, output / run.folder.name) for run in trained]
        return write_label_maps(structures, output, disputed="probability", recorded=True)


def given_to(run: LabelRun, folder: Path | None, what: str) -> Path | None:
    """The subfolder of a label in a folder of prompts or masks; None where none is given, or there is no run.

    Args:
        what: `prompts` or `coarse`.

    Raises:
        ConfigError: `LABEL_EACH` if there is no such subfolder.
    """
    path = run.folder / "config.toml"
    if folder is None or not path.is_file():
        return None
    config = make_config(read_config(path))
    traits = traits_of(METHODS[config.method_name], config.method_config())
    if not (traits.prompted if what == "prompts" else traits.coarse):
        return None
    return _subfolder(folder, run.folder.name, what)


def _runs_of(data: Dataset, folder: Path) -> tuple[LabelRun, ...]:
    labels, names = data.foreground, data.label_folders
    if not labels:
        raise ConfigError(
            "LABEL_EACH",
            "there is no label to train by itself",
            file=data.folder / "dataset.json",
            seen=f"regions {', '.join(data.regions)}" if data.regions else "no foreground",
            fix="regions may overlap: train one run for each, and combine their masks in the order that is meant",
        )
    if len(set(labels.values())) < len(labels) or not all(1 <= value <= LARGEST for value in labels.values()):
        raise ConfigError(
            "LABEL_EACH",
            "label maps need another number for every label",
            file=data.folder / "dataset.json",
            seen=", ".join(f"{name} {value}" for name, value in labels.items()),
            expected=f"from 1 to {LARGEST}",
        )
    if data.regions:
        logger.warning("regions are no labels and left out: %s", ", ".join(data.regions))
    return tuple(LabelRun(name, value, folder / names[name]) for name, value in labels.items())


def _of_label(config: RunConfig, data: Dataset, run: LabelRun) -> RunConfig:
    """The configuration of one label: its own prompts and its own start."""
    changes: dict[str, Any] = {"data": config.data.model_copy(update={"label": run.name})}
    prompts = prompt_files(config, data, "Tr")
    if prompts is not None and traits_of(METHODS[config.method_name], config.method_config()).prompted:
        mine = _subfolder(prompts, run.folder.name, "prompts")
        changes["prompts"] = config.prompts.model_copy(update={"folder": str(mine)})
    starts = {"run": config.start.run, "begin": config.start.begin}
    mine = {key: Path(start) / run.folder.name for key, start in starts.items() if start and label_runs(start)}
    for start in mine.values():
        read_record(start)
    changes["start"] = config.start.model_copy(update={key: str(start) for key, start in mine.items()})
    return config.model_copy(update=changes)


def _subfolder(folder: Path, name: str, what: str) -> Path:
    if (folder / name).is_dir():
        return folder / name
    raise ConfigError(
        "LABEL_EACH",
        f"{what} belong to one label",
        file=folder,
        expected=f"a folder with a subfolder {name} for this label",
        fix="give every label a subfolder of its own, or take one label at a time",
    )


def _open(folder: Path, runs: Sequence[LabelRun], resume: bool) -> bool:
    """List the runs; whether the folder had no list before."""
    there, taken = label_runs(folder), [run.folder.name for run in runs if (run.folder / "config.toml").exists()]
    if (folder / "config.toml").exists():
        raise FileSystemError(
            "FS_EXISTS", "the run of a single label is in this folder", file=folder, fix="choose another -o"
        )
    if (there or taken) and not resume:
        raise FileSystemError(
            "FS_EXISTS",
            "runs are in this folder already",
            file=folder,
            seen=", ".join(taken or [run.folder.name for run in there]),
            fix="add --continue, or choose another -o",
        )
    if there and [(run.name, run.value) for run in there] != [(run.name, run.value) for run in runs]:
        raise ConfigError(
            "RESUME_CONFIG_DIFF",
            "the runs were started for other labels",
            file=folder / RUNS_FILE,
            seen=", ".join(f"{run.name} {run.value}" for run in there),
            expected=", ".join(f"{run.name} {run.value}" for run in runs),
            fix="use the same data set, or choose another -o",
        )
    _list(folder, runs)
    return not there


def _list(folder: Path, runs: Sequence[LabelRun]) -> None:
    rows = [{"label": r.name, "value": r.value, "folder": r.folder.name, "failed": r.failed} for r in runs]
    write_json(folder / RUNS_FILE, {"format": FORMAT, "runs": rows})


def _said(error: InputError | None) -> str:
    return "" if error is None else f"{error.code}: {error.what}"


def _require_finished(run: LabelRun) -> None:
    record = read_record(run.folder) if run.folder.is_dir() else {}
    if record.get("status") != "finished":
        raise CheckpointError(
            "RUN_UNFINISHED",
            f"the run of label {run.name} has not finished training",
            file=run.folder,
            seen=record.get("status", "not started"),
            fix="finish it with `steadysam train … --label each --continue`",
        )
    values = record["data"]["label_values"]
    if list(values) != [run.value]:
        raise CheckpointError(
            "RUN_LABEL", f"not the run of label {run.name}", file=run.folder, seen=values, expected=[run.value]
        )

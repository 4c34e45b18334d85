"""One run per label of a data set, trained and used as one; `steadysam.combining` puts their masks together.

RUNS/runs.json        the labels, their numbers and folders
RUNS/LABEL/           a run folder, see `steadysam.runs`
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steadysam.combining import Structure, combine_folders
from steadysam.config import RunConfig
from steadysam.data.cases import Dataset, read_dataset
from steadysam.errors import BatchError, CheckpointError, ConfigError, FileSystemError, InputError
from steadysam.evaluate import read_record
from steadysam.files import read_json, write_json
from steadysam.methods import METHODS
from steadysam.methods.contract import traits_of
from steadysam.runs import RUNS_FILE
from steadysam.training import train
from steadysam.training_data import prompt_files

logger = logging.getLogger(__name__)

FORMAT = "steadysam-runs-1"


@dataclass(frozen=True)
class LabelRun:
    """The run of one label: its name and number in `dataset.json`, and the run folder."""

    name: str
    value: int
    folder: Path


def train_each(config: RunConfig, folder: str | Path, *, resume: bool = False) -> tuple[LabelRun, ...]:
    """Train `config` once for every label of its data set, into `folder`/LABEL.

    Everything else is the same for all. Prompts belong to a label: of `prompts.folder`, or `promptsTr` of the data set,
    the subfolder LABEL is taken, and likewise LABEL of `start.run`, where that is such a folder of runs.

    Args:
        resume: as in `train`; labels that are finished are left as they are.

    Raises:
        ConfigError: `LABEL_EACH`. FileSystemError: `FS_EXISTS`. Those of `read_dataset` and of `train`.
    """
    folder = Path(folder)
    data = read_dataset(config.data.dataset, config.data.channel)
    names = data.label_folders
    runs = tuple(LabelRun(name, value, folder / names[name]) for name, value in data.foreground.items())
    if not runs:
        raise ConfigError(
            "LABEL_EACH",
            "there is no label to train by itself",
            file=data.folder / "dataset.json",
            seen=f"regions {', '.join(data.regions)}" if data.regions else "no foreground",
            fix="regions may overlap: train one run for each, and combine their masks in the order that is meant",
        )
    configs = [_of_label(config, data, run) for run in runs]
    first = os.environ.get("RANK", "0") == "0"  # of several processes that train together
    if first:
        _open(folder, runs, resume)
    try:
        for number, (run, made) in enumerate(zip(runs, configs, strict=True), 1):
            logger.info("label %s, %d of %d", run.name, number, len(runs))
            train(made, run.folder, resume=resume)
    finally:
        if first and not any(run.folder.exists() for run in runs):  # bad input must not be in the way of the next call
            (folder / RUNS_FILE).unlink(missing_ok=True)
            with suppress(OSError):
                folder.rmdir()
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
            LabelRun(str(row["label"]), int(row["value"]), Path(folder) / str(row["folder"])) for row in record["runs"]
        )
    except (InputError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError("RUN_VERSION", f"not a list of runs: {error}", file=path, expected=FORMAT) from error


def predict_each(runs: Sequence[LabelRun], output: str | Path, predict: Callable[[LabelRun], Any]) -> dict[str, Any]:
    """Let `predict` write masks and probabilities of every run into `output`/LABEL; put them together in `output`.

    Where two labels claim a voxel, the one with the larger probability keeps it.

    Returns:
        The content of `combined.json`.

    Raises:
        BatchError: the first of those that `predict` raised, after all labels and cases; those of `combine_folders`.
    """
    output, failed = Path(output), []
    for number, run in enumerate(runs, 1):
        logger.info("label %s, %d of %d", run.name, number, len(runs))
        try:
            predict(run)
        except BatchError as error:
            failed.append(error)
    structures = [Structure(run.name, run.value, output / run.folder.name) for run in runs]
    written = [{case["case"] for case in read_record(one.folder).get("cases", ())} for one in structures]
    here = set.intersection(*written)  # not masks of an earlier call
    record = combine_folders(structures, output, only=here, disputed="probability")
    if failed:
        raise failed[0]
    return record


def _of_label(config: RunConfig, data: Dataset, run: LabelRun) -> RunConfig:
    """The configuration of one label: its own prompts and its own start."""
    changes: dict[str, Any] = {"data": config.data.model_copy(update={"label": run.name})}
    prompts, given = prompt_files(config, data, "Tr"), config.start.run
    if prompts is not None and traits_of(METHODS[config.method_name], config.method_config()).prompted:
        mine = _prompts_of_label(prompts, run.folder.name)
        changes["prompts"] = config.prompts.model_copy(update={"folder": str(mine)})
    if given is not None and label_runs(given):
        changes["start"] = config.start.model_copy(update={"run": str(Path(given) / run.folder.name)})
    return config.model_copy(update=changes)


def _prompts_of_label(folder: Path, name: str) -> Path:
    if (folder / name).is_dir():
        return folder / name
    raise ConfigError(
        "LABEL_EACH",
        "prompts belong to one label",
        file=folder,
        expected=f"a subfolder {name} with the prompt files of this label",
        fix="give every label a subfolder of its own, or train one label at a time",
    )


def _open(folder: Path, runs: Sequence[LabelRun], resume: bool) -> None:
    taken = [path for path in (folder, *(run.folder for run in runs)) if (path / "config.toml").exists()]
    if folder in taken:
        raise FileSystemError(
            "FS_EXISTS", "the run of a single label is in this folder", file=folder, fix="choose another -o"
        )
    if taken and not resume:
        raise FileSystemError(
            "FS_EXISTS",
            "runs are in this folder already",
            file=folder,
            seen=", ".join(path.name for path in taken),
            fix="add --continue, or choose another -o",
        )
    rows = [{"label": run.name, "value": run.value, "folder": run.folder.name} for run in runs]
    write_json(folder / RUNS_FILE, {"format": FORMAT, "runs": rows})

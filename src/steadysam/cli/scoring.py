"""What `steadysam evaluate` does for one target, and for each label of label maps; tables on the terminal."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from steadysam.cli.tables import progress
from steadysam.errors import BatchError, InputError, UsageError

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from steadysam.data.cases import Dataset
    from steadysam.evaluate import Evaluation
    from steadysam.metrics import CaseScores
    from steadysam.report.html import Picture
    from steadysam.summary import Summary

_SHOWN = (
    "dsc",
    "iou",
    "dsc_positive",
    "volume_dice",
    "fp_rate_empty",
    "hd95_px",
    "assd_px",
    "hd95_penalised_px",
)
_SHOWN_OF_LABELS = ("dsc", "dsc_positive", "volume_dice", "fp_rate_empty", "hd95_px")  # what 80 letters hold
_SHOWN_MM = ("hd95_mm", "assd_mm", "volume_hd95_mm", "volume_assd_mm")


@dataclass(frozen=True)
class Target:
    """What is scored: label values, the patients, and the slice axis where it is known."""

    values: tuple[int, ...] | None
    label: str
    patients: Mapping[str, str]
    slice_axis: int | None
    label_maps: bool = False


@dataclass(frozen=True)
class Given:
    """What is the same for all targets of a call."""

    predictions: Path
    labels: Path
    images: Path | None
    patients: Path | None
    size: int
    compare: tuple[Path, ...]
    seed: int
    pictures: int


def evaluate_target(given: Given, target: Target, output: Path) -> tuple[Summary, BatchError | None]:
    """One target: files, a table on the terminal, and the error with which to end."""
    from steadysam.comparison import compare as compare_cases
    from steadysam.evaluate import COMBINED_FILE, evaluate_folder, holds_label_maps
    from steadysam.provenance import provenance_of
    from steadysam.report.evaluation import write_evaluation
    from steadysam.summary import summarise

    size, seed = given.size, given.seed

    def score(folder: Path) -> Evaluation:
        options = {"size": size, "slice_axis": target.slice_axis, "label_maps": target.label_maps}
        return evaluate_folder(
            folder, given.labels, target.values, progress=progress(f"scoring {folder.name}"), **options
        )

    evaluation = score(given.predictions)
    _require_cases(evaluation)
    if doubtful := len(evaluation.changed) + len(evaluation.foreign):
        record = COMBINED_FILE if holds_label_maps(given.predictions) else "run.json"
        log.warning("%d of %d masks are not those of %s", doubtful, len(evaluation.cases), given.predictions / record)
    if evaluation.trained:
        counts = len(evaluation.trained), len(evaluation.cases)
        log.warning("%d of %d images trained or validated the run: their scores say little of new images", *counts)
    owner = _patients(given.patients, target, evaluation.cases)
    source = provenance_of(evaluation.record)
    summary = summarise(evaluation.cases, owner, provenance=source, size=size, seed=seed)
    others = {name: score(folder).cases for name, folder in _names(given.compare).items()}
    comparisons = {name: compare_cases(evaluation.cases, cases, owner, seed=seed) for name, cases in others.items()}
    drawn = _pictures(evaluation, given, target)
    settings = {"label": target.label, "label_values": target.values, "size": size, "seed": seed}
    write_evaluation(output, evaluation, summary, owner, comparisons=comparisons, pictures=drawn, settings=settings)
    _print(summary, output)
    return summary, evaluation.problem()


def evaluate_each(
    given: Given, record: Mapping[str, Any], data: Dataset | None, slice_axis: int | None, output: Path
) -> list[BatchError | None]:
    """Every label of the data set by itself, from label maps; then all in one table."""
    from steadysam.cli.tables import print_rows
    from steadysam.evaluate import labels_of_maps
    from steadysam.files import write_text
    from steadysam.provenance import target_label
    from steadysam.report.table import to_csv

    maps = labels_of_maps(given.predictions)
    if data is None or (target_label(record) and not maps):
        raise UsageError(
            "EVAL_LABEL",
            "--label each scores label maps by the labels of a data set",
            seen="no dataset.json" if data is None else f"masks of one label, {target_label(record)}",
            fix="pass --dataset FOLDER" if data is None else "put masks of several runs together: steadysam combine",
        )
    problems, rows = [], []
    absent = [name for name, value in data.foreground.items() if maps and value not in maps.values()]
    if absent or data.regions:
        log.warning("not scored: %s", ", ".join([*absent, *(f"{name} (a region)" for name in data.regions)]))
    for name, folder in data.label_folders.items():
        if name in absent:
            continue
        log.info("label %s", name)
        target = replace(target_of(record, data, name, slice_axis), label_maps=True)
        summary, problem = evaluate_target(given, target, output / folder)
        problems.append(problem)
        rows.append({"label": name, **summary.row()})
    print_rows([{key: row.get(key) for key in ("label", *_SHOWN_OF_LABELS)} for row in rows])
    write_text(output / "labels.csv", to_csv(rows, list(dict.fromkeys(key for row in rows for key in row))))
    return problems


def target_of(record: Mapping[str, Any], data: Dataset | None, label: str | None, slice_axis: int | None) -> Target:
    """Label values by name or number; without `--label`, the record decides, else the only label there is."""
    from steadysam.data.cases import resolve_label
    from steadysam.provenance import slice_axes, target_label

    label = label or target_label(record) or _only_label(data)
    if slice_axis is None and data is not None and not slice_axes(record):
        slice_axis = data.slice_axis
    patients = {case.name: case.patient for case in data.cases} if data else {}
    if data is not None:
        return Target(resolve_label(data, label), label, patients, slice_axis)
    if label == "all":
        return Target(None, label, patients, slice_axis)
    words = label.split("+")
    if not all(word.strip().isdigit() for word in words):
        raise UsageError(
            "EVAL_LABEL",
            "a label name needs a data set that explains it",
            seen=label,
            fix="pass --dataset FOLDER",
        )
    return Target(tuple(int(word) for word in words), label, patients, slice_axis)


def data_set_of(labels: Path, dataset: Path | None) -> Dataset | None:
    """The data set that is named, or else the one that the labels lie in, if any."""
    from steadysam.data.cases import read_dataset

    if not labels.is_dir():
        raise InputError("FILE_MISSING", "no such folder of labels", file=labels, fix="check the path")
    folder = dataset or labels.resolve().parent
    folder = folder.parent if folder.name == "dataset.json" else folder
    return read_dataset(folder) if dataset is not None or (folder / "dataset.json").is_file() else None


def _only_label(data: Dataset | None) -> str:
    names = [name for name, value in data.labels.items() if value] if data else []
    if len(names) > 1:
        raise UsageError(
            "EVAL_LABEL",
            "the labels hold several structures and nothing says which one was predicted",
            expected=", ".join(names),
            fix="pass --label NAME, --label all for their union, or --label each for label maps",
        )
    return "all"


def _require_cases(evaluation: Evaluation) -> None:
    problem = evaluation.problem()
    if not evaluation.cases and problem is not None:
        raise problem


def _patients(table: Path | None, target: Target, cases: Sequence[CaseScores]) -> dict[str, str]:
    from steadysam.data.patients import read_patients

    names = [case.name for case in cases]
    if table is None:
        return {name: target.patients.get(name, name) for name in names}
    if not table.is_file() or table.name not in ("patients.csv", "cases.csv"):
        raise UsageError("EVAL_PATIENTS", "no such table", file=table, expected="a file patients.csv or cases.csv")
    return read_patients(table.parent, names)


def _names(folders: Sequence[Path]) -> dict[str, Path]:
    """A short name for each folder: its last part, or the whole path where two would be equal."""
    last = [folder.resolve().name for folder in folders]
    return {name if last.count(name) == 1 else str(folder): folder for name, folder in zip(last, folders, strict=True)}


def _pictures(evaluation: Evaluation, given: Given, target: Target) -> list[Picture]:
    """Pictures of the worst cases whose image is there."""
    images, predictions = given.images, given.predictions
    if images is None:
        return []
    from steadysam.data.cases import image_cases
    from steadysam.data.volumes import read_volume
    from steadysam.evaluate import holds_label_maps, mask_files, read_pair
    from steadysam.provenance import slice_axes
    from steadysam.report.casepictures import audit_marks, case_picture
    from steadysam.report.evaluation import worst_first

    files = dict(image_cases(images))
    preds, truths = mask_files(predictions), mask_files(given.labels)
    axes = slice_axes(evaluation.record) if target.slice_axis is None else {}
    maps = target.label_maps or holds_label_maps(predictions)
    chosen = [case for case in worst_first(evaluation.cases) if case.name in files][: given.pictures]
    if not chosen and given.pictures:
        log.warning("%s has no image of these cases: no pictures are drawn", images)
    drawn = []
    for name in progress("drawing")([case.name for case in chosen]):
        case = next(case for case in chosen if case.name == name)
        axis = axes.get(name, target.slice_axis)
        pred, true, grid = read_pair(preds[name], truths[name], target.values, axis, label_map=maps)
        marks = audit_marks(predictions / f"{name}.audit.json", grid)
        drawn.append(case_picture(case, read_volume(files[name]), pred, true, grid, marks))
    return drawn


def _print(summary: Summary, output: Path) -> None:
    from rich.table import Table

    from steadysam.report.table import shown

    names = [*_SHOWN, *(name for name in _SHOWN_MM if summary.scores[name].n)]
    table = Table("metric", box=None, title=f"{summary.n_cases} cases, {summary.n_patients} patients")
    for heading in ("mean", "95 % interval", "all-empty", "patients", "valid"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name in names:
        estimate = summary.scores[name]
        table.add_row(
            name,
            shown(estimate.mean),
            shown(estimate.interval),
            shown(summary.all_empty[name]),
            shown(estimate.patient_mean),
            f"{estimate.n}/{estimate.n + estimate.n_undefined}",
        )
    console = Console(highlight=False, markup=False)
    console.print(table)
    share = f"{summary.n_empty_slices} of {summary.n_slices} slices ({summary.empty_share:.1%}) hold no target"
    console.print(f"{share}; an all-empty prediction scores dsc {shown(summary.all_empty['dsc'])}.")
    for violation in summary.violations:
        console.print(f"impossible: {violation}")
    console.print(f"report: {output / 'report.html'}")

"""`steadysam evaluate`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from rich.console import Console

from steadysam.errors import UsageError

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
_SHOWN_MM = ("hd95_mm", "assd_mm", "volume_hd95_mm", "volume_assd_mm")


@dataclass(frozen=True)
class _Target:
    """What is scored: label values, the patients, and the slice axis where it is known."""

    values: tuple[int, ...] | None
    label: str
    patients: Mapping[str, str]
    slice_axis: int | None


def evaluate(
    predictions: Path,
    labels: Path,
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    label: str | None = None,
    dataset: Path | None = None,
    images: Path | None = None,
    patients: Path | None = None,
    size: int = 512,
    compare: Annotated[tuple[Path, ...], Parameter(name="--compare", negative="")] = (),
    seed: int = 0,
    slice_axis: int | None = None,
    pictures: int = 12,
    allow_missing: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Score the masks of a folder against the labels of another.

    Writes metrics.json (everything), slices.csv, cases.csv and report.html (one file, worst cases first). If
    cases are missing on one side or cannot be scored, the others are, and the exit code is 6.

    For example:

        steadysam evaluate out DATASET/labelsTs --label LV --images DATASET/imagesTs -o out/report
        steadysam evaluate spd labelsTs --label LV --compare raw --compare unet -o spd/report

    Parameters
    ----------
    predictions
        Folder of masks named CASE.nii.gz (CASE.png of pictures); what is not 0 is foreground; run.json tells where they
        are from. Label maps, such as those of steadysam combine, are scored by the numbers of --label.
    labels
        Folder of label maps named like the cases.
    output
        Folder to write.
    label
        Target: a name or number, several joined by + (union), or all. Default: what was trained for.
    dataset
        Data set folder, for label names and patients; default: the folder around LABELS.
    images
        Folder of images, for pictures of the worst cases.
    patients
        patients.csv or cases.csv with columns case and patient; default: that of the data set.
    size
        Slices are scored stretched to SIZE x SIZE pixels, as in the paper; 0 scores native pixels.
    compare
        Another folder of predictions for paired tests, any number of times.
    seed
        Seed of the bootstrap intervals.
    slice_axis
        Axis across which slices are cut (0, 1, 2); default: as recorded by predict, else as in training.
    pictures
        How many of the worst cases to draw.
    allow_missing
        Score the common cases and end with exit code 0.
    """
    from steadysam.comparison import compare as compare_cases
    from steadysam.evaluate import evaluate_folder, read_record
    from steadysam.provenance import provenance_of
    from steadysam.report.evaluation import write_evaluation
    from steadysam.summary import summarise

    if size < 0:
        raise UsageError(
            "EVAL_SIZE", "a size below 0", seen=size, expected="0 for native pixels, or a number of pixels"
        )
    target = _target(read_record(predictions), labels, dataset, label, slice_axis)

    def score(folder: Path) -> Evaluation:
        bar = _progress(f"scoring {folder.name}")
        return evaluate_folder(folder, labels, target.values, size=size, slice_axis=target.slice_axis, progress=bar)

    evaluation = score(predictions)
    _require_cases(evaluation)
    if doubtful := len(evaluation.changed) + len(evaluation.foreign):
        log.warning("%d of %d masks are not those of %s", doubtful, len(evaluation.cases), predictions / "run.json")
    if evaluation.trained:
        counts = len(evaluation.trained), len(evaluation.cases)
        log.warning("%d of %d images trained or validated the run: their scores say little of new images", *counts)
    owner = _patients(patients, target, evaluation.cases)
    source = provenance_of(evaluation.record)
    summary = summarise(evaluation.cases, owner, provenance=source, size=size, seed=seed)
    others = {name: score(folder).cases for name, folder in _names(compare).items()}
    comparisons = {name: compare_cases(evaluation.cases, cases, owner, seed=seed) for name, cases in others.items()}
    drawn = _pictures(evaluation, predictions, labels, images, target, pictures)
    settings = {"label": target.label, "label_values": target.values, "size": size, "seed": seed}
    write_evaluation(output, evaluation, summary, owner, comparisons=comparisons, pictures=drawn, settings=settings)
    _print(summary, output)
    problem = evaluation.problem()
    if problem is not None and not (allow_missing and problem.code == "EVAL_MISSING"):
        raise problem


def _target(
    record: Mapping[str, Any], labels: Path, dataset: Path | None, label: str | None, slice_axis: int | None
) -> _Target:
    """Label values by name or number; without `--label`, the record decides, else the only label there is."""
    from steadysam.data.cases import read_dataset, resolve_label
    from steadysam.provenance import slice_axes, target_label

    folder = dataset or labels.resolve().parent
    folder = folder.parent if folder.name == "dataset.json" else folder
    data = read_dataset(folder) if dataset is not None or (folder / "dataset.json").is_file() else None
    label = label or target_label(record) or _only_label(data)
    if slice_axis is None and data is not None and not slice_axes(record):
        slice_axis = data.slice_axis
    patients = {case.name: case.patient for case in data.cases} if data else {}
    if data is not None:
        return _Target(resolve_label(data, label), label, patients, slice_axis)
    if label == "all":
        return _Target(None, label, patients, slice_axis)
    words = label.split("+")
    if not all(word.strip().isdigit() for word in words):
        raise UsageError(
            "EVAL_LABEL",
            "a label name needs a data set that explains it",
            seen=label,
            fix="pass --dataset FOLDER",
        )
    return _Target(tuple(int(word) for word in words), label, patients, slice_axis)


def _only_label(data: Dataset | None) -> str:
    names = [name for name, value in data.labels.items() if value] if data else []
    if len(names) > 1:
        raise UsageError(
            "EVAL_LABEL",
            "the labels hold several structures and nothing says which one was predicted",
            expected=", ".join(names),
            fix="pass --label NAME, or --label all for their union",
        )
    return "all"


def _require_cases(evaluation: Evaluation) -> None:
    problem = evaluation.problem()
    if not evaluation.cases and problem is not None:
        raise problem


def _patients(table: Path | None, target: _Target, cases: Sequence[CaseScores]) -> dict[str, str]:
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


def _progress(title: str) -> Callable[[Sequence[str]], Iterator[str]]:
    from rich.progress import track

    def over(names: Sequence[str]) -> Iterator[str]:
        console = Console(stderr=True)
        yield from track(names, title, console=console, transient=True, disable=not console.is_terminal)

    return over


def _pictures(
    evaluation: Evaluation, predictions: Path, labels: Path, images: Path | None, target: _Target, most: int
) -> list[Picture]:
    """Pictures of the worst cases whose image is there."""
    if images is None:
        return []
    from steadysam.data.cases import image_cases
    from steadysam.data.volumes import read_volume
    from steadysam.evaluate import holds_label_maps, mask_files, read_pair
    from steadysam.provenance import slice_axes
    from steadysam.report.casepictures import audit_marks, case_picture
    from steadysam.report.evaluation import worst_first

    files = dict(image_cases(images))
    preds, truths = mask_files(predictions), mask_files(labels)
    axes = slice_axes(evaluation.record) if target.slice_axis is None else {}
    maps = holds_label_maps(predictions)
    chosen = [case for case in worst_first(evaluation.cases) if case.name in files][:most]
    drawn = []
    for name in _progress("drawing")([case.name for case in chosen]):
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

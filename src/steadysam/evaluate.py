"""Score predicted masks against labels: one case, or a folder against a folder."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steadysam.data.sniff import SUFFIXES, case_stem, image_kind
from steadysam.errors import BatchError, InputError, SteadyError
from steadysam.files import read_json, sha256_file
from steadysam.geometry import describe_grid, grids_agree
from steadysam.metrics import CaseScores, slice_scores, volume_scores
from steadysam.provenance import attempted_cases, combined_record, mask_hashes, slice_axes, training_cases
from steadysam.types import Grid, stack_slices

COMBINED_FILE = "combined.json"  # beside label maps
PROBABILITIES = "probabilities"  # folder, beside masks


def evaluate_case(
    pred: NDArray[Any],
    true: NDArray[Any],
    grid: Grid,
    size: int = 512,
    *,
    name: str = "case",
    physical: bool = True,
) -> CaseScores:
    """Score one case.

    Args:
        pred, true: (I, J, K) masks on `grid`.
        grid: gives the slice axis and the spacing.
        size: overlap and pixel distances are taken on slices stretched to `size` x `size` by the nearest
            pixel (spd.md 6.1); 0 means native slices.
        name: case name.
        physical: False for pictures, whose pixels have no size; mm values are then None.

    Raises:
        InputError: `METRIC_SHAPE` if the masks or the grid differ in shape.
    """
    if np.shape(true) != grid.shape:
        raise InputError("METRIC_SHAPE", "the mask is not on the grid", seen=np.shape(true), expected=grid.shape)
    spacing, in_plane = (grid.spacing_mm, grid.slice_spacing_mm) if physical else (None, None)
    volume = volume_scores(pred, true, spacing)
    return CaseScores(
        name=name,
        slices=slice_scores(stack_slices(pred, grid), stack_slices(true, grid), in_plane, size),
        volume=volume,
        scored_shape=(size, size) if size else grid.slice_shape,
        spacing_mm=spacing,
        slice_axis=grid.slice_axis,
    )


@dataclass(frozen=True)
class Evaluation:
    """A folder of predictions scored against a folder of labels.

    Args:
        cases: scored cases, by name.
        missing_predictions: labels without a prediction; where predict was told a part of the split, of its cases only.
        missing_labels: predictions without a label.
        failures: case name -> error, for cases that could not be scored.
        record: see `read_record`.
        changed: cases whose mask is not the one that the record describes.
        trained: scored cases whose image trained or validated the run, by the record.
        foreign: cases of which the record says nothing, where it is one of masks: those of another run or tool.
    """

    cases: tuple[CaseScores, ...]
    missing_predictions: tuple[str, ...] = ()
    missing_labels: tuple[str, ...] = ()
    failures: Mapping[str, SteadyError] = field(default_factory=dict)
    record: Mapping[str, Any] = field(default_factory=dict)
    changed: tuple[str, ...] = ()
    trained: tuple[str, ...] = ()
    foreign: tuple[str, ...] = ()

    def problem(self) -> BatchError | None:
        """The error with which a command should end although the other cases are scored, or None.

        Codes `EVAL_FAILED` (a case could not be scored) and `EVAL_MISSING` (the file sets differ).
        """
        if self.failures:
            return BatchError(
                "EVAL_FAILED",
                f"{len(self.failures)} cases could not be scored: "
                + "; ".join(f"{name} [{error.code}]" for name, error in self.failures.items()),
                seen=next(iter(self.failures.values())).message().splitlines()[0],
            )
        if self.missing_predictions or self.missing_labels:
            return BatchError(
                "EVAL_MISSING",
                "predictions and labels are not the same cases",
                seen=f"without prediction: {listed(self.missing_predictions)}; "
                f"without label: {listed(self.missing_labels)}",
                fix="complete the folders, or pass --allow-missing to score the common cases only",
            )
        return None


def evaluate_folder(
    pred_folder: Path,
    label_folder: Path,
    label_values: Sequence[int] | None = None,
    *,
    size: int = 512,
    slice_axis: int | None = None,
    label_maps: bool = False,
    progress: Callable[[Sequence[str]], Iterator[str]] = iter,
) -> Evaluation:
    """Score every case that has both a prediction and a label; one bad case does not stop the others.

    Args:
        pred_folder: masks `CASE.nii.gz` (or another format that is read), foreground non-zero; or label maps with the
            numbers of the labels, see `read_pair`; `run.json`.
        label_folder: label maps `CASE.nii.gz` and so on.
        label_values: labels whose union is the target; None means every value but 0.
        size: grid of the pixel metrics, see `evaluate_case`.
        slice_axis: where slices are cut; None takes what predict recorded, else the label's own axis.
        label_maps: the predictions are label maps, also where one holds a single number; else `combined.json` says so.
        progress: wraps the list of case names, for a progress bar.

    Raises:
        InputError: `FILE_MISSING` if a folder is none, `EVAL_DUPLICATE` if a case stands twice in one,
            `EVAL_EMPTY` if no case is in both.
    """
    preds, labels = mask_files(pred_folder), mask_files(label_folder)
    common = sorted(preds.keys() & labels.keys())
    if not common:
        raise InputError(
            "EVAL_EMPTY",
            "no case has both a prediction and a label",
            file=pred_folder,
            seen=f"predictions {listed(sorted(preds))}; labels {listed(sorted(labels))}",
            fix="file names must match: PRED/CASE.nii.gz and LABELS/CASE.nii.gz",
        )
    record = read_record(pred_folder, label_values)
    axes = slice_axes(record) if slice_axis is None else dict.fromkeys(common, slice_axis)
    maps = label_maps or holds_label_maps(pred_folder)
    cases: list[CaseScores] = []
    failures: dict[str, SteadyError] = {}
    for name in progress(common):
        try:
            pair = read_pair(preds[name], labels[name], label_values, axes.get(name), label_map=maps)
            physical = image_kind(labels[name]) not in ("png", "jpeg")
            cases.append(evaluate_case(*pair, size, name=name, physical=physical))
        except SteadyError as error:
            failures[name] = error
    hashes = mask_hashes(record)
    wanted = labels.keys() & attempted_cases(record) if record.get("part") else labels.keys()
    return Evaluation(
        cases=tuple(cases),
        missing_predictions=tuple(sorted(wanted - preds.keys())),
        missing_labels=tuple(sorted(preds.keys() - labels.keys())),
        failures=failures,
        record=record,
        trained=tuple(name for name in common if name in training_cases(record)),
        changed=tuple(name for name, sha in hashes.items() if _differs(preds.get(name), sha)),
        foreign=tuple(name for name in common if "cases" in record and name not in hashes),
    )


def read_pair(
    pred: Path,
    label: Path,
    label_values: Sequence[int] | None = None,
    slice_axis: int | None = None,
    *,
    label_map: bool = False,
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], Grid]:
    """Prediction, truth (I, J, K) and the label's grid, after checking that both lie on it.

    What is not 0 in the prediction is foreground, whatever its number; but where it is a label map, and so wherever it
    holds several numbers, the target is the union of `label_values`, as in the label.

    Raises:
        InputError: `LABEL_GRID` if the grids differ, and whatever reading a label map raises.
    """
    from steadysam.data.volumes import read_label_map, select_label

    pred_array, pred_grid = read_label_map(pred)
    label_array, grid = read_label_map(label)
    if not grids_agree(pred_grid, grid):
        raise InputError(
            "LABEL_GRID",
            "the prediction does not lie on the grid of its label",
            file=pred,
            seen=describe_grid(pred_grid),
            expected=describe_grid(grid),
            fix="resample the prediction, or evaluate it against the labels of its own images",
        )
    if slice_axis is not None:
        grid = replace(grid, slice_axis=slice_axis)
    true = label_array != 0 if label_values is None else select_label(label_array, label_values)
    found = pred_array != 0
    if label_values is not None and (label_map or several_numbers(pred_array)):
        found = select_label(pred_array, label_values)
    return np.asarray(found, bool), np.asarray(true, bool), grid


def several_numbers(labels: NDArray[Any]) -> bool:
    """Whether more than one number stands in a mask beside 0."""
    inside = labels[labels != 0]
    return inside.size > 0 and bool(inside.min() != inside.max())


def holds_label_maps(folder: Path) -> bool:
    """Whether the masks of a folder are label maps that `steadysam combine` made."""
    return (Path(folder) / COMBINED_FILE).is_file()


def mask_files(folder: Path) -> dict[str, Path]:
    """Case name -> mask file of a folder (hidden files and unknown endings are passed over).

    Raises:
        InputError: `FILE_MISSING`, `EVAL_DUPLICATE`.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError("FILE_MISSING", "no such folder", file=folder, fix="check the path")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not path.name.lower().endswith(SUFFIXES):
            continue
        name = case_stem(path)
        if name in found:
            raise InputError(
                "EVAL_DUPLICATE",
                f"case {name!r} stands twice",
                file=path,
                seen=found[name].name,
                fix="remove one",
            )
        found[name] = path
    return found


def masks_lying_in(folder: Path) -> Collection[str]:
    """The cases whose masks lie here, also those of a call that did not end; what lies here may be anything."""
    try:
        return mask_files(folder)
    except SteadyError:
        return ()


def read_record(folder: Path, values: Sequence[int] | None = None) -> dict[str, Any]:
    """The `run.json` that predict wrote beside its masks; {} if there is none.

    Of label maps it is what the runs of the labels `values` (None: of all) say alike, see `combined_record`.
    """
    if holds_label_maps(folder):
        return combined_record(read_json(Path(folder) / COMBINED_FILE), values)
    path = Path(folder) / "run.json"
    value = read_json(path) if path.is_file() else {}
    return value if isinstance(value, dict) else {}


def labels_of_maps(folder: Path) -> dict[str, int]:
    """The labels that were put together in a folder of label maps; {} where nothing says so."""
    value = read_json(Path(folder) / COMBINED_FILE) if holds_label_maps(folder) else {}
    labels = value.get("labels") if isinstance(value, dict) else None
    return labels if isinstance(labels, dict) else {}


def _differs(path: Path | None, sha256: str) -> bool:
    return path is not None and sha256_file(path) != sha256


def listed(names: Sequence[str], most: int = 20) -> str:
    """The first names, and how many more there are."""
    shown = ", ".join(names[:most]) or "none"
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown

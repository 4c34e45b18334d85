"""Put binary masks of several structures together into label maps: one run per structure, one map per case."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from steadysam.data.volumes import read_label_map, read_probability, write_volume
from steadysam.errors import BatchError, InputError, SteadyError
from steadysam.evaluate import COMBINED_FILE, PROBABILITIES, mask_files, read_record, several_numbers
from steadysam.files import sha256_file, write_json
from steadysam.geometry import describe_grid, grids_agree
from steadysam.provenance import slice_axes, target_label, without_seconds
from steadysam.types import Grid

FORMAT = "steadysam-combined-1"
Disputed = Literal["order", "probability"]


@dataclass(frozen=True)
class Structure:
    """One structure: its name, its number in the label map, and the folder of its masks."""

    name: str
    value: int
    folder: Path


def combine_masks(
    masks: Sequence[NDArray[np.bool_]],
    values: Sequence[int],
    probabilities: Sequence[NDArray[np.floating[Any]]] | None = None,
) -> tuple[NDArray[np.uint8], int]:
    """(I, J, K) masks -> one label map, and the number of voxels that more than one mask claimed.

    Of those that claim such a voxel the one with the largest of the `probabilities` (I, J, K) keeps it; without these,
    and of equal ones, the one that is named first.
    """
    labels = np.zeros(masks[0].shape, np.uint8)
    claimed = np.zeros(masks[0].shape, np.uint8)
    best = np.full(masks[0].shape, -1.0, np.float32)
    for number, (mask, value) in enumerate(zip(masks, values, strict=True)):
        probability = 0.0 if probabilities is None else probabilities[number]
        wins = mask & (probability > best)
        labels[wins] = value
        best = np.where(wins, probability, best)
        claimed += mask
    return labels, int((claimed > 1).sum())


def combine_folders(
    structures: Sequence[Structure],
    output: Path,
    track: Callable[[Iterable[str]], Iterable[str]] = iter,
    *,
    only: Collection[str] | None = None,
    disputed: Disputed = "order",
) -> dict[str, Any]:
    """Write `CASE.nii.gz` (of pictures `CASE.png`) for every case of every folder, and `combined.json`, the result.

    Args:
        track: wraps the case names, for a progress bar.
        only: the cases to put together; None: all that a folder has.
        disputed: who keeps a voxel that several claim: the structure that is named first, or the one with the largest
            probability, from the folder `probabilities` beside the masks.

    Raises:
        InputError: `COMBINE_VALUES`, `COMBINE_OTHER_LABEL` if a folder's `run.json` says that its masks are of another
            label, those of `mask_files`. BatchError: `COMBINE_FAILED`, after all other cases, if a case lacks a mask or
            a probability, a mask holds several numbers, or they lie on different grids.
    """
    values = [structure.value for structure in structures]
    if len(set(values)) < len(values) or not all(1 <= value <= 255 for value in values):
        raise InputError(
            "COMBINE_VALUES", "every structure needs a number of its own", seen=values, expected="1 to 255"
        )
    for structure in structures:
        _refuse_another_label(structure)
    files = {structure.name: mask_files(structure.folder) for structure in structures}
    runs = {structure.name: without_seconds(read_record(structure.folder)) for structure in structures}
    axes = {case: axis for record in runs.values() for case, axis in slice_axes(record).items()}
    cases: dict[str, Any] = {}
    failures: dict[str, SteadyError] = {}
    names = set().union(*files.values())
    for case in track(sorted(names if only is None else names & set(only))):
        try:
            masks, grid = _read(case, {name: found.get(case) for name, found in files.items()}, axes.get(case))
            chances = _probabilities(case, structures, grid) if disputed == "probability" else None
            labels, claimed = combine_masks(masks, values, chances)
            pictures = all(Path(found[case]).suffix == ".png" for found in files.values())
            path = output / f"{case}{'.png' if pictures else '.nii.gz'}"
            write_volume(path, labels, grid)
        except SteadyError as error:
            failures[case] = error
            continue
        hashes = {name: sha256_file(found[case]) for name, found in files.items()}
        counts = {s.name: int((labels == s.value).sum()) for s in structures}
        cases[case] = {"masks_sha256": hashes, "voxels": counts, "disputed_voxels": claimed}
        cases[case]["sha256"] = sha256_file(path)
    record = {"format": FORMAT, "labels": {s.name: s.value for s in structures}, "disputed": disputed, "cases": cases}
    record["runs"] = runs
    record["failures"] = {case: error.to_dict() for case, error in failures.items()}
    if cases or not failures:
        write_json(output / COMBINED_FILE, record)
    if failures:
        raise BatchError(
            "COMBINE_FAILED",
            f"{len(failures)} cases could not be combined: {', '.join(sorted(failures)[:8])}",
            seen=next(iter(failures.values())).message().splitlines()[0],
            fix="combine the folders that have all cases, or complete them",
        )
    return record


def _refuse_another_label(structure: Structure) -> None:
    """Swapped folders would write one structure as the other; whoever gives a number says what it is."""
    trained = target_label(read_record(structure.folder))
    if trained not in (None, structure.name, str(structure.value)) and not structure.name.isdigit():
        raise InputError(
            "COMBINE_OTHER_LABEL",
            "the masks in this folder are of another label",
            file=structure.folder,
            seen=f"trained for {trained}",
            expected=structure.name,
            fix=f"name the right folder; if it is meant, give the number: {structure.value}={structure.folder}",
        )


def _read(case: str, paths: dict[str, Path | None], axis: int | None) -> tuple[list[NDArray[np.bool_]], Grid]:
    missing = [name for name, path in paths.items() if path is None]
    if missing:
        raise InputError("COMBINE_MISSING", f"case {case} has no mask of {', '.join(missing)}")
    masks: list[NDArray[np.bool_]] = []
    first: Grid | None = None
    for path in paths.values():
        array, grid = (np.zeros(0), None) if path is None else read_label_map(path, slice_axis=axis)
        if first is not None and grid is not None and not grids_agree(grid, first):
            seen, expected = describe_grid(grid), describe_grid(first)
            raise InputError("LABEL_GRID", "masks of one case on two grids", file=path, seen=seen, expected=expected)
        if several_numbers(array):
            seen = ", ".join(map(str, np.unique(array)[:8].tolist()))
            raise InputError("COMBINE_MASK", "not the mask of one structure", file=path, seen=f"values {seen}")
        first = first or grid
        masks.append(array != 0)
    if first is None:
        raise InputError("COMBINE_MISSING", f"case {case} has no mask")
    return masks, first


def _probabilities(case: str, structures: Sequence[Structure], grid: Grid) -> list[NDArray[np.float32]]:
    found = []
    for structure in structures:
        folder = structure.folder / PROBABILITIES
        path = mask_files(folder).get(case) if folder.is_dir() else None
        if path is None:
            raise InputError(
                "COMBINE_MISSING",
                f"case {case} has no probability of {structure.name}",
                file=folder,
                fix="predict with --probabilities, or let the order decide",
            )
        array, own = read_probability(path, slice_axis=grid.slice_axis)
        if not grids_agree(own, grid):
            seen, expected = describe_grid(own), describe_grid(grid)
            raise InputError("LABEL_GRID", "mask and probability on two grids", file=path, seen=seen, expected=expected)
        found.append(array)
    return found

"""Put binary masks of several structures together into label maps: one run per structure, one map per case."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from steadysam.data.volumes import read_label_map, read_probability, write_volume
from steadysam.errors import BatchError, InputError, SteadyError
from steadysam.evaluate import (
    COMBINED_FILE,
    PROBABILITIES,
    listed,
    mask_files,
    masks_lying_in,
    read_record,
    several_numbers,
)
from steadysam.files import sha256_file, sweep_temporaries, write_json
from steadysam.geometry import describe_grid, grids_agree
from steadysam.locks import alone_in
from steadysam.outputs import refuse_output
from steadysam.provenance import (
    attempted_cases,
    mask_hashes,
    probability_hashes,
    slice_axes,
    target_label,
    without_seconds,
)
from steadysam.types import Grid

logger = logging.getLogger(__name__)

FORMAT = "steadysam-combined-1"
LARGEST = 65535  # number of a label
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
) -> tuple[NDArray[np.unsignedinteger[Any]], int]:
    """(I, J, K) masks -> one label map, and the number of voxels that more than one mask claimed.

    Of those that claim such a voxel the one with the largest of the `probabilities` (I, J, K) keeps it; without these,
    and of equal ones, the one that is named first.
    """
    made = _LabelMap(masks[0].shape, max(values))
    for number, (mask, value) in enumerate(zip(masks, values, strict=True)):
        made.add(mask, value, None if probabilities is None else probabilities[number])
    return made.labels, made.disputed


def combine_folders(
    structures: Sequence[Structure],
    output: Path,
    track: Callable[[Iterable[str]], Iterable[str]] = iter,
    *,
    disputed: Disputed = "order",
) -> dict[str, Any]:
    """Write `CASE.nii.gz` (of pictures `CASE.png`) for every case of every folder, and `combined.json`, the result.

    Args:
        track: wraps the case names, for a progress bar.
        disputed: who keeps a voxel that several claim: the structure that is named first, or the one with the largest
            probability, from the folder `probabilities` beside the masks.

    Raises:
        FileSystemError: `OUTPUT_RUN`. InputError: `COMBINE_VALUES`, `COMBINE_OUTPUT`, `COMBINE_OTHER_LABEL` if a
            folder's `run.json` says that its masks are of another label, those of `mask_files`. LockedError:
            `FS_LOCKED`. BatchError: `COMBINE_FAILED`, after all other cases, if a case lacks a mask or a probability, a
            mask holds several numbers, a probability is of another call than its mask, or they lie on different grids.
    """
    _check(structures, output)
    refuse_output(output, ())
    with alone_in(output):
        return write_label_maps(structures, output, track, disputed=disputed)


def write_label_maps(
    structures: Sequence[Structure],
    output: Path,
    track: Callable[[Iterable[str]], Iterable[str]] = iter,
    *,
    disputed: Disputed = "order",
    recorded: bool = False,
) -> dict[str, Any]:
    """What `combine_folders` does, for those who have locked `output` already.

    Args:
        recorded: take the cases that the folders' `run.json` name, and no masks of earlier calls.
    """
    sweep_temporaries(output)
    runs = {structure.name: without_seconds(read_record(structure.folder)) for structure in structures}
    sources = [_Source.of(structure, runs[structure.name], disputed, recorded) for structure in structures]
    axes = {case: axis for record in runs.values() for case, axis in slice_axes(record).items()}
    names = {case for record in runs.values() for case in attempted_cases(record)} if recorded else set()
    cases: dict[str, Any] = {}
    failures: dict[str, SteadyError] = {}
    for case in track(sorted(names.union(*(source.masks for source in sources)))):
        try:
            made, grid = _put_together(case, sources, axes.get(case))
            pictures = all(source.masks[case].suffix == ".png" for source in sources)
            path = output / f"{case}{'.png' if pictures else '.nii.gz'}"
            write_volume(path, made.labels, grid)
        except SteadyError as error:
            failures[case] = error
            continue
        hashes = {source.name: sha256_file(source.masks[case]) for source in sources}
        counts = {source.name: int((made.labels == source.value).sum()) for source in sources}
        cases[case] = {"masks_sha256": hashes, "voxels": counts, "disputed_voxels": made.disputed}
        cases[case]["sha256"] = sha256_file(path)
    record = {"format": FORMAT, "labels": {s.name: s.value for s in structures}, "disputed": disputed, "cases": cases}
    record["runs"] = runs
    record["failures"] = {case: error.to_dict() for case, error in failures.items()}
    write_json(output / COMBINED_FILE, record)
    (output / "run.json").unlink(missing_ok=True)  # of masks of one label that lay here
    if left := sorted(set(masks_lying_in(output)) - cases.keys()):
        logger.warning(
            "%s holds label maps of an earlier call, which evaluate would score: %s", output, listed(left, 5)
        )
    if failures:
        fixes = [error.fix for error in failures.values() if error.fix]
        raise BatchError(
            "COMBINE_FAILED",
            f"{len(failures)} of {len(cases) + len(failures)} cases could not be combined",
            file=output / COMBINED_FILE,
            seen="; ".join(f"{case}: {error.what} [{error.code}]" for case, error in list(failures.items())[:5]),
            fix=next(iter(fixes), "combine the folders that have all cases, or complete them"),
        )
    return record


@dataclass(frozen=True)
class _Source:
    """A structure's files by case; `probabilities` is None where the order decides."""

    name: str
    value: int
    folder: Path
    masks: Mapping[str, Path]
    probabilities: Mapping[str, Path] | None
    hashes: Mapping[str, str]

    @staticmethod
    def of(structure: Structure, record: Mapping[str, Any], disputed: Disputed, recorded: bool) -> _Source:
        masks = mask_files(structure.folder)
        if recorded:
            masks = {case: masks[case] for case in mask_hashes(record) if case in masks}
        folder = structure.folder / PROBABILITIES
        probabilities = None
        if disputed == "probability":
            probabilities = mask_files(folder) if folder.is_dir() else {}
        hashes = probability_hashes(record)
        return _Source(structure.name, structure.value, structure.folder, masks, probabilities, hashes)


class _LabelMap:
    """A label map to which one mask after the other is added, so that only one of many is in memory."""

    def __init__(self, shape: tuple[int, ...], largest: int) -> None:
        self.labels = np.zeros(shape, np.uint8 if largest < 256 else np.uint16)
        self._best = np.full(shape, -1.0, np.float32)
        self._claimed = np.zeros(shape, bool)
        self._disputed = np.zeros(shape, bool)

    @property
    def disputed(self) -> int:
        """Number of voxels that more than one mask claimed."""
        return int(self._disputed.sum())

    def add(self, mask: NDArray[np.bool_], value: int, probability: NDArray[Any] | None) -> None:
        strength = np.float32(0) if probability is None else probability.astype(np.float32, copy=False)
        wins = mask & (strength > self._best)
        self.labels[wins] = value
        self._best = np.where(wins, strength, self._best)
        self._disputed |= self._claimed & mask
        self._claimed |= mask


def _check(structures: Sequence[Structure], output: Path) -> None:
    values = [structure.value for structure in structures]
    if len(set(values)) < len(values):
        seen = ", ".join(f"{structure.name} = {structure.value}" for structure in structures)
        fix = "name every structure once, with its own folder"
        raise InputError("COMBINE_VALUES", "every structure needs a number of its own", seen=seen, fix=fix)
    if not all(1 <= value <= LARGEST for value in values):
        raise InputError("COMBINE_VALUES", "no number of a label map", seen=values, expected=f"1 to {LARGEST}")
    for structure in structures:
        if structure.folder.resolve() == output.resolve():
            raise InputError(
                "COMBINE_OUTPUT", "the output would replace the masks", file=output, fix="choose another -o"
            )
        _refuse_another_label(structure)


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


def _put_together(case: str, sources: Sequence[_Source], axis: int | None) -> tuple[_LabelMap, Grid]:
    missing = [source.name for source in sources if case not in source.masks]
    if missing:
        raise InputError("COMBINE_MISSING", f"no mask of {', '.join(missing)}")
    made: tuple[_LabelMap, Grid] | None = None
    for source in sources:
        path = source.masks[case]
        array, grid = read_label_map(path, slice_axis=axis)
        if several_numbers(array):
            seen = ", ".join(map(str, np.unique(array)[:8].tolist()))
            raise InputError("COMBINE_MASK", "not the mask of one structure", file=path, seen=f"values {seen}")
        made = made or (_LabelMap(array.shape, max(s.value for s in sources)), grid)
        _require_grid(path, grid, made[1])
        made[0].add(array != 0, source.value, _probability(case, source, made[1]))
    if made is None:
        raise InputError("COMBINE_MISSING", "no structure to put together")
    return made


def _probability(case: str, source: _Source, grid: Grid) -> NDArray[np.float32] | None:
    if source.probabilities is None:
        return None
    path = source.probabilities.get(case)
    if path is None or source.hashes.get(case, "") not in ("", sha256_file(path)):
        raise InputError(
            "COMBINE_MISSING",
            f"no probability of {source.name}" + (" of the same call as the mask" if path else ""),
            file=source.folder / PROBABILITIES,
            fix="predict with --probabilities, or let the order decide",
        )
    array, own = read_probability(path, slice_axis=grid.slice_axis)
    _require_grid(path, own, grid)
    return array


def _require_grid(path: Path, grid: Grid, first: Grid) -> None:
    if not grids_agree(grid, first):
        seen, expected = describe_grid(grid), describe_grid(first)
        raise InputError("LABEL_GRID", "files of one case on two grids", file=path, seen=seen, expected=expected)

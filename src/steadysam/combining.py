"""Put binary masks of several structures together into label maps: one run per structure, one map per case."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steadysam.data.volumes import read_label_map, write_volume
from steadysam.errors import BatchError, InputError, SteadyError
from steadysam.evaluate import mask_files
from steadysam.files import sha256_file, write_json
from steadysam.geometry import describe_grid, grids_agree
from steadysam.types import Grid

FORMAT = "steadysam-combined-1"


@dataclass(frozen=True)
class Structure:
    """One structure: its name, its number in the label map, and the folder of its masks."""

    name: str
    value: int
    folder: Path


def combine_masks(masks: Sequence[NDArray[np.bool_]], values: Sequence[int]) -> tuple[NDArray[np.uint8], int]:
    """(I, J, K) masks -> one label map, and the number of voxels that more than one mask claimed.

    The mask that is named first keeps such voxels.
    """
    labels = np.zeros(masks[0].shape, np.uint8)
    claimed = np.zeros(masks[0].shape, np.uint8)
    for mask, value in zip(masks, values, strict=True):
        labels[mask & (labels == 0)] = value
        claimed += mask
    return labels, int((claimed > 1).sum())


def combine_folders(
    structures: Sequence[Structure], output: Path, track: Callable[[Iterable[str]], Iterable[str]] = iter
) -> dict[str, Any]:
    """Write `CASE.nii.gz` (of pictures `CASE.png`) for every case of every folder, and `combined.json`, the result.

    Args:
        track: wraps the case names, for a progress bar.

    Raises:
        InputError: `COMBINE_VALUES`, those of `mask_files`. BatchError: `COMBINE_FAILED`, after all other cases, if a
            case lacks a mask or its masks lie on different grids.
    """
    values = [structure.value for structure in structures]
    if len(set(values)) < len(values) or not all(1 <= value <= 255 for value in values):
        raise InputError(
            "COMBINE_VALUES", "every structure needs a number of its own", seen=values, expected="1 to 255"
        )
    files = {structure.name: mask_files(structure.folder) for structure in structures}
    cases: dict[str, Any] = {}
    failures: dict[str, SteadyError] = {}
    for case in track(sorted(set().union(*files.values()))):
        try:
            masks, grid = _read(case, {name: found.get(case) for name, found in files.items()})
            labels, disputed = combine_masks(masks, values)
            pictures = all(Path(found[case]).suffix == ".png" for found in files.values())
            write_volume(output / f"{case}{'.png' if pictures else '.nii.gz'}", labels, grid)
        except SteadyError as error:
            failures[case] = error
            continue
        hashes = {name: sha256_file(found[case]) for name, found in files.items()}
        counts = {s.name: int((labels == s.value).sum()) for s in structures}
        cases[case] = {"masks_sha256": hashes, "voxels": counts, "disputed_voxels": disputed}
    record = {"format": FORMAT, "labels": {s.name: s.value for s in structures}, "cases": cases}
    record["failures"] = {case: error.to_dict() for case, error in failures.items()}
    if cases or not failures:
        write_json(output / "combined.json", record)
    if failures:
        raise BatchError(
            "COMBINE_FAILED",
            f"{len(failures)} cases could not be combined: {', '.join(sorted(failures)[:8])}",
            fix=next(iter(failures.values())).message().splitlines()[0],
        )
    return record


def _read(case: str, paths: dict[str, Path | None]) -> tuple[list[NDArray[np.bool_]], Grid]:
    missing = [name for name, path in paths.items() if path is None]
    if missing:
        raise InputError("COMBINE_MISSING", f"case {case} has no mask of {', '.join(missing)}")
    masks: list[NDArray[np.bool_]] = []
    first: Grid | None = None
    for path in paths.values():
        array, grid = read_label_map(path) if path is not None else (np.zeros(0), None)
        if first is not None and grid is not None and not grids_agree(grid, first):
            seen, expected = describe_grid(grid), describe_grid(first)
            raise InputError("LABEL_GRID", "masks of one case on two grids", file=path, seen=seen, expected=expected)
        first = first or grid
        masks.append(array != 0)
    if first is None:
        raise InputError("COMBINE_MISSING", f"case {case} has no mask")
    return masks, first

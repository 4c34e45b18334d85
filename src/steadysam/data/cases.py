"""Data sets as folders: nnU-Net v2 raw and Medical Segmentation Decathlon, read unchanged.

Formats: `dataset.json`, `imagesTr/CASE_0000.ext`, `labelsTr/CASE.ext` (and `Ts`), `cases.csv` or
`patients.csv` with the columns `case` and `patient`. Fault names: reliability rules S01 to S11 of the
project's specification.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steadysam.data.listing import Part, json_error, msd_cases, plain_images, raw_cases
from steadysam.data.patients import read_patients
from steadysam.data.sniff import SUFFIXES, case_name
from steadysam.errors import FileSystemError, InputError
from steadysam.files import read_json, slug
from steadysam.geometry import describe_grid, grids_agree
from steadysam.types import Grid

EACH = "each"  # in place of a label's name: all labels, one after the other


@dataclass(frozen=True)
class Case:
    """One image with its label.

    Args:
        name: case identifier, unique in the data set.
        patient: cases of one patient never stand on two sides of a split.
        image, label: files; label is None where the data set has none.
        part: `Tr` or `Ts`, as delivered.
    """

    name: str
    patient: str
    image: Path
    label: Path | None
    part: Part


@dataclass(frozen=True)
class Dataset:
    """A data set as read from its folder.

    Args:
        labels: label name -> value, background included.
        regions: names that stand for several values (nnU-Net's region-based labels).
        cases: sorted by part and name.
        slice_axis: of `dataset.json`, if it says so.
        channel_names: of `dataset.json`, by number, such as "CT".
    """

    name: str
    folder: Path
    labels: Mapping[str, int]
    cases: tuple[Case, ...]
    regions: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    slice_axis: int | None = None
    channel_names: Mapping[str, str] = field(default_factory=dict)

    @property
    def foreground(self) -> dict[str, int]:
        """The labels that can be segmented: neither background nor what is to be ignored."""
        return {name: value for name, value in self.labels.items() if value != 0 and name.lower() != "ignore"}

    @property
    def label_folders(self) -> dict[str, str]:
        """Foreground label -> a folder name; its number where nothing is left of a name, or the same as of another."""
        slugs = {name: slug(name) for name in self.foreground}
        folded = [text.casefold() for text in slugs.values()]
        taken = {text for text in folded if not text or folded.count(text) > 1 or re.fullmatch(r"label-\d+", text)}
        clear = {name for name, text in slugs.items() if text.casefold() not in taken}
        return {name: slugs[name] if name in clear else f"label-{value}" for name, value in self.foreground.items()}

    def channel_name(self, channel: int) -> str:
        """What a channel is, or "" where nothing says so."""
        return self.channel_names.get(str(channel), "")

    def part(self, part: Part) -> tuple[Case, ...]:
        """The cases of `Tr` or `Ts`."""
        return tuple(case for case in self.cases if case.part == part)


def read_dataset(folder: str | Path, channel: int = 0) -> Dataset:
    """Read an nnU-Net v2 raw folder or an MSD folder; images are listed, not opened.

    Args:
        channel: which channel file of each case to use (`CASE_0001.ext` is channel 1).

    Raises:
        InputError: `DATA_NO_JSON`, `DATA_JSON`, `DATA_EMPTY`, `DATA_PAIRS`, `DATA_DUPLICATE_ID`,
            `DATA_PATIENTS`, `DATA_PATH`.
        FileSystemError: `FS_READ`.
    """
    folder = Path(folder)
    if not (folder / "dataset.json").is_file():
        raise InputError(
            "DATA_NO_JSON",
            "no dataset.json in this folder",
            file=folder,
            expected="an nnU-Net v2 raw or MSD folder",
            fix="name the folder that holds dataset.json, imagesTr and labelsTr",
        )
    info = read_json(folder / "dataset.json")
    if not isinstance(info, dict):
        raise json_error(folder, "not an object")
    labels, regions = _labels(folder, info.get("labels"))
    try:
        cases = msd_cases(folder, info) if isinstance(info.get("training"), list) else raw_cases(folder, info, channel)
    except OSError as error:
        raise FileSystemError("FS_READ", f"cannot read: {error.strerror or error}", file=folder) from error
    if not cases:
        raise InputError(
            "DATA_EMPTY",
            "the data set has no case",
            file=folder,
            expected=f"imagesTr/CASE_{channel:04d}{info.get('file_ending', '.nii.gz')}",
            fix="check file_ending in dataset.json against the files",
        )
    _refuse_duplicates(folder, [name for name, _, _, _ in cases])
    patients = read_patients(folder, [name for name, _, _, _ in cases])
    return Dataset(
        str(info.get("name") or folder.name),
        folder,
        labels,
        tuple(Case(name, patients[name], image, label, part) for name, image, label, part in cases),
        regions,
        info.get("slice_axis"),
        _channel_names(info),
    )


def image_cases(path: str | Path, channel: int = 0) -> list[tuple[str, Path]]:
    """(case name, file) of one image file, or of every image in a folder such as `imagesTs`, sorted by name.

    Args:
        channel: which channel file to take where names carry nnU-Net's channel number.

    Raises:
        InputError: `FILE_MISSING`, `DATA_EMPTY`, `DATA_DUPLICATE_ID`.
        FileSystemError: `FS_READ`.
    """
    path = Path(path)
    if path.is_file():
        return [(case_name(path), path)]
    if not path.is_dir():
        raise InputError("FILE_MISSING", "no such file or folder", file=path, fix="check the path")
    try:
        cases = plain_images(path, channel)
    except OSError as error:
        raise FileSystemError("FS_READ", f"cannot read: {error.strerror or error}", file=path) from error
    if not cases:
        what = f"no image of channel {channel} in this folder" if channel else "no image in this folder"
        raise InputError("DATA_EMPTY", what, file=path, expected=", ".join(SUFFIXES))
    _refuse_duplicates(path, [name for name, _ in cases])
    return cases


def resolve_label(dataset: Dataset, label: str) -> tuple[int, ...]:
    """`"LV"`, `"1"`, `"RV+MYO"` or `"all"` -> the values whose union is the target.

    Raises:
        InputError: `LABEL_UNKNOWN`, with the names that exist.
    """
    foreground = dataset.foreground
    values: set[int] = set()
    known = label in foreground or label in dataset.regions  # also a name with a + in it
    for word in [label] if known else [part.strip() for part in label.split("+")]:
        found = _values_of(word, foreground, dataset.regions)
        if not found:
            names = [*(f"{n} ({v})" for n, v in foreground.items()), *dataset.regions, "all"]
            raise InputError(
                "LABEL_UNKNOWN",
                f"no label {word!r} in {dataset.name}",
                file=dataset.folder / "dataset.json",
                seen=label,
                expected=", ".join(names),
                fix="join several with +, such as A+B",
            )
        values |= set(found)
    return tuple(sorted(values))


def check_pair(image: Grid, label: Grid, file: str | Path | None = None) -> None:
    """Image and label must lie on one grid, to 2 % of a voxel (float32 headers differ by less).

    Raises:
        InputError: `LABEL_GRID`, with both grids.
    """
    tolerance = max(1e-3, 0.02 * min(image.spacing_mm))
    if not grids_agree(image, label, tolerance):
        fix = "resample the label to the image with nearest neighbours, or find the right label file"
        wide, high, deep = image.shape
        if deep == 1 and wide != high and label.shape == (high, wide, 1):
            fix = "width and height are swapped: turn the label as the image's EXIF data turn the image"
        raise InputError(
            "LABEL_GRID",
            "label and image do not lie on the same grid",
            file=file,
            seen=f"label: {describe_grid(label)}",
            expected=f"image: {describe_grid(image)}",
            fix=fix,
        )


def check_values(dataset: Dataset, labels: NDArray[Any], file: str | Path | None = None) -> None:
    """Every value of a label map must be declared in dataset.json.

    Raises:
        InputError: `LABEL_UNKNOWN`, with counts.
    """
    known = {*dataset.labels.values(), *(v for region in dataset.regions.values() for v in region), 0}
    values, counts = np.unique(labels, return_counts=True)
    strange = {int(v): int(n) for v, n in zip(values, counts, strict=True) if int(v) not in known}
    if strange:
        raise InputError(
            "LABEL_UNKNOWN",
            "the label map holds values that dataset.json does not declare",
            file=file,
            seen=f"value: voxels {strange}",
            expected=f"values {sorted(known)}",
            fix="declare them in dataset.json, or correct the label map",
        )


def _labels(folder: Path, entry: Any) -> tuple[dict[str, int], dict[str, tuple[int, ...]]]:
    """nnU-Net's {name: value or [values]} and MSD's {value: name}."""
    if not isinstance(entry, dict) or not entry:
        raise json_error(folder, "labels are missing")
    labels: dict[str, int] = {}
    regions: dict[str, tuple[int, ...]] = {}
    for key, value in entry.items():
        if isinstance(value, str) and key.isdigit():
            labels[value] = int(key)
        elif isinstance(value, int) and not isinstance(value, bool):
            labels[key] = value
        elif isinstance(value, list) and value and all(type(v) is int for v in value):
            regions[key] = tuple(value)
        else:
            raise json_error(folder, f"label {key!r} has no value", value)
    return labels, regions


def _channel_names(info: Mapping[str, Any]) -> dict[str, str]:
    """nnU-Net's `channel_names`, MSD's `modality`."""
    names = info.get("channel_names") or info.get("modality")
    if isinstance(names, str):
        return {"0": names}
    return {str(key): str(name) for key, name in names.items()} if isinstance(names, Mapping) else {}


def _values_of(word: str, foreground: Mapping[str, int], regions: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    if word in foreground:
        return (foreground[word],)
    if word in regions:
        return regions[word]
    every = {*foreground.values(), *(v for region in regions.values() for v in region)} - {0}
    if word == "all":
        return tuple(every)
    if word.isdigit() and int(word) in every:
        return (int(word),)
    alike = [v for n, v in foreground.items() if n.lower() == word.lower()]
    return (alike[0],) if len(alike) == 1 else ()


def _refuse_duplicates(folder: Path, names: Iterable[str]) -> None:
    seen: dict[str, str] = {}
    for name in names:
        if name.casefold() in seen:
            raise InputError(
                "DATA_DUPLICATE_ID",
                "two cases have the same name (upper and lower case count as equal)",
                file=folder,
                seen=f"{seen[name.casefold()]}, {name}",
                fix="rename one of them",
            )
        seen[name.casefold()] = name

"""Our data sets and splits as nnU-Net v2 raw folders, with one binary target.

Layout (nnU-Net's documentation of its dataset format): `imagesTr/CASE_0000.ext` and `labelsTr/CASE.ext`, `imagesTs`,
`dataset.json`, and `splits_final.json`, which belongs into its preprocessed folder. Volumes are written as .nii.gz on
their own grid, pictures as PNG, which is all that nnU-Net reads of them.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from steadysam.config import DataConfig, RunConfig
from steadysam.data.cases import Case, Dataset, read_dataset, resolve_label
from steadysam.data.splits import Split, refuse_byte_leaks
from steadysam.data.volumes import mask_ending, write_volume
from steadysam.errors import ConfigError, InputError, UsageError
from steadysam.files import content_key, new_folder, write_json, write_text
from steadysam.training_data import read_case, slice_axis_of, split_of
from steadysam.types import Mask, Volume

FOLDER_NAME = r"Dataset\d{3}_\w[\w-]*"
PICTURES = ".png"
_COLOURS = ("R", "G", "B")

Track = Callable[[Iterable[Case]], Iterable[Case]]


def export_dataset(data: DataConfig, folder: str | Path, track: Track = iter) -> dict[str, Any]:
    """Write the cases of a split as a raw folder, which appears when it is complete.

    Training and validation cases go to `Tr`, test cases with their labels to `Ts`; a case of neither is left out.

    Args:
        data: data set, label and split, as a run of ours has them.
        folder: a new folder named `DatasetNNN_NAME`.
        track: wraps the sequence of cases for a progress bar.

    Returns:
        What a run record says about its data: data set, label and values, slice axis, split, hashes.

    Raises:
        UsageError: `NNUNET_FOLDER_NAME`. ConfigError: `NNUNET_NO_VALIDATION`.
        InputError: `NNUNET_MIXED`, `NNUNET_CHANNELS`, and those of reading cases. FileSystemError: `FS_EXISTS`.
    """
    folder = Path(folder)
    if not re.fullmatch(FOLDER_NAME, folder.name):
        raise UsageError(
            "NNUNET_FOLDER_NAME", "nnU-Net would not know this folder", seen=folder.name, expected="Dataset501_NAME"
        )
    dataset = read_dataset(data.dataset, channel=data.channel)
    values = resolve_label(dataset, data.label)
    split = split_of(RunConfig(data=data), dataset)
    refuse_byte_leaks(split)
    if not split.val:
        raise ConfigError(
            "NNUNET_NO_VALIDATION", "nnU-Net needs validation cases", seen=split.rule, fix="give validation a share"
        )
    axis = slice_axis_of(RunConfig(data=data), dataset)
    parts = {case.name: "Ts" if case in split.test else "Tr" for cases in split.parts.values() for case in cases}
    chosen = [case for cases in split.parts.values() for case in cases]
    hashes, kinds = {}, set()
    with new_folder(folder) as inside:
        for case in track(chosen):
            volume, mask = read_case(case, values, axis, dataset)
            kinds.add(image_kind_of(volume, case.image))
            _refuse_mixture(kinds, case.image)
            write_image(inside / f"images{parts[case.name]}", case.name, volume)
            write_label(inside / f"labels{parts[case.name]}", case.name, volume, mask)
            hashes[case.name] = content_key(volume.sha256, np.packbits(mask.array))
        ending, channels = next(iter(kinds))
        _describe(inside, dataset, data, split, ending, channels, axis)
    return {
        "dataset": dataset.name,
        "label": data.label,
        "label_values": list(values),
        "slice_axis": axis,
        "split": {"rule": split.rule, **{part: [case.name for case in cases] for part, cases in split.parts.items()}},
        "data_hashes": hashes,
        "file_ending": ending,
    }


def image_kind_of(volume: Volume, file: Path) -> tuple[str, int]:
    """(file ending, number of channels) with which nnU-Net gets this image.

    Raises:
        InputError: `NNUNET_CHANNELS` for volumes in colour.
    """
    colour = volume.array.ndim == 4
    if colour and volume.has_physical_spacing:
        raise InputError("NNUNET_CHANNELS", "volumes in colour are not exported", file=file, seen=volume.array.shape)
    return mask_ending(volume), (3 if colour else 1)


def write_image(folder: Path, name: str, volume: Volume) -> Path:
    """Write `NAME_0000.nii.gz` on the volume's grid, or the picture losslessly as `NAME_0000.png`."""
    path = folder / f"{name}_0000{mask_ending(volume)}"
    write_volume(path, volume.array, volume.grid)
    return path


def write_label(folder: Path, name: str, volume: Volume, mask: Mask) -> Path:
    """Write the mask as 0 and 1, beside its image in kind."""
    path = folder / f"{name}{mask_ending(volume)}"
    write_volume(path, mask.array.astype(np.uint8), mask.grid)  # not `write_mask`: nnU-Net wants 1 in pictures, too
    return path


def target_name(label: str) -> str:
    """The one label of the exported data set: `RV+MYO` -> `RV_MYO`, since a plus joins labels for us."""
    return re.sub(r"\W+", "_", label).strip("_") or "target"


def _refuse_mixture(kinds: set[tuple[str, int]], file: Path) -> None:
    if len(kinds) > 1:
        raise InputError(
            "NNUNET_MIXED",
            "nnU-Net wants all images of one kind and number of channels",
            file=file,
            seen=sorted(kinds),
            fix="convert them all to one kind",
        )


def _describe(
    folder: Path, dataset: Dataset, data: DataConfig, split: Split, ending: str, channels: int, axis: int | None
) -> None:
    """`dataset.json`, `splits_final.json` and `patients.csv`."""
    names = {part: [case.name for case in cases] for part, cases in split.parts.items()}
    name = dataset.channel_name(data.channel) or "image"  # nnU-Net normalises `CT` by one window for all cases
    info = {
        "name": dataset.name,
        "channel_names": dict(enumerate(_COLOURS)) if channels == 3 else {"0": name},
        "labels": {"background": 0, target_name(data.label): 1},
        "numTraining": len(names["train"]) + len(names["val"]),
        "numTest": len(names["test"]),
        "file_ending": ending,
        **({} if axis is None else {"slice_axis": axis}),
    }
    write_json(folder / "dataset.json", info)
    write_json(folder / "splits_final.json", [{"train": names["train"], "val": names["val"]}])
    _write_patients(folder / "patients.csv", [case for cases in split.parts.values() for case in cases])


def _write_patients(path: Path, cases: Sequence[Case]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("case", "patient"))
    writer.writerows((case.name, case.patient) for case in cases)
    write_text(path, text.getvalue())

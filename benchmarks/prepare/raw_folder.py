"""Write cases of any download as an nnU-Net v2 raw folder, split by patient; shared by the commands beside it.

OUTPUT/imagesTr, labelsTr   training and validation cases; imagesTs, labelsTs the test cases
OUTPUT/splits_final.json    fold 0 says which of Tr are for validation; with --folds one entry per fold
OUTPUT/cases.csv            case, patient, part, and what the download says of each case
OUTPUT/dataset.json         labels, channels, licence, reference
"""

from __future__ import annotations

import argparse
import csv
import io
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from steadysam.data.cases import Case, Dataset, check_pair, check_values
from steadysam.data.listing import Part
from steadysam.data.patients import shown
from steadysam.data.splits import split_cases
from steadysam.data.volumes import read_grid, read_label_map, read_volume, write_volume
from steadysam.errors import ConfigError, InputError, SteadyError
from steadysam.files import atomic_write, new_folder, write_json, write_text
from steadysam.types import Grid

ENDING = ".nii.gz"
VALIDATION_SHARE = 1 / 8  # of what a fold leaves for training: 70/10/20 with five folds


@dataclass(frozen=True)
class Found:
    """A case of a download: its files, or None where a command makes them, and columns for `cases.csv`."""

    name: str
    patient: str
    image: Path
    label: Path
    official_test: bool = False
    notes: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class About:
    """What `dataset.json` says; `slice_axis` axial takes the array axis that runs along the body."""

    name: str
    channels: tuple[str, ...]
    labels: Mapping[str, int]
    licence: str
    reference: str
    slice_axis: Literal["axial"] | int | None = None


# (case, folder of images, folder of labels) -> more columns for `cases.csv`
WriteCase = Callable[[Found, Path, Path], Mapping[str, object]]


def parser(doc: str, about: About) -> argparse.ArgumentParser:
    """The options that all commands have; `doc` is the module's docstring."""
    text = f"{doc}\nReference: {about.reference}\nLicence: {about.licence}\nNothing is downloaded."
    made = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("source", type=Path, help="folder of the unpacked download")
    made.add_argument("-o", "--output", type=Path, required=True, help="new folder, such as Dataset921_NAME")
    made.add_argument("--seed", type=int, default=0, help="seed of the split by patient")
    made.add_argument("--fractions", type=float, nargs=3, default=(0.7, 0.1, 0.2), metavar=("TRAIN", "VAL", "TEST"))
    made.add_argument("--folds", type=int, default=0, help="cross-validation instead of one split: N folds")
    return made


def add_nifti_options(made: argparse.ArgumentParser) -> None:
    """Options of downloads that are NIfTI already."""
    made.add_argument("--link", action="store_true", help="symbolic links to the download instead of copies")
    made.add_argument(
        "--assume-orientation", choices=("RAS", "LPS"), help="for files that have none; all are written anew then"
    )
    made.add_argument("--form", choices=("sform", "qform"), help="which to trust where they contradict each other")


def run(main: Callable[[Sequence[str] | None], None]) -> None:
    """Call a command's `main`; a typed error is printed and decides the exit code."""
    try:
        main(None)
    except SteadyError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)


def write_raw(
    args: argparse.Namespace, about: About, found: Sequence[Found], write_case: WriteCase | None = None
) -> Path:
    """Write the folder, which appears when every case is written and checked.

    Raises:
        InputError: `SOURCE_EMPTY`, `SOURCE_MISSING`, `SOURCE_AXIS`, `LABEL_GRID`, `LABEL_UNKNOWN`, `DATA_TOO_FEW`.
        ConfigError: `SPLIT_FRACTIONS`, `SPLIT_FOLD`. FileSystemError: `FS_EXISTS`.
    """
    _refuse_missing(args.source, found)
    write_case = write_case or (lambda case, images, labels: copy_pair(case, images, labels, args))
    dataset = _dataset(about, args.source, found)
    parts, folds = plan_split(dataset, args.seed, tuple(args.fractions), args.folds)
    rows, axes, axis = [], set(), None
    with new_folder(args.output) as inside:
        for n, case in enumerate(found):
            part = parts[case.name]
            notes = write_case(case, inside / f"images{part}", inside / f"labels{part}")
            grid = _check(dataset, inside, part, case.name)
            axes.add(int(np.abs(grid.affine[2, :3]).argmax()))
            axis = _slice_axis(about, axes)
            rows.append({"case": case.name, "patient": case.patient, "part": part, **case.notes, **notes})
            if sys.stderr.isatty():
                print(f"\r{n + 1}/{len(found)} {case.name}", end="", file=sys.stderr, flush=True)
        write_json(inside / "splits_final.json", folds)
        write_json(inside / "dataset.json", _description(about, parts, axis))
        _write_table(inside / "cases.csv", rows)
    print(f"{args.output}: {_counted(parts)}; {len(folds)} fold(s) in splits_final.json")
    return args.output


def plan_split(
    dataset: Dataset, seed: int, fractions: tuple[float, float, float], folds: int = 0
) -> tuple[dict[str, Part], list[dict[str, list[str]]]]:
    """(case -> `Tr` or `Ts`, content of splits_final.json), always by patient.

    One split: as `steadysam train` makes it; test cases go to `Ts`. Folds: every case that is no official test case
    stays in `Tr`. Where there is an official test set, each fold's cases are its validation; elsewhere they are its
    test cases, which are neither in its train nor in its val, and an eighth of the other patients is for validation.

    Raises:
        ConfigError: `SPLIT_FOLD` (fewer than 2, or more than patients), `SPLIT_FRACTIONS`.
    """
    if not folds:
        split = split_cases(dataset, seed=seed, fractions=fractions)
        parts: dict[str, Part] = {case.name: "Ts" if case in split.test else "Tr" for case in dataset.cases}
        return parts, [{"train": [c.name for c in split.train], "val": [c.name for c in split.val]}]
    training = dataset.part("Tr")
    patients = sorted({case.patient for case in training})
    if not 2 <= folds <= len(patients):
        raise ConfigError("SPLIT_FOLD", "impossible number of folds", seen=folds, expected=f"2 to {len(patients)}")
    shuffled = [patients[n] for n in np.random.default_rng(seed).permutation(len(patients))]
    groups = [set(group.tolist()) for group in np.array_split(np.array(shuffled), folds)]
    made = []
    for group in groups:
        rest = [patient for patient in shuffled if patient not in group]
        count = max(1, round(VALIDATION_SHARE * len(rest)))
        val = group if dataset.part("Ts") else set(rest[:count])
        train = set(rest) - val
        made.append(
            {
                side: [case.name for case in training if case.patient in chosen]
                for side, chosen in (("train", train), ("val", val))
            }
        )
    return {case.name: case.part for case in dataset.cases}, made


def copy_pair(case: Found, images: Path, labels: Path, args: argparse.Namespace) -> dict[str, object]:
    """Copy or link a NIfTI image and its label byte for byte; written anew only where that is not possible."""
    for source, target in (
        (case.image, images / f"{case.name}_0000{ENDING}"),
        (case.label, labels / f"{case.name}{ENDING}"),
    ):
        if args.assume_orientation or args.form or not source.name.endswith(ENDING):
            _rewrite(source, target, args)
        elif args.link:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(source.resolve())
        else:
            copy_file(source, target)
    return {}


def copy_file(source: Path, target: Path) -> None:
    """Copy a file's bytes."""
    atomic_write(target, lambda temporary: _copy_bytes(source, temporary))


def _copy_bytes(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)


def _rewrite(source: Path, target: Path, args: argparse.Namespace) -> None:
    volume = read_volume(source, assume_orientation=args.assume_orientation, form=args.form)
    grid = Grid(volume.grid.shape, volume.grid.affine, volume.grid.slice_axis)  # the old header lacks what is now known
    write_volume(target, volume.array, grid)


def _refuse_missing(source: Path, found: Sequence[Found]) -> None:
    if not found:
        raise InputError(
            "SOURCE_EMPTY", "no case in this folder", file=source, fix="see --help for the layout that is expected"
        )
    missing = [str(path) for case in found for path in (case.image, case.label) if not path.exists()]
    if missing:
        raise InputError(
            "SOURCE_MISSING",
            f"{len(missing)} files of the download are not there",
            file=source,
            seen=shown(missing),
            fix="finish the download, or move the folders of these cases elsewhere",
        )


def _dataset(about: About, source: Path, found: Sequence[Found]) -> Dataset:
    """The download as a data set of ours, by which it is split and checked."""
    names = [case.name for case in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError("DATA_DUPLICATE_ID", "a case stands twice in the download", file=source, seen=shown(twice))
    cases = [Case(c.name, c.patient, c.image, c.label, "Ts" if c.official_test else "Tr") for c in found]
    return Dataset(about.name, source, dict(about.labels), tuple(cases))


def _check(dataset: Dataset, folder: Path, part: Part, name: str) -> Grid:
    """Image and label on one grid, label values as declared; returns the grid."""
    label = folder / f"labels{part}" / f"{name}{ENDING}"
    image = read_grid(folder / f"images{part}" / f"{name}_0000{ENDING}")
    values, grid = read_label_map(label)
    check_pair(image, grid, label)
    check_values(dataset, values, label)
    return image


def _slice_axis(about: About, axes: set[int]) -> int | None:
    """The axis for `dataset.json`; `axes` run along the bodies seen so far."""
    if about.slice_axis != "axial":
        return about.slice_axis
    if len(axes) > 1:
        raise InputError("SOURCE_AXIS", "the body's axis is not the same array axis in all cases", seen=sorted(axes))
    return next(iter(axes))


def _description(about: About, parts: Mapping[str, Part], axis: int | None) -> dict[str, Any]:
    return {
        "name": about.name,
        "channel_names": {str(n): name for n, name in enumerate(about.channels)},
        "labels": dict(about.labels),
        "numTraining": sum(part == "Tr" for part in parts.values()),
        "numTest": sum(part == "Ts" for part in parts.values()),
        "file_ending": ENDING,
        **({} if axis is None else {"slice_axis": axis}),
        "licence": about.licence,
        "reference": about.reference,
    }


def _counted(parts: Mapping[str, Part]) -> str:
    count = sum(part == "Ts" for part in parts.values())
    return f"{len(parts) - count} cases in imagesTr, {count} in imagesTs"


def _write_table(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    text = io.StringIO()
    columns = list(dict.fromkeys(column for row in rows for column in row))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())

"""Which files of a folder are cases: nnU-Net's naming rule, MSD's list, or plain images.

Files are listed, not opened. Fault names: reliability rules S01, S09 and S10 of the project's specification.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from steadysam.data.patients import shown
from steadysam.data.sniff import CHANNEL, PICTURES, SUFFIXES, case_name, case_stem
from steadysam.errors import InputError

log = logging.getLogger(__name__)

Part = Literal["Tr", "Ts"]
PARTS: tuple[Part, ...] = ("Tr", "Ts")
Row = tuple[str, Path, Path | None, Part]


def plain_images(folder: Path, channel: int) -> list[tuple[str, Path]]:
    """(case name, file) of every image in a folder, sorted.

    Where names carry nnU-Net's channel numbers, only files of `channel` count; it is said how many others there are.
    """
    files = [p for p in sorted(folder.iterdir()) if not p.name.startswith(".") and p.name.lower().endswith(SUFFIXES)]
    named: dict[str, list[Path]] = {}
    for path in files:
        named.setdefault(case_name(path), []).append(path)
    if not _are_channels(named):
        return [(case_name(path) if len(named[case_name(path)]) == 1 else case_stem(path), path) for path in files]
    chosen = [path for path in files if case_stem(path).endswith(f"_{channel:04d}")]
    if chosen:
        say_other_channels(folder, channel, len(files) - len(chosen))
    return [(case_name(path), path) for path in chosen]


def _are_channels(named: Mapping[str, list[Path]]) -> bool:
    """Whether the numbers at the ends of the names are nnU-Net's: every file has one, and every case has a 0000.

    A picture holds its colours in one file: several numbers are several pictures, such as the frames of a video.
    """
    for paths in named.values():
        stems = [case_stem(path) for path in paths]
        if not all(re.search(CHANNEL, stem) for stem in stems) or not any(stem.endswith("_0000") for stem in stems):
            return False
        if len(paths) > 1 and any(path.name.lower().endswith(PICTURES) for path in paths):
            return False
    return True


def say_other_channels(folder: Path, channel: int, others: int) -> None:
    """Which of several channels is taken."""
    if others:
        log.warning("%s: channel %d is taken, %d files of other channels are not", folder, channel, others)


def raw_cases(folder: Path, info: Mapping[str, Any], channel: int) -> list[Row]:
    """The cases of nnU-Net's `imagesTr/NAME_0000.ext` and `labelsTr/NAME.ext` (and `Ts`).

    Raises:
        InputError: `DATA_PAIRS`.
    """
    ending = str(info.get("file_ending", ".nii.gz"))
    label_ending = str(info.get("label_file_ending", ending))
    rows: list[Row] = []
    for part in PARTS:
        files = _files(folder / f"images{part}", ending)
        images = {
            name.removesuffix(f"_{channel:04d}"): path
            for name, path in files.items()
            if name.endswith(f"_{channel:04d}")
        }
        numbered = sum(re.search(CHANNEL, name) is not None for name in files)
        say_other_channels(folder / f"images{part}", channel, numbered - len(images))
        labels = _files(folder / f"labels{part}", label_ending)
        # a test part may come without labels, but not with some of them
        unlabelled = [] if part == "Ts" and not labels else [name for name in images if name not in labels]
        expected = f"images{part}/NAME_{channel:04d}{ending} with labels{part}/NAME{label_ending}"
        _refuse_unpaired(folder, part, unlabelled, [name for name in labels if name not in images], expected)
        rows.extend((name, image, labels.get(name), part) for name, image in images.items())
    return rows


def _files(folder: Path, ending: str) -> dict[str, Path]:
    """Stem -> file, sorted; hidden files (`._x.nii.gz`, `.DS_Store`) are not data."""
    if not folder.is_dir():
        return {}
    found = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not path.name.endswith(ending):
            log.debug("%s: not a case", path)
            continue
        found[path.name[: -len(ending)]] = path
    return found


def msd_cases(folder: Path, info: Mapping[str, Any]) -> list[Row]:
    """The cases that MSD's `dataset.json` lists under `training` and `test`.

    Raises:
        InputError: `DATA_PAIRS`, `DATA_PATH`, `DATA_JSON`.
    """
    rows: list[Row] = []
    missing: list[str] = []
    for key, part in zip(("training", "test"), PARTS, strict=True):
        for entry in info.get(key) or []:
            entry = {"image": entry} if isinstance(entry, str) else entry
            if not isinstance(entry, dict) or not isinstance(entry.get("image"), str):
                raise json_error(folder, f"{key} needs entries with image and label")
            image, label = _inside(folder, entry["image"]), entry.get("label")
            label_path = _inside(folder, label) if isinstance(label, str) else None
            missing += [str(p) for p in (image, label_path) if p is not None and not p.is_file()]
            if part == "Tr" and label_path is None:
                missing.append(f"label of {image}")
            name = re.sub(r"_0000$", "", case_stem(image))
            rows.append((name, image, label_path, part))
    if missing:
        raise _pairs_error(folder, f"{len(missing)} files of dataset.json are not there", missing)
    return sorted(rows, key=lambda row: (row[3], row[0]))


def _inside(folder: Path, name: str) -> Path:
    path = folder / name
    if ".." in Path(name).parts or Path(name).is_absolute():
        raise InputError("DATA_PATH", "dataset.json names a file outside its folder", file=folder, seen=name)
    return path


def _without_channel(images: Path, names: list[str]) -> int:
    """How many of these cases have an image that is called like the case, as if it were a label."""
    there = {case_stem(path) for path in images.iterdir()} if images.is_dir() else set()
    return len(there.intersection(names))


def _refuse_unpaired(folder: Path, part: Part, unlabelled: list[str], imageless: list[str], expected: str) -> None:
    if unlabelled or imageless:
        what = f"{part}: {len(unlabelled)} images without label, {len(imageless)} labels without image"
        if not unlabelled and (bare := _without_channel(folder / f"images{part}", imageless)):
            what += f"; {bare} images lack the channel number in their names (NAME_0000.ending)"
        there = ", ".join(f"{kind}{part} has {_endings(folder / f'{kind}{part}')}" for kind in ("images", "labels"))
        raise _pairs_error(
            folder,
            what,
            unlabelled + imageless,
            expected,
            "complete the folder or remove the odd files; file_ending and label_file_ending in dataset.json say which "
            f"endings count ({there})",
        )


def _endings(folder: Path) -> str:
    """How many files of a folder end how."""
    found: dict[str, int] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if not path.name.startswith("."):
            ending = path.name[len(case_stem(path)) :] or path.suffix or "without"
            found[ending] = found.get(ending, 0) + 1
    return " and ".join(f"{count} x {ending}" for ending, count in found.items()) or "nothing"


def _pairs_error(
    folder: Path,
    what: str,
    names: list[str],
    expected: str | None = None,
    fix: str = "complete the folder or remove the odd files",
) -> InputError:
    return InputError("DATA_PAIRS", what, file=folder, seen=shown(names), expected=expected, fix=fix)


def json_error(folder: Path, what: str, seen: object = None) -> InputError:
    """The error for a `dataset.json` that does not say what it must."""
    return InputError("DATA_JSON", f"dataset.json: {what}", file=folder / "dataset.json", seen=seen)

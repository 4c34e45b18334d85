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
from steadysam.data.sniff import CHANNEL, SUFFIXES, case_name, case_stem
from steadysam.errors import InputError

log = logging.getLogger(__name__)

Part = Literal["Tr", "Ts"]
PARTS: tuple[Part, ...] = ("Tr", "Ts")
Row = tuple[str, Path, Path | None, Part]


def plain_images(folder: Path, channel: int) -> list[tuple[str, Path]]:
    """(case name, file) of every image in a folder, sorted.

    Where names carry nnU-Net's channel number, only files of `channel` count.
    """
    files = [p for p in sorted(folder.iterdir()) if not p.name.startswith(".") and p.name.lower().endswith(SUFFIXES)]
    numbered = [path for path in files if re.search(CHANNEL, case_stem(path))]
    chosen = [path for path in numbered if case_stem(path).endswith(f"_{channel:04d}")] if numbered else files
    return [(case_name(path), path) for path in chosen]


def raw_cases(folder: Path, info: Mapping[str, Any], channel: int) -> list[Row]:
    """The cases of nnU-Net's `imagesTr/NAME_0000.ext` and `labelsTr/NAME.ext` (and `Ts`).

    Raises:
        InputError: `DATA_PAIRS`.
    """
    ending = str(info.get("file_ending", ".nii.gz"))
    label_ending = str(info.get("label_file_ending", ending))
    rows: list[Row] = []
    for part in PARTS:
        images = {
            name.removesuffix(f"_{channel:04d}"): path
            for name, path in _files(folder / f"images{part}", ending).items()
            if name.endswith(f"_{channel:04d}")
        }
        labels = _files(folder / f"labels{part}", label_ending)
        # a test part may come without labels, but not with some of them
        unlabelled = [] if part == "Ts" and not labels else [name for name in images if name not in labels]
        _refuse_unpaired(folder, part, unlabelled, [name for name in labels if name not in images])
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


def _refuse_unpaired(folder: Path, part: Part, unlabelled: list[str], imageless: list[str]) -> None:
    if unlabelled or imageless:
        what = f"{part}: {len(unlabelled)} images without label, {len(imageless)} labels without image"
        raise _pairs_error(folder, what, unlabelled + imageless)


def _pairs_error(folder: Path, what: str, names: list[str]) -> InputError:
    return InputError(
        "DATA_PAIRS", what, file=folder, seen=shown(names), fix="complete the folder or remove the odd files"
    )


def json_error(folder: Path, what: str, seen: object = None) -> InputError:
    """The error for a `dataset.json` that does not say what it must."""
    return InputError("DATA_JSON", f"dataset.json: {what}", file=folder / "dataset.json", seen=seen)

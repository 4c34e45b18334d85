"""What a file is, told by its first bytes and never by its name alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from steadysam.data.streams import first_bytes
from steadysam.errors import FileSystemError, InputError

Kind = Literal["nifti", "nrrd", "meta", "png", "jpeg"]

SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".png", ".jpg", ".jpeg")
PICTURES = (".png", ".jpg", ".jpeg")
CHANNEL = r"_00\d\d$"  # nnU-Net; `scan_2023` is a name
_OTHERS = {
    b"II*\x00": "TIFF",
    b"MM\x00*": "TIFF",
    b"GIF8": "GIF",
    b"BM": "BMP",
    b"SIMPLE  =": "FITS",
    b"%!PS": "EPS",
    b"%PDF": "PDF",
    b"PK\x03\x04": "a zip archive",
    b"\x89HDF": "HDF5",
    b"\x93NUMPY": "a NumPy array",
}
_NIFTI_SIZES = {n.to_bytes(4, order) for n in (348, 540) for order in ("little", "big")}


def case_stem(path: str | Path) -> str:
    """File name without its image suffix: `/a/b.nii.gz` -> `b`."""
    name = Path(path).name
    for suffix in SUFFIXES:
        if name.lower().endswith(suffix) and len(name) > len(suffix):
            return name[: -len(suffix)]
    return name


def case_name(path: str | Path) -> str:
    """File name without suffix and without nnU-Net's channel number: `A_0000.nii.gz` -> `A`."""
    return re.sub(CHANNEL, "", case_stem(path))


def image_kind(path: str | Path) -> Kind:
    """The format of an image file, by content.

    Raises:
        InputError: `FILE_MISSING`, `IMG_NOT_A_FILE`, `IMG_EMPTY`, `IMG_HEADER_SHORT`, `IMG_GZIP_TRUNCATED`,
            `IMG_GZIP_CRC`, `IMG_LFS_POINTER`, `IMG_NOT_AN_IMAGE`, `IMG_FORMAT`.
        FileSystemError: `FS_READ`.
    """
    path = Path(path)
    start = _start(path)
    if not start:
        raise InputError("IMG_EMPTY", "the file has 0 bytes", file=path, fix="copy or download it again")
    if start[:4] in _NIFTI_SIZES:
        return "nifti"
    if start.startswith(b"NRRD000"):
        return "nrrd"
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if start.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if _looks_like_meta(start):
        return "meta"
    raise _not_readable(path, start)


def _start(path: Path) -> bytes:
    """Up to 1 KiB of content, unpacked if the file is a gzip stream."""
    if not path.exists():
        raise InputError("FILE_MISSING", "no such file", file=path, fix="check the path")
    if not path.is_file():
        raise InputError("IMG_NOT_A_FILE", "this is not a regular file", file=path, expected="an image file")
    try:
        return first_bytes(path, 1024)
    except OSError as error:
        raise FileSystemError("FS_READ", f"cannot read: {error.strerror or error}", file=path) from error


def _looks_like_meta(start: bytes) -> bool:
    lines = start.split(b"\n")[:3]
    keys = {line.split(b"=")[0].strip() for line in lines if b"=" in line}
    return bool(keys & {b"ObjectType", b"NDims"})


def _not_readable(path: Path, start: bytes) -> InputError:
    text = start.lstrip().lower()
    if start.startswith(b"version https://git-lfs") or b".git/annex/objects" in start[:200]:
        return InputError(
            "IMG_LFS_POINTER",
            "this is a pointer of a version control system, not the image",
            file=path,
            fix="fetch the real file first (git lfs pull, git annex get)",
        )
    if text.startswith((b"<html", b"<!doctype", b"<?xml")):
        return InputError(
            "IMG_NOT_AN_IMAGE",
            "this is a web page saved under an image's name",
            file=path,
            seen=repr(text[:14].decode("latin-1")),
            fix="download the file again; a login may be needed",
        )
    name = next((name for magic, name in _OTHERS.items() if start.startswith(magic)), None)
    if start[128:132] == b"DICM":
        name = "DICOM"
    if name is None and case_stem(path) + ".nii" == path.name.removesuffix(".gz") and len(start) < 348:
        return InputError(
            "IMG_HEADER_SHORT",
            "too short for a NIfTI header",
            file=path,
            seen=f"{len(start)} bytes",
            expected=348,
        )
    return InputError(
        "IMG_FORMAT",
        f"the content is {name}" if name else "the content is no known image format",
        file=path,
        seen=f"first bytes {start[:8].hex(' ')}",
        expected="NIfTI, NRRD, MetaImage, PNG or JPEG",
        fix="convert it, for example with 3D Slicer or SimpleITK",
    )

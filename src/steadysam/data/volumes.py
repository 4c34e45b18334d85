"""Volumes, label maps and masks: read from any supported file, written as NIfTI, or as PNG where they are pictures.

The format is told by content. Arrays stay in file order, the affine stays as stored; what is written on a
grid that came from a NIfTI file carries that file's geometry bit for bit.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steadysam.data import itk, pictures
from steadysam.data.affines import Orientation, choose_slice_axis
from steadysam.data.nifti import read_voxels
from steadysam.data.nifti_header import Form, read_header
from steadysam.data.nifti_write import write_nifti
from steadysam.data.sniff import SUFFIXES, case_name, case_stem, image_kind
from steadysam.errors import InputError
from steadysam.files import sha256_file
from steadysam.types import Grid, Mask, Volume

__all__ = [
    "choose_slice_axis",
    "mask_ending",
    "read_grid",
    "read_label_map",
    "read_probability",
    "read_volume",
    "select_label",
    "write_mask",
    "write_probability",
    "write_volume",
]

log = logging.getLogger(__name__)

MAX_BYTES = 8 << 30
_STEPS = 65535  # of a probability
_LABEL_TOLERANCE = 1e-4  # float32 scaling of whole numbers stays below this; 0.999 and 1.18 do not


def read_volume(
    path: str | Path,
    *,
    slice_axis: int | None = None,
    max_bytes: int = MAX_BYTES,
    assume_orientation: Orientation | None = None,
    form: Form | None = None,
) -> Volume:
    """Read an image of any supported format, checked to its last byte.

    Args:
        slice_axis: 0, 1 or 2; None chooses (see `choose_slice_axis`) and says so in the log.
        max_bytes: limit for the unpacked voxels.
        assume_orientation: for files that have no orientation; ignored where there is one.
        form: which NIfTI form to trust when sform and qform contradict each other.

    Raises:
        InputError: whatever is wrong with the file, with a stable code (`IMG_*`, `NRRD_*`).
        ResourceError: `IMG_TOO_LARGE`.
        FileSystemError: `FS_READ`.
    """
    path = Path(path)
    kind = image_kind(path)
    header, physical, digest = None, True, ""
    if kind == "nifti":
        checked = read_header(path, assume_orientation=assume_orientation, form=form)
        array = read_voxels(path, checked, max_bytes)
        affine, header = checked.affine, checked.fields
    elif kind in ("png", "jpeg"):
        array, affine, physical = pictures.read_picture(path, max_bytes), np.eye(4), False
    else:
        array, affine, digest = itk.read_itk(path, kind, max_bytes, assume_orientation)
    grid = _grid(path, array.shape, affine, slice_axis if physical else 2, header)
    _warn_twin(path)
    return Volume(array, grid, case_name(path), digest or sha256_file(path), physical)


def read_grid(
    path: str | Path,
    slice_axis: int | None = None,
    *,
    assume_orientation: Orientation | None = None,
    form: Form | None = None,
) -> Grid:
    """The grid of an image from its header alone; fast, the voxels are not read.

    Raises:
        InputError: as `read_volume`, as far as headers tell.
    """
    path = Path(path)
    kind = image_kind(path)
    if kind == "nifti":
        checked = read_header(path, assume_orientation=assume_orientation, form=form)
        return _grid(path, checked.shape, checked.affine, slice_axis, checked.fields)
    if kind in ("png", "jpeg"):
        return _grid(path, pictures.picture_shape(path, MAX_BYTES), np.eye(4), 2, None)
    shape, affine = itk.read_itk_grid(path, kind, assume_orientation)
    return _grid(path, shape, affine, slice_axis, None)


def read_label_map(
    path: str | Path,
    *,
    slice_axis: int | None = None,
    max_bytes: int = MAX_BYTES,
    assume_orientation: Orientation | None = None,
    form: Form | None = None,
) -> tuple[NDArray[Any], Grid]:
    """A label map `(I, J, K)` in the smallest unsigned integer type that holds it, and its grid.

    Raises:
        InputError: `LABEL_NONINTEGER` (as 0.999 or 1.18 from a wrong scaling), `LABEL_VALUES` (negative,
            NaN), `LABEL_OVERFLOW` (above 65535), `LABEL_LOSSY` (JPEG), and everything `read_volume` raises.
    """
    path = Path(path)
    if image_kind(path) in ("png", "jpeg"):
        array = pictures.read_picture_labels(path, max_bytes)
        return _as_labels(array, path), _grid(path, array.shape, np.eye(4), 2, None)
    try:
        volume = read_volume(
            path, slice_axis=slice_axis, max_bytes=max_bytes, assume_orientation=assume_orientation, form=form
        )
    except InputError as error:
        if error.code != "IMG_NONFINITE":
            raise
        raise InputError("LABEL_VALUES", error.what, file=path, expected="whole numbers from 0") from error
    return _as_labels(volume.array, path), volume.grid


def select_label(labels: NDArray[Any], values: Sequence[int]) -> NDArray[np.bool_]:
    """The union of `values` as a bool array of the same shape."""
    return np.isin(labels, np.asarray(values))


def mask_ending(volume: Volume) -> str:
    """How the file of a mask of this image ends: .png for a picture, which has no affine to keep, else .nii.gz."""
    return ".nii.gz" if volume.has_physical_spacing else ".png"


def write_mask(path: str | Path, mask: Mask) -> None:
    """Write a mask on its grid, atomically, and check it before it takes its place.

    As NIfTI it is uint8, 0 and 1; as PNG, for pictures, 0 and 255, which every viewer shows.

    Raises:
        InputError: `OUTPUT_NAME`. OutputError: `OUTPUT_VERIFY` if the read-back differs; nothing is left behind then.
        FileSystemError, ResourceError: see `steadysam.files.atomic_write`.
    """
    picture = Path(path).suffix == ".png"
    write_volume(path, np.asarray(mask.array).astype(np.uint8) * (255 if picture else 1), mask.grid)


def write_probability(path: str | Path, probability: NDArray[Any], grid: Grid) -> None:
    """Write probabilities `(I, J, K)`: as NIfTI float32, as PNG, for pictures, 16 bit grey; both to 1 in 65535."""
    steps = np.rint(np.clip(probability, 0, 1) * _STEPS)
    write_volume(path, steps.astype(np.uint16) if Path(path).suffix == ".png" else (steps / _STEPS).astype("f4"), grid)


def read_probability(path: str | Path, *, slice_axis: int | None = None) -> tuple[NDArray[np.float32], Grid]:
    """What `write_probability` wrote, and its grid; errors as `read_volume`."""
    volume = read_volume(path, slice_axis=slice_axis)
    scale = 1 if volume.array.dtype.kind == "f" else _STEPS
    return volume.array.astype(np.float32) / np.float32(scale), volume.grid


def write_volume(path: str | Path, array: NDArray[Any], grid: Grid) -> None:
    """Write any numbers `(I, J, K)` as NIfTI on `grid`, or those of a picture as PNG; as `write_mask`."""
    path = Path(path)
    if path.suffix != ".png":
        write_nifti(path, array, grid)
    elif grid.shape[2] != 1 or not np.array_equal(grid.affine, np.eye(4)):
        raise InputError("OUTPUT_NAME", "a PNG cannot keep the geometry of a volume", file=path, expected=".nii.gz")
    else:
        pictures.write_picture(path, array)


def _grid(path: Path, shape: Sequence[int], affine: NDArray[Any], axis: int | None, header: Any) -> Grid:
    reason = "as given"
    if axis is None:
        axis, reason = choose_slice_axis(affine, shape)
    if axis not in (0, 1, 2):
        raise InputError("SLICE_AXIS", "no such axis", seen=axis, expected="0, 1 or 2")
    if shape[axis] > 1:  # a picture is one slice
        level = logging.DEBUG if reason == "as given" else logging.INFO
        log.log(level, "%s: slices across axis %d (%s)", path, axis, reason)
    return Grid((shape[0], shape[1], shape[2]), np.asarray(affine, np.float64) + 0.0, axis, header)  # no -0


def _warn_twin(path: Path) -> None:
    stem = case_stem(path)
    twins = [path.with_name(stem + suffix) for suffix in SUFFIXES if stem + suffix != path.name]
    for twin in twins:
        if twin.exists() and {path.suffix, twin.suffix} <= {".nii", ".gz"}:
            log.warning("%s is read; beside it lies %s", path, twin.name)


def _as_labels(array: NDArray[Any], path: Path) -> NDArray[Any]:
    if array.ndim != 3:
        raise InputError("LABEL_VALUES", "a label map has one channel", file=path, seen=f"shape {array.shape}")
    if array.dtype.kind == "f":
        whole = np.rint(array)
        off = np.abs(array - whole)
        if off.max() > _LABEL_TOLERANCE:
            values = np.unique(array)
            raise InputError(
                "LABEL_NONINTEGER",
                f"{int((off > _LABEL_TOLERANCE).sum())} voxels are not whole numbers",
                file=path,
                seen=f"values such as {[round(float(v), 4) for v in values[values != np.rint(values)][:4]]}",
                expected="whole numbers from 0",
                fix="look at scl_slope and scl_inter in the header, or resample with nearest neighbours",
            )
        array = whole
    low, high = array.min(), array.max()
    if low < 0:
        raise InputError("LABEL_VALUES", "labels below 0", file=path, seen=f"{low:g}", expected="whole numbers from 0")
    if high > 65535:
        raise InputError("LABEL_OVERFLOW", "labels above 65535", file=path, seen=f"{high:g}", expected="0 to 65535")
    return array.astype(np.uint8 if high <= 255 else np.uint16)

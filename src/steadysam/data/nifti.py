"""NIfTI voxels, checked to the last byte.

Readers in use fill a truncated file with zeros or skip the checksum; here sizes are compared before memory is
taken and streams are read to their end. Fault names: reliability rules N01 to N15 and N28 to N30 of the
specification.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steadysam.data.nifti_header import NiftiHeader
from steadysam.data.streams import is_gzip, unpack
from steadysam.errors import FileSystemError, InputError, ResourceError

log = logging.getLogger(__name__)


def read_voxels(path: Path, header: NiftiHeader, max_bytes: int) -> NDArray[Any]:
    """The scaled voxels, `(I, J, K)`: the stored integer type when unscaled, else float32 (float64 stays).

    Raises:
        InputError: `IMG_TRUNCATED`, `IMG_GZIP_TRUNCATED`, `IMG_GZIP_CRC`, `IMG_GZIP_OVERRUN`,
            `IMG_SIZE_MISMATCH`, `IMG_NONFINITE`, `IMG_SCALE_RANGE`.
        ResourceError: `IMG_TOO_LARGE`, `MEM_HOST`.
        FileSystemError: `FS_READ`, `IMG_CHANGED_DURING_READ`.
    """
    try:
        before = path.stat()
        check_size(path, header.offset + header.voxel_bytes, header.voxel_bytes, max_bytes)
        raw = _read_stream(path, header) if is_gzip(path) else _read_plain(path, header)
        after = path.stat()
    except OSError as error:
        raise FileSystemError("FS_READ", f"cannot read: {error.strerror or error}", file=path) from error
    except MemoryError as error:
        raise ResourceError(
            "MEM_HOST", "not enough memory for this image", file=path, seen=f"{header.voxel_bytes} bytes"
        ) from error
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise FileSystemError("IMG_CHANGED_DURING_READ", "the file changed while it was read", file=path)
    stored = raw.view(header.dtype).reshape(header.shape, order="F")
    array = stored.astype(header.dtype.newbyteorder("="), copy=False)
    check_finite(array, path)
    return _scaled(array, header, path)


def check_size(path: Path, promised: int, voxel_bytes: int, max_bytes: int) -> None:
    """Before any allocation: does the file fit the limit, and can it hold what its header promises?

    A gzip stream grows at most about 1032 times, so a small file cannot hold a large image.
    """
    held = path.stat().st_size
    possible = held * 1032 + 1024 if is_gzip(path) else held
    if voxel_bytes > max_bytes and possible < promised:
        raise InputError(
            "IMG_SIZE_MISMATCH",
            "the header promises more voxels than the file can hold",
            file=path,
            seen=f"{held} bytes",
            expected=f"{promised} bytes unpacked",
            fix="the header is damaged; get the file again",
        )
    if voxel_bytes > max_bytes:
        raise ResourceError(
            "IMG_TOO_LARGE",
            "the image is larger than the limit",
            file=path,
            seen=f"{voxel_bytes} bytes of voxels",
            expected=f"at most {max_bytes}",
            fix="raise max_bytes (--max-image-bytes) if you trust the file",
        )
    if not is_gzip(path) and held < promised:
        raise truncated(path, promised, held)


def truncated(path: Path, promised: int, held: int) -> InputError:
    """The error for files that end before their voxels do."""
    return InputError(
        "IMG_TRUNCATED",
        "the file ends before its voxels do",
        file=path,
        seen=f"{held} bytes",
        expected=f"{promised} bytes",
        fix="copy or download the file again",
    )


def check_finite(array: NDArray[Any], path: Path) -> None:
    """Refuse NaN and infinity (`IMG_NONFINITE`), with how many and where the first is."""
    if array.dtype.kind != "f":
        return
    bad = ~np.isfinite(array)
    count = int(bad.sum())
    if count:
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        raise InputError(
            "IMG_NONFINITE",
            f"{count} voxels ({100 * count / bad.size:.3g} %) are NaN or infinite",
            file=path,
            seen=f"the first at index {first}",
            expected="finite numbers",
            fix="replace them, for example by the air value",
        )


def _read_plain(path: Path, header: NiftiHeader) -> NDArray[np.uint8]:
    extra = path.stat().st_size - header.offset - header.voxel_bytes
    if extra:
        log.warning("IMG_TRAILING_DATA %s: %d bytes after the voxels are ignored", path, extra)
    raw = np.fromfile(path, np.uint8, header.voxel_bytes, offset=header.offset)
    if raw.size < header.voxel_bytes:
        raise truncated(path, header.voxel_bytes + header.offset, raw.size + header.offset)
    return raw


def _read_stream(path: Path, header: NiftiHeader) -> NDArray[np.uint8]:
    """Unpack the promised bytes and read on to the checksum; a longer stream is stopped at once."""
    raw = np.empty(header.voxel_bytes, np.uint8)
    position = -header.offset  # in `raw`; negative inside the header
    for piece in unpack(path):
        voxels = np.frombuffer(piece, np.uint8)[max(0, -position) :]
        place = max(0, position)
        if place + len(voxels) > raw.size:
            what = "the stream unpacks to more than its header promises"
            raise InputError("IMG_GZIP_OVERRUN", what, file=path, expected=f"{header.offset + raw.size} bytes")
        raw[place : place + len(voxels)] = voxels
        position += len(piece)
    if position < raw.size:
        raise truncated(path, header.offset + raw.size, header.offset + position)
    return raw


def _scaled(array: NDArray[Any], header: NiftiHeader, path: Path) -> NDArray[Any]:
    if (header.slope, header.intercept) == (1.0, 0.0):
        return array
    scaled = np.empty(array.shape, np.float32, order="F")
    with np.errstate(over="ignore", invalid="ignore"):
        for k in range(array.shape[2]):  # slice by slice in float64: exact, and no second copy of the volume
            scaled[..., k] = array[..., k].astype(np.float64) * header.slope + header.intercept
    if not np.isfinite(scaled).all():
        raise InputError(
            "IMG_SCALE_RANGE",
            "the scaling leaves the range of 32 bit floats",
            file=path,
            seen=f"scl_slope={header.slope}, scl_inter={header.intercept}",
        )
    return scaled

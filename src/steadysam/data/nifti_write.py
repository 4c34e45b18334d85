"""Writing NIfTI: geometry copied bit for bit, read back before the file takes its place."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steadysam.data.nifti import read_voxels
from steadysam.data.nifti_header import Form, NiftiHeader, read_header
from steadysam.errors import InputError, OutputError
from steadysam.files import atomic_write
from steadysam.types import Grid

GEOMETRY_FIELDS = (
    "pixdim",
    "xyzt_units",
    "qform_code",
    "sform_code",
    *(f"quatern_{axis}" for axis in "bcd"),
    *(f"qoffset_{axis}" for axis in "xyz"),
    *(f"srow_{axis}" for axis in "xyz"),
)
_FORMS: tuple[Form, ...] = ("sform", "qform")
_CODES = {
    "u1": 2,
    "i2": 4,
    "i4": 8,
    "f4": 16,
    "f8": 64,
    "i1": 256,
    "u2": 512,
    "u4": 768,
    "i8": 1024,
    "u8": 1280,
}


def write_nifti(path: str | Path, array: NDArray[Any], grid: Grid) -> None:
    """Write `(I, J, K)` numbers as .nii or .nii.gz; the same values give the same bytes.

    Of a source header only geometry is copied: no scaling, no display window, no free text, no extensions
    (they may hold a patient's name).

    Raises:
        InputError: `OUTPUT_SHAPE`, `OUTPUT_DTYPE`, `OUTPUT_NAME`.
        OutputError: `OUTPUT_VERIFY`.
    """
    path = Path(path)
    if array.shape != grid.shape:
        raise InputError("OUTPUT_SHAPE", "array and grid differ", file=path, seen=array.shape, expected=grid.shape)
    if not path.name.endswith((".nii", ".nii.gz")):
        raise InputError("OUTPUT_NAME", "masks are written as NIfTI", file=path, expected="a name in .nii or .nii.gz")
    header = _output_header(path, array, grid)
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    content = header.binaryblock + bytes(4) + little.tobytes(order="F")
    if path.name.endswith(".gz"):
        pack = zlib.compressobj(6, zlib.DEFLATED, 31)  # a gzip header without name and time
        content = pack.compress(content) + pack.flush()

    def produce(temporary: Path) -> None:
        temporary.write_bytes(content)
        _verify(temporary, path, array, grid, header)

    atomic_write(path, produce)


def _output_header(path: Path, array: NDArray[Any], grid: Grid) -> Any:
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    code = _CODES.get(array.dtype.str[1:])
    if code is None:
        raise InputError("OUTPUT_DTYPE", "NIfTI cannot hold this type", file=path, seen=array.dtype)
    source = grid.header
    large = isinstance(source, Nifti2Header) if source is not None else max(grid.shape) > 32767
    header: Any = (Nifti2Header if large else Nifti1Header)(endianness="<")
    flat = source is not None and int(source["dim"][0]) == 2  # its pixdim[3] may be 0, which 3-D files may not have
    header["dim"] = [2 if flat else 3, *grid.shape, 1, 1, 1, 1]
    header["datatype"], header["bitpix"] = code, 8 * array.dtype.itemsize
    header["scl_slope"], header["scl_inter"] = 1, 0
    header["vox_offset"] = len(header.binaryblock) + 4
    header["magic"] = b"n+2" if large else b"n+1"
    if source is not None:
        for field in GEOMETRY_FIELDS:
            header[field] = source[field]
        return header
    header["pixdim"] = [1, *grid.spacing_mm, 0, 0, 0, 0]
    header.set_qform(grid.affine, code=1)
    header.set_sform(grid.affine, code=1)
    header["xyzt_units"] = 2
    return header


def _verify(temporary: Path, path: Path, array: NDArray[Any], grid: Grid, expected: Any) -> None:
    """Read the file through the same gate as any input, and compare numbers and geometry."""
    problem = ""
    placed: list[Form] = [form for form in _FORMS if int(expected[f"{form}_code"]) > 0]
    try:
        header = read_header(temporary, assume_orientation="RAS", form=placed[0] if placed else None)
        # the reader may have been told to trust either form
        agree = [_agrees(read_header(temporary, form=form), grid) for form in placed]
        voxels = read_voxels(temporary, header, array.nbytes)
    except InputError as error:
        raise OutputError("OUTPUT_VERIFY", f"the written file cannot be read back: {error.what}", file=path) from error
    if not np.array_equal(voxels, array):
        problem = "the numbers read back differ"
    for field in GEOMETRY_FIELDS:
        if np.asarray(header.fields[field]).tobytes() != np.asarray(expected[field]).tobytes():
            problem = f"the header field {field} read back differs"
    if placed and not any(agree):
        problem = "the affine read back differs from the grid's"
    if problem:
        raise OutputError("OUTPUT_VERIFY", problem, file=path, fix="check the disk and write again")


def _agrees(header: NiftiHeader, grid: Grid) -> bool:
    """Whether the stored affine is the grid's, to the precision of 32 bit floats."""
    return bool(np.allclose(header.affine, grid.affine, rtol=1e-5, atol=1e-3))

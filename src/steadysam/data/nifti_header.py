"""The NIfTI header, parsed by nibabel and judged here before anything is believed.

Fault names: reliability rules N16 to N36 of the specification.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from steadysam.data.affines import Orientation, assumed_affine, check_affine, no_orientation
from steadysam.data.streams import first_bytes
from steadysam.errors import FileSystemError, InputError

Form = Literal["sform", "qform"]

_MAX_OFFSET = 64 << 20  # extensions beyond this are not believed
_DTYPES = {
    2: "u1",
    4: "i2",
    8: "i4",
    16: "f4",
    64: "f8",
    256: "i1",
    512: "u2",
    768: "u4",
    1024: "i8",
    1280: "u8",
}
_REFUSED = {1: "bits", 32: "complex64", 128: "RGB24", 1536: "float128", 1792: "complex128", 2304: "RGBA32"}
_UNIT_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}


@dataclass(frozen=True, eq=False)
class NiftiHeader:
    """A header that passed its checks.

    Args:
        fields: nibabel's header object, bits as stored.
        shape: `(I, J, K)`.
        dtype: of the stored voxels, with byte order.
        offset: first byte of the voxels.
        slope, intercept: scaling; (1, 0) when there is none.
        affine: (4, 4) float64, voxel index -> RAS+ mm.
    """

    fields: Any
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    offset: int
    slope: float
    intercept: float
    affine: NDArray[np.float64]

    @property
    def voxel_bytes(self) -> int:
        """Bytes that the voxels take in the unpacked file."""
        i, j, k = self.shape
        return i * j * k * self.dtype.itemsize


def read_header(path: Path, *, assume_orientation: Orientation | None = None, form: Form | None = None) -> NiftiHeader:
    """Read and judge the header; the voxels are not touched.

    Args:
        assume_orientation: used only when the file has neither sform nor qform.
        form: which of two contradicting forms to trust.

    Raises:
        InputError: any header fault (`IMG_DIMS`, `IMG_NDIM`, `IMG_DTYPE`, `IMG_SPACING`,
            `IMG_NO_ORIENTATION`, `IMG_FORM_CONFLICT`, `IMG_AFFINE_*`, `IMG_SCALE`, `IMG_VOX_OFFSET`,
            `IMG_HEADER_*`, `IMG_FORMAT`).
    """
    fields = _parse(path, _head_bytes(path))
    shape = _shape(fields, path)
    dtype = _dtype(fields, path)
    slope, intercept = _scaling(fields, path)
    spacing = _spacing(fields, path)
    affine = _affine(fields, shape, path, form)
    if affine is None:
        if assume_orientation is None:
            raise no_orientation(path, "neither sform nor qform is set (both codes are 0)")
        affine = assumed_affine(spacing, assume_orientation)
    check_affine(affine, shape, path)
    return NiftiHeader(fields, shape, dtype, _offset(fields, path), slope, intercept, affine)


def _head_bytes(path: Path) -> bytes:
    """The first 540 bytes, unpacked."""
    try:
        return first_bytes(path, 540)
    except OSError as error:
        raise FileSystemError("FS_READ", f"cannot read: {error.strerror or error}", file=path) from error


def _parse(path: Path, block: bytes) -> Any:
    from nibabel.nifti1 import Nifti1Header
    from nibabel.nifti2 import Nifti2Header

    for size, kind in ((348, Nifti1Header), (540, Nifti2Header)):
        for order, sign in (("little", "<"), ("big", ">")):
            if block[:4] != size.to_bytes(4, order):  # pyright: ignore[reportArgumentType]
                continue
            if len(block) < size:
                raise InputError(
                    "IMG_HEADER_SHORT",
                    "the header is cut",
                    file=path,
                    seen=f"{len(block)} bytes",
                    expected=size,
                )
            fields = kind(block[:size], endianness=sign, check=False)
            if bytes(fields["magic"])[:3] not in (b"n+1", b"n+2"):
                raise InputError(
                    "IMG_FORMAT",
                    "a NIfTI or Analyze header whose voxels are elsewhere (.hdr/.img pair)",
                    file=path,
                    seen=f"magic {bytes(fields['magic'])!r}",
                    expected="a single .nii or .nii.gz file",
                    fix="convert the pair to .nii.gz",
                )
            return fields
    raise InputError("IMG_FORMAT", "not a NIfTI header", file=path)


def _shape(fields: Any, path: Path) -> tuple[int, int, int]:
    dims = [int(n) for n in fields["dim"]]
    ndim = dims[0]
    if not 2 <= ndim <= 7:
        raise InputError("IMG_DIMS", "wrong number of dimensions", file=path, seen=f"dim[0]={ndim}", expected="2 to 7")
    for axis in range(1, ndim + 1):
        if dims[axis] < 1:
            raise InputError("IMG_DIMS", f"axis {axis - 1} has no voxels", file=path, seen=f"dim[{axis}]={dims[axis]}")
    if any(n > 1 for n in dims[4 : ndim + 1]):
        raise InputError(
            "IMG_NDIM",
            "a volume over time or of several channels",
            file=path,
            seen=f"shape {tuple(dims[1 : ndim + 1])}",
            expected="three dimensions",
            fix="write each 3-D volume to its own file",
        )
    return dims[1], dims[2], dims[3] if ndim >= 3 else 1


def _dtype(fields: Any, path: Path) -> np.dtype[Any]:
    code, bits = int(fields["datatype"]), int(fields["bitpix"])
    if code not in _DTYPES:
        raise InputError(
            "IMG_DTYPE",
            "voxels of this type are not supported",
            file=path,
            seen=_REFUSED.get(code, f"datatype code {code}"),
            expected="integers or 32/64 bit floats, one channel",
            fix="convert the image to a single-channel grey image",
        )
    dtype = np.dtype(fields.endianness + _DTYPES[code])
    if bits != 8 * dtype.itemsize:
        raise InputError(
            "IMG_HEADER_INCONSISTENT",
            "datatype and bitpix disagree",
            file=path,
            seen=f"bitpix={bits}",
            expected=8 * dtype.itemsize,
        )
    return dtype


def _scaling(fields: Any, path: Path) -> tuple[float, float]:
    slope, intercept = float(fields["scl_slope"]), float(fields["scl_inter"])
    # 0 means "no scaling" by the standard; nibabel writes NaN for it
    if slope == 0 or np.isnan(slope):
        return 1.0, 0.0
    if not np.isfinite([slope, intercept]).all():
        raise InputError(
            "IMG_SCALE",
            "the scaling is not finite",
            file=path,
            seen=f"scl_slope={slope}, scl_inter={intercept}",
        )
    return slope, intercept


def _spacing(fields: Any, path: Path) -> tuple[float, float, float]:
    ndim = min(3, int(fields["dim"][0]))
    for axis in range(1, ndim + 1):
        size = float(fields["pixdim"][axis])
        if not np.isfinite(size) or size <= 0:
            raise InputError(
                "IMG_SPACING",
                "a voxel size is not a positive number",
                file=path,
                seen=f"pixdim[{axis}]={size}",
                expected="millimetres above 0",
                fix="correct the header",
            )
    i, j, k = (float(s) * _unit(fields, path) for s in fields["pixdim"][1:4])
    return i, j, k if ndim == 3 else 1.0


def _unit(fields: Any, path: Path) -> float:
    """Millimetres per spatial unit of the header (unknown counts as mm, as everywhere)."""
    code = int(fields["xyzt_units"]) & 7
    if code not in _UNIT_MM:
        raise InputError("IMG_UNITS", "unknown unit of length", file=path, seen=f"xyzt_units={code}")
    return _UNIT_MM[code]


def _affine(fields: Any, shape: tuple[int, int, int], path: Path, form: Form | None) -> NDArray[np.float64] | None:
    """The sform if set, else the qform, else None; a conflict is an error unless `form` chooses."""
    has_s, has_q = int(fields["sform_code"]) > 0, int(fields["qform_code"]) > 0
    sform = np.asarray(fields.get_sform(), np.float64) if has_s and form != "qform" else None
    qform = _qform(fields, path) if has_q and form != "sform" else None
    if sform is not None and qform is not None:
        _check_forms(sform, qform, shape, path)
    affine = sform if sform is not None else qform
    if affine is None:
        return None
    affine = affine.copy()
    affine[:3] *= _unit(fields, path)
    return affine


def _qform(fields: Any, path: Path) -> NDArray[np.float64]:
    values = [
        float(fields[f"q{name}"]) for name in ("uatern_b", "uatern_c", "uatern_d", "offset_x", "offset_y", "offset_z")
    ]
    if not np.isfinite(values).all():
        raise InputError("IMG_AFFINE_NONFINITE", "the qform holds NaN or infinity", file=path)
    if sum(v * v for v in values[:3]) > 1 + 1e-5:
        raise InputError(
            "IMG_HEADER_INCONSISTENT", "the qform's quaternion is longer than 1", file=path, seen=values[:3]
        )
    return np.asarray(fields.get_qform(), np.float64)


def _check_forms(sform: NDArray[Any], qform: NDArray[Any], shape: tuple[int, int, int], path: Path) -> None:
    """Both forms must put every voxel at the same place, to half a voxel (float32 noise is less)."""
    corners = np.array(np.meshgrid(*[[0, n - 1] for n in shape])).reshape(3, -1)
    apart = np.linalg.norm((sform - qform)[:3, :3] @ corners + (sform - qform)[:3, 3:], axis=0).max()
    smallest = np.sqrt((sform[:3, :3] ** 2).sum(axis=0)).min()
    if not np.isfinite(apart):
        raise InputError("IMG_AFFINE_NONFINITE", "the affine holds NaN or infinity", file=path)
    if apart > 0.5 * smallest:
        raise InputError(
            "IMG_FORM_CONFLICT",
            f"sform and qform place the image differently, by up to {apart:.3g} units",
            file=path,
            seen=f"sform {np.round(sform[:3], 3).tolist()}, qform {np.round(qform[:3], 3).tolist()}",
            fix="write the file anew with the one that is right in both (nibabel: set_sform, set_qform); in Python, "
            'read_volume(file, form="sform") or "qform" takes one',
        )


def _offset(fields: Any, path: Path) -> int:
    value, first = float(fields["vox_offset"]), len(fields.binaryblock) + 4
    if not np.isfinite(value) or value != int(value) or not first <= value <= _MAX_OFFSET:
        raise InputError(
            "IMG_VOX_OFFSET",
            "the voxels start at an impossible place",
            file=path,
            seen=value,
            expected=f"{first} or more",
        )
    return int(value)

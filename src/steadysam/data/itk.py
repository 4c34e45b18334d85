"""NRRD and MetaImage through SimpleITK (optional), behind the gate of `textheaders`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steadysam.data.affines import Orientation, assumed_affine, check_affine
from steadysam.data.nifti import check_finite
from steadysam.data.textheaders import TextKind, check_payload, read_text_header
from steadysam.errors import InputError
from steadysam.files import content_key, sha256_file
from steadysam.geometry import flip_lps_ras


def read_itk_grid(
    path: Path, kind: TextKind, assume_orientation: Orientation | None = None
) -> tuple[tuple[int, int, int], NDArray[np.float64]]:
    """Shape `(I, J, K)` and affine (voxel -> RAS+ mm) from the header alone."""
    header = read_text_header(path, kind, assume_orientation)
    reader = _simpleitk().ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise _corrupt(path, error) from error
    return _geometry(path, reader, None if header.oriented else assume_orientation)


def read_itk(
    path: Path, kind: TextKind, max_bytes: int, assume_orientation: Orientation | None = None
) -> tuple[NDArray[Any], NDArray[np.float64], str]:
    """Voxels `(I, J, K)` or colour `(I, J, K, 3)`, the affine, and the hash of the file's bytes.

    When the voxels lie in a second file, the hash covers both.

    Raises:
        InputError: see `read_text_header` and `check_payload`; `ITK_MISSING`, `IMG_CHANNELS`, `IMG_CORRUPT`,
            `IMG_NONFINITE`, `IMG_AFFINE_*`, `IMG_SPACING`.
        ResourceError: `IMG_TOO_LARGE`.
    """
    header = read_text_header(path, kind, assume_orientation)
    check_payload(path, header, max_bytes)
    library = _simpleitk()
    try:
        image = library.ReadImage(str(path))
    except RuntimeError as error:
        raise _corrupt(path, error) from error
    channels = image.GetNumberOfComponentsPerPixel()
    array = library.GetArrayFromImage(image)  # (k, j, i[, c])
    if channels not in (1, 3) or (channels == 3 and array.dtype != np.uint8):
        raise InputError(
            "IMG_CHANNELS",
            "channels are not supported",
            file=path,
            seen=channels,
            expected="1, or 3 with 8 bits",
        )
    shape, affine = _geometry(path, image, None if header.oriented else assume_orientation)
    axes = tuple(reversed(range(image.GetDimension())))
    array = array.transpose(axes if channels == 1 else (*axes, array.ndim - 1))
    array = array.reshape(shape if channels == 1 else (*shape, 3))
    check_finite(array, path)
    digest = sha256_file(path)
    return array, affine, digest if header.data == path else content_key(digest, sha256_file(header.data))


def _simpleitk() -> Any:
    try:
        import SimpleITK
    except ImportError as error:
        raise InputError(
            "ITK_MISSING",
            "NRRD and MetaImage files need SimpleITK",
            fix="pip install 'steadysam[itk]', or convert the file to .nii.gz",
        ) from error
    return SimpleITK


def _geometry(path: Path, source: Any, assume: Orientation | None) -> tuple[tuple[int, int, int], NDArray[np.float64]]:
    """Shape and affine of a SimpleITK image or reader; ITK's world is LPS."""
    ndim = source.GetDimension()
    size = [int(n) for n in source.GetSize()] + [1] * (3 - ndim)
    spacing = np.array([*source.GetSpacing(), *[1.0] * (3 - ndim)])
    direction, origin = np.eye(3), np.zeros(3)
    direction[:ndim, :ndim] = np.reshape(source.GetDirection(), (ndim, ndim))
    origin[:ndim] = source.GetOrigin()
    affine = np.eye(4)
    affine[:3, :3] = flip_lps_ras((direction * spacing).T).T
    affine[:3, 3] = flip_lps_ras(origin)
    if assume is not None:
        affine = assumed_affine(spacing.tolist(), assume)
    shape = (size[0], size[1], size[2])
    check_affine(affine, shape, path)
    return shape, affine


def _corrupt(path: Path, error: RuntimeError) -> InputError:
    last = str(error).strip().splitlines()[-1][:200]
    return InputError("IMG_CORRUPT", f"SimpleITK cannot read it: {last}", file=path)

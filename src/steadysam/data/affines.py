"""Checks of the matrix that places voxels in the patient, and the choice of the slice axis.

Fault names: reliability rules N20 to N26 and N36 of the project's specification.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from steadysam.errors import InputError

Orientation = Literal["RAS", "LPS"]

MAX_SHEAR = 1e-3  # cosine between two axes; float32 headers reach 1e-6
MAX_EXTENT_MM = 5000.0
MIN_SPACING_MM = 1e-4
CLEARLY_LARGER = 1.01


def check_affine(affine: NDArray[Any], shape: Sequence[int], path: str | Path | None = None) -> None:
    """Refuse an affine that cannot place a volume of `shape` voxels.

    Raises:
        InputError: `IMG_AFFINE_NONFINITE`, `IMG_AFFINE_SINGULAR`, `IMG_AFFINE_SHEAR`, `IMG_SPACING`.
    """
    if not np.isfinite(affine).all():
        raise InputError("IMG_AFFINE_NONFINITE", "the affine holds NaN or infinity", file=path)
    columns = np.asarray(affine, np.float64)[:3, :3]
    spacing = np.sqrt((columns**2).sum(axis=0))
    if (spacing == 0).any() or abs(np.linalg.det(columns / np.where(spacing == 0, 1, spacing))) < 1e-6:
        raise InputError(
            "IMG_AFFINE_SINGULAR",
            "the affine is singular: two axes coincide or one has no length",
            file=path,
            seen=np.round(columns, 6).tolist(),
        )
    extent = spacing * np.asarray(shape[:3])
    if (spacing < MIN_SPACING_MM).any() or (extent > MAX_EXTENT_MM).any():
        raise InputError(
            "IMG_SPACING",
            "no patient has voxels of this size",
            file=path,
            seen=f"{spacing.tolist()} mm for {tuple(shape[:3])} voxels",
            expected=f"at least {MIN_SPACING_MM} mm per voxel and at most {MAX_EXTENT_MM:g} mm in all",
            fix="correct the header's spacing or its unit",
        )
    cosines = np.abs((columns / spacing).T @ (columns / spacing) - np.eye(3))
    if cosines.max() > MAX_SHEAR:
        raise InputError(
            "IMG_AFFINE_SHEAR",
            "the axes are not at right angles",
            file=path,
            seen=f"{90 - np.degrees(np.arccos(cosines.max())):.2f} degrees of shear",
            expected=f"less than {np.degrees(MAX_SHEAR):.2f} degrees",
            fix="resample to an orthogonal grid first",
        )


def assumed_affine(spacing: Sequence[float], orientation: Orientation) -> NDArray[np.float64]:
    """The affine of a file that has none: axes run to `orientation`, origin 0."""
    sign = -1.0 if orientation == "LPS" else 1.0
    return np.diag([sign * spacing[0], sign * spacing[1], spacing[2], 1.0]).astype(np.float64)


def no_orientation(path: str | Path, what: str, code: str = "IMG_NO_ORIENTATION") -> InputError:
    """The error for files that do not say where left and right are."""
    return InputError(
        code,
        what,
        file=path,
        expected="an orientation (left and right cannot be guessed)",
        fix="if you know it, write it into the file (nibabel: set_sform); in Python, "
        'read_volume(file, assume_orientation="RAS") or "LPS" takes it as said',
    )


def choose_slice_axis(affine: NDArray[Any], shape: Sequence[int]) -> tuple[int, str]:
    """The axis to cut slices across, and why: a one-voxel axis, else the largest spacing, else the last.

    A spacing counts as the largest when it exceeds both others by more than 1 %.
    """
    single = [axis for axis in range(3) if shape[axis] == 1]
    if len(single) == 1:
        return single[0], f"axis {single[0]} has one voxel: the image is one slice"
    spacing = np.sqrt((np.asarray(affine, np.float64)[:3, :3] ** 2).sum(axis=0))
    largest = int(spacing.argmax())
    others = np.delete(spacing, largest)
    if spacing[largest] > CLEARLY_LARGER * others.max():
        return largest, f"axis {largest} has the largest spacing, {spacing[largest]:.4g} mm"
    return 2, "no spacing is clearly the largest: the last axis"

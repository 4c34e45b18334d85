"""FUMPE as an nnU-Net v2 raw folder: CT angiographies of 35 patients with pulmonary emboli.

Source page: the FUMPE collection on figshare (Ferdowsi University of Mashhad), a Data Descriptor of Scientific Data.
Layout expected anywhere in SOURCE; needs SimpleITK for DICOM (pip install 'steadysam[itk]'):

    CT_scans/PAT001/D0001.dcm ...     one DICOM series per patient
    GroundTruth/PAT001.mat            a MATLAB array `Mask` (rows, columns, slices)

Images become NIfTI in Hounsfield units with the geometry of the DICOM series. A mask has no geometry: its slices are
taken in the order of the DICOM files' names, and sorted into the order of the positions in the patient. As a check,
the share of marked voxels that are air (below -500 HU) is written to cases.csv, and a warning is printed where the
other order would mark less air.

    python benchmarks/prepare/fumpe.py FUMPE -o Dataset923_FUMPE --folds 5
    steadysam train Dataset923_FUMPE --label PE --fold 0 -o runs/pe
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from raw_folder import ENDING, About, Found, parser, run, write_raw

from steadysam.data.volumes import write_mask, write_volume
from steadysam.errors import InputError
from steadysam.geometry import flip_lps_ras
from steadysam.types import Grid, Mask

ABOUT = About(
    name="FUMPE",
    channels=("CT",),
    labels={"background": 0, "PE": 1},
    licence="CC BY 4.0: attribution",
    reference="Masoudi et al., A new dataset of computed-tomography angiography images for computer-aided detection "
    "of pulmonary embolism, Scientific Data 5, 180180, 2018",
    slice_axis=2,
)
AIR_HU = -500
MASK = "Mask"
PATIENT = r"PAT\d+$"


def find(source: Path) -> list[Found]:
    """Every patient with DICOM files or a .mat file, in folders and files named PAT001 and so on."""
    scans = {path.parent.name: path.parent for path in source.rglob("*.dcm") if re.match(PATIENT, path.parent.name)}
    truths = {path.stem: path for path in source.rglob("*.mat") if re.match(PATIENT, path.stem)}
    nowhere = source / "CT_scans", source / "GroundTruth"
    return [
        Found(name, name, scans.get(name, nowhere[0] / name), truths.get(name, nowhere[1] / f"{name}.mat"))
        for name in sorted({*scans, *truths})
    ]


def read_series(folder: Path) -> tuple[NDArray[Any], Grid, list[str]]:
    """A DICOM series: HU `(I, J, K)`, grid, and the file names in the order of K.

    Raises:
        InputError: `ITK_MISSING`, `SOURCE_SERIES` (none or several), `IMG_CORRUPT`.
    """
    try:
        import SimpleITK
    except ImportError as error:
        raise InputError("ITK_MISSING", "DICOM needs SimpleITK", fix="pip install 'steadysam[itk]'") from error
    library: Any = SimpleITK
    reader = library.ImageSeriesReader()
    series = reader.GetGDCMSeriesIDs(str(folder))
    if len(series) != 1:
        raise InputError("SOURCE_SERIES", "not one DICOM series", file=folder, seen=len(series), expected=1)
    names = list(reader.GetGDCMSeriesFileNames(str(folder), series[0]))
    reader.SetFileNames(names)
    try:
        image = reader.Execute()
    except RuntimeError as error:
        raise InputError("IMG_CORRUPT", f"the series cannot be read: {str(error)[-200:]}", file=folder) from error
    array = np.ascontiguousarray(library.GetArrayFromImage(image).transpose(2, 1, 0))
    direction = np.reshape(image.GetDirection(), (3, 3))
    affine = np.eye(4)
    affine[:3, :3] = flip_lps_ras((direction * np.array(image.GetSpacing())).T).T
    affine[:3, 3] = flip_lps_ras(np.array(image.GetOrigin()))
    return _whole(array), Grid(array.shape, affine, 2), [Path(name).name for name in names]


def read_truth(path: Path) -> NDArray[np.bool_]:
    """The array `Mask` `(rows, columns, slices)` of a .mat file.

    Raises:
        InputError: `SOURCE_MAT`.
    """
    from scipy.io import loadmat

    try:
        content = loadmat(path, variable_names=[MASK])
    except (NotImplementedError, ValueError, OSError, TypeError) as error:
        raise InputError("SOURCE_MAT", f"the MATLAB file cannot be read: {error}", file=path) from error
    mask = content.get(MASK)
    if not isinstance(mask, np.ndarray) or mask.ndim != 3:
        raise InputError("SOURCE_MAT", f"no array {MASK!r} of three dimensions", file=path, seen=sorted(content))
    return mask > 0


def place(mask: NDArray[np.bool_], names: Sequence[str]) -> NDArray[np.bool_]:
    """`(rows, columns, slices by file name)` -> `(I, J, K)` with K in the order of `names`."""
    by_name = {name: n for n, name in enumerate(sorted(names, key=_natural))}
    return np.ascontiguousarray(mask.transpose(1, 0, 2)[:, :, [by_name[name] for name in names]])


def write_case(case: Found, images: Path, labels: Path) -> Mapping[str, object]:
    """Image and mask as NIfTI; returns the shares of air that speak for the order of the slices.

    Raises:
        InputError: `SOURCE_GRID` if mask and series differ in shape.
    """
    array, grid, names = read_series(case.image)
    mask = read_truth(case.label)
    expected = (grid.shape[1], grid.shape[0], grid.shape[2])
    if mask.shape != expected:
        raise InputError(
            "SOURCE_GRID", "mask and DICOM series differ in shape", file=case.label, seen=mask.shape, expected=expected
        )
    placed = place(mask, names)
    shares = [_air(array, placed), _air(array, placed[:, :, ::-1])]
    if shares[0] > shares[1] + 0.1:
        print(f"\nwarning: {case.name}: the slices of the mask may run the other way; air {shares}", file=sys.stderr)
    write_volume(images / f"{case.name}_0000{ENDING}", array, grid)
    write_mask(labels / f"{case.name}{ENDING}", Mask(placed, grid))
    return {"air_share": round(shares[0], 4), "air_share_reversed": round(shares[1], 4)}


def _air(array: NDArray[Any], mask: NDArray[np.bool_]) -> float:
    return float((array[mask] < AIR_HU).mean()) if mask.any() else 0.0


def _natural(name: str) -> list[object]:
    return [int(word) if word.isdigit() else word for word in re.split(r"(\d+)", name)]


def _whole(array: NDArray[Any]) -> NDArray[Any]:
    """int16 where it holds the same values, as Hounsfield units do."""
    small = np.rint(np.clip(array, -32768, 32767)).astype(np.int16)
    return small if np.array_equal(small, array) else array.astype(np.float32)


def main(words: Sequence[str] | None = None) -> None:
    """The command."""
    args = parser(__doc__ or "", ABOUT).parse_args(words)
    write_raw(args, ABOUT, find(args.source), write_case)


if __name__ == "__main__":
    run(main)

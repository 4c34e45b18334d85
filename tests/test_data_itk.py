"""NRRD and MetaImage: the gate, and the same world as NIfTI."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from steadysam.data.volumes import read_grid, read_label_map, read_volume, write_volume
from steadysam.errors import SteadyError
from steadysam.geometry import grids_agree
from steadysam.types import Grid

sitk = pytest.importorskip("SimpleITK", reason="needs steadysam[itk]")

SHAPE = (7, 5, 3)
VOXELS = np.arange(105, dtype=np.int16).reshape(SHAPE)
ANGLE = np.radians(20)
DIRECTION = np.array([[np.cos(ANGLE), -np.sin(ANGLE), 0], [np.sin(ANGLE), np.cos(ANGLE), 0], [0, 0, -1]])
# ITK's world is LPS: x and y change sign
AFFINE = np.diag([-1.0, -1, 1, 1]) @ np.block(
    [
        [DIRECTION @ np.diag([0.7, 1.3, 4]), np.array([[10.0], [-20], [30]])],
        [np.zeros((1, 3)), np.ones((1, 1))],
    ]
)


def make(path: Path, compress: bool = False, array: np.ndarray = VOXELS) -> Path:
    image: Any = sitk.GetImageFromArray(array.transpose(2, 1, 0))
    image.SetSpacing((0.7, 1.3, 4))
    image.SetOrigin((10, -20, 30))
    image.SetDirection(DIRECTION.ravel().tolist())
    sitk.WriteImage(image, str(path), compress)
    return path


def code_of(path: Path, **options: Any) -> str:
    with pytest.raises(SteadyError) as caught:
        read_volume(path, **options)
    return caught.value.code


def edit(path: Path, old: bytes, new: bytes) -> Path:
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))
    return path


@pytest.mark.parametrize("suffix", [".nrrd", ".nhdr", ".mha", ".mhd"])
@pytest.mark.parametrize("compress", [False, True])
def test_same_numbers_and_world_as_nifti(tmp_path: Path, suffix: str, compress: bool) -> None:
    volume = read_volume(make(tmp_path / f"a{suffix}", compress))
    assert np.array_equal(volume.array, VOXELS)
    assert np.allclose(volume.grid.affine, AFFINE, atol=1e-9)
    assert volume.grid.slice_axis == 2
    assert read_grid(tmp_path / f"a{suffix}").key() == volume.grid.key()
    write_volume(tmp_path / "b.nii.gz", VOXELS, Grid(SHAPE, AFFINE))
    assert grids_agree(read_grid(tmp_path / "b.nii.gz"), volume.grid)
    labels, _ = read_label_map(tmp_path / f"a{suffix}")
    assert np.array_equal(labels, VOXELS)


def test_ras_and_lps_twins_have_one_world(tmp_path: Path) -> None:
    text = (
        "NRRD0004\ntype: uchar\ndimension: 3\nspace: {space}\nsizes: 2 3 4\n"
        "space directions: ({s}2,0,0) (0,{s}3,0) (0,0,4)\nencoding: raw\nspace origin: ({s}5,{s}6,7)\n\n"
    )
    for name, space, sign in (("l", "left-posterior-superior", ""), ("r", "right-anterior-superior", "-")):
        (tmp_path / f"{name}.nrrd").write_bytes(text.format(space=space, s=sign).encode() + bytes(range(24)))
    one, two = (read_volume(tmp_path / f"{name}.nrrd") for name in "lr")
    assert np.array_equal(one.array, two.array)
    assert np.allclose(one.grid.affine, two.grid.affine)
    assert np.allclose(one.grid.affine[:3, 3], [-5, -6, 7])


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
@pytest.mark.parametrize("compress", [False, True])
def test_truncated(tmp_path: Path, suffix: str, compress: bool) -> None:
    noise = np.random.default_rng(0).integers(-999, 999, SHAPE, dtype=np.int16)
    path = make(tmp_path / f"a{suffix}", compress, noise)
    path.write_bytes(path.read_bytes()[:-20])
    assert code_of(path) == "IMG_TRUNCATED"


@pytest.mark.parametrize("name", ["/etc/passwd", "../a.raw", "sub/a.raw", "a%03d.raw 1 3 1", "LIST"])
def test_data_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    assert code_of(edit(make(tmp_path / "a.nhdr"), b"a.raw", name.encode())) == "NRRD_DETACHED_REFUSED"
    assert code_of(edit(make(tmp_path / "a.mhd"), b"a.raw", name.encode())) == "NRRD_DETACHED_REFUSED"
    attached = make(tmp_path / "b.nrrd")
    assert code_of(edit(attached, b"encoding", f"data file: {name}\nencoding".encode())) == "NRRD_DETACHED_REFUSED"


def test_data_file_link_and_absence(tmp_path: Path) -> None:
    path = make(tmp_path / "a.mhd")
    (tmp_path / "a.raw").rename(tmp_path / "b.raw")
    assert code_of(path) == "IMG_PAIR_MISSING"
    (tmp_path / "a.raw").symlink_to(tmp_path / "b.raw")
    assert code_of(path) == "NRRD_DETACHED_REFUSED"


def test_hash_covers_the_data_file(tmp_path: Path) -> None:
    first = read_volume(make(tmp_path / "a.mhd")).sha256
    assert read_volume(make(tmp_path / "a.mhd", array=VOXELS + 1)).sha256 != first


@pytest.mark.parametrize(
    "old, new, code",
    [
        (b"space: left-posterior-superior\n", b"", "IMG_NO_ORIENTATION"),
        (b"endian: little\n", b"", "NRRD_ENDIAN"),
        (b"sizes: 7 5 3", b"sizes: 9999999999 9999999999 3", "IMG_DIMS"),
        (b"sizes: 7 5 3", b"sizes: 7 5 0", "IMG_DIMS"),
        (b"sizes: 7 5 3", b"sizes: 7 5 3000", "IMG_TRUNCATED"),
        (b"sizes: 7 5 3", b"sizes: 7 5", "IMG_HEADER_INCONSISTENT"),
        (b"encoding: raw", b"encoding: hex", "IMG_FORMAT"),
        (b"encoding: raw", b"byte skip: -1\nencoding: raw", "IMG_HEADER_INCONSISTENT"),
        (b"encoding: raw", b"type: short\nencoding: raw", "IMG_HEADER_INCONSISTENT"),
        (b"type: short", b"type: block", "IMG_DTYPE"),
    ],
)
def test_nrrd_headers(tmp_path: Path, old: bytes, new: bytes, code: str) -> None:
    assert code_of(edit(make(tmp_path / "a.nrrd"), old, new)) == code


def test_header_that_does_not_end(tmp_path: Path) -> None:
    (tmp_path / "a.nrrd").write_bytes(b"NRRD0004\n" + b"# comment\n" * 10000)
    assert code_of(tmp_path / "a.nrrd") == "IMG_HEADER_TOO_LONG"
    (tmp_path / "a.mha").write_bytes(b"ObjectType = Image\n" + b"NDims 3\n")
    assert code_of(tmp_path / "a.mha") == "IMG_HEADER_TOO_LONG"


def test_meta_without_orientation(tmp_path: Path) -> None:
    path = make(tmp_path / "a.mha")
    lines = [line for line in path.read_bytes().split(b"\n") if not line.startswith(b"TransformMatrix")]
    path.write_bytes(b"\n".join(lines))
    assert code_of(path) == "IMG_NO_ORIENTATION"
    assert np.allclose(read_volume(path, assume_orientation="RAS").grid.affine, np.diag([0.7, 1.3, 4, 1]))


def test_too_large(tmp_path: Path) -> None:
    assert code_of(make(tmp_path / "a.nrrd"), max_bytes=100) == "IMG_TOO_LARGE"


def test_nan(tmp_path: Path) -> None:
    array = VOXELS.astype(np.float32)
    array[1, 2, 0] = np.nan
    assert code_of(make(tmp_path / "a.mha", array=array)) == "IMG_NONFINITE"


def test_two_dimensions_and_colour(tmp_path: Path) -> None:
    flat: Any = sitk.GetImageFromArray(np.arange(24, dtype=np.uint8).reshape(4, 6))
    flat.SetSpacing((0.5, 2))
    sitk.WriteImage(flat, str(tmp_path / "flat.mha"))
    volume = read_volume(tmp_path / "flat.mha")
    assert volume.array.shape == (6, 4, 1)
    assert volume.array[1, 0, 0] == 1
    assert volume.grid.spacing_mm == (0.5, 2.0, 1.0)
    colour = np.random.default_rng(0).integers(0, 256, (3, 5, 7, 3), dtype=np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(colour, isVector=True), str(tmp_path / "c.nrrd"))
    assert np.array_equal(read_volume(tmp_path / "c.nrrd").array, colour.transpose(2, 1, 0, 3))


def test_missing_library_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(tmp_path / "a.nrrd")
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    with pytest.raises(SteadyError, match=r"steadysam\[itk\]"):
        read_volume(path)

"""Faulty NIfTI files get the right error; good ones of every kind give the same volume."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from steadysam.data.volumes import read_grid, read_label_map, read_volume
from steadysam.errors import SteadyError
from steadysam.geometry import voxel_to_ras

SHAPE = (7, 5, 3)
AFFINE = np.array([[-1.5, 0, 0, 10], [0, 2.0, 0, -20], [0, 0, 4.0, 30], [0, 0, 0, 1]])
HEADER = 348


def voxels(dtype: Any = np.int16) -> np.ndarray:
    return np.arange(np.prod(SHAPE)).reshape(SHAPE).astype(dtype)


def make(path: Path, array: np.ndarray | None = None, affine: np.ndarray = AFFINE, kind: Any = nib.Nifti1Image) -> Path:
    image = kind(voxels() if array is None else array, affine)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
    return path


def code_of(call: Callable[[], object]) -> str:
    with pytest.raises(SteadyError) as caught:
        call()
    return caught.value.code


def patched(path: Path, **values: Any) -> Path:
    """Change header fields of an uncompressed little-endian NIfTI-1 file in place."""
    content = path.read_bytes()
    header = nib.Nifti1Header(content[:HEADER], check=False)
    for name, value in values.items():
        if isinstance(value, dict):
            for index, entry in value.items():
                header[name][index] = entry
        else:
            header[name] = value
    path.write_bytes(header.binaryblock + content[HEADER:])
    return path


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_values_affine_and_name_survive(tmp_path: Path, suffix: str, kind: Any) -> None:
    path = make(tmp_path / f"CASE_0000{suffix}", kind=kind)
    volume = read_volume(path)
    assert np.array_equal(volume.array, voxels())
    assert volume.array.dtype == np.int16
    assert np.array_equal(volume.grid.affine, AFFINE)
    assert volume.name == "CASE"
    assert volume.grid.slice_axis == 2
    assert len(volume.sha256) == 64
    assert read_grid(path).key() == volume.grid.key()


def test_empty_short_and_missing(tmp_path: Path) -> None:
    path = tmp_path / "x.nii"
    path.write_bytes(b"")
    assert code_of(lambda: read_volume(path)) == "IMG_EMPTY"
    whole = make(tmp_path / "y.nii").read_bytes()
    path.write_bytes(whole[:200])
    assert code_of(lambda: read_volume(path)) == "IMG_HEADER_SHORT"
    path.write_bytes(whole[:HEADER])
    assert code_of(lambda: read_volume(path)) == "IMG_TRUNCATED"
    assert code_of(lambda: read_volume(tmp_path / "none.nii")) == "FILE_MISSING"
    assert code_of(lambda: read_volume(tmp_path)) == "IMG_NOT_A_FILE"


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0.01, 0.999))
def test_a_cut_file_is_never_read(tmp_path: Path, share: float) -> None:
    rng = np.random.default_rng(0)
    array = rng.integers(-1000, 1000, SHAPE, dtype=np.int16)
    for suffix in (".nii", ".nii.gz"):
        whole = make(tmp_path / f"whole{suffix}", array).read_bytes()
        path = tmp_path / f"cut{suffix}"
        path.write_bytes(whole[: max(1, int(len(whole) * share))])
        with pytest.raises(SteadyError):
            read_volume(path)


def test_cut_gzip_stream_and_trailer(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(-999, 999, (40, 30, 20), dtype=np.int16)
    whole = make(tmp_path / "a.nii.gz", array).read_bytes()
    path = tmp_path / "b.nii.gz"
    path.write_bytes(whole[: len(whole) // 2])
    assert code_of(lambda: read_volume(path)) == "IMG_GZIP_TRUNCATED"
    path.write_bytes(whole[:-4])
    assert code_of(lambda: read_volume(path)) == "IMG_GZIP_TRUNCATED"
    for place in (-1, -6):  # length, checksum
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        assert code_of(lambda: read_volume(path)) == "IMG_GZIP_CRC"
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 4
    path.write_bytes(damaged)
    assert code_of(lambda: read_volume(path)) in ("IMG_GZIP_CRC", "IMG_TRUNCATED", "IMG_GZIP_OVERRUN")


def test_bytes_behind_the_image_are_ignored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for suffix in (".nii", ".nii.gz"):
        path = make(tmp_path / f"a{suffix}")
        path.write_bytes(path.read_bytes() + b"junk")
        assert np.array_equal(read_volume(path).array, voxels())
        assert "IMG_TRAILING_DATA" in caplog.text
        caplog.clear()


def test_stream_that_unpacks_to_more_than_promised(tmp_path: Path) -> None:
    content = make(tmp_path / "a.nii").read_bytes()
    path = tmp_path / "b.nii.gz"
    path.write_bytes(gzip.compress(content + bytes(1 << 20)))
    assert code_of(lambda: read_volume(path)) == "IMG_GZIP_OVERRUN"


def test_content_decides_not_the_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plain = make(tmp_path / "a.nii").read_bytes()
    (tmp_path / "raw.nii.gz").write_bytes(plain)
    (tmp_path / "packed.nii").write_bytes(gzip.compress(plain))
    assert np.array_equal(read_volume(tmp_path / "raw.nii.gz").array, voxels())
    assert np.array_equal(read_volume(tmp_path / "packed.nii").array, voxels())
    other = make(tmp_path / "a.nii.gz", voxels() + 1)  # a twin with other content
    assert read_volume(other).array[0, 0, 0] == 1
    assert read_volume(tmp_path / "a.nii").array[0, 0, 0] == 0
    assert "beside it lies" in caplog.text


def test_web_pages_and_pointers(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    path.write_bytes(b"\n<HTML><body>404</body></html>")
    assert code_of(lambda: read_volume(path)) == "IMG_NOT_AN_IMAGE"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n")
    assert code_of(lambda: read_volume(path)) == "IMG_LFS_POINTER"
    path.write_bytes(b"II*\x00" + bytes(600))
    assert code_of(lambda: read_volume(path)) == "IMG_FORMAT"


def test_sizes_are_judged_before_memory_is_taken(tmp_path: Path) -> None:
    path = make(tmp_path / "a.nii", affine=np.eye(4))
    patched(path, dim={1: 4000, 2: 4000, 3: 4000})
    assert code_of(lambda: read_volume(path)) == "IMG_SIZE_MISMATCH"
    big = make(tmp_path / "b.nii.gz", np.zeros((64, 64, 64), np.int16))
    with pytest.raises(SteadyError) as caught:
        read_volume(big, max_bytes=100_000)
    assert caught.value.code == "IMG_TOO_LARGE"
    assert caught.value.exit_code == 7


@pytest.mark.parametrize(
    "fields, code",
    [
        ({"dim": {0: 0}}, "IMG_DIMS"),
        ({"dim": {0: 8}}, "IMG_DIMS"),
        ({"dim": {2: 0}}, "IMG_DIMS"),
        ({"dim": {3: -2}}, "IMG_DIMS"),
        ({"dim": {0: 4, 3: 1, 4: 3}}, "IMG_NDIM"),
        ({"pixdim": {2: 0.0}}, "IMG_SPACING"),
        ({"pixdim": {1: -1.0}}, "IMG_SPACING"),
        ({"pixdim": {3: np.nan}}, "IMG_SPACING"),
        ({"srow_x": {0: 1e30}, "qform_code": 0}, "IMG_SPACING"),
        ({"qform_code": 0, "sform_code": 0}, "IMG_NO_ORIENTATION"),
        ({"srow_x": {3: 500.0}}, "IMG_FORM_CONFLICT"),
        ({"srow_y": {3: np.inf}}, "IMG_AFFINE_NONFINITE"),
        ({"srow_x": {0: 0.0}, "qform_code": 0}, "IMG_AFFINE_SINGULAR"),
        ({"srow_x": {1: 1.0}, "qform_code": 0}, "IMG_AFFINE_SHEAR"),
        ({"scl_slope": np.inf}, "IMG_SCALE"),
        ({"scl_slope": 2.0, "scl_inter": np.nan}, "IMG_SCALE"),
        ({"scl_slope": 3e38, "scl_inter": 0.0}, "IMG_SCALE_RANGE"),
        ({"datatype": 128, "bitpix": 24}, "IMG_DTYPE"),
        ({"datatype": 32, "bitpix": 64}, "IMG_DTYPE"),
        ({"bitpix": 8}, "IMG_HEADER_INCONSISTENT"),
        ({"vox_offset": 0}, "IMG_VOX_OFFSET"),
        ({"vox_offset": np.nan}, "IMG_VOX_OFFSET"),
        ({"vox_offset": 1e18}, "IMG_VOX_OFFSET"),
        ({"magic": b"ni1"}, "IMG_FORMAT"),
        ({"xyzt_units": 5}, "IMG_UNITS"),
    ],
    ids=lambda value: json.dumps(value, default=str) if isinstance(value, dict) else value,
)
def test_damaged_headers(tmp_path: Path, fields: dict[str, Any], code: str) -> None:
    path = make(tmp_path / "a.nii")
    nib.save(_with_both_forms(path), path)
    assert code_of(lambda: read_volume(patched(path, **fields))) == code


def _with_both_forms(path: Path) -> Any:
    image = nib.Nifti1Image(voxels(), AFFINE)
    image.set_sform(AFFINE, 1)
    image.set_qform(AFFINE, 1)
    image.header.set_xyzt_units("mm")
    return image


def test_four_dimensions_of_one_volume(tmp_path: Path) -> None:
    path = make(tmp_path / "a.nii", voxels()[..., None])
    assert read_volume(path).array.shape == SHAPE


def test_orientation_can_be_assumed_and_forms_chosen(tmp_path: Path) -> None:
    path = patched(make(tmp_path / "a.nii"), qform_code=0, sform_code=0)
    assert np.array_equal(read_volume(path, assume_orientation="LPS").grid.affine, np.diag([-1.5, -2, 4, 1]))
    assert np.array_equal(read_grid(path, assume_orientation="RAS").affine, np.diag([1.5, 2, 4, 1]))
    nib.save(_with_both_forms(path), path)
    patched(path, srow_x={3: 500.0})
    assert read_grid(path, form="sform").affine[0, 3] == 500
    assert read_grid(path, form="qform").affine[0, 3] == 10


def test_units_become_millimetres(tmp_path: Path) -> None:
    path = patched(make(tmp_path / "a.nii", affine=np.diag([0.001, 0.001, 0.004, 1])), xyzt_units=1)
    assert np.allclose(read_grid(path).spacing_mm, (1, 1, 4))


def test_nan_is_counted(tmp_path: Path) -> None:
    array = voxels(np.float32)
    array[2, 3, 1] = np.nan
    array[4, 0, 2] = np.inf
    path = make(tmp_path / "a.nii.gz", array)
    with pytest.raises(SteadyError, match="2 voxels") as caught:
        read_volume(path)
    assert caught.value.code == "IMG_NONFINITE"
    assert "(2, 3, 1)" in str(caught.value)
    assert code_of(lambda: read_label_map(path)) == "LABEL_VALUES"


def test_scaling(tmp_path: Path) -> None:
    path = patched(make(tmp_path / "a.nii"), scl_slope=0.5, scl_inter=-3)
    array = read_volume(path).array
    assert array.dtype == np.float32
    assert np.allclose(array, voxels() * 0.5 - 3)
    assert read_volume(patched(path, scl_slope=0)).array.dtype == np.int16
    assert read_volume(patched(path, scl_slope=1, scl_inter=0)).array.dtype == np.int16


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "f4", "f8"])
def test_big_endian_gives_the_same(tmp_path: Path, dtype: str) -> None:
    array = voxels(dtype)
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(np.dtype(dtype).newbyteorder(">"))
    header.set_data_shape(SHAPE)
    header.set_sform(AFFINE, 1)
    header["pixdim"][1:4] = 1.5, 2, 4
    header["vox_offset"], header["magic"] = 352, b"n+1"
    path = tmp_path / "big.nii"
    path.write_bytes(header.binaryblock + bytes(4) + array.astype(np.dtype(dtype).newbyteorder(">")).tobytes("F"))
    volume = read_volume(path)
    assert np.array_equal(volume.array, array)
    assert volume.array.dtype.isnative
    assert np.array_equal(volume.grid.affine, AFFINE)


def test_every_orientation_keeps_voxels_in_their_place(tmp_path: Path) -> None:
    """One bright voxel at a known point of the patient, in all 48 axis permutations and flips."""
    image = nib.Nifti1Image(voxels(), AFFINE)
    bright = AFFINE[:3, :3] @ [6, 4, 2] + AFFINE[:3, 3]
    for permutation in ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)):
        for bits in range(8):
            flips = [1 - 2 * (bits >> axis & 1) for axis in range(3)]
            turn: Any = np.array(list(zip(permutation, flips, strict=True)))
            turned = image.as_reoriented(turn)
            nib.save(turned, tmp_path / "turned.nii")
            volume = read_volume(tmp_path / "turned.nii")
            place = np.argwhere(volume.array == volume.array.max())
            assert np.allclose(voxel_to_ras(place, volume.grid), bright, atol=1e-4)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, HEADER + 3), value=st.integers(0, 255))
def test_a_damaged_header_byte_never_gives_an_unsound_volume(tmp_path: Path, place: int, value: int) -> None:
    content = bytearray(make(tmp_path / "a.nii").read_bytes())
    content[place] = value
    path = tmp_path / "b.nii"
    path.write_bytes(content)
    try:
        volume = read_volume(path)
    except SteadyError:
        return
    assert volume.array.shape == volume.grid.shape
    assert np.isfinite(volume.array).all()
    assert np.isfinite(volume.grid.affine).all()
    assert abs(np.linalg.det(volume.grid.affine)) > 0


def test_checksums_are_really_compared(tmp_path: Path) -> None:
    """A stream whose deflate data is sound but whose checksum belongs to other data."""
    content = make(tmp_path / "a.nii").read_bytes()
    pack = zlib.compressobj(6, zlib.DEFLATED, -15)
    body = pack.compress(content) + pack.flush()
    head = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
    wrong = (zlib.crc32(content) ^ 1).to_bytes(4, "little") + len(content).to_bytes(4, "little")
    (tmp_path / "b.nii.gz").write_bytes(head + body + wrong)
    assert code_of(lambda: read_volume(tmp_path / "b.nii.gz")) == "IMG_GZIP_CRC"

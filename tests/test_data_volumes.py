"""Masks and labels on disk, slice axes, pictures."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from steadysam.data import nifti_write
from steadysam.data.nifti_write import GEOMETRY_FIELDS
from steadysam.data.sniff import case_name
from steadysam.data.volumes import (
    choose_slice_axis,
    read_grid,
    read_label_map,
    read_probability,
    read_volume,
    select_label,
    write_mask,
    write_probability,
    write_volume,
)
from steadysam.errors import SteadyError
from steadysam.types import Grid, Mask

SHAPE = (7, 5, 3)


def oblique(spacing: tuple[float, float, float] = (0.7, 1.3, 4.2), flip: int = 1) -> np.ndarray:
    a, b = 0.3, -0.5
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    tilt = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ tilt @ np.diag([spacing[0] * flip, spacing[1], spacing[2]])
    affine[:3, 3] = 12.3, -45.6, 78.9
    return affine


def save(path: Path, array: np.ndarray, affine: np.ndarray, **fields: Any) -> Path:
    image = nib.Nifti1Image(array, affine)
    image.set_sform(affine, 2)
    image.set_qform(affine, 1)
    for name, value in fields.items():
        image.header[name] = value
    nib.save(image, path)
    return path


def blob(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(SHAPE) > 0.5


@pytest.mark.parametrize("flip", [1, -1])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_mask_carries_the_header_bit_for_bit(tmp_path: Path, flip: int, suffix: str) -> None:
    fields = {"descrip": b"Jane Doe", "cal_max": 900.0, "slice_duration": 3.0}
    path = save(tmp_path / "in.nii.gz", np.zeros(SHAPE, np.int16), oblique(flip=flip), **fields)
    source = read_volume(path)
    write_mask(tmp_path / f"out{suffix}", Mask(blob(), source.grid))
    written: Any = nib.load(tmp_path / f"out{suffix}")
    assert np.array_equal(np.asarray(written.dataobj), blob())
    assert written.get_data_dtype() == np.uint8
    assert np.array_equal(written.affine, source.grid.affine)
    for field in GEOMETRY_FIELDS:
        assert written.header[field].tobytes() == source.grid.header[field].tobytes()
    assert written.header["cal_max"] == 0
    assert b"Jane" not in bytes(written.header["descrip"])
    assert read_grid(tmp_path / f"out{suffix}").key() == source.grid.key()


def test_scaling_of_the_input_does_not_reach_the_mask(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.linspace(0, 1, 105).reshape(SHAPE).astype(np.float32), oblique())
    image.header.set_slope_inter(0.01, -5)
    image.set_data_dtype(np.int16)
    nib.save(image, tmp_path / "in.nii")
    write_mask(tmp_path / "out.nii", Mask(blob(), read_volume(tmp_path / "in.nii").grid))
    array, _ = read_label_map(tmp_path / "out.nii")
    assert set(np.unique(array)) == {0, 1}


def test_same_mask_same_bytes_and_no_leftovers(tmp_path: Path) -> None:
    grid = Grid(SHAPE, oblique())
    write_mask(tmp_path / "a.nii.gz", Mask(blob(), grid))
    write_mask(tmp_path / "b.nii.gz", Mask(blob(), grid))
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.nii.gz", "b.nii.gz"]


def test_read_back_that_differs_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid, path = Grid(SHAPE, oblique()), tmp_path / "a.nii.gz"
    write_mask(path, Mask(blob(0), grid))
    before = path.read_bytes()
    monkeypatch.setattr(nifti_write, "read_voxels", lambda *_: np.zeros(SHAPE, np.uint8))
    with pytest.raises(SteadyError) as caught:
        write_mask(path, Mask(blob(1), grid))
    assert (caught.value.code, caught.value.exit_code) == ("OUTPUT_VERIFY", 10)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_a_header_that_is_not_the_grids_is_refused(tmp_path: Path) -> None:
    grid = read_grid(save(tmp_path / "in.nii", np.zeros(SHAPE, np.uint8), oblique()))
    moved = Grid(grid.shape, grid.affine + np.eye(4, k=3), grid.slice_axis, grid.header)
    with pytest.raises(SteadyError, match="affine") as caught:
        write_mask(tmp_path / "out.nii", Mask(blob(), moved))
    assert caught.value.code == "OUTPUT_VERIFY"
    assert not (tmp_path / "out.nii").exists()


def test_two_dimensional_nifti_comes_back(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.zeros((6, 4), np.uint8), oblique())
    image.header["pixdim"][3] = 0
    (tmp_path / "in.nii").write_bytes(image.header.binaryblock + bytes(4 + 24))
    content = bytearray((tmp_path / "in.nii").read_bytes())
    header = nib.Nifti1Header(bytes(content[:348]), check=False)
    header["magic"], header["vox_offset"] = b"n+1", 352
    (tmp_path / "in.nii").write_bytes(header.binaryblock + bytes(content[348:]))
    grid = read_grid(tmp_path / "in.nii")
    assert grid.shape == (6, 4, 1)
    mask = np.random.default_rng(0).random((6, 4, 1)) > 0.5
    write_mask(tmp_path / "out.nii.gz", Mask(mask, grid))
    assert np.array_equal(read_label_map(tmp_path / "out.nii.gz")[0], mask)
    assert read_grid(tmp_path / "out.nii.gz").key() == grid.key()


def test_wrong_outputs_are_refused(tmp_path: Path) -> None:
    grid = Grid(SHAPE, oblique())
    for array, name, code in (
        (np.zeros((5, 7, 3), bool), "a.nii", "OUTPUT_SHAPE"),
        (np.zeros(SHAPE, bool), "a.png", "OUTPUT_NAME"),
    ):
        with pytest.raises(SteadyError) as caught:
            write_mask(tmp_path / name, Mask(array, grid))
        assert caught.value.code == code


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    dtype=st.sampled_from([np.int16, np.uint8, np.float32, np.int32, np.float64]),
    shape=st.tuples(*[st.integers(1, 9)] * 3),
    flip=st.sampled_from([1, -1]),
    seed=st.integers(0, 99),
)
def test_volume_round_trip(tmp_path: Path, dtype: Any, shape: tuple[int, int, int], flip: int, seed: int) -> None:
    array = (np.random.default_rng(seed).random(shape) * 200).astype(dtype)
    affine = oblique(flip=flip).astype(np.float32).astype(np.float64)
    write_volume(tmp_path / "a.nii.gz", array, Grid(shape, affine))
    volume = read_volume(tmp_path / "a.nii.gz")
    assert volume.array.dtype == dtype
    assert np.array_equal(volume.array, array)
    assert np.array_equal(volume.grid.affine, affine)


@pytest.mark.parametrize(
    "spacing, shape, axis",
    [
        ((1, 1, 5), (8, 9, 4), 2),
        ((1, 5, 1), (8, 9, 4), 1),
        ((5, 1, 1), (8, 9, 4), 0),
        ((1, 1, 1), (8, 9, 4), 2),
        ((1.005, 1, 1), (8, 9, 4), 2),
        ((1, 3, 3), (8, 9, 4), 2),
        ((1, 1, 0.5), (8, 9, 4), 2),
        ((1, 3, 1), (8, 9, 1), 2),
        ((1, 1, 3), (8, 1, 9), 1),
    ],
)
def test_slice_axis_rule(spacing: tuple[float, ...], shape: tuple[int, ...], axis: int) -> None:
    chosen, reason = choose_slice_axis(np.diag([*spacing, 1.0]), shape)
    assert chosen == axis
    assert reason


def test_slice_axis_flag_wins_and_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = save(tmp_path / "a.nii", np.zeros(SHAPE, np.uint8), oblique())
    with caplog.at_level("INFO"):
        assert read_volume(path, slice_axis=0).grid.slice_axis == 0
        assert read_grid(path).slice_axis == 2
    assert "largest spacing" in caplog.text
    with pytest.raises(SteadyError, match="SLICE_AXIS"):
        read_grid(path, slice_axis=3)


@pytest.mark.parametrize(
    "array, code",
    [
        (np.full(SHAPE, 0.999, np.float32), "LABEL_NONINTEGER"),
        (np.full(SHAPE, 1.18, np.float32), "LABEL_NONINTEGER"),
        (np.full(SHAPE, -1, np.int16), "LABEL_VALUES"),
        (np.full(SHAPE, 70000, np.int32), "LABEL_OVERFLOW"),
    ],
)
def test_label_values(tmp_path: Path, array: np.ndarray, code: str) -> None:
    with pytest.raises(SteadyError) as caught:
        read_label_map(save(tmp_path / "a.nii.gz", array, oblique()))
    assert caught.value.code == code


def test_label_maps_of_any_type(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).integers(0, 4, SHAPE)
    for dtype in (np.uint8, np.int16, np.float32, np.float64):
        array, grid = read_label_map(save(tmp_path / "a.nii", labels.astype(dtype), oblique()))
        assert array.dtype == np.uint8
        assert np.array_equal(array, labels)
        assert grid.shape == SHAPE
    array, _ = read_label_map(save(tmp_path / "a.nii", (labels * 300).astype(np.int16), oblique()))
    assert array.dtype == np.uint16
    assert np.array_equal(array, labels * 300)
    assert np.array_equal(select_label(labels, (1, 3)), (labels == 1) | (labels == 3))


def picture(path: Path, array: np.ndarray, **options: Any) -> Path:
    Image.fromarray(array).save(path, **options)
    return path


def test_grey_and_colour_pictures_have_x_first(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    colour = rng.integers(0, 256, (4, 6, 3), dtype=np.uint8)
    volume = read_volume(picture(tmp_path / "a.png", colour))
    assert volume.array.shape == (6, 4, 1, 3)
    assert np.array_equal(volume.slice_image(0), colour)
    assert not volume.has_physical_spacing
    assert np.array_equal(volume.grid.affine, np.eye(4))
    assert read_grid(tmp_path / "a.png").key() == volume.grid.key()
    deep = rng.integers(0, 65536, (4, 6), dtype=np.uint16)
    assert np.array_equal(read_volume(picture(tmp_path / "b.png", deep)).slice_image(0), deep)


def test_exif_rotation_is_applied_and_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    array = np.zeros((8, 16), np.uint8)
    array[:4, :4] = 255  # bright top left as stored
    exif = Image.Exif()
    exif[0x0112] = 6  # the viewer turns it a quarter to the right
    volume = read_volume(picture(tmp_path / "a.jpg", array, exif=exif, quality=95))
    assert volume.slice_image(0).shape == (16, 8)
    assert volume.slice_image(0)[1, 6] > 200
    assert read_grid(tmp_path / "a.jpg").shape == volume.grid.shape == (8, 16, 1)
    assert "a.jpg: turned as its EXIF data say" in caplog.text


def test_pictures_with_other_channels(tmp_path: Path) -> None:
    rgba = np.zeros((4, 6, 4), np.uint8)
    with pytest.raises(SteadyError, match="IMG_CHANNELS"):
        read_volume(picture(tmp_path / "a.png", rgba))
    indexed = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6) % 3, mode="P")
    indexed.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    indexed.save(tmp_path / "p.png")
    assert read_volume(tmp_path / "p.png").array.shape == (6, 4, 1, 3)
    labels, _ = read_label_map(tmp_path / "p.png")  # a palette's indices are the labels
    assert np.array_equal(labels[:, :, 0].T, np.arange(24).reshape(4, 6) % 3)
    with pytest.raises(SteadyError, match="LABEL_LOSSY"):
        read_label_map(picture(tmp_path / "a.jpg", rgba[..., 0]))
    with pytest.raises(SteadyError, match="IMG_CHANNELS"):
        read_label_map(picture(tmp_path / "c.png", np.random.default_rng(0).integers(0, 9, (4, 6, 3), np.uint8)))


def test_sixteen_bit_colour_is_refused(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png", np.zeros((4, 6, 3), np.uint8))
    content = bytearray(path.read_bytes())
    content[24] = 16
    path.write_bytes(content)
    with pytest.raises(SteadyError, match="16 bits per colour"):
        read_volume(path)


def test_damaged_pictures(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 48), dtype=np.uint8)
    for name in ("a.png", "a.jpg"):
        whole = picture(tmp_path / name, noise).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(SteadyError) as caught:
            read_volume(tmp_path / name)
        assert caught.value.code in ("IMG_TRUNCATED", "IMG_CORRUPT")
    whole = bytearray(picture(tmp_path / "b.png", noise).read_bytes())
    whole[len(whole) // 2] ^= 1
    (tmp_path / "b.png").write_bytes(whole)
    with pytest.raises(SteadyError):
        read_volume(tmp_path / "b.png")


def test_picture_limit(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png", np.zeros((40, 60), np.uint8))
    with pytest.raises(SteadyError) as caught:
        read_volume(path, max_bytes=1000)
    assert (caught.value.code, caught.value.exit_code) == ("IMG_TOO_LARGE", 7)


def test_mask_of_a_picture_can_be_written_and_read(tmp_path: Path) -> None:
    volume = read_volume(picture(tmp_path / "a.png", np.zeros((4, 6), np.uint8)))
    mask = np.random.default_rng(0).random((6, 4, 1)) > 0.5
    write_mask(tmp_path / "m.nii.gz", Mask(mask, volume.grid))
    back, grid = read_label_map(tmp_path / "m.nii.gz")
    assert np.array_equal(back, mask)
    assert grid.key() == volume.grid.key()


@pytest.mark.parametrize("most", [1.0, 0.002])
def test_probabilities_come_back(tmp_path: Path, most: float) -> None:
    """Also of a picture whose probabilities would all fit into 8 bits."""
    chances = np.random.default_rng(1).uniform(0, most, (4, 6, 3)).astype(np.float32)
    volume = Grid((4, 6, 3), np.diag([1.0, 2.0, 3.0, 1.0]), 2)
    picture_grid = Grid((4, 6, 1), np.eye(4), 2)
    for name, array, grid in (("a.nii.gz", chances, volume), ("a.png", chances[:, :, :1], picture_grid)):
        write_probability(tmp_path / name, array, grid)
        back, own = read_probability(tmp_path / name)
        assert back == pytest.approx(array, abs=1e-5)
        assert own.shape == grid.shape


def test_case_names() -> None:
    assert case_name("/x/CASE_12_0000.nii.gz") == "CASE_12"
    assert case_name("a.b.PNG") == "a.b"
    assert case_name("plain") == "plain"
    assert case_name("scan_2023.nii") == "scan_2023"


def test_reading_a_grid_loads_no_heavy_library(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii.gz", np.zeros(SHAPE, np.uint8), oblique())
    script = (
        "import sys; from steadysam.data.volumes import read_grid; read_grid(sys.argv[1]);"
        "heavy = {'torch', 'transformers', 'scipy.ndimage', 'SimpleITK', 'matplotlib'} & set(sys.modules);"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

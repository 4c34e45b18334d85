"""Drawn data sets: the same bytes for the same seed, objects that can be seen, and a start for a detector."""

from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from steadysam.data.cases import read_dataset
from steadysam.data.volumes import read_label_map, read_volume
from steadysam.errors import ConfigError, FileSystemError
from steadysam.files import read_json, sha256_file
from steadysam.synthetic.dataset import draw_pictures
from toys import steadysam


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """42 pictures of 48 px; look at them, do not write there."""
    return draw_pictures(tmp_path_factory.mktemp("draw") / "Dataset900_Drawn", 42, 7, size=48)


def labels_of(case):
    """(I, J, 1) and its grid."""
    assert case.label is not None
    return read_label_map(case.label)


def test_a_data_set_with_a_test_part(drawn):
    data = read_dataset(drawn)
    assert data.labels == {"background": 0, "object": 1}
    assert [case.name for case in data.part("Ts")] == ["drawn_00001", "drawn_00021", "drawn_00041"]
    assert len(data.part("Tr")) == 39
    for case in data.cases:
        volume, (mask, grid) = read_volume(case.image), labels_of(case)
        assert volume.array.shape == (48, 48, 1, 3)
        assert grid.shape == (48, 48, 1)
        assert set(np.unique(mask)) == {0, 1}


def test_objects_are_seen_where_the_mask_is(drawn):
    """Across a mask's border pixels differ more than elsewhere, in x and in y: image and mask are not transposed."""
    ratios = []
    for case in read_dataset(drawn).part("Tr"):
        image = read_volume(case.image).array[:, :, 0].astype(float).sum(2)
        mask = labels_of(case)[0][:, :, 0] > 0
        for axis in (0, 1):
            step, border = np.abs(np.diff(image, axis=axis)), np.diff(mask.astype(int), axis=axis) != 0
            if border.sum() > 10:
                ratios.append(step[border].mean() / max(step[~border].mean(), 1e-6))
    assert np.median(ratios) > 1.5, np.median(ratios)


def test_no_object_is_a_speck(drawn):
    for case in read_dataset(drawn).cases:
        found: Any = ndimage.label(labels_of(case)[0][:, :, 0])
        assert np.bincount(found[0].ravel())[1:].max() >= 0.001 * 48 * 48, case.name


def test_the_same_seed_draws_the_same_and_a_smaller_set_is_its_beginning(drawn, tmp_path):
    again = draw_pictures(tmp_path / "again", 20, 7, size=48)
    other = draw_pictures(tmp_path / "other", 20, 8, size=48)
    for number in range(20):
        part, name = "Ts" if number == 1 else "Tr", f"drawn_{number:05d}"
        for file in (f"images{part}/{name}_0000.png", f"labels{part}/{name}.png"):
            assert sha256_file(again / file) == sha256_file(drawn / file)
        image = f"images{part}/{name}_0000.png"
        assert sha256_file(other / image) != sha256_file(drawn / image)


def test_errors_leave_nothing(drawn, tmp_path):
    for count, size in ((1, 48), (9, 31), (9, 33)):
        with pytest.raises(ConfigError, match="DRAW_COUNT"):
            draw_pictures(tmp_path / "no", count, 0, size=size)
    assert not (tmp_path / "no").exists()
    with pytest.raises(FileSystemError, match="FS_EXISTS"):
        draw_pictures(drawn, 4, 0, size=48)


def test_a_detector_starts_from_drawn_pictures(toy_dataset, tmp_path, capsys):
    """The commands of the help, with a detector of a moment."""
    drawn, stage = tmp_path / "Dataset900_Drawn", "method.detector.student_stage"
    assert steadysam("draw", "-o", drawn, "--images", 12, "--size", 64, "--seed", 3) == 0
    assert "12 pictures" in capsys.readouterr().out
    small = ("method.detector.image_size=64", "method.detector.close_mosaic=1", "compute.threads=1")
    settings = [word for text in (*small, f"{stage}.warmup_steps=0") for word in ("--set", text)]
    words = ("--method", "detector", "--device", "cpu", "--size", 32, *settings)
    assert steadysam("train", drawn, *words, "--set", f"{stage}.epochs=1", "-o", tmp_path / "drawn") == 0
    start = ("--set", f"start.run={tmp_path / 'drawn'}", "--set", f"{stage}.epochs=0")
    assert steadysam("train", toy_dataset, *words, *start, "-o", tmp_path / "boxes") == 0
    first, second = (read_json(tmp_path / name / "run.json")["weights_sha256"] for name in ("drawn", "boxes"))
    assert first == second, "no epoch was asked for: the weights are those of the start"
    assert steadysam("draw", "-o", drawn, "--images", 12) == 8

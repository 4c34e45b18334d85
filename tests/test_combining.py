"""Binary masks of several structures, put together into label maps."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest

from conftest import make_affine
from steadysam.cli import app
from steadysam.combining import Structure, combine_folders, combine_masks
from steadysam.data.volumes import read_label_map, write_mask, write_probability, write_volume
from steadysam.errors import BatchError, FileSystemError, InputError, UsageError
from steadysam.files import read_json, write_json, write_text
from steadysam.types import Grid, Mask
from toys import steadysam


def grid(shape=(7, 5, 3), spacing=(1.5, 0.7, 4.0)) -> Grid:
    return Grid(shape, make_affine(spacing, degrees=17), 2)


def mask(*corner: int, on: Grid | None = None) -> Mask:
    array = np.zeros((on or grid()).shape, bool)
    array[corner[0] : corner[0] + 3, corner[1] : corner[1] + 2] = True
    return Mask(array, on or grid())


def folders(root: Path) -> list[Structure]:
    for name, corner in (("a", (0, 0)), ("b", (2, 1))):
        (root / name).mkdir()
        for case in ("one", "two"):
            write_mask(root / name / f"{case}.nii.gz", mask(*corner))
    return [Structure("a", 3, root / "a"), Structure("b", 1, root / "b")]


def test_the_first_structure_keeps_disputed_voxels():
    first, second = mask(0, 0).array, mask(2, 1).array
    labels, disputed = combine_masks([first, second], [3, 1])
    assert disputed == int((first & second).sum()) == 3
    assert (labels[first] == 3).all()
    assert (labels[second & ~first] == 1).all()
    assert not labels[~first & ~second].any()


def test_the_most_probable_structure_keeps_disputed_voxels():
    first, second = mask(0, 0).array, mask(2, 1).array
    both = np.argwhere(first & second)
    chances = [np.full(first.shape, 0.8, np.float32), np.full(first.shape, 0.7, np.float32)]
    chances[1][tuple(both[1])] = 0.9
    chances[1][tuple(both[2])] = 0.8
    labels, disputed = combine_masks([first, second], [3, 1], chances)
    assert disputed == 3
    assert [int(labels[tuple(place)]) for place in both] == [3, 1, 3], "of equal ones the first"
    chances[1][:] = 1.0
    assert (combine_masks([first, second], [3, 1], chances)[0][second] == 1).all()
    assert not labels[~first & ~second].any()


def test_probabilities_of_files(tmp_path, capsys):
    a, b = folders(tmp_path)
    words = ("combine", f"3={a.folder}", f"1={b.folder}", "-o", tmp_path / "out", "--disputed", "probability")
    assert steadysam(*words) == 6
    assert "no probability of 3" in capsys.readouterr().err
    for structure, chance in ((a, 0.6), (b, 0.7)):
        for case in ("one", "two"):
            array = np.full(grid().shape, chance)
            write_probability(structure.folder / "probabilities" / f"{case}.nii.gz", array, grid())
    assert steadysam(*words) == 0
    labels, _ = read_label_map(tmp_path / "out" / "one.nii.gz")
    assert (labels[mask(2, 1).array] == 1).all()
    assert read_json(tmp_path / "out" / "combined.json")["disputed"] == "probability"
    write_probability(a.folder / "probabilities" / "one.nii.gz", np.ones((7, 5, 4)), grid((7, 5, 4)))
    assert steadysam(*words) == 6
    assert "LABEL_GRID" in capsys.readouterr().err


def test_folders_become_label_maps_on_the_same_grid(tmp_path):
    record = combine_folders(folders(tmp_path), tmp_path / "out")
    labels, found = read_label_map(tmp_path / "out" / "two.nii.gz")
    assert sorted(np.unique(labels)) == [0, 1, 3]
    np.testing.assert_allclose(found.affine, grid().affine, atol=1e-5)
    assert record == read_json(tmp_path / "out" / "combined.json")
    assert record["labels"] == {"a": 3, "b": 1}
    assert record["cases"]["one"]["disputed_voxels"] == 3


def test_masks_of_pictures_become_a_picture(tmp_path):
    plane = Grid((7, 5, 1), np.eye(4), 2)
    for name, corner in (("a", (0, 0)), ("b", (2, 1))):
        (tmp_path / name).mkdir()
        write_mask(tmp_path / name / "photo.png", mask(*corner, on=plane))
    structures = [Structure("a", 3, tmp_path / "a"), Structure("b", 1, tmp_path / "b")]
    combine_folders(structures, tmp_path / "out")
    labels, found = read_label_map(tmp_path / "out" / "photo.png")
    assert found.shape == (7, 5, 1)
    assert [int(labels[at]) for at in ((0, 0, 0), (2, 1, 0), (4, 2, 0), (6, 4, 0))] == [3, 3, 1, 0]


def test_a_png_keeps_no_geometry(tmp_path):
    with pytest.raises(InputError) as caught:
        write_mask(tmp_path / "volume.png", mask(0, 0))
    assert caught.value.code == "OUTPUT_NAME"
    assert not list(tmp_path.iterdir())


def test_a_case_that_cannot_be_combined_stops_no_other(tmp_path):
    structures = folders(tmp_path)
    (tmp_path / "b" / "one.nii.gz").unlink()
    write_mask(tmp_path / "b" / "three.nii.gz", mask(0, 0, on=grid((7, 5, 4))))
    write_mask(tmp_path / "a" / "three.nii.gz", mask(0, 0))
    with pytest.raises(BatchError, match="2 of 3 cases could not be combined") as caught:
        combine_folders(structures, tmp_path / "out")
    assert caught.value.code == "COMBINE_FAILED"
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["combined.json", "two.nii.gz"]
    failures = read_json(tmp_path / "out" / "combined.json")["failures"]
    assert {name: error["code"] for name, error in failures.items()} == {
        "one": "COMBINE_MISSING",
        "three": "LABEL_GRID",
    }


def test_label_maps_of_an_earlier_call_are_told_of_and_the_fix_is_that_of_the_fault(tmp_path, caplog):
    structures, out = folders(tmp_path), tmp_path / "out"
    combine_folders(structures, out)
    assert "earlier call" not in caplog.text
    with pytest.raises(BatchError) as caught:
        combine_folders(structures, out, disputed="probability")
    assert caught.value.fix == "predict with --probabilities, or let the order decide"
    assert "holds label maps of an earlier call, which evaluate would score: one, two" in caplog.text


def test_the_output_is_none_of_the_inputs(tmp_path):
    a, b = folders(tmp_path)
    before = {path.name: path.read_bytes() for path in a.folder.iterdir()}
    with pytest.raises(InputError, match="COMBINE_OUTPUT"):
        combine_folders([a, b], a.folder)
    assert {path.name: path.read_bytes() for path in a.folder.iterdir()} == before


def test_a_run_is_not_overwritten(tmp_path):
    a, b = folders(tmp_path)
    for name in ("config.toml", "run.json"):
        write_text(tmp_path / "run" / name, "")
    with pytest.raises(FileSystemError, match="OUTPUT_RUN"):
        combine_folders([a, b], tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["config.toml", "run.json"]


def test_numbers_must_differ(tmp_path):
    a, b = folders(tmp_path)
    with pytest.raises(InputError, match="number of its own"):
        combine_folders([a, Structure("b", 3, b.folder)], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_command(tmp_path, capsys):
    folders(tmp_path)
    app(
        ["combine", f"3={tmp_path / 'a'}", f"1={tmp_path / 'b'}", "-o", str(tmp_path / "out")],
        result_action="return_value",
    )
    assert "2 label maps" in capsys.readouterr().out
    with pytest.raises(UsageError, match="NAME=FOLDER"):
        app(["combine", "a", "-o", str(tmp_path / "no")], result_action="return_value")
    with pytest.raises(UsageError, match="data set"):
        app(["combine", f"LV={tmp_path / 'a'}", "-o", str(tmp_path / "no")], result_action="return_value")


def test_swapped_folders_are_refused_unless_numbers_are_given(tmp_path):
    a, b = folders(tmp_path)
    write_json(a.folder / "run.json", {"config": {"data": {"label": "a"}}})
    write_json(b.folder / "run.json", {"config": {"data": {"label": "b"}}})
    combine_folders([a, b], tmp_path / "right")
    swapped = [Structure("a", 3, b.folder), Structure("b", 1, a.folder)]
    with pytest.raises(InputError, match="COMBINE_OTHER_LABEL") as caught:
        combine_folders(swapped, tmp_path / "wrong")
    assert (caught.value.seen, caught.value.expected) == ("trained for b", "a")
    assert not (tmp_path / "wrong").exists()
    combine_folders([Structure("3", 3, b.folder), Structure("1", 1, a.folder)], tmp_path / "meant")
    write_json(b.folder / "run.json", {"config": {"data": {"label": "1"}}})
    combine_folders([a, b], tmp_path / "by number")


def test_a_label_map_is_no_mask_of_one_structure(tmp_path):
    a, b = folders(tmp_path)
    combine_folders([a, b], tmp_path / "all")
    with pytest.raises(BatchError, match="COMBINE_FAILED") as caught:
        combine_folders([Structure("x", 7, tmp_path / "all")], tmp_path / "again")
    assert "COMBINE_MASK" in str(caught.value.seen)


@pytest.fixture
def label_maps(tmp_path) -> Path:
    """A data set of labels a = 3 and b = 1, and predictions: case one as it is, of case two only a, moved."""
    data = tmp_path / "Dataset001_Two"
    combine_folders(folders(tmp_path), data / "labelsTs")
    (data / "labelsTs" / "combined.json").unlink()
    for case in ("one", "two"):
        (data / "imagesTs").mkdir(exist_ok=True)
        (data / "imagesTs" / f"{case}_0000.nii.gz").touch()
    labels = {"background": 0, "b": 1, "a": 3}
    write_json(data / "dataset.json", {"labels": labels, "file_ending": ".nii.gz", "channel_names": {"0": "MRI"}})
    pred = tmp_path / "pred"
    pred.mkdir()
    shutil.copy(data / "labelsTs" / "one.nii.gz", pred)
    write_volume(pred / "two.nii.gz", (3 * mask(0, 1).array).astype(np.uint8), grid())
    return pred


def test_each_label_of_label_maps_is_scored(label_maps, tmp_path, capsys):
    out = tmp_path / "report"
    labels = tmp_path / "Dataset001_Two" / "labelsTs"
    assert steadysam("evaluate", label_maps, labels, "--label", "each", "-o", out) == 0
    rows = list(csv.DictReader((out / "labels.csv").open(encoding="utf-8")))
    assert [(row["label"], row["n_cases"]) for row in rows] == [("b", "2"), ("a", "2")]
    dice = {name: read_json(out / name / "metrics.json")["summary"]["scores"]["volume_dice"]["mean"] for name in "ab"}
    assert dice["b"] == 0.5, "case two holds one number, 3, which is not b"
    assert 0.5 < dice["a"] < 1
    assert [float(row["volume_dice"]) for row in rows] == [dice["b"], dice["a"]]
    assert "volume_dice" in capsys.readouterr().out
    assert {path.name for path in out.iterdir()} == {"a", "b", "labels.csv"}


def test_masks_of_one_label_are_not_scored_by_each(label_maps, tmp_path, capsys):
    labels = tmp_path / "Dataset001_Two" / "labelsTs"
    write_json(label_maps / "run.json", {"config": {"data": {"label": "a"}}})
    assert steadysam("evaluate", label_maps, labels, "--label", "each", "-o", tmp_path / "out") == 2
    assert "masks of one label, a" in capsys.readouterr().err
    (label_maps / "run.json").unlink()
    shutil.move(labels, tmp_path / "alone")
    assert steadysam("evaluate", label_maps, tmp_path / "alone", "--label", "each", "-o", tmp_path / "out") == 2
    assert "--dataset FOLDER" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

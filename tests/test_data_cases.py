"""Data set folders: nnU-Net raw and MSD, and what is wrong with bad ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from steadysam.data.cases import Dataset, check_pair, check_values, image_cases, read_dataset, resolve_label
from steadysam.data.slices import fit_masks, prepare_stack, unfit_masks
from steadysam.data.volumes import read_grid, read_label_map, read_volume, select_label
from steadysam.errors import InputError, SteadyError
from steadysam.files import read_json, write_json
from steadysam.types import Grid, Preprocess

LABELS = {"background": 0, "RV": 1, "MYO": 2, "LV": 3}


def raw(folder: Path, tr: str = "ABC", ts: str = "D", labels: Any = None, **extra: Any) -> Path:
    """An nnU-Net folder whose images are empty files: they are listed, not opened."""
    for part, names in (("Tr", tr), ("Ts", ts)):
        for kind in ("images", "labels"):
            (folder / f"{kind}{part}").mkdir(parents=True, exist_ok=True)
        for name in names:
            (folder / f"images{part}" / f"{name}_0000.nii.gz").touch()
            (folder / f"labels{part}" / f"{name}.nii.gz").touch()
    info = {"labels": labels or LABELS, "file_ending": ".nii.gz", "channel_names": {"0": "MRI"}, **extra}
    (folder / "dataset.json").write_text(json.dumps(info))
    return folder


def code_of(call: Callable[[], object]) -> str:
    with pytest.raises(SteadyError) as caught:
        call()
    return caught.value.code


def test_raw_folder(tmp_path: Path) -> None:
    (raw(tmp_path, name="hearts", slice_axis=2) / "imagesTr" / "._A_0000.nii.gz").touch()
    (tmp_path / "imagesTr" / ".DS_Store").touch()
    (tmp_path / "imagesTr" / "A_0001.nii.gz").touch()
    dataset = read_dataset(tmp_path)
    assert [(c.name, c.part) for c in dataset.cases] == [("A", "Tr"), ("B", "Tr"), ("C", "Tr"), ("D", "Ts")]
    assert dataset.cases[0].label == tmp_path / "labelsTr" / "A.nii.gz"
    assert dataset.cases[0].patient == "A"
    assert (dataset.name, dataset.slice_axis) == ("hearts", 2)
    assert dataset.labels == LABELS


def test_other_channel_and_other_label_ending(tmp_path: Path) -> None:
    raw(tmp_path, tr="", ts="", file_ending=".jpg", label_file_ending=".png")
    for name in ("x_0000.jpg", "x_0001.jpg"):
        (tmp_path / "imagesTr" / name).touch()
    (tmp_path / "labelsTr" / "x.png").touch()
    (case,) = read_dataset(tmp_path, channel=1).cases
    assert case.image.name == "x_0001.jpg"
    assert case.label is not None
    assert case.label.name == "x.png"


def test_unlabelled_test_images_are_allowed(tmp_path: Path) -> None:
    raw(tmp_path, ts="DE")
    for name in "DE":
        (tmp_path / "labelsTs" / f"{name}.nii.gz").unlink()
    assert [case.label for case in read_dataset(tmp_path).part("Ts")] == [None, None]


@pytest.mark.parametrize("gone", ["labelsTr/A.nii.gz", "imagesTr/B_0000.nii.gz", "labelsTs/D.nii.gz"])
def test_pairs(tmp_path: Path, gone: str) -> None:
    raw(tmp_path, ts="DE")
    (tmp_path / gone).unlink()
    with pytest.raises(SteadyError) as caught:
        read_dataset(tmp_path)
    assert caught.value.code == "DATA_PAIRS"
    assert gone[9] in str(caught.value.seen)


def test_folders_that_are_no_data_sets(tmp_path: Path) -> None:
    assert code_of(lambda: read_dataset(tmp_path)) == "DATA_NO_JSON"
    raw(tmp_path, tr="", ts="")
    assert code_of(lambda: read_dataset(tmp_path)) == "DATA_EMPTY"
    (tmp_path / "dataset.json").write_text('{"labels": {}}')
    assert code_of(lambda: read_dataset(tmp_path)) == "DATA_JSON"
    (tmp_path / "dataset.json").write_text('{"labels": ')
    assert code_of(lambda: read_dataset(tmp_path)) == "JSON_SYNTAX"
    (tmp_path / "dataset.json").write_text("[]")
    assert code_of(lambda: read_dataset(tmp_path)) == "DATA_JSON"


def test_duplicate_names(tmp_path: Path) -> None:
    assert code_of(lambda: read_dataset(raw(tmp_path / "a", tr="AB", ts="A"))) == "DATA_DUPLICATE_ID"
    assert code_of(lambda: read_dataset(raw(tmp_path / "b", tr="Aa"))) == "DATA_DUPLICATE_ID"


def test_patients(tmp_path: Path) -> None:
    raw(tmp_path)
    (tmp_path / "cases.csv").write_text("case,site\nA,x\n")  # says nothing about patients
    assert [case.patient for case in read_dataset(tmp_path).cases] == list("ABCD")
    (tmp_path / "cases.csv").write_text("case,site,patient\nA,x,p1\nB,x,p1\nC,y,p2\nD,y,p3\n", encoding="utf-8-sig")
    assert [case.patient for case in read_dataset(tmp_path).cases] == ["p1", "p1", "p2", "p3"]
    (tmp_path / "patients.csv").write_text("case,patient\nA,q\nB,r\nC,s\nD,t\n")  # wins
    assert [case.patient for case in read_dataset(tmp_path).cases] == list("qrst")
    for wrong in ("case,patient\nA,q\n", "case,patient\nA,q\nA,r\n", "a,b\n1,2\n", "case,patient\nA,\n"):
        (tmp_path / "patients.csv").write_text(wrong)
        assert code_of(lambda: read_dataset(tmp_path)) == "DATA_PATIENTS"


@pytest.mark.parametrize("head", ["case;patient", "case\tpatient", " Case , Patient ", "patient,case"])
def test_patients_in_a_table_as_spreadsheets_write_it(tmp_path: Path, head: str) -> None:
    separator = next(sign for sign in ";\t," if sign in head)
    pairs = ["Ap", "Bp", "Cq", "Dr"]
    rows = [separator.join(reversed(pair) if head.startswith("patient") else pair) for pair in pairs]
    (raw(tmp_path) / "cases.csv").write_text("\n".join([head, *rows, "", separator]) + "\n", "utf-8")
    assert [case.patient for case in read_dataset(tmp_path).cases] == list("ppqr")


@pytest.mark.parametrize("text", ["case,patient_id\nA,p\n", "name;Patient\nA;p\n", "case,patient\n"])
def test_a_table_that_speaks_of_patients_is_not_passed_over(tmp_path: Path, text: str) -> None:
    (raw(tmp_path) / "cases.csv").write_text(text, "utf-8")
    assert code_of(lambda: read_dataset(tmp_path)) == "DATA_PATIENTS"


def test_a_table_without_patients_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    (raw(tmp_path) / "cases.csv").write_text("case,site\nA,x\n", "utf-8")
    read_dataset(tmp_path)
    assert "cases.csv has no column of patients: every case counts as a patient of its own" in caplog.text


def test_a_label_of_a_picture_that_lies_on_its_side() -> None:
    def grid(*shape: int) -> Grid:
        return Grid(shape, np.eye(4), 2)  # pyright: ignore

    for image, label, said in (
        (grid(6, 4, 1), grid(4, 6, 1), "EXIF"),
        (grid(6, 4, 1), grid(5, 4, 1), "resample"),
        (grid(6, 4, 3), grid(4, 6, 3), "resample"),
    ):
        with pytest.raises(InputError) as caught:
            check_pair(image, label)
        assert said in (caught.value.fix or "")


def test_msd(tmp_path: Path) -> None:
    for name in ("imagesTr/a.nii.gz", "labelsTr/a.nii.gz", "imagesTs/b.nii.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    info: dict[str, Any] = {
        "name": "Hippocampus",
        "labels": {"0": "background", "1": "anterior", "2": "posterior"},
        "training": [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}],
        "test": ["./imagesTs/b.nii.gz"],
    }
    (tmp_path / "dataset.json").write_text(json.dumps(info))
    dataset = read_dataset(tmp_path)
    assert [(c.name, c.part, c.label is None) for c in dataset.cases] == [
        ("a", "Tr", False),
        ("b", "Ts", True),
    ]
    assert dataset.labels == {"background": 0, "anterior": 1, "posterior": 2}
    assert resolve_label(dataset, "posterior") == (2,)
    for entry, code in (
        ({"image": "./imagesTr/none.nii.gz", "label": "./labelsTr/a.nii.gz"}, "DATA_PAIRS"),
        ({"image": "./imagesTr/a.nii.gz"}, "DATA_PAIRS"),
        ({"image": "../../a.nii.gz", "label": "./labelsTr/a.nii.gz"}, "DATA_PATH"),
        ({"label": "x"}, "DATA_JSON"),
    ):
        (tmp_path / "dataset.json").write_text(json.dumps({**info, "training": [entry]}))
        assert code_of(lambda: read_dataset(tmp_path)) == code


@pytest.mark.parametrize(
    "label, values",
    [("LV", (3,)), ("3", (3,)), ("RV+MYO", (1, 2)), ("LV + 1", (1, 3)), ("all", (1, 2, 3)), ("lv", (3,))],
)
def test_label_names(tmp_path: Path, label: str, values: tuple[int, ...]) -> None:
    assert resolve_label(read_dataset(raw(tmp_path)), label) == values


@pytest.mark.parametrize("label", ["LA", "0", "background", "7", "", "RV+", "ignore"])
def test_unknown_labels_list_what_exists(tmp_path: Path, label: str) -> None:
    dataset = read_dataset(raw(tmp_path, labels={**LABELS, "ignore": 4}))
    with pytest.raises(SteadyError, match=r"RV \(1\), MYO \(2\), LV \(3\)") as caught:
        resolve_label(dataset, label)
    assert caught.value.code == "LABEL_UNKNOWN"


def test_a_name_with_a_plus_is_a_name(tmp_path: Path) -> None:
    dataset = read_dataset(raw(tmp_path, labels={"background": 0, "A": 1, "A+B": 2, "B": 3, "lesion+": 4, " pad": 5}))
    assert [resolve_label(dataset, label) for label in ("A+B", "B+A", "lesion+", " pad")] == [(2,), (1, 3), (4,), (5,)]


def test_regions(tmp_path: Path) -> None:
    dataset = read_dataset(raw(tmp_path, labels={"background": 0, "whole": [1, 2, 3], "core": [2, 3]}))
    assert resolve_label(dataset, "core") == (2, 3)
    assert resolve_label(dataset, "all") == (1, 2, 3)
    assert resolve_label(dataset, "1") == (1,)


def test_undeclared_values() -> None:
    dataset = Dataset("x", Path("x"), LABELS, ())
    check_values(dataset, np.array([0, 1, 3]))
    with pytest.raises(SteadyError, match="255: 2"):
        check_values(dataset, np.array([0, 255, 255]))


def test_image_and_label_grids() -> None:
    affine = np.diag([1.0, 1.5, 4, 1])
    image = Grid((5, 6, 7), affine)
    check_pair(image, Grid((5, 6, 7), affine + 1e-5))
    shifted = affine.copy()
    shifted[0, 3] = 0.5
    flipped = affine @ np.diag([-1, 1, 1, 1])
    wrong = (Grid((6, 5, 7), affine), Grid((5, 6, 7), shifted), Grid((5, 6, 7), flipped))
    for label in wrong:
        with pytest.raises(SteadyError, match="spacing") as caught:
            check_pair(image, label)
        assert caught.value.code == "LABEL_GRID"


def test_images_of_a_plain_folder(tmp_path: Path) -> None:
    for name in ("b.nii.gz", "a.mha", "notes.txt", ".hidden.nii"):
        (tmp_path / name).touch()
    assert image_cases(tmp_path) == [("a", tmp_path / "a.mha"), ("b", tmp_path / "b.nii.gz")]
    assert image_cases(tmp_path / "b.nii.gz") == [("b", tmp_path / "b.nii.gz")]
    (tmp_path / "B.nii").touch()
    assert code_of(lambda: image_cases(tmp_path)) == "DATA_DUPLICATE_ID"
    assert code_of(lambda: image_cases(tmp_path / "none")) == "FILE_MISSING"
    numbered = raw(tmp_path / "set") / "imagesTr"
    (numbered / "A_0001.nii.gz").touch()
    assert [name for name, _ in image_cases(numbered)] == ["A", "B", "C"]
    assert [path.name for _, path in image_cases(numbered, channel=1)] == ["A_0001.nii.gz"]
    assert code_of(lambda: image_cases(numbered, channel=2)) == "DATA_EMPTY"


def names_of(folder: Path, *names: str) -> list[str]:
    folder.mkdir()
    for name in names:
        (folder / name).touch()
    return [name for name, _ in image_cases(folder)]


def test_frames_of_a_video_are_cases_and_no_channels(tmp_path: Path) -> None:
    frames = [f"frame_{n:04d}.jpg" for n in range(4)]
    assert names_of(tmp_path / "from 0", *frames) == ["frame_0000", "frame_0001", "frame_0002", "frame_0003"]
    assert names_of(tmp_path / "from 1", *frames[1:]) == ["frame_0001", "frame_0002", "frame_0003"]
    assert names_of(tmp_path / "volumes", "p_0007.nii.gz", "p_0008.nii.gz") == ["p_0007", "p_0008"]


def test_no_image_vanishes_beside_a_numbered_one(tmp_path: Path) -> None:
    assert names_of(tmp_path / "mixed", "a.jpg", "b_0000.jpg") == ["a", "b"]
    assert names_of(tmp_path / "alike", "b.jpg", "b_0000.jpg") == ["b", "b_0000"]
    assert names_of(tmp_path / "nnU-Net", "a_0000.png", "b_0000.png") == ["a", "b"]
    assert names_of(tmp_path / "one channel", "a_0001.nii.gz", "b_0001.nii.gz") == ["a", "b"]


def test_other_channels_are_left_out_aloud(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    numbered = raw(tmp_path / "set")
    (numbered / "imagesTr" / "A_0001.nii.gz").touch()
    for read in (lambda: image_cases(numbered / "imagesTr"), lambda: read_dataset(numbered)):
        caplog.clear()
        read()
        assert "imagesTr: channel 0 is taken, 1 files of other channels are not" in caplog.text
    with pytest.raises(SteadyError, match="no image of channel 2"):
        image_cases(numbered / "imagesTr", channel=2)


def test_unpaired_files_say_which_endings_are_there(tmp_path: Path) -> None:
    folder = raw(tmp_path / "set")
    for path in (folder / "labelsTr").iterdir():
        path.rename(path.with_name(path.name.removesuffix(".nii.gz") + ".png"))
    with pytest.raises(SteadyError, match="DATA_PAIRS") as caught:
        read_dataset(folder)
    said = str(caught.value)
    assert "expected imagesTr/NAME_0000.nii.gz with labelsTr/NAME.nii.gz" in said
    assert "(imagesTr has 3 x .nii.gz, labelsTr has 3 x .png)" in said
    assert "label_file_ending" in said


def test_the_name_of_a_channel(tmp_path: Path) -> None:
    data = read_dataset(raw(tmp_path / "set"))
    assert data.channel_name(7) == ""
    for names, expected in (({"0": "CT"}, "CT"), ("MRI", "MRI"), (None, "")):
        write_json(data.folder / "dataset.json", {**read_json(data.folder / "dataset.json"), "channel_names": names})
        assert read_dataset(data.folder).channel_name(0) == expected


@pytest.mark.real_data
def test_real_data_sets(real_data: Path) -> None:
    """Every data set can be read; its first case becomes a stack and its mask comes back whole."""
    folders = sorted(path.parent for path in real_data.glob("*/dataset.json"))
    assert folders
    for folder in folders:
        dataset = read_dataset(folder)
        case = dataset.cases[0]
        volume = read_volume(case.image, slice_axis=dataset.slice_axis)
        assert case.label is not None
        labels, grid = read_label_map(case.label, slice_axis=dataset.slice_axis)
        check_pair(volume.grid, grid, case.label)
        check_values(dataset, labels)
        assert read_grid(case.image, dataset.slice_axis).key() == volume.grid.key()
        mask = select_label(labels, resolve_label(dataset, "all"))
        assert mask.any()
        stack = prepare_stack(volume, Preprocess(size=max(volume.grid.slice_shape), fit="pad"))
        fitted = fit_masks(mask, volume.grid, stack.frame)
        assert np.array_equal(unfit_masks(fitted, volume.grid, stack.frame), mask)
        assert stack.images[fitted.any(axis=(1, 2))].std() > 0.05


def test_images_without_their_channel_number_are_said_to_lack_it(toy_dataset, tmp_path):
    folder = Path(shutil.copytree(toy_dataset, tmp_path / "Dataset003_Bare"))
    for path in (folder / "imagesTr").iterdir():
        path.rename(path.with_name(path.name.replace("_0000", "")))
    with pytest.raises(InputError, match=r"DATA_PAIRS.*5 images lack the channel number in their names \(NAME_0000"):
        read_dataset(folder)

"""Export to nnU-Net: names, grids bit for bit, one binary target, our split; nnU-Net itself agrees where it is here."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from steadysam.config import DataConfig
from steadysam.data.cases import read_dataset, resolve_label
from steadysam.data.splits import split_cases
from steadysam.data.volumes import read_label_map, read_volume
from steadysam.errors import ConfigError, InputError, UsageError
from steadysam.external.nnunet.environment import Environment, environment_folder
from steadysam.external.nnunet.export import export_dataset, target_name
from steadysam.files import read_json, write_json
from toys import leftovers

REAL = os.environ.get("STEADYSAM_NNUNET_ENV")  # read before a test's own home takes its place
IN_HOME = environment_folder()


@pytest.fixture(scope="module")
def exported(toy_dataset, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("nnUNet_raw") / "Dataset501_Blob"
    export_dataset(DataConfig(dataset=str(toy_dataset), label="blob"), folder)
    return folder


@pytest.fixture
def pictures(tmp_path) -> Path:
    """Five colour JPEGs of 30 x 20 pixels with labels 0, 1 and 2 as PNG; two belong to one patient."""
    folder = tmp_path / "Dataset002_Pictures"
    rng = np.random.default_rng(0)
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    for n in range(5):
        mask = np.zeros((20, 30), np.uint8)
        mask[4:10, 5 + n : 20] = 1
        mask[12:16, 2:8] = 2
        pixels = rng.integers(0, 90, (20, 30, 3), dtype=np.uint8) + 80 * (mask[:, :, None] > 0).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "imagesTr" / f"p{n}_0000.jpg", quality=95)
        Image.fromarray(mask).save(folder / "labelsTr" / f"p{n}.png")
    labels = {"background": 0, "a": 1, "b": 2}
    info = {"channel_names": {"0": "rgb"}, "labels": labels, "file_ending": ".jpg", "label_file_ending": ".png"}
    write_json(folder / "dataset.json", info)
    rows = "".join(f"p{n},{'twin' if n < 2 else n}\n" for n in range(5))
    (folder / "patients.csv").write_text("case,patient\n" + rows, "utf-8")
    return folder


def test_names_grids_and_values_of_volumes(exported, toy_dataset):
    source = read_dataset(toy_dataset)
    for case in source.cases:
        image = read_volume(exported / f"images{case.part}" / f"{case.name}_0000.nii.gz")
        wanted = read_volume(case.image)
        assert np.array_equal(image.array, wanted.array)
        assert image.array.dtype == wanted.array.dtype
        assert image.grid.affine.tobytes() == wanted.grid.affine.tobytes()
        labels, grid = read_label_map(exported / f"labels{case.part}" / f"{case.name}.nii.gz")
        assert grid.affine.tobytes() == wanted.grid.affine.tobytes()
        assert case.label is not None
        assert np.array_equal(labels, read_label_map(case.label)[0] == 1)
    assert {path.name for path in exported.iterdir()} == {
        *("imagesTr", "labelsTr", "imagesTs", "labelsTs"),
        *("dataset.json", "splits_final.json", "patients.csv"),
    }


def test_the_description_is_what_nnunet_asks_for(exported):
    assert read_json(exported / "dataset.json") == {
        "name": "Dataset001_Toy",
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "blob": 1},
        "numTraining": 5,
        "numTest": 1,
        "file_ending": ".nii.gz",
    }


def test_the_split_is_that_of_our_training(exported, toy_dataset):
    ours = split_cases(read_dataset(toy_dataset), seed=0)
    folds = read_json(exported / "splits_final.json")
    assert folds == [{"train": [c.name for c in ours.train], "val": [c.name for c in ours.val]}]
    again = split_cases(read_dataset(exported), seed=5, fold=0)
    assert again.key == ours.key


def test_a_fold_and_fewer_patients_leave_the_other_cases_out(toy_dataset, tmp_path):
    data = DataConfig(dataset=str(toy_dataset), label="blob", train_patients=2, split_seed=3)
    record = export_dataset(data, tmp_path / "Dataset502_Few")
    info = read_json(tmp_path / "Dataset502_Few" / "dataset.json")
    assert (len(record["split"]["train"]), info["numTraining"]) == (2, 2 + len(record["split"]["val"]))
    files = {path.name for path in (tmp_path / "Dataset502_Few" / "imagesTr").iterdir()}
    assert files == {f"{name}_0000.nii.gz" for name in record["split"]["train"] + record["split"]["val"]}


def test_pictures_become_png_without_loss_and_a_union_one_label(pictures, tmp_path):
    folder = tmp_path / "Dataset503_Union"
    data = DataConfig(dataset=str(pictures), label="a+b", fractions=(0.5, 0.25, 0.25))
    record = export_dataset(data, folder)
    info = read_json(folder / "dataset.json")
    assert info["channel_names"] == {"0": "R", "1": "G", "2": "B"}
    assert (info["labels"], info["file_ending"]) == ({"background": 0, "a_b": 1}, ".png")
    assert record["label_values"] == [1, 2]
    for case in read_dataset(pictures).cases:
        part = "Ts" if case.name in record["split"]["test"] else "Tr"
        image = Image.open(folder / f"images{part}" / f"{case.name}_0000.png")
        assert np.array_equal(np.asarray(image), np.asarray(Image.open(case.image)))
        label = np.asarray(Image.open(folder / f"labels{part}" / f"{case.name}.png"))
        assert case.label is not None
        assert np.array_equal(label, np.asarray(Image.open(case.label)) > 0)
    sides = {name: part for part, names in record["split"].items() if part != "rule" for name in names}
    assert sides["p0"] == sides["p1"]  # one patient
    back = read_dataset(folder)
    assert {c.name: c.patient for c in back.cases}["p1"] == "twin"
    assert resolve_label(back, "a_b") == (1,)


def test_target_names():
    assert [target_name(text) for text in ("LV", "RV+MYO", "gross tumour", "1", "+")] == [
        *("LV", "RV_MYO", "gross_tumour", "1", "target")
    ]


def test_refusals_leave_nothing_behind(toy_dataset, pictures, tmp_path):
    data = DataConfig(dataset=str(toy_dataset), label="blob")
    with pytest.raises(UsageError) as caught:
        export_dataset(data, tmp_path / "Blob")
    assert caught.value.code == "NNUNET_FOLDER_NAME"
    with pytest.raises(ConfigError) as caught:
        export_dataset(data.model_copy(update={"fractions": (1.0, 0.0, 0.0)}), tmp_path / "Dataset504_NoVal")
    assert caught.value.code == "NNUNET_NO_VALIDATION"
    grey = pictures / "imagesTr" / "p3_0000.jpg"
    Image.open(grey).convert("L").save(grey)
    with pytest.raises(InputError) as caught:
        export_dataset(DataConfig(dataset=str(pictures), label="a"), tmp_path / "Dataset505_Mixed")
    assert caught.value.code == "NNUNET_MIXED"
    assert not list(tmp_path.glob("Dataset50*"))
    assert leftovers(tmp_path) == []


CHECK = """
import sys
from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity
if __name__ == "__main__":
    verify_dataset_integrity(sys.argv[1], 1)
"""


@pytest.mark.slow
def test_nnunet_itself_accepts_the_folder(exported, pictures, tmp_path):
    import subprocess

    environment = Environment(Path(REAL) if REAL else IN_HOME)
    if not environment.complete:
        pytest.skip("nnU-Net is not installed: steadysam nnunet install, or STEADYSAM_NNUNET_ENV")
    folder = tmp_path / "Dataset506_Pictures"
    export_dataset(DataConfig(dataset=str(pictures), label="a"), folder)
    script = tmp_path / "check.py"  # its worker processes need a file to import
    script.write_text(CHECK, "utf-8")
    for raw in (exported, folder):
        command = [environment.program("python"), script, raw]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert "most likely OK" in done.stdout, done.stdout + done.stderr
        assert "mismatch" not in done.stdout

"""One run per label: trained by one command, used as one model, scored label by label."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest

from conftest import make_affine
from steadysam.config import make_config
from steadysam.data.cases import read_dataset
from steadysam.data.volumes import read_grid, read_label_map, read_probability, write_probability, write_volume
from steadysam.errors import BatchError, CheckpointError, ConfigError, FileSystemError, LockedError, SteadyError
from steadysam.files import read_json, sha256_file, write_json
from steadysam.labelwise import label_runs, train_each
from steadysam.locks import alone_in
from steadysam.prompts.files import write_prompts
from steadysam.runs import load_run
from steadysam.types import Grid
from toys import some_prompts, steadysam

GRID = Grid((20, 26, 3), make_affine((1.0, 1.2, 4.0), degrees=9), 2)
STAGE = {"epochs": 40, "batch_size": 6, "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Seven volumes of a bright disk (label 3, "Kern") in a darker ring (label 1, "rim/ü")."""
    folder = tmp_path_factory.mktemp("data") / "Dataset002_Two"
    rng = np.random.default_rng(8)
    i, j = np.mgrid[:20, :26]
    for n in range(7):
        centre = rng.uniform([8, 9], [12, 17])
        distance = np.hypot(i - centre[0], j - centre[1])
        plane = np.where(distance < 3.2, 3, np.where(distance < 6.2, 1, 0)).astype(np.uint8)
        labels = np.stack([plane, plane, np.zeros_like(plane)], 2)
        image = rng.normal(100, 8, labels.shape) + 60 * (labels == 1) + 150 * (labels == 3)
        part = "Ts" if n > 4 else "Tr"
        write_volume(folder / f"images{part}" / f"c{n}_0000.nii.gz", image.astype(np.int16), GRID)
        write_volume(folder / f"labels{part}" / f"c{n}.nii.gz", labels, GRID)
    names = {"background": 0, "rim/ü": 1, "Kern": 3, "ignore": 4}
    write_json(folder / "dataset.json", {"channel_names": {"0": "MRI"}, "labels": names, "file_ending": ".nii.gz"})
    return folder


def config(data: Path, **more):
    values = {
        "data": {"dataset": str(data), "label": "each"},
        "preprocess": {"size": 32},
        "method": {"name": "unet", "features": [4, 8, 8, 8, 8, 4], "tuning": STAGE},
        "compute": {"device": "cpu", "cache": "off", "threads": 1},
    }
    return make_config({**values, **more})


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory) -> Path:
    """A finished folder of two runs; look at it, do not write to it."""
    folder = tmp_path_factory.mktemp("runs") / "two"
    train_each(config(data), folder)
    return folder


def test_every_label_has_a_run_of_its_own(data, runs):
    found = label_runs(runs)
    assert [(run.name, run.value, run.folder) for run in found] == [
        ("rim/ü", 1, runs / "rim"),
        ("Kern", 3, runs / "Kern"),
    ]
    for run in found:
        assert read_json(run.folder / "run.json")["data"]["label"] == run.name
        assert load_run(run.folder, "cpu").config.data.label == run.name
    with pytest.raises(CheckpointError, match=r"RUN_MISSING[\s\S]*folder of one label"):
        load_run(runs)
    assert label_runs(runs / "rim") == ()


def call(images: Path, runs: Path, out: Path, *more) -> tuple:
    """The words of a prediction."""
    return ("predict", "-i", images, "-m", runs, "-o", out, "-d", "cpu", "--cache", "off", "--pictures", "1", *more)


def test_masks_become_label_maps_that_evaluate_scores_and_names(data, runs, tmp_path, caplog):
    out = tmp_path / "out"
    assert steadysam(*call(data / "imagesTs", runs, out)) == 0
    record = read_json(out / "combined.json")
    assert record["labels"] == {"rim/ü": 1, "Kern": 3}
    names = {path.name for path in out.iterdir()}
    assert names == {"c5.nii.gz", "c6.nii.gz", "combined.json", "pictures", "rim", "Kern"}
    labels, grid = read_label_map(out / "c5.nii.gz")
    assert sorted(np.unique(labels)) == [0, 1, 3]
    assert grid.key() == read_grid(data / "imagesTs" / "c5_0000.nii.gz").key()
    assert (labels == 1).any()
    assert (out / "pictures" / "masks.png").read_bytes().startswith(b"\x89PNG")
    assert steadysam("evaluate", out, data / "labelsTs", "--label", "each", "-o", tmp_path / "report") == 0
    rows = list(csv.DictReader((tmp_path / "report" / "labels.csv").open(encoding="utf-8")))
    assert [(row["label"], row["method"], row["training_seed"]) for row in rows] == [
        ("rim/ü", "unet", "0"),
        ("Kern", "unet", "0"),
    ]
    assert all(float(row["dsc_positive"]) > 0.6 for row in rows), rows
    assert "are not those of" not in caplog.text
    for label in ("rim/ü+Kern", "all"):
        assert steadysam("evaluate", out, data / "labelsTs", "--label", label, "-o", tmp_path / "both") == 0
        summary = read_json(tmp_path / "both" / "metrics.json")["summary"]
        assert summary["scores"]["volume_dice"]["mean"] > 0.8
        assert (summary["provenance"]["method"], summary["provenance"]["training_seed"]) == ("unet", 0)
    assert "are not those of" not in caplog.text


def test_the_more_probable_label_keeps_a_voxel(data, runs, tmp_path):
    out = tmp_path / "out"
    assert steadysam(*call(data / "imagesTs", runs, out, "--threshold", "0.02")) == 0
    assert read_json(out / "combined.json")["cases"]["c5"]["disputed_voxels"] > 20
    labels, _ = read_label_map(out / "c5.nii.gz")
    masks = [read_label_map(out / name / "c5.nii.gz")[0] == 1 for name in ("rim", "Kern")]
    rim, core = (read_probability(out / name / "probabilities" / "c5.nii.gz")[0] for name in ("rim", "Kern"))
    assert (masks[0] & masks[1] & (core > rim)).any()
    assert (masks[0] & masks[1] & (core < rim)).any()
    assert ((labels == 1) == (masks[0] & ~(masks[1] & (core > rim)))).all()
    assert ((labels == 3) == (masks[1] & ~(masks[0] & (rim >= core)))).all()


def test_a_bad_case_and_masks_of_an_earlier_call(data, runs, tmp_path, capsys, caplog):
    images, out = tmp_path / "images", tmp_path / "out"
    shutil.copytree(data / "imagesTs", images)
    assert steadysam(*call(images, runs, out)) == 0
    before = sha256_file(out / "c5.nii.gz")
    (images / "c6_0000.nii.gz").write_bytes(b"no image")
    assert steadysam(*call(images, runs, out)) == 6
    assert "1 of 2 cases could not be combined" in capsys.readouterr().err
    combined = read_json(out / "combined.json")
    assert list(combined["cases"]) == ["c5"], "the mask of c6 lies there, from another call"
    assert list(combined["failures"]) == ["c6"]
    assert sha256_file(out / "c5.nii.gz") == before
    assert steadysam("evaluate", out, data / "labelsTs", "--label", "Kern", "-o", tmp_path / "report") == 0
    assert "1 of 2 masks are not those of" in caplog.text
    (images / "c5_0000.nii.gz").write_bytes(b"no image")
    assert steadysam(*call(images, runs, out)) == 6
    caplog.clear()
    steadysam("evaluate", out, data / "labelsTs", "--label", "all", "-o", tmp_path / "report")
    assert "2 of 2 masks are not those of" in caplog.text


def test_one_label_into_a_folder_of_label_maps_and_back(data, runs, tmp_path, capsys):
    out, report = tmp_path / "out", tmp_path / "report"
    assert steadysam(*call(data / "imagesTs", runs, out)) == 0
    assert steadysam(*call(data / "imagesTs", runs / "Kern", out)) == 0
    assert steadysam("evaluate", out, data / "labelsTs", "-o", report) == 0
    assert read_json(report / "metrics.json")["summary"]["scores"]["dsc_positive"]["mean"] > 0.6
    assert steadysam(*call(data / "imagesTs", runs, out)) == 0
    assert not (out / "run.json").exists()
    assert steadysam("evaluate", out, data / "labelsTs", "--label", "each", "-o", report) == 0
    with alone_in(out):
        assert steadysam(*call(data / "imagesTs", runs, out)) == 9


def test_label_maps_are_cut_as_predict_cut(data, runs, tmp_path):
    out, report = tmp_path / "out", tmp_path / "report"
    folder = tmp_path / "Dataset006_Axis"
    shutil.copytree(data, folder)
    write_json(folder / "dataset.json", read_json(folder / "dataset.json") | {"slice_axis": 2})
    assert steadysam(*call(folder / "imagesTs", runs, out, "--slice-axis", 0)) == 0
    assert steadysam("evaluate", out, folder / "labelsTs", "--label", "Kern", "-o", report) == 0
    assert read_json(report / "metrics.json")["summary"]["n_slices"] == 2 * GRID.shape[0]


def test_a_mask_that_was_changed_is_told_of(data, runs, tmp_path, caplog):
    out = tmp_path / "out"
    steadysam(*call(data / "imagesTs", runs, out))
    labels, grid = read_label_map(out / "Kern" / "c5.nii.gz")
    write_volume(out / "Kern" / "c5.nii.gz", 1 - labels, grid)
    parts = [f"1={out / 'rim'}", f"Kern={out / 'Kern'}"]
    assert steadysam("combine", *parts, "--dataset", data, "-o", tmp_path / "again") == 0
    caplog.clear()
    steadysam("evaluate", tmp_path / "again", data / "labelsTs", "--label", "1", "-o", tmp_path / "rim")
    assert "are not those of" not in caplog.text
    for label in ("Kern", "Kern+1", "all"):
        caplog.clear()
        steadysam("evaluate", tmp_path / "again", data / "labelsTs", "--label", label, "-o", tmp_path / "core")
        assert "1 of 2 masks are not those of" in caplog.text, label
    words = ("--dataset", data, "-o", tmp_path / "by chance", "--disputed", "probability")
    assert steadysam("combine", *parts, *words) == 0
    again = call(data / "imagesTs", runs / "Kern", out / "Kern")
    assert steadysam(*again, "--probabilities", "--threshold", "0.3") == 0
    assert steadysam("combine", *parts, *words) == 0
    chance, own = read_probability(out / "Kern" / "probabilities" / "c5.nii.gz")
    write_probability(out / "Kern" / "probabilities" / "c5.nii.gz", 1 - chance, own)
    assert steadysam("combine", *parts, *words) == 6, "probabilities of another call than the mask"
    assert steadysam(*again) == 0
    assert not list((out / "Kern" / "probabilities").iterdir()), "they would be those of another call"


def test_what_is_there_is_neither_written_over_nor_trained_again(data, runs, tmp_path):
    folder = tmp_path / "two"
    shutil.copytree(runs, folder)
    with pytest.raises(FileSystemError, match=r"FS_EXISTS[\s\S]*rim, Kern"):
        train_each(config(data), folder)
    kept = sha256_file(folder / "rim" / "weights.safetensors")
    shutil.rmtree(folder / "Kern")  # as after an interruption
    short = config(data)
    train_each(short, folder, resume=True)
    assert sha256_file(folder / "rim" / "weights.safetensors") == kept
    assert sha256_file(folder / "Kern" / "weights.safetensors") == sha256_file(runs / "Kern" / "weights.safetensors")
    with pytest.raises(FileSystemError, match="single label"):
        train_each(short, folder / "rim")
    swapped = tmp_path / "Dataset007_Swapped"
    shutil.copytree(data, swapped)
    for names in ({"rim/ü": 3, "Kern": 1}, {"LV": 1, "RV": 3}):
        write_json(swapped / "dataset.json", read_json(data / "dataset.json") | {"labels": {"background": 0, **names}})
        with pytest.raises(FileSystemError, match="FS_EXISTS"):
            train_each(config(swapped), folder)
        with pytest.raises(ConfigError, match="RESUME_CONFIG_DIFF"):
            train_each(config(swapped), folder, resume=True)
    assert [(run.name, run.value) for run in label_runs(folder)] == [("rim/ü", 1), ("Kern", 3)]
    with alone_in(folder), pytest.raises(LockedError):
        train_each(short, folder, resume=True)
    assert steadysam("train", data, "--label", "Kern", "--method", "unet", "-o", folder) == 8


def test_a_label_that_cannot_be_trained_stops_no_other(data, tmp_path, caplog, capsys):
    folder, runs, out = tmp_path / "Dataset008_Rare", tmp_path / "runs", tmp_path / "out"
    shutil.copytree(data, folder)
    names = {"background": 0, "rim": 1, "rare": 2, "core+": 3}
    write_json(folder / "dataset.json", read_json(folder / "dataset.json") | {"labels": names})
    with pytest.raises(BatchError, match=r"LABELS_FAILED[\s\S]*1 of 3[\s\S]*rare"):
        train_each(config(folder), runs)
    assert [bool(run.failed) for run in label_runs(runs)] == [False, True, False]
    assert steadysam(*call(folder / "imagesTs", runs, out)) == 0
    assert "label rare is left out" in caplog.text
    assert read_json(out / "combined.json")["labels"] == {"rim": 1, "core+": 3}
    caplog.clear()
    assert steadysam("evaluate", out, folder / "labelsTs", "--label", "each", "-o", tmp_path / "report") == 0
    assert "not scored: rare" in caplog.text
    assert {path.name for path in (tmp_path / "report").iterdir()} == {"rim", "corep", "labels.csv"}
    write_json(runs / "rim" / "run.json", read_json(runs / "rim" / "run.json") | {"status": "training"})
    capsys.readouterr()
    assert steadysam(*call(folder / "imagesTs", runs, tmp_path / "none")) == 5
    assert "label rim has not finished" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_bad_input_leaves_nothing(data, tmp_path):
    folder = tmp_path / "Dataset005_Bad"
    shutil.copytree(data, folder)
    (folder / "labelsTr" / "c0.nii.gz").write_bytes(b"no labels")
    with pytest.raises(SteadyError):
        train_each(config(folder), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_prompts_belong_to_a_label(data, tmp_path, capsys):
    prompted = {"name": "sam_tuning", "adapt": "full", "tuning": {"epochs": 1, "batch_size": 6}}
    folder = tmp_path / "prompts"
    for case in range(5):
        write_prompts(folder / "rim" / f"c{case}.json", some_prompts(GRID, seed=case))
    made = config(data, method=prompted, backbone={"name": "sam-test"}, prompts={"folder": str(folder)})
    with pytest.raises(ConfigError, match=r"LABEL_EACH[\s\S]*subfolder Kern"):
        train_each(made, tmp_path / "no")
    assert not (tmp_path / "no").exists()
    shutil.copytree(folder / "rim", folder / "Kern")
    runs = train_each(made, tmp_path / "yes")
    assert [load_run(run.folder, "cpu").config.prompts.folder for run in runs] == [
        str(folder / n) for n in ("rim", "Kern")
    ]


@pytest.mark.parametrize("kind", ["run", "begin"])
def test_a_start_is_that_of_the_same_label(data, runs, tmp_path, kind):
    made = config(data, start={kind: str(runs)})
    made = made.model_copy(update={"method": {**made.method, "tuning": {**STAGE, "epochs": 0}}})
    for run in train_each(made, tmp_path / "more"):
        assert getattr(load_run(run.folder, "cpu").config.start, kind) == str(runs / run.folder.name)
        assert sha256_file(run.folder / "weights.safetensors") == sha256_file(
            runs / run.folder.name / "weights.safetensors"
        )


@pytest.mark.parametrize(
    "labels, said", [({"whole": [1, 3]}, "regions whole"), ({"a": 1, "b": 1}, "a 1, b 1"), ({"a": 70000}, "a 70000")]
)
def test_labels_that_cannot_be_told_apart(data, tmp_path, labels, said):
    folder = tmp_path / "Dataset003_Labels"
    shutil.copytree(data, folder)
    write_json(folder / "dataset.json", read_json(folder / "dataset.json") | {"labels": {"background": 0, **labels}})
    with pytest.raises(ConfigError, match=rf"LABEL_EACH[\s\S]*{said}"):
        train_each(config(folder), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_folders_of_labels_are_never_the_same(data, tmp_path):
    folder = tmp_path / "Dataset004_Names"
    shutil.copytree(data, folder)
    names = {"background": 0, "a b": 1, "A-B": 2, "左": 3, "lung+": 4, "lung": 5, "label 3": 6}
    write_json(folder / "dataset.json", read_json(folder / "dataset.json") | {"labels": names})
    found = read_dataset(folder).label_folders
    assert found == {
        "a b": "label-1",
        "A-B": "label-2",
        "左": "label-3",
        "lung+": "lungp",
        "lung": "lung",
        "label 3": "label-6",
    }


def test_a_list_of_runs_that_cannot_be_read(tmp_path):
    for text in ("[]", '{"format": "other"}', '{"format": "steadysam-runs-1", "runs": [{}]}', "{"):
        (tmp_path / "runs.json").write_text(text)
        with pytest.raises(CheckpointError, match="RUN_VERSION"):
            label_runs(tmp_path)

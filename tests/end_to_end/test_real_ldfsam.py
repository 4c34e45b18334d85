"""LDFSAM as a new user would take it, without any prompt: pictures, and volumes with several labels.

Needs STEADYSAM_TEST_DATA, as its neighbour does. What is tested is the way, not the quality: an epoch is three steps.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))  # helpers lie beside the other tests
from steadysam.data.volumes import read_grid, read_label_map  # noqa: E402
from steadysam.files import read_json, sha256_file  # noqa: E402
from steadysam.prompts.files import read_prompts  # noqa: E402
from toys import leftovers, steadysam  # noqa: E402

pytestmark = [pytest.mark.real_data, pytest.mark.slow]
ON_CPU = ("--device", "cpu", "--threads", 1)


def train(dataset: Path, label: str, folder: Path) -> None:
    masks = ["epochs=2", "slices_per_epoch=12", "batch_size=4"]
    detector = [*masks, "warmup_steps=2", "optimizer=adamw", "learning_rate=2e-3"]
    settings = ["data.train_patients=6", "compute.cache=off", "compute.threads=1", "method.detector.image_size=128"]
    settings += ["method.detector.teacher=s", *(f"method.masks.{key}" for key in masks)]
    settings += [f"method.detector.{stage}_stage.{key}" for stage in ("teacher", "student") for key in detector]
    words = ["train", dataset, "--method", "ldfsam", "--label", label, "--size", 64, "--device", "cpu", "-o", folder]
    assert steadysam(*words, *(word for setting in settings for word in ("--set", setting))) == 0


def some_tests(dataset: Path, folder: Path, number: int) -> list[str]:
    """The first test cases, copied with their labels; their names."""
    images = sorted((dataset / "imagesTs").iterdir())[:number]
    names = [image.name.split("_0000.")[0] for image in images]
    for part, files in (("images", images), ("labels", [*(dataset / "labelsTs").iterdir()])):
        (folder / part).mkdir(parents=True)
        for file in files:
            if any(file.name.startswith((f"{name}.", f"{name}_0000.")) for name in names):
                shutil.copy(file, folder / part / file.name)
    return names


@pytest.fixture(scope="module")
def pictures(isic, tmp_path_factory) -> tuple[Path, list[str]]:
    """A run with a teacher, masks and boxes of three pictures."""
    folder = tmp_path_factory.mktemp("isic")
    names = some_tests(isic, folder, 3)
    train(isic, "lesion", folder / "run")
    words = ["-i", folder / "images", "-m", folder / "run"]
    assert steadysam("predict", *words, "-o", folder / "out", "--cache", "off", *ON_CPU) == 0
    labels = ("--labels", folder / "labels", "--confidence", 0.001)
    assert steadysam("detect", *words, *labels, "-o", folder / "found", *ON_CPU) == 0
    return folder, names


def test_all_stages_were_trained(pictures):
    folder, _ = pictures
    heads = {path.name: path.read_text().splitlines()[0] for path in (folder / "run" / "logs").glob("*-metrics.csv")}
    assert set(heads) == {"teacher-metrics.csv", "student-metrics.csv", "masks-metrics.csv"}
    assert {"train_ld_main", "train_ld_vlr"} <= set(heads["student-metrics.csv"].split(","))
    split = read_json(folder / "run" / "run.json")["data"]["split"]
    assert len(split["train"]) == 6
    assert not set(split["train"]) & {*split["val"], *split["test"]}


def test_the_masks_lie_on_the_pictures(pictures):
    folder, names = pictures
    record = read_json(folder / "out" / "run.json")
    assert record["prompt_sources"] == []
    assert record["run"]["weights_sha256"] == sha256_file(folder / "run" / "weights.safetensors")
    for name, case in zip(names, record["cases"], strict=True):
        picture, mask = (Image.open(folder / part) for part in (f"images/{name}_0000.jpg", f"out/{name}.png"))
        assert picture.size == mask.size
        assert picture.size[0] != picture.size[1]
        assert case["image"]["sha256"] == sha256_file(folder / "images" / f"{name}_0000.jpg")
    assert leftovers(folder) == []


def test_the_boxes_are_prompts_on_the_pictures(pictures):
    folder, names = pictures
    rows = read_json(folder / "found" / "detection.json")["rows"]
    assert [row["case"] for row in rows] == [*names, "all"]
    assert rows[-1]["AP_low"] <= rows[-1]["AP"] <= rows[-1]["AP_high"]
    for name in names:
        grid = read_grid(folder / "images" / f"{name}_0000.jpg")
        found = read_prompts(folder / "found" / f"{name}.json", grid)
        assert {box.source for box in found.boxes} <= {"detector"}
    assert (folder / "found" / "boxes.png").is_file()


def test_evaluate_the_pictures(isic, pictures):
    folder, names = pictures
    words = ["evaluate", folder / "out", folder / "labels", "--dataset", isic, "--images", folder / "images"]
    assert steadysam(*words, "-o", folder / "report") == 0
    page = (folder / "report" / "report.html").read_text()
    assert all(name in page for name in names)


def test_several_labels_of_a_volume(acdc, tmp_path):
    """Every label by itself, then one label map on the image's grid, scored label by label."""
    (name,) = some_tests(acdc, tmp_path, 1)
    train(acdc, "each", tmp_path / "runs")
    predict = ["predict", "-i", tmp_path / "images", "-m", tmp_path / "runs", "-o", tmp_path / "out", "--cache", "off"]
    assert steadysam(*predict, *ON_CPU) == 0
    labels, grid = read_label_map(tmp_path / "out" / f"{name}.nii.gz")
    assert grid.key() == read_grid(tmp_path / "images" / f"{name}_0000.nii.gz").key()
    assert set(np.unique(labels)) <= {0, 1, 2, 3}
    words = ["evaluate", tmp_path / "out", tmp_path / "labels", "--dataset", acdc, "--label", "each"]
    assert steadysam(*words, "-o", tmp_path / "report") == 0
    rows = (tmp_path / "report" / "labels.csv").read_text().splitlines()
    assert {row.split(",")[0] for row in rows[1:]} == {"LV", "RV", "MYO"}

"""`steadysam detect`: prompt files, record, scores, picture; bad cases; and predict, which takes what it wrote."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest

from steadysam.config import make_config
from steadysam.data.volumes import read_grid
from steadysam.files import read_json, sha256_file
from steadysam.prompts.files import read_prompts
from steadysam.training import train
from test_detector import values
from toys import leftovers, steadysam

ANY = ("--confidence", 0.001)


@pytest.fixture(scope="module")
def run(toy_dataset, tmp_path_factory) -> Path:
    """A run of two epochs: it finds something everywhere, if asked for boxes of any score."""
    config = make_config(values(toy_dataset, 2))
    return train(config, tmp_path_factory.mktemp("detector") / "run")


def detect(model: Path, images: Path, output: Path) -> list[object]:
    return ["detect", "-i", images, "-m", model, "-o", output]


def test_a_case_with_truth(run, toy_dataset, tmp_path, capsys):
    words = [*detect(run, toy_dataset / "imagesTs", tmp_path / "out"), "--labels", toy_dataset / "labelsTs"]
    words += ["--label", "blob"]  # the run's own, by name
    assert steadysam(*words, "-d", "cpu", "--threads", 1) == 0
    assert {"AP50", "AP75", "AP", "toy_5"} <= set(capsys.readouterr().out.split())
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"toy_5.json", "run.json", "detection.json", "detection.csv", "boxes.png"}
    (row,) = read_json(tmp_path / "out" / "detection.json")["rows"]
    assert 0 <= row["AP"] <= row["AP50"] <= 1
    assert (row["case"], row["slices"], row["objects"]) == ("toy_5", 4, 3)
    (line,) = csv.DictReader((tmp_path / "out" / "detection.csv").read_text("utf-8").splitlines())
    assert float(line["AP50"]) == row["AP50"]
    assert leftovers(tmp_path) == []


@pytest.mark.slow
def test_a_longer_run_finds_the_blob(toy_dataset, tmp_path):
    """160 steps from random weights; it was 1.0 when this was written."""
    content = values(toy_dataset, 40)
    content["method"]["detector"]["student_stage"]["batch_size"] = 4
    folder = train(make_config(content), tmp_path / "run")
    words = [*detect(folder, toy_dataset / "imagesTs", tmp_path / "out"), "--labels", toy_dataset / "labelsTs"]
    assert steadysam(*words, "--threads", 1) == 0
    (row,) = read_json(tmp_path / "out" / "detection.json")["rows"]
    assert row["AP50"] > 0.6
    assert row["boxes"] > 0


def test_the_record(run, toy_dataset, tmp_path):
    words = ["detect", "-i", toy_dataset / "imagesTs" / "toy_5_0000.nii.gz", "-m", run, "-o", tmp_path / "out"]
    assert steadysam(*words, "-d", "cpu", "--threads", 1, "--confidence", 0.002, "--per-slice", 1) == 0
    record = read_json(tmp_path / "out" / "run.json")
    assert record["run"]["weights_sha256"] == sha256_file(run / "weights.safetensors")
    assert record["detector"] == {"confidence": 0.002, "overlap": 0.7, "per_slice": 1}
    assert record["prompt_sources"] == ["detector"]
    (case,) = record["cases"]
    grid = read_grid(toy_dataset / "imagesTs" / "toy_5_0000.nii.gz", 2)
    prompts = read_prompts(tmp_path / "out" / "toy_5.json", grid)
    assert case["prompts"]["hash"] == prompts.key()
    assert case["prompts"]["file_sha256"] == sha256_file(tmp_path / "out" / "toy_5.json")
    assert case["image"]["sha256"] == sha256_file(toy_dataset / "imagesTs" / "toy_5_0000.nii.gz")
    assert (case["boxes"], case["slices_with_several"]) == (len(prompts.boxes), 0)
    assert prompts.image.name == "toy_5_0000.nii.gz"
    assert not (tmp_path / "out" / "detection.json").exists()


def test_images_of_training_are_told_of_and_can_be_left_out(run, toy_dataset, tmp_path, caplog):
    split = read_json(run / "run.json")["data"]["split"]
    words = [*detect(run, toy_dataset / "imagesTr", tmp_path / "all"), "--threads", 1, "--labels"]
    assert steadysam(*words, toy_dataset / "labelsTr") == 0
    parts = {case["case"]: case["part"] for case in read_json(tmp_path / "all" / "run.json")["cases"]}
    assert parts == {**dict.fromkeys(split["train"], "train"), **dict.fromkeys(split["val"], "val")}
    assert f"{len(split['train'])} of 5 images trained this run and {len(split['val'])} chose its epochs" in caplog.text
    words = [*detect(run, toy_dataset / "imagesTr", tmp_path / "val"), "--threads", 1, "--part"]
    assert steadysam(*words, "val") == 0
    assert [case["case"] for case in read_json(tmp_path / "val" / "run.json")["cases"]] == split["val"]
    assert steadysam(*words, "test") == 4


def test_the_same_command_gives_the_same_bytes(run, toy_dataset, tmp_path):
    for name in ("a", "b"):
        words = ["detect", "-i", toy_dataset / "imagesTs", "-m", run, "-o", tmp_path / name, "--threads", 1, *ANY]
        assert steadysam(*words) == 0
    assert (tmp_path / "a" / "toy_5.json").read_bytes() == (tmp_path / "b" / "toy_5.json").read_bytes()


def test_a_model_takes_the_boxes_as_prompts(run, toy_dataset, tmp_path):
    words = [*detect(run, toy_dataset / "imagesTs", tmp_path / "found"), "--per-slice", 1, "--threads", 1]
    assert steadysam(*words, *ANY) == 0
    predict = ["predict", "-i", toy_dataset / "imagesTs", "--prompts", tmp_path / "found", "-m", "steadysam-tiny"]
    assert steadysam(*predict, "-o", tmp_path / "out", "--threads", 1, "--cache", "off") == 0
    record = read_json(tmp_path / "out" / "run.json")
    assert record["prompt_sources"] == ["detector"]
    assert record["cases"][0]["notes"]["foreground_voxels"] > 0


def test_one_bad_case_stops_no_other(run, toy_dataset, tmp_path, capsys):
    images, labels = tmp_path / "images", tmp_path / "labels"
    shutil.copytree(toy_dataset / "imagesTr", images)
    shutil.copytree(toy_dataset / "labelsTr", labels)
    (labels / "toy_1.nii.gz").unlink()
    (images / "toy_2_0000.nii.gz").write_bytes(b"no image")
    words = [*detect(run, images, tmp_path / "out"), "--labels", labels, "--threads", 1]
    assert steadysam(*words) == 6
    failures = (tmp_path / "out" / "failures.jsonl").read_text("utf-8").splitlines()
    assert len(failures) == 2
    assert "no label for case toy_1" in failures[0]
    rows = read_json(tmp_path / "out" / "detection.json")["rows"]
    assert [row["case"] for row in rows] == ["toy_0", "toy_3", "toy_4", "all"]
    assert rows[-1]["AP_low"] <= rows[-1]["AP"] <= rows[-1]["AP_high"]
    assert (tmp_path / "out" / "boxes.png").is_file()
    assert not (tmp_path / "out" / "toy_2.json").exists()


def test_the_interval_knows_the_patients_of_the_data_set(run, toy_dataset, tmp_path, capsys):
    shutil.copytree(toy_dataset / "labelsTr", tmp_path / "labels")
    table = tmp_path / "patients.csv"
    words = [*detect(run, toy_dataset / "imagesTr", tmp_path / "out"), "--labels", tmp_path / "labels", *ANY]
    table.write_text("case,patient\n" + "".join(f"toy_{n},one\n" for n in range(5)))
    assert steadysam(*words, "--threads", 1) == 0
    assert read_json(tmp_path / "out" / "detection.json")["rows"][-1]["AP_low"] is None, "all are of one patient"
    table.write_text("case,patient\ntoy_0,one\n")
    assert steadysam(*words, "--threads", 1) == 4
    assert "DATA_PATIENTS" in capsys.readouterr().err
    assert (tmp_path / "out" / "detection.json").is_file(), "nothing was touched"


def test_errors(run, toy_dataset, toy_run, tmp_path, capsys):
    images = toy_dataset / "imagesTs"
    cases = [
        ((toy_run, images), 3, "DETECTOR_MISSING"),
        ((tmp_path, images), 5, "RUN_MISSING"),
        ((run, tmp_path / "none"), 4, "FILE_MISSING"),
        ((run, images, "--labels", tmp_path / "none"), 4, "FILE_MISSING"),
        ((run, images, "--labels", toy_dataset / "labelsTr"), 4, "no case has a label"),
        ((run, images, "--confidence", 2), 3, "CONFIG_VALUE"),
        ((run, images, "--per-slice", -1), 2, "DETECT_PER_SLICE"),
    ]
    for (model, source, *more), code, said in cases:
        words = ("-m", model, "-i", source, *more)
        assert steadysam("detect", *words, "-o", tmp_path / "out", "--threads", 1) == code, words
        assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_help_has_an_example(capsys):
    assert steadysam("detect", "--help") == 0
    said = capsys.readouterr().out
    assert "steadysam detect" in said.split("For example:")[1]


def test_results_of_another_call_do_not_stay(run, toy_dataset, tmp_path, caplog):
    out = tmp_path / "out"
    words = detect(run, toy_dataset / "imagesTs", out)
    assert steadysam(*words, "--labels", toy_dataset / "labelsTs", "-d", "cpu", "--threads", 1) == 0
    assert steadysam(*detect(run, toy_dataset / "imagesTr", out), "-d", "cpu", "--threads", 1) == 0
    assert not list(out.glob("detection.*")), "they are of other boxes"
    assert "still holds boxes of an earlier call: toy_5" in caplog.text


def test_boxes_are_not_written_over_a_run_or_labels(run, toy_dataset, tmp_path):
    record = (run / "run.json").read_bytes()
    assert steadysam(*detect(run, toy_dataset / "imagesTs", run), "-d", "cpu") == 8
    assert (run / "run.json").read_bytes() == record
    labels = toy_dataset / "labelsTs"
    assert steadysam(*detect(run, toy_dataset / "imagesTs", labels), "--labels", labels, "-d", "cpu") == 8
    assert not (labels / "run.json").exists()


def test_boxes_are_no_masks_to_evaluate(run, toy_dataset, tmp_path, capsys):
    assert steadysam(*detect(run, toy_dataset / "imagesTs", tmp_path / "out"), "-d", "cpu", "--threads", 1) == 0
    capsys.readouterr()
    assert steadysam("evaluate", tmp_path / "out", toy_dataset / "labelsTs", "-o", tmp_path / "report") == 4
    assert "EVAL_BOXES" in capsys.readouterr().err
    assert not (tmp_path / "report").exists()

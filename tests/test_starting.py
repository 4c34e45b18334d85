"""What a run starts from: stages that begin with those of another run, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from steadysam import training
from steadysam.backbones.checkpoints import read_safetensors
from steadysam.config import make_config, merged
from steadysam.data.volumes import read_volume, write_volume
from steadysam.errors import CheckpointError, InputError
from steadysam.files import read_json, sha256_file, write_json
from steadysam.training import train
from test_detector import values


@pytest.fixture(scope="module")
def taught(toy_dataset, tmp_path_factory) -> Path:
    """A run with a teacher and a student, an epoch each."""
    return train(make_config(values(toy_dataset, 1, teacher="n")), tmp_path_factory.mktemp("taught") / "run")


def begun(dataset: Path, epochs: int, **start: Any) -> dict:
    return {**values(dataset, epochs, teacher="n", distill="ld"), "start": start}


def test_stages_begin_with_those_of_another_run(toy_dataset, taught, tmp_path):
    """A run keeps no teacher in its final weights; with `begin` the teacher, too, has the weights of its own stage."""
    folder = train(make_config(begun(toy_dataset, 0, begin=str(taught))), tmp_path / "run")
    for stage in ("teacher", "student"):
        theirs, mine = (read_safetensors(run / "checkpoints" / f"{stage}.safetensors") for run in (taught, folder))
        assert set(mine) == set(theirs)
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert read_json(folder / "run.json")["start"] == [
        {"run": taught.name, "file": file, "sha256": sha256_file(taught / file)}
        for file in ("checkpoints/student.safetensors", "checkpoints/teacher.safetensors")
    ]


def test_a_finished_teacher_of_one_run_and_the_beginning_of_a_student_of_another(toy_dataset, taught, tmp_path):
    other = train(make_config(values(toy_dataset, 1, teacher="n")), tmp_path / "other")
    start = {"run": str(taught), "skip": ["teacher"], "begin": str(other)}
    folder = train(make_config(begun(toy_dataset, 0, **start)), tmp_path / "run")
    assert [entry["run"] for entry in read_json(folder / "run.json")["start"]] == ["other", taught.name]
    mine = read_safetensors(folder / "checkpoints" / "student.safetensors")
    theirs = read_safetensors(other / "checkpoints" / "student.safetensors")
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    content = begun(toy_dataset, 0, begin=str(taught))
    ldfsam = {**content["method"], "name": "ldfsam", "generator": "random"}
    with pytest.raises(CheckpointError, match=r"START_STAGES[\s\S]*masks"):
        train(make_config({**content, "method": ldfsam}), tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_a_beginning_that_does_not_fit_or_has_seen_what_judges(toy_dataset, taught, tmp_path):
    content = merged(begun(toy_dataset, 0, begin=str(taught)), {"method": {"detector": {"size": "s"}}})
    with pytest.raises(CheckpointError, match=r"START_SIZE.*student[\s\S]*size = 'n'[\s\S]*size = 's'"):
        train(make_config(content), tmp_path / "no")
    content = merged(begun(toy_dataset, 0, begin=str(taught)), {"data": {"split_seed": 1}})
    with pytest.raises(InputError, match="DATA_LEAK_START"):
        train(make_config(content), tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_a_run_that_was_cut_short_says_what_its_finished_stages_have_seen(toy_dataset, tmp_path, monkeypatch, caplog):
    real = training.train_stage

    def teacher_only(model, stage, *more):
        if stage.name == "student":
            raise KeyboardInterrupt
        return real(model, stage, *more)

    monkeypatch.setattr(training, "train_stage", teacher_only)
    with pytest.raises(KeyboardInterrupt):
        train(make_config(values(toy_dataset, 1, teacher="n")), tmp_path / "cut")
    monkeypatch.setattr(training, "train_stage", real)
    content = begun(toy_dataset, 0, run=str(tmp_path / "cut"), skip=["teacher"])
    with pytest.raises(InputError, match=r"DATA_LEAK_START[\s\S]*cut"):
        train(make_config(merged(content, {"data": {"split_seed": 1}})), tmp_path / "no")
    train(make_config(content), tmp_path / "run")
    assert "can't be checked" not in caplog.text
    record = read_json(tmp_path / "cut" / "run.json")  # as older versions left it
    del record["data"]
    write_json(tmp_path / "cut" / "run.json", record)
    train(make_config(content), tmp_path / "old")
    assert "can't be checked" in caplog.text


def test_what_the_run_before_the_run_has_seen(toy_dataset, tmp_path, caplog):
    """Two steps back: the first was trained on what tests the third, the second has other pictures."""
    other = Path(shutil.copytree(toy_dataset, tmp_path / "Dataset002_Other"))
    for path in other.glob("images*/*.nii.gz"):
        image = read_volume(path)
        write_volume(path, image.array + 1, image.grid)
    first = train(make_config(values(toy_dataset, 1, teacher="n")), tmp_path / "first")
    content = {**values(other, 0, teacher="n"), "start": {"begin": str(first)}}
    second = train(make_config(content), tmp_path / "second")
    third = merged(begun(toy_dataset, 0, begin=str(second)), {"data": {"split_seed": 1}})
    with pytest.raises(InputError, match=r"DATA_LEAK_START[\s\S]*first"):
        train(make_config(third), tmp_path / "third")
    first.rename(tmp_path / "moved")
    train(make_config(third), tmp_path / "third")
    assert "can't be checked" in caplog.text


def test_a_student_begins_as_it_was_before_the_masks_changed_it(toy_dataset, tmp_path):
    stage = {"epochs": 1, "batch_size": 8, "slices_per_epoch": 8}
    content = merged(values(toy_dataset, 1), {"backbone": {"name": "sam-test"}, "preprocess": {"size": 32}})
    content = merged(content, {"method": {"name": "ldfsam", "channels": 16, "masks": stage}})
    first = train(make_config(content), tmp_path / "first")
    none = {"detector": {"student_stage": {"epochs": 0}}, "masks": {"epochs": 0}}
    second = train(make_config(merged(content, {"method": none, "start": {"begin": str(first)}})), tmp_path / "second")
    student, masks = (read_safetensors(first / "checkpoints" / f"{name}.safetensors") for name in ("student", "masks"))
    shared = [name for name in student if name in masks and not torch.equal(student[name], masks[name])]
    assert shared, "the mask stage tuned the detector"
    began = read_safetensors(second / "checkpoints" / "student.safetensors")
    assert all(torch.equal(began[name], student[name]) for name in student)
    prompter = [name for name in masks if name.startswith("prompter.")]
    began = read_safetensors(second / "checkpoints" / "masks.safetensors")
    assert prompter
    assert all(torch.equal(began[name], masks[name]) for name in prompter)


def test_test_cases_that_were_trained_on_under_other_names(toy_dataset, taught, tmp_path):
    """The same data set by its name, with other names of cases: contents tell."""
    other = Path(shutil.copytree(toy_dataset, tmp_path / toy_dataset.name))
    for path in [*other.glob("*/toy_*")]:
        path.rename(path.with_name(path.name.replace("toy", "renamed")))
    content = merged(begun(other, 0, begin=str(taught)), {"data": {"split_seed": 1}})
    with pytest.raises(InputError, match="DATA_LEAK_START.*renamed"):
        train(make_config(content), tmp_path / "no")


def test_a_stage_to_skip_that_the_other_run_lacks(toy_dataset, tmp_path):
    other = train(make_config(values(toy_dataset, 0)), tmp_path / "other")
    content = begun(toy_dataset, 0, run=str(other), skip=["teacher"])
    with pytest.raises(CheckpointError, match=r"START_STAGES.*teacher[\s\S]*seen student"):
        train(make_config(content), tmp_path / "no")


def test_one_data_set_by_two_paths_is_no_difference(toy_dataset, taught, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(toy_dataset.parent)
    content = begun(Path(toy_dataset.name), 0, run=str(taught), skip=["teacher"], begin=str(taught))
    caplog.set_level("INFO")
    train(make_config(content), tmp_path / "run")
    assert "data.dataset" not in caplog.text
    assert f"stages that begin with those of {taught}: student" in caplog.text

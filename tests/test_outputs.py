"""Results never go over a run, nor among the files that the same call reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from conftest import GRIDS
from steadysam.config import make_config, to_toml
from steadysam.data.volumes import write_volume
from steadysam.errors import CheckpointError, FileSystemError
from steadysam.files import sha256_file, write_json, write_text
from steadysam.jobs import find_jobs
from steadysam.outputs import refuse_output
from steadysam.prediction import predict
from steadysam.prompts.files import write_prompts
from steadysam.runs import load_run, read_record
from steadysam.training import train
from toys import make_volume, some_prompts, steadysam


@pytest.fixture
def case(tmp_path) -> tuple[Path, Path]:
    """An image that is called like its mask will be, and its prompts."""
    grid = GRIDS["oblique"]
    write_prompts(tmp_path / "prompts" / "a.json", some_prompts(grid))
    write_volume(tmp_path / "images" / "a.nii.gz", make_volume(grid).array, grid)
    return tmp_path / "images", tmp_path / "prompts"


@pytest.mark.parametrize("names", [("weights.safetensors",), ("config.toml", "run.json"), ("runs.json",)])
def test_a_folder_with_a_run_is_refused(tmp_path, names):
    for name in names:
        write_text(tmp_path / name, "")
    with pytest.raises(FileSystemError, match=f"OUTPUT_RUN[\\s\\S]*{names[0]}"):
        refuse_output(tmp_path, ())


def test_a_run_of_nnunet_is_spared_by_all(toy_values, tmp_path):
    write_json(tmp_path / "nn" / "run.json", {"format": 1, "status": "exported", "commands": []})
    before = sha256_file(tmp_path / "nn" / "run.json")
    with pytest.raises(FileSystemError, match="OUTPUT_RUN.*[\\s\\S]*nnunet train"):
        refuse_output(tmp_path / "nn", ())
    for resume in (False, True):
        with pytest.raises(FileSystemError, match="FS_EXISTS.*another command"):
            train(make_config(toy_values), tmp_path / "nn", resume=resume)
    assert [path.name for path in (tmp_path / "nn").iterdir() if path.suffix != ".lock"] == ["run.json"]
    assert sha256_file(tmp_path / "nn" / "run.json") == before


@pytest.mark.parametrize("content", ["[1]", "null", "{}"])
def test_a_record_that_is_none_of_ours_is_not_gone_on_from(toy_values, tmp_path, content):
    write_text(tmp_path / "run" / "run.json", content)
    for config in ("", to_toml(make_config(toy_values).model_dump(mode="json"))):
        if config:
            write_text(tmp_path / "run" / "config.toml", config)
        with pytest.raises(FileSystemError, match="FS_EXISTS.*another command"):
            train(make_config(toy_values), tmp_path / "run", resume=True)
        with pytest.raises(CheckpointError, match="RUN_MISSING"):
            read_record(tmp_path / "run")
    assert (tmp_path / "run" / "run.json").read_text() == content


def test_other_folders_are_not(tmp_path):
    write_text(tmp_path / "out" / "run.json", "{}")  # results of an earlier call
    write_text(tmp_path / "half" / "run.json", '{"status": ')
    write_text(tmp_path / "mine" / "config.toml", "")
    write_text(tmp_path / "images" / "a.nii.gz", "")
    inputs = (tmp_path / "images", tmp_path / "images" / "a.nii.gz", None)
    for name in ("out", "half", "mine", "new", "images/out"):
        refuse_output(tmp_path / name, inputs)


def test_a_folder_of_inputs_is_refused_by_any_name(tmp_path):
    write_text(tmp_path / "images" / "a.nii.gz", "")
    (tmp_path / "link").symlink_to(tmp_path / "images")
    for given in (tmp_path / "images", tmp_path / "images" / "a.nii.gz", tmp_path / "images" / ".." / "images"):
        for output in (tmp_path / "images", tmp_path / "link"):
            with pytest.raises(FileSystemError, match="OUTPUT_INPUT"):
                refuse_output(output, (None, given))


def test_predict_writes_neither_over_images_nor_prompts_nor_runs(toy_run, case, tmp_path):
    images, prompts = case
    before = {path: sha256_file(path) for path in (*tmp_path.rglob("a.*"), *toy_run.glob("*.*"))}
    run, jobs = load_run(toy_run, "cpu"), find_jobs(images, prompts)
    for output, code in ((images, "OUTPUT_INPUT"), (prompts, "OUTPUT_INPUT"), (toy_run, "OUTPUT_RUN")):
        with pytest.raises(FileSystemError, match=code):
            predict(run, jobs, output)
        words = ("predict", "-i", images, "--prompts", prompts, "-m", toy_run, "-o", output, "-d", "cpu")
        assert steadysam(*words) == 8
    assert {path: sha256_file(path) for path in before} == before


def test_a_run_does_not_begin_among_results_and_results_are_no_run(toy_run, toy_values, case, tmp_path):
    images, prompts = case
    predict(load_run(toy_run, "cpu"), find_jobs(images, prompts), tmp_path / "out")
    there = {path: sha256_file(path) for path in (tmp_path / "out").iterdir()}
    with pytest.raises(FileSystemError, match="FS_EXISTS.*results"):
        train(make_config(toy_values), tmp_path / "out")
    assert {path: sha256_file(path) for path in (tmp_path / "out").iterdir()} == there
    with pytest.raises(CheckpointError, match=r"RUN_MISSING[\s\S]*folder made by train"):
        load_run(tmp_path / "out", "cpu")


def test_masks_of_a_call_that_did_not_end_are_told_of(toy_run, case, tmp_path, caplog):
    images, prompts = case
    write_volume(tmp_path / "out" / "lost.nii.gz", make_volume(GRIDS["plain"]).array, GRIDS["plain"])
    write_json(tmp_path / "out" / "a.audit.json", {})
    predict(load_run(toy_run, "cpu"), find_jobs(images, prompts), tmp_path / "out")
    assert "holds masks of an earlier call, which evaluate would score: lost" in caplog.text

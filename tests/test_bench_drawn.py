"""A suite whose detectors begin with drawn pictures: one run for all targets and seeds, and keys that know of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from steadysam.bench.group import Folders, Group, Options
from steadysam.bench.run import runs_of, trained_runs
from steadysam.bench.store import cells, run_path
from steadysam.bench.suite import Suite, read_suite
from steadysam.bench.sweep import swept_runs
from steadysam.config import merged, read_config
from steadysam.errors import ConfigError
from steadysam.files import read_json, sha256_file
from toys import steadysam

TEXT = """
name = "toy"
seeds = [0, 1]
evaluation_size = 32
training = "none"

[targets.blob]
dataset = "{dataset}"
label = "blob"

[prompts.none]
nothing = true

[run.preprocess]
size = 32
[run.method.detector]
image_size = 32
close_mosaic = 0
teacher = "n"
teacher_stage = {{ epochs = 0, batch_size = 4, slices_per_epoch = 8 }}
student_stage = {{ epochs = 0, batch_size = 4, slices_per_epoch = 8 }}
[run.compute]
device = "cpu"
threads = 1

[runs.drawn]
drawn = {{ images = 12, size = 32, seed = 5 }}
method = {{ name = "detector", detector = {{ teacher_stage = {{ epochs = 1 }}, student_stage = {{ epochs = 1 }} }} }}
[runs.detector]
method = {{ name = "detector" }}
begin = "drawn"
[runs.ld]
method = {{ name = "detector", detector = {{ distill = "ld" }} }}
start = "detector"
skip = ["teacher"]
begin = "drawn"

[rows."drawn only"]
run = "drawn"
[rows.LD]
run = "ld"
"""


@pytest.fixture(scope="module")
def made(toy_dataset, tmp_path_factory) -> tuple[Path, Path, Folders]:
    """The suite's file and its finished store, by the command line."""
    folder = tmp_path_factory.mktemp("drawn")
    suite, store = folder / "toy.toml", folder / "store"
    suite.write_text(TEXT.format(dataset=toy_dataset.name), "utf-8")
    words = ("bench", suite, "--data", toy_dataset.parent, "-o", store, "--work", folder / "work")
    assert steadysam(*words) == 0
    return suite, store, Folders(toy_dataset.parent.resolve(), (folder / "work").resolve(), store.resolve())


def test_one_run_on_drawn_pictures_serves_all(made):
    suite, store, folders = made
    assert {(cell.row, cell.seed) for cell in cells(store)} == {(r, s) for r in ("drawn only", "LD") for s in (0, 1)}
    weights = {cell.facts["weights_sha256"] for cell in cells(store) if cell.row == "drawn only"}
    record = read_json(run_path(store, "drawn", 5, "drawn"))
    assert weights == {record["weights_sha256"]}
    assert not run_path(store, "blob", 0, "drawn").exists()
    config = read_config(folders.work / "drawn" / "drawn" / "config.toml")
    assert (config["compute"]["seed"], config["backbone"]["seed"], config["data"]["label"]) == (5, 5, "object")
    groups = [Group(read_suite(suite), "blob", seed, folders) for seed in (0, 1)]
    assert groups[0].config("drawn") == groups[1].config("drawn")


def test_both_stages_begin_there_and_a_distilled_student_not_where_its_sibling_ended(made):
    _, _, folders = made
    drawn, group = folders.work / "drawn" / "drawn", folders.work / "blob-s1"
    for stage, run in (("teacher", "detector"), ("student", "detector"), ("student", "ld")):
        name = f"checkpoints/{stage}.safetensors"
        assert sha256_file(group / run / name) == sha256_file(drawn / name), "no epoch follows in this suite"
    started = [(entry["run"], entry["file"]) for entry in read_json(group / "ld" / "run.json")["start"]]
    assert started == [("drawn", "checkpoints/student.safetensors"), ("detector", "checkpoints/teacher.safetensors")]


def changed(suite: Suite, run: str, **fields) -> Suite:
    runs = {**suite.runs, run: suite.runs[run].model_copy(update=fields)}
    return suite.model_copy(update={"runs": runs})


def test_a_cell_is_stale_when_what_it_began_with_changes(made):
    suite, _, folders = made
    read = read_suite(suite)
    drawn = read.runs["drawn"].drawn
    assert drawn is not None
    others = (
        changed(read, "drawn", drawn=drawn.model_copy(update={"images": 13})),
        changed(read, "drawn", method={"name": "detector", "detector": {"ema": 0.9}}),
        changed(read, "detector", begin=None),
        changed(read, "ld", begin=None),
    )
    keys = [Group(each, "blob", 0, folders).key("LD", "none") for each in (read, *others)]
    assert len(set(keys)) == len(keys)
    elsewhere = Folders(folders.data, folders.work / "elsewhere", folders.store)
    assert Group(read, "blob", 0, elsewhere).key("LD", "none") == keys[0], "a path decides nothing"


def test_what_is_trained_for_a_row_has_what_it_begins_with(made):
    read = read_suite(made[0])
    assert trained_runs(read, ["LD"]) == runs_of(read, ["LD"]) == {"ld", "detector", "drawn"}


def test_a_run_on_drawn_pictures_starts_from_nothing(made, tmp_path):
    text = made[0].read_text("utf-8")
    for bad in (
        text.replace("[runs.detector]", 'start = "ld"\n[runs.detector]'),
        text.replace('begin = "drawn"', 'begin = "dawn"'),
    ):
        (tmp_path / "bad.toml").write_text(bad, "utf-8")
        with pytest.raises(ConfigError, match=r"CONFIG_VALUE[\s\S]*(no start, begin|there is no 'dawn')"):
            read_suite(tmp_path / "bad.toml")


def test_the_suite_in_the_repository_differs_in_its_beginning_and_the_length_of_its_mask_stages(tmp_path):
    home = Path(__file__).parents[1] / "benchmarks"
    random, drawn = (read_suite(home / "suites" / f"{name}.toml") for name in ("ldfsam_cpu", "ldfsam_drawn_cpu"))
    detectors = {name for name, run in random.runs.items() if run.method.get("name") == "detector"} - {"teacher"}
    longer = {"teacher_long", "detector_long", "ld_long", "ld_from_long", "ld_third", "ld_thrice"}
    assert {name for name, run in drawn.runs.items() if run.begin == "drawn"} == detectors | longer
    assert {name for name, run in drawn.runs.items() if run.begin not in (None, "drawn")} == {"unet_drawn"}
    assert not swept_runs(drawn)
    folders, rates = Folders(tmp_path, tmp_path, tmp_path), read_json(home / "results" / "ldfsam" / "rates.json")
    chosen, given = (
        Group(suite, "RV", 42, folders, options)
        for suite, options in ((random, Options(rates=rates)), (drawn, Options()))
    )
    for run in random.runs:
        theirs, ours = chosen.config(run), given.config(run)
        half = run.endswith("_50")  # there these rows have as few epochs as with all patients, here twice as many
        if half and theirs.method["name"] == "detector":
            twice = {f"{stage}_stage": {"epochs": 160} for stage in ("teacher", "student")}
            theirs = theirs.model_copy(update={"method": merged(theirs.method, {"detector": twice})})
        for stage in {"masks", "tuning"} & set(theirs.method):
            epochs = (8 if half else 4) * theirs.method[stage]["epochs"]
            early = max(epochs, theirs.method[stage]["early_stop"])
            theirs = theirs.model_copy(
                update={"method": merged(theirs.method, {stage: {"epochs": epochs, "early_stop": early}})}
            )
        start = ours.start.model_copy(update={"begin": None})
        assert ours.model_copy(update={"start": start}) == theirs, run
    assert {name: row for name, row in drawn.rows.items() if row.run in random.runs} == random.rows

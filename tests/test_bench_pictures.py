"""A suite without prompts on pictures: detectors, budgets, runs that start from runs, controls, and their report."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from steadysam.bench.evidence import Evidence
from steadysam.bench.group import Folders, Group, Options
from steadysam.bench.run import runs_of, trained_runs
from steadysam.bench.scoring import RowSegmenter, segmenter_of
from steadysam.bench.store import cells, run_path
from steadysam.bench.suite import PointsFrom, read_suite
from steadysam.box_prompts import true_boxes
from steadysam.errors import ConfigError
from steadysam.files import read_json, write_json
from steadysam.methods import METHODS
from steadysam.segmenting import Result
from steadysam.types import Frame, Grid, Mask
from toys import steadysam

TEXT = """
name = "pictures"
seeds = [3]
evaluation_size = 32
training = "none"

[targets.spots]
dataset = "Dataset001_Spots"
label = "spot"

[prompts.none]
nothing = true

[prompts."true boxes"]
simulator = "boxes"
oracle = true

[run.preprocess]
size = 32
[run.backbone]
name = "sam-test"
[run.compute]
device = "cpu"
threads = 1
[run.method]
masks = { epochs = 1, batch_size = 4 }
tuning = { epochs = 1, batch_size = 4 }
[run.method.detector]
teacher = "n"
image_size = 64
min_area = 4
teacher_stage = { epochs = 1, batch_size = 4, warmup_steps = 0 }
student_stage = { epochs = 1, batch_size = 4, warmup_steps = 0 }

[runs.detector]
method = { name = "detector" }
[runs.ld]
method = { name = "detector", detector = { distill = "ld" } }
start = "detector"
skip = ["teacher"]
[runs.ldfsam]
method = { name = "ldfsam" }
start = "ld"
skip = ["teacher", "student"]
[runs.boxes]
method = { name = "ldfsam", mode = "box", detector = { teacher = "" } }
start = "ld"
skip = ["student"]
[runs.unet]
method = { name = "unet", features = [4, 4, 4, 4, 4, 4] }
[runs.unet_50]
method = { name = "unet", features = [4, 4, 4, 4, 4, 4] }
data = { train_fraction = 0.5 }
[runs.unet_40]
method = { name = "unet" }
data = { train_fraction = 0.4, subset_seed = 7 }
[runs.med2d]
method = { name = "sam_med2d", prompts = "none", adapt = "lora" }
[runs.med2d_box]
method = { name = "sam_med2d", prompts = "box", adapt = "lora" }

[rows.detector]
run = "detector"
settings = { detector = { confidence = 0.001 } }
group = "detectors alone"
[rows.LDFSAM]
run = "ldfsam"
figure = "prompt form"
x = "S+D"
column = "student"
also = [{ figure = "budget", x = 100, column = "LDFSAM" }, { figure = "controls", x = "LDFSAM" }]
[rows.boxes]
run = "boxes"
figure = "prompt form"
x = "boxes"
column = "student"
[rows."LDFSAM, another's prompts"]
run = "ldfsam"
detail_from = "another"
figure = "controls"
x = "another's"
[rows.UNet]
run = "unet"
also = [{ figure = "budget", x = 100, column = "UNet" }]
[rows."UNet, 50 %"]
run = "unet_50"
figure = "budget"
x = 50
column = "UNet"
[rows."no prompts"]
run = "med2d"
[rows."true boxes"]
run = "med2d_box"
prompts = ["true boxes"]
group = "oracle"
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Twelve JPEG pictures, 40 x 30 px, with one or two spots in PNG masks; four are for tests."""
    folder = tmp_path_factory.mktemp("pictures") / "Dataset001_Spots"
    chance = np.random.default_rng(0)
    y, x = np.mgrid[:30, :40]
    for number in range(12):
        part = "Ts" if number >= 8 else "Tr"
        mask = np.zeros((30, 40), np.uint8)
        for cx, cy in [(10 + number, 10), (32, 22)][: 1 + number % 2]:
            mask[(x - cx) ** 2 + (y - cy) ** 2 < 25] = 1
        noise = chance.normal(60, 10, (30, 40, 3)) + 120 * mask[..., None]
        for kind, name, array in (("images", f"p{number:02d}_0000.jpg", noise), ("labels", f"p{number:02d}.png", mask)):
            (folder / f"{kind}{part}").mkdir(parents=True, exist_ok=True)
            Image.fromarray(array.clip(0, 255).astype(np.uint8)).save(folder / f"{kind}{part}" / name)
    info = {"name": "Spots", "channel_names": {"0": "R"}, "labels": {"background": 0, "spot": 1}}
    info |= {"file_ending": ".jpg", "label_file_ending": ".png"}
    (folder / "dataset.json").write_text(json.dumps(info), "utf-8")
    return folder.parent


@pytest.fixture(scope="module")
def store(data, tmp_path_factory):
    """A finished store."""
    folder = tmp_path_factory.mktemp("bench")
    (folder / "suite.toml").write_text(TEXT, "utf-8")
    assert steadysam("bench", folder / "suite.toml", "--data", data, "-o", folder / "store") == 0
    return folder / "store"


def group_of(store, data) -> Group:
    suite = read_suite(store.parent / "suite.toml")
    return Group(suite, "spots", 3, Folders(data.resolve(), (store / "work").resolve(), store.resolve()), Options())


def found(store):
    return {cell.row: cell for cell in cells(store)}


def test_every_row_is_scored_on_pictures_and_nothing_is_said_of_prompts(store):
    cells_of = found(store)
    assert len(cells_of) == 8
    for row, cell in cells_of.items():
        facts = cell.facts
        assert len(cell.cases) == 4
        assert all(case.spacing_mm is None for case in cell.cases)
        assert 0 <= facts["pixel_accuracy"] <= 1
        assert facts["oracle"] == (row == "true boxes")
        if row != "true boxes":
            assert (facts["noise_model"], facts["empty_slice_rule"], facts["prompt_sources"]) == (None, None, [])
            assert facts["prompted"] is False
    assert cells_of["no prompts"].facts["evidence"]["given"] == 0
    assert cells_of["true boxes"].facts["prompts_given"] == 4


def test_a_stage_goes_through_two_runs_to_the_third(store):
    """ldfsam takes its teacher from ld, which took it from detector, and its student from ld."""
    work = store / "work" / "spots-s3"
    assert sorted(p.stem for p in (work / "detector" / "checkpoints").glob("*.json")) == ["student", "teacher"]
    assert [p.stem for p in (work / "ld" / "checkpoints").glob("*.json")] == ["student"]
    assert [p.stem for p in (work / "ldfsam" / "checkpoints").glob("*.json")] == ["masks"]
    assert list(read_json(store / "runs" / "spots-s3-ldfsam.json")["stages"]) == ["masks"]


def test_a_run_that_was_trained_anew_gets_a_new_record(store, data, tmp_path):
    group = replace(group_of(store, data), folders=Folders(data.resolve(), (store / "work").resolve(), tmp_path))
    path = run_path(tmp_path, "spots", 3, "unet")
    group.train("unet")
    record = read_json(path)
    assert record == read_json(run_path(store, "spots", 3, "unet"))
    write_json(path, record | {"seconds": {"tuning": 9.0}})
    group.loaded("unet", {})
    assert read_json(path)["seconds"] == {"tuning": 9.0}, "the same weights keep what is known of their training"
    write_json(path, other := record | {"weights_sha256": "0" * 64})
    group.train("unet")
    assert read_json(path) == other, "a run that others start from leaves the record to the cells"
    group.loaded("unet", {})
    assert read_json(path) == record, "a cell is about to name the new weights"


def test_a_derived_run_has_its_own_method_over_that_of_all(store, data):
    group = group_of(store, data)
    method = group.config("boxes").method
    assert (method["mode"], method["detector"]["teacher"], method["detector"]["image_size"]) == ("box", "", 64)
    assert method["masks"]["epochs"] == 1
    assert method["masks"]["optimizer"] == METHODS["ldfsam"].Config().model_dump()["masks"]["optimizer"]
    assert group.config("ldfsam").method["detector"]["distill"] == "none", (
        "nothing is taken from the run it starts from"
    )
    assert trained_runs(group.suite, ["LDFSAM"]) == {"ldfsam", "ld", "detector"}


def test_the_runs_of_rows_are_those_of_points_coarse_masks_starts_and_rates():
    suite = read_suite(Path(__file__).parent.parent / "benchmarks" / "suites" / "spd.toml")
    row = next(name for name, spec in suite.rows.items() if isinstance(spec.points, PointsFrom))
    assert trained_runs(suite, [row]) >= {suite.rows[row].run, "spd"}
    assert trained_runs(suite, ["SAM-Refiner on UNet"]) == {"refiner", "unet"}
    follower = next(row for row, spec in suite.rows.items() if suite.runs[spec.run].like)
    run = suite.rows[follower].run
    assert suite.runs[run].like not in trained_runs(suite, [follower])
    assert runs_of(suite, [follower]) >= {run, suite.runs[run].like}


def test_a_budget_draws_its_patients_with_the_seed_of_the_group(store, data):
    group = group_of(store, data)
    shares = {run: (d := group.config(run).data) and (d.train_fraction, d.subset_seed) for run in group.suite.runs}
    assert shares["unet_50"] == (0.5, 3)
    assert shares["unet_40"] == (0.4, 7)
    assert shares["unet"] == (1.0, 0)
    record = read_json(store / "work" / "spots-s3" / "unet-50" / "run.json")["data"]["split"]
    whole = read_json(store / "work" / "spots-s3" / "unet" / "run.json")["data"]["split"]
    assert set(record["train"]) < set(whole["train"])
    assert record["val"] == whole["val"]
    assert record["test"] == whole["test"]
    assert "seed 3" in record["rule"]


def test_another_image_prompts_where_the_row_says_so(store, data):
    cells_of = found(store)
    own, other = cells_of["LDFSAM"], cells_of["LDFSAM, another's prompts"]
    assert own.key != other.key
    assert own.facts["weights_sha256"] == other.facts["weights_sha256"]
    group = group_of(store, data)
    names = [case.name for case, _, _ in group.test]
    segmenter = segmenter_of(group, "LDFSAM, another's prompts", "none")
    assert isinstance(segmenter, RowSegmenter)
    assert segmenter._next(names[0]) is group.test[1][1]
    assert segmenter._next(names[-1]) is group.test[0][1]
    for numbers, at, expected in (("0011", 0, 2), ("0011", 2, 0), ("0010", 3, 2)):
        segmenter.group = group_with_patients(store, data, numbers)
        assert segmenter._next(names[at]) is segmenter.group.test[expected][1], "not of the same patient"
    segmenter.group = group_with_patients(store, data, "0000")
    with pytest.raises(ConfigError, match="DETAIL_ONE_PATIENT"):
        segmenter._next(names[0])


def group_with_patients(store, data, numbers: str) -> Group:
    """The group, but with test cases of these patients."""
    group = group_of(store, data)
    cases = [(replace(case, patient=p), *rest) for p, (case, *rest) in zip(numbers, group.test, strict=True)]
    group.__dict__["test"] = cases
    return group


def test_a_detector_has_average_precision_and_the_rows_settings(store):
    facts = {row: cell.facts for row, cell in found(store).items()}
    scores = facts["detector"]["evidence"]["detection"]
    assert scores["least_score"] == 0.001, "the row's table is merged with the run's"
    assert scores["true"] == 6
    assert 0 <= scores["AP75"] <= scores["AP50"] <= 1
    assert facts["boxes"]["evidence"]["detection"]["least_score"] == 0.25
    assert "detection" not in facts["LDFSAM"]["evidence"]


def test_the_report_has_figures_of_two_things_and_a_table_of_detectors(store, tmp_path):
    suite = store.parent / "suite.toml"
    assert steadysam("report", store, "-o", tmp_path, "--draws", 50, "--suite", suite) == 0
    numbers = read_json(tmp_path / "report.json")
    budget = numbers["figures"]["figures/budget-none"]
    assert {(row["column"], row["x"]) for row in budget} == {("LDFSAM", 100), ("UNet", 100), ("UNet", 50)}
    assert (tmp_path / "figures" / "budget-none.png").stat().st_size > 1000
    assert (tmp_path / "figures" / "controls-none.png").exists()
    assert "| prompt form | student: DSC (95 %) | IoU |" in (tmp_path / "grids.md").read_text("utf-8")
    assert [row["row"] for row in numbers["detectors"]] == ["detector", "boxes"]
    (weight,) = numbers["distillation"]
    assert (weight["run"], weight["place"], weight["kd_to_cls"]) == ("ld", "last", None)
    assert weight["main_to_dfl"] > 0
    assert "L_main : DFL" in (tmp_path / "detectors.md").read_text("utf-8")
    main = (tmp_path / "tables" / "none.md").read_text("utf-8")
    assert "pixel accuracy" in main
    assert "| AP50 |" in main
    assert "noise" not in main
    with open(tmp_path / "detectors.csv", encoding="utf-8") as handle:
        assert [row["true"] for row in csv.DictReader(handle)] == ["6", "6"]


def test_boxes_are_judged_in_the_pixels_of_the_model():
    """Two spots on a slice of 40 x 20 px, seen at 32 px by the model and at 64 px by the detector."""
    grid = Grid((40, 20, 2), np.eye(4))
    mask = np.zeros((40, 20, 2), bool)
    mask[10:20, 5:10, 0] = mask[30:32, 15:16, 0] = True
    truth, frame = Mask(mask, grid), Frame(20, 40, 32)
    rows = [[0, 8.0, 8.0, 16.0, 16.0, 0.9], [1, 0.0, 0.0, 4.0, 4.0, 0.3]]
    empty = np.zeros((2, 32, 32), np.float32)
    result = Result(truth, (), (), empty, None, frame, {"boxes": rows})
    boxes = true_boxes(truth, result.frame, 64, 16)
    assert [b.tolist() for b in boxes] == [[[8.0, 8.0, 16.0, 16.0]], []], "the second spot is smaller than 16 px"
    evidence = Evidence()
    evidence.add_boxes("a", result, truth, METHODS["detector"].Config())
    assert evidence.to_dict()["detection"]["true"] == 2, "640 px have room for both"
    few = Evidence()
    few.add_boxes("a", result, truth, METHODS["detector"].Config.model_validate({"detector": {"image_size": 64}}))
    matches = {"a": {"scores": [0.9, 0.3], "hits": [1023, 0], "true": 1}}
    scores = {"AP50": 1.0, "AP75": 1.0, "AP": 1.0}
    assert few.detection() == {**scores, "found": 2, "true": 1, "least_score": 0.25, "cases": matches}
    none = Evidence()
    none.add_boxes("a", Result(truth, (), (), empty, None, frame, {}), truth, None)
    assert "detection" not in none.to_dict()


@pytest.mark.parametrize("name", ["ldfsam", "ldfsam_cpu"])
def test_the_suites_of_detectors_train_each_stage_once_on_one_budget(request, tmp_path, name):
    """Settings are valid, skipped stages are trained by what a run starts from, and all masks cost the same."""
    suite = read_suite(request.config.rootpath / "benchmarks" / "suites" / f"{name}.toml")
    target = next(iter(suite.targets))
    group = Group(suite, target, 10, Folders(tmp_path, tmp_path, tmp_path), Options(rates={"ldfsam": 3e-3}))
    budgets = set()
    for run, spec in suite.runs.items():
        config = group.config(run)
        found = {stage.name: stage for stage in METHODS[config.method_name].stages(config.method_config())}
        left = set(found) - set(config.start.skip)
        assert set(config.start.skip) <= set(found), run
        assert not left & {"teacher", "student"} or config.method_name == "detector", run
        if spec.start is not None:
            assert suite.runs[spec.start].data == spec.data, "no label comes from a patient beyond the budget"
        for stage in (found[key] for key in left & {"masks", "tuning"} if not spec.data):
            cost = stage.settings
            budgets.add((cost.epochs, cost.batch_size, cost.slices_per_epoch, cost.schedule, cost.warmup_steps))
            assert cost.select_by == "dice", f"{run}: its epoch is chosen in another way"
        for stage in (found[key] for key in left):
            assert stage.settings.early_stop >= stage.settings.epochs, f"{run}: its budget is cut short"
        if config.method_name == "ldfsam":
            assert found["masks"].settings.learning_rate == 3e-3, "all variants take the rate that was chosen for one"
    assert len(budgets) == 1
    keys = [group.key(row, prompts) for row in group.rows for prompts in suite.prompts_of(row, target, 10)]
    assert len(set(keys)) == len(keys)


def test_a_set_of_nothing_cannot_be_something(tmp_path):
    path = tmp_path / "suite.toml"
    path.write_text(TEXT.replace("nothing = true", 'nothing = true\nsimulator = "clicks"'), "utf-8")
    with pytest.raises(ConfigError, match="nothing = true"):
        read_suite(path)

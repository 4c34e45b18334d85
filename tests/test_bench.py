"""A suite from file to cells: on the toy data set, with every kind of row that has a rule of its own."""

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from conftest import make_affine
from steadysam.bench.claims import kept_claims
from steadysam.bench.evidence import Evidence, in_mask
from steadysam.bench.group import Folders, Group, Options, nested
from steadysam.bench.promptsets import chosen_points, noise_model, some_points
from steadysam.bench.run import Work, bench, jobs_of, progress, rows_of_tables
from steadysam.bench.store import cell_path, cells, read_cell
from steadysam.bench.suite import Suite, read_suite
from steadysam.bench.sweep import best_rate, chosen_rates
from steadysam.config import merged
from steadysam.errors import BatchError, ConfigError, InputError
from steadysam.files import read_json, slug
from steadysam.geometry import slice_points
from steadysam.metrics import METRICS
from steadysam.report.benchmark.claims import claim_rows
from steadysam.report.benchmark.pooling import read_store
from steadysam.summary import summarise
from steadysam.types import Grid, SlicePoints
from toys import Holder, some_prompts, steadysam

ONE = {"epochs": 1, "batch_size": 8, "slices_per_epoch": 8}
TEXT = """
name = "toy"
seeds = [0, 1]
evaluation_size = 32

[targets.blob]
dataset = "{dataset}"
label = "blob"

[prompts.noisy]
simulator = "paper"

[prompts.clean]
simulator = "clicks"
oracle = true

[prompts.worse]
base = "noisy"
corruption = "distractors"
severity = 1.0
noise = "distractors"
level = 8
seeds = [0]

[run.preprocess]
size = 32
[run.backbone]
name = "sam-test"
[run.method]
stage1 = {{ epochs = 1, slices_per_epoch = 8 }}
stage2 = {{ epochs = 1, slices_per_epoch = 8 }}
tuning = {{ epochs = 1, slices_per_epoch = 8 }}
[run.compute]
device = "cpu"
threads = 1

[runs.spd]
method = {{ name = "spd" }}
[runs.local]
method = {{ name = "spd", n = 0 }}
start = "spd"
skip = ["saliency"]
[runs.frozen]
method = {{ name = "zero_shot" }}
seeds = [0]
[runs.tuning]
method = {{ name = "sam_tuning" }}
sweep = ["tuning.learning_rate"]

[rows.SPD]
run = "spd"
prompts = ["noisy", "worse"]
[rows."SPD, raw"]
run = "spd"
settings = {{ prompts = "raw" }}
[rows.Local]
run = "local"
[rows."frozen, one point"]
run = "frozen"
points = "random:1"
[rows."frozen, consensus"]
run = "frozen"
points = {{ run = "spd" }}
[rows."frozen, truth"]
run = "frozen"
prompts = ["clean"]
group = "oracle"
[rows.Tuning]
run = "tuning"
seeds = [0]

[sweep]
rates = [1e-3, 1e-2]
targets = ["blob"]

[claims."stray points cost something"]
rows = {{ "SPD" = 1, "SPD [worse]" = -1 }}
"""


@pytest.fixture(scope="module")
def store(toy_dataset, tmp_path_factory):
    """A finished store of one seed, made through the command line."""
    folder = tmp_path_factory.mktemp("bench")
    suite = folder / "toy.toml"
    suite.write_text(TEXT.format(dataset=toy_dataset.name), "utf-8")
    assert steadysam("bench", suite, "--data", toy_dataset.parent, "-o", folder / "store", "--seeds", 0) == 0
    return suite, folder / "store", toy_dataset.parent


def folders_of(store):
    _, path, data = store
    return Folders(data.resolve(), (path / "work").resolve(), path.resolve())


def test_every_cell_of_the_suite_is_there_and_says_where_it_comes_from(store):
    suite, path, data = store
    found = {(cell.row, cell.prompts): cell for cell in cells(path)}
    assert set(found) == {
        *((row, "noisy") for row in ("SPD", "SPD, raw", "Local", "frozen, one point", "frozen, consensus", "Tuning")),
        ("SPD", "worse"),
        ("frozen, truth", "clean"),
    }
    state = progress(read_suite(suite), Folders(data, path / "work", path), Work(seeds=(0,)), Options())
    assert (state.done, state.total, state.missing) == (8, 8, {("blob", 0): ()})
    spd = found["SPD", "noisy"].facts
    assert (spd["method"], spd["prompt_sources"], spd["training_seed"]) == ("spd", ["simulated"], 0)
    assert spd["evidence"]["slices_positive"] + spd["evidence"]["slices_empty"] == len(
        found["SPD", "noisy"].cases[0].slices
    )
    assert found["frozen, truth", "clean"].facts["oracle"] is True
    assert found["SPD", "worse"].facts["noise"] == ["distractors", 8]
    assert found["SPD", "worse"].facts["prompt_set"] != spd["prompt_set"]
    assert found["frozen, one point", "noisy"].facts["training_seed"] is None
    for cell in found.values():
        assert set(summarise(cell.cases, cell.patients, draws=50).scores) == set(METRICS)


def test_rows_give_their_runs_the_points_that_they_say(store):
    _, path, _ = store
    found = {(cell.row, cell.prompts): cell.facts for cell in cells(path)}
    raw, one = found["SPD, raw", "noisy"], found["frozen, one point", "noisy"]
    slices = raw["evidence"]["slices_positive"] + raw["evidence"]["slices_empty"]
    assert one["prompts_given"] == slices
    assert raw["prompts_given"] > slices
    assert found["frozen, consensus", "noisy"]["evidence"]["given"] == found["SPD", "noisy"]["evidence"]["given"]


def test_the_same_command_keeps_what_is_there(store, capsys):
    suite, path, data = store
    before = {p: p.stat().st_mtime_ns for p in (path / "cells").iterdir()}
    assert steadysam("bench", suite, "--data", data, "-o", path, "--seeds", 0) == 0
    assert {p: p.stat().st_mtime_ns for p in (path / "cells").iterdir()} == before


def test_a_kept_cell_follows_the_suite_to_another_place(store):
    suite, path, _ = store
    read = read_suite(suite)
    rows = {**read.rows, "Local": read.rows["Local"].model_copy(update={"group": "moved", "figure": "n", "x": 0})}
    place = cell_path(path, "blob", 0, "Local", "noisy")
    before = read_cell(place)
    moved = read.model_copy(update={"rows": rows})
    bench(moved, folders_of(store), Work(seeds=(0,)), Options(rows=("Local",)), lambda line: None)
    after = read_cell(place)
    assert (after.facts["group"], after.facts["figure"], after.facts["x"]) == ("moved", "n", 0)
    assert (after.key, after.cases) == (before.key, before.cases)
    bench(read, folders_of(store), Work(seeds=(0,)), Options(rows=("Local",)), lambda line: None)
    assert read_cell(place) == before


def test_a_cell_made_again_has_the_same_bytes(store):
    suite, path, _ = store
    place = cell_path(path, "blob", 0, "SPD", "noisy")
    before = place.read_bytes()
    place.unlink()
    bench(read_suite(suite), folders_of(store), Work(seeds=(0,)), Options(rows=("SPD",)), lambda line: None)
    assert place.read_bytes() == before


def test_a_cell_of_other_settings_is_refused_and_the_rest_goes_on(store):
    suite, path, _ = store
    read = read_suite(suite)
    rows = {**read.rows, "SPD": read.rows["SPD"].model_copy(update={"settings": {"tau": 0.9}})}
    changed = read.model_copy(update={"rows": rows})
    with pytest.raises(BatchError, match="2 cells failed"):
        bench(changed, folders_of(store), Work(seeds=(0,)), Options(rows=("SPD", "Local")), lambda line: None)
    failures = read_json(path / "failures.json")
    assert {failure["code"] for failure in failures} == {"BENCH_STALE"}
    (path / "failures.json").unlink()


def test_the_store_keeps_what_the_suite_claims(store):
    suite, path, _ = store
    assert kept_claims(path) == read_suite(suite).claims
    row = claim_rows(read_store(path, draws=20))[-1]
    cell, worse = (read_cell(cell_path(path, "blob", 0, "SPD", prompts)) for prompts in ("noisy", "worse"))
    dice, less = ([part.dsc for case in one.cases for part in case.slices] for one in (cell, worse))
    assert row["value"] == pytest.approx(np.mean(dice) - np.mean(less))


def test_the_rate_is_chosen_on_validation_cases_and_used(store):
    suite, path, _ = store
    losses = read_json(path / "sweep" / "tuning-blob.json")["validation_loss"]
    chosen = read_json(path / "rates.json")["tuning"]
    assert chosen == float(min(losses, key=losses.get))
    rates = {"tuning": chosen}
    config = Group(read_suite(suite), "blob", 0, folders_of(store), Options(rates=rates)).config("tuning")
    assert config.method["tuning"]["learning_rate"] == chosen
    assert config.method["tuning"]["epochs"] == 1


def test_ranks_decide_over_targets_and_ties_take_the_smaller_rate():
    losses = [{"0.001": 1.0, "0.01": 2.0, "0.1": 3.0}, {"0.001": 9.0, "0.01": 8.0, "0.1": 20.0}]
    assert best_rate(losses, (0.1, 0.01, 0.001)) == 0.001
    assert best_rate([{"0.001": 5.0, "0.01": 1.0}], (0.001, 0.01)) == 0.01


def test_jobs_begin_with_one_seed_of_all_targets_and_can_be_shared(store):
    suite = read_suite(store[0])
    assert jobs_of(suite, Work()) == [("blob", 0), ("blob", 1)]
    assert jobs_of(suite, Work(part=1, parts=2)) == [("blob", 1)]
    with pytest.raises(ConfigError, match="no target 'liver'"):
        jobs_of(suite, Work(targets=("liver",)))
    group = Group(suite, "blob", 1, folders_of(store))
    assert group.rows == ["SPD", "SPD, raw", "Local"], "frozen and tuning have one seed"
    assert suite.prompts_of("SPD", "blob", 0) == ("noisy", "worse")
    assert suite.prompts_of("SPD", "blob", 1) == ("noisy",)


def test_rows_may_be_scored_on_some_targets_only():
    suite = read_suite(Path(__file__).parents[1] / "benchmarks" / "suites" / "ldfsam_cpu.toml")
    assert not suite.scores("UNet, 10 %", "RV", 10)
    assert suite.scores("UNet, 10 %", "ISIC", 123)
    assert {row for row in suite.rows for seed in (10, 42, 123) if not suite.scores(row, "ISIC", seed)} == set()
    assert suite.scores("UNet", "RV", 123)


def test_a_table_is_a_group_or_a_figure_and_has_its_rows():
    suite = read_suite(Path(__file__).parents[1] / "benchmarks" / "suites" / "ldfsam_cpu.toml")
    distillation = rows_of_tables(suite, ["distillation"])
    assert {"S+D, student", "S+D with KD", "LDFSAM", "LDFSAM, detector frozen"} == set(distillation) - {
        "S+D with LD (main)"
    }, "the row without distillation stands in another group, but is a point of the figure"
    assert rows_of_tables(suite, ["annotation budget, %"])[0] == "boxes, student"
    assert rows_of_tables(suite, []) == ()
    with pytest.raises(ConfigError, match="no table 'cost'"):
        rows_of_tables(suite, ["cost"])


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        ('run = "local"', 'run = "lokal"', "CONFIG_VALUE"),
        ('simulator = "paper"', 'simulator = "papr"', "CONFIG_VALUE"),
        ('name = "sam_tuning"', 'name = "sam_tunning"', "CONFIG_VALUE"),
        ('points = "random:1"', 'points = "random:0"', "CONFIG_VALUE"),
        ('"SPD [worse]" =', '"SPD [wors]" =', "CONFIG_VALUE"),
        ('"SPD" = 1', '"SDP" = 1', "CONFIG_VALUE"),
        ("seeds = [0, 1]", "sedes = [0, 1]", "CONFIG_UNKNOWN_KEY"),
        ("[sweep]", "[sweep", "CONFIG_SYNTAX"),
    ],
)
def test_a_suite_with_a_mistake_is_refused_by_name(tmp_path, old, new, code):
    path = tmp_path / "suite.toml"
    assert old in TEXT
    path.write_text(TEXT.format(dataset="x").replace(old, new), "utf-8")
    with pytest.raises(ConfigError) as caught:
        read_suite(path)
    assert caught.value.code == code


def test_a_suite_extends_another_and_says_what_differs(tmp_path):
    (tmp_path / "base.toml").write_text(TEXT.format(dataset="x"), "utf-8")
    path = tmp_path / "more.toml"
    path.write_text('extends = "base.toml"\nname = "more"\n[run.method]\ntuning = { epochs = 7 }\n', "utf-8")
    suite = read_suite(path)
    assert (suite.name, suite.seeds, len(suite.rows)) == ("more", (0, 1), 7)
    assert suite.run["method"]["tuning"] == {"epochs": 7, "slices_per_epoch": 8}
    (tmp_path / "base.toml").write_text('extends = "more.toml"\n', "utf-8")
    with pytest.raises(ConfigError, match="circle"):
        read_suite(path)


def test_the_suites_of_the_repository_are_valid(request):
    folder = request.config.rootpath / "benchmarks" / "suites"
    paths = sorted(folder.glob("*.toml"))
    assert paths
    assert all(isinstance(read_suite(path), Suite) for path in paths)


def test_a_store_without_cells_or_with_something_else_is_an_error(tmp_path):
    with pytest.raises(InputError, match="no cells"):
        list(cells(tmp_path))
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / "a.json").write_text('{"format": 1}', "utf-8")
    with pytest.raises(InputError) as caught:
        read_cell(tmp_path / "cells" / "a.json")
    assert caught.value.code == "BENCH_CELL"


def test_some_points_keeps_so_many_on_every_slice():
    grid = Grid((20, 30, 5), make_affine((1, 1.2, 4), degrees=20))
    prompts = some_prompts(grid)
    few = some_points(prompts, grid, 1, np.random.default_rng(0))
    assert [len(here) for here in slice_points(few, grid)] == [min(1, len(h)) for h in slice_points(prompts, grid)]
    assert {p.id for p in few.points} <= {p.id for p in prompts.points}
    assert some_points(prompts, grid, 99, np.random.default_rng(0)).points == prompts.points


def test_chosen_points_go_back_to_where_the_decoder_had_them():
    grid = Grid((20, 30, 4), make_affine((1, 1.2, 4), degrees=20, flips=(-1, 1, 1)))
    xy = np.array([[3.0, 4.5], [10.0, 2.0]], np.float32)
    none = SlicePoints(np.zeros((0, 2), np.float32), np.zeros(0, bool), ())
    points = (none, SlicePoints(xy, np.array([True, False]), ("a", "b")), none, none)
    back = slice_points(chosen_points(points, some_prompts(grid), grid), grid)
    assert [len(here) for here in back] == [0, 2, 0, 0]
    assert np.allclose(back[1].xy, xy, atol=1e-4)
    assert back[1].positive.tolist() == [True, False]


def test_a_point_is_true_where_its_pixel_is():
    plane = np.zeros((4, 6), bool)
    plane[1, 5] = True
    points = SlicePoints(np.array([[5.4, 1.4], [4.4, 1.0], [9.0, 1.0]], np.float32), np.ones(3, bool), ("a", "b", "c"))
    assert in_mask(points, plane).tolist() == [True, False, True]
    assert Evidence().to_dict()["raw"] == 0


def test_noise_is_said_in_words():
    meta = {"simulator": "paper", "options": {"empty_rule": "matched", "k": 8}}
    assert noise_model(meta) == "paper: in-mask point and 2-5 uniform points (k 8)"
    assert str(noise_model({**meta, "corruption": "jitter", "severity": 0.5})).endswith("; jitter 0.5")


def test_names_become_files_and_tables_are_merged():
    assert slug("SPD, empty -> mask (τ)") == "SPD-empty-mask"
    assert merged({"a": {"b": 1, "c": 2}}, {"a": {"c": 3}, "d": 4}) == {"a": {"b": 1, "c": 3}, "d": 4}
    assert nested("a.b", 1) == {"a": {"b": 1}}


def test_a_run_that_another_process_trains_is_waited_for(store, caplog):
    caplog.set_level("INFO", "steadysam")
    suite, folders = read_suite(store[0]), folders_of(store)
    group = Group(suite, "blob", 0, folders, Options(rates=chosen_rates(suite, folders.store)))
    other = Holder(group.folder / "tuning")
    timer = threading.Timer(0.5, other.leave)
    timer.start()
    before = (group.folder / "tuning" / "run.json").read_bytes()
    assert group.train("tuning") == group.folder / "tuning"
    timer.join()
    assert other.process.returncode == 0
    assert f"waiting for process {other.process.pid}" in caplog.text
    assert (group.folder / "tuning" / "run.json").read_bytes() == before


def test_the_untrained_selves_of_rows_are_scored_elsewhere(store, tmp_path):
    suite, folders = read_suite(store[0]), Folders(store[2].resolve(), tmp_path / "work", tmp_path / "floor")
    wanted = Options(rows=("SPD", "Local"), prompts=("noisy",), untrained=True)
    work = Work(seeds=(0,))
    state = progress(suite, folders, work, wanted)
    assert (state.done, state.total, state.missing) == (0, 2, {("blob", 0): ("SPD", "Local")})
    bench(suite, folders, work, wanted)
    found = cells(folders.store)
    assert sorted((cell.row, cell.prompts) for cell in found) == [("Local", "noisy"), ("SPD", "noisy")]
    record = read_json(folders.store / "runs" / "blob-s0-spd.json")
    assert {name: stage["epochs"] for name, stage in record["stages"].items()} == {"saliency": 0, "decoder": 0}
    assert not (folders.store / "sweep").exists()
    with pytest.raises(ConfigError, match="no prompt set"):
        bench(suite, folders, work, Options(prompts=("loud",)))
    with pytest.raises(ConfigError, match="no row 'SDP'"):
        progress(suite, folders, work, Options(rows=("SDP",)))
    with pytest.raises(InputError, match="no data set for target blob"):
        progress(suite, replace(folders, data=tmp_path), work, wanted)

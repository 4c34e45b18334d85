"""Cases, summaries, comparisons, folders, provenance and the evaluate command."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import make_affine  # pyright: ignore[reportMissingImports]
from steadysam.comparison import COMPARED, compare, holm_over
from steadysam.data.volumes import read_label_map, write_mask, write_volume
from steadysam.errors import BatchError, InputError, UsageError
from steadysam.evaluate import COMBINED_FILE, Evaluation, evaluate_case, evaluate_folder, mask_files
from steadysam.provenance import NO_PROMPTS, provenance_of
from steadysam.report.evaluation import write_evaluation
from steadysam.summary import summarise
from steadysam.types import Grid, Mask, put_slices

OBLIQUE = Grid((20, 30, 6), make_affine((0.8, 1.5, 4.0), degrees=23, flips=(-1, 1, 1)), 2)


def block(grid: Grid, shift: int = 0, first: int = 1) -> np.ndarray:
    """A box present on slices `first` to the last but one, moved by `shift` voxels along the first axis."""
    mask = np.zeros(grid.shape, bool)
    mask[4 + shift : 12 + shift, 6:16, first:-1] = True
    return mask


def scored(shifts: list[int], size: int = 64) -> list:
    return [evaluate_case(block(OBLIQUE, s), block(OBLIQUE), OBLIQUE, size, name=f"c{n}") for n, s in enumerate(shifts)]


# ---------------------------------------------------------------- one case


def test_case_spacing_reaches_the_right_axes():
    case = evaluate_case(block(OBLIQUE, 2), block(OBLIQUE), OBLIQUE, 60)
    row = case.slices[2]
    assert row.hd95_mm == pytest.approx(2 * 0.8, abs=1e-9)  # two voxels along x
    assert row.hd95_px == pytest.approx(2 * 60 / 20)  # x has 20 voxels, stretched to 60
    assert case.volume.hd95_mm == pytest.approx(1.6, abs=1e-9)
    assert [r.true_empty for r in case.slices] == [True, False, False, False, False, True]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_case_is_the_same_for_every_slice_axis(axis):
    stack = np.random.default_rng(0).random((2, 5, 9, 7)) < 0.4
    spacing = np.empty(3)
    grid = Grid((1, 1, 1), np.eye(4), axis)
    x_axis, y_axis = grid.plane_axes
    spacing[[x_axis, y_axis, axis]] = 0.5, 1.25, 3.0
    arrays = [put_slices(one, grid) for one in stack]
    grid = Grid(arrays[0].shape, make_affine(spacing, degrees=31, flips=(1, -1, -1)), axis)
    plain = Grid((7, 9, 5), np.diag([0.5, 1.25, 3.0, 1.0]))
    reference = evaluate_case(put_slices(stack[0], plain), put_slices(stack[1], plain), plain, 32)
    case = evaluate_case(arrays[0], arrays[1], grid, 32)
    assert case.slice_axis == axis
    for ours, theirs in zip(case.slices, reference.slices, strict=True):
        assert ours.dsc == theirs.dsc
        assert ours.hd95_px == pytest.approx(theirs.hd95_px)
        assert ours.hd95_mm == pytest.approx(theirs.hd95_mm)
    assert case.volume.assd_mm == pytest.approx(reference.volume.assd_mm)


def test_case_must_lie_on_its_grid():
    with pytest.raises(InputError) as caught:
        evaluate_case(np.zeros((3, 3, 3)), np.zeros((3, 3, 3)), OBLIQUE)
    assert caught.value.code == "METRIC_SHAPE"


# ---------------------------------------------------------------- summaries


def test_all_empty_predictor_scores_the_empty_share():
    summary = summarise(scored([0, 1, 3]), draws=50)
    assert (summary.n_slices, summary.n_empty_slices) == (18, 6)
    assert summary.all_empty["dsc"] == pytest.approx(summary.empty_share) == pytest.approx(1 / 3)
    assert summary.all_empty["dsc_positive"] == 0.0
    assert summary.all_empty["volume_dice"] == 0.0
    assert summary.all_empty["tnr"] == 1.0
    assert summary.all_empty["hd95_px"] is None
    assert summary.all_empty["hd95_penalised_px"] == pytest.approx(np.hypot(64, 64))


def test_summary_means_and_counts_by_hand():
    cases = [
        *scored([0]),
        evaluate_case(np.zeros(OBLIQUE.shape), block(OBLIQUE), OBLIQUE, 64, name="missed"),
        evaluate_case(np.ones(OBLIQUE.shape), np.zeros(OBLIQUE.shape), OBLIQUE, 64, name="invented"),
    ]
    scores = summarise(cases, {"c0": "p", "missed": "p"}, draws=50).scores
    assert scores["dsc"].mean == pytest.approx((6 + 2 + 0) / 18)
    assert scores["dsc_positive"].mean == pytest.approx(4 / 8)
    assert scores["fp_rate_empty"].mean == pytest.approx(6 / 10)
    assert scores["tnr"].mean == pytest.approx(4 / 10)
    assert scores["volume_dice"].mean == pytest.approx(1 / 3)
    assert (scores["hd95_px"].n, scores["hd95_px"].n_undefined) == (4, 14)
    assert scores["hd95_penalised_px"].n == 4 + 4 + 6
    assert (scores["volume_hd95_mm"].n, scores["volume_hd95_mm"].n_undefined) == (1, 2)
    assert scores["dsc"].n_patients == 2
    assert scores["dsc"].patient_mean == pytest.approx(np.mean([8 / 12, 0]))


def test_summary_is_json_and_reproducible():
    cases = scored([0, 1, 2, 4])
    once, again = (summarise(cases, seed=3, draws=200).to_dict() for _ in range(2))
    assert json.dumps(once, allow_nan=False) == json.dumps(again)
    assert summarise(cases, seed=4, draws=200).to_dict() != once
    assert once["violations"] == ()


def test_summary_row_is_flat_and_says_where_it_comes_from():
    row = summarise(scored([0, 1]), provenance={"method": "spd", "seed": 3, "lane": 1}, draws=50).row()
    assert row["method"] == "spd"
    assert row["lane"] == 1
    assert row["empty_slice_rule"] is None
    assert row["hd95_px_n"] == 8
    assert row["n_patients"] == 2
    assert all(not isinstance(value, (dict, list, tuple)) for value in row.values())


def test_pictures_have_no_millimetres_and_say_so():
    grid = Grid((20, 30, 1), np.eye(4))
    mask = np.ones(grid.shape, bool)
    summary = summarise([evaluate_case(mask, mask, grid, 32, physical=False)], draws=10)
    assert summary.scores["hd95_mm"].mean is None
    assert summary.scores["volume_assd_mm"].mean is None
    assert summary.scores["hd95_px"].mean == 0.0
    assert any("METRIC_NO_SPACING" in note for note in summary.notes)
    assert not any("METRIC_NO_SPACING" in note for note in summarise(scored([1]), draws=10).notes)


def test_summary_needs_a_case():
    with pytest.raises(InputError) as caught:
        summarise([])
    assert caught.value.code == "EVAL_EMPTY"


# ---------------------------------------------------------------- comparisons


def test_compare_pairs_what_both_scored():
    a, b = scored([0, 0, 1, 0, 0, 1]), scored([2, 3, 3, 4, 2, 5])
    b[0] = replace(evaluate_case(np.zeros(OBLIQUE.shape), block(OBLIQUE), OBLIQUE, 64), name="c0")
    result = compare(a, [*b, *scored([0] * 7)[6:]], {"c0": "p0", "c1": "p0"}, draws=100)
    assert (result.n_cases, result.only_a, result.only_b) == (6, (), ("c6",))
    assert set(result.metrics) == set(COMPARED)
    dsc = result.metrics["dsc"]
    assert (dsc.over_samples.n_pairs, dsc.over_samples.n_ties) == (36, 12)
    assert dsc.over_patients.n_pairs == 5
    assert dsc.over_samples.mean_difference is not None
    assert dsc.over_samples.mean_difference > 0
    assert dsc.over_patients.p_wilcox == pytest.approx(2 / 32)
    assert dsc.difference_interval is not None
    assert dsc.difference_interval[0] > 0
    assert result.metrics["hd95_px"].over_samples.n_pairs == 20  # the four slices of c0 are valid for one side only
    json.dumps(result.to_dict(), allow_nan=False)


def test_holm_over_others():
    a = scored([0, 0, 0, 0, 0, 0])
    comparisons = {"near": compare(a, scored([1, 1, 2, 1, 1, 2]), draws=20), "same": compare(a, a, draws=20)}
    adjusted = holm_over(comparisons, "dsc")
    assert adjusted["same"] is None
    assert adjusted["near"] == comparisons["near"].metrics["dsc"].over_patients.p_wilcox
    both = {name: comparisons["near"] for name in ("x", "y")}
    assert holm_over(both, "dsc")["x"] == pytest.approx(2 * adjusted["near"])  # type: ignore[operator]


def test_compare_refuses_other_grids_and_other_cases():
    with pytest.raises(InputError, match="EVAL_EMPTY"):
        compare(scored([0]), [replace(scored([0])[0], name="other")])
    with pytest.raises(InputError, match="EVAL_SLICES"):
        compare(scored([0]), scored([0], size=32))


# ---------------------------------------------------------------- folders


@pytest.fixture
def folders(tmp_path) -> tuple[Path, Path]:
    """Four cases with labels 1 and 2; label 2 is predicted with shifts 0, 1, 2, 3."""
    pred, labels = tmp_path / "pred", tmp_path / "set" / "labelsTs"
    for n in range(4):
        both = np.where(block(OBLIQUE), 2, 0).astype(np.uint8)
        both[0, 0, :] = 1
        write_volume(labels / f"case{n}.nii.gz", both, OBLIQUE)
        write_mask(pred / f"case{n}.nii.gz", Mask(block(OBLIQUE, n), OBLIQUE))
    return pred, labels


def dataset_json(labels: Path) -> None:
    content = {
        "name": "Toy",
        "channel_names": {"0": "MRI"},
        "labels": {"background": 0, "spot": 1, "bowel": 2},
        "numTraining": 0,
        "file_ending": ".nii.gz",
    }
    (labels.parent / "dataset.json").write_text(json.dumps(content))
    for n in range(4):
        write_volume(
            labels.parent / "imagesTs" / f"case{n}_0000.nii.gz",
            np.random.default_rng(n).normal(100, 20, OBLIQUE.shape).astype(np.float32),
            OBLIQUE,
        )
    rows = ["case,patient", *(f"case{n},patient{n // 2}" for n in range(4))]
    (labels.parent / "patients.csv").write_text("\n".join(rows) + "\n")


def test_folder(folders):
    seen = []
    pred, labels = folders
    result = evaluate_folder(pred, labels, [2], size=60, progress=lambda names: (seen.append(n) or n for n in names))
    assert seen == [case.name for case in result.cases] == [f"case{n}" for n in range(4)]
    assert result.problem() is None
    assert result.cases[0].volume.dice == 1.0
    assert result.cases[2].slices[1].hd95_mm == pytest.approx(1.6, abs=1e-4)
    either = evaluate_folder(pred, labels, None, size=60)
    assert either.cases[0].volume.dice < 1.0  # label 1 is now part of the target


def test_a_label_map_is_scored_by_its_numbers(folders):
    """The label maps themselves as predictions: all of what is not 0 would be too much for either label."""
    _, labels = folders
    for values in ([1], [2], [1, 2]):
        result = evaluate_folder(labels, labels, values, size=0)
        assert [case.volume.dice for case in result.cases] == [1.0] * 4, values


def test_a_case_of_combine_that_holds_one_structure_only(folders, tmp_path):
    pred, labels = folders  # masks of label 2, written as 1
    assert evaluate_folder(pred, labels, [2], size=0).cases[0].volume.dice == 1.0
    (pred / COMBINED_FILE).write_text("{}")
    assert evaluate_folder(pred, labels, [2], size=0).cases[0].volume.dice == 0.0


def test_missing_files_are_listed_on_both_sides(folders):
    pred, labels = folders
    (pred / "case1.nii.gz").rename(pred / "stray.nii.gz")
    result = evaluate_folder(pred, labels, [2], size=0)
    assert [case.name for case in result.cases] == ["case0", "case2", "case3"]
    problem = result.problem()
    assert isinstance(problem, BatchError)
    assert (problem.code, problem.exit_code) == ("EVAL_MISSING", 6)
    assert "without prediction: case1" in str(problem)
    assert "without label: stray" in str(problem)


def test_a_wrong_grid_fails_its_case_only(folders):
    pred, labels = folders
    moved = OBLIQUE.affine.copy()
    moved[0, 3] += 3.0
    write_mask(pred / "case2.nii.gz", Mask(block(OBLIQUE), replace(OBLIQUE, affine=moved)))
    result = evaluate_folder(pred, labels, [2], size=0)
    assert len(result.cases) == 3
    assert result.failures["case2"].code == "LABEL_GRID"
    problem = result.problem()
    assert problem is not None
    assert (problem.code, problem.exit_code) == ("EVAL_FAILED", 6)
    assert "case2 [LABEL_GRID]" in str(problem)


def test_a_label_that_is_not_whole_numbers_fails_its_case(folders):
    pred, labels = folders
    write_volume(labels / "case3.nii.gz", np.full(OBLIQUE.shape, 0.999, np.float32), OBLIQUE)
    assert evaluate_folder(pred, labels, [2], size=0).failures["case3"].code == "LABEL_NONINTEGER"


def test_folders_without_common_cases(folders, tmp_path):
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="EVAL_EMPTY"):
        evaluate_folder(tmp_path / "none", folders[1])
    with pytest.raises(InputError, match="FILE_MISSING"):
        mask_files(tmp_path / "nowhere")


def test_one_case_in_two_files_is_refused(folders):
    pred, _ = folders
    write_mask(pred / "case0.nii", Mask(block(OBLIQUE), OBLIQUE))
    (pred / ".case9.nii.gz").write_bytes(b"hidden")
    (pred / "run.json").write_text("{}")
    with pytest.raises(InputError, match="EVAL_DUPLICATE"):
        mask_files(pred)


def test_picture_labels(tmp_path):
    rows = np.zeros((30, 20), np.uint8)
    rows[5:20, 3:11] = 255
    (tmp_path / "labels").mkdir()
    Image.fromarray(rows).save(tmp_path / "labels" / "a.png")
    array, grid = read_label_map(tmp_path / "labels" / "a.png")
    write_mask(tmp_path / "pred" / "a.nii.gz", Mask(array > 0, grid))
    result = evaluate_folder(tmp_path / "pred", tmp_path / "labels", size=64)
    assert result.cases[0].volume.dice == 1.0
    assert result.cases[0].spacing_mm is None
    assert result.cases[0].slices[0].hd95_mm is None


def test_recorded_slice_axis_is_used_and_foreign_masks_are_found(folders):
    pred, labels = folders
    cases = [{"case": "case0", "slice_axis": 1, "mask_sha256": "0" * 64}, {"case": "case1"}]
    (pred / "run.json").write_text(json.dumps({"method": "spd", "cases": cases}))
    result = evaluate_folder(pred, labels, [2], size=0)
    assert [len(case.slices) for case in result.cases] == [30, 6, 6, 6]
    assert result.changed == ("case0",)
    assert result.foreign == ("case1", "case2", "case3"), "of the second the record has no hash"
    assert [len(case.slices) for case in evaluate_folder(pred, labels, [2], slice_axis=0).cases] == [20] * 4


# ---------------------------------------------------------------- provenance


def test_provenance_of_a_full_record():
    step = {"step": "simulate", "simulator": "paper", "seed": 7, "options": {"empty_rule": "matched"}}
    noise = {"step": "corrupt", "corruption": "jitter", "severity": 0.5, "seed": 8}
    prompts = {"hash": "ab", "sources": ["simulated"], "history": [step, noise]}
    config = {
        "compute": {"seed": 2},
        "data": {"split_seed": 1, "fold": None},
        "method": {"empty": "no_prompt"},
    }
    record = {"method": "spd", "config": config, "prompt_set_hash": "cd", "prompt_sources": ["simulated"],
              "cases": [{"case": "x", "prompts": prompts}, {"case": "y", "prompts": prompts}]}  # fmt: skip
    assert provenance_of(record) == {
        "method": "spd",
        "prompt_source": "simulated",
        "prompt_set": "cd",
        "seed": "7 + 8",
        "training_seed": 2,
        "noise_model": "paper + jitter 0.5",
        "empty_slice_rule": "matched",
        "empty_consensus_policy": "no_prompt",
        "split": "split seed 1",
    }
    assert provenance_of({**record, "overrides": {"empty": "empty_mask"}})["empty_consensus_policy"] == "empty_mask"
    blind = provenance_of({**record, "method": "unet", "prompted": False})
    assert (blind["prompt_source"], blind["prompt_set"], blind["noise_model"]) == (NO_PROMPTS, "none", "none")
    assert (blind["training_seed"], blind["split"]) == (2, "split seed 1")


@pytest.mark.parametrize("record", [{}, {"prompts": 3}, {"cases": [1, {}]}, {"config": [], "cases": {"a": 1}}])
def test_provenance_of_foreign_records_is_unknown(record):
    assert set(provenance_of(record).values()) == {None}


# ---------------------------------------------------------------- the command


def run_command(*arguments: object) -> subprocess.CompletedProcess[str]:
    from steadysam.cli.evaluate import evaluate  # noqa: F401  the command exists

    script = (
        "import sys; from cyclopts import App; from steadysam.cli.evaluate import evaluate\n"
        "from steadysam.errors import SteadyError\n"
        "app = App(); app.default(evaluate)\n"
        "try:\n    app(sys.argv[1:], result_action='return_value')\n"
        "except SteadyError as error:\n    print(error, file=sys.stderr); sys.exit(error.exit_code)\n"
        "assert 'torch' not in sys.modules"
    )
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_command_writes_everything(folders, tmp_path):
    pred, labels = folders
    dataset_json(labels)
    out = tmp_path / "out"
    audit = {"prompts": [{"slice": 2, "verdict": "rejected", "ras_mm": [10.0, -20.0, 5.0]}],
             "consensus": [{"slice": 2, "points": [{"xy": [8, 9], "verdict": "added"}]}]}  # fmt: skip
    (pred / "case3.audit.json").write_text(json.dumps(audit))
    done = run_command(pred, labels, "-o", out, "--label", "bowel", "--size", 64, "--compare", pred,
                       "--images", labels.parent / "imagesTs", "--pictures", 2)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "volume_dice" in done.stdout
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["settings"]["label_values"] == [2]
    assert metrics["summary"]["n_patients"] == 2
    assert metrics["summary"]["scores"]["volume_dice"]["n"] == 4
    assert metrics["comparisons"]["pred"]["metrics"]["dsc"]["over_samples"]["n_ties"] == 24
    assert [row["case"] for row in metrics["cases"]] == ["case3", "case2", "case1", "case0"]
    assert len((out / "slices.csv").read_text().splitlines()) == 1 + 24
    assert (out / "cases.csv").read_text().splitlines()[1].startswith("case3,patient1,")
    page = (out / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert page.index("case3: volume Dice") < page.index("case2: volume Dice")


def test_the_page_leaves_out_what_no_sample_defines(folders, tmp_path):
    evaluation = evaluate_folder(folders[0], folders[1], [2])
    full = [replace(case, slices=[row for row in case.slices if not row.true_empty]) for case in evaluation.cases]
    for cases, undefined in ((evaluation.cases, ()), (full, ("fp_rate_empty", "tnr"))):
        write_evaluation(tmp_path / "out", replace(evaluation, cases=cases), summarise(cases), {})
        page = (tmp_path / "out" / "report.html").read_text()
        assert ("left out: " + ", ".join(undefined) in page) is bool(undefined)
        assert ("<td>tnr</td>" in page.replace("\n", "").replace(" ", "")) is not bool(undefined)


def test_command_ends_with_6_but_scores_the_rest(folders, tmp_path):
    pred, labels = folders
    (pred / "case1.nii.gz").unlink()
    done = run_command(pred, labels, "-o", tmp_path / "out", "--label", "2", "--size", 0)
    assert done.returncode == 6
    assert "EVAL_MISSING" in done.stderr
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["summary"]["n_cases"] == 3
    assert "case1" in (tmp_path / "out" / "report.html").read_text()


def test_command_wants_to_know_the_label(folders, tmp_path):
    from steadysam.cli.evaluate import evaluate

    pred, labels = folders
    with pytest.raises(UsageError, match="EVAL_LABEL"):
        evaluate(pred, labels, output=tmp_path, label="bowel")
    dataset_json(labels)
    with pytest.raises(UsageError, match="EVAL_LABEL"):
        evaluate(pred, labels, output=tmp_path)
    with pytest.raises(InputError, match="LABEL_UNKNOWN"):
        evaluate(pred, labels, output=tmp_path, label="liver")
    with pytest.raises(UsageError, match="EVAL_SIZE"):
        evaluate(pred, labels, output=tmp_path, label="bowel", size=-1)
    record = {"config": {"data": {"label": "bowel"}}}
    (pred / "run.json").write_text(json.dumps(record))
    evaluate(pred, labels, output=tmp_path / "out", size=0, allow_missing=True)
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["settings"]["label"] == "bowel"


@pytest.mark.real_data
def test_eroded_labels_of_real_volumes(real_data, tmp_path):
    from scipy.ndimage import binary_erosion

    labels = real_data / "Dataset901_ACDC" / "labelsTs"
    cross = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]], bool)[:, :, None]
    for path in sorted(labels.glob("*.nii.gz"))[:2]:
        array, grid = read_label_map(path)
        write_mask(tmp_path / path.name, Mask(np.asarray(binary_erosion(array == 3, cross), bool), grid))
    result = evaluate_folder(tmp_path, labels, [3])
    assert len(result.cases) == 2
    assert len(result.missing_predictions) == 8
    for case in result.cases:
        valid = [row for row in case.slices if row.valid]
        assert valid
        assert all(row.hd95_mm == pytest.approx(1.5, abs=0.7) for row in valid)  # one voxel of 1.5 mm, or a diagonal
        assert all(row.asd_mm > 0 and row.dsc < 1 for row in valid)  # type: ignore[operator]


def test_evaluation_without_problem_is_silent():
    assert Evaluation(cases=tuple(scored([0]))).problem() is None

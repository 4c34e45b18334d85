"""Reports of benchmarks: pooled numbers by hand, oracles apart, tests, curves, figures; nothing is filled in."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest

from steadysam.bench.suite import Suite
from steadysam.errors import UsageError
from steadysam.files import read_json, write_json
from steadysam.report.benchmark import ablations, filtering, learning, paired, robustness
from steadysam.report.benchmark.cells import cell_rows
from steadysam.report.benchmark.lines import ALL_EMPTY, MEAN, empty_row, line_row, lines_of, points_words
from steadysam.report.benchmark.pooling import NO_PROMPTS, NOISY, ORACLE, read_store
from steadysam.report.benchmark.tables import blocks_of, set_latex, set_markdown, set_tables
from steadysam.report.benchmark.write import Wanted, write_report
from steadysam.report.latex import escape, to_latex
from steadysam.report.panels import Panel, Series, draw_panels
from steadysam.report.table import ABSENT
from steadysam.statistics import cluster_bootstrap
from steadysam.summary import generator_of
from stores import case, dices, put, put_run, scored

DRAWS = 200


def book_of(store: Path, suite: Suite | None = None):
    return read_store(store, suite=suite, draws=DRAWS)


def only_row(book, row: str, prompts: str = "noisy", target: str = "LV"):
    (line,) = [line for line in lines_of(book, prompts) if line.row == row]
    return line_row(book, line, target)


# ------------------------------------------------------------------------------------------------------------ pooling


def test_slices_of_all_seeds_are_pooled_and_patients_and_seeds_are_drawn(tmp_path):
    mixed = [case("a1", [scored(0.8), scored(None, empty=True)]), case("b1", [scored(0.2)])]
    put(tmp_path, "SPD", mixed, patients={"a1": "A", "b1": "B"})
    put(
        tmp_path,
        "SPD",
        [case("a1", [scored(0.6)]), case("b1", [scored(None)])],
        seed=1,
        patients={"a1": "A", "b1": "B"},
    )
    row = only_row(book_of(tmp_path), "SPD")
    values, patients = [0.8, 1.0, 0.2, 0.6, 0.0], ["A", "A", "B", "A", "B"]
    assert row["dsc"] == pytest.approx(np.mean(values))
    assert row["dsc_positive"] == pytest.approx((0.8 + 0.2 + 0.6 + 0.0) / 4)
    assert (row["n_slices"], row["n_patients"], row["n_seeds"]) == (5, 2, 2)
    assert (row["prompt_seeds"], row["training_seeds"]) == ("0, 1", "0, 1")
    assert (row["hd95_px_n"], row["fp_rate_empty_n"]) == (3, 1)
    assert row["dsc_95"] == pytest.approx(
        cluster_bootstrap(values, patients, generator_of(0, "dsc", "samples"), trainings=[0, 0, 0, 1, 1], draws=DRAWS)
    )


def test_the_all_empty_predictor_stands_beside_and_gains_are_over_it(tmp_path):
    put(tmp_path, "SPD", [case("a", [scored(0.8), scored(None, empty=True), scored(0.5, empty=True)])])
    book = book_of(tmp_path)
    empty = empty_row(book, lines_of(book, "noisy"), "LV")
    assert (empty["row"], empty["dsc"], empty["dsc_positive"]) == (ALL_EMPTY, pytest.approx(2 / 3), 0.0)
    assert only_row(book, "SPD")["gain"] == pytest.approx((0.8 + 1 + 0) / 3 - 2 / 3)


def test_cells_csv_has_every_fact_and_the_means(tmp_path):
    put(tmp_path, "SPD", dices(0.4, 0.8), settings={"tau": 0.3}, points={"run": "spd", "settings": {}})
    put_run(tmp_path, "spd")
    (row,) = cell_rows(book_of(tmp_path))
    assert (row["row"], row["seed"], row["settings"]) == ("SPD", 0, '{"tau": 0.3}')
    assert (row["dsc"], row["dsc_n"], row["n_slices"]) == (pytest.approx(0.6), 2, 2)
    assert (row["fp_rate_empty"], row["fp_rate_empty_n"], row["n_empty_slices"]) == (None, 0, 0)
    assert (row["training_seconds"], row["trained_parameters"]) == (10.0, 1500)


def test_rows_stand_in_the_order_of_the_suite(tmp_path):
    for place, row in enumerate(("B", "C", "A")):
        put(tmp_path, row, dices(0.5), order=[0, 0, place])
    assert book_of(tmp_path).rows == ["B", "C", "A"]


def test_a_suite_says_anew_how_rows_are_shown(tmp_path):
    put(tmp_path, "SPD", dices(0.5))
    put(tmp_path, "Local", dices(0.5))
    values = {"name": "s", "targets": {"LV": {"dataset": "d"}}, "prompts": {"noisy": {"simulator": "paper"}}}
    values |= {"runs": {"spd": {"method": {"name": "spd"}}}}
    rows = {name: {"run": "spd", "group": "new", "figure": "n", "x": x} for name, x in (("SPD", 2), ("Local", 0))}
    book = book_of(tmp_path, Suite.model_validate({**values, "rows": rows}))
    assert book.rows == ["SPD", "Local"]
    assert [(pool.lane, pool.facts["x"]) for pool in book.pools.values()] == [("new", 2), ("new", 0)]


# -------------------------------------------------------------------------------------------------------------- lanes


def test_oracles_are_marked_apart_and_never_tested(tmp_path):
    put(tmp_path, "SPD", dices(0.5, 0.6))
    put(tmp_path, "UNet", dices(0.4, 0.5), group="", prompted=False)
    # the suite calls it a rival, but its prompts say where the truth is
    put(tmp_path, "SAM", dices(0.9, 0.8), prompts="true points", oracle=True, group="noisy prompts")
    book = book_of(tmp_path)
    lines = lines_of(book, "noisy")
    assert [(line.name, line.lane) for line in lines] == [
        ("UNet", NO_PROMPTS),
        ("SPD", NOISY),
        ("SAM [true points] †", ORACLE),
    ]
    assert book.main_sets == ["noisy"]
    tables = set_tables(book, "noisy")
    assert list(blocks_of(tables.details["LV"].rows)) == [0, 2, 3]
    text = set_markdown(tables)
    assert text.index("**oracle †: prompts that say where the truth is") < text.index("SAM [true points] †")
    assert "\\textit{oracle \\dag{}: prompts" in set_latex(tables, "noisy")
    tested = paired.reference_rows(book, lines, ["LV"], "SPD")
    assert {row["row"] for row in tested} == {"UNet"}


def test_a_row_that_looks_at_no_prompts_stands_in_every_table_and_others_do_not(tmp_path):
    put(tmp_path, "UNet", dices(0.4), prompted=False, group=NO_PROMPTS)
    put(tmp_path, "SPD", dices(0.5))
    put(tmp_path, "Local", dices(0.5))
    put(tmp_path, "SPD", dices(0.6), prompts="scribbles")
    book = book_of(tmp_path)
    assert [line.name for line in lines_of(book, "scribbles")] == ["UNet", "SPD"]
    assert only_row(book, "SPD", "scribbles")["dsc"] == pytest.approx(0.6)
    assert only_row(book, "UNet")["prompt_source"] is None


def test_what_a_target_lacks_is_a_dash_and_has_no_mean(tmp_path):
    put(tmp_path, "SPD", dices(0.5))
    put(tmp_path, "SPD", dices(0.7), target="RV")
    put(tmp_path, "SPD", dices(0.9), target="RV", seed=1)
    put(tmp_path, "Local", dices(0.5))
    tables = set_tables(book_of(tmp_path), "noisy")
    (mean,) = [row for row in tables.rows if row["target"] == MEAN and row["row"] == "SPD"]
    assert mean["dsc"] == pytest.approx((0.5 + 0.8) / 2)
    assert mean["n_seeds"] == 1
    lines = {row["row"]: row for row in tables.overview["dsc"].rows}
    assert lines["SPD"]["n_seeds"] == "1, 2"
    assert lines["Local"].get("at RV") is None
    assert lines["Local"]["mean"] is None
    assert f"| Local | 0.500 | {ABSENT} | {ABSENT} | 1 |" in set_markdown(tables)


def test_captions_say_what_all_share_and_columns_what_differs(tmp_path):
    put(tmp_path, "SPD", dices(0.5), empty_consensus_policy="no_prompt")
    put(tmp_path, "SPD, empty", dices(0.5), empty_consensus_policy="empty_mask")
    put(tmp_path, "SAM", dices(0.9), prompts="clean", oracle=True, noise_model="none")
    table = set_tables(book_of(tmp_path), "noisy").details["LV"]
    assert "empty_consensus_policy" in table.columns
    assert "noise_model" not in table.columns
    assert "noise: uniform points (oracle: none)" in table.caption


def test_broken_rules_are_listed(tmp_path):
    slices = [scored(0.6)]
    bad = [case("a", [type(slices[0])(**{**vars(slices[0]), "iou": 0.3})])]
    put(tmp_path, "SPD", bad)
    (violation, *_) = set_tables(book_of(tmp_path), "noisy").violations
    assert violation.startswith("LV, SPD: mean IoU 0.3000 is below")


# -------------------------------------------------------------------------------------------------------------- tests


def test_holm_is_over_the_rows_of_a_target(tmp_path):
    base = (0.30, 0.31, 0.32, 0.33, 0.34)
    put(tmp_path, "SPD", dices(*base))
    put(tmp_path, "A", dices(*(v + 0.01 * (n + 1) for n, v in enumerate(base))))
    put(tmp_path, "B", dices(*(v - 0.02 * (n + 1) for n, v in enumerate(base))))
    put(tmp_path, "C", dices(base[0] + 0.03, *(v - 0.01 * n for n, v in enumerate(base) if n)))
    book = book_of(tmp_path)
    rows = {
        row["row"]: row
        for row in paired.reference_rows(book, lines_of(book, "noisy"), ["LV"], "SPD")
        if row["metric"] == "dsc"
    }
    # five differences of one sign: 2 / 2^5; three lines: 3 p, then no smaller than that
    assert rows["A"]["p_patients"] == pytest.approx(0.0625)
    assert rows["A"]["p_patients_holm"] == rows["B"]["p_patients_holm"] == pytest.approx(0.1875)
    assert rows["A"]["difference"] == pytest.approx(0.03)
    assert rows["C"]["p_patients_holm"] == pytest.approx(rows["C"]["p_patients"])
    assert (rows["A"]["pairs"], rows["A"]["ties"], rows["A"]["seeds"]) == (5, 0, "0")


def test_only_seeds_that_both_rows_have_are_paired(tmp_path):
    put(tmp_path, "SPD", dices(0.5, 0.6))
    put(tmp_path, "SPD", dices(0.9, 0.9), seed=1)
    put(tmp_path, "Local", dices(0.4, 0.4))
    put(tmp_path, "CPD", dices(0.4, 0.4), seed=2)
    book = book_of(tmp_path)
    rows = paired.step_rows(book, lines_of(book, "noisy"), ["LV"], [("Local", "SPD"), ("CPD", "SPD")])
    assert {row["row"] + row["against"] for row in rows} == {"SPDLocal"}
    assert [row["difference"] for row in rows if row["metric"] == "dsc"] == [pytest.approx(0.15)]
    assert {row["seeds"] for row in rows} == {"0"}


def test_steps_are_those_whose_rows_are_there():
    assert paired.parse_steps((), ["CPD", "SPD", "Local"]) == [("Local", "CPD"), ("CPD", "SPD")]
    assert paired.parse_steps(("A->B",), ["A", "B"]) == [("A", "B")]
    for wrong in ("A", "A -> C", "A -> B -> A"):
        with pytest.raises(UsageError, match="BENCH_STEP"):
            paired.parse_steps((wrong,), ["A", "B"])


# --------------------------------------------------------------------------------------------------------- robustness


def test_area_and_the_level_that_costs_five_points_by_hand():
    levels, values = (0.0, 2.0, 8.0), np.array([0.8, 0.7, 0.4])
    assert robustness.area(levels, values) == pytest.approx((0.75 * 2 + 0.55 * 6) / 8)
    assert robustness.loss_level(levels, [0.8, 0.7, 0.4]) == pytest.approx(1.0)
    assert robustness.loss_level(levels, [0.8, 0.78, 0.72]) == pytest.approx(2 + 6 * 0.03 / 0.06)
    assert robustness.loss_level(levels, [0.8, 0.76, 0.9]) is None
    assert robustness.loss_level(levels, [0.8, 0.75, 0.9]) == pytest.approx(2.0)


def test_curves_begin_with_the_base_and_use_the_seeds_of_all_levels(tmp_path):
    put(tmp_path, "SPD", dices(0.8, 0.6))
    put(tmp_path, "SPD", dices(0.1, 0.1), seed=1)
    put(tmp_path, "SPD", dices(0.7, 0.5), prompts="d 4", noise=["distractors", 4.0], base="noisy")
    put(tmp_path, "SPD", dices(0.5, 0.5), prompts="d 8", noise=["distractors", 8.0], base="noisy")
    put(tmp_path, "Local", dices(0.5, 0.5), prompts="d 8", noise=["distractors", 8.0], base="noisy")
    book = book_of(tmp_path)
    (curve,) = robustness.curves_of(book)
    assert (curve.row, curve.levels) == ("SPD", (0.0, 4.0, 8.0))
    (row,) = robustness.robustness_rows(book, [curve])
    assert (row["start"], row["seeds"]) == (pytest.approx(0.7), "0")
    assert row["auc"] == pytest.approx((0.65 * 4 + 0.55 * 4) / 8)
    assert row["loss_level"] == pytest.approx(2.0)
    # both patients lose: c0 at 2, c1 at 2
    assert row["loss_lost"] == 1.0
    assert row["loss_low"] == pytest.approx(2.0)
    # means of c0 alone and of c1 alone bracket every draw
    low, high = row["auc_95"]
    assert low == pytest.approx((0.55 * 4 + 0.5 * 4) / 8)
    assert high == pytest.approx((0.75 * 4 + 0.6 * 4) / 8)
    assert [point["dsc"] for point in robustness.curve_rows(book, [curve])] == pytest.approx([0.7, 0.6, 0.5])
    assert book.main_sets == ["noisy"]


def test_curves_draw_seeds_as_well_as_patients(tmp_path):
    for seed, dice in ((0, 0.9), (1, 0.5)):
        put(tmp_path, "SPD", dices(dice, dice), seed=seed)
        less = dices(dice - 0.2, dice - 0.2)
        put(tmp_path, "SPD", less, prompts="j 5", noise=["jitter", 5.0], base="noisy", seed=seed)
    book = book_of(tmp_path)
    (row,) = robustness.robustness_rows(book, robustness.curves_of(book))
    assert row["auc_95"] == (pytest.approx(0.4), pytest.approx(0.8)), "patients agree; either seed alone"
    ends = (row["loss_low"], row["loss_high"])
    assert ends == (pytest.approx(1.25), pytest.approx(1.25)), "the same seeds at both levels"


def test_a_level_of_the_noise_itself_is_taken_before_its_base(tmp_path):
    put(tmp_path, "SPD", dices(0.9))
    put(tmp_path, "SPD", dices(0.8), prompts="j 0", noise=["jitter", 0.0], base="noisy")
    put(tmp_path, "SPD", dices(0.6), prompts="j 5", noise=["jitter", 5.0], base="noisy")
    book = book_of(tmp_path)
    (row,) = robustness.robustness_rows(book, robustness.curves_of(book))
    assert row["start"] == pytest.approx(0.8)
    assert row["auc_95"] is None, "one patient says nothing of the spread"
    table = robustness.robustness_table([row], "jitter", "LV")
    assert table.rows[0]["loss_level"] == "1.25"


# ------------------------------------------------------------------------------------------------ figures, filter, runs


def test_rows_of_one_figure_stand_by_x_with_the_same_seeds(tmp_path):
    for x, dice in ((0.9, 0.3), (0.1, 0.5), (0.5, 0.7)):
        put(tmp_path, f"tau {x}", dices(dice), figure="tau", x=x)
    put(tmp_path, "tau 0.5", dices(0.1), seed=1, figure="tau", x=0.5)
    book = book_of(tmp_path)
    (found,) = ablations.ablations_of(book)
    rows = ablations.ablation_rows(book, found)
    assert [(row["x"], row["dsc"], row["seeds"]) for row in rows] == [(0.1, 0.5, "0"), (0.5, 0.7, "0"), (0.9, 0.3, "0")]
    assert ablations.draw_ablation(found, rows).startswith(b"\x89PNG")


def test_words_keep_the_order_of_the_suite_and_oracles_come_last(tmp_path):
    put(tmp_path, "T", dices(0.9), prompts="clean", oracle=True, figure="source", x="truth", order=[0, 1, 0])
    put(tmp_path, "B", dices(0.5), figure="source", x="few", order=[0, 0, 1])
    put(tmp_path, "A", dices(0.6), figure="source", x="all", order=[0, 0, 2])
    book = book_of(tmp_path)
    (found,) = ablations.ablations_of(book)
    assert [x for x, _ in found.points["LV"]] == ["few", "all", "truth"]
    assert not found.numeric


def test_frozen_rows_make_the_figure_of_prompt_sources_by_themselves(tmp_path):
    put(tmp_path, "one", dices(0.5), method="zero_shot", points="random:1")
    put(tmp_path, "all", dices(0.5), method="zero_shot")
    put(tmp_path, "SPD", dices(0.5))
    (found,) = ablations.ablations_of(book_of(tmp_path))
    assert (found.name, [x for x, _ in found.points["LV"]]) == ("prompt source", ["all", "1 random per slice"])
    assert points_words({"run": "spd", "settings": {"n": 0}}) == "chosen by spd (n = 0)"


def test_the_filter_is_counted_over_seeds(tmp_path):
    evidence = {"slices_positive": 10, "slices_empty": 4, "raw": 40, "raw_true": 10, "true_kept": 8, "given": 20}
    evidence |= {"given_true": 16, "empty_on_positive": 1, "empty_on_empty": 3}
    saliency = {"inside": [0, 1, 2, 5], "outside": [8, 1, 1, 0]}
    put(tmp_path, "SPD", dices(0.5), evidence={**evidence, "saliency": saliency})
    put(tmp_path, "SPD", dices(0.5), seed=1, evidence={**evidence, "true_kept": 10, "saliency": saliency})
    put(tmp_path, "Z, same head", dices(0.5), evidence={**evidence, "saliency": saliency})
    put(tmp_path, "raw", dices(0.5), evidence={**evidence, "given": 40, "true_kept": 10})
    put(tmp_path, "head", dices(0.5), evidence={**evidence, "given": 0, "true_kept": 0}, group=NO_PROMPTS)
    book = book_of(tmp_path)
    rows = filtering.filter_rows(book)
    assert [row["row"] for row in rows] == ["SPD", "Z, same head"], "raw rows choose nothing"
    assert rows[0]["true_kept"] == pytest.approx(18 / 20)
    assert (rows[0]["raw_precision"], rows[0]["given_precision"]) == (0.25, 0.8)
    assert (rows[0]["empty_on_positive"], rows[0]["empty_on_empty"]) == ("2 of 20", "6 of 8")
    assert (rows[0]["salient_inside"], rows[0]["salient_outside"]) == (pytest.approx(7 / 8), 0.1)
    bins = filtering.saliency_rows(book)
    assert [row["inside"] for row in bins] == [0, 2, 4, 10]
    assert {row["row"] for row in bins} == {"SPD"}


def test_costs_are_means_over_seeds_and_untrained_rows_have_none(tmp_path):
    put(tmp_path, "SPD", dices(0.5))
    put(tmp_path, "SPD", dices(0.5), seed=1)
    put(tmp_path, "frozen", dices(0.5), run="frozen", training_seed=None)
    put_run(tmp_path, "spd", seconds=10)
    put_run(tmp_path, "spd", seed=1, seconds=30)
    write_json(tmp_path / "runs" / "f.json", {"target": "LV", "seed": 0, "run": "frozen", "method": "z", "stages": {}})
    put(tmp_path, "other", dices(0.5), run="nnunet")
    outside = {"target": "LV", "seed": 0, "run": "nnunet", "method": "nnunet", "seconds": {"commands": 7.0}}
    write_json(tmp_path / "runs" / "n.json", outside)
    book = book_of(tmp_path)
    other = only_row(book, "other")
    assert (other["training_seconds"], other["trained_parameters"]) == (7.0, None)
    assert only_row(book, "SPD")["trained_parameters"] == 1500
    assert only_row(book, "SPD")["training_seconds"] == 20
    assert only_row(book, "frozen")["training_seconds"] is None
    assert [row["best_loss"] for row in learning.run_rows(book)] == [0.7, 0.7, None, None]
    table = learning.run_table(learning.run_rows(book))
    assert [(row["run"], row["seeds"], row["seconds"]) for row in table.rows] == [
        ("spd", "0, 1", 20),
        ("frozen", "0", None),
        ("nnunet", "0", 7),
    ]


# ------------------------------------------------------------------------------------------------------ the whole thing


def test_a_store_with_one_cell_has_a_report(tmp_path):
    put(tmp_path / "store", "SPD", dices(0.5))
    page = write_report(tmp_path / "store", tmp_path / "out", Wanted(draws=DRAWS))
    assert "SPD" in page.read_text("utf-8")
    names = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert names == {
        "report.html",
        "report.json",
        "cells.csv",
        "tables/noisy.csv",
        "tables/noisy.md",
        "tables/noisy.tex",
    }


def full_store(store: Path) -> None:
    for seed in (0, 1):
        for row, dice in (("SAM-Tuning", 0.4), ("CPD", 0.5), ("SPD", 0.6)):
            put(store, row, dices(dice, dice + 0.1, dice + 0.05 * seed), seed=seed)
            more = {"noise": ["distractors", 8.0], "base": "noisy", "prompts": "d 8"}
            put(store, row, dices(dice - 0.2, dice, dice), seed=seed, **more)
        put_run(store, "spd", seed=seed)
    put(store, "SAM", dices(0.9, 0.9, 0.9), prompts="clean", oracle=True)
    put(store, "tau", dices(0.3), figure="tau", x=0.1)
    put(store, "tau 2", dices(0.4), figure="tau", x=0.2)
    failure = {"cell": "LV, seed 0: UNet, noisy", "code": "X", "what": "out of <memory>"}
    write_json(store / "failures.json", [failure])
    write_json(store / "sweep" / "spd.json", {"run": "spd", "target": "LV", "seed": 0, "validation_loss": {"0.1": 0.5}})
    write_json(store / "rates.json", {"spd": 0.1})


def test_the_whole_report_tells_failures_first_and_repeats_its_bytes(tmp_path):
    full_store(tmp_path / "store")
    for name in ("one", "two"):
        write_report(tmp_path / "store", tmp_path / name, Wanted(draws=DRAWS))
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert {str(path) for path in files} >= {
        *("paired/noisy.csv", "steps/noisy.md", "robustness.tex", "runs.csv", "sweep.csv", "figures/tau-noisy.png"),
        *("figures/noise-distractors-LV.csv", "figures/learning-spd.png", "figures/learning-spd.csv"),
    }
    assert all((tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes() for file in files)
    page = (tmp_path / "one" / "report.html").read_text("utf-8")
    assert page.index("out of &lt;memory&gt;") < page.index("Prompts: noisy")
    report = read_json(tmp_path / "one" / "report.json")
    assert report["settings"]["reference"] == "SPD"
    assert report["settings"]["steps"] == [["SAM-Tuning", "SPD"], ["CPD", "SPD"]]
    assert {"tables", "paired", "steps", "figures", "robustness", "curves", "runs", "sweep"} <= set(report)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "one" / "tables" / "noisy.csv").read_text("utf-8"))))
    assert rows[0]["row"] == ALL_EMPTY
    assert {row["lane"] for row in rows} == {NO_PROMPTS, NOISY, ORACLE}


def test_an_unknown_reference_is_refused(tmp_path):
    put(tmp_path, "SPD", dices(0.5))
    with pytest.raises(UsageError, match="BENCH_ROW"):
        write_report(tmp_path, tmp_path / "out", Wanted(reference="spd"))


# -------------------------------------------------------------------------------------------------- LaTeX and pictures


def test_latex_stands_for_itself():
    assert escape(r"a_b & 5% #1 {x} $y$ \z ~ ^") == (
        r"a\_b \& 5\% \#1 \{x\} \$y\$ \textbackslash{}z \textasciitilde{} \textasciicircum{}"
    )
    assert escape("A -> B, x < y > z, – †") == r"A $\rightarrow$ B, x \textless{} y \textgreater{} z, -- \dag{}"
    assert escape("[a]*") == "{[}a{]}{*}"


def test_a_latex_table_has_rules_blocks_and_spans():
    rows = [{"row": "a_b", "x": 0.12345}, {"row": "c", "x": None}]
    text = to_latex(
        rows, ["row", "x"], headings={"row": ""}, blocks={1: "oracle"}, spans=[("", 1), ("LV", 1)], caption="50 %"
    )
    body = text[text.index("\\begin{tabular}") :].splitlines()
    assert body == [
        "\\begin{tabular}{lr}",
        "\\toprule",
        "\\multicolumn{1}{c}{} & \\multicolumn{1}{c}{LV} \\\\",
        "\\cmidrule(lr){2-2}",
        " & x \\\\",
        "\\midrule",
        "a\\_b & 0.123 \\\\",
        "\\midrule",
        "\\multicolumn{2}{l}{\\textit{oracle}} \\\\",
        "c & -- \\\\",
        "\\bottomrule",
        "\\end{tabular}}",
        "\\end{table}",
    ]
    assert "\\caption{50 \\%}" in text


def test_the_table_over_targets_says_of_each_how_much_is_empty(tmp_path):
    put(tmp_path, "SPD", [case("a", [scored(0.8), scored(None, empty=True)])])
    put(tmp_path, "SPD", dices(0.8, 0.7), target="RV")
    tables = set_tables(book_of(tmp_path), "noisy")
    assert "50.0 % of the slices do not hold" in (tables.details["LV"].caption or "")
    assert "50.0 \\% (LV), 0.0 \\% (RV) of the slices do not hold" in set_latex(tables, "noisy")


def test_panels_leave_out_what_is_none():
    line = Series([0.0, 1.0, 2.0], [0.5, None, 0.7], [0.4, None, None], [0.6, None, None])
    words = Series(["a", "b"], [0.5, None], [None, None], [None, None])
    bars = Series([0.0, 0.5], [0.2, 0.8])
    panels = [
        Panel("line", "x", "y", {"one": line}),
        Panel("words", "", "y", {"two": words}, words=["a", "b"], reference=("floor", 0.3)),
        Panel("bars", "x", "y", {"three": bars}, histogram=True),
    ]
    assert draw_panels(panels, columns=2).startswith(b"\x89PNG")

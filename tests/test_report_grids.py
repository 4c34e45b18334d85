"""Figures of two things and tables of detectors, from stores made by hand."""

from steadysam.files import read_json, write_json
from steadysam.report.benchmark import ablations, detection, distillation, grids, leads
from steadysam.report.benchmark.lines import facts_of, line_row, lines_of
from steadysam.report.benchmark.pooling import read_store
from steadysam.report.benchmark.tables import set_tables
from stores import dices, put, put_run

BARE = {"noise_model": None, "empty_slice_rule": None, "prompt_sources": [], "prompted": False, "group": "budgets"}


def book_of(store):
    return read_store(store, draws=50)


def boxes(ap: float, *, found: int = 4, least: float = 0.25):
    scores = {"AP50": ap, "AP75": ap / 2, "AP": ap / 4, "found": found, "true": 5, "least_score": least}
    return {"raw": 0, "detection": scores}


def test_numbers_make_lines_of_the_seeds_that_all_points_of_an_x_have(tmp_path, monkeypatch):
    for seed, (few, many) in enumerate([(0.2, 0.6), (0.4, 0.8)]):
        put(tmp_path, "few", dices(few), seed=seed, figure="budget", x=10, column="A", **BARE)
        put(tmp_path, "many", dices(many), seed=seed, column="", also=[_place("budget", 100, "A")], **BARE)
    put(tmp_path, "other", dices(0.5), seed=0, figure="budget", x=100, column="B", **BARE)
    book = book_of(tmp_path)
    (grid,) = grids.grids_of(book)
    assert grid.numeric
    rows = grids.grid_rows(book, grid)
    assert {(row["column"], row["x"], row["row"], round(row["dsc"], 6), row["seeds"]) for row in rows} == {
        ("A", 10, "few", 0.3, "0, 1"),
        ("A", 100, "many", 0.6, "0"),
        ("B", 100, "other", 0.5, "0"),
    }, "at 100 the other row has but one seed"
    assert grids.draw_grid(grid, rows)[:4] == b"\x89PNG"
    assert ablations.ablations_of(book) == [], "a place with a column is no ablation"
    assert _titles(monkeypatch, grid, rows) == ["LV (seeds 0, 1 at 10; 0 at 100)"]


def test_a_lead_is_paired_at_every_x_with_its_mean_over_the_targets_that_have_several(tmp_path):
    for target, gain in (("LV", 0.1), ("LA", 0.3)):
        for seed in (0, 1):
            kind = {"target": target, "seed": seed, "figure": "budget", **BARE}
            put(tmp_path, "ours, few", dices(0.2 + gain, 0.4 + gain), x=10, column="ours", **kind)
            put(tmp_path, "theirs, few", dices(0.2, 0.4), x=10, column="theirs", **kind)
            put(tmp_path, "ours", dices(0.8, 0.8 + seed / 10), x=100, column="ours", **kind)
        put(tmp_path, "theirs", dices(0.7, 0.7), x=100, column="theirs", **{**kind, "seed": 0})
    for row in ("ours", "theirs"):
        put(tmp_path, row, dices(0.5), target="RV", figure="budget", x=100, column=row, **BARE)
    book = book_of(tmp_path)
    (grid,) = grids.grids_of(book)
    rows = leads.lead_rows(book, grid, "ours")
    assert [(r["target"], r["x"], round(r["difference"], 6), r["seeds"]) for r in rows] == [
        ("LA", 10, 0.3, "0, 1"),
        ("LV", 10, 0.1, "0, 1"),
        ("LA", 100, 0.1, "0"),
        ("LV", 100, 0.1, "0"),
        ("RV", 100, 0.0, "0"),
    ]
    table = leads.lead_table(rows)
    assert list(table.columns.values()) == ["DSC, all slices", "budget", "LA", "LV", "mean over targets", "seeds"]
    assert [(line["pair"], line["x"], round(line["mean"], 6)) for line in table.rows] == [
        ("ours − theirs", "10", 0.2),
        ("ours − theirs", "100", 0.1),
    ]
    assert {row["leader"] for row in leads.lead_rows(book, grid, "theirs")} == {"theirs"}
    (first,) = {row["leader"] for row in leads.lead_rows(book, grid, None)}
    assert first == grid.points["LA"][0].column


def test_a_target_that_lacks_an_x_leaves_the_mean_open(tmp_path):
    for target, shares in (("LV", (10, 50, 100)), ("LA", (10, 100))):
        for share in shares:
            for name in ("ours", "theirs"):
                kind = {"target": target, "figure": "budget", "x": share, "column": name, **BARE}
                put(tmp_path, f"{name}, {share}", dices(0.5), **kind)
    book = book_of(tmp_path)
    (grid,) = grids.grids_of(book)
    table = leads.lead_table(leads.lead_rows(book, grid, None))
    assert [(line["x"], line["mean"]) for line in table.rows] == [("10", 0.0), ("50", None), ("100", 0.0)]
    assert table.cells()[1][2:5].count(("–", False)) == 2
    assert leads.lead_table([]).rows == []


def test_words_are_compared_over_the_seeds_that_all_have(tmp_path):
    for seed in (0, 1):
        put(tmp_path, "S, n", dices(0.5), seed=seed, figure="form", x="S", column="n", **BARE)
    put(tmp_path, "D, n", dices(0.9), seed=1, figure="form", x="D", column="n", **BARE)
    book = book_of(tmp_path)
    (grid,) = grids.grids_of(book)
    assert {row["seeds"] for row in grids.grid_rows(book, grid)} == {"1"}


def test_a_target_with_one_x_has_no_panel_beside_lines(tmp_path, monkeypatch):
    for share in (10, 100):
        put(tmp_path, f"{share} %", dices(0.5), figure="budget", x=share, column="A", **BARE)
    put(tmp_path, "100 %", dices(0.5), target="RV", figure="budget", x=100, column="A", **BARE)
    book = book_of(tmp_path)
    (grid,) = grids.grids_of(book)
    assert set(grid.points) == {"LV", "RV"}
    assert _titles(monkeypatch, grid, grids.grid_rows(book, grid)) == ["LV (seeds 0)"]


def test_words_make_a_table_with_a_dash_for_what_is_missing(tmp_path):
    put(tmp_path, "S, n", dices(0.5, 0.7), figure="form", x="S", column="n", **BARE)
    put(tmp_path, "S, x", dices(0.8, 0.8), figure="form", x="S", column="x", **BARE)
    put(tmp_path, "D, n", dices(0.9, 0.9), figure="form", x="D", column="n", **BARE)
    book = book_of(tmp_path)
    (grid,) = grids.grids_of(book)
    assert not grid.numeric
    table = grids.grid_table(grid, grids.grid_rows(book, grid), "LV")
    assert list(table.columns.values()) == ["form", "n: DSC (95 %)", "IoU", "x: DSC (95 %)", "IoU"]
    cells = [[text for text, _ in row] for row in table.cells()]
    assert cells[0][0] == "D", "the order is that of the rows"
    assert cells[0][1].startswith("0.900 (")
    assert cells[0][3:] == ["–", "–"]
    assert cells[1][1].startswith("0.600 (")
    assert cells[1][4] == "0.667"


def test_a_row_stands_in_every_figure_that_it_names(tmp_path):
    put(tmp_path, "none", dices(0.5), figure="distillation", x="none", **BARE)
    also = [_place("distillation", "LD", ""), _place("form", "SD", "n")]
    put(tmp_path, "LD", dices(0.6), also=also, **BARE)
    book = book_of(tmp_path)
    (ablation,) = ablations.ablations_of(book)
    assert [x for x, _ in ablation.points["LV"]] == ["LD", "none"]
    assert [grid.name for grid in grids.grids_of(book)] == ["form"]


def test_detectors_are_means_over_seeds_with_the_least_score_beside(tmp_path):
    for seed, ap in enumerate((0.4, 0.8)):
        put(tmp_path, "yolo", dices(0.5), seed=seed, pixel_accuracy=ap, **BARE, evidence=boxes(ap))
    put(tmp_path, "masks", dices(0.5), **BARE)
    book = book_of(tmp_path)
    (row,) = detection.detection_rows(book)
    assert (row["row"], row["seeds"], row["found"], row["true"]) == ("yolo", "0, 1", 8, 10)
    assert (round(row["AP50"], 6), row["AP50_low"], row["AP50_high"], round(row["AP"], 6)) == (0.6, 0.4, 0.8, 0.15)
    table = detection.detection_table([row], "LV")
    assert table.rows[0]["AP50 range"] == "0.400–0.800"
    assert table.rows[0]["least_score"] == 0.25
    lines = {line.row: line_row(book, line, "LV") for line in lines_of(book, "noisy")}
    assert round(lines["yolo"]["AP50"], 6) == round(lines["yolo"]["pixel_accuracy"], 6) == 0.6
    assert "AP50" not in lines["masks"]


def test_nothing_is_said_of_prompts_that_nobody_has(tmp_path):
    put(tmp_path, "LDFSAM", dices(0.5), **BARE)
    put(tmp_path, "truth", dices(0.9), prompts="boxes", oracle=True, group="oracle", noise_model="boxes")
    book = book_of(tmp_path)
    told = facts_of(book.pools["LV", "noisy", "LDFSAM"])
    assert {told[key] for key in ("prompt_source", "points", "prompt_seeds", "noise_model", "prompt_hash")} == {None}
    table = set_tables(book, "noisy").details["LV"]
    assert table.caption.startswith("No prompts. Of all rows: ")
    assert not {"noise", "empty slices"} & set(table.columns.values())


def _place(figure, x, column):
    return {"figure": figure, "x": x, "column": column}


def _titles(monkeypatch, grid, rows):
    titles = []
    monkeypatch.setattr(grids, "draw_panels", lambda panels: titles.extend(panel.title for panel in panels))
    grids.draw_grid(grid, rows)
    return titles


def test_the_weight_of_a_teacher_is_told_at_the_start_and_the_end(tmp_path):
    put(tmp_path, "SPD", dices(0.5))
    for seed, first in ((0, 6.0), (1, 2.0)):
        put_run(tmp_path, "ld", seed=seed)
        path = tmp_path / "runs" / f"LV-s{seed}-ld.json"
        mains = [first] * 9 + [1.0] * 3
        epochs = [{"train_dfl": 2.0, "train_ld_main": main, "train_ld_vlr": 1.0} for main in mains]
        write_json(path, read_json(path) | {"curves": {"student": epochs}})
    put_run(tmp_path, "alone")
    rows = distillation.distillation_rows(book_of(tmp_path))
    assert [(row["seed"], row["epoch"], row["place"]) for row in rows[:3]] == [
        (0, 1, "1"),
        (0, 10, "10"),
        (0, 12, "last"),
    ]
    assert {row["run"] for row in rows} == {"ld"}, "no teacher, no row"
    (line,) = distillation.distillation_table(rows).rows
    assert (line["main_to_dfl"], line["vlr_to_main"]) == ("2.00 / 0.50 / 0.50", "0.33 / 1.00 / 1.00")
    assert (line["kd_to_cls"], line["seeds"]) == (None, "0, 1")

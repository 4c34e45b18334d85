"""Pages, pictures and tables: self-contained, escaped, in the right order; pictures show what they say."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from conftest import GRIDS  # pyright: ignore[reportMissingImports]
from steadysam.comparison import compare
from steadysam.errors import BatchError, InputError
from steadysam.evaluate import Evaluation, evaluate_case
from steadysam.geometry import slice_to_ras
from steadysam.report import evaluation as report
from steadysam.report.casepictures import audit_marks, case_picture, telling_slices
from steadysam.report.figures import (
    MARKS,
    PREDICTION,
    TRUTH,
    Marks,
    Panel,
    curves,
    dots,
    overlay,
    strip,
    zoom_window,
)
from steadysam.report.html import Picture, Section, Table, Text, render, write_page
from steadysam.report.table import ABSENT, LEADING, columns_of, shown, to_csv, to_markdown, write_table
from steadysam.summary import summarise
from steadysam.types import Grid, Volume

ROWS = [
    {"method": "spd", "seed": 0, "n_slices": 10, "dsc": 0.91234, "hd95_px": None, "note": "a|b"},
    {"method": "all empty", "seed": 0, "n_slices": 10, "dsc": 0.4, "hd95_px": 3.0},
]
PAGE_TAGS = {"img", "meta", "br", "link"}


class Outline(HTMLParser):
    """Open tags, attributes that load something, and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.text: list[str] = []
        self.tags: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "action")]
        if tag not in PAGE_TAGS:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def near(png: bytes, colour: str, tolerance: int = 40) -> int:
    """How many pixels of a PNG are about of a colour `#RRGGBB`."""
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), int)
    wanted = [int(colour[n : n + 2], 16) for n in (1, 3, 5)]
    return int((np.abs(pixels - wanted).max(axis=-1) < tolerance).sum())


def cases_of(grid: Grid) -> list:
    true = np.zeros(grid.shape, bool)
    true[2:6, 1:4, 1:4] = True
    masks = {"good": true, "shifted": np.roll(true, 1, axis=0), "none": np.zeros_like(true)}
    return [evaluate_case(mask, true, grid, 32, name=name) for name, mask in masks.items()]


# ---------------------------------------------------------------- tables


def test_leading_columns_stand_first_in_every_table():
    assert columns_of(ROWS)[: len(LEADING)] == list(LEADING)
    assert columns_of(ROWS, ["dsc", "method"])[len(LEADING) :] == ["dsc"]
    assert columns_of(ROWS)[len(LEADING) :] == ["dsc", "hd95_px", "note"]


def test_csv_keeps_precision_and_leaves_nothing_empty_by_accident():
    rows = list(csv.DictReader(io.StringIO(to_csv(ROWS, columns_of(ROWS)))))
    assert [row["dsc"] for row in rows] == ["0.91234", "0.4"]
    assert [row["hd95_px"] for row in rows] == ["", "3.0"]
    assert rows[0]["note"] == "a|b"


def test_markdown_escapes_and_rounds():
    text = to_markdown(ROWS, ["method", "dsc", "hd95_px", "note"], headings={"dsc": "DSC"}, digits=2)
    lines = text.splitlines()
    assert lines[0] == "| method | DSC | hd95_px | note |"
    assert lines[1] == "|---|---:|---:|---|"
    assert lines[2] == f"| spd | 0.91 | {ABSENT} | a\\|b |"


def test_write_table(tmp_path):
    table, text = write_table(tmp_path / "table2", ROWS, columns=["dsc"], intro="# Table 2\n\nUnits: 0-1.")
    assert (table.name, text.name) == ("table2.csv", "table2.md")
    assert "noise_model" in table.read_text()
    assert "noise" not in text.read_text()  # said in no row
    assert text.read_text().startswith("# Table 2\n\nUnits: 0-1.\n\n| method |")


@pytest.mark.parametrize(
    "value, cell",
    [(None, ABSENT), (0.12345, "0.123"), (3, "3"), (True, "yes"), ((0.1, 0.25), "0.100 to 0.250"),
     ("ab" * 32, "abababababab"), ("a" * 39, "a" * 39)],
)  # fmt: skip
def test_cells(value, cell):
    assert shown(value) == cell


# ---------------------------------------------------------------- pages


def test_page_is_whole_escaped_and_loads_nothing():
    evil = "<script>alert('x')</script>"
    picture = Picture(overlay(Panel(np.eye(8), evil)), evil)
    blocks = (Text((evil,), "note"), Table({"a": evil, "b": "B"}, [{"a": evil, "b": 1.5}], evil), picture)
    page = render(evil, [Section(evil, blocks)], {evil: evil})
    outline = Outline(page)
    assert outline.open == []
    assert "script" not in outline.tags
    assert evil in outline.text
    assert all(load.startswith("data:image/png;base64,") for load in outline.loads)
    assert "http" not in page.split("</head>")[1]
    assert "1.500" in outline.text


def test_write_page(tmp_path):
    path = write_page(tmp_path / "deep" / "page.html", "Title", [Section("S", (Text(("words",)),))])
    assert "words" in path.read_text("utf-8")


def test_evaluation_page_says_everything():
    cases = cases_of(GRIDS["oblique"])
    patients = {"good": "p1", "shifted": "p1", "none": "p2"}
    summary = summarise(cases, patients, provenance={"method": "spd", "prompt_set": "ab" * 32}, size=32, draws=50)
    error = InputError("LABEL_GRID", "grids differ")
    evaluation = Evaluation(tuple(cases), ("lost",), (), {"bad": error}, {}, ("good",))
    assert isinstance(evaluation.problem(), BatchError)
    sections = report.sections(evaluation, summary, patients, comparisons={"raw": compare(cases, cases, draws=20)})
    page = render("Evaluation", sections, report.facts(summary))
    text = " ".join(Outline(page).text)
    for word in (
        "lost",
        "LABEL_GRID",
        "all-empty predictor",
        "abababababab",
        "not recorded",
        "32 x 32 px",
        "raw",
    ):
        assert word in text
    names = [row["case"] for row in (report.case_row(case, patients) for case in report.worst_first(cases))]
    assert names == ["none", "shifted", "good"]


def test_rows_of_cases_and_slices():
    cases = cases_of(GRIDS["plain"])
    row = report.case_row(cases[2], {"none": "p"})
    assert (row["patient"], row["missed_slices"], row["positive_slices"], row["valid_slices"]) == (
        "p",
        3,
        3,
        0,
    )
    assert row["hd95_px"] is None
    assert row["dsc"] == pytest.approx(2 / 5)
    slices = report.slice_rows(cases, {})
    assert len(slices) == 15
    assert slices[0] == slices[0] | {"case": "good", "patient": "good", "slice": 0, "true_empty": True}
    json.dumps(slices, allow_nan=False)


def test_impossible_numbers_are_shown_as_such():
    from dataclasses import replace

    cases = cases_of(GRIDS["plain"])
    summary = replace(summarise(cases, draws=20), violations=("mean IoU is impossible",))
    page = render("t", report.sections(Evaluation(tuple(cases)), summary, {}))
    assert "mean IoU is impossible" in page


# ---------------------------------------------------------------- pictures


def test_overlay_draws_contours_and_prompts_in_their_colours():
    image = np.random.default_rng(0).random((40, 60))
    mask = np.zeros((40, 60), bool)
    mask[10:30, 20:45] = True
    bare = overlay(Panel(image), legend=False)
    assert near(bare, TRUTH) == near(bare, PREDICTION) == 0
    both = overlay(Panel(image, "t", mask, np.roll(mask, 6, 1)))
    assert near(both, TRUTH) > 100
    assert near(both, PREDICTION) > 50
    for kind, (_, colour, _) in MARKS.items():
        drawn = overlay(Panel(image, marks=Marks(np.array([[5, 5], [50, 30]]), (kind, kind))))
        assert near(drawn, colour, 25) > near(bare, colour, 25) + 20


def test_prompts_stand_where_they_are():
    image = np.zeros((40, 60))
    left = overlay(Panel(image, marks=Marks.raw(np.array([[10.0, 20.0]]))), legend=False)
    right = overlay(Panel(image, marks=Marks.raw(np.array([[50.0, 20.0]]))), legend=False)
    places = []
    for png in (left, right):
        pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), int)
        yellow = (pixels[..., 0] > 200) & (pixels[..., 1] > 200) & (pixels[..., 2] < 120)
        places.append(np.argwhere(yellow).mean(axis=0) / pixels.shape[:2])
    assert places[0][1] < 0.35 < 0.65 < places[1][1]
    assert places[0][0] == pytest.approx(places[1][0], abs=0.01)


def test_pictures_keep_proportions_and_bytes():
    panel = Panel(np.eye(30, 60))
    square, tall = (
        Image.open(io.BytesIO(overlay(panel, spacing=s, legend=False))).size for s in ((1.0, 1.0), (2.0, 1.0))
    )
    assert tall[1] > 1.5 * square[1]
    assert overlay(panel) == overlay(panel)


def test_strip_takes_colour_heat_and_ragged_rows():
    colour = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    rows = [
        [Panel(colour, "picture"), Panel(colour[..., 0], heat=np.ones((20, 30)))],
        [Panel(np.zeros((20, 30)))],
    ]
    png = strip(rows, ["first", "second"])
    assert Image.open(io.BytesIO(png)).size[0] == pytest.approx(2 * 2.3 * 110, abs=2)


def test_masks_at_the_edge_have_closed_contours():
    image, mask = np.zeros((30, 30)), np.ones((30, 30), bool)
    assert near(overlay(Panel(image, true=mask, window=(-2, -2, 31, 31)), legend=False), TRUTH) > 300


def test_zoom_window_holds_the_masks():
    a, b = np.zeros((60, 90), bool), np.zeros((60, 90), bool)
    a[10:12, 80:90] = b[30, 70] = True
    x0, y0, x1, y1 = zoom_window((60, 90), a, None, b) or (0, 0, 0, 0)
    assert x0 <= 70
    assert x1 == 89.5
    assert y0 <= 10 < 30 <= y1
    assert x1 - x0 <= 90
    assert zoom_window((60, 90), np.zeros((60, 90), bool)) is None


def test_curves_and_dots_are_pictures():
    line = curves({"a": [(0, 1), (1, 0.5)], "b": [(0, 1)]}, xlabel="x", ylabel="y", bands={"a": [(0.9, 1), (0.4, 0.6)]})
    for png in (line, dots({"one": 0.5, "two": 1.0}, xlabel="Dice")):
        assert Image.open(io.BytesIO(png)).format == "PNG"
    assert near(line, "#0072B2") > 50


def test_figures_leave_no_global_state():
    code = "import sys, numpy; from steadysam.report.figures import Panel, overlay; overlay(Panel(numpy.eye(5)));"
    code += "sys.exit('matplotlib.pyplot' in sys.modules)"  # in a process of its own: other libraries load pyplot
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_telling_slices_are_the_worst_in_order():
    case = cases_of(GRIDS["plain"])[1]
    assert telling_slices(case) == [1, 2, 3]
    assert telling_slices(case, 1) == [1]
    grid = GRIDS["plain"]
    nothing = evaluate_case(np.zeros(grid.shape), np.zeros(grid.shape), grid, 16)
    assert telling_slices(nothing, 2) == [0, 1]


@pytest.mark.parametrize("name", ["oblique", "sagittal", "coronal", "flipped"])
def test_audit_marks_come_back_to_their_pixels(name, tmp_path):
    grid = GRIDS[name]
    place = slice_to_ras(np.array([[2.25, 3.0]]), 2, grid)[0].tolist()
    rows = [
        {"slice": 2, "verdict": "rejected", "ras_mm": place},
        {"slice": 2, "verdict": "accepted", "ras_mm": place},
        {"slice": None, "verdict": "ignored", "ras_mm": place},
    ]
    points = [{"xy": [1.0, 2.0], "verdict": "added"}, {"xy": [0.5, 0.5], "verdict": "accepted"}]
    path = tmp_path / "c.audit.json"
    path.write_text(json.dumps({"prompts": rows, "consensus": [{"slice": 3, "points": points}]}))
    marks = audit_marks(path, grid)
    assert sorted(marks) == [2, 3]
    assert marks[2].kinds == ("rejected",)
    np.testing.assert_allclose(marks[2].xy, [[2.25, 3.0]], atol=1e-5)
    assert marks[3].kinds == ("added", "accepted")
    assert audit_marks(tmp_path / "absent.json", grid) == {}


def test_case_picture_needs_the_image_of_the_case():
    grid = GRIDS["sagittal"]
    true = np.zeros(grid.shape, bool)
    true[1:4, 3:9, 2:6] = True
    case = evaluate_case(np.roll(true, 1, axis=1), true, grid, 32, name="case")
    volume = Volume(np.random.default_rng(0).random(grid.shape), grid, "case")
    picture = case_picture(case, volume, np.roll(true, 1, axis=1), true, grid)
    assert picture.caption.startswith("case: volume Dice 0.8")
    assert near(picture.png, TRUTH) > 100
    other = Volume(np.zeros((3, 3, 3)), Grid((3, 3, 3), np.eye(4)), "other")
    with pytest.raises(InputError, match="LABEL_GRID"):
        case_picture(case, other, true, true, grid)

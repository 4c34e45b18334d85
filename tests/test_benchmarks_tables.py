"""Tables of benchmarks/ that stand beside the report: trained rows against their floors, students against a teacher."""

import importlib
import io
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from steadysam.bench.claims import Claim, keep_claims
from steadysam.bench.store import run_path
from steadysam.bench.suite import Suite
from steadysam.config import validated
from steadysam.files import write_json
from steadysam.report.benchmark.pooling import read_store
from stores import case, dices, put, scored

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(params=["floor", "agreement", "starts", "cost", "training_step"])
def script(request, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module(request.param)


def script_of(name, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module(name)


def test_rows_that_do_not_beat_a_floor_come_first(tmp_path, monkeypatch):
    floor = script_of("floor", monkeypatch)
    trained, untrained = tmp_path / "trained", tmp_path / "untrained"
    put(trained, "good", dices(0.8, 0.6))
    put(untrained, "good", dices(0.1, 0.3))
    put(trained, "lazy", dices(0.4, 0.4))
    put(untrained, "lazy", dices(0.5, 0.3))
    empty = [case("c0", [scored(0.5), scored(0.0, empty=True), scored(0.0, empty=True)])]
    put(trained, "loud", empty)  # one slice of three: an empty prediction has 2/3
    put(untrained, "loud", [case("c0", [scored(0.1), scored(0.0, empty=True), scored(0.0, empty=True)])])
    put(trained, "frozen", dices(0.1), training_seed=None)
    put(untrained, "frozen", dices(0.1), training_seed=None)
    monkeypatch.setattr(sys, "argv", ["floor.py", str(trained), str(untrained), "-o", str(tmp_path / "table.md")])
    floor.main()
    text = (tmp_path / "table.md").read_text("utf-8")
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")][1:]
    assert [row[0].strip("| ") for row in rows] == ["lazy", "loud", "good"]
    assert "2 of 3 trained rows" in text
    assert rows[0][4:7] == ["0.400", "0.400", "0.000"]
    assert rows[1][4:7] == ["0.167", "0.033", "0.667"]
    assert rows[2][-1].startswith("yes")


def test_the_table_of_agreement(monkeypatch):
    agreement = script_of("agreement", monkeypatch)
    text = agreement.table({"A": {run: [1.0, 3.0] for run in agreement.RUNS}})
    assert "| A | 2.000 (1.000 to 3.000) |" in text
    assert text.rstrip().endswith("| 2 |")


def test_rows_of_two_suites_side_by_side(tmp_path, monkeypatch):
    starts = script_of("starts", monkeypatch)
    old, new = tmp_path / "old", tmp_path / "new"
    alone = {"group": "detectors alone", "figure": "", "found": 1}
    for store, key, ap, dice in ((old, "a", 0.2, 0.4), (new, "b", 0.5, 0.6)):
        for target in ("LV", "RV"):
            detection = {"AP": ap, "AP50": ap, "AP75": ap, "found": 1, "true": 1, "least_score": 0.001}
            evidence = {"detection": detection}
            put(store, "detector", dices(0.1, 0.1), target=target, key=key, evidence=evidence, **alone)
        put(store, "S+D", dices(dice, dice + 0.1, dice), seed=1, key=key)
        put(store, "UNet", dices(0.5), key="same")
    put(old, "S+D", dices(0.0, 0.0, 0.0), seed=2, key="a")  # a seed that one store lacks counts in neither
    monkeypatch.setattr(sys, "argv", ["starts.py", str(old), str(new), "-o", str(tmp_path / "table.md")])
    starts.main()
    lines = (tmp_path / "table.md").read_text("utf-8").splitlines()
    assert "| detector | 0.200 → 0.500 | 0.200 → 0.500 | 0.200 → 0.500 | 2 | 0 |" in lines
    assert "| S+D | 0.433 → 0.633 (+0.200 to +0.200) | – | 0.433 → 0.633 | 1 | 1 |" in lines
    assert not any("UNet" in line for line in lines)


def test_the_hours_of_a_table_count_the_runs_that_its_own_start_from(tmp_path, monkeypatch):
    page = script_of("results_page", monkeypatch)
    suite = page.read_suite(BENCHMARKS / "suites" / "ldfsam_cpu.toml")
    for run, seconds in (
        ("detector", {"teacher": 3000, "student": 600}),
        ("box_student", {"masks": 1800}),
        ("kd", {"student": 9000}),
    ):
        write_json(run_path(tmp_path, "Kvasir", 10, run), {"seconds": seconds})
    text = page.hours(suite, tmp_path, ("prompt form", "comparison"))
    # 12 targets and seeds of box, D, S and S+D from both detectors, and of the detector
    assert "| prompt form | 2 | 108 | 1.5 |" in text
    assert "| comparison | 0 |" in text


def test_the_scripts_say_what_they_do(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [script.__name__, "--help"])
    with pytest.raises(SystemExit, match="0"):
        script.main()
    assert "python benchmarks/" in capsys.readouterr().out


def suite_of_modes(*modes: str, teacher: str, size: int) -> Suite:
    """A row of `ldfsam` per mode."""
    detector = {"teacher": teacher, "image_size": 64}
    runs = {name: {"method": {"name": "ldfsam", "mode": name, "detector": detector}} for name in modes}
    values = {"name": "modes", "training": "none", "targets": {"blob": {"dataset": "x"}}}
    values |= {"prompts": {"none": {"nothing": True}}, "runs": runs, "rows": {name: {"run": name} for name in runs}}
    values |= {"run": {"preprocess": {"size": size}, "backbone": {"name": "steadysam-test"}}}
    return validated(Suite, values)


def test_the_cost_of_rows_leaves_out_a_teacher_and_counts_a_box(tmp_path, monkeypatch):
    cost = script_of("cost", monkeypatch)
    suite = suite_of_modes("box", "SD", "none", teacher="s", size=32)
    numbers = {}
    for name in suite.rows:
        built = cost.build(suite, name, 2)
        numbers[name] = {key: float(value) for key, value in cost.counts(built, 2).items()}
        parts = {part: sum(p.numel() for p in one.parameters()) / 1e6 for part, one in built.model.named_children()}
        assert "teacher" not in parts
        assert numbers[name]["all"] == pytest.approx(sum(parts.values()), abs=1e-3)
    assert numbers["none"]["all"] < numbers["box"]["all"] < numbers["SD"]["all"]
    assert all(found["trained"] <= found["all"] for found in numbers.values())
    assert numbers["none"]["gflops"] < min(numbers["box"]["gflops"], numbers["SD"]["gflops"])
    for run, seconds in (("SD", {"masks": 60.0}), ("box", {"masks": 30.0})):
        write_json(run_path(tmp_path, "blob", 0, run), {"seconds": seconds})
    lines = [line.split(" | ") for line in cost.table(suite, list(suite.rows), tmp_path, 2, 1).splitlines()[2:]]
    assert [line[0].strip("| ") for line in lines] == list(suite.rows)
    assert [line[-1].strip("| ") for line in lines] == ["0.5", "1.0", "–"]
    assert lines[0][-2] == "1.00", "without the row of bare segmenters times are relative to the first"


def test_a_training_step_trains_what_the_mask_stage_trains_and_is_told_beside_the_bare_segmenter(monkeypatch):
    step = script_of("training_step", monkeypatch)
    suite = suite_of_modes("none", "box", "SD", teacher="", size=64)
    built = step.build(suite, "SD", 2)
    before = {name: p.detach().clone() for name, p in built.model.named_parameters()}
    step.training_step(built, 2)()
    moved = {name for name, p in built.model.named_parameters() if not torch.equal(before[name], p)}
    assert {name.split(".")[0] for name in moved} == {"backbone", "prompter", "detector"}
    assert not any(name.startswith("detector.head") for name in moved)
    lines = [line.strip("| ").split(" | ") for line in step.table(suite, list(suite.rows), 2, 2).splitlines()[2:]]
    assert [line[0] for line in lines] == list(suite.rows)
    assert lines[0][-2:] == ["1.000", "1.000–1.000"]
    assert float(lines[2][1]) > float(lines[1][1]) == float(lines[0][1]) > 0, "boxes train no more than nothing does"


def test_figures_in_the_words_of_a_page_come_from_the_store(tmp_path, monkeypatch):
    words = script_of("figures_in_words", monkeypatch)
    for target, gain in (("LV", 0.1), ("LA", 0.3)):
        put(tmp_path, "A, tuned", dices(0.5 + gain, 0.5 + gain), target=target, seed=1)
        put(tmp_path, "B", dices(0.4, 0.5), target=target, seed=1)
    put(tmp_path, "B", dices(0.0, 0.0), target="LV", seed=2)
    keep_claims(tmp_path, {"A before B": Claim(rows={"A, tuned": 1, "B": -1})})
    book = read_store(tmp_path, draws=20)
    asked = {
        "A, tuned @ LA": "0.800",
        "A, tuned @ mean": "0.700",
        "A, tuned − B @ LV": "0.150",
        "A, tuned − B @ LV, LA": "0.250",
        "B @ LV, seed 2": "0.000",
        "dsc_positive: B @ LV": "0.225",
        "verdict: A before B": "holds",
        "sum: A before B": "0.250 (0.200 to 0.275)",
        "sum: A before B @ LV": "0.150 (0.100 to 0.200)",
    }
    for text, figure in asked.items():
        assert words.with_figures(f"So {{{text}}}.", book) == f"So {figure}.\n"
    assert words.with_figures("- It is {A, tuned\n  @ LA}.", book) == "- It is 0.800.\n", "words are wrapped"
    for text in (
        "C @ LV",
        "B @ RV",
        "B @ LA, seed 2",
        "B",
        "verdict: B before A",
        "sum: A before B @ RV",
        "AP: B @ LV",
    ):
        with pytest.raises(ValueError, match="no such figure"):
            words.with_figures(f"{{{text}}}", book)


def test_pictures_of_pages_are_small_and_keep_their_colours(monkeypatch):
    page = script_of("results_page", monkeypatch)
    noise = np.random.default_rng(0).integers(0, 16, (300, 200, 3))
    pixels = np.where(np.arange(200)[:, None] < 100, 230 + noise, noise).astype(np.uint8)
    pixels[150:153, 40:43] = (213, 94, 0)  # a small mark among many greys
    drawn = Image.fromarray(pixels)
    png = io.BytesIO()
    drawn.convert("RGBA").save(png, "PNG")
    small = page.with_palette(png.getvalue())
    assert len(small) < len(png.getvalue())
    found = np.asarray(Image.open(io.BytesIO(small)).convert("RGB"), int)
    assert np.abs(found - pixels).max() <= 16
    assert np.abs(found[151, 41] - (213, 94, 0)).max() <= 1
    assert page.with_palette(png.getvalue()) == small


def test_words_are_wrapped_without_touching_headings_or_items(monkeypatch):
    words = script_of("figures_in_words", monkeypatch)
    text = "## A heading\n\n- one two\n  three\n- four\n\nfive six\nseven\n"
    assert words.wrapped(text, 12) == "## A heading\n\n- one two\n  three\n- four\n\nfive six\nseven\n"
    assert words.wrapped(text, 40) == "## A heading\n\n- one two three\n- four\n\nfive six seven\n"

"""`steadysam report` as a user types it."""

import pytest

from stores import dices, put
from toys import steadysam


@pytest.fixture
def store(tmp_path):
    for row, dice in (("SPD", 0.6), ("Local", 0.5)):
        put(tmp_path / "store", row, dices(dice, dice + 0.1))
    return tmp_path / "store"


def test_a_report_is_written(store, tmp_path):
    assert steadysam("report", store, "-o", tmp_path / "out", "--draws", 50, "--steps", "Local -> SPD") == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"report.html", "report.json", "cells.csv", "tables", "paired", "steps"}


def test_mistakes_have_their_exit_codes(store, tmp_path, capsys):
    assert steadysam("report", store, "-o", tmp_path / "out", "--reference", "spd") == 2
    assert "BENCH_ROW" in capsys.readouterr().err
    assert steadysam("report", store, "-o", tmp_path / "out", "--steps", "Local") == 2
    assert steadysam("report", store, "-o", tmp_path / "out", "--draws", 0) == 2
    assert steadysam("report", tmp_path / "nothing", "-o", tmp_path / "out") == 4


def test_a_suite_orders_the_rows(store, tmp_path):
    suite = tmp_path / "suite.toml"
    suite.write_text(
        """name = "s"
targets.LV.dataset = "d"
prompts.noisy.simulator = "paper"
runs.spd.method.name = "spd"
rows.SPD.run = "spd"
rows.Local.run = "spd"
""",
        "utf-8",
    )
    for name, more in (("plain", []), ("ordered", ["--suite", suite])):
        assert steadysam("report", store, "-o", tmp_path / name, "--draws", 50, *more) == 0
    first, second = ((tmp_path / name / "tables" / "noisy.md").read_text() for name in ("plain", "ordered"))
    assert first.index("| Local") < first.index("| SPD")
    assert second.index("| SPD") < second.index("| Local")

"""Keys of cells: what decides scores is in them, what does not is not, and what came later changes no old one."""

from pathlib import Path

import pytest

from steadysam.bench.group import Folders, Group, Options
from steadysam.bench.keys import ADDED_LATER, as_before, decisive, prompt_values, row_values
from steadysam.bench.suite import Place, PromptSpec, RowSpec, Suite, read_suite
from test_bench import TEXT

# made before any setting of ADDED_LATER existed
PINNED = {
    ("SPD", "noisy"): "98797d683ad434860c0455c7c18a0d60d640a9bcdba6f5359ed96ea13e813b72",
    ("SPD", "worse"): "510a67c7a3aa58e291dbc43200b6f2ad9fdef9680d51cedd4c1009c3f77ea355",
    ("Local", "noisy"): "89c37d9c63eb48cfcd50dd5b28e8ea726b7cbc1b04feaa1ea25a5dbc257b172c",
    ("frozen, consensus", "noisy"): "5c630fd6264f632fa3e34efadb744b6b7dfa4efca715fb5f790f2c555ea1c402",
}


@pytest.fixture
def suite(tmp_path) -> Suite:
    (tmp_path / "toy.toml").write_text(TEXT.format(dataset="Dataset001_Toy"), "utf-8")
    return read_suite(tmp_path / "toy.toml")


def group_of(suite: Suite) -> Group:
    return Group(suite, "blob", 0, Folders(Path("/data"), Path("/work"), Path("/store")), Options())


@pytest.mark.parametrize("cell", PINNED, ids=" ".join)
def test_a_cell_of_the_first_stores_keeps_its_key(suite, cell):
    """If this fails, every store made so far is stale. A setting that is new belongs into `ADDED_LATER`."""
    assert group_of(suite).key(*cell) == PINNED[cell]


def test_where_a_row_is_shown_does_not_matter_and_what_it_does_matters(suite):
    shown = {"group": "g", "figure": "f", "x": 3, "column": "c", "also": (Place(figure="f", x=1),), "seeds": (0,)}
    row = suite.rows["SPD"]
    assert row_values(row.model_copy(update=shown)) == row_values(row)
    assert "detail_from" not in row_values(row)
    assert row_values(RowSpec(run="a", detail_from="another"))["detail_from"] == "another"
    assert "nothing" not in prompt_values(PromptSpec(simulator="clicks"))
    assert prompt_values(PromptSpec(nothing=True))["nothing"] is True


def test_a_budget_makes_another_key_and_all_patients_make_the_old_one(suite):
    def key(**data):
        run = suite.runs["spd"].model_copy(update={"data": data})
        return group_of(suite.model_copy(update={"runs": {**suite.runs, "spd": run}})).key("SPD", "noisy")

    assert key(train_fraction=1.0) == key() == PINNED["SPD", "noisy"]
    assert len({key(), key(train_fraction=0.5), key(train_fraction=0.2), key(train_fraction=0.5, subset_seed=9)}) == 4
    assert key(train_fraction=0.5) == key(train_fraction=0.5, subset_seed=0), "the seed of the group is 0"


def test_settings_at_the_value_of_old_times_are_left_out():
    values = {"data": {"a": 1, "train_fraction": 1.0}, "method": {"features": None, "n": 2}}
    assert as_before(values, ADDED_LATER) == {"data": {"a": 1}, "method": {"n": 2}}
    assert as_before({"data": {"train_fraction": 0.5}}, ADDED_LATER) == {"data": {"train_fraction": 0.5}}
    assert values["data"]["train_fraction"] == 1.0, "the values themselves stay as they are"


def test_folders_and_devices_decide_nothing(suite):
    here, there = (group_of(suite), Group(suite, "blob", 0, Folders(Path("/x"), Path("/y"), Path("/z")), Options()))
    assert decisive(here.config("local")) == decisive(there.config("local"))
    assert decisive(here.config("local"))["start"]["run"] == "spd"

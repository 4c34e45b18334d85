"""Frozen prompt sets: a hash that names the content, and changes that are noticed."""

import json

import numpy as np
import pytest

from steadysam.errors import SteadyError
from steadysam.prompts.sets import find_prompt_file, read_set, write_set
from steadysam.prompts.simulate import SIMULATORS, generator_for
from steadysam.types import Grid, Point, Prompts

GRID = Grid((20, 14, 6), np.diag([1.0, -1.5, 4.0, 1.0]))


def cases(seed: int = 0) -> dict[str, Prompts]:
    mask = np.zeros(GRID.shape, bool)
    mask[4:9, 5:9, 1:5] = True
    return {name: SIMULATORS["paper"](mask, GRID, generator_for(seed, name)) for name in ("a", "b")}


def test_write_read_and_names(tmp_path):
    written = write_set(tmp_path / "s", cases(), {"seed": 0})
    again = read_set(tmp_path / "s")
    assert again == written
    assert again.meta == {"seed": 0}
    assert again.sources == ("simulated",)
    assert {case: again.read(case, GRID) for case in again.files} == cases()
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == ["a.json", "b.json", "promptset.json"]


def test_hash_is_of_the_content(tmp_path):
    first = write_set(tmp_path / "1", cases(), {"seed": 0})
    reordered = write_set(tmp_path / "2", dict(reversed(cases().items())), {"other": "words"})
    other = write_set(tmp_path / "3", cases(1), {"seed": 0})
    renamed = write_set(tmp_path / "4", {"a": cases()["a"], "c": cases()["b"]}, {"seed": 0})
    assert first.hash == reordered.hash
    assert len({first.hash, other.hash, renamed.hash}) == 3


def test_writing_again_is_fine_only_with_the_same_content(tmp_path):
    first = write_set(tmp_path / "s", cases(), {})
    assert write_set(tmp_path / "s", cases(), {}).hash == first.hash
    with pytest.raises(SteadyError, match="FS_EXISTS"):
        write_set(tmp_path / "s", cases(1), {})
    assert read_set(tmp_path / "s").hash == first.hash
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s"]


def test_changes_are_noticed(tmp_path):
    folder = write_set(tmp_path / "s", cases(), {}).folder
    original = (folder / "a.json").read_text()
    (folder / "a.json").write_text(original.replace('"positive"', '"negative"', 1))
    with pytest.raises(SteadyError, match="PROMPT_SET_CHANGED"):
        read_set(folder)
    (folder / "a.json").unlink()
    with pytest.raises(SteadyError, match="PROMPT_SET_CHANGED"):
        read_set(folder)
    (folder / "a.json").write_text(original)
    record = json.loads((folder / "promptset.json").read_text())
    (folder / "promptset.json").write_text(json.dumps({**record, "hash": "0" * 64}))
    with pytest.raises(SteadyError, match="PROMPT_SET_CHANGED"):
        read_set(folder)


def test_a_set_cannot_point_outside_its_folder(tmp_path):
    folder = write_set(tmp_path / "s", cases(), {}).folder
    record = json.loads((folder / "promptset.json").read_text())
    (folder / "a.json").rename(tmp_path / "a.json")
    record["files"]["a"]["file"] = "../a.json"
    (folder / "promptset.json").write_text(json.dumps(record))
    with pytest.raises(SteadyError, match="PROMPT_SET_CHANGED"):
        read_set(folder)


@pytest.mark.parametrize("value", ["{}", "[]", '{"format": "steadysam-promptset", "version": 1, "files": [1]}'])
def test_other_files_are_no_sets(tmp_path, value):
    with pytest.raises(SteadyError, match="PROMPT_SET_MISSING"):
        read_set(tmp_path)
    (tmp_path / "promptset.json").write_text(value)
    with pytest.raises(SteadyError, match="PROMPT_SET_SCHEMA"):
        read_set(tmp_path)


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "promptset"])
def test_case_names_must_be_file_names(tmp_path, name):
    with pytest.raises(SteadyError, match="PROMPT_CASE_NAME"):
        write_set(tmp_path / "s", {name: Prompts((Point("p", (0.0, 0, 0)),))}, {})
    assert not (tmp_path / "s").exists()


def test_find_prompt_file_prefers_our_json(tmp_path):
    assert find_prompt_file(tmp_path, "c") is None
    for suffix in (".nii.gz", ".csv", ".fcsv", ".mrk.json", ".json"):
        (tmp_path / f"c{suffix}").write_text("")
        (tmp_path / f"cc{suffix}").write_text("")
        found = find_prompt_file(tmp_path, "c")
        assert found is not None
        assert found.name == f"c{suffix}"


def test_missing_case(tmp_path):
    with pytest.raises(SteadyError, match="PROMPT_CASE_MISSING"):
        write_set(tmp_path / "s", cases(), {}).read("z")

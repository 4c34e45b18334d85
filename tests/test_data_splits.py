"""No patient stands on two sides, ever (spd.md section 8, check 12)."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steadysam.data.cases import Case, Dataset, Part, read_dataset
from steadysam.data.splits import (
    Split,
    known_images,
    leaks_by_bytes,
    refuse_byte_leaks,
    refuse_start_leaks,
    split_cases,
)
from steadysam.errors import SteadyError


def a_case(name: str, patient: str = "", part: Part = "Tr", folder: Path = Path("x"), labelled: bool = True) -> Case:
    label = folder / f"{name}.label" if labelled else None
    return Case(name, patient or name, folder / f"{name}.nii.gz", label, part)


def a_dataset(cases: list[Case], folder: Path = Path("x")) -> Dataset:
    return Dataset("d", folder, {"background": 0, "a": 1}, tuple(cases))


def patients(cases: tuple[Case, ...]) -> set[str]:
    return {case.patient for case in cases}


@settings(max_examples=200, deadline=None)
@given(
    scans=st.lists(st.integers(1, 4), min_size=3, max_size=40),
    seed=st.integers(0, 2**32),
    with_test=st.booleans(),
    respect_test=st.booleans(),
)
def test_no_patient_in_two_parts(scans: list[int], seed: int, with_test: bool, respect_test: bool) -> None:
    """Patients with several scans (two orientations, two visits) stay together; no case is lost."""
    cases = [a_case(f"p{p}_{s}", f"p{p}") for p, n in enumerate(scans) for s in range(n)]
    if with_test:
        cases += [a_case(f"t{t}", part="Ts") for t in range(3)]
    split = split_cases(a_dataset(cases), seed=seed, respect_test=respect_test)
    assert not patients(split.train) & patients(split.val)
    assert not patients(split.train) & patients(split.test)
    assert not patients(split.val) & patients(split.test)
    assert sorted(c.name for part in split.parts.values() for c in part) == sorted(c.name for c in cases)
    assert all(split.parts.values())


def test_two_orientations_of_a_subject_stay_together() -> None:
    cases = [a_case(f"s{n:02}_{view}", f"s{n:02}") for n in range(20) for view in ("coronal", "axial")]
    split = split_cases(a_dataset(cases), seed=3)
    assert [len(part) for part in split.parts.values()] == [28, 4, 8]  # 14, 2 and 4 subjects


def test_the_seed_decides_and_the_order_of_files_does_not() -> None:
    cases = [a_case(f"c{n}") for n in range(30)]
    one = split_cases(a_dataset(cases), seed=1)
    assert split_cases(a_dataset(cases[::-1]), seed=1) == one
    assert len(one.key) == 64
    assert split_cases(a_dataset(cases), seed=2).key != one.key
    assert "seed 1" in one.rule


def test_a_delivered_test_set_is_respected() -> None:
    cases = [a_case(f"c{n}") for n in range(16)] + [a_case(f"t{n}", part="Ts") for n in range(4)]
    split = split_cases(a_dataset(cases), seed=0)
    assert {case.name for case in split.test} == {"t0", "t1", "t2", "t3"}
    assert (len(split.train), len(split.val)) == (14, 2)
    pooled = split_cases(a_dataset(cases), seed=0, respect_test=False)
    assert [len(part) for part in pooled.parts.values()] == [14, 2, 4]


def test_unlabelled_images_are_no_test_set() -> None:
    cases = [a_case(f"c{n}") for n in range(10)] + [a_case("t", part="Ts", labelled=False)]
    split = split_cases(a_dataset(cases), seed=0)
    assert [len(part) for part in split.parts.values()] == [7, 1, 2]
    assert "t" not in {case.name for part in split.parts.values() for case in part}


def test_a_patient_on_both_sides_of_a_delivered_split_is_an_error() -> None:
    cases = [a_case(f"c{n}") for n in range(5)] + [a_case("t", patient="c2", part="Ts")]
    with pytest.raises(SteadyError) as caught:
        split_cases(a_dataset(cases), seed=0)
    assert caught.value.code == "DATA_LEAK_PATIENT"


def fold_file(folder: Path, *folds: object) -> Dataset:
    (folder / "splits_final.json").write_text(json.dumps(folds))
    return a_dataset([a_case("a"), a_case("b"), a_case("c"), a_case("d", "patient-of-c")], folder)


def test_splits_final_wins(tmp_path: Path) -> None:
    dataset = fold_file(tmp_path, {"train": ["a"], "val": ["b"]}, {"train": ["b", "c"], "val": ["a"]})
    split = split_cases(dataset, seed=0, fold=1)
    names = [[case.name for case in part] for part in split.parts.values()]
    assert names == [["b", "c"], ["a"], ["d"]]
    assert "fold 1" in split.rule


@pytest.mark.parametrize(
    "fold, code",
    [
        ({"train": ["a", "x"], "val": ["b"]}, "SPLIT_UNKNOWN"),
        ({"train": ["a", "b"], "val": ["b"]}, "SPLIT_OVERLAP"),
        ({"train": ["a"], "val": []}, "SPLIT_EMPTY"),
        ({"train": ["a", "a"], "val": ["b"]}, "SPLIT_EMPTY"),
        ({"train": "a"}, "SPLIT_SYNTAX"),
        (7, "SPLIT_SYNTAX"),
    ],
)
def test_bad_folds(tmp_path: Path, fold: object, code: str) -> None:
    with pytest.raises(SteadyError) as caught:
        split_cases(fold_file(tmp_path, fold), seed=0, fold=0)
    assert (caught.value.code, caught.value.exit_code) == (code, 3)


def test_missing_folds(tmp_path: Path) -> None:
    with pytest.raises(SteadyError, match="SPLIT_MISSING"):
        split_cases(a_dataset([a_case("a")], tmp_path), seed=0, fold=0)
    with pytest.raises(SteadyError, match="SPLIT_FOLD"):
        split_cases(fold_file(tmp_path, {"train": ["a"], "val": ["b"]}), seed=0, fold=5)
    with pytest.raises(SteadyError, match="SPLIT_FOLD"):
        split_cases(fold_file(tmp_path), seed=0, fold=-1)


def test_a_fold_that_tears_a_patient_apart(tmp_path: Path) -> None:
    (tmp_path / "splits_final.json").write_text('[{"train": ["a"], "val": ["b"]}]')
    dataset = a_dataset([a_case("a", "p"), a_case("b", "p")], tmp_path)
    with pytest.raises(SteadyError, match="DATA_LEAK_PATIENT"):
        split_cases(dataset, seed=0, fold=0)


def test_too_few_patients_and_impossible_shares() -> None:
    pair = a_dataset([a_case("a"), a_case("b")])
    with pytest.raises(SteadyError, match="DATA_TOO_FEW"):
        split_cases(pair, seed=0)
    assert len(split_cases(pair, seed=0, fractions=(0.5, 0.5, 0.0)).train) == 1
    for shares in ((0.5, 0.1, 0.1), (0.0, 0.5, 0.5), (1.2, -0.2, 0.0)):
        with pytest.raises(SteadyError, match="SPLIT_FRACTIONS"):
            split_cases(pair, seed=0, fractions=shares)


def test_equal_bytes_across_parts_are_found(tmp_path: Path) -> None:
    for name, content in (("a", b"same"), ("b", b"else"), ("c", b"same"), ("d", b"same!"), ("e", b"else")):
        (tmp_path / f"{name}.nii.gz").write_bytes(content)
    a, b, c, d, e = (a_case(name, folder=tmp_path) for name in "abcde")
    split = Split((a, b, e), (d,), (c,), "by hand")
    assert leaks_by_bytes(split) == [("train/a", "test/c")]  # b and e are equal too, but both train
    with pytest.raises(SteadyError, match="DATA_LEAK_BYTES"):
        refuse_byte_leaks(split)
    refuse_byte_leaks(Split((a, c), (b, e), (d,), "by hand"))


@pytest.mark.parametrize(
    "theirs, leak",
    [
        ({"train": ["a", "b"], "val": ["c"], "test": ["d"]}, ""),
        ({"train": ["a"], "val": ["b"], "test": ["c", "d"]}, ""),
        ({"train": ["a", "c"], "val": ["b"], "test": ["d"]}, "c"),  # would choose epochs by what was learnt
        ({"train": ["a", "d"], "val": ["b"], "test": ["c"]}, "d"),
        ({"train": ["a", "b"], "val": ["d"], "test": ["c"]}, "d"),
    ],
)
def test_a_start_that_has_seen_the_judges(theirs: dict[str, list[str]], leak: str) -> None:
    mine = {"train": ["a", "b"], "val": ["c"], "test": ["d"]}
    with pytest.raises(SteadyError, match=f"DATA_LEAK_START.*{leak}") if leak else nullcontext():
        refuse_start_leaks(theirs, mine, Path("run"))


def test_images_are_known_in_a_copy_of_the_data_set() -> None:
    theirs = {"split": {"train": ["x", "y"], "val": ["z"], "test": ["w"]}}
    hashes = {"x": "1", "y": "2", "z": "3", "w": "4"}
    mine = {"image_hashes": {"a": "2", "b": "4", "c": "9"}}
    assert known_images({**theirs, "image_hashes": hashes}, mine) == {"train": ["a"], "val": [], "test": ["b"]}
    assert known_images(theirs, mine) == {"train": [], "val": [], "test": []}


def test_a_start_from_more_patients_is_said(caplog: pytest.LogCaptureFixture) -> None:
    theirs = {"train": ["a", "b", "c"], "val": ["v"], "test": ["t"]}
    refuse_start_leaks(theirs, {**theirs, "train": ["a"]}, Path("larger"))
    assert "2 cases" in caplog.text
    caplog.clear()
    refuse_start_leaks({**theirs, "train": ["a"]}, theirs, Path("smaller"))
    assert not caplog.text


@pytest.mark.real_data
def test_real_splits(real_data: Path) -> None:
    for folder in sorted(path.parent for path in real_data.glob("*/dataset.json")):
        split = split_cases(read_dataset(folder), seed=0)
        assert all(split.parts.values())
        refuse_byte_leaks(split)

"""Train, validation and test, always by patient (spd.md sections 2 and 8, check 12)."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from steadysam.data.cases import Case, Dataset
from steadysam.errors import ConfigError, InputError
from steadysam.files import content_key, read_json, sha256_file

logger = logging.getLogger(__name__)

Fractions = tuple[float, float, float]


@dataclass(frozen=True)
class Split:
    """Three sets of cases and the rule that made them, for the run record."""

    train: tuple[Case, ...]
    val: tuple[Case, ...]
    test: tuple[Case, ...]
    rule: str
    key: str = field(default="")

    @property
    def parts(self) -> dict[str, tuple[Case, ...]]:
        """`train`, `val`, `test` by name."""
        return {"train": self.train, "val": self.val, "test": self.test}

    @property
    def summary(self) -> str:
        """How many cases of how many patients, and the rule, for people."""
        train, val, test = map(len, self.parts.values())
        patients = len({case.patient for cases in self.parts.values() for case in cases})
        return f"{train} training, {val} validation and {test} test cases of {patients} patients ({self.rule})"


def split_cases(
    dataset: Dataset,
    *,
    seed: int,
    fractions: Fractions = (0.7, 0.1, 0.2),
    fold: int | None = None,
    respect_test: bool = True,
) -> Split:
    """Split the labelled cases of a data set; the same seed gives the same split on every machine.

    A labelled `imagesTs` is the test set (unless `respect_test` is False) and training cases are then divided
    into training and validation in the proportion of the first two fractions. With `fold`, training and
    validation come from `splits_final.json`.

    Raises:
        ConfigError: `SPLIT_FRACTIONS`, `SPLIT_MISSING`, `SPLIT_FOLD`, `SPLIT_UNKNOWN`, `SPLIT_OVERLAP`,
            `SPLIT_EMPTY`, `SPLIT_SYNTAX`.
        InputError: `DATA_TOO_FEW`, `DATA_LEAK_PATIENT`.
    """
    _check_fractions(fractions)
    given = [case for case in dataset.part("Ts") if case.label is not None]
    training = list(dataset.part("Tr"))
    if fold is not None:
        train, val, left = _from_file(dataset, fold)
        test, rule = (
            (given or left),
            f"splits_final.json fold {fold}; test: {'imagesTs' if given else 'the rest'}",
        )
    elif given and respect_test:
        share = fractions[1] / (fractions[0] + fractions[1])
        train, val = _by_patient(training, (1 - share, share), seed)
        test, rule = (
            given,
            f"imagesTs is the test set; imagesTr by patient {1 - share:.3g}/{share:.3g}, seed {seed}",
        )
    else:
        train, val, test = _by_patient(training + given, fractions, seed)
        rule = f"by patient {'/'.join(f'{f:.3g}' for f in fractions)}, seed {seed}"
    split = Split(_sorted(train), _sorted(val), _sorted(test), rule)
    _refuse_patient_leak(split)
    names = [[case.name for case in cases] for cases in split.parts.values()]
    return Split(split.train, split.val, split.test, rule, content_key(names))


def leaks_by_bytes(split: Split) -> list[tuple[str, ...]]:
    """Groups `part/case` of image files with the same bytes that stand in different parts."""
    sizes: dict[int, list[tuple[str, Case]]] = {}
    for part, cases in split.parts.items():
        for case in cases:
            sizes.setdefault(case.image.stat().st_size, []).append((part, case))
    groups: dict[str, list[tuple[str, Case]]] = {}
    for alike in sizes.values():
        if len(alike) > 1:  # only files of equal size can be equal
            for part, case in alike:
                groups.setdefault(sha256_file(case.image), []).append((part, case))
    return [
        tuple(f"{part}/{case.name}" for part, case in group)
        for group in groups.values()
        if len({part for part, _ in group}) > 1
    ]


def refuse_byte_leaks(split: Split) -> None:
    """Raises InputError `DATA_LEAK_BYTES` if `leaks_by_bytes` finds any."""
    leaks = leaks_by_bytes(split)
    if leaks:
        raise InputError(
            "DATA_LEAK_BYTES",
            f"{len(leaks)} images stand in two parts of the split under different names",
            seen="; ".join(", ".join(group) for group in leaks[:5]),
            fix="remove the copies, or give both cases the same patient in patients.csv",
        )


def refuse_start_leaks(theirs: Mapping[str, Sequence[str]], mine: Mapping[str, Sequence[str]], run: Path) -> None:
    """The weights that a run starts from must not have seen what will judge it.

    Args:
        theirs, mine: case names of the parts `train`, `val` and `test`, of one data set.
        run: folder of the other run.

    Raises:
        InputError: `DATA_LEAK_START` if the other run was trained on cases that validate or test this one, or chose its
            epoch by cases that test this one. More training cases than here are warned of only.
    """
    trained, validated = set(theirs["train"]), set(theirs["val"])
    leaks = sorted((set(mine["test"]) & (trained | validated)) | (set(mine["val"]) & trained))
    if leaks:
        raise InputError(
            "DATA_LEAK_START",
            f"the run to start from has seen {len(leaks)} of the cases that validate or test this one",
            file=run,
            seen=", ".join(leaks[:5]),
            fix="start from a run with the same split (data.fold, data.split_seed, data.fractions)",
        )
    if more := len(trained - set(mine["train"])):
        logger.warning("%s was trained on %d cases that this run leaves out: their labels count here, too", run, more)


def known_images(theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> dict[str, list[str]]:
    """The split of another data set in the names of this one: of the images that both hold, whatever they are called.

    Args:
        theirs, mine: `data` of two run records.
    """
    names = {sha256: name for name, sha256 in mine["image_hashes"].items()}
    hashes = theirs.get("image_hashes", {})  # older runs have none
    return {
        part: [names[hashes[name]] for name in theirs["split"][part] if hashes.get(name) in names]
        for part in ("train", "val", "test")
    }


def _by_patient(cases: Sequence[Case], shares: Sequence[float], seed: int) -> tuple[list[Case], ...]:
    """Shuffle the patients and cut; every share above 0 gets at least one patient."""
    patients = sorted({case.patient for case in cases})
    wanted = sum(share > 0 for share in shares)
    if len(patients) < wanted:
        raise InputError(
            "DATA_TOO_FEW",
            "fewer patients than parts",
            seen=f"{len(patients)} patients",
            expected=f"{wanted} or more",
            fix="add labelled cases; or one part less (data.fractions), or a test set of its own (imagesTs, labelsTs)",
        )
    order = np.random.default_rng(seed).permutation(len(patients))
    counts = _counts(len(patients), shares)
    bounds = np.cumsum([0, *counts])
    place = {patients[int(p)]: int(np.searchsorted(bounds, rank, side="right")) - 1 for rank, p in enumerate(order)}
    return tuple([case for case in cases if place[case.patient] == index] for index in range(len(shares)))


def _counts(total: int, shares: Sequence[float]) -> list[int]:
    """Whole numbers near `total * share`: the first part takes the rest."""
    counts = [max(1, math.floor(total * share + 0.5)) if share > 0 else 0 for share in shares[1:]]
    while counts and sum(counts) > total - (shares[0] > 0):
        counts[counts.index(max(counts))] -= 1
    return [total - sum(counts), *counts]


def _from_file(dataset: Dataset, fold: int) -> tuple[list[Case], list[Case], list[Case]]:
    """nnU-Net's `splits_final.json`: a list of {"train": names, "val": names}."""
    path = dataset.folder / "splits_final.json"
    if not path.is_file():
        raise ConfigError("SPLIT_MISSING", "a fold needs splits_final.json", file=path, fix="leave out the fold")
    folds = read_json(path)
    if not isinstance(folds, list) or not 0 <= fold < len(folds):
        raise ConfigError("SPLIT_FOLD", "no such fold", file=path, seen=fold, expected=f"below {_length(folds)}")
    cases = {case.name: case for case in dataset.part("Tr")}
    train, val = (_names(path, folds[fold], key) for key in ("train", "val"))
    unknown = sorted({*train, *val} - set(cases))
    if unknown:
        raise ConfigError("SPLIT_UNKNOWN", f"{len(unknown)} names are no cases", file=path, seen=unknown[:20])
    both = sorted(set(train) & set(val))
    if both:
        raise ConfigError("SPLIT_OVERLAP", "cases stand in train and val", file=path, seen=both[:20])
    left = [case for name, case in cases.items() if name not in {*train, *val}]
    return [cases[name] for name in train], [cases[name] for name in val], left


def _names(path: Path, fold: Any, key: str) -> list[str]:
    names = fold.get(key) if isinstance(fold, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError("SPLIT_SYNTAX", f"a fold needs a list of names {key!r}", file=path)
    if not names or len(set(names)) != len(names):
        raise ConfigError("SPLIT_EMPTY", f"{key!r} is empty or names a case twice", file=path)
    return names


def _length(value: Any) -> int:
    return len(value) if isinstance(value, list) else 0


def _check_fractions(fractions: Fractions) -> None:
    if len(fractions) != 3 or min(fractions) < 0 or fractions[0] <= 0 or abs(sum(fractions) - 1) > 1e-6:
        raise ConfigError(
            "SPLIT_FRACTIONS",
            "impossible shares",
            seen=fractions,
            expected="train, val, test that add up to 1",
        )


def _refuse_patient_leak(split: Split) -> None:
    side: dict[str, str] = {}
    for part, cases in split.parts.items():
        for case in cases:
            if side.setdefault(case.patient, part) != part:
                raise InputError(
                    "DATA_LEAK_PATIENT",
                    f"a patient stands in {side[case.patient]} and in {part}",
                    seen=f"patient of case {case.name}",
                    expected="every patient in one part only",
                    fix="correct splits_final.json, imagesTs or the patient table",
                )


def _sorted(cases: Sequence[Case]) -> tuple[Case, ...]:
    return tuple(sorted(cases, key=lambda case: case.name))

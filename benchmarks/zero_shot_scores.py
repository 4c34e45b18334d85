"""Numbers from the cells of the zero-shot benchmark: means by target and over the sets, intervals by patient, bars.

Samples are (patient, value) pairs of a target. A set is one or more targets and counts once in the mean over sets;
whole patients are drawn for the intervals, with all their slices, seeds and targets of the set.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from zero_shot import read_cell

from steadysam.statistics import cluster_bootstrap

Sample = tuple[str, float]
Samples = Mapping[str, Sequence[Sample]]
Interval = tuple[float, float]
METRICS = ("one", "three", "box")


def load_cells(folder: Path, suite: Mapping[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """Method -> target -> cell, in the order of the suite's targets; what the suite does not name is left out."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for path in sorted(folder.glob("*.json")):
        cell = read_cell(path)
        found.setdefault(cell["method"], {})[cell["target"]] = cell
    return {
        method: {target: cells[target] for target in suite["targets"] if target in cells}
        for method, cells in found.items()
    }


def sets_of(suite: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Set -> its targets, in the order of the suite."""
    sets: dict[str, tuple[str, ...]] = {}
    for name, target in suite["targets"].items():
        sets[target["set"]] = (*sets.get(target["set"], ()), name)
    return sets


def samples_of(cells: Mapping[str, Mapping[str, Any]], metric: str) -> dict[str, list[Sample]]:
    """Target -> samples of a metric, over all slices and seeds; targets without the metric are left out."""
    found = {
        target: [(row["patient"], float(row[metric])) for row in cell["rows"] if row[metric] is not None]
        for target, cell in cells.items()
    }
    return {target: samples for target, samples in found.items() if samples}


def paired_cells(
    ours: Mapping[str, Mapping[str, Any]], others: Mapping[str, Mapping[str, Any]], metric: str = "one"
) -> tuple[dict[str, list[Sample]], dict[str, list[Sample]], dict[str, list[Sample]]]:
    """Samples of both and their differences (ours - others), on the slices and seeds that both have."""
    first: dict[str, list[Sample]] = {}
    second: dict[str, list[Sample]] = {}
    difference: dict[str, list[Sample]] = {}
    for target in ours:
        known = {_key(row): row[metric] for row in others.get(target, {}).get("rows", ()) if row[metric] is not None}
        for row in ours[target]["rows"]:
            if row[metric] is None or _key(row) not in known:
                continue
            a, b, patient = float(row[metric]), float(known[_key(row)]), row["patient"]
            first.setdefault(target, []).append((patient, a))
            second.setdefault(target, []).append((patient, b))
            difference.setdefault(target, []).append((patient, a - b))
    return first, second, difference


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["case"], row["slice"], row["seed"], row["click_x"], row["click_y"]


def mean_of(samples: Iterable[Sample]) -> float:
    """Mean over slices and seeds."""
    return float(np.mean([value for _, value in samples]))


def interval_of(samples: Sequence[Sample], draws: int) -> Interval | None:
    """95 % of the mean, by patient."""
    patients, values = zip(*samples, strict=True)
    return cluster_bootstrap(values, patients, np.random.default_rng(0), draws=draws)


def set_means(samples: Samples, sets: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Set -> mean of the means of its targets; sets that lack a target are left out."""
    return {
        name: float(np.mean([mean_of(samples[target]) for target in targets]))
        for name, targets in sets.items()
        if all(target in samples for target in targets)
    }


def mean_over_sets(samples: Samples, sets: Mapping[str, Sequence[str]]) -> float | None:
    """Mean of the sets' means, each set once; None while a set is missing."""
    means = set_means(samples, sets)
    return float(np.mean(list(means.values()))) if len(means) == len(sets) else None


def interval_over_sets(samples: Samples, sets: Mapping[str, Sequence[str]], draws: int) -> Interval | None:
    """95 % of `mean_over_sets`: patients are drawn within each set; None while a set is missing or has one patient."""
    if len(set_means(samples, sets)) < len(sets) or min(_patients(samples, t) for t in sets.values()) < 2:
        return None
    generator = np.random.default_rng(0)
    drawn = [_replicates({t: samples[t] for t in targets}, generator, draws) for targets in sets.values()]
    low, high = np.nanpercentile(np.mean(drawn, axis=0), [2.5, 97.5])
    return float(low), float(high)


def interval_of_set(samples: Samples, targets: Sequence[str], draws: int) -> Interval | None:
    """95 % of the mean of a set's targets, by patient; None with fewer than two patients."""
    if _patients(samples, targets) < 2:
        return None
    drawn = _replicates({t: samples[t] for t in targets}, np.random.default_rng(0), draws)
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return float(low), float(high)


def _patients(samples: Samples, targets: Sequence[str]) -> int:
    return len({patient for target in targets for patient, _ in samples[target]})


def _replicates(samples: Samples, generator: np.random.Generator, draws: int) -> NDArray[np.float64]:
    """(draws,) means of a set's targets when its patients are drawn with replacement."""
    names = list(dict.fromkeys(patient for rows in samples.values() for patient, _ in rows))
    place = {name: i for i, name in enumerate(names)}
    drawn = generator.integers(0, len(names), (draws, len(names)))
    means = []
    for rows in samples.values():
        index = [place[patient] for patient, _ in rows]
        sums = np.bincount(index, weights=[value for _, value in rows], minlength=len(names))
        counts = np.bincount(index, minlength=len(names))
        total = counts[drawn].sum(axis=1)
        means.append(np.where(total > 0, sums[drawn].sum(axis=1) / np.maximum(total, 1), np.nan))
    return np.mean(means, axis=0)


def best_classical(
    ours: Mapping[str, Any], classical: Mapping[str, Mapping[str, Any]], sets: Mapping[str, Sequence[str]]
) -> str | None:
    """The classical method with the highest one-click mean over all sets; None while none has them all."""
    means = {name: mean_over_sets(paired_cells(ours, cells)[1], sets) for name, cells in classical.items()}
    complete = {name: mean for name, mean in means.items() if mean is not None}
    return max(complete, key=lambda name: complete[name]) if complete else None


def bar_rows(
    ours: Mapping[str, Any],
    classical: Mapping[str, Mapping[str, Any]],
    sets: Mapping[str, Sequence[str]],
    bars: Mapping[str, float],
) -> list[dict[str, Any]]:
    """What was to be reached, and whether it was; `not measured` while cells are missing."""
    one, three = samples_of(ours, "one"), samples_of(ours, "three")
    rows = []
    for target in ("LV", "RV", "ISIC"):
        value = mean_of(one[target]) if target in one else None
        rows.append(_bar(f"one click, {target}", bars[f"one_{target}"], value))
    mean = mean_over_sets(one, sets)
    rows.append(_bar(f"one click, mean over {len(sets)} sets", bars["one_mean"], mean))
    best = best_classical(ours, classical, sets)
    margin = mean_over_sets(paired_cells(ours, classical[best])[2], sets) if best else None
    what = f"one click, mean over {len(sets)} sets, above the best classical method by that mean"
    rows.append(_bar(f"{what} ({best})" if best else what, bars["margin_mean"], margin))
    first, third = set_means(one, sets), set_means(three, sets)
    better = [name for name in sets if name in first and third[name] > first[name]]
    whole = len(first) == len(sets)
    worse = ", ".join(name for name in first if name not in better)
    what = "three clicks better than one, number of sets" + (f" (not on {worse})" if worse else "")
    rows.append(_bar(what, len(sets), len(better) if whole else None))
    return rows


def _bar(what: str, wanted: float, value: float | None) -> dict[str, Any]:
    verdict = "not measured" if value is None else "reached" if value >= wanted else "missed"
    return {"bar": what, "wanted": wanted, "measured": value, "verdict": verdict}

"""The lines of a main table: which pools stand in it, what is known of each, and its numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from steadysam.files import content_key
from steadysam.metrics import METRICS
from steadysam.report.benchmark.detection import detections_of
from steadysam.report.benchmark.pooling import NO_PROMPTS, ORACLE, Book, Pool
from steadysam.summary import Summary

ALL_EMPTY = "all-empty predictor"
MEAN = "mean over targets"
MARK = " †"  # behind every name whose prompts say where the truth is

# column -> heading of what is known of a line, beside its name
FACTS: dict[str, str] = {
    "method": "method",
    "prompt_source": "prompts from",
    "points": "points",
    "prompt_seeds": "prompt seeds",
    "training_seeds": "training seeds",
    "noise_model": "noise",
    "empty_slice_rule": "empty slices",
    "empty_consensus_policy": "empty consensus",
    "coarse": "refines",
    "backbone": "backbone",
    "size": "size, px",
    "evaluation_size": "scored at, px",
    "split": "split",
}
# column -> heading of the numbers shown in text; the CSV file has all metrics
NUMBERS: dict[str, str] = {
    "dsc": "DSC",
    "dsc_95": "95 %",
    "gain": "over all-empty",
    "iou": "IoU",
    "dsc_positive": "DSC positive",
    "dsc_positive_95": "95 %",
    "volume_dice": "volume Dice",
    "fp_rate_empty": "FP on empty",
    "hd95_px": "HD95 px",
    "hd95_px_n": "n",
    "assd_px": "ASSD px",
    "assd_px_n": "n",
    "pixel_accuracy": "pixel accuracy",
    "AP50": "AP50",
    "AP": "AP",
    "n_slices": "slices",
    "n_patients": "patients",
    "n_seeds": "seeds",
    "training_seconds": "training s",
    "trained_parameters": "trained",
}
_INTERVALS = ("dsc", "dsc_positive", "volume_dice", "iou", "fp_rate_empty", "hd95_px", "assd_px")


@dataclass(frozen=True)
class Line:
    """One line of a table: a row with the prompt set it was scored with, on the targets that have it."""

    row: str
    prompts: str
    lane: str
    pools: Mapping[str, Pool]

    @property
    def name(self) -> str:
        """The row's name; oracle lines are marked and say which prompts they had."""
        return f"{self.row} [{self.prompts}]{MARK}" if self.lane == ORACLE else self.row

    @property
    def first(self) -> Pool:
        """The pool of the first target."""
        return next(iter(self.pools.values()))


def lines_of(book: Book, prompts: str) -> list[Line]:
    """The lines of the table of a prompt set, by lane; those without prompts and oracles stand in every table.

    Targets are those on which the set itself was scored.
    """
    own = [pool for pool in book.pools.values() if pool.prompts == prompts]
    targets = {pool.target for pool in own}
    chosen: dict[tuple[str, str], dict[str, Pool]] = {}
    have: set[tuple[str, str]] = set()
    for pool in [*own, *(pool for pool in book.pools.values() if pool.prompts != prompts)]:
        shared = pool.blind or pool.lane == ORACLE
        if pool.target not in targets or pool.prompts != prompts and (not shared or pool.noise[0]):
            continue
        place = (pool.target, pool.row)
        if pool.lane != ORACLE and place in have:
            continue
        have.add(place)
        # a row without prompts is one line whichever set it was scored with
        name = (pool.row, pool.prompts if pool.lane == ORACLE else "")
        chosen.setdefault(name, {})[pool.target] = pool
    found = []
    for (row, _), pools in chosen.items():
        ordered = {target: pools[target] for target in book.targets if target in pools}
        first = next(iter(ordered.values()))
        found.append(Line(row, first.prompts, first.lane, ordered))
    lanes = list(dict.fromkeys([NO_PROMPTS, *(line.lane for line in found if line.lane != ORACLE), ORACLE]))
    rows = {row: place for place, row in enumerate(book.rows)}
    return sorted(found, key=lambda line: (lanes.index(line.lane), rows[line.row]))


def targets_of(book: Book, lines: Sequence[Line]) -> list[str]:
    """The targets of a table, in order."""
    return [target for target in book.targets if any(target in line.pools for line in lines)]


def line_row(book: Book, line: Line, target: str) -> dict[str, Any]:
    """Everything about a line on one of its targets: facts, counts, means, intervals, cost, broken rules."""
    pool = line.pools[target]
    summary = book.summary(pool)
    row: dict[str, Any] = {"target": target, "lane": line.lane, "row": line.name, "prompt_set": line.prompts}
    row |= facts_of(pool) | counts_of(pool, summary)
    for metric in METRICS:
        estimate = summary.scores[metric]
        row |= {metric: estimate.mean, f"{metric}_n": estimate.n}
        if metric in _INTERVALS:
            low, high = estimate.interval or (None, None)
            row |= {f"{metric}_95": estimate.interval, f"{metric}_low": low, f"{metric}_high": high}
    row["gain"] = difference(summary.scores["dsc"].mean, summary.all_empty["dsc"])
    row |= extras_of(pool)
    return row | costs_of(book, pool) | {"violations": "; ".join(summary.violations)}


def empty_row(book: Book, lines: Sequence[Line], target: str) -> dict[str, Any]:
    """The predictor that never marks anything, on the most slices that a line of this target has."""
    pools = [line.pools[target] for line in lines if target in line.pools]
    pool = max(pools, key=lambda pool: sum(len(case.slices) for case in pool.cases))
    summary = book.summary(pool)
    row: dict[str, Any] = {"target": target, "lane": NO_PROMPTS, "row": ALL_EMPTY, "method": "computed from the truth"}
    row |= {"split": _words(pool.told("split")), "evaluation_size": _words(pool.told("evaluation_size"))}
    return row | counts_of(pool, summary) | dict(summary.all_empty) | {"gain": 0.0, "violations": ""}


def facts_of(pool: Pool) -> dict[str, Any]:
    """What is known of a pool, as words; None for what does not concern it."""
    seeds = {key: _words(sorted(pool.told(key))) for key in ("prompt_seed", "training_seed")}
    hashes = pool.told("prompt_set")
    told = {
        "method": _words(pool.told("method")),
        "settings": _words(_settings(settings) for settings in pool.told("settings")),
        "prompt_source": _words(", ".join(sources) for sources in pool.told("prompt_sources")),
        "prompt_hash": content_key(hashes) if len(hashes) > 1 else next(iter(hashes), None),
        "points": _words(points_words(points) for points in pool.told("points")),
        "prompt_seeds": seeds["prompt_seed"],
        "training_seeds": seeds["training_seed"],
        **{key: _words(pool.told(key)) for key in ("noise_model", "empty_slice_rule", "empty_consensus_policy")},
        **{key: _words(pool.told(key)) for key in ("coarse", "backbone", "size", "evaluation_size", "split", "run")},
    }
    if pool.blind or pool.bare:
        concern = ("prompt_source", "prompt_hash", "points", "prompt_seeds", "noise_model", "empty_slice_rule")
        told |= dict.fromkeys((*concern, "empty_consensus_policy"))
    return told


def extras_of(pool: Pool) -> dict[str, float]:
    """What only some cells have, means over seeds: pixel accuracy of pictures, average precision of detectors."""
    known = {"pixel_accuracy": [c.facts["pixel_accuracy"] for c in pool.cells if "pixel_accuracy" in c.facts]}
    known |= {name: [one[name] for one in detections_of(pool) if one[name] is not None] for name in ("AP50", "AP")}
    return {name: float(np.mean(values)) for name, values in known.items() if values}


def counts_of(pool: Pool, summary: Summary) -> dict[str, Any]:
    """How much was scored."""
    return {
        "n_seeds": len(pool.seeds),
        "n_cases": summary.n_cases,
        "n_patients": summary.n_patients,
        "n_slices": summary.n_slices,
        "empty_share": summary.empty_share,
    }


def costs_of(book: Book, pool: Pool) -> dict[str, Any]:
    """Seconds of training (mean over seeds) and trained parameters of the row's run, its own stages only."""
    records = [r for r in book.runs if (r["target"], r["run"]) == (pool.target, pool.facts.get("run"))]
    records = [record for record in records if record["seed"] in pool.seeds]
    seconds = [sum(record["seconds"].values()) for record in records if record.get("seconds")]
    stages = [stage for record in records for stage in (record.get("stages") or {}).values()]
    trained = sum(stage.get("trained_parameters", 0) for stage in stages) / max(1, len(records))
    return {
        "training_seconds": round(float(np.mean(seconds)), 1) if seconds else None,
        "trained_parameters": round(trained) if trained else None,
    }


def mean_row(rows: Sequence[Mapping[str, Any]], targets: Sequence[str]) -> dict[str, Any] | None:
    """The unweighted mean of a line over all targets of the table; None if it is missing on one."""
    if [row["target"] for row in rows] != list(targets):
        return None
    said = {key: rows[0].get(key) for key in ("lane", "row", "prompt_set", *FACTS) if _same(rows, key)}
    values: dict[str, Any] = {"target": MEAN, **said}
    for key in (*METRICS, "gain", "training_seconds"):
        present = [row[key] for row in rows if row.get(key) is not None]
        values[key] = float(np.mean(present)) if len(present) == len(rows) else None
    for key in ("n_slices", "n_cases"):
        values[key] = sum(row[key] for row in rows)
    values["n_seeds"] = min(row["n_seeds"] for row in rows)
    return values


def points_words(points: Any) -> str:
    """The points policy of a row: `all`, `3 random per slice`, or whose choice they are."""
    if isinstance(points, Mapping):
        settings = _settings(points.get("settings") or {})
        return f"chosen by {points['run']}" + (f" ({settings})" if settings else "")
    kind, _, count = str(points).partition(":")
    return f"{count} random per slice" if kind == "random" else kind


def difference(a: float | None, b: float | None) -> float | None:
    """a - b where both are."""
    return None if a is None or b is None else a - b


def _settings(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} = {value}" for key, value in settings.items())


def _words(values: Iterable[Any]) -> str | None:
    return ", ".join(dict.fromkeys(str(value) for value in values if value not in (None, ""))) or None


def _same(rows: Sequence[Mapping[str, Any]], key: str) -> bool:
    return all(row.get(key) == rows[0].get(key) for row in rows)

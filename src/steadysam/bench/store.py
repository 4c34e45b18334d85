"""The store of a benchmark: one JSON file per scored cell and per trained run, and one CSV over all cells.

A cell is one row of a suite on one target with one seed and one prompt set. It holds the scores of every slice, so
that tables, intervals and tests can be made again, and everything that says where they came from.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from steadysam.errors import InputError
from steadysam.files import read_json, slug, write_json, write_text
from steadysam.metrics import CaseScores, SliceScore, VolumeScore

FORMAT = 1
_DIGITS = 5
_CURVES = ("learning_rate", "train_loss", "val_loss")
_TAUGHT = ("train_dfl", "train_cls", "train_ld_main", "train_ld_vlr", "train_kd")  # of a student, beside its teacher's


@dataclass(frozen=True)
class Cell:
    """One scored cell.

    Args:
        target, seed, row, prompts: which cell; `prompts` is the name of the prompt set.
        facts: provenance: method, settings, prompt sources, set hash, noise model, rules, weights, split, cost.
        key: hash of everything that decides the scores; a cell with another key is stale.
        patients: case -> patient.
        cases: the scores.
    """

    target: str
    seed: int
    row: str
    prompts: str
    facts: Mapping[str, Any]
    key: str
    patients: Mapping[str, str]
    cases: tuple[CaseScores, ...]


def cell_path(store: Path, target: str, seed: int, row: str, prompts: str) -> Path:
    """Where a cell lies."""
    return store / "cells" / f"{slug(target)}-s{seed}-{slug(prompts)}-{slug(row)}.json"


def run_path(store: Path, target: str, seed: int, run: str) -> Path:
    """Where the record of a trained run lies: what it cost, its curves, its weights' hash."""
    return store / "runs" / f"{slug(target)}-s{seed}-{slug(run)}.json"


def run_record(folder: Path, target: str, seed: int, run: str) -> dict[str, Any]:
    """What the store keeps of a run: settings, stages, cost and learning curves."""
    record = read_json(folder / "run.json")
    curves, seconds = {}, {}
    for name in record["stages"]:
        rows = _csv(folder / "logs" / f"{name}-metrics.csv")
        taught = bool(rows) and ("train_ld_main" in rows[0] or "train_kd" in rows[0])
        columns = (*_CURVES, *_TAUGHT) if taught else _CURVES
        curves[name] = [{key: round(float(row[key]), 5) for key in columns if row.get(key)} for row in rows]
        seconds[name] = round(sum(float(row["seconds"]) for row in _csv(folder / "logs" / f"{name}-timing.csv")), 1)
    kept = ("method", "weights_sha256", "parameters", "stages", "threads", "versions")
    facts = {key: record[key] for key in kept if key in record}
    return {"target": target, "seed": seed, "run": run, **facts, "seconds": seconds, "curves": curves}


def keep_run_record(store: Path, record: Mapping[str, Any]) -> None:
    """Write the record of a trained run. One of the same weights stays as it is: cells may name it."""
    path = run_path(store, record["target"], record["seed"], record["run"])
    if not path.exists() or read_json(path)["weights_sha256"] != record["weights_sha256"]:
        write_json(path, record)


def write_cell(store: Path, cell: Cell) -> Path:
    """Write a cell on one line per case; numbers are rounded to five digits."""
    head = {"format": FORMAT, "target": cell.target, "seed": cell.seed, "row": cell.row, "prompts": cell.prompts}
    head |= {"key": cell.key, "facts": dict(cell.facts), "patients": dict(cell.patients)}
    lines = [json.dumps(_columns(case), allow_nan=False, separators=(",", ":")) for case in cell.cases]
    text = json.dumps(head, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    path = cell_path(store, cell.target, cell.seed, cell.row, cell.prompts)
    return write_text(path, text[:-1] + ',"cases":[\n' + ",\n".join(lines) + "\n]}\n")


def read_cell(path: Path) -> Cell:
    """The inverse of `write_cell`.

    Raises:
        InputError: `BENCH_CELL` if the file is no cell of this format.
    """
    try:
        values = read_json(path)
        if values["format"] != FORMAT:
            raise KeyError("format")
        cases = tuple(_case(columns) for columns in values["cases"])
        names = ("target", "seed", "row", "prompts", "facts", "key", "patients")
        return Cell(**{name: values[name] for name in names}, cases=cases)
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError("BENCH_CELL", f"not a cell of a benchmark: {error!r}", file=path) from error


def cells(store: str | Path) -> Iterator[Cell]:
    """All cells of a store, by file name.

    Raises:
        InputError: `BENCH_EMPTY` if there is none, `BENCH_CELL`.
    """
    paths = sorted((Path(store) / "cells").glob("*.json"))
    if not paths:
        raise InputError(
            "BENCH_EMPTY",
            "no cells here",
            file=store,
            expected="a folder that `steadysam bench` wrote, with cells/",
            fix="for masks that `steadysam predict` wrote use `steadysam evaluate`",
        )
    for path in paths:
        yield read_cell(path)


def _columns(case: CaseScores) -> dict[str, Any]:
    """A case with one list per column instead of one record per slice; all-None columns are left out."""
    names = [field.name for field in fields(SliceScore)]
    columns = {name: [_short(getattr(row, name)) for row in case.slices] for name in names}
    kept = {name: values for name, values in columns.items() if any(v is not None for v in values)}
    volume = {name: _short(value) for name, value in asdict(case.volume).items()}
    rest = {"scored_shape": case.scored_shape, "spacing_mm": case.spacing_mm, "slice_axis": case.slice_axis}
    return {"name": case.name, **rest, "volume": volume, "slices": kept}


def _case(values: Mapping[str, Any]) -> CaseScores:
    columns: Mapping[str, list[Any]] = values["slices"]
    names = [field.name for field in fields(SliceScore)]
    count = len(columns["slice"])
    filled: dict[str, list[Any]] = {name: columns.get(name, [None] * count) for name in names}
    rows = tuple(SliceScore(**{name: filled[name][i] for name in names}) for i in range(count))
    spacing = values["spacing_mm"]
    return CaseScores(
        values["name"],
        rows,
        VolumeScore(**values["volume"]),
        tuple(values["scored_shape"]),
        None if spacing is None else tuple(spacing),
        values["slice_axis"],
    )


def _short(value: Any) -> Any:
    return round(value, _DIGITS) if isinstance(value, float) else value


def _csv(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text("utf-8")))) if path.is_file() else []

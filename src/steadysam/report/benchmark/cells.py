"""`cells.csv`: one line per cell with all its facts, counts and means; the store as one flat table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from steadysam.bench.store import Cell
from steadysam.metrics import METRICS
from steadysam.report.benchmark.lines import costs_of
from steadysam.report.benchmark.pooling import Book, Pool
from steadysam.summary import origins, samples


def cell_rows(book: Book) -> list[dict[str, Any]]:
    """One row per cell, in order; what is no number or word is JSON."""
    return [cell_row(cell) | costs_of(book, Pool((cell,))) for cell in book.cells]


def cell_row(cell: Cell) -> dict[str, Any]:
    """Facts, counts, the mean of every metric and its number of valid samples."""
    slices = [row for case in cell.cases for row in case.slices]
    of = origins(cell.cases, cell.patients)
    row: dict[str, Any] = {"target": cell.target, "seed": cell.seed, "row": cell.row, "prompts": cell.prompts}
    row |= {"lane": Pool((cell,)).lane}
    for key, value in cell.facts.items():
        if key == "evidence":
            row |= {f"evidence_{name}": _plain(count) for name, count in value.items()}
        elif key == "noise":
            row |= {"noise": value[0], "level": value[1]}
        else:
            row[key] = _plain(value)
    row |= {"n_cases": len(cell.cases), "n_patients": len(set(of.values())), "n_slices": len(slices)}
    row |= {"n_empty_slices": sum(score.true_empty for score in slices)}
    for name in METRICS:
        valid = [value for value, _ in samples(name, cell.cases, of) if value is not None]
        row |= {name: float(np.mean(valid)) if valid else None, f"{name}_n": len(valid)}
    return row | {"key": cell.key}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping) or isinstance(value, list) and any(not isinstance(v, str) for v in value):
        return json.dumps(value)
    return ", ".join(value) if isinstance(value, list) else value

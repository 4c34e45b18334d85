"""How well detectors find the boxes of the target: average precision, where a method says which boxes it found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from steadysam.detection.average_precision import PRECISIONS
from steadysam.report.benchmark.pooling import Book, Pool
from steadysam.report.html import Table

_CAPTION = (
    "Average precision as COCO defines it, over all test slices, against the boxes of the connected components of "
    "the true masks; AP is the mean over IoU 0.50 to 0.95. Means over seeds, with the lowest and highest seed. Boxes "
    "below the least score were not kept: compare rows with one least score."
)


def detection_rows(book: Book) -> list[dict[str, Any]]:
    """One row per pool whose method found boxes: means over seeds, lowest and highest seed, counts of all seeds."""
    rows = []
    for pool in book.pools.values():
        if pool.prompts not in book.main_sets or not (found := detections_of(pool)):
            continue
        row: dict[str, Any] = {"target": pool.target, "row": pool.row, "prompt_set": pool.prompts}
        row |= {"seeds": ", ".join(map(str, pool.seeds))}
        for name in PRECISIONS:
            values = [one[name] for one in found if one[name] is not None]
            row |= {name: float(np.mean(values)) if values else None}
            row |= {f"{name}_low": min(values, default=None), f"{name}_high": max(values, default=None)}
        row |= {"found": sum(one["found"] for one in found), "true": sum(one["true"] for one in found)}
        rows.append(row | {"least_score": found[0]["least_score"]})
    return rows


def detection_table(rows: Sequence[Mapping[str, Any]], target: str) -> Table:
    """The detectors of one target for reading."""
    columns = {"row": ""}
    for name in PRECISIONS:
        columns |= {name: name, f"{name} range": "of seeds"}
    columns |= {"found": "boxes", "true": "true boxes", "least_score": "least score", "seeds": "seeds"}
    lines = []
    for row in (row for row in rows if row["target"] == target):
        ends = {f"{name} range": _range(row[f"{name}_low"], row[f"{name}_high"]) for name in PRECISIONS}
        lines.append({**row, **ends})
    return Table(columns, lines, _CAPTION)


def detections_of(pool: Pool) -> list[Mapping[str, Any]]:
    """What the seeds of a pool say of their boxes; () for methods without."""
    found = [(cell.facts.get("evidence") or {}).get("detection") for cell in pool.cells]
    return [one for one in found if one]


def _range(low: float | None, high: float | None) -> str | None:
    return None if low is None or high is None else f"{low:.3f}–{high:.3f}"

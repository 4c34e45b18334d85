"""How well detectors find the boxes of the target: average precision, where a method says which boxes it found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steadysam.bench.evidence import kept_matches
from steadysam.bench.store import Cell
from steadysam.detection.average_precision import PRECISIONS, redrawn_precision
from steadysam.report.benchmark.pooling import Book, Pool
from steadysam.report.html import Table
from steadysam.report.table import INTERVALS, interval_of, with_interval
from steadysam.statistics import percentile_interval, times_drawn
from steadysam.summary import generator_of

_CAPTION = (
    "Average precision as COCO defines it, over all test slices, against the boxes of the connected components of "
    "the true masks; AP is the mean over IoU 0.50 to 0.95. Means over seeds, with the lowest and highest seed; in "
    f"brackets {INTERVALS}, where all cells kept the matches of their boxes. Boxes below the least score were not "
    "kept: compare rows with one least score."
)


def detection_rows(book: Book) -> list[dict[str, Any]]:
    """One row per pool whose method found boxes: means over seeds, lowest and highest seed, counts of all seeds.

    `interval_low` and `interval_high` are of AP, None where a cell does not know the matches.
    """
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
        generator = generator_of(book.seed, "AP", pool.target, pool.prompts, pool.row)
        replicates = drawn_precisions([pool], "AP", generator, book.draws)
        low, high = (None, None) if replicates is None else percentile_interval(replicates[0])
        row |= {"interval_low": low, "interval_high": high}
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
        lines.append({**row, **ends, "AP": with_interval(row["AP"], interval_of(row, "interval_"))})
    return Table(columns, lines, _CAPTION)


def detections_of(pool: Pool) -> list[Mapping[str, Any]]:
    """What the seeds of a pool say of their boxes; () for methods without."""
    return [one for cell in pool.cells if (one := _detection(cell))]


def drawn_precisions(
    pools: Sequence[Pool], measure: str, generator: np.random.Generator, draws: int
) -> list[NDArray[np.float64]] | None:
    """Average precision with patients and, where there are several, seeds drawn, the same for all pools.

    Args:
        pools: of one target, with the same seeds.
        measure: one of `PRECISIONS`.

    Returns:
        (draws,) means over seeds for each pool, or None with fewer than two patients or where a cell has no average
        precision, or is older than the matches.
    """
    patients = {name: n for n, name in enumerate(sorted({origin.patient for origin in pools[0].origins.values()}))}
    if len(patients) < 2:
        return None
    of_seeds, of_patients = times_drawn(generator, draws, len(pools[0].seeds), len(patients))
    found = []
    for pool in pools:
        by_seed = []
        for cell in pool.cells:
            one = _detection(cell) or {}
            hits = kept_matches(one)
            if hits is None or one[measure] is None:
                return None
            columns = [patients[cell.patients[name]] for name in hits]
            by_seed.append(redrawn_precision(list(hits.values()), of_patients[:, columns], measure))
        found.append((of_seeds * np.stack(by_seed, axis=1)).sum(axis=1) / of_seeds.sum(axis=1))
    return found


def _detection(cell: Cell) -> Mapping[str, Any] | None:
    return (cell.facts.get("evidence") or {}).get("detection")


def _range(low: float | None, high: float | None) -> str | None:
    return None if low is None or high is None else f"{low:.3f}–{high:.3f}"

"""What one column of a figure is ahead of the others at each x, paired: does a method gain most where labels are few?

The leader is the column of the report's reference row, or else the first. Differences are over the seeds that both
sides share at that x, and over the slices that both scored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from steadysam.report.benchmark.grids import Grid, Point
from steadysam.report.benchmark.paired import compare_pools
from steadysam.report.benchmark.pooling import Book
from steadysam.report.html import Table
from steadysam.report.table import INTERVALS, interval_of, with_interval


def lead_rows(book: Book, grid: Grid, reference: str | None) -> list[dict[str, Any]]:
    """A row per other column, x and target: DSC of the leader minus that of the column, over all slices."""
    points = [point for found in grid.points.values() for point in found]
    columns = list(dict.fromkeys(point.column for point in points))
    leader = next((point.column for point in points if point.pool.row == reference), columns[0])
    rows = []
    for other in columns:
        for x in sorted({point.x for point in points if point.column == other}):
            for target, found in grid.points.items():
                a, b = (_at(found, x, column) for column in (leader, other))
                made = compare_pools(book, a.pool, b.pool) if a and b and other != leader else None
                if made is None:
                    continue
                comparison, seeds = made
                test = comparison.metrics["dsc"]
                low, high = test.difference_interval or (None, None)
                row = {"figure": grid.name, "leader": leader, "column": other, "x": x, "target": target}
                row |= {"difference": test.over_samples.mean_difference, "low": low, "high": high}
                row |= {"p_patients": test.over_patients.p_wilcox, "patients": test.over_patients.n_pairs}
                rows.append(row | {"n": test.over_samples.n_pairs, "seeds": ", ".join(map(str, seeds))})
    return rows


def lead_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """For reading: a line per other column and x, the targets side by side, and their mean where all are there."""
    places: dict[str, set[Any]] = {}
    for row in rows:
        places.setdefault(row["target"], set()).add(row["x"])
    spread = [target for target, found in places.items() if len(found) > 1]
    lines: dict[tuple[str, Any], dict[str, Any]] = {}
    for row in rows:
        if row["target"] in spread:
            line = lines.setdefault((row["column"], row["x"]), {"pair": f"{row['leader']} − {row['column']}"})
            line |= {
                "x": str(row["x"]),
                f"on {row['target']}": with_interval(row["difference"], interval_of(row), " to "),
            }
            line.setdefault("differences", []).append(row["difference"])
            line.setdefault("seeds of targets", []).append(row["seeds"])
    for line in lines.values():
        differences, seeds = line.pop("differences"), line.pop("seeds of targets")
        line["mean"] = sum(differences) / len(differences) if len(differences) == len(spread) else None
        line["seeds"] = "; ".join(dict.fromkeys(seeds))
    name = rows[0]["figure"] if rows else ""
    columns = {"pair": "DSC, all slices", "x": name, **{f"on {target}": target for target in spread}}
    caption = f"Differences over what both scored; in brackets {INTERVALS}."
    return Table({**columns, "mean": "mean over targets", "seeds": "seeds"}, list(lines.values()), caption)


def _at(points: Sequence[Point], x: float | str, column: str) -> Point | None:
    return next((point for point in points if (point.x, point.column) == (x, column)), None)

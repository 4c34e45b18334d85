"""Figures of rows that differ in two things: `x` and `column` of the suite.

Numbers as x, such as annotation budgets, make lines with bands, a line per column and a panel per target. Words, such
as kinds of prompts, make a table per target, a line per x and a column per column. Methods are compared over the seeds
that all of them share: those of a table, or those at one x of the lines, whose title says which have how many.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from steadysam.report.benchmark.pooling import ORACLE, Book, Pool, common_seeds
from steadysam.report.html import Table
from steadysam.report.panels import Panel, Series, draw_panels
from steadysam.report.table import INTERVALS, interval_of, with_interval

_TABLED = ("dsc", "iou", "dsc_positive", "volume_dice", "hd95_px", "assd_px")


@dataclass(frozen=True)
class Point:
    """A row's place in a figure."""

    x: float | str
    column: str
    pool: Pool


@dataclass(frozen=True)
class Grid:
    """A figure: target -> its points, in the order of the suite."""

    name: str
    prompts: str
    points: Mapping[str, tuple[Point, ...]]

    @property
    def numeric(self) -> bool:
        """Whether x is a number everywhere."""
        return all(_numeric(points) for points in self.points.values())


def grids_of(book: Book) -> list[Grid]:
    """The figures of all main prompt sets that have columns."""
    found = []
    for prompts in book.main_sets:
        figures: dict[str, dict[str, list[Point]]] = {}
        for pool in book.pools.values():
            if pool.prompts != prompts and pool.lane != ORACLE:
                continue
            for name, x, column in pool.places:
                if column and x is not None:
                    figures.setdefault(name, {}).setdefault(pool.target, []).append(Point(x, column, pool))
        for name, points in figures.items():
            grid = Grid(name, prompts, {t: _alike(points[t]) for t in book.targets if t in points})
            found.append(grid)
    return found


def grid_rows(book: Book, grid: Grid) -> list[dict[str, Any]]:
    """The numbers of a figure."""
    rows = []
    for target, points in grid.points.items():
        for point in points:
            pool, summary = point.pool, book.summary(point.pool)
            row: dict[str, Any] = {"figure": grid.name, "target": target, "column": point.column, "x": point.x}
            row |= {"row": pool.row, "prompt_set": pool.prompts, "lane": pool.lane}
            row |= {"seeds": ", ".join(map(str, pool.seeds)), "n_slices": summary.n_slices}
            row |= {"n_patients": summary.n_patients}
            for metric in _TABLED:
                estimate = summary.scores[metric]
                low, high = estimate.interval or (None, None)
                row |= {metric: estimate.mean, f"{metric}_low": low, f"{metric}_high": high, f"{metric}_n": estimate.n}
            rows.append(row)
    return rows


def draw_grid(grid: Grid, rows: Sequence[Mapping[str, Any]]) -> bytes:
    """A panel per target that has several x, if one has: Dice over all slices by x, a line with its band per column."""
    spread = [target for target, points in grid.points.items() if len({point.x for point in points}) > 1]
    panels = []
    for target in spread or grid.points:
        here = [row for row in rows if row["target"] == target]
        series = {}
        for column in dict.fromkeys(row["column"] for row in here):
            line = sorted((row for row in here if row["column"] == column), key=lambda row: row["x"])
            series[column] = Series.of_rows([row["x"] for row in line], line, "dsc")
        panels.append(Panel(f"{target} ({_seeds_said(here)})", grid.name, "DSC, all slices", series))
    return draw_panels(panels)


def grid_table(grid: Grid, rows: Sequence[Mapping[str, Any]], target: str) -> Table:
    """One target: a line per x, and DSC with its interval and IoU per column."""
    here = [row for row in rows if row["target"] == target]
    names = list(dict.fromkeys(row["column"] for row in here))
    lines: dict[Any, dict[str, Any]] = {}
    for row in here:
        line = lines.setdefault(row["x"], {"x": str(row["x"])})
        line |= {
            f"{row['column']} dsc": with_interval(row["dsc"], interval_of(row, "dsc_")),
            f"{row['column']} iou": row["iou"],
        }
    columns = {"x": grid.name}
    for name in names:
        columns |= {f"{name} dsc": f"{name}: DSC (95 %)", f"{name} iou": "IoU"}
    seeds = "; ".join(dict.fromkeys(row["seeds"] for row in here))
    return Table(columns, list(lines.values()), f"{target}, seeds {seeds}; {INTERVALS}.")


def _alike(points: Sequence[Point]) -> tuple[Point, ...]:
    apart = _numeric(points)
    seeds = {p.x: common_seeds([other.pool for other in points if not apart or other.x == p.x]) for p in points}
    return tuple(Point(point.x, point.column, point.pool.only(seeds[point.x])) for point in points)


def _numeric(points: Sequence[Point]) -> bool:
    return all(isinstance(point.x, (int, float)) for point in points)


def _seeds_said(rows: Sequence[Mapping[str, Any]]) -> str:
    """`seeds 0, 1`, or of several lists of seeds which x each is of."""
    places: dict[str, list[Any]] = {}
    for row in sorted(rows, key=lambda row: row["x"]):
        places.setdefault(row["seeds"], []).append(row["x"])
    if len(places) == 1:
        return f"seeds {next(iter(places))}"
    return "seeds " + "; ".join(
        f"{seeds} at {', '.join(map(str, dict.fromkeys(found)))}" for seeds, found in places.items()
    )

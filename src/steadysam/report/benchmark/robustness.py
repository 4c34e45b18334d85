"""Noise curves: scores against the level of a noise, the area below, and the level that costs five Dice points.

Level 0 is a set of its own, or the set that the noise is added to. A curve uses the seeds that all its levels have, so
that its shape is never an effect of other seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steadysam.report.benchmark.pooling import ORACLE, Book, Pool, common_seeds
from steadysam.report.html import Table
from steadysam.report.panels import Panel, Series, draw_panels
from steadysam.statistics import times_drawn
from steadysam.summary import generator_of, samples

PANELS = {
    "dsc": "DSC, all slices",
    "dsc_positive": "DSC, positive slices",
    "hd95_px": "HD95, px",
    "fp_rate_empty": "FP rate on empty slices",
}
LOSS = 0.05  # five Dice points


@dataclass(frozen=True)
class Curve:
    """One row against one noise on one target: pools by level, ascending, with the same seeds where they share any."""

    noise: str
    target: str
    row: str
    levels: tuple[float, ...]
    pools: tuple[Pool, ...]


def curves_of(book: Book) -> list[Curve]:
    """All curves of at least two levels, by noise, target and row; oracles have none."""
    found: dict[tuple[str, str, str], dict[float, Pool]] = {}
    bases: dict[str, set[str]] = {}
    for pool in book.pools.values():
        name, level = pool.noise
        if not name or pool.lane == ORACLE:
            continue
        found.setdefault((name, pool.target, pool.row), {})[level] = pool
        if base := pool.facts.get("base"):
            bases.setdefault(name, set()).add(base)
    curves = []
    for (name, target, row), levels in found.items():
        for base in sorted(bases.get(name, ())):
            pool = book.pools.get((target, base, row))
            if pool is not None and 0.0 not in levels and pool.noise[0] in ("", name):
                levels[0.0] = pool
        order = sorted(levels)
        seeds = common_seeds([levels[level] for level in order])
        pools = tuple(levels[level].only(seeds) for level in order)
        if len(order) > 1:
            curves.append(Curve(name, target, row, tuple(order), pools))
    noises = list(dict.fromkeys(curve.noise for curve in curves))
    places = [{name: n for n, name in enumerate(names)} for names in (noises, book.targets, book.rows)]
    return sorted(curves, key=lambda c: (places[0][c.noise], places[1][c.target], places[2][c.row]))


def curve_rows(book: Book, curves: Sequence[Curve]) -> list[dict[str, Any]]:
    """One row per curve and level: the numbers of the pictures."""
    rows = []
    for curve in curves:
        for level, pool in zip(curve.levels, curve.pools, strict=True):
            summary = book.summary(pool)
            row: dict[str, Any] = {"noise": curve.noise, "target": curve.target, "row": curve.row, "level": level}
            row |= {"prompt_set": pool.prompts, "seeds": ", ".join(map(str, pool.seeds))}
            row |= {"n_slices": summary.n_slices, "n_patients": summary.n_patients}
            for metric in (*PANELS, "volume_dice"):
                estimate = summary.scores[metric]
                low, high = estimate.interval or (None, None)
                row |= {metric: estimate.mean, f"{metric}_low": low, f"{metric}_high": high, f"{metric}_n": estimate.n}
            rows.append(row)
    return rows


def robustness_rows(book: Book, curves: Sequence[Curve]) -> list[dict[str, Any]]:
    """One row per curve: area below (mean Dice over the range of levels) and the level that costs `LOSS`."""
    return [_robustness(book, curve) for curve in curves]


def robustness_table(rows: Sequence[Mapping[str, Any]], noise: str, target: str) -> Table:
    """The rows of one noise and target for reading."""
    columns = {"row": "", "levels": "levels", "start": "DSC at the lowest", "auc": "area", "auc_95": "95 %"}
    columns |= {"loss_level": "−5 points at", "loss_95": "95 %", "auc_positive": "area, positive"}
    columns |= {"auc_positive_95": "95 %", "loss_level_positive": "−5 points at", "seeds": "seeds"}
    chosen = [dict(row) for row in rows if (row["noise"], row["target"]) == (noise, target)]
    for row in chosen:
        for key, area_key in (("loss_level", "auc"), ("loss_level_positive", "auc_positive")):
            if row[area_key] is not None:
                row[key] = "never" if row[key] is None else f"{row[key]:.3g}"
        low, high = row["loss_low"], row["loss_high"]
        if row["loss_lost"] is not None:
            row["loss_95"] = " to ".join("never" if end is None else f"{end:.3g}" for end in (low, high))
    caption = (
        "Area: mean DSC over the range of levels (trapezoids). −5 points: the first level at which DSC is 0.05 below "
        "that of the lowest level, between levels on a straight line; never: not within the levels. Intervals draw "
        "patients and, where there are several, seeds, the same ones at all levels. Positive: over slices "
        "that hold the target."
    )
    return Table(columns, chosen, caption)


def draw_noise(rows: Sequence[Mapping[str, Any]], title: str) -> bytes:
    """The four panels of one noise and target, a line per row with its band."""
    panels = []
    for metric, text in PANELS.items():
        series = {}
        for name in dict.fromkeys(row["row"] for row in rows):
            here = [row for row in rows if row["row"] == name]
            series[name] = Series.of_rows([row["level"] for row in here], here, metric)
        panels.append(Panel("", rows[0]["noise"], text, series))
    return draw_panels(panels, columns=2, title=title)


def area(levels: Sequence[float], values: NDArray[Any]) -> NDArray[Any]:
    """Mean of piecewise linear curves over the range of levels; (..., L) values -> (...)."""
    x = np.asarray(levels, float)
    widths = np.diff(x)
    return ((values[..., 1:] + values[..., :-1]) / 2 * widths).sum(-1) / widths.sum()


def loss_level(levels: Sequence[float], values: Sequence[float], loss: float = LOSS) -> float | None:
    """The first level at which a piecewise linear curve lies `loss` below its start; None if it never does."""
    bar = values[0] - loss
    for (x0, y0), (x1, y1) in zip(
        zip(levels[:-1], values[:-1], strict=True), zip(levels[1:], values[1:], strict=True), strict=True
    ):
        if y1 <= bar + 1e-12:
            return float(x0 + (x1 - x0) * (y0 - bar) / (y0 - y1))
    return None


def _robustness(book: Book, curve: Curve) -> dict[str, Any]:
    row: dict[str, Any] = {"noise": curve.noise, "target": curve.target, "row": curve.row}
    row |= {"levels": f"{curve.levels[0]:g} to {curve.levels[-1]:g} ({len(curve.levels)})"}
    row |= {"seeds": ", ".join(map(str, curve.pools[0].seeds)), "n_patients": book.summary(curve.pools[0]).n_patients}
    for metric, end in (("dsc", ""), ("dsc_positive", "_positive")):
        means = [book.summary(pool).scores[metric].mean for pool in curve.pools]
        values = np.array([np.nan if mean is None else mean for mean in means], float)
        if np.isnan(values).any():
            row |= dict.fromkeys((f"start{end}", f"auc{end}", f"auc{end}_95", f"loss_level{end}"))
            row |= dict.fromkeys((f"loss{end}_low", f"loss{end}_high", f"loss{end}_lost"))
            continue
        row |= {f"start{end}": float(values[0]), f"auc{end}": float(area(curve.levels, values))}
        row |= {f"loss_level{end}": loss_level(curve.levels, values.tolist())}
        row |= _intervals(book, curve, metric, end)
    return row


def _intervals(book: Book, curve: Curve, metric: str, end: str) -> dict[str, Any]:
    """Percentile intervals of area and level over draws of patients; `lost`: share of draws that lose `LOSS`."""
    drawn = _drawn(book, curve, metric)
    if drawn is None:
        return dict.fromkeys((f"auc{end}_95", f"loss{end}_low", f"loss{end}_high", f"loss{end}_lost"))
    low, high = np.percentile(area(curve.levels, drawn), [2.5, 97.5])
    found = [loss_level(curve.levels, values) for values in drawn.tolist()]
    # nearest ranks: between a level and "never" there is nothing to interpolate
    levels = np.sort([np.inf if level is None else level for level in found])
    ends = [levels[round(share * (len(levels) - 1))] for share in (0.025, 0.975)]
    return {
        f"auc{end}_95": (float(low), float(high)),
        f"loss{end}_low": None if np.isinf(ends[0]) else float(ends[0]),
        f"loss{end}_high": None if np.isinf(ends[1]) else float(ends[1]),
        f"loss{end}_lost": float(np.isfinite(levels).mean()),
    }


def _drawn(book: Book, curve: Curve, metric: str) -> NDArray[np.float64] | None:
    """(draws, levels) means of a metric when patients and seeds are drawn, the same ones at all levels.

    None for one patient.
    """
    seeds = {seed: n for n, seed in enumerate(sorted({seed for pool in curve.pools for seed in pool.seeds}))}
    names = sorted({origin.patient for pool in curve.pools for origin in pool.origins.values()})
    patients = {name: n for n, name in enumerate(names)}
    if len(patients) < 2:
        return None
    sums, counts = np.zeros((2, len(curve.pools), len(seeds), len(patients)))
    for n, pool in enumerate(curve.pools):
        for value, origin in samples(metric, pool.cases, pool.origins):
            if value is not None:
                place = n, seeds[origin.training], patients[origin.patient]
                sums[place] += value
                counts[place] += 1
    generator = generator_of(book.seed, metric, "curve")
    drawn = times_drawn(generator, book.draws, len(seeds), len(patients))
    total, number = (np.einsum("lrc,dr,dc->dl", table, *drawn, optimize=True) for table in (sums, counts))
    whole = (number > 0).all(1)  # a draw in which no patient has a valid slice says nothing
    return total[whole] / number[whole] if whole.any() else None

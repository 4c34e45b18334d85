"""Figures of rows that differ in one thing: the rows of one `figure` name, by their `x`, a panel per target.

A suite says `figure = "threshold tau"` and `x = 0.3` in a row. Numbers make an axis, words make places in the order of
the suite. Rows of the frozen model that differ in their points make the figure `prompt source` by themselves, unless
the suite has one of that name. All points of a panel have the same seeds where they share any. Oracle rows stand in the
figure hollow and marked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from steadysam.report.benchmark.lines import MARK, points_words
from steadysam.report.benchmark.pooling import ORACLE, Book, Pool, common_seeds
from steadysam.report.panels import Panel, Series, draw_panels

PROMPT_SOURCE = "prompt source"
SHOWN = {"dsc": "DSC, all slices", "dsc_positive": "DSC, positive slices", "volume_dice": "volume Dice"}
_TABLED = ("dsc", "iou", "dsc_positive", "volume_dice", "fp_rate_empty", "hd95_px", "assd_px")


@dataclass(frozen=True)
class Ablation:
    """A figure: target -> (x, pool) of its points, in the order of the axis."""

    name: str
    prompts: str
    points: Mapping[str, tuple[tuple[float | str, Pool], ...]]

    @property
    def numeric(self) -> bool:
        """Whether x is a number everywhere."""
        return all(isinstance(x, (int, float)) for points in self.points.values() for x, _ in points)


def ablations_of(book: Book) -> list[Ablation]:
    """The figures of all main prompt sets that have at least two points."""
    named = {name for pool in book.pools.values() for name, _, _ in pool.places}
    found = []
    for prompts in book.main_sets:
        figures: dict[str, dict[str, list[tuple[float | str, Pool]]]] = {}
        for pool in book.pools.values():
            oracle = pool.lane == ORACLE
            if pool.prompts != prompts and not oracle or pool.prompts != prompts and pool.noise[0]:
                continue
            for name, x in _places(pool, PROMPT_SOURCE in named):
                figures.setdefault(name, {}).setdefault(pool.target, []).append((x, pool))
        for name, points in figures.items():
            # oracle points are an upper bound beside others, not a figure of their own
            kept = {t: here for t, here in points.items() if sum(pool.lane != ORACLE for _, pool in here) > 1}
            if kept:
                found.append(_ordered(Ablation(name, prompts, {t: tuple(kept[t]) for t in book.targets if t in kept})))
    return found


def ablation_rows(book: Book, ablation: Ablation) -> list[dict[str, Any]]:
    """The numbers of a figure."""
    rows = []
    for target, points in ablation.points.items():
        for x, pool in points:
            summary = book.summary(pool)
            row: dict[str, Any] = {"figure": ablation.name, "target": target, "x": x, "row": pool.row}
            row |= {"prompt_set": pool.prompts, "lane": pool.lane, "seeds": ", ".join(map(str, pool.seeds))}
            row |= {"n_slices": summary.n_slices, "n_patients": summary.n_patients}
            for metric in _TABLED:
                estimate = summary.scores[metric]
                low, high = estimate.interval or (None, None)
                row |= {metric: estimate.mean, f"{metric}_low": low, f"{metric}_high": high, f"{metric}_n": estimate.n}
            rows.append(row | {"all_empty_dsc": summary.all_empty["dsc"]})
    return rows


def draw_ablation(ablation: Ablation, rows: Sequence[Mapping[str, Any]]) -> bytes:
    """A panel per target: Dice over all slices, over positive ones and of volumes, with intervals."""
    panels = []
    for target in ablation.points:
        here = [row for row in rows if row["target"] == target]
        words = [] if ablation.numeric else list(dict.fromkeys(_word(row) for row in here))
        x = [row["x"] if ablation.numeric else _word(row) for row in here]
        series = {text: Series.of_rows(x, here, metric) for metric, text in SHOWN.items()}
        hollow = frozenset(_word(row) for row in here if row["lane"] == ORACLE)
        floor = ("all-empty predictor, all slices", here[0]["all_empty_dsc"])
        seeds = ", ".join(dict.fromkeys(row["seeds"] for row in here))
        title = f"{target} (seeds {seeds})"
        label = ablation.name if ablation.numeric else ""
        panels.append(Panel(title, label, "Dice", series, words, floor, hollow=hollow))
    return draw_panels(
        panels, columns=3 if ablation.numeric else 2, title=f"{ablation.name}, prompts: {ablation.prompts}"
    )


def _places(pool: Pool, named: bool) -> list[tuple[str, float | str]]:
    """Figures and x of a pool: what the suite says, else the frozen model's points policy.

    Places with a column are not here but in `grids`.
    """
    facts = pool.facts
    if pool.places:
        return [(name, x) for name, x, column in pool.places if x is not None and not column]
    if named or facts.get("method") != "zero_shot" or facts.get("settings"):
        return []
    return [(PROMPT_SOURCE, pool.prompts if pool.lane == ORACLE else points_words(facts.get("points", "all")))]


def _ordered(ablation: Ablation) -> Ablation:
    points = {}
    for target, here in ablation.points.items():
        seeds = common_seeds([pool for _, pool in here])
        same = [(x, pool.only(seeds)) for x, pool in here]
        last = sorted(same, key=lambda point: point[1].lane == ORACLE)
        points[target] = tuple(sorted(last, key=lambda point: point[0]) if ablation.numeric else last)
    return Ablation(ablation.name, ablation.prompts, points)


def _word(row: Mapping[str, Any]) -> str:
    text = str(row["x"]).removesuffix(" per slice")
    return text + MARK if row["lane"] == ORACLE else text

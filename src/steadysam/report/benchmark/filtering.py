"""What methods did with their prompts: true points kept, precision before and after, empty consensus, saliency."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steadysam.report.benchmark.pooling import NO_PROMPTS, Book, Pool
from steadysam.report.html import Table
from steadysam.report.panels import Panel, Series, draw_panels

FILTER_COLUMNS = {
    "target": "target",
    "row": "row",
    "seeds": "seeds",
    "true_kept": "true points kept",
    "raw_precision": "precision before",
    "given_precision": "precision after",
    "empty_on_positive": "left without points: positive slices",
    "empty_on_empty": "left without points: empty slices",
    "salient_inside": "target pixels > 0.5",
    "salient_outside": "other pixels > 0.5",
}
FILTER_CAPTION = (
    "True points lie on the target; counted on slices that hold it. Kept: accepted on their own slice. Precision: "
    "share of true points among the prompts and among the points that the decoder got. Left without points: slices "
    "for which the decoder got no positive point. The last columns: share of pixels of the target, and of all others, "
    "whose saliency is above 0.5."
)


def filter_rows(book: Book) -> list[dict[str, Any]]:
    """One row per pool of the main prompt sets whose method chose among its prompts; counts of all seeds together."""
    rows = []
    for pool in _main(book):
        count = counts(pool)
        chose = count.get("raw", 0) and (count["given"] != count["raw"] or count["true_kept"] != count["raw_true"])
        if not chose or pool.lane == NO_PROMPTS:  # such as a saliency map alone, which looks at no point
            continue
        row: dict[str, Any] = {"prompt_set": pool.prompts, "target": pool.target, "row": pool.row}
        row |= {"seeds": ", ".join(map(str, pool.seeds))}
        row |= {"true_kept": _ratio(count["true_kept"], count["raw_true"])}
        row |= {"raw_precision": _ratio(count["raw_true"], count["raw"])}
        row |= {"given_precision": _ratio(count["given_true"], count["given"])}
        for kind in ("positive", "empty"):
            row[f"empty_on_{kind}"] = f"{count[f'empty_on_{kind}']} of {count[f'slices_{kind}']}"
        saliency = saliency_of(pool)
        for name, histogram in zip(("inside", "outside"), saliency or (), strict=False):
            row[f"salient_{name}"] = _ratio(int(histogram[len(histogram) // 2 :].sum()), int(histogram.sum()))
        rows.append(row | {f"count_{key}": value for key, value in count.items()})
    return rows


def filter_table(rows: Sequence[Mapping[str, Any]], prompts: str) -> Table:
    """The rows of one prompt set for reading."""
    chosen = [row for row in rows if row["prompt_set"] == prompts]
    columns = {k: text for k, text in FILTER_COLUMNS.items() if any(row.get(k) is not None for row in chosen)}
    return Table(columns, chosen, FILTER_CAPTION)


def counts(pool: Pool) -> dict[str, int]:
    """The evidence of all seeds of a pool, added up."""
    total: dict[str, int] = {}
    for cell in pool.cells:
        for key, value in (cell.facts.get("evidence") or {}).items():
            if isinstance(value, int):
                total[key] = total.get(key, 0) + value
    return total


def saliency_of(pool: Pool) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    """Histograms of saliency inside and outside the target, of all seeds; None without saliency."""
    found = [(cell.facts.get("evidence") or {}).get("saliency") for cell in pool.cells]
    found = [saliency for saliency in found if saliency]
    if not found:
        return None
    inside, outside = (np.sum([saliency[side] for saliency in found], axis=0) for side in ("inside", "outside"))
    return inside, outside


def saliency_rows(book: Book) -> list[dict[str, Any]]:
    """One row per target, head and bin. Rows with the same saliency are one head: the first of them names it."""
    rows: list[dict[str, Any]] = []
    seen: set[tuple[str, int, str]] = set()
    # prompts do not change saliency: one prompt set of each row is enough
    first: dict[tuple[str, str], Pool] = {}
    for pool in _main(book):
        first.setdefault((pool.target, pool.row), pool)
    for pool in first.values():
        saliency = saliency_of(pool)
        if saliency is None:
            continue
        heads = {(pool.target, cell.seed, str(cell.facts["evidence"].get("saliency"))) for cell in pool.cells}
        if heads <= seen:
            continue
        seen |= heads
        inside, outside = saliency
        for n in range(len(inside)):
            row: dict[str, Any] = {"target": pool.target, "row": pool.row, "seeds": ", ".join(map(str, pool.seeds))}
            row |= {"low": n / len(inside), "high": (n + 1) / len(inside)}
            row |= {"inside": int(inside[n]), "outside": int(outside[n])}
            row |= {"inside_share": _ratio(int(inside[n]), int(inside.sum()))}
            rows.append(row | {"outside_share": _ratio(int(outside[n]), int(outside.sum()))})
    return rows


def draw_saliency(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """A panel per target and head: the share of pixels by saliency, on the target and elsewhere."""
    panels = []
    for target, row in dict.fromkeys((row["target"], row["row"]) for row in rows):
        here = [r for r in rows if (r["target"], r["row"]) == (target, row)]
        starts = [r["low"] for r in here]
        series = {
            "on the target": Series(starts, [r["inside_share"] for r in here]),
            "elsewhere": Series(starts, [r["outside_share"] for r in here]),
        }
        title = f"{target}: {row} (seeds {here[0]['seeds']})"
        panels.append(Panel(title, "saliency", "share of pixels", series, histogram=True))
    return draw_panels(panels)


def _main(book: Book) -> list[Pool]:
    return [pool for prompts in book.main_sets for pool in book.pools.values() if pool.prompts == prompts]


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None

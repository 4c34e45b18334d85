"""How much a teacher weighs in training: distillation terms against the losses that they stand beside.

ldfsam.md 3.4 wants L_main : DFL of order 1 at the start. Terms are means over an epoch, gains included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from steadysam.report.benchmark.learning import curve_rows
from steadysam.report.benchmark.pooling import Book
from steadysam.report.html import Table

RATIOS = {
    "main_to_dfl": ("train_ld_main", "train_dfl", "L_main : DFL"),
    "vlr_to_main": ("train_ld_vlr", "train_ld_main", "L_VLR : L_main"),
    "kd_to_cls": ("train_kd", "train_cls", "KD : BCE"),
}
EPOCHS = (1, 10)  # and the last
_CAPTION = (
    "Terms of the student's loss against each other, with their gains, at epochs 1, 10 and the last; means over seeds. "
    "Large at the start: the student listens to its teacher more than to the boxes."
)


def distillation_rows(book: Book) -> list[dict[str, Any]]:
    """One row per run, target, seed and epoch (`EPOCHS`, and the last) of every stage that learnt from a teacher."""
    curves: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in curve_rows(book):
        curves.setdefault((row["run"], row["target"], row["seed"], row["stage"]), []).append(row)
    rows = []
    for (run, target, seed, _), epochs in curves.items():
        head = {"run": run, "target": target, "seed": seed}
        for place, row in _shown(epochs):
            ratios = {name: row[a] / row[b] for name, (a, b, _) in RATIOS.items() if row.get(a) and row.get(b)}
            if ratios:
                rows.append(head | {"epoch": row["epoch"], "place": place} | dict.fromkeys(RATIOS) | ratios)
    return rows


def distillation_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """For reading: a line per run and target, means over seeds, `1 / 10 / last`."""
    columns = {"run": "run", "target": "target", **{name: text for name, (_, _, text) in RATIOS.items()}}
    lines = []
    for run, target in dict.fromkeys((row["run"], row["target"]) for row in rows):
        here = [row for row in rows if (row["run"], row["target"]) == (run, target)]
        seeds = ", ".join(str(seed) for seed in sorted({row["seed"] for row in here}))
        lines.append({"run": run, "target": target, **{name: _words(here, name) for name in RATIOS}, "seeds": seeds})
    return Table({**columns, "seeds": "seeds"}, lines, _CAPTION)


def _shown(epochs: Sequence[Mapping[str, Any]]) -> list[tuple[str, Mapping[str, Any]]]:
    early = [(str(row["epoch"]), row) for row in epochs if row["epoch"] in EPOCHS and row is not epochs[-1]]
    return [*early, ("last", epochs[-1])]


def _words(rows: Sequence[Mapping[str, Any]], name: str) -> str | None:
    places = (*map(str, EPOCHS), "last")
    values = [[row[name] for row in rows if row["place"] == place and row[name] is not None] for place in places]
    return " / ".join(f"{np.mean(found):.2f}" for found in values if found) or None

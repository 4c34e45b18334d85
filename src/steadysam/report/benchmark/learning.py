"""What training cost and how it went: a table of runs, the learning rates that were tried, and curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from steadysam.files import slug
from steadysam.report.benchmark.pooling import Book
from steadysam.report.html import Table
from steadysam.report.panels import Panel, Series, draw_panels

RUN_COLUMNS = {
    "run": "run",
    "method": "method",
    "stage": "stage",
    "target": "target",
    "seeds": "seeds",
    "epochs": "epochs",
    "best_epoch": "best epoch",
    "best_loss": "validation loss",
    "selected_by": "which is",
    "seconds": "seconds",
    "trained_parameters": "trained parameters",
    "parameters": "parameters",
    "threads": "threads",
}


def run_rows(book: Book) -> list[dict[str, Any]]:
    """One row per run, stage, target and seed."""
    rows = []
    for record in book.runs:
        head = {key: record.get(key) for key in ("run", "method", "target", "seed", "parameters", "threads")}
        seconds = record.get("seconds") or {}
        # a run by another program has times of its commands, but no stages
        for name, stage in (record.get("stages") or dict.fromkeys(seconds or [None], {})).items():
            row = head | {"stage": name, "seconds": seconds.get(name)}
            row |= {key: stage.get(key) for key in ("epochs", "best_epoch", "best_loss", "trained_parameters")}
            row["selected_by"] = stage.get("selected_by", "loss") if stage else None
            rows.append(row | {"weights_sha256": record.get("weights_sha256")})
    return rows


def run_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Runs for reading: means over seeds."""
    found: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault((row["run"], row["method"], row["stage"], row["target"]), []).append(row)
    lines = []
    for (run, method, stage, target), group in found.items():
        line: dict[str, Any] = {"run": run, "method": method, "stage": stage, "target": target}
        line["seeds"] = ", ".join(str(row["seed"]) for row in sorted(group, key=lambda row: row["seed"]))
        line["selected_by"] = {"loss": "all", "dice": "its Dice term"}.get(group[0]["selected_by"])
        for key in ("epochs", "best_epoch", "best_loss", "seconds", "trained_parameters", "parameters", "threads"):
            present = [row[key] for row in group if row[key] is not None]
            mean = float(np.mean(present)) if present else None
            line[key] = int(mean) if mean is not None and mean.is_integer() else mean
        lines.append(line)
    return Table(
        RUN_COLUMNS, lines, "Means over seeds. Stages that a run takes over from another stand with the other run."
    )


def sweep_rows(book: Book) -> list[dict[str, Any]]:
    """One row per run, target and learning rate that was tried."""
    return [
        {"run": sweep["run"], "target": sweep["target"], "seed": sweep["seed"], "rate": float(rate)}
        | {"validation_loss": loss, "chosen": float(rate) == book.rates.get(sweep["run"])}
        for sweep in book.sweeps
        for rate, loss in sweep["validation_loss"].items()
    ]


def sweep_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The rates for reading."""
    columns = {"run": "run", "target": "target", "rate": "learning rate", "validation_loss": "validation loss"}
    shown = [{**row, "rate": f"{row['rate']:g}"} for row in rows]
    caption = (
        "Chosen on validation cases, by the lowest mean rank over the targets, before any test case was looked at. "
        "The loss, or its Dice term, is that of the best epoch, as the run selects it; those of stages are added up."
    )
    return Table({**columns, "chosen": "chosen"}, shown, caption, digits=4)


def curve_rows(book: Book) -> list[dict[str, Any]]:
    """One row per run, target, seed, stage and epoch; targets in order."""
    places = {target: place for place, target in enumerate(book.targets)}
    return [
        {"run": record["run"], "target": record["target"], "seed": record["seed"], "stage": stage, "epoch": epoch} | row
        for record in sorted(book.runs, key=lambda record: places.get(record["target"], len(places)))
        for stage, rows in (record.get("curves") or {}).items()
        for epoch, row in enumerate(rows, 1)
    ]


def draw_learning(rows: Sequence[Mapping[str, Any]]) -> dict[str, bytes]:
    """Run -> picture: a panel per stage; a colour per target, a line per seed, training loss dotted."""
    targets = list(dict.fromkeys(row["target"] for row in rows))
    pictures = {}
    for run in dict.fromkeys(row["run"] for row in rows):
        panels = []
        here = [row for row in rows if row["run"] == run]
        for stage in dict.fromkeys(row["stage"] for row in here):
            series = {}
            for target, seed in dict.fromkeys((row["target"], row["seed"]) for row in here if row["stage"] == stage):
                points = [r for r in here if (r["stage"], r["target"], r["seed"]) == (stage, target, seed)]
                epochs = [float(r["epoch"]) for r in points]
                for key, text in (("train_loss", "training"), ("val_loss", "validation")):
                    look = {"style": targets.index(target), "dashed": key == "train_loss"}
                    values = [r.get(key) for r in points]
                    name = f"{target}, seed {seed}, {text}"
                    series[name] = Series(epochs, values, label=f"{target}, {text}", **look)
            panels.append(Panel(f"{run}: {stage}", "epoch", "loss", series))
        pictures[slug(run)] = draw_panels(panels)
    return pictures

"""Tables from the cells of zero_shot.py: RESULTS/zero_shot.md and RESULTS/tables/*.csv; pictures outside of git.

The terms of most data sets forbid passing images on: the strip of examples is written only with --data, and only to
the folder --work, which git ignores.
"""

from __future__ import annotations

import argparse
import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr
from zero_shot_scores import (
    METRICS,
    bar_rows,
    best_classical,
    interval_of,
    interval_of_set,
    interval_over_sets,
    load_cells,
    mean_of,
    mean_over_sets,
    paired_cells,
    samples_of,
    set_means,
    sets_of,
)

from steadysam.files import write_bytes, write_text
from steadysam.report.table import LEADING, columns_of, to_csv, to_markdown

HERE = Path(__file__).parent
Cells = Mapping[str, Mapping[str, Any]]
HEADINGS = {
    "one": "one click",
    "three": "three clicks",
    **{f"{name}_95": "95 %" for name in (*METRICS, "difference")},
    "n_samples": "slices x seeds",
}
KINDS = ("model", "scratch", "blind", "classical")


def facts_of(cells: Cells, name: str, suite: Mapping[str, Any]) -> dict[str, Any]:
    """What every row says about itself; slices and patients over the given targets."""
    rows = [(cell["data"]["dataset"], target, row) for target, cell in cells.items() for row in cell["rows"]]
    seeds = sorted({row["seed"] for _, _, row in rows})
    return {
        "method": name,
        "prompt_source": "simulated user, clicks and box from the truth",
        "seed": ", ".join(map(str, seeds)),
        "noise_model": "none",
        "empty_slice_rule": f"positive slices only, {suite['smallest_object']} px or more",
        "split": "test folders as given",
        "n_slices": len({(target, row["case"], row["slice"]) for _, target, row in rows}),
        "n_patients": len({(dataset, row["patient"]) for dataset, _, row in rows}),
        "n_samples": len(rows),
    }


def target_rows(cells: Mapping[str, Cells], suite: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row per target and method."""
    result = []
    for target in suite["targets"]:
        for method in ordered(cells):
            if target not in cells[method]:
                continue
            here = {target: cells[method][target]}
            row = {"target": target, **facts_of(here, method, suite)}
            for metric in METRICS:
                samples = samples_of(here, metric).get(target)
                row[metric] = mean_of(samples) if samples else None
                row[f"{metric}_95"] = interval_of(samples, suite["bootstrap_draws"]) if samples else None
            result.append(row)
    return result


def mean_rows(cells: Mapping[str, Cells], suite: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row per method: means over the sets, each set once."""
    sets, result = sets_of(suite), []
    for method in ordered(cells):
        row = facts_of(cells[method], method, suite)
        for metric in METRICS:
            samples = samples_of(cells[method], metric)
            row[metric] = mean_over_sets(samples, sets)
            row[f"{metric}_95"] = interval_over_sets(samples, sets, suite["bootstrap_draws"])
        result.append(row)
    return result


def margin_rows(ours: Cells, classical: Mapping[str, Cells], suite: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Per set the best classical method from one click, and the model on the same slices, seeds and clicks."""
    sets, draws, result = sets_of(suite), suite["bootstrap_draws"], []
    pairs = {name: paired_cells(ours, cells) for name, cells in classical.items()}
    for name, targets in sets.items():
        means = {m: set_means(pair[1], {name: targets}).get(name) for m, pair in pairs.items()}
        known = {m: mean for m, mean in means.items() if mean is not None}
        if not known:
            continue
        best = max(known, key=lambda m: known[m])
        first, _, difference = pairs[best]
        result.append(
            {
                "set": name,
                **facts_of(_common(classical[best], ours, targets), best, suite),
                "classical": known[best],
                "model": set_means(first, {name: targets})[name],
                "difference": set_means(difference, {name: targets})[name],
                "difference_95": interval_of_set(difference, targets, draws),
            }
        )
    if best := best_classical(ours, classical, sets):
        first, second, difference = pairs[best]
        result.append(
            {
                "set": f"mean over {len(sets)}",
                **facts_of(_common(classical[best], ours, list(ours)), best, suite),
                "classical": mean_over_sets(second, sets),
                "model": mean_over_sets(first, sets),
                "difference": mean_over_sets(difference, sets),
                "difference_95": interval_over_sets(difference, sets, draws),
            }
        )
    return result


def _common(cells: Cells, ours: Cells, targets: Sequence[str]) -> Cells:
    """The cells of these targets, with the rows that the model has too."""
    result = {}
    for target in targets:
        known = {(row["case"], row["slice"], row["seed"]) for row in ours[target]["rows"]}
        rows = [row for row in cells[target]["rows"] if (row["case"], row["slice"], row["seed"]) in known]
        result[target] = {**cells[target], "rows": rows}
    return result


def calibration_rows(ours: Cells, method: str, suite: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The IoU that the model predicts for its one-click mask against the IoU that the mask has."""
    result = []
    for target, cell in ours.items():
        rows = [row for row in cell["rows"] if row["predicted_iou"] is not None]
        said = np.array([row["predicted_iou"] for row in rows])
        dice = np.array([row["one"] for row in rows])
        true = dice / (2 - dice)
        rank = float(spearmanr(said, true).statistic) if min(np.ptp(said), np.ptp(true)) > 0 else None  # pyright: ignore
        result.append(
            {
                "target": target,
                **facts_of({target: cell}, method, suite),
                "predicted": float(said.mean()),
                "actual": float(true.mean()),
                "predicted - actual": float((said - true).mean()),
                "absolute error": float(np.abs(said - true).mean()),
                "rank correlation": rank,
                "best of three": float(np.mean([row["best_of_three"] for row in rows])),
            }
        )
    return result


def ordered(cells: Mapping[str, Cells]) -> list[str]:
    """Methods: models, then random weights, then no image, then classical ones."""
    return sorted(cells, key=lambda m: (KINDS.index(next(iter(cells[m].values()))["kind"]), m))


def of_kind(cells: Mapping[str, Cells], kind: str) -> dict[str, Cells]:
    """The methods of one kind."""
    return {m: c for m, c in cells.items() if next(iter(c.values()))["kind"] == kind}


def table(rows: Sequence[Mapping[str, Any]], first: str = "") -> str:
    """Markdown with the leading columns that say something, after `first`."""
    said = [key for key in columns_of(rows) if key != first and any(row.get(key) is not None for row in rows)]
    return to_markdown(rows, [*([first] if first else []), *said], headings=HEADINGS)


def main() -> None:
    """Write the tables, the page, and with --data the strip of examples."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=HERE / "results" / "zero_shot")
    parser.add_argument("--suite", type=Path, default=HERE / "runs" / "zero_shot.toml")
    parser.add_argument("--method", default="steadysam-tiny", help="the row that bars and margins are about")
    parser.add_argument("--data", type=Path, default=os.environ.get("STEADYSAM_TEST_DATA"), help="for the pictures")
    parser.add_argument("--model", default="steadysam-tiny", help="for the pictures: a name or a file")
    parser.add_argument("--work", type=Path, default=HERE.parent / "work" / "zero_shot", help="pictures; not for git")
    flags = parser.parse_args()
    suite = tomllib.loads(flags.suite.read_text("utf-8"))
    cells = load_cells(flags.results / "cells", suite)
    if flags.method not in cells:
        parser.error(f"no cell of {flags.method}; there are {', '.join(cells) or 'none'}")
    ours, sets = cells[flags.method], sets_of(suite)
    classical = of_kind(cells, "classical")
    bars = [{**facts_of(ours, flags.method, suite), **row} for row in bar_rows(ours, classical, sets, suite["bars"])]
    parts = {
        "bars": ("", "What was to be reached", bars),
        "means": ("", f"Mean over {len(sets)} sets, each once (ACDC: mean of LV and RV)", mean_rows(cells, suite)),
        "targets": ("target", "By target", target_rows(cells, suite)),
        "margins": ("set", "Best classical method from the same click", margin_rows(ours, classical, suite)),
        "calibration": (
            "target",
            "Predicted and actual IoU of the one-click mask",
            calibration_rows(ours, flags.method, suite),
        ),
    }
    page = [(HERE / "runs" / "zero_shot_intro.md").read_text("utf-8")]
    for name, (first, title, rows) in parts.items():
        page += [f"\n## {title}\n", table(rows, first) if rows else "Not measured.\n"]
        columns = [first, *LEADING] if first else list(LEADING)
        keys = [*columns, *(k for row in rows for k in row if k not in columns)]
        write_text(flags.results / "tables" / f"{name}.csv", to_csv(rows, list(dict.fromkeys(keys))))
    write_text(flags.results / "zero_shot.md", "\n".join(page))
    print("\n".join(page))
    if flags.data is not None:
        from zero_shot_pictures import examples

        picture = write_bytes(flags.work / "examples.png", examples(ours, suite, Path(flags.data), flags.model))
        print(f"{picture}: shows test images: keep it out of the repository, and choose nothing by it")


if __name__ == "__main__":
    main()

"""Zero-shot Dice against the number of drawn images that a pretraining run has seen; resumable by cell.

The snapshots of the run and its final weights, on the smaller subset of benchmarks/runs/zero_shot.toml. The score on
held-out drawn images stands beside it: what it gains and the real sets do not is the gap between the two worlds.
"""

from __future__ import annotations

import argparse
import csv
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from zero_shot import classical_method, model_method, read_cell, run_cell, slug
from zero_shot_scores import METRICS, interval_over_sets, mean_over_sets, samples_of, set_means, sets_of
from zero_shot_slices import CaseSlices, choice_of, read_target

from steadysam.backbones import build_backbone
from steadysam.files import write_bytes, write_text
from steadysam.report.figures import curves
from steadysam.report.table import LEADING, to_csv, to_markdown

HERE = Path(__file__).parent


def points_of(run: Path) -> dict[int, Path]:
    """Number of images seen -> weights file, ascending; the final weights are counted by the last row of the log."""
    found = {int(path.stem): path for path in (run / "snapshots").glob("*.safetensors")}
    log = read_log(run)
    if (run / "model.safetensors").exists() and log:
        found[int(log[-1]["train_images"])] = run / "model.safetensors"
    return dict(sorted(found.items()))


def read_log(run: Path) -> list[dict[str, float]]:
    """Rows of the run's metrics; [] if there are none yet."""
    path = run / "logs" / "pretrain-metrics.csv"
    if not path.exists():
        return []
    with open(path, encoding="utf-8", newline="") as handle:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(handle)]


def subset_cells(
    folder: Path, name: str, backbone: Any, suite: Mapping[str, Any], read: Mapping[str, list[CaseSlices]]
) -> dict[str, dict[str, Any]]:
    """Target -> cell of one network on the subset; finished cells are kept. Without a network, the blind row."""
    choice, seeds = choice_of(suite, subset=True), suite["subset"]["seeds"]
    if backbone is None:
        method = classical_method(name, {**suite["classical"][name], "seeds": seeds}, choice)
    else:
        method = model_method(name, "model", backbone, "spd", choice, seeds)
    cells = {}
    for target, cases in read.items():
        print(run_cell(folder, target, suite["targets"][target], method, lambda c=cases: c), flush=True)
        cells[target] = read_cell(folder / f"{slug(name)}-{target}.json")
    return cells


def subset_slices(data: Path, suite: Mapping[str, Any], targets: list[str] | None) -> dict[str, list[CaseSlices]]:
    """Target -> the cases of the subset, read once for all networks."""
    choice = choice_of(suite, subset=True)
    return {t: list(read_target(data, t, suite["targets"][t], choice)) for t in targets or suite["targets"]}


def facts(cells: Mapping[str, Mapping[str, Any]], method: str, suite: Mapping[str, Any]) -> dict[str, Any]:
    """What a row says about itself."""
    subset = suite["subset"]
    rows = [(target, row) for target, cell in cells.items() for row in cell["rows"]]
    patients = {(suite["targets"][target]["dataset"], row["patient"]) for target, row in rows}
    return {
        "method": method,
        "prompt_source": "simulated user, clicks and box from the truth",
        "seed": ", ".join(map(str, subset["seeds"])),
        "noise_model": "none",
        "empty_slice_rule": f"positive slices only, {suite['smallest_object']} px or more",
        "split": f"test folders as given; at most {subset['cases']} cases, {subset['slices_per_case']} slices each",
        "n_slices": len({(target, row["case"], row["slice"]) for target, row in rows}),
        "n_patients": len(patients),
    }


def curve_row(
    images: int | None, method: str, cells: Mapping[str, Mapping[str, Any]], suite: Mapping[str, Any]
) -> dict[str, Any]:
    """Means over the sets of one network, and its one-click mean on each set; `images` is None for the blind row."""
    sets = sets_of(suite)
    sets = {name: targets for name, targets in sets.items() if all(t in cells for t in targets)}
    row = {"images": images, **facts(cells, method, suite)}
    row["sets"] = len(sets)
    for metric in METRICS:
        samples = samples_of(cells, metric)
        row[metric] = mean_over_sets(samples, sets)
        row[f"{metric}_95"] = interval_over_sets(samples, sets, suite["bootstrap_draws"])
    return row | {f"one click, {name}": mean for name, mean in set_means(samples_of(cells, "one"), sets).items()}


def picture(rows: list[dict[str, Any]], log: list[dict[str, float]], count: int) -> bytes:
    """The curve as PNG; random weights and the blind row are level lines."""
    seen = [row for row in rows if row["images"]]
    series = {
        f"{name}, {count} real sets": [(row["images"], row[metric]) for row in seen]
        for name, metric in (("one click", "one"), ("three clicks", "three"), ("box", "box"))
    }
    if log:
        series["one click, held-out drawn images"] = [(row["train_images"], row["val_one"]) for row in log]
    ends = (min(row["images"] for row in seen), max(row["images"] for row in seen))
    for row in rows:
        if not row["images"]:
            series[f"one click, {row['method']}"] = [(x, row["one"]) for x in ends]
    return curves(series, xlabel="drawn images seen", ylabel="mean Dice", log_x=True)


def main() -> None:
    """Score the snapshots, write the table and the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=os.environ.get("STEADYSAM_TEST_DATA"), required=False)
    parser.add_argument("--run", type=Path, required=True, help="folder of a pretraining run")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "zero_shot_curve")
    parser.add_argument("--suite", type=Path, default=HERE / "runs" / "zero_shot.toml")
    parser.add_argument("--targets", nargs="*", help="for a quick look; not the curve")
    parser.add_argument("--threads", type=int, default=1)
    flags = parser.parse_args()
    if flags.data is None:
        parser.error("--data FOLDER: the folder that holds the data sets of the suite")
    torch.set_num_threads(flags.threads)
    suite = tomllib.loads(flags.suite.read_text("utf-8"))
    files, log = points_of(flags.run), read_log(flags.run)
    if not files:
        parser.error(f"{flags.run} holds no snapshots and no model.safetensors")
    read = subset_slices(Path(flags.data), suite, flags.targets)
    scratch, folder = suite["scratch"], flags.results / "cells"
    random = build_backbone(scratch["name"], suite["size"], seed=scratch["weights_seed"])
    rows = [curve_row(None, "blind", subset_cells(folder, "blind", None, suite, read), suite)]
    cells = subset_cells(folder, "images-000000000", random, suite, read)
    rows.append(curve_row(0, "random weights", cells, suite))
    for images, file in files.items():
        backbone = build_backbone(file, suite["size"])
        cells = subset_cells(folder, f"images-{images:09d}", backbone, suite, read)
        row = curve_row(images, scratch["name"].removesuffix("-scratch"), cells, suite)
        held_out = next((r for r in log if int(r["train_images"]) == images), {})
        row |= {f"held-out {metric}": held_out.get(f"val_{metric}") for metric in METRICS}
        rows.append(row)
    columns = ["images", *LEADING, *(k for k in dict.fromkeys(k for r in rows for k in r) if k not in LEADING)]
    columns = list(dict.fromkeys(columns))
    said = [key for key in columns if any(row.get(key) is not None for row in rows)]
    write_text(flags.results / "zero_shot_curve.csv", to_csv(rows, columns))
    headings = {"one": "one click", "three": "three clicks", **{f"{m}_95": "95 %" for m in METRICS}}
    text = to_markdown(rows, said, headings=headings)
    write_text(flags.results / "zero_shot_curve.md", f"{__doc__}\n{text}")
    write_bytes(flags.results / "zero_shot_curve.png", picture(rows, log, rows[0]["sets"]))
    print(text)


if __name__ == "__main__":
    main()

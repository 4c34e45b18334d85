"""Train and score the rows of SPD's Table 2 on real data, one cell (target, seed) at a time; resumable.

Every cell has one frozen prompt set, made once and used by all rows. Finished rows are files in
`RESULTS/cells`; running again computes only what is missing.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from steadysam.config import make_config
from steadysam.data.cases import Case, read_dataset, resolve_label
from steadysam.data.volumes import read_label_map
from steadysam.embeddings import EmbeddingCache
from steadysam.evaluate import evaluate_case
from steadysam.files import read_json, write_json, write_text
from steadysam.geometry import slice_points
from steadysam.prompts.scribbles import scribble_points
from steadysam.prompts.sets import write_set
from steadysam.prompts.simulate import SIMULATORS, generator_for
from steadysam.runs import load_run
from steadysam.segmenting import Result, segment
from steadysam.training import computing, train
from steadysam.training_data import read_case, split_of
from steadysam.types import Mask, Prompts, Volume

HERE = Path(__file__).parent

# row -> (run it uses, settings of the method at test time)
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "stage-1 head alone": ("spd", {"output": "saliency"}),
    "SAM-Tuning": ("sam_tuning", {}),
    "stage 2 on raw prompts": ("raw", {}),
    "Local": ("local", {}),
    "CPD": ("cpd", {}),
    "CPD+PSC (SPD)": ("spd", {}),
    "SPD, empty consensus -> empty mask": ("spd", {"empty": "empty_mask"}),
    "SPD, raw prompts at test": ("spd", {"prompts": "raw"}),
}
# run -> method settings that differ from SPD's; all but `spd` itself start from its stage 1
STAGE2 = {
    "raw": {"prompts": "raw", "psc": "none"},
    "local": {"n": 0, "psc": "none"},
    "cpd": {"psc": "none"},
}

COUNTS: tuple[str, ...] = ("in_mask", "in_mask_kept", "raw", "raw_in_mask", "consensus", "consensus_in_mask")


@dataclass(frozen=True)
class Cell:
    """One target and one seed, and where everything lies."""

    target: str
    seed: int
    suite: dict[str, Any]
    data: Path
    work: Path
    results: Path

    @property
    def name(self) -> str:
        return f"{self.target}-s{self.seed}"

    @property
    def folder(self) -> Path:
        return self.work / self.name


def base_values(cell: Cell) -> dict[str, Any]:
    """Configuration values that all runs of a cell share."""
    target, common = cell.suite["targets"][cell.target], cell.suite["run"]
    return {
        "data": {"dataset": str(cell.data / target["dataset"]), "label": target["label"]},
        "prompts": {"folder": str(cell.folder / "prompts")},
        "preprocess": common["preprocess"],
        "backbone": {**common["backbone"], "seed": cell.seed},
        "compute": {**common["compute"], "seed": cell.seed, "cache": str(cell.work / "cache")},
    }


def run_cell(cell: Cell) -> str:
    """Everything of one cell; returns a line for the log."""
    started = time.monotonic()
    values = base_values(cell)
    config = make_config({**values, "method": {"name": "spd"}})
    dataset = read_dataset(values["data"]["dataset"])
    labels = resolve_label(dataset, values["data"]["label"])
    split = split_of(config, dataset)
    cases = {case.name: (case, *read_case(case, labels, None)) for part in split.parts.values() for case in part}
    prompts = frozen_prompts(cell, cases)
    augment = cell.suite["run"]["method"]["augment"]
    spd = {"name": "spd", "augment": augment, **cell.suite["spd"]}
    make_run(cell, "spd", {**values, "method": spd})
    for name, settings in STAGE2.items():
        start = {"run": str(cell.folder / "spd"), "skip": ["saliency"]}
        make_run(cell, name, {**values, "method": {**spd, **settings}, "start": start})
    tuning = {"name": "sam_tuning", "augment": augment, **cell.suite["sam_tuning"]}
    make_run(cell, "sam_tuning", {**values, "method": tuning})
    test = [cases[case.name] for case in split.test]
    with computing(config.compute):
        for row in ROWS:
            score_row(cell, row, test, prompts, "noisy")
        if "scribbles" in cell.suite["targets"][cell.target]:
            scribbles = scribble_prompts(cell, test)
            for row in ROWS:
                score_row(cell, row, test, scribbles, "scribbles")
        probe(cell, test, prompts)
    return f"{cell.name}: {time.monotonic() - started:.0f} s"


def frozen_prompts(cell: Cell, cases: dict[str, tuple[Case, Volume, Mask]]) -> dict[str, Prompts]:
    """The cell's prompts for all cases of all parts, written once as a prompt set."""
    options = dict(cell.suite["prompts"])
    simulator = options.pop("simulator")
    prompts = {}
    for name, (_, volume, mask) in cases.items():
        generator = generator_for(cell.seed, simulator, cell.target, name)
        prompts[name] = SIMULATORS[simulator](mask.array, volume.grid, generator, **options)
    meta = {"simulator": simulator, "seed": cell.seed, "target": cell.target, "options": options}
    written = write_set(cell.folder / "prompts", prompts, meta)
    write_json(cell.results / "prompt_sets" / f"{cell.name}.json", {"hash": written.hash, "meta": meta})
    return prompts


def make_run(cell: Cell, name: str, values: dict[str, Any]) -> None:
    """Train a run of the cell, or go on with it, or leave it if it is finished."""
    train(make_config(values), cell.folder / name, resume=True)


def scribble_prompts(cell: Cell, test: list[tuple[Case, Volume, Mask]]) -> dict[str, Prompts]:
    """Annotators' strokes as points: at most three per slice, drawn with the cell's seed."""
    target = cell.suite["targets"][cell.target]
    prompts = {}
    for case, volume, _ in test:
        path = cell.data / target["dataset"] / "prompts" / "scribblesTs" / f"{case.name}.nii.gz"
        strokes, grid = read_label_map(path, slice_axis=volume.grid.slice_axis)
        prompts[case.name] = scribble_points(
            strokes,
            grid,
            value=target["scribbles"],
            per_slice=3,
            generator=generator_for(cell.seed, "scribbles", case.name),
            image_grid=volume.grid,
            ignore=(0, 4),
        )
    return prompts


def score_row(
    cell: Cell, row: str, test: list[tuple[Case, Volume, Mask]], prompts: dict[str, Prompts], kind: str
) -> None:
    """Segment and score the test cases of one row of the table."""
    score_run(cell, row, ROWS[row], test, prompts, kind)


def score_run(
    cell: Cell,
    row: str,
    source: tuple[str, dict[str, Any]],
    test: list[tuple[Case, Volume, Mask]],
    prompts: dict[str, Prompts],
    kind: str,
) -> None:
    """Segment and score the test cases with one run, unless the row's file is there already.

    Args:
        source: the run's folder below the cell's, and settings of its method at test time.
    """
    slug = "".join(c if c.isalnum() else "-" for c in row)
    path = cell.results / "cells" / f"{cell.name}-{kind}-{slug}.json"
    if path.exists():
        return
    name, settings = source
    run = load_run(cell.folder / name, "cpu", **settings)
    cache = EmbeddingCache(cell.work / "cache")
    scores, patients, notes = [], {}, []
    for case, volume, mask in test:
        result = segment(run, volume, prompts[case.name], cache=cache)
        scores.append(
            evaluate_case(result.mask.array, mask.array, volume.grid, cell.suite["evaluation_size"], name=case.name)
        )
        patients[case.name] = case.patient
        notes.append({"case": case.name, **empty_counts(result, mask)})
    record = read_json(cell.folder / name / "run.json")
    write_compact(
        path,
        {
            "target": cell.target,
            "seed": cell.seed,
            "row": row,
            "prompts": {
                "kind": kind,
                "set": {name: prompts[name].key() for name in sorted(patients)},
                "training_set": read_json(cell.results / "prompt_sets" / f"{cell.name}.json")["hash"],
            },
            "weights_sha256": run.record["weights_sha256"],
            "stages": record["stages"],
            "patients": patients,
            "notes": notes,
            "cases": [asdict(score) for score in scores],
        },
    )


def write_compact(path: Path, value: Any) -> None:
    """JSON on one line: a cell holds a number per slice and metric."""
    write_text(path, json.dumps(value, allow_nan=False, separators=(",", ":")) + "\n")


def empty_counts(result: Result, mask: Mask) -> dict[str, int]:
    """Slices with an empty consensus, by whether the truth is empty there."""
    positive = [bool(mask.slice_image(t).any()) for t in range(mask.grid.depth)]
    empty = result.notes.get("empty_consensus_slices", [])
    return {
        "slices_positive": sum(positive),
        "slices_empty": len(positive) - sum(positive),
        "empty_consensus_on_positive": sum(positive[t] for t in empty),
        "empty_consensus_on_empty": sum(not positive[t] for t in empty),
    }


def probe(cell: Cell, test: list[tuple[Case, Volume, Mask]], prompts: dict[str, Prompts]) -> None:
    """Does saliency keep true prompts, is the filter precise, is tau harmless (spd.md 8, checks 14 and 15)?"""
    path = cell.results / "probes" / f"{cell.name}.json"
    if path.exists():
        return
    runs = {tau: load_run(cell.folder / "spd", "cpu", tau=tau) for tau in (0.3, 0.5, 0.8)}
    cache = EmbeddingCache(cell.work / "cache")
    total = dict.fromkeys(COUNTS, 0)
    shared, union = 0, 0
    for case, volume, mask in test:
        found = {tau: segment(run, volume, prompts[case.name], cache=cache) for tau, run in runs.items()}
        counts = point_counts(found[0.5], prompts[case.name], mask)
        total = {key: total[key] + counts[key] for key in total}
        sets = {tau: chosen_points(result) for tau, result in found.items()}
        shared += len(sets[0.3] & sets[0.8])
        union += len(sets[0.3] | sets[0.8])
    write_json(path, {"target": cell.target, "seed": cell.seed, **total, "tau_shared": shared, "tau_union": union})


def chosen_points(result: Result) -> set[tuple[int, int, int]]:
    """(slice, x, y) of all points that the decoder was given, x and y in whole slice pixels."""
    return {(t, round(float(x)), round(float(y))) for t, here in enumerate(result.points) for x, y in here.xy}


def point_counts(result: Result, prompts: Prompts, mask: Mask) -> dict[str, int]:
    """Raw and consensus points on slices with the target, and how many of them lie in it."""
    counts = dict.fromkeys(COUNTS, 0)
    kept = {(d.prompt_id, d.slice) for d in result.decisions if d.verdict == "accepted"}
    for t, (raw, chosen) in enumerate(zip(slice_points(prompts, mask.grid), result.points, strict=True)):
        truth = mask.slice_image(t)
        if not truth.any():
            continue
        inside = [bool(truth[round(float(y)), round(float(x))]) for x, y in raw.xy]
        counts["raw"] += len(raw)
        counts["raw_in_mask"] += sum(inside)
        counts["in_mask_kept"] += sum((name, t) in kept for name, ok in zip(raw.ids, inside, strict=True) if ok)
        counts["consensus"] += len(chosen)
        height, width = truth.shape
        for x, y in chosen.xy:
            row, column = min(max(round(float(y)), 0), height - 1), min(max(round(float(x)), 0), width - 1)
            counts["consensus_in_mask"] += bool(truth[row, column])
    counts["in_mask"] = counts["raw_in_mask"]
    return counts


def main() -> None:
    """Parse flags and run the cells, `--workers` at a time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=os.environ.get("STEADYSAM_TEST_DATA"), required=False)
    parser.add_argument("--work", type=Path, default=HERE.parent / "work" / "table2", help="runs and prompt sets")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "table2")
    parser.add_argument("--suite", type=Path, default=HERE / "runs" / "table2.toml")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--targets", nargs="*")
    parser.add_argument("--seeds", nargs="*", type=int)
    flags = parser.parse_args()
    if flags.data is None:
        parser.error("--data FOLDER: the folder that holds the data sets of the suite")
    suite = tomllib.loads(flags.suite.read_text("utf-8"))
    cells = [
        Cell(target, seed, suite, flags.data, flags.work, flags.results)
        for seed in flags.seeds or suite["seeds"]
        for target in flags.targets or suite["targets"]
    ]
    with multiprocessing.get_context("spawn").Pool(flags.workers) as pool:
        for line in pool.imap_unordered(run_cell, cells):
            print(line, flush=True)


if __name__ == "__main__":
    main()

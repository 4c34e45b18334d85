"""SPD from pretrained weights against from random ones, with 5, 10 and all training patients; resumable by cell.

All runs of a target and seed share one frozen prompt set.
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
from steadysam.embeddings import EmbeddingCache
from steadysam.evaluate import evaluate_case
from steadysam.files import read_json, write_json, write_text
from steadysam.prompts.sets import write_set
from steadysam.prompts.simulate import SIMULATORS, generator_for
from steadysam.runs import load_run
from steadysam.segmenting import Result, segment
from steadysam.training import computing, train
from steadysam.training_data import read_case, split_of
from steadysam.types import Mask, Prompts, Volume

HERE = Path(__file__).parent
# row -> settings of the method at test time
ROWS: dict[str, dict[str, Any]] = {"SPD": {}, "stage-1 head alone": {"output": "saliency"}}


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


def run_values(cell: Cell, start: str, patients: int) -> dict[str, Any]:
    """The configuration of one run of a cell."""
    target, common, chosen = (
        cell.suite["targets"][cell.target],
        cell.suite["run"],
        cell.suite["starts"][start],
    )
    spd = {"name": "spd", "adapt": chosen["adapt"], "augment": common["method"]["augment"], **cell.suite["spd"]}
    return {
        "data": {
            "dataset": str(cell.data / target["dataset"]),
            "label": target["label"],
            "train_patients": patients,
        },
        "prompts": {"folder": str(cell.folder / "prompts")},
        "preprocess": common["preprocess"],
        "backbone": {"name": chosen["name"], "seed": cell.seed},
        "method": spd,
        "compute": {**common["compute"], "seed": cell.seed, "cache": str(cell.work / "cache")},
    }


def run_cell(cell: Cell) -> str:
    """All starts and numbers of patients of one target and seed; returns a line for the log."""
    started = time.monotonic()
    config = make_config(run_values(cell, next(iter(cell.suite["starts"])), 0))
    dataset = read_dataset(config.data.dataset)
    labels = resolve_label(dataset, config.data.label)
    split = split_of(config, dataset)
    cases = {case.name: (case, *read_case(case, labels, None)) for part in split.parts.values() for case in part}
    prompts = frozen_prompts(cell, cases)
    test = [cases[case.name] for case in split.test]
    for patients in cell.suite["patients"]:
        for start in cell.suite["starts"]:
            name = f"{start}-{patients or 'all'}"
            make_run(cell, name, run_values(cell, start, patients))
            with computing(config.compute):
                for row, settings in ROWS.items():
                    score_run(cell, f"{row}, {start}, {patients or 'all'}", (name, settings), test, prompts)
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


def score_run(
    cell: Cell,
    row: str,
    source: tuple[str, dict[str, Any]],
    test: list[tuple[Case, Volume, Mask]],
    prompts: dict[str, Prompts],
) -> None:
    """Segment and score the test cases with one run, unless the row's file is there already.

    Args:
        source: the run's folder below the cell's, and settings of its method at test time.
    """
    slug = "".join(c if c.isalnum() else "-" for c in row)
    path = cell.results / "cells" / f"{cell.name}-noisy-{slug}.json"
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
                "kind": "noisy",
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


def main() -> None:
    """Parse flags and run the cells, `--workers` at a time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=os.environ.get("STEADYSAM_TEST_DATA"), required=False)
    parser.add_argument("--work", type=Path, default=HERE.parent / "work" / "downstream", help="runs and prompt sets")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "downstream")
    parser.add_argument("--suite", type=Path, default=HERE / "runs" / "downstream.toml")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--targets", nargs="*")
    parser.add_argument("--seeds", nargs="*", type=int)
    flags = parser.parse_args()
    if flags.data is None:
        parser.error("--data FOLDER: the folder that holds the data sets of the suite")
    suite = tomllib.loads(flags.suite.read_text("utf-8"))
    cells = [
        Cell(target, seed, suite, Path(flags.data), flags.work, flags.results)
        for seed in flags.seeds or suite["seeds"]
        for target in flags.targets or suite["targets"]
    ]
    with multiprocessing.get_context("spawn").Pool(flags.workers) as pool:
        for line in pool.imap_unordered(run_cell, cells):
            print(line, flush=True)


if __name__ == "__main__":
    main()

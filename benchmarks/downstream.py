"""SPD from pretrained weights against from random ones, with 5, 10 and all training patients; resumable by cell.

All runs of a target and seed share one frozen prompt set; table2.py makes and scores the cells.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
import tomllib
from pathlib import Path
from typing import Any

from table2 import Cell, frozen_prompts, make_run, score_run

from steadysam.config import make_config
from steadysam.data.cases import read_dataset, resolve_label
from steadysam.training import computing
from steadysam.training_data import read_case, split_of

HERE = Path(__file__).parent
# row -> settings of the method at test time
ROWS: dict[str, dict[str, Any]] = {"SPD": {}, "stage-1 head alone": {"output": "saliency"}}


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
                    score_run(cell, f"{row}, {start}, {patients or 'all'}", (name, settings), test, prompts, "noisy")
    return f"{cell.name}: {time.monotonic() - started:.0f} s"


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

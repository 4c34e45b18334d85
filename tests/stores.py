"""Small benchmark stores made by hand, for the tests of reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from steadysam.bench.store import Cell, write_cell
from steadysam.files import write_json
from steadysam.metrics import CaseScores, SliceScore, VolumeScore

FACTS: dict[str, Any] = {
    "method": "spd",
    "group": "noisy prompts",
    "figure": "",
    "x": None,
    "settings": {},
    "points": "all",
    "coarse": None,
    "prompted": True,
    "prompt_sources": ["simulated"],
    "prompt_set": "ab" * 32,
    "noise_model": "uniform points",
    "empty_slice_rule": "matched",
    "oracle": False,
    "noise": ["", 0.0],
    "base": None,
    "empty_consensus_policy": None,
    "split": "by patient",
    "size": 32,
    "evaluation_size": 32,
    "backbone": "tiny",
    "run": "spd",
    "prompts_given": 9,
}


def scored(dice: float | None, *, empty: bool = False) -> SliceScore:
    """A slice that holds the target with this Dice (None: nothing predicted), or `empty` with nothing or something."""
    if empty:
        right = dice is None
        return SliceScore(0, True, right, float(right), float(right), *[None] * 7)
    if dice is None:
        return SliceScore(0, False, True, 0.0, 0.0, *[None] * 7)
    far = 10 * (1 - dice)
    return SliceScore(0, False, False, dice, dice / (2 - dice), far, far / 2, far / 2, far, None, None, None)


def case(name: str, slices: Sequence[SliceScore], volume: float = 0.5) -> CaseScores:
    """A case with these slices."""
    return CaseScores(name, tuple(slices), VolumeScore(volume, volume / (2 - volume), 9, 9, None, None, None), (32, 32))


def dices(*values: float) -> list[CaseScores]:
    """One case of one patient and one positive slice for each value."""
    return [case(f"c{n}", [scored(value)], value) for n, value in enumerate(values)]


def put(
    store: Path,
    row: str,
    cases: Sequence[CaseScores],
    *,
    target: str = "LV",
    seed: int = 0,
    prompts: str = "noisy",
    patients: Mapping[str, str] | None = None,
    key: str = "k",
    **facts: Any,
) -> Path:
    """Write a cell; `facts` differ from `FACTS`."""
    own = {"prompt_seed": seed, "training_seed": seed}
    owner = patients or {scores.name: scores.name for scores in cases}
    return write_cell(store, Cell(target, seed, row, prompts, {**FACTS, **own, **facts}, key, owner, tuple(cases)))


def put_run(store: Path, run: str, *, seed: int = 0, target: str = "LV", seconds: float = 10.0) -> None:
    """Write the record of a run with one stage and two epochs."""
    epochs = [{"learning_rate": 0.1, "train_loss": 0.9, "val_loss": 0.8}, {"learning_rate": 0.1, "val_loss": 0.7}]
    stage = {"epochs": 2, "best_epoch": 2, "best_loss": 0.7, "trained_parameters": 1500}
    record = {"target": target, "seed": seed, "run": run, "method": "spd", "weights_sha256": "a", "parameters": 9000}
    record |= {
        "stages": {"decoder": stage},
        "threads": 1,
        "seconds": {"decoder": seconds},
        "curves": {"decoder": epochs},
    }
    write_json(store / "runs" / f"{target}-s{seed}-{run}.json", record)

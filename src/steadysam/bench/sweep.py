"""The learning rate of every method, chosen once on validation cases, before any test case is looked at.

A run whose suite entry names `sweep` keys is trained once per rate and target of `[sweep]`; the rate with the lowest
mean rank of its best validation loss over the targets is taken for all targets and seeds. That loss is the one by
which its stages select their epochs: the whole, or its Dice term.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from steadysam.bench.group import Folders, Group, Options
from steadysam.bench.suite import Suite
from steadysam.files import read_json, slug, write_json
from steadysam.training import computing, train


def swept_runs(suite: Suite) -> list[str]:
    """The runs whose rate is chosen."""
    return [name for name, spec in suite.runs.items() if spec.sweep and not spec.like and suite.sweep.rates]


def sweep_path(store: Path, run: str, target: str) -> Path:
    """Where the losses of one run on one target lie."""
    return store / "sweep" / f"{slug(run)}-{slug(target)}.json"


def sweep_run(suite: Suite, run: str, target: str, folders: Folders, options: Options) -> dict[str, Any]:
    """Train `run` with every rate on `target`; returns and keeps, of each, the validation loss of the best epoch.

    Those of all stages that the run trains are added up; stages taken over from `start` are none of them.
    """
    path = sweep_path(folders.store, run, target)
    if path.exists():
        return read_json(path)
    losses = {}
    for rate in suite.sweep.rates:
        group = Group(suite, target, suite.sweep.seed, folders, replace(options, rates={run: rate}))
        group.prepare(run)
        config = group.config(run)
        with computing(config.compute):
            folder = train(config, group.folder / f"sweep-{slug(run)}-{rate:g}", resume=True, wait=True)
        stages = read_json(folder / "run.json")["stages"]
        # every swept stage counts: SPD's two stages have one loss each
        losses[f"{rate:g}"] = sum(stage["best_loss"] for stage in stages.values())
    found = {"run": run, "target": target, "seed": suite.sweep.seed, "validation_loss": losses}
    write_json(path, found)
    return found


def chosen_rates(suite: Suite, store: Path) -> dict[str, float]:
    """Run -> rate, from the losses that are in the store; runs whose sweep is not finished keep their own rates."""
    rates = {}
    for run in swept_runs(suite):
        paths = [sweep_path(store, run, target) for target in suite.sweep.targets]
        if not all(path.exists() for path in paths):
            continue
        losses = [read_json(path)["validation_loss"] for path in paths]
        rates[run] = best_rate(losses, suite.sweep.rates)
    return rates


def best_rate(losses: Sequence[Mapping[str, float]], rates: Sequence[float]) -> float:
    """The rate of the lowest mean rank over targets; the smaller one of two equals."""
    ordered = sorted(rates)
    ranks = np.array([np.argsort(np.argsort([loss[f"{rate:g}"] for rate in ordered])) for loss in losses])
    return float(ordered[int(ranks.mean(axis=0).argmin())])

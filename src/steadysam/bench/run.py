"""Work through a suite, group by group, in several processes; what is finished is kept."""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from steadysam.bench.claims import keep_claims
from steadysam.bench.group import Folders, Group, Options
from steadysam.bench.scoring import score_group
from steadysam.bench.store import cell_path
from steadysam.bench.suite import PointsFrom, Suite
from steadysam.bench.sweep import chosen_rates, sweep_run, swept_runs
from steadysam.errors import BatchError, ConfigError, InputError
from steadysam.files import write_json

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Work:
    """What of a suite is done by this call.

    Args:
        targets, seeds: only these; () means all.
        workers: processes, each with one target and seed at a time.
        devices: handed to the workers in turn, such as `cuda:0`; () means the suite's.
        part, parts: this call takes every `parts`-th target and seed, beginning with the `part`-th (from 0).
    """

    targets: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    workers: int = 1
    devices: tuple[str, ...] = ()
    part: int = 0
    parts: int = 1


def jobs_of(suite: Suite, work: Work) -> list[tuple[str, int]]:
    """(target, seed) of every group of this call; one seed of all targets first, so that a first table is there soon.

    Raises:
        ConfigError: `BENCH_UNKNOWN` for a target or seed that the suite lacks.
    """
    _refuse_unknown("target", work.targets, suite.targets)
    _refuse_unknown("seed", work.seeds, suite.seeds)
    seeds, targets = work.seeds or suite.seeds, work.targets or tuple(suite.targets)
    return [(target, seed) for seed in seeds for target in targets][work.part :: work.parts]


@dataclass(frozen=True)
class Progress:
    """What of a call is there: cells per (target, seed) and in all, and the rows that lack some."""

    groups: Mapping[tuple[str, int], tuple[int, int]]
    missing: Mapping[tuple[str, int], tuple[str, ...]]

    @property
    def done(self) -> int:
        """Cells that are there."""
        return sum(done for done, _ in self.groups.values())

    @property
    def total(self) -> int:
        """Cells that this call is to make in all."""
        return sum(total for _, total in self.groups.values())


def progress(suite: Suite, folders: Folders, work: Work, options: Options) -> Progress:
    """What is there of what this call is to make.

    Raises:
        ConfigError: `BENCH_UNKNOWN`. InputError: `FILE_MISSING` if a data set is not where it should be.
    """
    _refuse_unknown_names(suite, options)
    groups, missing = {}, {}
    for target, seed in jobs_of(suite, work):
        dataset = folders.data / suite.targets[target].dataset
        if not dataset.is_dir():
            raise InputError("FILE_MISSING", f"no data set for target {target}", file=dataset, fix="check --data")
        lacking: dict[str, int] = {}
        total = 0
        for row in suite.rows:
            if options.takes(suite, row) and suite.scores(row, target, seed):
                sets = options.prompt_sets(suite, row, target, seed)
                paths = [cell_path(folders.store, target, seed, row, prompts) for prompts in sets]
                total += len(paths)
                if lacks := sum(not path.exists() for path in paths):
                    lacking[row] = lacks
        groups[target, seed] = (total - sum(lacking.values()), total)
        missing[target, seed] = tuple(lacking)
    return Progress(groups, missing)


def rows_of_tables(suite: Suite, tables: Sequence[str]) -> tuple[str, ...]:
    """The rows that stand in one of these tables: groups of the main table, or figures; in the suite's order.

    Raises:
        ConfigError: `BENCH_UNKNOWN` for a table that the suite lacks.
    """
    places = {
        row: [name for name in (spec.group, spec.figure, *(place.figure for place in spec.also)) if name]
        for row, spec in suite.rows.items()
    }
    _refuse_unknown("table", tables, dict.fromkeys(name for names in places.values() for name in names))
    return tuple(row for row, names in places.items() if set(names) & set(tables))


def _refuse_unknown_names(suite: Suite, options: Options) -> None:
    _refuse_unknown("row", options.rows, suite.rows)
    _refuse_unknown("prompt set", options.prompts, suite.prompts)


def _refuse_unknown(kind: str, wanted: Collection[str | int], known: Collection[str | int]) -> None:
    for name in wanted:
        if name not in known:
            raise ConfigError("BENCH_UNKNOWN", f"the suite has no {kind} {name!r}", expected="; ".join(map(str, known)))


def trained_runs(suite: Suite, rows: Collection[str]) -> set[str]:
    """The runs trained for these rows: their own, those of their points and coarse masks, and those they start from."""
    return _reached(suite, rows, ("start", "begin"))


def runs_of(suite: Suite, rows: Collection[str]) -> set[str]:
    """The runs that these rows need: those that are trained for them, and those whose learning rate they take."""
    return _reached(suite, rows, ("start", "begin", "like"))


def _reached(suite: Suite, rows: Collection[str], links: Sequence[str]) -> set[str]:
    """The runs of these rows, and what is found from them along these fields of a run."""
    todo: list[str | None] = []
    for spec in (suite.rows[row] for row in rows):
        todo += [spec.run, suite.rows[spec.coarse].run if spec.coarse else None]
        todo += [spec.points.run] if isinstance(spec.points, PointsFrom) else []
    reached: set[str] = set()
    while todo:
        run = todo.pop()
        if run is not None and run not in reached:
            reached.add(run)
            todo += [getattr(suite.runs[run], link) for link in links]
    return reached


def bench(
    suite: Suite,
    folders: Folders,
    work: Work,
    options: Options,
    tell: Callable[[str], None] = logger.info,
) -> None:
    """Choose learning rates, train, segment and score whatever is missing.

    Raises:
        ConfigError: `BENCH_UNKNOWN`.
        BatchError: `BENCH_FAILED` at the end if cells failed; the others are written, and `failures.json` says why.
    """
    _refuse_unknown_names(suite, options)
    groups = jobs_of(suite, work)
    needed = set() if options.untrained else runs_of(suite, options.rows or tuple(suite.rows))
    sweeps = [(run, target) for run in swept_runs(suite) if run in needed for target in suite.sweep.targets]
    for line in _each(partial(_sweep, suite, folders, options), sweeps[work.part :: work.parts], work):
        tell(line)
    rates = chosen_rates(suite, folders.store)
    if missing := sorted(set(swept_runs(suite)) & needed - set(rates)):
        raise ConfigError(
            "BENCH_SWEEP",
            f"no learning rate has been chosen yet for {', '.join(missing)}",
            fix="wait until the other parts have finished their sweeps, and call again",
        )
    if rates:
        write_json(folders.store / "rates.json", rates)
    keep_claims(folders.store, suite.claims)
    failures: list[dict[str, Any]] = []
    chosen = replace(options, rates=rates)
    for lines, failed in _each(partial(_group, suite, folders, chosen), groups, work):
        for line in lines:
            tell(line)
        failures += failed
    log = folders.store / "failures.json"
    log.unlink(missing_ok=True)
    if failures:
        write_json(log, failures)
        raise BatchError("BENCH_FAILED", f"{len(failures)} cells failed; the others are written", file=log)


def _sweep(suite: Suite, folders: Folders, options: Options, job: tuple[str, str]) -> str:
    run, target = job
    found = sweep_run(suite, run, target, folders, _on_device(options))
    losses = ", ".join(f"{rate} -> {loss:.4f}" for rate, loss in found["validation_loss"].items())
    return f"learning rate of {run} on {target}: {losses}"


def _group(
    suite: Suite, folders: Folders, options: Options, job: tuple[str, int]
) -> tuple[list[str], list[dict[str, Any]]]:
    lines: list[str] = []
    failures = score_group(Group(suite, *job, folders, _on_device(options)), lines.append)
    return lines, failures


def _each(function: Callable[[Any], Any], jobs: list[Any], work: Work) -> Any:
    """Results as they come; in this process where one worker is asked for."""
    if work.workers <= 1 or len(jobs) <= 1:
        _start(work.devices, None)
        yield from map(function, jobs)
        return
    context = multiprocessing.get_context("spawn")
    numbers = context.Queue()
    for number in range(work.workers):
        numbers.put(number)
    with context.Pool(work.workers, _start, (work.devices, numbers)) as pool:
        yield from pool.imap_unordered(function, jobs)


_DEVICE = "STEADYSAM_BENCH_DEVICE"


def _start(devices: tuple[str, ...], numbers: Any) -> None:
    """In every worker: its device, by turns."""
    number = numbers.get() if numbers is not None else 0
    if devices:
        os.environ[_DEVICE] = devices[number % len(devices)]


def _on_device(options: Options) -> Options:
    device = os.environ.get(_DEVICE)
    return replace(options, device=device) if device else options

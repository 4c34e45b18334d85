"""`steadysam bench`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

log = logging.getLogger(__name__)


def bench(
    suite: Path,
    *,
    data: Annotated[Path, Parameter(env_var="STEADYSAM_DATA")],
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    work: Path | None = None,
    targets: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative="")] = (),
    rows: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative="")] = (),
    tables: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative="")] = (),
    prompts: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative="")] = (),
    seeds: Annotated[tuple[int, ...], Parameter(consume_multiple=True, negative="")] = (),
    workers: int = 1,
    devices: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative="")] = (),
    part_id: int = 0,
    num_parts: int = 1,
    untrained: Annotated[bool, Parameter(negative="")] = False,
    redo: Annotated[bool, Parameter(negative="")] = False,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Train and score every method of a suite on the same splits, prompts, resolution and budget.

    A suite file says which targets, prompt sets, runs and table rows there are; benchmarks/suites has some. Cells that
    are finished are kept, so the same command goes on where it was stopped. Learning rates that the suite wants to be
    chosen are chosen first, on validation cases. Tables and figures are then made by `steadysam report`.

    For example:

        steadysam bench benchmarks/suites/spd.toml --data DATASETS -o results/spd --workers 2
        steadysam report results/spd -o results/spd/report

    On four GPUs of this machine, or as one of eight jobs of a cluster:

        steadysam bench SUITE.toml --data DATASETS -o STORE --workers 4 --devices cuda:0 cuda:1 cuda:2 cuda:3
        steadysam bench SUITE.toml --data DATASETS -o STORE --num-parts 8 --part-id 3

    Parameters
    ----------
    suite
        TOML file.
    data
        Folder that holds the data sets of the suite.
    output
        The store to write: one small file per cell and per run.
    work
        Folder for run folders, prompt sets and cached embeddings, which are large. Default: OUTPUT/work.
    targets
        Only these targets.
    rows
        Only these rows.
    tables
        Only the rows of these tables: groups of rows, or figures, as the suite names them; beside those of --rows.
    prompts
        Only these prompt sets.
    seeds
        Only these seeds.
    workers
        Processes; each takes one target and seed at a time.
    devices
        Handed to the workers in turn. Default: what the suite says.
    part_id
        Which part of the work this call does, from 0.
    num_parts
        How many calls share the work.
    untrained
        Train nothing: every row with the weights that it starts from, which its trained self has to beat. Use another
        -o and --work than for the suite itself.
    redo
        Make cells again that were made with other settings; without it they are refused.
    dry_run
        Say which rows of which target and seed are still to do, and do nothing.
    """
    from steadysam.bench.group import Folders, Options
    from steadysam.bench.run import Work, progress, rows_of_tables
    from steadysam.bench.run import bench as run_bench
    from steadysam.bench.suite import read_suite

    read = read_suite(suite)
    store = output.resolve()
    folders = Folders(data.resolve(), (work or store / "work").resolve(), store)
    share = Work(targets, seeds, workers, devices, part_id, num_parts)
    chosen = (*rows, *rows_of_tables(read, tables))
    options = Options(redo=redo, rows=chosen, prompts=prompts, untrained=untrained)
    state = progress(read, folders, share, options)
    log.info("%s: %d of %d cells are there", read.name, state.done, state.total)
    if not dry_run:
        run_bench(read, folders, share, options, log.info)
        log.info("%d cells in %s; tables: steadysam report %s", state.total, store, output)
        return
    for (target, seed), (done, total) in state.groups.items():
        rows_left = "; ".join(state.missing[target, seed])  # names of rows have commas
        log.info("%s, seed %d: %d of %d%s", target, seed, done, total, f", to do: {rows_left}" if rows_left else "")

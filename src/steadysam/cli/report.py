"""`steadysam report`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from steadysam.errors import UsageError

log = logging.getLogger(__name__)


def report(
    store: Path,
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    suite: Path | None = None,
    reference: str | None = None,
    steps: Annotated[tuple[str, ...], Parameter(consume_multiple=True, negative="")] = (),
    draws: int = 2000,
    seed: int = 0,
) -> None:
    """Make tables and figures of a benchmark that `steadysam bench` ran, finished or not.

    Writes report.html (one file with everything), report.json, cells.csv (one line per cell), tables as Markdown, LaTeX
    and CSV, paired tests, and every figure as PNG with its numbers as CSV beside it.

    For example:

        steadysam report results/spd -o results/spd/report
        steadysam report results/spd -o out --reference SAM-Tuning --steps "Local -> CPD" "CPD -> SPD"

    Parameters
    ----------
    store
        The folder that `steadysam bench` wrote.
    output
        Folder to write.
    suite
        Show rows as this suite file says today (order, groups, figures, noise curves), not as cells recorded it.
    reference
        The row that all others are tested against. Default: SPD, if there is such a row.
    steps
        Pairs of rows to compare, as "A -> B". Default: those of SAM-Tuning -> SPD, Local -> CPD and CPD -> SPD whose
        rows are there.
    draws
        Bootstrap draws of each interval.
    seed
        Seed of the bootstrap.
    """
    from steadysam.bench.suite import read_suite
    from steadysam.report.benchmark.write import Wanted, write_report

    if draws < 1:
        raise UsageError("BENCH_DRAWS", "an interval needs draws", seen=draws, expected="1 or more")
    read = read_suite(suite) if suite is not None else None
    page = write_report(store, output, Wanted(reference, steps, read, draws, seed))
    log.info("%s", page)

"""What drawn pictures and longer mask stages are worth: the rows of two stores that differ in these, paired; a table.

    steadysam bench benchmarks/suites/ldfsam_cpu.toml --data FOLDER -o benchmarks/results/ldfsam --work work/ldfsam
    steadysam bench benchmarks/suites/ldfsam_drawn_cpu.toml --data FOLDER -o benchmarks/results/ldfsam_drawn \\
        --work work/ldfsam_drawn
    python benchmarks/starts.py benchmarks/results/ldfsam benchmarks/results/ldfsam_drawn \\
        -o benchmarks/results/ldfsam_starts.md
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from steadysam.files import write_text
from steadysam.report.benchmark.detection import detections_of
from steadysam.report.benchmark.paired import compare_pools
from steadysam.report.benchmark.pooling import Book, Pool, common_seeds, read_store
from steadysam.report.table import ABSENT

ALONE = "detectors alone"
Told = tuple[float, float, str]  # before, after, what stands behind them


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="detectors from random numbers, short mask stages")
    parser.add_argument("after", type=Path, help="detectors from drawn pictures, long mask stages")
    parser.add_argument("-o", "--output", type=Path, required=True)
    flags = parser.parse_args()
    print(write_text(flags.output, table(read_store(flags.before), read_store(flags.after))))


def table(before: Book, after: Book) -> str:
    """Markdown: AP of the detectors alone, then DSC of all other rows that differ; a line per row, targets beside.

    Rows whose cells are the same in both stores are left out. Only seeds that both stores have are compared.
    """
    pairs = [(old, new) for key, new in after.pools.items() if (old := before.pools.get(key)) and _differ(old, new)]
    targets = list(dict.fromkeys(new.target for _, new in pairs))
    boxes = [pair for pair in pairs if pair[1].facts.get("group") == ALONE]
    masks = [pair for pair in pairs if pair[1].facts.get("group") != ALONE]
    text = [
        "From the suite whose detectors begin with random numbers → to that in which they begin with drawn pictures",
        "and masks are trained four times as long, over the seeds that both have. AP is of detectors alone, which",
        "differ in the beginning only. In brackets the 95 % interval of the difference in DSC over all slices, which",
        "draws patients and seeds. The mean is over the targets that are there; compare it where",
        "all are.",
        "",
        *_lines("AP, detectors alone", boxes, targets, _precision),
        "",
        *_lines("DSC", masks, targets, lambda old, new: _dice((before, after), old, new)),
    ]
    return "\n".join(text) + "\n"


def _differ(old: Pool, new: Pool) -> bool:
    """Whether both have a common seed whose cells were made with other settings."""
    keys = {cell.seed: cell.key for cell in old.cells}
    return any(keys.get(cell.seed, cell.key) != cell.key for cell in new.cells)


def _lines(
    head: str, pairs: Sequence[tuple[Pool, Pool]], targets: Sequence[str], told: Callable[[Pool, Pool], Told]
) -> list[str]:
    rows: dict[str, dict[str, Told]] = {}
    seeds: dict[str, dict[str, None]] = {}
    for old, new in pairs:
        both = common_seeds([old, new])
        rows.setdefault(new.row, {})[new.target] = told(old.only(both), new.only(both))
        seeds.setdefault(new.row, {})[", ".join(map(str, both))] = None
    lines = [f"| {head} | {' | '.join(targets)} | mean | targets | seeds |", "|---" * (len(targets) + 4) + "|"]
    for row, found in rows.items():
        cells = [_cell(*found[target]) if target in found else ABSENT for target in targets]
        a, b = (float(np.mean(side)) for side in list(zip(*found.values(), strict=True))[:2])
        lines.append(f"| {row} | {' | '.join(cells)} | {_cell(a, b, '')} | {len(found)} | {'; '.join(seeds[row])} |")
    return lines


def _cell(a: float, b: float, more: str) -> str:
    return f"{a:.3f} → {b:.3f}{more}"


def _precision(old: Pool, new: Pool) -> Told:
    a, b = (float(np.mean([one["AP"] for one in detections_of(pool)])) for pool in (old, new))
    return a, b, ""


def _dice(books: tuple[Book, Book], old: Pool, new: Pool) -> Told:
    made = compare_pools(books[1], new, old)
    assert made is not None, "pools of common seeds"
    test = made[0].metrics["dsc"]
    low, high = test.difference_interval or (float("nan"), float("nan"))
    a, b = (_mean(book, pool) for book, pool in zip(books, (old, new), strict=True))
    return a, b, f" ({low:+.3f} to {high:+.3f})"


def _mean(book: Book, pool: Pool) -> float:
    mean = book.summary(pool).scores["dsc"].mean
    return float("nan") if mean is None else mean


if __name__ == "__main__":
    main()

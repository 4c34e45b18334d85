"""Does every trained row beat the all-empty predictor and its own untrained self? A table from two stores.

    steadysam bench benchmarks/suites/spd_cpu.toml --data FOLDER -o benchmarks/results/spd_untrained \\
        --work work/spd_untrained --seeds 0 --prompts noisy --untrained
    python benchmarks/floor.py benchmarks/results/spd benchmarks/results/spd_untrained \\
        -o benchmarks/results/spd_floor.md
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from steadysam.bench.store import Cell, cells
from steadysam.files import write_text
from steadysam.summary import Summary, summarise

Place = tuple[str, str]  # row, target


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trained", type=Path, help="store of the suite")
    parser.add_argument("untrained", type=Path, help="store of the same suite, made with --untrained")
    parser.add_argument("-o", "--output", type=Path, required=True)
    flags = parser.parse_args()
    floor = {(cell.row, cell.target, cell.seed, cell.prompts): cell for cell in cells(flags.untrained)}
    pairs = [
        (cell, floor[place])
        for cell in cells(flags.trained)
        if (place := (cell.row, cell.target, cell.seed, cell.prompts)) in floor
        and cell.facts.get("training_seed") is not None
    ]
    print(write_text(flags.output, table(pairs)))


def table(pairs: list[tuple[Cell, Cell]]) -> str:
    """Markdown: one line per row and target, the failures first."""
    head = [
        "row",
        "target",
        "seed",
        "prompts",
        "trained",
        "untrained",
        "all-empty",
        "positive slices: trained",
        "untrained",
        "beats both",
    ]
    lines = [line(*pair) for pair in pairs]
    lines.sort(key=lambda cells: (cells[-1] == "yes", cells[:3]))
    failing = sum(cells[-1] != "yes" for cells in lines)
    text = [
        "DSC over all slices (both empty = 1) and over those that hold the target, of each trained row, of the same",
        "row before its first step, and of an empty prediction. Same cases, prompts and seed.",
        f"{failing} of {len(lines)} trained rows do not beat both floors in DSC over all slices.",
        "",
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
        *("| " + " | ".join(cells) + " |" for cells in lines),
    ]
    return "\n".join(text) + "\n"


def line(trained: Cell, untrained: Cell) -> list[str]:
    """The cells of one line."""
    after, before = (summarise(cell.cases, cell.patients, draws=2) for cell in (trained, untrained))
    mine, floor, empty = mean(after, "dsc"), mean(before, "dsc"), after.all_empty["dsc"] or 0.0
    numbers = (mine, floor, empty, mean(after, "dsc_positive"), mean(before, "dsc_positive"))
    place = [trained.row, trained.target, str(trained.seed), trained.prompts]
    return [*place, *(f"{number:.3f}" for number in numbers), "yes" if mine > max(floor, empty) else "**no**"]


def mean(summary: Summary, metric: str) -> float:
    """A mean, 0 where nothing is defined."""
    scores: Mapping[str, object] = summary.scores
    return getattr(scores[metric], "mean", None) or 0.0


if __name__ == "__main__":
    main()

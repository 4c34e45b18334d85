"""Paired tests between lines of a table: each against a reference, and steps of one method to the next.

Two-sided Wilcoxon signed-rank tests over slices, as papers do, and over the means of patients, which is the honest
unit. Only seeds that both lines have are paired. Oracle lines are not tested: they are no rivals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from steadysam.comparison import COMPARED, Comparison, compare, holm_over
from steadysam.errors import UsageError
from steadysam.report.benchmark.lines import Line
from steadysam.report.benchmark.pooling import ORACLE, Book, Pool, common_seeds
from steadysam.report.html import Table
from steadysam.report.table import ABSENT

DEFAULT_REFERENCE = "SPD"
DEFAULT_STEPS = ("SAM-Tuning -> SPD", "Local -> CPD", "CPD -> SPD")
_SHOWN = ("dsc", "dsc_positive", "volume_dice")


def parse_steps(steps: Sequence[str], rows: Sequence[str]) -> list[tuple[str, str]]:
    """`A -> B` as pairs of rows; without `steps` those of the default whose rows are there.

    Raises:
        UsageError: `BENCH_STEP` for text that is no step, or a row that the store lacks.
    """
    pairs = [tuple(part.strip() for part in step.split("->")) for step in steps or DEFAULT_STEPS]
    found: list[tuple[str, str]] = []
    for step, pair in zip(steps or DEFAULT_STEPS, pairs, strict=True):
        missing = [name for name in pair if name not in rows]
        if len(pair) == 2 and not missing:
            found.append((pair[0], pair[1]))
        elif steps:
            raise UsageError(
                "BENCH_STEP", "not a step between two rows", seen=step, expected="'ROW -> ROW' of the store"
            )
    return found


def reference_rows(book: Book, lines: Sequence[Line], targets: Sequence[str], reference: str) -> list[dict[str, Any]]:
    """Every line minus the reference, by target and metric; Holm adjusts over the lines."""
    pairs = [(line.row, reference) for line in lines if line.row != reference]
    return _rows(book, lines, targets, pairs)


def step_rows(
    book: Book, lines: Sequence[Line], targets: Sequence[str], steps: Sequence[tuple[str, str]]
) -> list[dict[str, Any]]:
    """The second row of each step minus the first; Holm adjusts over the steps."""
    return _rows(book, lines, targets, [(after, before) for before, after in steps])


def compare_pools(book: Book, a: Pool, b: Pool) -> tuple[Comparison, tuple[int, ...]] | None:
    """a - b over the seeds that both have; None if there is none."""
    seeds = common_seeds([a, b])
    if not seeds:
        return None
    a, b = a.only(seeds), b.only(seeds)
    return compare(a.cases, b.cases, a.origins, seed=book.seed, draws=book.draws), seeds


def paired_table(rows: Sequence[Mapping[str, Any]], target: str) -> Table:
    """The tests of one target for reading: one line per pair, three metrics side by side."""
    lines: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        if row["target"] != target or row["metric"] not in _SHOWN:
            continue
        line = lines.setdefault((row["row"], row["against"]), {"pair": f"{row['row']} − {row['against']}"})
        metric = row["metric"]
        line |= {f"{metric} difference": row["difference"], f"{metric} 95": row["difference_95"]}
        line |= {
            f"{metric} slices": p_words(row["p_slices_holm"]),
            f"{metric} patients": p_words(row["p_patients_holm"]),
        }
        if metric == "dsc":
            line |= {"n": f"{row['pairs']} ({row['ties']} ties)", "patients": row["patients"], "seeds": row["seeds"]}
    columns = {"pair": ""}
    for metric, text in zip(_SHOWN, ("DSC", "DSC positive", "volume Dice"), strict=True):
        unit = "volumes" if metric == "volume_dice" else "slices"
        columns |= {f"{metric} difference": text, f"{metric} 95": "95 %"}
        columns |= {f"{metric} slices": f"p {unit}", f"{metric} patients": "p patients"}
    caption = (
        "Differences of means over what both scored. p: two-sided Wilcoxon signed-rank, ties dropped, Holm-adjusted "
        "over the lines of this table. Slices of one patient are not independent: trust the test over patients."
    )
    return Table({**columns, "n": "slices", "patients": "patients", "seeds": "seeds"}, list(lines.values()), caption)


def p_words(p: float | None) -> str:
    """A p value for reading; tiny ones as a bound."""
    if p is None:
        return ABSENT
    return "<0.0001" if p < 1e-4 else f"{p:.4f}"


def _rows(
    book: Book, lines: Sequence[Line], targets: Sequence[str], pairs: Sequence[tuple[str, str]]
) -> list[dict[str, Any]]:
    rivals = {line.row: line for line in lines if line.lane != ORACLE}
    rows: list[dict[str, Any]] = []
    for target in targets:
        made: dict[str, tuple[Comparison, tuple[int, ...]]] = {}
        names: dict[str, tuple[str, str]] = {}
        for a, b in pairs:
            pools = [rivals[name].pools.get(target) if name in rivals else None for name in (a, b)]
            both = [pool for pool in pools if pool is not None]
            found = compare_pools(book, *both) if len(both) == 2 else None
            if found is not None:
                names[f"{a} - {b}"], made[f"{a} - {b}"] = (a, b), found
        comparisons = {name: comparison for name, (comparison, _) in made.items()}
        for metric in COMPARED if made else ():
            adjusted = {unit: holm_over(comparisons, metric, unit) for unit in ("samples", "patients")}
            for name, (comparison, seeds) in made.items():
                row = {"target": target, "row": names[name][0], "against": names[name][1], "metric": metric}
                row |= _numbers(comparison, metric) | {"p_slices_holm": adjusted["samples"][name]}
                rows.append(row | {"p_patients_holm": adjusted["patients"][name], "seeds": ", ".join(map(str, seeds))})
    return rows


def _numbers(comparison: Comparison, metric: str) -> dict[str, Any]:
    test = comparison.metrics[metric]
    low, high = test.difference_interval or (None, None)
    return {
        "difference": test.over_samples.mean_difference,
        "difference_95": test.difference_interval,
        "difference_low": low,
        "difference_high": high,
        "pairs": test.over_samples.n_pairs,
        "ties": test.over_samples.n_ties,
        "p_slices": test.over_samples.p_wilcox,
        "p_slices_pratt": test.over_samples.p_pratt,
        "patients": test.over_patients.n_pairs,
        "patient_difference": test.over_patients.mean_difference,
        "p_patients": test.over_patients.p_wilcox,
    }

"""What a suite claims, weighed: a sum over rows, by target and in the mean over targets, with interval and verdict.

The interval of the mean draws patients and, where there are several, seeds, those of every target anew and by
themselves: it speaks of other patients and of other trainings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steadysam.bench.claims import Claim, Term
from steadysam.comparison import common_cases, samples_beside
from steadysam.detection.average_precision import PRECISIONS
from steadysam.files import write_text
from steadysam.report.benchmark.detection import detections_of, drawn_precisions
from steadysam.report.benchmark.draft import Draft
from steadysam.report.benchmark.lines import MEAN, NUMBERS
from steadysam.report.benchmark.pooling import Book, Pool, common_seeds
from steadysam.report.benchmark.tables import latex_of, markdown_of
from steadysam.report.forest import Statement, draw_forest
from steadysam.report.html import Section, Table
from steadysam.report.latex import PREAMBLE
from steadysam.report.style import SERIES
from steadysam.report.table import INTERVALS, interval_of, with_interval
from steadysam.statistics import cluster_means, group_means, percentile_interval
from steadysam.summary import generator_of

HOLDS, FAILS, OPEN, MISSING, MOOT = "holds", "fails", "open", "rows missing", "nothing to judge"
COLOURS = {HOLDS: SERIES[2], OPEN: SERIES[4], FAILS: SERIES[1], MOOT: "#999999"}
CAPTION = (
    f"Each claim is that its sum is above zero. In brackets {INTERVALS}; not adjusted for the number of claims. "
    "holds: the interval is above zero; fails: it is below; open: zero is within (for a sum that is claimed to be not "
    "below a number, that number in place of zero). Where older cells did not keep the "
    "matches of their boxes average precision has no interval, and holds or fails if two seeds or more say so with one "
    "voice. Each target has the seeds that all rows of the claim have there; seeds above zero are those in whose mean "
    "over targets the sum is. A claim about a gap has nothing to judge where the gap itself does not hold."
)


@dataclass(frozen=True, eq=False)
class Weighed:
    """A claim's sum on one target.

    Args:
        by_seed: seed -> mean of the sum.
        value: mean over all seeds' samples.
        replicates: (draws,) of `value` with patients and seeds drawn; None where there are none.
        n, patients: samples and patients behind it.
    """

    by_seed: Mapping[int, float]
    value: float
    replicates: NDArray[np.float64] | None
    n: int
    patients: int


def write_claims(report: Draft) -> None:
    """The claims as a section, with `claims.md`, `.tex`, `.csv` and a picture; nothing where nothing is claimed."""
    rows = claim_rows(report.book)
    if not rows:
        return
    report.csv("claims", rows)
    report.numbers["claims"] = rows
    table = claim_table(rows, report.book.targets)
    write_text(report.folder / "claims.md", f"# Claims\n\n{markdown_of(table)}")
    write_text(report.folder / "claims.tex", "\n".join([PREAMBLE, latex_of(table, "tab:claims", "Claims")]))
    drawn = [row for row in rows if "value" in row]
    caption = "Dots: means over targets with 95 % intervals, hollow without; small marks: targets."
    picture = (report.picture("figures/claims", draw_claims(rows), drawn, caption),) if drawn else ()
    report.sections.append(Section("Claims", (*picture, table)))


def claim_rows(book: Book) -> list[dict[str, Any]]:
    """A row per claim and target that has all its rows, and one for the mean over these targets, with the verdict."""
    rows: list[dict[str, Any]] = []
    verdicts: dict[str, str] = {}
    for name, claim in book.claims.items():
        weighed = {target: found for target in book.targets if (found := weigh(book, name, claim, target))}
        said = {"claim": name, "sum": claim.formula, "measure": claim.measured}
        for target, one in weighed.items():
            own = {"target": target, "seeds": ", ".join(map(str, one.by_seed)), "n": one.n, "patients": one.patients}
            own |= {"seeds above": _above(list(one.by_seed.values()))}
            rows.append({**said, **own, **_value(one.value, one.replicates)})
        mean: dict[str, Any] = _mean(list(weighed.values())) if weighed else {}
        verdicts[name] = _verdict(claim, mean) if weighed else MISSING
        mean["verdict"] = verdicts[name]
        rows.append({**said, "target": MEAN, **mean})
    for row in rows:
        given = book.claims[row["claim"]].given
        if given and row.get("verdict", MISSING) != MISSING and verdicts[given] != HOLDS:
            row["verdict"] = MOOT
    return rows


def weigh(book: Book, name: str, claim: Claim, target: str) -> Weighed | None:
    """The sum of a claim on a target, over the seeds that all rows have; None where a row or a seed is missing.

    Raises:
        InputError: those of `common_cases`.
    """
    found = {row: _pool(book, target, term) for row, term in claim.terms.items()}
    pools = {row: pool for row, pool in found.items() if pool is not None}
    if len(pools) < len(found) or not (seeds := common_seeds(list(pools.values()))):
        return None
    pools = {row: pool.only(seeds) for row, pool in pools.items()}
    if claim.measure in PRECISIONS:
        return _of_boxes(claim, pools, (book.seed, name, target), book.draws)
    return _of_samples(claim, pools, generator_of(book.seed, name, target), book.draws)


def claim_table(rows: Sequence[Mapping[str, Any]], targets: Sequence[str]) -> Table:
    """For reading: a line per claim, targets beside."""
    lines: dict[str, dict[str, Any]] = {}
    for row in rows:
        line = lines.setdefault(row["claim"], {"claim": row["claim"], "sum": f"{_measure(row)}: {row['sum']}"})
        if row["target"] == MEAN:
            line |= {"verdict": row["verdict"], "mean": _words(row)}
            line |= {key: row.get(key) for key in ("seeds above", "targets above")}
        else:
            line[f"on {row['target']}"] = _words(row)
            line.setdefault("seeds", {})[row["seeds"]] = None
    for line in lines.values():
        line["seeds"] = "; ".join(line.get("seeds", ())) or None
    columns = {"claim": "claim", "verdict": "verdict", "mean": MEAN, **{f"on {name}": name for name in targets}}
    columns |= {"seeds above": "seeds above 0", "targets above": "targets above 0", "seeds": "seeds", "sum": "sum"}
    return Table(columns, list(lines.values()), CAPTION)


def draw_claims(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """A forest plot of the claims whose rows are there; small marks are the targets."""
    parts: dict[str, dict[str, float]] = {}
    for row in rows:
        if row["target"] != MEAN:
            parts.setdefault(row["claim"], {})[row["target"]] = row["value"]
    drawn = [row for row in rows if row["target"] == MEAN and row["verdict"] != MISSING]
    statements = [
        Statement(
            f"{row['claim']} ({_measure(row)})",
            row["value"],
            row["low"],
            row["high"],
            parts[row["claim"]],
            COLOURS[row["verdict"]],
        )
        for row in drawn
    ]
    found = {row["verdict"] for row in drawn}
    colours = {word: colour for word, colour in COLOURS.items() if word in found}
    return draw_forest(statements, colours, title="Claims: right of zero as claimed", xlabel="sum, mean over targets")


def _pool(book: Book, target: str, term: Term) -> Pool | None:
    pools = [pool for pool in book.pools.values() if (pool.target, pool.row) == (target, term.row)]
    own = [pool for pool in pools if term.prompts in (None, pool.prompts)]
    return next(iter(own or [pool for pool in pools if pool.blind]), None)


def _of_boxes(claim: Claim, pools: Mapping[str, Pool], key: tuple[int, str, str], draws: int) -> Weighed | None:
    """One number per seed, as average precision is of a whole test set; drawn anew where cells kept their matches."""
    known = {row: detections_of(pool) for row, pool in pools.items()}
    first = next(iter(pools.values()))
    signs = {claim.measure: 1.0} | ({} if claim.than is None else {claim.than: -1.0})
    cells = [one for found in known.values() for one in found]
    if len(cells) < len(pools) * len(first.seeds) or None in [one[name] for one in cells for name in signs]:
        return None
    terms = [(row, name, weight * sign) for row, weight in claim.rows.items() for name, sign in signs.items()]
    sums = [sum(weight * known[row][n][name] for row, name, weight in terms) for n in range(len(first.seeds))]
    patients = len({origin.patient for origin in first.origins.values()})
    rows, weights = [pools[row] for row in claim.rows], np.asarray(tuple(claim.rows.values()))
    parts = [
        sign * (weights @ np.stack(drawn))
        for name, sign in signs.items()  # the same draws for both measures
        if (drawn := drawn_precisions(rows, name, generator_of(*key), draws)) is not None
    ]
    replicates = np.sum(parts, axis=0) if len(parts) == len(signs) else None
    return Weighed(dict(zip(first.seeds, sums, strict=True)), float(np.mean(sums)), replicates, len(sums), patients)


def _of_samples(claim: Claim, pools: Mapping[str, Pool], generator: np.random.Generator, draws: int) -> Weighed | None:
    """The sum at every sample for which all rows have the measure."""
    first = next(iter(pools.values()))
    sets = common_cases([pools[row].cases for row in claim.rows])
    found = samples_beside(claim.measure, sets, first.origins)
    if not found:
        return None
    weights = tuple(claim.rows.values())
    sums = [sum(w * value for w, value in zip(weights, values, strict=True)) for values, _ in found]
    trainings, owners = [origin.training for _, origin in found], [origin.patient for _, origin in found]
    by_seed = group_means(sums, trainings)
    replicates = cluster_means(sums, owners, generator, trainings=trainings, draws=draws)
    return Weighed(by_seed, float(np.mean(sums)), replicates, len(sums), len(set(owners)))


def _mean(weighed: Sequence[Weighed]) -> dict[str, Any]:
    """The unweighted mean over targets; `of seeds` are those of each seed."""
    seeds = sorted({seed for one in weighed for seed in one.by_seed})
    by_seed = [float(np.mean([one.by_seed[seed] for one in weighed if seed in one.by_seed])) for seed in seeds]
    drawn = [one.replicates for one in weighed if one.replicates is not None]
    replicates = np.mean(drawn, axis=0) if len(drawn) == len(weighed) else None
    value = _value(float(np.mean([one.value for one in weighed])), replicates)
    counts = {"n": sum(one.n for one in weighed), "patients": sum(one.patients for one in weighed)}
    above = {"seeds above": _above(by_seed), "targets above": _above([one.value for one in weighed])}
    return {**value, **counts, **above, "of seeds": by_seed}


def _value(value: float, replicates: NDArray[np.float64] | None) -> dict[str, Any]:
    low, high = (None, None) if replicates is None else percentile_interval(replicates)
    return {"value": value, "low": low, "high": high}


def _verdict(claim: Claim, mean: Mapping[str, Any]) -> str:
    low, high = mean["low"], mean["high"]
    if low is None and claim.measure in PRECISIONS and len(mean["of seeds"]) > 1:
        low, high = min(mean["of seeds"]), max(mean["of seeds"])
    if low is None:
        return OPEN
    return HOLDS if low > -claim.margin else FAILS if high < -claim.margin else OPEN


def _above(values: Sequence[float]) -> str:
    return f"{sum(value > 0 for value in values)} of {len(values)}"


def _words(row: Mapping[str, Any]) -> str | None:
    return with_interval(row["value"], interval_of(row), " to ") if "value" in row else None


def _measure(row: Mapping[str, Any]) -> str:
    name = str(row["measure"])
    return NUMBERS.get(name, name)

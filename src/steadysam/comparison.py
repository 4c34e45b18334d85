"""Two sets of predictions on the same cases: paired tests over samples and over patients (spd.md 6.4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from steadysam.errors import InputError
from steadysam.metrics import CaseScores
from steadysam.statistics import PairedTest, cluster_bootstrap, group_means, holm, paired_test
from steadysam.summary import Origin, generator_of, origins, samples

COMPARED = ("dsc", "iou", "dsc_positive", "hd95_px", "assd_px", "hd95_penalised_px", "volume_dice")


@dataclass(frozen=True)
class MetricComparison:
    """One metric of two sets of predictions on the same cases: paired over samples and over patient means.

    `difference_interval` is the 95 % bootstrap interval of the mean difference a - b; patients are drawn and, where
    there are several, trainings.
    """

    over_samples: PairedTest
    over_patients: PairedTest
    difference_interval: tuple[float, float] | None


@dataclass(frozen=True)
class Comparison:
    """Two sets of predictions, paired: metric name -> result; `n_cases` are common to both."""

    n_cases: int
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    metrics: Mapping[str, MetricComparison]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able content."""
        return asdict(self)


def compare(
    a: Sequence[CaseScores],
    b: Sequence[CaseScores],
    patients: Mapping[str, str | Origin] | None = None,
    *,
    seed: int = 0,
    draws: int = 10_000,
) -> Comparison:
    """Paired comparison a - b over the cases and slices that both scored.

    A sample counts where the metric is defined for both (HD95: the intersection of the valid
    samples).

    Args:
        patients: as in `summarise`.

    Raises:
        InputError: those of `common_cases`.
    """
    pair = common_cases([a, b])
    shared = {case.name for case in pair[0]}
    of = origins(pair[0], patients)
    return Comparison(
        n_cases=len(shared),
        only_a=tuple(case.name for case in a if case.name not in shared),
        only_b=tuple(case.name for case in b if case.name not in shared),
        metrics={name: _compare_metric(name, pair, of, (seed, draws)) for name in COMPARED},
    )


def common_cases(sets: Sequence[Sequence[CaseScores]]) -> list[list[CaseScores]]:
    """Of each set the cases that all of them have, in the order of the first.

    Raises:
        InputError: `EVAL_EMPTY` if no case is common, `EVAL_SLICES` if a common case has different slices.
    """
    named = [{case.name: case for case in cases} for cases in sets]
    common = [name for name in named[0] if all(name in cases for cases in named)]
    if not common:
        raise InputError("EVAL_EMPTY", "the sets of predictions have no case in common")
    for name in common:
        if len({(len(cases[name].slices), cases[name].scored_shape) for cases in named}) > 1:
            raise InputError("EVAL_SLICES", f"case {name!r} was scored on different grids", fix="use one --size")
    return [[cases[name] for name in common] for cases in named]


def samples_beside(
    name: str, sets: Sequence[Sequence[CaseScores]], of: Mapping[str, Origin]
) -> list[tuple[tuple[float, ...], Origin]]:
    """Metric `name` of all sets where all of them have it, sample by sample, with the origin.

    Args:
        sets: as `common_cases` returns them.
    """
    found = []
    for at_one in zip(*(samples(name, cases, of) for cases in sets), strict=True):
        values = tuple(value for value, _ in at_one if value is not None)
        if len(values) == len(sets):
            found.append((values, at_one[0][1]))
    return found


def holm_over(comparisons: Mapping[str, Comparison], metric: str, unit: str = "patients") -> dict[str, float | None]:
    """Holm-adjusted p (ties dropped) of one metric over comparisons; `unit`: `patients` or `samples`."""
    tests = {name: comparison.metrics[metric] for name, comparison in comparisons.items()}
    return holm(
        {
            name: (test.over_patients if unit == "patients" else test.over_samples).p_wilcox
            for name, test in tests.items()
        }
    )


def _compare_metric(
    name: str,
    pair: Sequence[Sequence[CaseScores]],
    of: Mapping[str, Origin],
    bootstrap: tuple[int, int],
) -> MetricComparison:
    both = samples_beside(name, pair, of)
    ours, theirs = [values[0] for values, _ in both], [values[1] for values, _ in both]
    groups = [origin.patient for _, origin in both]
    mean_a, mean_b = group_means(ours, groups), group_means(theirs, groups)
    difference = [x - y for (x, y), _ in both]
    seed, draws = bootstrap
    return MetricComparison(
        over_samples=paired_test(ours, theirs),
        over_patients=paired_test(list(mean_a.values()), list(mean_b.values())),
        difference_interval=cluster_bootstrap(
            difference,
            groups,
            generator_of(seed, name, "difference"),
            trainings=[origin.training for _, origin in both],
            draws=draws,
        ),
    )

"""Two sets of predictions on the same cases: paired tests over samples and over patients (spd.md 6.4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from steadysam.errors import InputError
from steadysam.metrics import CaseScores
from steadysam.statistics import PairedTest, cluster_bootstrap, group_means, holm, paired_test
from steadysam.summary import generator_of, owners, samples

COMPARED = ("dsc", "iou", "dsc_positive", "hd95_px", "assd_px", "hd95_penalised_px", "volume_dice")


@dataclass(frozen=True)
class MetricComparison:
    """One metric of two sets of predictions on the same cases: paired over samples and over patient means.

    `difference_interval` is the 95 % bootstrap interval (patients drawn) of the mean difference a - b.
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
    patients: Mapping[str, str] | None = None,
    *,
    seed: int = 0,
    draws: int = 10_000,
) -> Comparison:
    """Paired comparison a - b over the cases and slices that both scored.

    A sample counts where the metric is defined for both (HD95: the intersection of the valid
    samples).

    Raises:
        InputError: `EVAL_EMPTY` if no case is common, `EVAL_SLICES` if a common case has different slices.
    """
    in_a, in_b = {case.name: case for case in a}, {case.name: case for case in b}
    common = [name for name in in_a if name in in_b]
    if not common:
        raise InputError("EVAL_EMPTY", "the two sets of predictions have no case in common")
    for name in common:
        if len(in_a[name].slices) != len(in_b[name].slices) or in_a[name].scored_shape != in_b[name].scored_shape:
            raise InputError("EVAL_SLICES", f"case {name!r} was scored on different grids", fix="use one --size")
    pair = [in_a[name] for name in common], [in_b[name] for name in common]
    owner = owners(pair[0], patients)
    return Comparison(
        n_cases=len(common),
        only_a=tuple(name for name in in_a if name not in in_b),
        only_b=tuple(name for name in in_b if name not in in_a),
        metrics={name: _compare_metric(name, *pair, owner, (seed, draws)) for name in COMPARED},
    )


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
    a: Sequence[CaseScores],
    b: Sequence[CaseScores],
    owner: Mapping[str, str],
    bootstrap: tuple[int, int],
) -> MetricComparison:
    both = zip(samples(name, a, owner), samples(name, b, owner), strict=True)
    pairs = [(x, y, patient) for (x, patient), (y, _) in both if x is not None and y is not None]
    ours, theirs = [x for x, _, _ in pairs], [y for _, y, _ in pairs]
    groups = [patient for _, _, patient in pairs]
    mean_a, mean_b = group_means(ours, groups), group_means(theirs, groups)
    difference = [x - y for x, y, _ in pairs]
    seed, draws = bootstrap
    return MetricComparison(
        over_samples=paired_test(ours, theirs),
        over_patients=paired_test(list(mean_a.values()), list(mean_b.values())),
        difference_interval=cluster_bootstrap(difference, groups, generator_of(seed, name, "difference"), draws=draws),
    )

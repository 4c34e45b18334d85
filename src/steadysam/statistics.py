"""Statistics over cases: patients as the unit, paired tests, sanity rules for tables (spd.md 6.4, 6.5).

Slices of one patient are not independent; every interval here draws whole patients.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from steadysam.errors import InputError

MAX_DICE_IOU_GAP = 3.0 - 2.0 * np.sqrt(2.0)  # of one slice, reached at Dice 2 - sqrt(2)
_TOLERANCE = 1e-9

Name = TypeVar("Name", bound=Hashable)


def group_means(values: Sequence[float], groups: Sequence[Name]) -> dict[Name, float]:
    """Mean of `values` (N,) within each of the N `groups`, in order of first appearance."""
    _same_length(values, groups)
    index, size = _numbered(groups)
    sums = np.bincount(index, weights=np.asarray(values, np.float64), minlength=size)
    counts = np.bincount(index, minlength=size)
    return {name: float(sums[n] / counts[n]) for n, name in enumerate(dict.fromkeys(groups))}


def cluster_bootstrap(
    values: Sequence[float],
    clusters: Sequence[str],
    generator: np.random.Generator,
    *,
    trainings: Sequence[Hashable] | None = None,
    of: str = "values",
    draws: int = 10_000,
    level: float = 0.95,
) -> tuple[float, float] | None:
    """Percentile interval of a mean when whole clusters (patients) are drawn with replacement, and whole trainings.

    Args:
        values, clusters, generator, trainings, of, draws: as in `cluster_means`.
        level: coverage of the interval.

    Returns:
        (low, high), or None with fewer than two clusters, where nothing is known about the spread.
    """
    means = cluster_means(values, clusters, generator, trainings=trainings, of=of, draws=draws)
    return None if means is None else percentile_interval(means, level)


def cluster_means(
    values: Sequence[float],
    clusters: Sequence[str],
    generator: np.random.Generator,
    *,
    trainings: Sequence[Hashable] | None = None,
    of: str = "values",
    draws: int = 10_000,
) -> NDArray[np.float64] | None:
    """Means of `values` with whole clusters and, where there are several, whole trainings drawn with replacement.

    Each of the two is drawn by itself: the pigeonhole bootstrap (Owen, Annals of Applied Statistics 1, 2007), which is
    rather a little wide than narrow.

    Args:
        values: (N,) one number per sample.
        clusters: (N,) patient of each sample.
        trainings: (N,) which training (seed) each sample is of; without it all are of one.
        of: `values` for the mean over all samples, `clusters` for the mean of the clusters' means.
        draws: bootstrap replicates.

    Returns:
        (draws,) means, or None with fewer than two clusters.
    """
    _same_length(values, clusters)
    column, wide = _numbered(clusters)
    row, high = _numbered(trainings if trainings is not None else [0] * len(values))
    _same_length(values, row)
    if wide < 2:
        return None
    cell = row * wide + column
    sums = np.bincount(cell, weights=np.asarray(values, np.float64), minlength=high * wide).reshape(high, wide)
    counts = np.bincount(cell, minlength=high * wide).reshape(high, wide)
    of_trainings, of_clusters = times_drawn(generator, draws, high, wide)
    totals, numbers = of_trainings @ sums, of_trainings @ counts
    if of == "clusters":
        there = numbers > 0
        totals, numbers = np.divide(totals, numbers, out=np.zeros_like(totals), where=there), there
    total, number = (totals * of_clusters).sum(axis=1), (numbers * of_clusters).sum(axis=1)
    # only where most patients lack most trainings can a draw be without a sample
    return np.divide(total, number, out=np.full(draws, float(np.mean(values))), where=number > 0)


def times_drawn(
    generator: np.random.Generator, draws: int, trainings: int, clusters: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How often each training, (draws, trainings), and each cluster, (draws, clusters), is drawn with replacement.

    As many are drawn as there are; a single training is always there once.
    """
    found = []
    for size in (clusters, trainings):  # clusters first: with a single training they are drawn as if there were none
        drawn = generator.integers(0, size, (draws, size)) + np.arange(draws)[:, None] * size
        found.append(np.bincount(drawn.ravel(), minlength=draws * size).reshape(draws, size).astype(np.float64))
    return found[1], found[0]


def percentile_interval(replicates: NDArray[np.float64], level: float = 0.95) -> tuple[float, float]:
    """The middle `level` of bootstrap replicates (draws,)."""
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(replicates, [tail, 100 - tail])
    return float(low), float(high)


@dataclass(frozen=True)
class PairedTest:
    """Two-sided Wilcoxon signed-rank test of paired samples.

    Args:
        n_pairs: pairs that came.
        n_ties: pairs without difference; `wilcox` drops them.
        mean_difference: mean of a - b over all pairs.
        p_wilcox: p with ties dropped, over `n_used` pairs; None if none is left.
        p_pratt: p with ties ranked (Pratt), the check; None if all pairs are ties.
    """

    n_pairs: int
    n_ties: int
    mean_difference: float | None
    p_wilcox: float | None
    p_pratt: float | None

    @property
    def n_used(self) -> int:
        """Pairs that the `wilcox` form ranks."""
        return self.n_pairs - self.n_ties


def paired_test(a: Sequence[float], b: Sequence[float]) -> PairedTest:
    """Compare (N,) paired numbers; ties are treated in two ways, because slice scores tie often (1 and 1).

    Differences below 1e-12 are ties: they come from the order of a sum, not from the masks.
    """
    _same_length(a, b)
    difference = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    difference[np.abs(difference) < 1e-12] = 0.0
    n_ties = int((difference == 0).sum())
    mean = float(difference.mean()) if len(difference) else None
    if n_ties == len(difference):
        return PairedTest(len(difference), n_ties, mean, None, None)
    return PairedTest(len(difference), n_ties, mean, _wilcoxon(difference, "wilcox"), _wilcoxon(difference, "pratt"))


def holm(p_values: Mapping[str, float | None]) -> dict[str, float | None]:
    """Holm's step-down adjustment over a family of tests; None (no test) stays None and does not count."""
    present = sorted(((p, name) for name, p in p_values.items() if p is not None), key=lambda item: item[0])
    adjusted: dict[str, float | None] = dict.fromkeys(p_values)
    running = 0.0
    for rank, (p, name) in enumerate(present):
        running = max(running, min(1.0, p * (len(present) - rank)))
        adjusted[name] = running
    return adjusted


def table_violations(mean_dice: float, mean_iou: float, positive_share: float | None = None) -> list[str]:
    """What cannot be true of per-slice means, in words; [] for a possible row (spd.md 6.5). In 0-1.

    Args:
        positive_share: share of slices on which the target is present or something was predicted; only
            those can have a gap between Dice and IoU.
    """
    found = []
    gap = mean_dice - mean_iou
    lowest_iou = mean_dice / (2 - mean_dice)
    if mean_iou < lowest_iou - _TOLERANCE:
        found.append(f"mean IoU {mean_iou:.4f} is below Dice/(2 - Dice) = {lowest_iou:.4f} (Jensen)")
    if mean_iou > mean_dice + _TOLERANCE:
        found.append(f"mean IoU {mean_iou:.4f} is above mean Dice {mean_dice:.4f}")
    if gap > MAX_DICE_IOU_GAP + _TOLERANCE:
        found.append(f"Dice - IoU = {gap:.4f} is above 3 - 2*sqrt(2) = {MAX_DICE_IOU_GAP:.4f}")
    if positive_share is not None and gap > MAX_DICE_IOU_GAP * positive_share + _TOLERANCE:
        found.append(f"Dice - IoU = {gap:.4f} needs more than the {positive_share:.1%} non-empty slices there are")
    return found


def _wilcoxon(difference: NDArray[np.float64], zero_method: str) -> float:
    from scipy.stats import wilcoxon

    # the normal approximation is chosen here when zeros are ranked: an exact table does not exist for them
    zeros = bool((difference == 0).any())
    method = "approx" if zeros and zero_method == "pratt" else "auto"
    if zero_method == "wilcox":
        difference = difference[difference != 0]
    result = wilcoxon(difference, zero_method=zero_method, alternative="two-sided", method=method)
    return float(result.pvalue)  # type: ignore[union-attr]


def _numbered(names: Sequence[Hashable]) -> tuple[NDArray[np.int64], int]:
    """Numbers in order of first appearance, and how many there are."""
    position = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return np.array([position[name] for name in names], dtype=np.int64), len(position)


def _same_length(a: Sized, b: Sized) -> None:
    if len(a) != len(b):
        raise InputError("STAT_LENGTH", "paired lists differ in length", seen=len(a), expected=len(b))

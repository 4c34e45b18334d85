"""Contextual prompt distillation (CPD): a pure function without a network and without a ground truth.

Equations of the paper, with S_t the saliency of slice t and P_t its noisy prompts:
    (4) local validation   keep p of P_t where S_t(p) > tau
    (5) candidates         union over the window t-n..t+n of the p of P_j with S_j(p) > tau
    (6) context            keep candidates with S_t(p) > tau
    (7) consensus          local union context
Points keep their (x, y) when they move to another slice; neighbours outside the volume are skipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from steadysam.methods.neighbours import gather_neighbours as gather_neighbours
from steadysam.types import Decision, SlicePoints

Sampling = Literal["nearest", "bilinear"]
EmptyPolicy = Literal["no_prompt", "empty_mask", "saliency_peak", "raw"]

_PEAK = "saliency-peak"  # the id of a point that no prompt file holds


@dataclass(frozen=True)
class Rule:
    """The rule of distillation.

    Args:
        tau: a point is salient where S(p) > tau (strict).
        n: neighbours on each side; 0 is "local only".
        sampling: how S is read between pixel centres.
        top: keep at most this many consensus points per slice, by S_t(p); 0 keeps all.
        empty: what a slice with an empty consensus gets (spd.md 3.5).
    """

    tau: float = 0.5
    n: int = 2
    sampling: Sampling = "nearest"
    top: int = 0
    empty: EmptyPolicy = "no_prompt"


@dataclass(frozen=True)
class Distilled:
    """Consensus prompts of every slice, and a decision with its evidence for every prompt and every added point.

    Consensus points lie on pixel centres (duplicates are merged after rounding), sorted by column and row.
    """

    points: tuple[SlicePoints, ...]
    decisions: tuple[Decision, ...]
    empty_slices: tuple[int, ...]


def read_saliency(saliency: NDArray[np.float32], xy: NDArray[np.float32], sampling: Sampling) -> NDArray[np.float32]:
    """(H, W) map and (K, 2) points in its pixels -> (K,) values; points beyond the edge read the edge pixel."""
    height, width = saliency.shape
    x, y = np.asarray(xy, np.float64).reshape(-1, 2).T
    if sampling == "nearest":
        column = np.clip(np.floor(x + 0.5), 0, width - 1).astype(int)
        row = np.clip(np.floor(y + 0.5), 0, height - 1).astype(int)
        return saliency[row, column].astype(np.float32)
    x, y = np.clip(x, 0, width - 1), np.clip(y, 0, height - 1)
    x0, y0 = np.minimum(x.astype(int), max(width - 2, 0)), np.minimum(y.astype(int), max(height - 2, 0))
    x1, y1 = np.minimum(x0 + 1, width - 1), np.minimum(y0 + 1, height - 1)
    fx, fy = x - x0, y - y0
    top = saliency[y0, x0] * (1 - fx) + saliency[y0, x1] * fx
    bottom = saliency[y1, x0] * (1 - fx) + saliency[y1, x1] * fx
    return (top * (1 - fy) + bottom * fy).astype(np.float32)


def distill(points: Sequence[SlicePoints], saliency: NDArray[np.float32], rule: Rule) -> Distilled:
    """Noisy prompts -> consensus prompts (Eqs. 4-7), slice by slice, with a reason for each.

    Args:
        points: D entries, in pixels of the saliency maps.
        saliency: (D, H, W) in [0, 1].
        rule: threshold, window, and what to do with slices that end up empty.

    Negative points are not validated (the paper has none): they stay on their own slice.
    """
    depth = len(points)
    # saliency of the points of slice j read on slice t, for all t in j's window
    read = {
        (j, t): read_saliency(saliency[t], points[j].xy, rule.sampling)
        for j in range(depth)
        for t in range(max(0, j - rule.n), min(depth, j + rule.n + 1))
    }
    consensus: list[SlicePoints] = []
    decisions: list[Decision] = []
    empty: list[int] = []
    for t in range(depth):
        window = [j for j in range(t - rule.n, t + rule.n + 1) if 0 <= j < depth]
        kept, made = _consensus_of_slice(t, window, points, read, rule, (saliency.shape[1], saliency.shape[2]))
        if not kept.positive.any():
            empty.append(t)
            kept, made = _fill_empty(t, kept, made, points[t], saliency[t], rule)
        consensus.append(kept)
        decisions.extend(made)
    return Distilled(tuple(consensus), tuple(decisions), tuple(empty))


def _consensus_of_slice(
    t: int,
    window: list[int],
    points: Sequence[SlicePoints],
    read: dict[tuple[int, int], NDArray[np.float32]],
    rule: Rule,
    shape: tuple[int, int],
) -> tuple[SlicePoints, list[Decision]]:
    """Consensus points of slice t (own first, then neighbours from near to far) and what was decided about each."""
    rows: list[tuple[tuple[int, int], bool, str, float]] = []
    decisions: list[Decision] = []
    taken: dict[tuple[int, int], str] = {}  # the union of sets: one point per pixel

    for j in sorted(window, key=lambda slice_index: (abs(slice_index - t), slice_index)):
        own, here = read[j, j], read[j, t]
        for k, name in enumerate(points[j].ids):
            xy = points[j].xy[k]
            evidence = tuple((w, float(read[j, w][k])) for w in window if (j, w) in read)
            positive = bool(points[j].positive[k])
            verdict, reason = _judge(t, j, positive, float(own[k]), float(here[k]), rule.tau)
            pixel = _pixel(xy, shape)
            if verdict in ("accepted", "added") and positive:
                if pixel in taken:
                    if j != t:
                        continue
                    reason = f"same pixel as {taken[pixel]}: merged"
                else:
                    taken[pixel] = name
                    rows.append((pixel, True, name, float(here[k])))
            elif verdict == "accepted":
                rows.append((pixel, False, name, 1.0))
            if verdict != "none":
                place = (float(xy[0]), float(xy[1]))
                decisions.append(Decision(name, t, j, verdict, reason, float(own[k]), float(here[k]), evidence, place))
    if rule.top:
        best = set(sorted((-row[3], row[0]) for row in rows if row[1])[: rule.top])
        rows = [row for row in rows if not row[1] or (-row[3], row[0]) in best]
    rows.sort()  # a set has no order: the decoder sees the same rows whatever the order of the file
    xy = np.array([row[0] for row in rows], np.float32).reshape(-1, 2)
    return SlicePoints(xy, np.array([row[1] for row in rows], bool), tuple(row[2] for row in rows)), decisions


def _pixel(xy: NDArray[np.float32], shape: tuple[int, int]) -> tuple[int, int]:
    """The (column, row) of the pixel that holds a point, clamped to the map."""
    column, row = np.floor(np.asarray(xy, np.float64) + 0.5).astype(int)
    return min(max(int(column), 0), shape[1] - 1), min(max(int(row), 0), shape[0] - 1)


def _judge(t: int, j: int, positive: bool, own: float, here: float, tau: float) -> tuple:
    """Verdict and reason for a point of slice j on slice t; verdict `none` for neighbours' points that stay away."""
    if not positive:
        return ("accepted", "negative point: passed on as given") if j == t else ("none", "")
    if j == t:
        if own > tau:
            return "accepted", f"saliency {own:.2f} > {tau:g} on its own slice"
        return "rejected", f"saliency {own:.2f} <= {tau:g} on its own slice"
    if own > tau and here > tau:
        return "added", f"from slice {j}: saliency {own:.2f} there and {here:.2f} here, both > {tau:g}"
    return "none", ""


def _fill_empty(
    t: int,
    kept: SlicePoints,
    made: list[Decision],
    raw: SlicePoints,
    saliency: NDArray[np.float32],
    rule: Rule,
) -> tuple[SlicePoints, list[Decision]]:
    """What a slice without positive consensus points gets, by policy (`empty_mask` acts after decoding)."""
    if rule.empty == "raw":
        words = "; used all the same: nothing else survived on this slice"
        return raw, [replace(d, reason=d.reason + words) if d.verdict == "rejected" else d for d in made]
    if rule.empty == "saliency_peak" and float(saliency.max()) > rule.tau:
        row, column = (int(i) for i in np.unravel_index(int(saliency.argmax()), saliency.shape))
        filled = SlicePoints(
            np.concatenate([kept.xy, np.array([[column, row]], np.float32)]),
            np.concatenate([kept.positive, np.ones(1, bool)]),
            (*kept.ids, _PEAK),
        )
        value = float(saliency[row, column])
        reason = f"no prompt survived on this slice: the peak of its saliency, {value:.2f}"
        return filled, [*made, Decision(_PEAK, t, t, "added", reason, value, value, ((t, value),), (column, row))]
    return kept, made

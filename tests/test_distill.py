"""spd.md section 8, checks 4, 5 and 13: contextual prompt distillation by hand and by property."""

import inspect

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steadysam.methods.spd.distill import Rule, distill, gather_neighbours, read_saliency
from steadysam.types import SlicePoints


def points(*xy, start=0, positive=None):
    sign = np.ones(len(xy), bool) if positive is None else np.array(positive)
    return SlicePoints(np.array(xy, np.float32).reshape(-1, 2), sign, tuple(f"p{start + i}" for i in range(len(xy))))


def kept(result, t):
    return {tuple(map(int, xy)) for xy in result.points[t].xy}


@pytest.fixture
def saliency():
    """D = 3 on a 4 x 9 grid (H != W): an x/y swap would read another value or leave the map."""
    maps = np.zeros((3, 4, 9), np.float32)
    maps[0, 1, 7] = 0.9  # (x 7, y 1): salient on slices 0 and 1
    maps[1, 1, 7] = 0.8
    maps[0, 2, 3] = 0.9  # (3, 2): salient on slice 0 only
    maps[1, 3, 8] = 0.5  # (8, 3): exactly tau
    maps[2, 0, 5] = 0.7  # (5, 0): salient on slices 1 and 2
    maps[1, 0, 5] = 0.6
    return maps


@pytest.fixture
def noisy():
    return [points((7, 1), (3, 2)), points((8, 3), (0, 0), start=10), points((5, 0), (7, 1), start=20)]


def test_by_hand(saliency, noisy):
    result = distill(noisy, saliency, Rule(tau=0.5, n=2))
    assert kept(result, 0) == {(7, 1), (3, 2)}  # both local; (5, 0) of slice 2 is not salient here
    assert kept(result, 1) == {(7, 1), (5, 0)}  # none of its own; (3, 2) is salient only on its own slice
    assert kept(result, 2) == {(5, 0)}
    assert result.empty_slices == ()


def test_a_point_at_tau_is_rejected_with_its_evidence(saliency, noisy):
    result = distill(noisy, saliency, Rule(tau=0.5, n=1))
    decision = next(d for d in result.decisions if d.prompt_id == "p10" and d.slice == 1)
    assert decision.verdict == "rejected"
    assert decision.saliency_own == pytest.approx(0.5)
    assert "0.50 <= 0.5" in decision.reason
    assert [s for s, _ in decision.neighbours] == [0, 1, 2]


def test_added_points_name_the_slice_they_come_from(saliency, noisy):
    result = distill(noisy, saliency, Rule())
    added = [d for d in result.decisions if d.verdict == "added" and d.slice == 1]
    assert {(d.prompt_id, d.from_slice) for d in added} == {("p0", 0), ("p20", 2)}
    assert all(min(d.saliency_own or 0, d.saliency_here or 0) > 0.5 for d in added)


def test_ends_of_the_volume_use_existing_neighbours_only():
    """A point on the last slice must not reach slice 0 by wrapping, nor count twice by clamping."""
    maps = np.full((3, 4, 9), 0.9, np.float32)
    result = distill([points(), points(), points((2, 1))], maps, Rule(n=1))
    assert [len(p) for p in result.points] == [0, 1, 1]
    assert result.empty_slices == (0,)


def test_duplicates_are_merged_after_rounding():
    maps = np.full((2, 4, 9), 0.9, np.float32)
    result = distill([points((2.2, 1.1), (1.8, 0.9)), points((2, 1), start=5)], maps, Rule(n=1))
    assert [len(p) for p in result.points] == [1, 1]


def test_negative_points_stay_on_their_own_slice_unvalidated():
    maps = np.zeros((3, 4, 9), np.float32)
    maps[1, 1, 1] = 0.9
    result = distill([points(), points((1, 1), (5, 2), positive=[True, False]), points()], maps, Rule(n=1))
    assert [list(p.positive) for p in result.points] == [[], [True, False], []]


@pytest.mark.parametrize(
    "policy, expected",
    [("no_prompt", set()), ("empty_mask", set()), ("saliency_peak", {(3, 2)}), ("raw", {(8, 3)})],
)
def test_empty_policies(policy, expected):
    maps = np.zeros((1, 4, 9), np.float32)
    maps[0, 2, 3] = 0.8
    result = distill([points((8, 3))], maps, Rule(empty=policy))
    assert kept(result, 0) == expected
    assert result.empty_slices == (0,)


def test_points_that_a_policy_brings_are_explained():
    maps = np.zeros((1, 4, 9), np.float32)
    maps[0, 2, 3] = 0.8
    peak = distill([points((8, 3))], maps, Rule(empty="saliency_peak")).decisions[-1]
    assert (peak.prompt_id, peak.verdict, peak.xy) == ("saliency-peak", "added", (3, 2))
    (raw,) = distill([points((8, 3))], maps, Rule(empty="raw")).decisions
    assert raw.verdict == "rejected"
    assert "used all the same" in raw.reason


def test_saliency_peak_below_tau_gives_no_point():
    result = distill([points((8, 3))], np.full((1, 4, 9), 0.4, np.float32), Rule(empty="saliency_peak"))
    assert len(result.points[0]) == 0


def test_top_keeps_the_most_salient():
    maps = np.zeros((1, 4, 9), np.float32)
    maps[0, 0] = np.linspace(0.55, 0.95, 9)
    result = distill([points((1, 0), (8, 0), (4, 0))], maps, Rule(top=2))
    assert kept(result, 0) == {(8, 0), (4, 0)}


def test_bilinear_reading_between_pixels_and_clamped_at_the_edge():
    s = np.array([[0.0, 1.0], [0.0, 1.0]], np.float32)
    assert read_saliency(s, np.array([[0.25, 0.5]], np.float32), "bilinear")[0] == pytest.approx(0.25)
    assert read_saliency(s, np.array([[9.0, 9.0]], np.float32), "nearest")[0] == 1.0
    assert read_saliency(s, np.array([[0.5, 0.0]], np.float32), "nearest")[0] == 1.0  # a border: the upper pixel


def test_gather_neighbours_takes_everything_from_the_window():
    gathered = gather_neighbours([points((1, 1)), points((2, 2), start=1), points((3, 3), start=2)], 1)
    assert [len(p) for p in gathered] == [2, 3, 2]


def test_no_ground_truth_in_the_signature():
    assert set(inspect.signature(distill).parameters) == {"points", "saliency", "rule"}


@st.composite
def cases(draw):
    seed, depth = draw(st.integers(0, 2**32 - 1)), draw(st.integers(1, 6))
    rng = np.random.default_rng(seed)
    maps = rng.random((depth, 5, 11)).astype(np.float32)
    noisy = []
    for t in range(depth):
        count = int(rng.integers(0, 6))
        xy = rng.random((count, 2)) * [11, 5] - 0.5
        noisy.append(SlicePoints(xy.astype(np.float32), np.ones(count, bool), tuple(f"{t}-{i}" for i in range(count))))
    return noisy, maps, rng


@settings(max_examples=60, deadline=None)
@given(cases(), st.integers(0, 3), st.floats(0.05, 0.9))
def test_properties(case, n, tau):
    noisy, maps, rng = case
    depth = len(noisy)
    local = distill(noisy, maps, Rule(tau, 0))
    here = distill(noisy, maps, Rule(tau, n))
    wider = distill(noisy, maps, Rule(tau, n + 1))
    stricter = distill(noisy, maps, Rule(min(tau + 0.1, 1.0), n))
    shuffled = [p.only(rng.permutation(len(p))) if len(p) else p for p in noisy]
    again = distill(shuffled, maps, Rule(tau, n))
    for t in range(depth):
        own = {tuple(np.clip(np.floor(xy + 0.5), 0, [10, 4]).astype(int)) for xy in noisy[t].xy}
        assert kept(local, t) <= own
        assert kept(local, t) <= kept(here, t) <= kept(wider, t)
        assert kept(stricter, t) <= kept(here, t)
        assert np.array_equal(here.points[t].xy, again.points[t].xy)
    own_decisions = [d for d in here.decisions if d.slice == d.from_slice]
    assert len(own_decisions) == sum(map(len, noisy))

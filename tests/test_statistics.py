"""Bootstrap by patient, Wilcoxon, Holm, and the sanity rules of tables."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steadysam.errors import InputError
from steadysam.statistics import (
    MAX_DICE_IOU_GAP,
    cluster_bootstrap,
    cluster_means,
    group_means,
    holm,
    paired_test,
    table_violations,
)

DICE = st.floats(0, 1)


def test_group_means_weigh_patients_equally():
    assert group_means([1, 0, 0, 0.5], ["b", "a", "a", "b"]) == {"b": 0.75, "a": 0.0}


def test_lists_must_pair():
    with pytest.raises(InputError) as caught:
        group_means([1.0], ["a", "b"])
    assert caught.value.code == "STAT_LENGTH"


def test_bootstrap_is_seeded_and_brackets_the_mean():
    generator = np.random.default_rng(1)
    values = generator.normal(0.7, 0.1, 200).tolist()
    patients = [f"p{n // 10}" for n in range(200)]
    first = cluster_bootstrap(values, patients, np.random.default_rng(5))
    assert first == cluster_bootstrap(values, patients, np.random.default_rng(5))
    assert first is not None
    assert first[0] < np.mean(values) < first[1]


def test_bootstrap_by_patient_is_wider_where_slices_repeat_each_other():
    patient_values = np.random.default_rng(2).random(12)
    values = np.repeat(patient_values, 30).tolist()
    patients = [f"p{n // 30}" for n in range(360)]
    by_patient = cluster_bootstrap(values, patients, np.random.default_rng(0))
    by_slice = cluster_bootstrap(values, [str(n) for n in range(360)], np.random.default_rng(0))
    assert by_patient is not None
    assert by_slice is not None
    assert by_patient[1] - by_patient[0] > 3 * (by_slice[1] - by_slice[0])


def test_bootstrap_covers_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(3)
    hits = 0
    for _ in range(150):
        centre = generator.normal(0, 1, 25)
        values = np.repeat(centre, 4) + generator.normal(0, 0.1, 100)
        interval = cluster_bootstrap(values.tolist(), [str(n // 4) for n in range(100)], generator, draws=400)
        assert interval is not None
        hits += interval[0] <= 0 <= interval[1]
    assert 0.88 <= hits / 150 <= 0.99


def test_trainings_and_patients_are_drawn_by_themselves():
    """Of samples that are a share of each the variance is known: that of each share, over how many are drawn."""
    rows, columns = np.array([0.0, 3.0, 9.0]), np.array([0.0, 1.0, 4.0, 20.0])
    samples = [(a + b, seed, f"p{c}") for seed, a in enumerate(rows) for c, b in enumerate(columns)]
    values, seeds, patients = zip(*samples, strict=True)
    for of in ("values", "clusters"):  # the same where all patients have as many samples
        found = cluster_means(values, patients, np.random.default_rng(0), trainings=seeds, of=of, draws=40_000)
        assert found is not None
        assert found.mean() == pytest.approx(np.mean(values), rel=0.02)
        assert found.var() == pytest.approx(rows.var() / 3 + columns.var() / 4, rel=0.03)


def test_a_single_training_is_not_drawn():
    values, patients = [0.1, 0.5, 0.9, 0.2], ["a", "b", "b", "c"]
    for of in ("values", "clusters"):
        one = cluster_means(values, patients, np.random.default_rng(1), trainings=[7] * 4, of=of, draws=50)
        none = cluster_means(values, patients, np.random.default_rng(1), of=of, draws=50)
        assert one is not None
        assert np.array_equal(one, none)  # pyright: ignore
    assert cluster_means([0.1, 0.2], ["a", "a"], np.random.default_rng(1), trainings=[0, 1]) is None


@pytest.mark.parametrize("of", ["values", "clusters"])
def test_samples_that_are_missing_weigh_nothing_when_drawn(of):
    values, seeds, patients = [1.0, 1.0, 1.0], [0, 0, 1], ["a", "b", "b"]  # seed 1 has no "a"
    found = cluster_means(values, patients, np.random.default_rng(2), trainings=seeds, of=of, draws=200)
    assert found is not None
    assert np.all(found == 1.0)


def test_bootstrap_means_of_clusters_differ_from_pooled_means():
    values, patients = [1.0] + [0.0] * 9 + [1.0], ["a"] + ["b"] * 9 + ["c"]
    clusters = cluster_bootstrap(values, patients, np.random.default_rng(0), of="clusters")
    assert clusters is not None
    assert clusters[1] == 1.0
    assert cluster_bootstrap([1.0, 0.0], ["a", "a"], np.random.default_rng(0)) is None


def test_wilcoxon_by_hand():
    # differences 1, 2, 3, 4, 5: the smallest rank sum is 0, two-sided exact p = 2 / 2^5
    result = paired_test([1, 2, 3, 4, 5], [0, 0, 0, 0, 0])
    assert (result.n_pairs, result.n_ties, result.n_used) == (5, 0, 5)
    assert result.p_wilcox == pytest.approx(2 / 32)
    assert result.mean_difference == pytest.approx(3.0)


def test_ties_are_dropped_and_counted():
    a, b = [1.0] * 40 + [0.9, 0.8, 0.7, 0.6, 0.5], [1.0] * 40 + [0.1, 0.1, 0.1, 0.1, 0.1]
    result = paired_test(a, b)
    assert (result.n_pairs, result.n_ties, result.n_used) == (45, 40, 5)
    assert result.p_wilcox == pytest.approx(2 / 32)
    assert result.p_pratt is not None
    assert result.p_pratt < 0.05
    assert paired_test(a, a).p_wilcox is None
    assert paired_test([0.1 + 0.2], [0.3]).n_ties == 1
    assert paired_test([], []).mean_difference is None


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=12))
def test_paired_test_is_two_sided(pairs):
    a, b = [x for x, _ in pairs], [y for _, y in pairs]
    forth, back = paired_test(a, b), paired_test(b, a)
    assert forth.n_ties == back.n_ties
    for one, other in ((forth.p_wilcox, back.p_wilcox), (forth.p_pratt, back.p_pratt)):
        assert one == pytest.approx(other)
        assert one is None or 0 <= one <= 1 + 1e-12


def test_holm_by_hand():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": None}) == {
        "a": pytest.approx(0.03),
        "b": pytest.approx(0.06),
        "c": pytest.approx(0.06),
        "d": None,
    }


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.text(max_size=3), st.floats(0, 1), max_size=8))
def test_holm_never_lowers_and_keeps_the_order(p_values):
    adjusted = holm(p_values)
    assert list(adjusted) == list(p_values)
    ordered = sorted(p_values, key=lambda name: p_values[name])
    values = [adjusted[name] for name in ordered]
    assert all(v is not None and p_values[n] <= v <= 1 for n, v in zip(ordered, values, strict=True))
    assert values == sorted(values, key=float)  # type: ignore[arg-type]


@settings(max_examples=40, deadline=None)
@given(st.lists(DICE, min_size=1, max_size=30))
def test_true_means_break_no_rule(dices):
    ious = [d / (2 - d) for d in dices]
    marked = sum(d < 1 for d in dices) / len(dices)
    assert table_violations(float(np.mean(dices)), float(np.mean(ious)), marked) == []


def test_the_papers_impossible_row_is_found():
    # SAM-Refiner on Scar: DSC 58.45, IoU 38.33
    found = table_violations(0.5845, 0.3833)
    assert len(found) == 2
    assert "Jensen" in found[0]
    assert "0.1716" in found[1]
    assert 0.17155 < MAX_DICE_IOU_GAP < 0.17165
    assert table_violations(0.6880, 0.6852) == []
    assert table_violations(0.5, 0.6)
    assert table_violations(0.8, 0.7, positive_share=0.1)

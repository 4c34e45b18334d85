"""Average precision on examples small enough to work out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from steadysam.detection.average_precision import (
    FoundBoxes,
    average_precision,
    average_precision_summary,
    match_boxes,
    precision_draws,
    precisions,
    redrawn_precision,
)
from steadysam.detection.boxes import Detections

TRUE = np.array([[0.0, 0, 10, 10], [20.0, 0, 30, 10]])
MISS = [50.0, 50, 60, 60]


def found(*rows) -> FoundBoxes:
    """Boxes with scores, from (box, score) pairs."""
    return FoundBoxes(
        np.array([box for box, _ in rows]).reshape(-1, 4), np.array([score for _, score in rows], np.float64)
    )


def test_hit_miss_hit():
    # precision 1 up to recall 0.5 (51 levels), then 2/3 up to recall 1 (50 levels)
    one = found((TRUE[1], 0.7), (MISS, 0.8), (TRUE[0], 0.9))
    assert average_precision([one], [TRUE], 0.5) == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_perfect_partial_and_none():
    both = found((TRUE[0], 0.2), (TRUE[1], 0.1))
    assert average_precision([both], [TRUE]) == 1
    assert average_precision([found((TRUE[0], 0.2))], [TRUE]) == pytest.approx(51 / 101)
    assert average_precision([found()], [TRUE]) == 0
    assert average_precision([found((MISS, 0.9))], [TRUE]) == 0


def test_a_true_box_is_found_once():
    # the second box on the same object is a miss: precision 1, 1/2, 2/3
    one = found((TRUE[0], 0.9), (TRUE[0], 0.8), (TRUE[1], 0.7))
    assert average_precision([one], [TRUE]) == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_images_are_pooled_and_empty_images_count():
    images = [found((TRUE[0], 0.6)), found((MISS, 0.8)), found()]
    truth = [TRUE[:1], np.zeros((0, 4)), np.zeros((0, 4))]
    assert average_precision(images, truth) == pytest.approx(0.5)  # the false box elsewhere scores higher
    images[1] = found((MISS, 0.4))
    assert average_precision(images, truth) == 1


def test_no_true_box_at_all():
    assert math.isnan(average_precision([found((MISS, 0.9))], [np.zeros((0, 4))]))
    assert all(math.isnan(value) for value in average_precision_summary([], []).values())


def test_summary_over_overlaps():
    # IoU 0.8, exactly at one of the thresholds, which counts as a match: 0.50 to 0.80 are seven of ten
    one = found(([0.0, 0, 10, 8], 0.9))
    assert average_precision_summary([one], [TRUE[:1]]) == pytest.approx({"AP50": 1, "AP75": 1, "AP": 0.7})
    low = found(([0.0, 0, 10, 6.2], 0.9))
    assert average_precision_summary([low], [TRUE[:1]]) == pytest.approx({"AP50": 1, "AP75": 0, "AP": 0.3})


def test_best_overlap_is_taken():
    # the first box reaches both; it takes the second, which it overlaps more, and leaves the first to the next
    truth = np.array([[0.0, 0, 10, 10], [2.0, 0, 12, 10]])
    one = found(([2.0, 0, 12, 10], 0.9), ([0.0, 0, 10, 10], 0.8))
    assert average_precision([one], [truth], 0.6) == 1


def test_only_the_best_of_an_image_count():
    many = found(*[(MISS, 0.9 - i / 1000) for i in range(100)], (TRUE[0], 0.1))
    assert average_precision([many], [TRUE[:1]]) == 0
    assert average_precision([many], [TRUE[:1]], most=101) == pytest.approx(1 / 101)


def test_detections_are_taken_as_they_are():
    one = Detections(torch.tensor(TRUE).float(), torch.tensor([0.2, 0.1]), torch.tensor([0, 0]))
    assert average_precision([one], [TRUE]) == 1
    with pytest.raises(ValueError, match="1 images"):
        average_precision([one], [])


def some_images(generator, count=7):
    """Boxes near the true ones and one far from them; images without a true box among them."""
    images, truth = [], []
    for n in range(count):
        true = TRUE[: (2, 1, 0)[n % 3]]
        near = [(box + generator.uniform(-2, 2, 4), generator.random()) for box in TRUE[:2]]
        images.append(found(*near, (MISS, generator.random())))
        truth.append(true)
    return images, truth


@pytest.mark.parametrize("together", [1, 50, 10**6])
def test_drawn_sets_are_those_in_which_images_are_repeated(together, monkeypatch):
    monkeypatch.setattr("steadysam.detection.average_precision._TOGETHER", together)
    generator = np.random.default_rng(0)
    images, truth = some_images(generator)
    groups = [match_boxes(images[n : n + 1], truth[n : n + 1]) for n in range(len(images))]
    times = generator.integers(0, 4, (400, len(images))).astype(float)
    times[0] = 1
    drawn = precision_draws(groups, times)
    for n, row in enumerate(times.astype(int)):
        again = [[one for one, count in zip(part, row, strict=True) for _ in range(count)] for part in (images, truth)]
        expected = average_precision_summary(*again)
        assert {name: values[n] for name, values in drawn.items()} == pytest.approx(expected, nan_ok=True)
    assert len({round(value, 6) for value in drawn["AP"]}) > 50


def test_a_group_of_several_images_is_the_sum_of_its_images():
    images, truth = some_images(np.random.default_rng(1))
    groups = [match_boxes(images[:3], truth[:3]), match_boxes(images[3:], truth[3:])]
    whole = {name: values[0] for name, values in precision_draws(groups, np.ones((1, 2))).items()}
    assert whole == pytest.approx(average_precision_summary(images, truth))


def test_draws_without_a_true_box_or_without_a_found_one():
    nothing, missed = match_boxes([found((MISS, 0.9))], [TRUE[:0]]), match_boxes([found()], [TRUE])
    drawn = precision_draws([nothing, missed], np.array([[1.0, 0], [0, 2], [1, 1]]))["AP"]
    assert math.isnan(drawn[0])
    assert drawn[1:].tolist() == [0, 0]


def test_a_redrawn_set_without_a_true_box_takes_the_value_of_all():
    nothing = match_boxes([found((MISS, 0.9))], [TRUE[:0]])
    half, full = (match_boxes([found(*((box, 0.8) for box in TRUE[:count]))], [TRUE]) for count in (1, 2))
    times = np.array([[1.0, 0, 0], [1, 0, 2], [0, 1, 0]])
    drawn = redrawn_precision([nothing, half, full], times, "AP50").tolist()
    whole = precisions([nothing, half, full])["AP50"]
    assert drawn[0] == whole
    assert 0 < drawn[2] < whole < 1
    assert np.isnan(redrawn_precision([nothing], times[:, :1], "AP")).all()

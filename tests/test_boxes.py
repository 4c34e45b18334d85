"""Boxes of points by hand: smallest sides, the image's border, signs; loosened boxes only grow."""

import numpy as np
import pytest

from steadysam.methods.boxes import box_of_points, loosen_box
from steadysam.types import SlicePoints


def points(*xy, positive=None):
    sign = np.ones(len(xy), bool) if positive is None else np.array(positive)
    return SlicePoints(np.array(xy, np.float32).reshape(-1, 2), sign, tuple(map(str, range(len(xy)))))


@pytest.mark.parametrize(
    "given, least, expected",
    [
        (points((10, 20), (30, 24)), 0, [10, 20, 30, 24]),
        (points((10, 20), (30, 24)), 8, [10, 18, 30, 26]),  # the short side grows about its middle
        (points((40, 41)), 4, [38, 39, 42, 43]),
        (points((0, 63)), 4, [0, 59, 4, 63]),  # at the corner it is moved, not cut
        (points((-0.5, 63.4), (5, 60)), 0, [0, 60, 5, 63]),  # the border of a pixel lies outside the centres
        (points((3, 4)), 1000, [0, 0, 63, 63]),
        (points((10, 20), (30, 24), (1, 1), positive=[True, True, False]), 0, [10, 20, 30, 24]),
    ],
)
def test_box_by_hand(given, least, expected):
    found = box_of_points(given, 64, least)
    assert found is not None
    assert found.dtype == np.float32
    assert found.tolist() == expected


def test_no_box_without_positive_points():
    assert box_of_points(SlicePoints.empty(), 64, 5) is None
    assert box_of_points(points((3, 3), positive=[False]), 64, 5) is None


def test_a_loosened_box_grows_by_at_most_so_much_and_stays_inside():
    box = np.array([10, 2, 30, 60], np.float32)
    found = np.array([loosen_box(box, 64, 5, np.random.default_rng(seed)) for seed in range(200)])
    moved = (found - box) * [-1, -1, 1, 1]
    assert moved.min() >= 0
    assert moved[:, [0, 2]].max() <= 5
    assert moved[:, [0, 2]].max() > 4.5
    assert moved[:, 1].max() == 2  # the image ends there
    assert moved[:, 3].max() == 3
    assert np.array_equal(loosen_box(box, 64, 0, np.random.default_rng(0)), box)

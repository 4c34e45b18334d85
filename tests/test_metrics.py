"""Overlap and surface metrics: conventions, a brute-force oracle, and MedPy's numbers."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from steadysam.errors import InputError
from steadysam.metrics import (
    METRICS,
    all_empty_scores,
    asd,
    assd,
    dice,
    hd95,
    iou,
    slice_scores,
    stretch_mask,
    surface_distances,
    surface_scores,
    volume_scores,
)

PARITY = Path(__file__).parent / "parity"
sys.path.insert(0, str(PARITY))
from random_masks import random_pair  # noqa: E402  # pyright: ignore[reportMissingImports]

GOLDEN = json.loads((PARITY / "medpy_golden.json").read_text("utf-8"))


def pairs_of_masks(min_dims: int = 2, max_dims: int = 3):
    shapes = array_shapes(min_dims=min_dims, max_dims=max_dims, min_side=1, max_side=6)
    return shapes.flatmap(lambda shape: st.tuples(arrays(bool, shape), arrays(bool, shape)))


def border_by_hand(mask: np.ndarray) -> list[tuple[int, ...]]:
    """Foreground elements with a background (or outside) neighbour along an axis."""
    found = []
    for index in map(tuple, np.argwhere(mask)):
        for axis in range(mask.ndim):
            for step in (-1, 1):
                near = list(index)
                near[axis] += step
                outside = not 0 <= near[axis] < mask.shape[axis]
                if outside or not mask[tuple(near)]:
                    found.append(index)
    return sorted(set(found))


def oracle(pred: np.ndarray, true: np.ndarray, spacing: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    a, b = (np.array(border_by_hand(mask)) * spacing for mask in (pred, true))
    distance = np.linalg.norm(a[:, None] - b[None], axis=-1)
    return np.sort(distance.min(axis=1)), np.sort(distance.min(axis=0))


def test_golden_file_is_what_the_task_asks_for():
    assert len(GOLDEN["rows"]) == 100
    assert {len(row["shape"]) for row in GOLDEN["rows"]} == {2, 3}


@pytest.mark.parametrize("row", GOLDEN["rows"], ids=lambda row: f"seed{row['seed']}")
def test_equal_to_medpy(row):
    pred, true, spacing = random_pair(row["seed"])
    assert [int(pred.sum()), int(true.sum())] == row["voxels"], "the generator of the masks changed"
    assert hd95(pred, true, spacing) == pytest.approx(row["hd95"], abs=1e-6)
    assert asd(pred, true, spacing) == pytest.approx(row["asd"], abs=1e-6)
    assert assd(pred, true, spacing) == pytest.approx(row["assd"], abs=1e-6)
    assert dice(pred, true) == pytest.approx(row["dice"], abs=1e-9)
    assert iou(pred, true) == pytest.approx(row["iou"], abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(pairs_of_masks(), st.data())
def test_surface_distances_equal_a_brute_force_oracle(masks, data):
    pred, true = masks
    if not pred.any() or not true.any():
        assert surface_scores(pred, true, [1.0] * pred.ndim).hd95 is None
        return
    spacing = tuple(data.draw(st.floats(0.25, 5)) for _ in range(pred.ndim))
    forth, back = surface_distances(pred, true, spacing)
    expected_forth, expected_back = oracle(pred, true, spacing)
    np.testing.assert_allclose(np.sort(forth), expected_forth, atol=1e-9)
    np.testing.assert_allclose(np.sort(back), expected_back, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(pairs_of_masks())
def test_dice_and_iou_are_one_curve(masks):
    d, j = dice(*masks), iou(*masks)
    assert 0 <= j <= d <= 1
    assert j == pytest.approx(d / (2 - d))
    assert (d, j) == (dice(*masks[::-1]), iou(*masks[::-1]))


@settings(max_examples=25, deadline=None)
@given(pairs_of_masks(), st.floats(0.1, 10))
def test_distances_scale_with_spacing(masks, factor):
    pred, true = masks
    one = surface_scores(pred, true, [1.0] * pred.ndim)
    scaled = surface_scores(pred, true, [factor] * pred.ndim)
    if one.hd95 is None:
        assert scaled.hd95 is None
    else:
        assert scaled.hd95 == pytest.approx(one.hd95 * factor)
        assert scaled.assd == pytest.approx(one.assd * factor)


@settings(max_examples=25, deadline=None)
@given(pairs_of_masks(3, 3))
def test_padding_with_background_changes_nothing(masks):
    wide = [np.pad(mask, [(1, 2), (0, 3), (2, 0)]) for mask in masks]
    spacing = (1.5, 0.7, 4.0)
    assert surface_scores(wide[0], wide[1], spacing) == surface_scores(masks[0], masks[1], spacing)


def test_overlap_of_empty_masks():
    nothing, something = np.zeros((3, 4), bool), np.ones((3, 4), bool)
    assert (dice(nothing, nothing), iou(nothing, nothing)) == (1.0, 1.0)  # true negative
    assert (dice(something, nothing), iou(something, nothing)) == (0.0, 0.0)  # false positive
    assert (dice(nothing, something), iou(nothing, something)) == (0.0, 0.0)  # false negative


def test_surface_of_one_voxel_and_of_nothing():
    a, b = np.zeros((2, 4, 5), bool), np.zeros((2, 4, 5), bool)
    a[0, 0, 0] = b[1, 3, 0] = True
    assert hd95(a, b, (2.0, 1.0, 9.0)) == pytest.approx(np.hypot(2, 3))
    assert assd(a, a, (2.0, 1.0, 9.0)) == 0.0
    with pytest.raises(InputError) as caught:
        surface_distances(a, np.zeros_like(a), (1, 1, 1))
    assert caught.value.code == "METRIC_EMPTY"


def test_asd_is_one_way_and_assd_pools():
    pred, true = np.zeros((1, 12), bool), np.zeros((1, 12), bool)
    pred[0, 0] = true[0, [0, 10, 11]] = True
    assert asd(pred, true, (1, 1)) == 0.0
    assert asd(true, pred, (1, 1)) == pytest.approx(7.0)
    assert assd(pred, true, (1, 1)) == pytest.approx(21 / 4)  # pooled over 1 + 3 elements, not (0 + 7) / 2


@pytest.mark.parametrize("function", [dice, iou])
def test_shapes_must_agree(function):
    with pytest.raises(InputError) as caught:
        function(np.zeros((2, 3)), np.zeros((3, 2)))
    assert caught.value.code == "METRIC_SHAPE"


def test_spacing_needs_one_number_per_axis():
    with pytest.raises(InputError):
        surface_distances(np.ones((2, 2, 2)), np.ones((2, 2, 2)), (1.0, 1.0))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 64))
def test_stretch_takes_the_nearest_pixel(height, width, size):
    ramp = np.arange(height * width).reshape(height, width)
    stretched = stretch_mask(ramp, size)
    assert stretched.shape == (size, size)
    rows = np.floor((np.arange(size) + 0.5) * height / size + 1e-9).astype(int)
    columns = np.floor((np.arange(size) + 0.5) * width / size + 1e-9).astype(int)
    np.testing.assert_array_equal(stretched, ramp[rows][:, columns])


def test_stretch_to_a_multiple_repeats_pixels_and_zero_keeps_them():
    mask = np.random.default_rng(0).random((3, 4, 5)) < 0.5
    np.testing.assert_array_equal(stretch_mask(mask, 20), mask.repeat(5, axis=1).repeat(4, axis=2))
    assert stretch_mask(mask, 0) is mask


def stack() -> tuple[np.ndarray, np.ndarray]:
    """(5, 20, 30): agreement on nothing, missed, invented, partial, perfect."""
    true, pred = np.zeros((5, 20, 30), bool), np.zeros((5, 20, 30), bool)
    true[1, 5:10, 5:10] = pred[2, 0:4, 0:4] = True
    true[3, 4:12, 6:16] = pred[3, 4:12, 8:18] = True
    true[4, 2:5, 2:9] = pred[4, 2:5, 2:9] = True
    return pred, true


def test_slice_scores():
    rows = slice_scores(*stack(), spacing_mm=(2.0, 0.5), size=60)
    assert [row.dsc for row in rows] == pytest.approx([1, 0, 0, 0.8, 1])
    assert [row.valid for row in rows] == [False, False, False, True, True]
    assert [row.hd95_px is None for row in rows] == [True, True, True, False, False]
    diagonal = 60 * np.sqrt(2)
    assert [row.hd95_penalised_px for row in rows[:3]] == [
        None,
        pytest.approx(diagonal),
        pytest.approx(diagonal),
    ]
    assert rows[3].hd95_px == pytest.approx(4.0)  # 2 columns, each 2 px wide
    assert rows[3].hd95_mm == pytest.approx(1.0)  # 2 columns of 0.5 mm
    assert rows[4].assd_mm == 0.0


def test_slice_scores_without_spacing_have_no_millimetres():
    rows = slice_scores(*stack(), spacing_mm=None)
    assert all(row.hd95_mm is None and row.assd_mm is None for row in rows)
    assert rows[3].hd95_px == pytest.approx(2.0)


def test_volume_scores_on_a_known_volume():
    true = np.zeros((6, 7, 8), bool)
    true[1:5, 2:6, 2:6] = True
    pred = np.roll(true, 1, axis=2)
    score = volume_scores(pred, true, (1.0, 1.0, 3.0))
    assert score.dice == pytest.approx(2 * 48 / 128)
    assert score.true_voxels == score.pred_voxels == 64
    assert score.hd95_mm == pytest.approx(3.0)
    assert volume_scores(np.zeros_like(true), np.zeros_like(true), (1, 1, 3)).dice == 1.0
    assert volume_scores(pred, true, None).hd95_mm is None


def test_all_empty_predictor_equals_scoring_an_empty_mask():
    from steadysam.evaluate import evaluate_case
    from steadysam.types import Grid

    pred, true = (np.moveaxis(mask, 0, 2) for mask in stack())
    grid = Grid((20, 30, 5), np.diag([2.0, 0.5, 6.0, 1.0]))
    case = evaluate_case(pred, true, grid, 48)
    assert all_empty_scores(case) == evaluate_case(np.zeros_like(pred), true, grid, 48)


def test_metrics_table_is_complete():
    from steadysam.summary import samples

    assert all(len(entry) == 2 and all(entry) for entry in METRICS.values())
    for name in METRICS:
        assert samples(name, [], {}) == []

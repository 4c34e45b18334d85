"""Corruptions: nothing at 0, worse with severity, always inside, always the same."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steadysam.errors import SteadyError
from steadysam.geometry import box_corners_voxel, distance_outside_mm, nearest_slices, ras_to_voxel
from steadysam.prompts.corrupt import CORRUPTIONS
from steadysam.prompts.simulate import SIMULATORS, generator_for
from steadysam.types import Grid, Prompts

AFFINE = np.array([[0.1, -1.1, 0.3, 20.0], [0.9, 0.05, -0.4, -30.0], [0.05, 0.2, -3.0, 7.0], [0, 0, 0, 1.0]])
GRID = Grid((60, 50, 20), AFFINE)
IMAGE = np.random.default_rng(3).normal(100, 10, GRID.shape)


def mask() -> np.ndarray:
    array = np.zeros(GRID.shape, bool)
    array[20:30, 20:28, 5:15] = True
    return array


def clean() -> Prompts:
    points = SIMULATORS["clicks"](mask(), GRID, generator_for(0), n=3)
    boxes = SIMULATORS["boxes"](mask(), GRID, generator_for(0))
    return Prompts(points.points, boxes.boxes, points.image, points.history)


def worse(name: str, severity: float, seed: int = 1) -> Prompts:
    options = {"image": IMAGE} if name == "lookalike" else {}
    return CORRUPTIONS[name](clean(), severity, GRID, generator_for(seed, name), **options)


def ijk(prompts: Prompts) -> np.ndarray:
    return ras_to_voxel(prompts.points_mm(), GRID)


def moved_mm(prompts: Prompts) -> np.ndarray:
    return np.linalg.norm(prompts.points_mm() - clean().points_mm(), axis=1)


@pytest.mark.parametrize("name", sorted(CORRUPTIONS))
def test_severity_0_is_the_identity(name):
    before = clean()
    assert CORRUPTIONS[name](before, 0.0, GRID, generator_for(0)) is before


@pytest.mark.parametrize("name", sorted(CORRUPTIONS))
@settings(max_examples=6, deadline=None)
@given(severity=st.floats(0.01, 1.0), seed=st.integers(0, 1000))
def test_points_stay_inside_ids_stay_unique_and_draws_repeat(name, severity, seed):
    found = worse(name, severity, seed)
    assert (distance_outside_mm(found.points_mm(), GRID) == 0).all()
    ids = [row.id for row in (*found.points, *found.boxes)]
    assert len(set(ids)) == len(ids)
    assert found.key() == worse(name, severity, seed).key()
    assert found.history[:-1] == clean().history
    assert found.history[-1]["corruption"] == name
    assert found.history[-1]["severity"] == severity
    assert found.image == clean().image


@pytest.mark.parametrize("name", sorted(CORRUPTIONS))
def test_full_severity_changes_something(name):
    assert worse(name, 1.0).key() != clean().key()


@pytest.mark.parametrize("severity", [-0.1, 1.1, float("nan")])
def test_severities_outside_are_refused(severity):
    with pytest.raises(SteadyError, match="PROMPT_OPTION"):
        worse("jitter", severity)


def test_jitter_has_the_stated_size_and_stays_on_the_slice():
    grid = Grid((400, 300, 3), np.diag([1.0, 2.0, 5.0, 1.0]))
    middle = np.zeros(grid.shape, bool)
    middle[190:210, 140:160] = True
    before = SIMULATORS["clicks"](middle, grid, generator_for(0), n=200, depth=0.0)
    after = CORRUPTIONS["jitter"](before, 0.5, grid, generator_for(0))
    off = after.points_mm() - before.points_mm()
    assert np.allclose(off[:, :2].std(axis=0), 10.0, rtol=0.1)
    assert np.allclose(off[:, 2], 0, atol=1e-4)


def test_shift_moves_everything_alike():
    off = worse("shift", 0.25).points_mm() - clean().points_mm()
    assert np.allclose(off, off[0], atol=1e-4)
    along = GRID.affine[:3, :2] / np.linalg.norm(GRID.affine[:3, :2], axis=0)
    angles = np.linalg.lstsq(along, off[0], rcond=None)[0]
    assert np.linalg.norm(angles) == pytest.approx(5.0, abs=1e-3)
    boxes = np.array([b.centre_mm for b in worse("shift", 0.25).boxes]) - [b.centre_mm for b in clean().boxes]
    assert np.allclose(boxes, off[0], atol=1e-4)


def test_drop_and_sign_swap_are_shares():
    assert len(worse("drop", 1.0)) == 0
    counts = [len(worse("drop", 0.5, seed).points) for seed in range(30)]
    assert np.mean(counts) == pytest.approx(15, abs=2)
    swapped = [p.sign for p in worse("sign_swap", 1.0).points]
    assert set(swapped) == {"negative"}
    assert worse("sign_swap", 1.0).points_mm().tolist() == clean().points_mm().tolist()


def test_distractors_are_added_per_prompted_slice():
    found = worse("distractors", 1.0)
    assert found.points[:30] == clean().points
    added = nearest_slices(ijk(found)[30:], GRID)
    assert np.bincount(added, minlength=20).tolist() == [0] * 5 + [8] * 10 + [0] * 5
    assert {point.source for point in found.points[30:]} == {"simulated"}
    mean = np.mean([len(worse("distractors", 0.05, seed).points) - 30 for seed in range(40)])
    assert mean == pytest.approx(4, abs=1)


def test_wrong_slice_keeps_the_place_within_the_slice():
    found = worse("wrong_slice", 1.0)
    off = ijk(found) - ijk(clean())
    assert np.allclose(off[:, :2], 0, atol=1e-4)
    assert set(np.abs(np.rint(off[:, 2])).astype(int)) == {1, 2, 3}
    some = ijk(worse("wrong_slice", 0.3)) - ijk(clean())
    assert 0 < (np.abs(some[:, 2]) > 0.5).mean() < 0.6


def test_overshoot_grows_with_severity_at_both_ends():
    for severity, beyond in ((0.1, 1), (0.3, 3), (0.5, 5)):
        slices = nearest_slices(ijk(worse("overshoot", severity)), GRID)
        assert (slices.min(), slices.max()) == (5 - beyond, 14 + beyond)


def test_loose_boxes_contain_the_tight_ones():
    sizes = []
    for severity in (0.2, 1.0):
        for before, after in zip(clean().boxes, worse("loose_box", severity).boxes, strict=True):
            low, high = box_corners_voxel(before, GRID)
            wide_low, wide_high = box_corners_voxel(after, GRID)
            assert (wide_low <= low + 1e-5).all()
            assert (wide_high >= high - 1e-5).all()
            assert (wide_high - wide_low <= (high - low) * (1 + 2 * severity) + 1e-4).all()
        sizes.append(
            np.mean([np.ptp(box_corners_voxel(b, GRID), axis=0)[:2] for b in worse("loose_box", severity).boxes])
        )
    assert sizes[0] < sizes[1]


def test_lookalikes_look_alike_and_are_far():
    image = np.zeros(GRID.shape)
    image[18:32, 18:30] = 100.0
    image[45:56, 5:16] = 100.0  # the twin
    found = CORRUPTIONS["lookalike"](clean(), 1.0, GRID, generator_for(0), image=image)
    places = np.rint(ijk(found)).astype(int)
    assert (image[tuple(places.T)] == 100).all()
    assert (places[:, 0] >= 45).all()
    assert (moved_mm(found) >= 14.9).all()
    with pytest.raises(SteadyError, match="PROMPT_OPTION"):
        CORRUPTIONS["lookalike"](clean(), 1.0, GRID, generator_for(0))
    with pytest.raises(SteadyError, match="PROMPT_GRID"):
        CORRUPTIONS["lookalike"](clean(), 1.0, GRID, generator_for(0), image=image[1:])


@pytest.mark.parametrize("name", sorted(set(CORRUPTIONS) - {"lookalike"}))
def test_no_prompts_stay_none(name):
    assert len(CORRUPTIONS[name](Prompts(), 1.0, GRID, generator_for(0))) == 0

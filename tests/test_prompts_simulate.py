"""Simulators: who draws what, from whom, and always the same."""

import subprocess
import sys

import numpy as np
import pytest
from scipy import stats

from steadysam.errors import ConfigError, InputError
from steadysam.geometry import box_corners_voxel, distance_outside_mm, ras_to_voxel, slice_points
from steadysam.prompts.centerline import extended
from steadysam.prompts.simulate import SIMULATORS, generator_for
from steadysam.prompts.skeleton import geodesic_path, slice_path
from steadysam.types import Grid, put_slices

OBLIQUE = np.array([[0.1, -1.1, 0.3, 20.0], [0.9, 0.05, -0.4, -30.0], [0.05, 0.2, -3.0, 7.0], [0, 0, 0, 1.0]])


def tube(axis: int = 2, shape: tuple[int, int, int] = (40, 30, 24)) -> tuple[np.ndarray, Grid]:
    """A tube that leans along the slices 6..17 of an oblique, flipped, non-cubic grid."""
    grid = Grid(shape, OBLIQUE, axis)
    height, width = grid.slice_shape
    rows, columns = np.indices((height, width))
    slices = np.zeros((grid.depth, height, width), bool)
    for t in range(6, min(18, grid.depth - 4)):
        slices[t] = np.hypot(columns - (6 + 0.5 * t), rows - 9) < 3.5
    return put_slices(slices, grid), grid


def voxels(prompts, grid: Grid) -> np.ndarray:
    return np.floor(ras_to_voxel(prompts.points_mm(), grid) + 0.5).astype(int)


def in_mask(prompts, mask: np.ndarray, grid: Grid) -> np.ndarray:
    return mask[tuple(voxels(prompts, grid).T)]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_paper_counts_signs_and_slices(axis):
    mask, grid = tube(axis)
    prompts = SIMULATORS["paper"](mask, grid, generator_for(1, axis))
    assert (distance_outside_mm(prompts.points_mm(), grid) == 0).all()
    assert {point.sign for point in prompts.points} == {"positive"}
    assert prompts.sources == ("simulated",)
    assert prompts.history[0]["derived_from"] == "ground_truth"
    assert [3 <= len(points) <= 6 for points in slice_points(prompts, grid)] == [True] * grid.depth


def test_paper_draws_exactly_one_point_in_the_mask():
    mask, grid = tube()
    prompts = SIMULATORS["paper"](mask, grid, generator_for(0), k=0)
    counts = [len(points) for points in slice_points(prompts, grid)]
    assert counts == [1] * grid.depth
    positive = np.logical_or.reduce(mask, axis=(0, 1))[voxels(prompts, grid)[:, 2]]
    assert in_mask(prompts, mask, grid)[positive].all()


def test_paper_in_mask_draw_is_joint():
    """A diagonal of pixels: x and y drawn apart would land beside it nearly always."""
    grid = Grid((20, 24, 300), np.diag([1.0, 1, 1, 1]))
    mask = np.zeros(grid.shape, bool)
    mask[np.arange(20), np.arange(20)] = True
    prompts = SIMULATORS["paper"](mask, grid, generator_for(3), k=0)
    assert in_mask(prompts, mask, grid).all()
    x = voxels(prompts, grid)[:, 0]
    assert stats.chisquare(np.bincount(x // 5, minlength=4)).pvalue > 1e-3


def test_paper_k_is_uniform_and_points_fill_the_slice():
    grid = Grid((9, 7, 2000), np.diag([1.0, 1, 1, 1]))
    mask = np.zeros(grid.shape, bool)
    mask[4, 3] = True
    prompts = SIMULATORS["paper"](mask, grid, generator_for(5))
    counts = np.bincount(voxels(prompts, grid)[:, 2])
    per_k = np.bincount(counts - 1, minlength=6)[2:6]
    assert per_k.sum() == 2000
    assert stats.chisquare(per_k).pvalue > 1e-3
    ijk = voxels(prompts, grid)
    noise = ijk[~in_mask(prompts, mask, grid)]
    table = np.histogram2d(noise[:, 0], noise[:, 1], bins=(9, 7), range=((-0.5, 8.5), (-0.5, 6.5)))[0].ravel()
    assert stats.chisquare(np.delete(table, 4 * 7 + 3)).pvalue > 1e-3


def test_matched_rule_hides_empty_slices():
    grid = Grid((12, 10, 1200), np.diag([1.0, 1, 1, 1]))
    mask = np.zeros(grid.shape, bool)
    mask[3:6, 4:7, ::2] = True
    per_slice = np.bincount(voxels(SIMULATORS["paper"](mask, grid, generator_for(2)), grid)[:, 2], minlength=grid.depth)
    table = [np.bincount(per_slice[start::2], minlength=7)[3:7] for start in (0, 1)]
    assert stats.chi2_contingency(table)[1] > 1e-3  # type: ignore[index]
    k_only = SIMULATORS["paper"](mask, grid, generator_for(2), empty_rule="k_only", k=3)
    assert np.bincount(voxels(k_only, grid)[:, 2]).tolist() == [4, 3] * 600
    none = SIMULATORS["paper"](mask, grid, generator_for(2), empty_rule="none", k=3)
    assert set(voxels(none, grid)[:, 2] % 2) == {0}


def test_position_in_the_file_does_not_tell_the_true_point():
    mask, grid = tube(shape=(40, 30, 24))
    first = [
        in_mask(SIMULATORS["paper"](mask, grid, generator_for(seed), k=3), mask, grid)[6 * 4 : 18 * 4 : 4].mean()
        for seed in range(20)
    ]
    assert np.mean(first) < 0.5


def test_drop_and_jitter_for_noise_sweeps():
    mask, grid = tube()
    gone = SIMULATORS["paper"](mask, grid, generator_for(0), k=0, drop=1.0, empty_rule="none")
    assert len(gone) == 0
    clean = SIMULATORS["paper"](mask, grid, generator_for(0), k=0, empty_rule="none")
    noisy = SIMULATORS["paper"](mask, grid, generator_for(0), k=0, empty_rule="none", jitter_px=300)
    assert in_mask(clean, mask, grid).all()
    assert in_mask(noisy, mask, grid).mean() < 0.5
    assert (distance_outside_mm(noisy.points_mm(), grid) == 0).all()


@pytest.mark.parametrize("name", sorted(SIMULATORS))
def test_same_seed_same_prompts_other_seed_others(name):
    mask, grid = tube()
    options = {"loose": 0.5} if name == "boxes" else {}
    first, again, other = (SIMULATORS[name](mask, grid, generator_for(seed, name), **options) for seed in (4, 4, 5))
    assert first == again
    assert first.key() == again.key() != other.key()


def test_generator_for_is_the_same_in_another_process():
    code = "from steadysam.prompts.simulate import generator_for; print(generator_for(7, 'a', 3).random())"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert float(out) == generator_for(7, "a", 3).random()
    assert generator_for(7, "a", 3).random() != generator_for(7, "a3").random()


@pytest.mark.parametrize("name", sorted(SIMULATORS))
def test_absent_structures_and_other_grids(name):
    grid = Grid((8, 9, 5), np.diag([1.0, 1, 4, 1]))
    prompts = SIMULATORS[name](np.zeros(grid.shape, bool), grid, generator_for(0))
    assert (len(prompts) > 0) == (name == "paper")
    with pytest.raises(InputError, match="PROMPT_GRID"):
        SIMULATORS[name](np.zeros((9, 8, 5), bool), grid, generator_for(0))


@pytest.mark.parametrize(
    "name, options",
    [
        ("paper", {"nonsense": 1}),
        ("paper", {"k": -1}),
        ("paper", {"k_range": (5, 2)}),
        ("paper", {"empty_rule": "some"}),
        ("paper", {"drop": 1.5}),
        ("centerline", {"gap_range": (0, 4)}),
        ("centerline", {"drift_mm": float("nan")}),
        ("boxes", {"loose": "wide"}),
    ],
)
def test_impossible_options_are_refused(name, options):
    mask, grid = tube()
    with pytest.raises(ConfigError, match="PROMPT_OPTION"):
        SIMULATORS[name](mask, grid, generator_for(0), **options)


def test_clicks_lie_well_inside():
    mask, grid = tube()
    prompts = SIMULATORS["clicks"](mask, grid, generator_for(0), n=2)
    ijk = voxels(prompts, grid)
    assert in_mask(prompts, mask, grid).all()
    assert np.bincount(ijk[:, 2], minlength=24).tolist() == [
        2 * int(v) for v in np.logical_or.reduce(mask, axis=(0, 1))
    ]
    for i, j, k in ijk:  # none on the rim
        assert mask[i - 1 : i + 2, j, k].all()
        assert mask[i, j - 1 : j + 2, k].all()


def test_boxes_are_tight_or_looser_never_tighter():
    mask, grid = tube(axis=1)
    tight = SIMULATORS["boxes"](mask, grid, generator_for(0))
    loose = SIMULATORS["boxes"](mask, grid, generator_for(0), loose=0.5)
    assert tight.sources == ("ground_truth",)
    assert len(tight.boxes) == int(mask.any(axis=(0, 2)).sum())
    for small, large in zip(tight.boxes, loose.boxes, strict=True):
        low, high = box_corners_voxel(small, grid)
        t = round(low[1])
        i, k = np.nonzero(mask[:, t])
        expected = [i.min() - 0.5, k.min() - 0.5, i.max() + 0.5, k.max() + 0.5]
        assert np.allclose([low[0], low[2], high[0], high[2]], expected)
        wide_low, wide_high = box_corners_voxel(large, grid)
        assert (wide_low <= low + 1e-6).all()
        assert (wide_high >= high - 1e-6).all()
    assert loose.key() != tight.key()


def test_centerline_without_noise_follows_the_structure():
    mask, grid = tube()
    options = {"overshoot": 0.0, "drift_mm": 0.0, "gap_rate": 0.0}
    for route in ("slices", "geodesic"):
        prompts = SIMULATORS["centerline"](mask, grid, generator_for(0), route=route, **options)
        ijk = ras_to_voxel(prompts.points_mm(), grid)
        assert sorted(set(np.rint(ijk[:, 2]).astype(int))) == list(range(6, 18)), route
        assert np.allclose(ijk[:, 2], np.rint(ijk[:, 2]), atol=1e-5)
        assert in_mask(prompts, mask, grid).mean() > 0.9, route
    centres = ras_to_voxel(slice_path(mask, grid), grid)
    assert np.allclose(centres[:, 1], 9, atol=0.2)


@pytest.mark.parametrize("overshoot", [0.25, 0.5, 1.0])
def test_centerline_overshoots_each_end_by_a_share_of_the_length(overshoot):
    grid = Grid((80, 60, 60), np.diag([1.0, 1.0, 2.0, 1.0]))
    mask = np.zeros(grid.shape, bool)
    mask[38:42, 28:32, 22:38] = True
    prompts = SIMULATORS["centerline"](
        mask, grid, generator_for(0), overshoot=overshoot, wander=0.0, drift_mm=0.0, gap_rate=0.0
    )
    slices = voxels(prompts, grid)[:, 2]
    beyond = int(15 * overshoot)  # the path between the outer slice centres is 15 slices long
    assert (slices.min(), slices.max()) == (22 - beyond, 37 + beyond)
    assert len(set(slices)) == len(slices)


def test_centerline_wanders_drifts_and_has_gaps_of_bounded_size():
    grid = Grid((60, 60, 120), np.diag([1.0, 1.0, 2.0, 1.0]))
    mask = np.zeros(grid.shape, bool)
    mask[28:33, 28:33, 20:100] = True
    sigma, gaps = [], []
    for seed in range(8):
        prompts = SIMULATORS["centerline"](
            mask, grid, generator_for(seed), overshoot=0.1, drift_mm=4.0, gap_rate=0.2, gap_range=(1, 4)
        )
        ijk = ras_to_voxel(prompts.points_mm(), grid)
        inside = (ijk[:, 2] > 21) & (ijk[:, 2] < 98)
        sigma.append(ijk[inside, :2] - 30)
        gaps += (np.diff(np.rint(ijk[:, 2])) - 1).astype(int).tolist()
        assert (distance_outside_mm(prompts.points_mm(), grid) == 0).all()
        steps = np.linalg.norm(np.diff(ijk[inside, :2], axis=0), axis=1)
        assert steps.max() < 8  # smooth: no jumps
    assert 3.0 < np.concatenate(sigma).std() < 5.0
    assert set(gaps) == {0, 1, 2, 3, 4}


def test_geodesic_route_follows_a_tube_that_turns_back():
    """A U whose arms rise through the slices: every slice is crossed twice, which slice centroids cannot
    show.
    """
    grid = Grid((40, 12, 20), np.diag([1.0, 1.0, 1.5, 1.0]))
    mask = np.zeros(grid.shape, bool)
    mask[5:9, 4:8, 3:17] = True
    mask[30:34, 4:8, 3:17] = True
    mask[5:34, 4:8, 3:6] = True
    path = ras_to_voxel(geodesic_path(mask, grid), grid)
    assert {int(path[0, 2] > 12), int(path[-1, 2] > 12)} == {1}
    prompts = SIMULATORS["centerline"](
        mask, grid, generator_for(0), route="geodesic", overshoot=0, drift_mm=0, gap_rate=0
    )
    assert np.bincount(voxels(prompts, grid)[:, 2], minlength=20)[8:14].tolist() == [2] * 6


def test_one_voxel_and_one_slice_structures():
    grid = Grid((9, 9, 9), OBLIQUE)
    mask = np.zeros(grid.shape, bool)
    mask[4, 4, 4] = True
    assert len(geodesic_path(mask, grid)) == 1
    for route in ("slices", "geodesic"):
        prompts = SIMULATORS["centerline"](mask, grid, generator_for(0), route=route, overshoot=1.0, gap_rate=0)
        assert 1 <= len(prompts.points) <= 3
    line = extended(slice_path(mask, grid), grid, generator_for(0), 0.0, 0.2)
    assert len(line) == 1


def test_crescents_are_followed_inside():
    grid = Grid((31, 31, 3), np.diag([1.0, 1, 1, 1]))
    i, j = np.indices((31, 31))
    radius = np.hypot(i - 15, j - 15)
    mask = np.repeat(((radius > 8) & (radius < 13) & (j < 17))[:, :, None], 3, axis=2)
    ijk = np.rint(ras_to_voxel(slice_path(mask, grid), grid)).astype(int)
    assert mask[tuple(ijk.T)].all()

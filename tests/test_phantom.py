"""The phantom: reproducible, in the right frame, with the difficulties it promises."""

from __future__ import annotations

import numpy as np
import pytest

from steadysam.data.cases import read_dataset
from steadysam.data.splits import split_cases
from steadysam.data.volumes import read_label_map, read_volume
from steadysam.errors import ConfigError, FileSystemError
from steadysam.geometry import distance_outside_mm, nearest_slices, ras_to_voxel, slice_points
from steadysam.phantom import PhantomCase, draw_case, draw_dataset, shaky_centerline
from steadysam.phantom.shaky import Shake
from steadysam.prompts.files import read_prompts
from steadysam.prompts.sets import read_set

SMALL = (56, 48, 10)
STEADY = Shake(overshoot_slices=(0, 0), drift_mm=0, slips=(0, 0), gap_share=0, strays=(0, 0))


@pytest.fixture(scope="module")
def cases() -> list[PhantomCase]:
    return [draw_case(np.random.default_rng(seed)) for seed in range(4)]


def in_mask(array: np.ndarray, voxels: np.ndarray) -> np.ndarray:
    i, j, k = np.floor(voxels + 0.5).astype(int).T
    return array[i, j, k]


def test_same_generator_same_case_and_another_seed_another() -> None:
    first, second, other = (draw_case(np.random.default_rng(seed), SMALL) for seed in (7, 7, 8))
    assert np.array_equal(first.volume.array, second.volume.array)
    assert np.array_equal(first.mask.array, second.mask.array)
    assert np.array_equal(first.volume.grid.affine, second.volume.grid.affine)
    assert not np.array_equal(first.volume.array, other.volume.array)


def test_geometry_is_anisotropic_non_square_and_oblique(cases: list[PhantomCase]) -> None:
    for case in cases:
        grid = case.volume.grid
        assert len(set(grid.shape)) == 3
        assert np.allclose(grid.spacing_mm, (1.8, 1.8, 4.0), atol=1e-5)
        rotation = grid.affine[:3, :3] / grid.spacing_mm
        assert np.allclose(rotation.T @ rotation, np.eye(3), atol=1e-6)
        assert (np.abs(grid.affine[:3, :3]) > 1e-3).sum() >= 5  # not aligned with the patient
        assert np.array_equal(grid.affine, grid.affine.astype(np.float32))


def test_target_runs_through_a_middle_range_without_holes(cases: list[PhantomCase]) -> None:
    for case in cases:
        present = np.flatnonzero(np.any(case.mask.array, axis=(0, 1)))
        assert np.array_equal(present, np.arange(present[0], present[-1] + 1))
        assert present[0] >= 2
        assert present[-1] <= case.volume.grid.depth - 3
        assert 0.35 <= len(present) / case.volume.grid.depth <= 0.65


def test_twins_stand_on_every_slice_beside_the_target_and_touch_it_somewhere(
    cases: list[PhantomCase],
) -> None:
    touching = 0
    for case in cases:
        assert not (case.mask.array & case.twins.array).any()
        assert case.twins.array.any(axis=(0, 1)).all()
        ring = np.zeros_like(case.mask.array)
        for axis in (0, 1):
            for step in (-1, 1):
                ring |= np.roll(case.mask.array, step, axis)
        touching += bool((ring & case.twins.array).any())
        assert 3 <= len(case.twins_mm) <= 5
    assert touching >= 3


def test_axes_lie_where_the_arrays_say(cases: list[PhantomCase]) -> None:
    for case in cases:
        grid = case.volume.grid
        target = ras_to_voxel(case.centerline_mm, grid)
        assert in_mask(case.mask.array, target).mean() > 0.9  # a twin may press on the axis
        loop = ras_to_voxel(case.loop_mm, grid)
        inside = (distance_outside_mm(case.loop_mm, grid) == 0) & ~np.isin(loop[:, 2], target[:, 2])
        assert in_mask(case.twins.array, loop[inside]).mean() > 0.8  # the loop goes on, healthy


def test_target_differs_from_twins_by_its_wall_not_by_its_mean(cases: list[PhantomCase]) -> None:
    """Brightness alone does not tell target from twins; the wall compared with the core does."""
    walls, means = [], []
    for case in cases:
        image = case.volume.array.astype(float)
        voxels = np.argwhere(case.mask.array)
        axis = ras_to_voxel(case.centerline_mm, case.volume.grid)
        nearest = (
            np.interp(voxels[:, 2], axis[:, 2], axis[:, 0]),
            np.interp(voxels[:, 2], axis[:, 2], axis[:, 1]),
        )
        radius = np.hypot(voxels[:, 0] - nearest[0], voxels[:, 1] - nearest[1]) * 1.8
        values = image[tuple(voxels.T)]
        walls.append(values[(radius > 8) & (radius < 12)].mean() / values[radius < 4].mean())
        twins = image[case.twins.array]
        means.append((twins < values.mean()).mean())
    assert min(walls) > 1.2
    assert all(0.15 < share < 0.85 for share in means)


def test_shaky_prompts_overshoot_slip_and_stray_but_stay_inside(cases: list[PhantomCase]) -> None:
    on_target, on_twins, on_empty, total = 0, 0, 0, 0
    for seed, case in enumerate(cases):
        grid = case.volume.grid
        prompts = shaky_centerline(np.random.default_rng(seed), case)
        voxels = ras_to_voxel(prompts.points_mm(), grid)
        assert (distance_outside_mm(prompts.points_mm(), grid) == 0).all()
        assert np.allclose(voxels[:, 2], np.rint(voxels[:, 2]), atol=1e-4)
        assert prompts.sources == ("simulated",)
        assert {point.sign for point in prompts.points} == {"positive"}
        assert prompts.image.grid_key == grid.key()
        assert prompts.history[0]["derived_from_truth"] is True
        empty = ~np.asarray(np.any(case.mask.array, axis=(0, 1)))
        on_target += in_mask(case.mask.array, voxels).sum()
        on_twins += in_mask(case.twins.array, voxels).sum()
        on_empty += empty[nearest_slices(voxels, grid)].sum()
        total += len(voxels)
    assert 0.25 < on_target / total < 0.8
    assert on_twins / total > 0.1
    assert on_empty / total > 0.1


def test_a_steady_hand_stays_on_the_target(cases: list[PhantomCase]) -> None:
    for case in cases:
        prompts = shaky_centerline(np.random.default_rng(0), case, STEADY)
        assert in_mask(case.mask.array, ras_to_voxel(prompts.points_mm(), case.volume.grid)).mean() > 0.9
        per_slice = [len(points) for points in slice_points(prompts, case.volume.grid)]
        present = np.asarray(np.any(case.mask.array, axis=(0, 1)))
        assert per_slice == [2 if here else 0 for here in present]


def test_gaps_and_slips_follow_the_shake(cases: list[PhantomCase]) -> None:
    case = cases[0]
    grid = case.volume.grid
    gaps = shaky_centerline(np.random.default_rng(1), case, Shake(gap_share=0.5, strays=(0, 0)))
    slices = {int(k) for k in nearest_slices(ras_to_voxel(gaps.points_mm(), grid), grid)}
    assert set(range(min(slices), max(slices) + 1)) - slices
    slip = Shake((0, 0), drift_mm=0, slips=(2, 2), slip_slices=(2, 2), gap_share=0, strays=(0, 0))
    slipped = shaky_centerline(np.random.default_rng(1), case, slip)
    assert in_mask(case.twins.array, ras_to_voxel(slipped.points_mm(), grid)).sum() >= 4


def test_data_set_reads_back_bit_for_bit(tmp_path) -> None:
    folder = draw_dataset(tmp_path / "set", 3, 2, 5, shape=SMALL)
    dataset = read_dataset(folder)
    assert [case.name for case in dataset.part("Tr")] == ["phantom_001", "phantom_002", "phantom_003"]
    assert len(dataset.part("Ts")) == 2
    assert dataset.labels == {"background": 0, "TI": 1}
    for case in dataset.cases:
        volume = read_volume(case.image)
        assert case.label is not None
        labels, grid = read_label_map(case.label)
        assert volume.grid.slice_axis == 2
        assert volume.array.shape == SMALL
        assert np.array_equal(grid.affine, volume.grid.affine)
        assert set(np.unique(labels)) == {0, 1}
        prompts = read_prompts(folder / f"prompts{case.part}" / f"{case.name}.json", volume.grid)
        assert prompts.image.grid_key == volume.grid.key()  # the affine survived the file
        assert prompts.sources == ("simulated",)
    assert {case.part for case in split_cases(dataset, seed=0).test} == {"Ts"}


def test_data_set_depends_on_seed_and_names_only(tmp_path) -> None:
    a = draw_dataset(tmp_path / "a", 2, 1, 5, shape=SMALL)
    b = draw_dataset(tmp_path / "b", 1, 1, 5, shape=SMALL)
    image = "imagesTr/phantom_001_0000.nii.gz"
    assert (a / image).read_bytes() == (b / image).read_bytes()
    assert read_set(a / "promptsTs").hash == read_set(b / "promptsTs").hash
    assert read_set(a / "promptsTr").hash != read_set(b / "promptsTr").hash


def test_refusals(tmp_path) -> None:
    with pytest.raises(ConfigError, match="PHANTOM_SHAPE"):
        draw_case(np.random.default_rng(0), (20, 20, 10))
    with pytest.raises(ConfigError, match="PHANTOM_COUNT"):
        draw_dataset(tmp_path / "x", 0, 1, 0)
    assert not (tmp_path / "x").exists()
    (tmp_path / "there").mkdir()
    with pytest.raises(FileSystemError, match="FS_EXISTS"):
        draw_dataset(tmp_path / "there", 1, 0, 0, shape=SMALL)

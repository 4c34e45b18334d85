"""One module changes frames; these are its promises, on oblique, flipped, non-square and non-cubic grids."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steadysam.errors import InputError
from steadysam.geometry import (
    axis_codes,
    box_corners_voxel,
    distance_outside_mm,
    flip_lps_ras,
    from_ras,
    grids_agree,
    nearest_slices,
    ras_to_voxel,
    slice_boxes_xyxy,
    slice_points,
    slice_to_ras,
    slice_to_voxel,
    to_model_points,
    to_ras,
    voxel_to_ras,
)
from steadysam.prompts.rows import triple
from steadysam.types import Box, Frame, Grid, Point, Prompts, put_slices, stack_slices, take_slice


def test_every_frame_returns(grid, rng):
    ijk = rng.random((20, 3)) * (np.array(grid.shape) - 1)
    ras = voxel_to_ras(ijk, grid)
    assert np.allclose(ras_to_voxel(ras, grid), ijk, atol=1e-5)
    for frame in ("RAS", "LPS", "ijk"):
        assert np.allclose(to_ras(from_ras(ras, frame, grid), frame, grid), ras, atol=1e-4)


def test_lps_flips_x_and_y_only():
    assert flip_lps_ras(np.array([[1.0, 2.0, 3.0]])).tolist() == [[-1.0, -2.0, 3.0]]


def test_ijk_without_a_grid_is_refused():
    with pytest.raises(InputError, match="PROMPT_GRID_MISSING"):
        to_ras(np.zeros((1, 3)), "ijk")


def test_affine_is_nibabels(grid):
    nib = pytest.importorskip("nibabel")
    ijk = np.array([[0, 0, 0], [1, 2, 0], [3, 1, 0]])
    assert np.allclose(voxel_to_ras(ijk, grid), nib.affines.apply_affine(grid.affine, ijk))


def test_spacing_and_codes():
    grid = Grid((3, 4, 5), np.array([[-2.0, 0, 0, 9], [0, 0, 3.0, 9], [0, -4.0, 0, 9], [0, 0, 0, 1]]))
    assert grid.spacing_mm == (2.0, 4.0, 3.0)
    assert axis_codes(grid) == "LIA"


def test_slices_see_x_along_the_first_plane_axis(grid, rng):
    array = rng.random(grid.shape)
    assert stack_slices(array, grid).shape == (grid.depth, *grid.slice_shape)
    x_axis, y_axis = grid.plane_axes
    x, y, t = grid.shape[x_axis] - 1, grid.shape[y_axis] - 2, grid.depth - 1
    i, j, k = slice_to_voxel(np.array([[x, y]]), t, grid)[0].astype(int)
    assert take_slice(array, grid, t)[y, x] == array[i, j, k]
    assert np.array_equal(put_slices(stack_slices(array, grid), grid), array)


def test_points_land_on_their_slice_and_pixel(grid, rng):
    """A world point drawn from a voxel comes back as that voxel's pixel on that voxel's slice."""
    height, width = grid.slice_shape
    t = rng.integers(0, grid.depth, 15)
    xy = np.stack([rng.integers(0, width, 15), rng.integers(0, height, 15)], axis=1)
    mm = slice_to_ras(xy, t, grid)
    prompts = Prompts(tuple(Point(f"p{n}", triple(row)) for n, row in enumerate(mm)))
    found = slice_points(prompts, grid)
    for n in range(15):
        here = found[t[n]]
        assert np.allclose(here.xy[here.ids.index(f"p{n}")], xy[n], atol=1e-4)


def test_points_outside_are_refused_with_a_distance(grid):
    beyond = voxel_to_ras(np.array([[-0.5 - 3, 0, 0]]), grid)
    expected = 3 * grid.spacing_mm[0]
    assert distance_outside_mm(beyond, grid)[0] == pytest.approx(expected, rel=1e-4)
    prompts = Prompts((Point("stray", triple(beyond[0])),))
    with pytest.raises(InputError, match="PROMPT_OUTSIDE") as error:
        slice_points(prompts, grid)
    assert f"{expected:.1f} mm" in str(error.value)
    assert sum(map(len, slice_points(prompts, grid, "drop"))) == 0
    clipped = slice_points(prompts, grid, "clip")
    assert sum(map(len, clipped)) == 1


def test_the_outer_border_belongs_to_the_volume(grid):
    corners = np.array([[-0.5, -0.5, -0.5], np.array(grid.shape) - 0.5])
    assert distance_outside_mm(voxel_to_ras(corners, grid), grid).max() < 1e-4
    prompts = Prompts(tuple(Point(str(n), triple(c)) for n, c in enumerate(voxel_to_ras(corners, grid))))
    assert sum(map(len, slice_points(prompts, grid, "clip"))) == 2


@pytest.mark.parametrize("index, expected", [(-0.5, 0), (0.49, 0), (0.5, 1), (3.5, 4), (4.5, 4)])
def test_half_voxels_go_to_the_upper_slice(index, expected):
    grid = Grid((3, 3, 5), np.eye(4))
    assert nearest_slices(np.array([[0, 0, index]]), grid)[0] == expected


def test_no_prompts_give_empty_slices(grid):
    assert [len(p) for p in slice_points(Prompts(), grid)] == [0] * grid.depth


def test_an_oblique_box_is_bounded_in_voxels():
    grid = Grid((20, 30, 6), np.diag([1.0, 1.0, 5.0, 1.0]))
    turned = ((1.0, 1.0, 0.0), (-1.0, 1.0, 0.0), (0.0, 0.0, 5.0))
    box = Box("b", (10.0, 12.0, 10.0), turned)
    assert np.allclose(box_corners_voxel(box, grid), [[8, 10, 1], [12, 14, 3]])
    found = slice_boxes_xyxy(Prompts(boxes=(box,)), grid)
    assert [len(b) for b in found] == [0, 1, 1, 1, 0, 0]
    assert found[2].tolist() == [[8, 10, 12, 14]]


def test_grids_agree_within_a_tolerance(grid):
    moved = grid.affine.copy()
    moved[0, 3] += 0.01
    assert grids_agree(grid, Grid(grid.shape, grid.affine.copy(), grid.slice_axis))
    assert not grids_agree(grid, Grid(grid.shape, moved, grid.slice_axis))
    assert grids_agree(grid, Grid(grid.shape, moved, grid.slice_axis), tolerance_mm=0.1)


@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from([16, 64, 512]), st.sampled_from(["stretch", "pad"]))
def test_frames_return_and_keep_the_corners_inside(height, width, size, fit):
    frame = Frame(height, width, size, fit)
    corners = np.array([[-0.5, -0.5], [width - 0.5, height - 0.5], [0, 0], [width - 1, height - 1]])
    there = frame.to_model(corners)
    assert np.allclose(frame.to_slice(there), corners, atol=1e-2 * max(1, width / size, height / size))
    fitted_h, fitted_w = frame.fitted_hw
    assert np.allclose(there[0], [-0.5, -0.5], atol=1e-3)
    assert np.allclose(there[1], [fitted_w - 0.5, fitted_h - 0.5], atol=1e-2)


def test_points_and_pixels_agree_between_slice_and_model():
    frame = Frame(height=30, width=60, size=120, fit="stretch")
    assert frame.to_model(np.array([[10, 10]])).tolist() == [[20.5, 41.5]]  # centre of a 2 x 4 block of model pixels
    grid = Grid((60, 30, 1), np.eye(4))
    moved = to_model_points(slice_points(Prompts((Point("a", (10.0, 10.0, 0.0)),)), grid), frame)
    assert moved[0].xy.tolist() == [[20.5, 41.5]]

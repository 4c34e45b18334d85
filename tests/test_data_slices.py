"""From volume to model pixels and back agrees with `Frame`, in every awkward grid."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steadysam.data.slices import detail_images, fit_masks, normalise, prepare_stack, unfit_masks, window_bounds
from steadysam.errors import SteadyError
from steadysam.types import Frame, Grid, Preprocess, Volume, take_slice

Fit = Literal["stretch", "pad"]
FITS = st.sampled_from(["stretch", "pad"])


def gaussian(shape: tuple[int, int, int], centre: tuple[float, float], axis: int) -> np.ndarray:
    """A blob around `centre` (x, y) of the slices across `axis`."""
    x_axis, y_axis = (a for a in range(3) if a != axis)
    index = np.indices(shape)
    return np.exp(-((index[x_axis] - centre[0]) ** 2 + (index[y_axis] - centre[1]) ** 2) / (2 * 3.0**2))


def centroid(image: np.ndarray) -> np.ndarray:
    """(x, y) of the centre of mass of (H, W)."""
    y, x = np.indices(image.shape)
    return np.array([(image * x).sum(), (image * y).sum()]) / image.sum()


def a_volume(grid: Grid, rng: np.random.Generator) -> Volume:
    return Volume(rng.integers(1, 1000, grid.shape).astype(np.int16), grid)


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(40, 70),
    height=st.integers(40, 70),
    size=st.integers(32, 130),
    fit=FITS,
    axis=st.integers(0, 2),
    where=st.tuples(st.floats(0.35, 0.65), st.floats(0.35, 0.65)),
)
def test_a_blob_goes_where_the_frame_says(
    width: int, height: int, size: int, fit: Fit, axis: int, where: tuple[float, float]
) -> None:
    shape = tuple(np.insert([width, height], axis, 2).tolist())
    centre = (where[0] * width, where[1] * height)
    grid = Grid(shape, np.eye(4), axis)
    stack = prepare_stack(Volume(gaussian(shape, centre, axis), grid), Preprocess(size, fit, "ct:2,1"))
    assert stack.images.shape == (2, 1, size, size)
    expected = stack.frame.to_model(np.array([centre]))[0]
    assert np.abs(centroid(stack.images[1, 0]) - expected).max() < 0.1


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 30)] * 3),
    size=st.integers(1, 70),
    fit=FITS,
    axis=st.integers(0, 2),
    seed=st.integers(0, 9),
)
def test_masks_are_taken_at_the_nearest_pixel(shape: Any, size: int, fit: Fit, axis: int, seed: int) -> None:
    grid = Grid(shape, np.eye(4), axis)
    mask = np.random.default_rng(seed).random(shape) > 0.5
    height, width = grid.slice_shape
    frame = Frame(height, width, size, fit)
    fitted = fit_masks(mask, grid, frame)
    assert fitted.shape == (grid.depth, size, size)
    inner_h, inner_w = frame.fitted_hw
    assert not fitted[:, inner_h:].any()
    assert not fitted[:, :, inner_w:].any()
    y, x = (n.ravel() for n in np.mgrid[:inner_h, :inner_w])
    xy = frame.to_slice(np.stack([x, y], 1)).astype(np.float64)
    near = np.clip(np.floor(xy + 0.5 + 1e-4).astype(int), 0, [width - 1, height - 1])
    also = np.clip(np.floor(xy + 0.5 - 1e-4).astype(int), 0, [width - 1, height - 1])  # on a border either may win
    image = take_slice(mask, grid, 0)
    seen = fitted[0, y, x]
    either = [image[b, a] for a in (near[:, 0], also[:, 0]) for b in (near[:, 1], also[:, 1])]
    assert np.all((seen == either[0]) | (seen == either[1]) | (seen == either[2]) | (seen == either[3]))
    assert unfit_masks(fitted, grid, frame).shape == shape


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 30)] * 3),
    factor=st.integers(1, 70),
    fit=FITS,
    axis=st.integers(0, 2),
    seed=st.integers(0, 9),
)
def test_round_trip_is_exact_when_nothing_shrinks(shape: Any, factor: int, fit: Fit, axis: int, seed: int) -> None:
    grid = Grid(shape, np.eye(4), axis)
    height, width = grid.slice_shape
    size = max(height, width) + factor - 1
    mask = np.random.default_rng(seed).random(shape) > 0.5
    frame = Frame(height, width, size, fit)
    if frame.fitted_hw[0] < height or frame.fitted_hw[1] < width:
        return
    assert np.array_equal(unfit_masks(fit_masks(mask, grid, frame), grid, frame), mask)


def test_stack_of_every_grid(grid: Grid, rng: np.random.Generator) -> None:
    volume = a_volume(grid, rng)
    for fit in ("stretch", "pad"):
        stack = prepare_stack(volume, Preprocess(size=24, fit=fit, window="range"))
        assert stack.images.shape == (grid.depth, 1, 24, 24)
        assert stack.images.dtype == np.float32
        assert (stack.frame.height, stack.frame.width) == grid.slice_shape
        assert 0 <= stack.images.min() <= stack.images.max() <= 1
        height, width = stack.frame.fitted_hw
        assert not stack.images[:, :, height:].any()
        assert not stack.images[:, :, :, width:].any()


def test_same_size_changes_nothing(rng: np.random.Generator) -> None:
    grid = Grid((16, 16, 3), np.eye(4))
    volume = a_volume(grid, rng)
    stack = prepare_stack(volume, Preprocess(size=16, window="ct:1000,500"))
    assert np.allclose(stack.images[1, 0], volume.slice_image(1) / 1000, atol=1e-6)


def test_shrinking_is_antialiased() -> None:
    stripes = np.zeros((64, 48, 1), np.uint8)
    stripes[::2] = 200
    stack = prepare_stack(Volume(stripes, Grid(stripes.shape, np.eye(4))), Preprocess(size=16, window="range"))
    assert np.allclose(stack.images, 0.5, atol=0.1)


def test_percentile_window_belongs_to_the_volume(rng: np.random.Generator) -> None:
    array = np.zeros((20, 30, 4), np.int16)
    array[5:15, 5:25] = rng.integers(100, 1100, (10, 20, 4))
    array[6, 6, 2] = 30000  # an outlier must not darken the rest
    low, high = window_bounds(array, "percentile")
    assert (low, high) == tuple(np.percentile(array[array != 0], [0.5, 99.5]))
    assert high < 1200
    stack = prepare_stack(Volume(array, Grid(array.shape, np.eye(4))), Preprocess(size=30))
    assert stack.images[0].max() > 0.9


def test_ct_window() -> None:
    assert window_bounds(np.zeros((2, 2, 2)), "ct:400,40") == (-160, 240)
    assert window_bounds(np.zeros((2, 2, 2)), "ct:350.5, -10") == (-185.25, 165.25)
    for wrong in ("ct:0,40", "ct:400", "ct:-3,4", "soft", ""):
        with pytest.raises(SteadyError) as caught:
            window_bounds(np.zeros((2, 2, 2)), wrong)
        assert (caught.value.code, caught.value.exit_code) == ("WINDOW_SYNTAX", 3)


@pytest.mark.parametrize("value", [0, 7, -1000])
@pytest.mark.parametrize("window", ["percentile", "range"])
def test_constant_images(value: int, window: str) -> None:
    volume = Volume(np.full((5, 6, 2), value, np.int16), Grid((5, 6, 2), np.eye(4)))
    assert not prepare_stack(volume, Preprocess(size=8, window=window)).images.any()


def test_nearly_binary_image_keeps_its_content() -> None:
    array = np.zeros((20, 20, 2), np.uint8)
    array[5:9, 5:9] = 3
    stack = prepare_stack(Volume(array, Grid(array.shape, np.eye(4))), Preprocess(size=20))
    assert stack.images.max() == 1


def test_wide_types_do_not_overflow() -> None:
    array = np.array([0.0, 1e39, 2e39, 4e39]).reshape(2, 2, 1)
    stack = prepare_stack(Volume(array, Grid((2, 2, 1), np.eye(4))), Preprocess(size=2, window="range"))
    assert np.allclose(stack.images[0, 0].T.ravel(), [0, 0.25, 0.5, 1])


def test_colour(rng: np.random.Generator) -> None:
    array = rng.integers(0, 256, (6, 4, 1, 3), dtype=np.uint8)
    volume = Volume(array, Grid((6, 4, 1), np.eye(4)))
    stack = prepare_stack(volume, Preprocess(size=6, fit="pad"))
    assert stack.images.shape == (1, 3, 6, 6)
    assert np.allclose(np.moveaxis(stack.images[0, :, :4, :6], 0, 2), volume.slice_image(0) / 255, atol=1e-6)
    with pytest.raises(SteadyError, match="WINDOW_COLOUR"):
        prepare_stack(volume, Preprocess(size=6, window="ct:400,40"))


def test_normalise() -> None:
    grey = np.zeros((2, 1, 4, 4), np.float32)
    grey[1] = 1
    assert normalise(grey, "spd").shape == (2, 3, 4, 4)
    assert normalise(grey, "spd")[:, 2, 0, 0].tolist() == [-1, 1]
    assert normalise(grey, "medsam")[:, 1, 0, 0].tolist() == [0, 1]
    sam = normalise(torch.from_numpy(grey), "sam")
    assert sam[1, :, 0, 0].tolist() == pytest.approx(
        [(255 - 123.675) / 58.395, (255 - 116.28) / 57.12, (255 - 103.53) / 57.375]
    )
    wrong: Any = "zscore"
    with pytest.raises(SteadyError, match="NORM"):
        normalise(grey, wrong)


def test_padding_of_sam_is_zero_after_normalisation() -> None:
    frame = Frame(2, 4, 4, "pad")
    images = np.zeros((1, 1, 4, 4), np.float32)
    assert (normalise(images, "sam", frame)[:, :, 2:] == 0).all()
    assert (normalise(images, "sam", frame)[:, :, :2] < 0).all()
    assert (normalise(images, "sam") < 0).all()


def test_key_names_everything_that_decides_the_images(rng: np.random.Generator) -> None:
    grid = Grid((9, 8, 7), np.diag([1, 1, 1, 1.0]))
    volume = a_volume(grid, rng)
    base = prepare_stack(volume, Preprocess(size=8))
    other = volume.array.copy(order="F")
    assert prepare_stack(replace(volume, array=other), Preprocess(size=8)).key == base.key
    other[0, 0, 0] += 1
    keys = {
        base.key,
        prepare_stack(replace(volume, array=other), Preprocess(size=8)).key,
        prepare_stack(volume, Preprocess(size=9)).key,
        prepare_stack(volume, Preprocess(size=8, fit="pad")).key,
        prepare_stack(volume, Preprocess(size=8, norm="sam")).key,
        prepare_stack(replace(volume, grid=replace(grid, slice_axis=1)), Preprocess(size=8)).key,
    }
    assert len(keys) == 6


@pytest.mark.parametrize("fit", ["stretch", "pad"])
@pytest.mark.parametrize("colour", [False, True])
def test_detail_is_the_same_stack_at_another_size(rng: np.random.Generator, fit: Fit, colour: bool) -> None:
    """Same window, same fit; neither the images nor the key know of it."""
    grid = Grid((9, 13, 3), np.diag([1.0, 1.5, 4.0, 1.0]))
    shape = (*grid.shape, 3) if colour else grid.shape
    volume = Volume(rng.integers(1, 200, shape).astype(np.int16), grid)
    plain, fine = prepare_stack(volume, Preprocess(8, fit)), prepare_stack(volume, Preprocess(8, fit), detail=32)
    assert plain.detail is None
    assert np.array_equal(plain.images, fine.images)
    assert (plain.key, plain.frame) == (fine.key, fine.frame)
    assert fine.detail is not None
    assert fine.detail.dtype == np.uint8
    assert np.abs(fine.detail / 255 - prepare_stack(volume, Preprocess(32, fit)).images).max() <= 0.501 / 255
    assert fine.detail.max() > 230
    assert np.array_equal(fine.detail, detail_images(volume, Preprocess(8, fit), 32))


def test_a_detail_has_no_negative_size(rng: np.random.Generator) -> None:
    volume = a_volume(Grid((4, 5, 2), np.eye(4)), rng)
    with pytest.raises(SteadyError, match="SIZE.*-32"):
        prepare_stack(volume, Preprocess(8), detail=-32)

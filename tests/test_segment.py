"""The Python API: a run, a volume and prompts in; a mask on its grid and a verdict on each prompt out."""

import itertools
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from conftest import GRIDS
from steadysam.data.slices import prepare_stack
from steadysam.errors import ConfigError, InputError, OutputError
from steadysam.geometry import ras_to_voxel, slice_to_ras, voxel_to_ras
from steadysam.methods.contract import Traits
from steadysam.prompts.files import read_prompts
from steadysam.runs import load_run
from steadysam.segmenting import segment
from steadysam.types import Box, Grid, ImageRef, Point, Prompts, Segmentation, Volume
from toys import click, make_volume, some_prompts


@pytest.fixture(scope="module")
def run(toy_run):
    return load_run(toy_run, "cpu")


def slice_of(point: Point, grid: Grid) -> tuple[int, np.ndarray]:
    """The slice that holds a point, and its pixel there, computed without the code under test's slicer."""
    ijk = ras_to_voxel(np.array(point.xyz_mm), grid)[0]
    return int(np.floor(ijk[grid.slice_axis] + 0.5)), ijk[list(grid.plane_axes)]


def test_mask_and_verdicts_on_every_grid(run, grid):
    volume, prompts = make_volume(grid), some_prompts(grid)
    result = segment(run, volume, prompts)
    assert result.mask.grid is volume.grid
    assert result.mask.array.shape == grid.shape
    assert result.mask.array.dtype == bool
    assert 0 < result.mask.array.sum() < result.mask.array.size
    assert result.notes["foreground_voxels"] == result.mask.array.sum()
    assert result.probability.shape == (grid.depth, 32, 32)
    assert result.saliency is not None
    assert result.saliency.shape == result.probability.shape
    own = {d.prompt_id: d for d in result.decisions if d.slice == d.from_slice}
    assert set(own) == {p.id for p in prompts.points}
    for point in prompts.points:
        t, xy = slice_of(point, grid)
        assert own[point.id].slice == t
        assert np.allclose(own[point.id].xy, xy, atol=1e-4)
    verdicts = {d.verdict for d in own.values()}
    assert verdicts == {"accepted", "rejected"}, "the toy run tells good points from bad ones"
    assert all(own[f"hit{t}"].verdict == "accepted" for t in range(max(1, grid.depth - 1)))


def test_the_mask_is_where_the_object_is(run, grid):
    """The mask's centre lies near the object's, in mm and within the slice; and what it covers is bright."""
    volume = make_volume(grid)
    mask = segment(run, volume, some_prompts(grid)).mask.array
    assert volume.array[mask].mean() - volume.array[~mask].mean() > 40
    voxel_mm = np.array(grid.spacing_mm)[list(grid.plane_axes)]
    centres = [voxel_to_ras(np.argwhere(where), grid).mean(axis=0) for where in (volume.array > 150, mask)]
    across = grid.affine[:3, grid.slice_axis] / grid.spacing_mm[grid.slice_axis]
    apart = centres[1] - centres[0]
    assert np.linalg.norm(apart - across * (apart @ across)) < 1.5 * voxel_mm.max()


def test_decoder_points_come_back_in_slice_pixels(run, grid):
    result = segment(run, make_volume(grid), some_prompts(grid))
    height, width = grid.slice_shape
    given = {d.prompt_id: d for d in result.decisions if d.slice == d.from_slice}
    assert any(len(here) for here in result.points)
    for here in result.points:
        for name, (x, y) in zip(here.ids, here.xy.tolist(), strict=True):
            assert -0.5 <= x <= width - 0.5
            assert -0.5 <= y <= height - 0.5
            # the decoder's point is the model pixel that holds the prompt: half a model pixel away at most
            assert abs(x - given[name].xy[0]) <= width / 32 * 0.51
            assert abs(y - given[name].xy[1]) <= height / 32 * 0.51


def test_the_same_call_gives_the_same_bytes(run):
    volume, prompts = make_volume(GRIDS["oblique"]), some_prompts(GRIDS["oblique"])
    state = torch.get_rng_state()
    a, b = (segment(run, volume, prompts) for _ in range(2))
    assert a.probability.tobytes() == b.probability.tobytes()
    assert a.decisions == b.decisions
    assert torch.equal(torch.get_rng_state(), state), "no global random state is used"


@pytest.mark.parametrize("order, flip", list(itertools.product([(0, 1, 2), (0, 2, 1), (2, 0, 1)], [False, True])))
def test_storage_does_not_matter(run, order, flip):
    """The same image stored along another axis, or from the other end: the same mask in the patient.

    Axis orders keep x before y within a slice and only the slice axis is reversed, because a network need
    not be equivariant to flips within a slice.
    """
    grid = GRIDS["oblique"]
    volume, prompts = make_volume(grid), some_prompts(grid)
    stored, affine = volume.array, grid.affine.copy()
    if flip:
        stored = stored[:, :, ::-1]
        affine[:3, 3] += affine[:3, 2] * (grid.shape[2] - 1)
        affine[:3, 2] *= -1
    affine[:3, :3] = affine[:3, list(order)]
    stored = np.ascontiguousarray(stored.transpose(order))
    other = Grid((stored.shape[0], stored.shape[1], stored.shape[2]), affine, order.index(2))
    moved = segment(run, Volume(stored, other), prompts)
    plain = segment(run, volume, prompts)
    places = [
        {tuple(p) for p in np.round(voxel_to_ras(np.argwhere(r.mask.array), r.mask.grid), 3).tolist()}
        for r in (plain, moved)
    ]
    assert places[0] == places[1]
    assert len(places[0]) > 10
    verdicts = [{d.prompt_id: d.verdict for d in r.decisions if d.slice == d.from_slice} for r in (plain, moved)]
    assert verdicts[0] == verdicts[1]
    points = {p.id: p for p in prompts.points}
    for decision in moved.decisions:
        assert np.allclose(decision.xy, slice_of(points[decision.prompt_id], other)[1], atol=1e-4)


def test_pad_and_stretch_runs_keep_the_grid(run):
    grid = GRIDS["sagittal"]
    config = run.config.model_copy(update={"preprocess": run.config.preprocess.model_copy(update={"fit": "pad"})})
    result = segment(replace(run, config=config), make_volume(grid), some_prompts(grid))
    assert result.mask.array.shape == grid.shape
    assert result.frame.fitted_hw == (22, 32) or result.frame.fitted_hw == (32, 22)
    points = {p.id: p for p in some_prompts(grid).points}
    for decision in result.decisions:
        assert np.allclose(decision.xy, slice_of(points[decision.prompt_id], grid)[1], atol=1e-4)


def test_no_prompts_at_all(run):
    with pytest.raises(InputError, match="PROMPT_NONE") as error:
        segment(run, make_volume(GRIDS["plain"]), Prompts())
    assert error.value.exit_code == 4


def test_a_detector_that_found_nothing_gives_an_empty_mask(run):
    grid = GRIDS["plain"]
    result = segment(run, make_volume(grid), Prompts(history=({"step": "detect"},)))
    assert not result.mask.array.any()
    assert result.mask.array.shape == grid.shape
    assert result.probability.shape == (grid.depth, result.frame.size, result.frame.size)
    assert result.notes == {"foreground_voxels": 0, "detector_found_nothing": True}
    other = Prompts(history=({"step": "detect"},), image=ImageRef("other", (9, 13, 6)))
    with pytest.raises(InputError, match="PROMPT_WRONG_IMAGE"):
        segment(run, make_volume(grid), other)


def test_only_negative_prompts(run):
    grid = GRIDS["plain"]
    prompts = Prompts((click("n", (3, 3), 1, grid, sign="negative"),))
    with pytest.raises(InputError, match="PROMPT_NO_POSITIVE"):
        segment(run, make_volume(grid), prompts)


@pytest.mark.parametrize("image", [ImageRef("other", (9, 13, 6)), ImageRef("other", None, "0" * 64)])
def test_prompts_of_another_image(run, image):
    grid = GRIDS["plain"]
    prompts = replace(some_prompts(grid), image=image)
    with pytest.raises(InputError, match="PROMPT_WRONG_IMAGE") as error:
        segment(run, make_volume(grid), prompts)
    assert "other" in str(error.value)
    segment(run, make_volume(grid), replace(prompts, image=ImageRef("x", grid.shape, grid.key())))


def outside_prompts(grid: Grid) -> Prompts:
    """`some_prompts` and one point five slices above the volume."""
    far = click("far", (3.0, 4.0), grid.depth + 4, grid)
    return Prompts((*some_prompts(grid).points, far))


def test_prompts_outside_are_refused(run, grid):
    with pytest.raises(InputError, match="PROMPT_OUTSIDE") as error:
        segment(run, make_volume(grid), outside_prompts(grid))
    mm = 4.5 * grid.spacing_mm[grid.slice_axis]
    assert "'far'" in str(error.value)
    assert f"{mm:.1f} mm" in str(error.value)


def test_prompts_outside_dropped(run, grid):
    volume = make_volume(grid)
    result = segment(run, volume, outside_prompts(grid), outside="drop")
    plain = segment(run, volume, some_prompts(grid))
    assert np.array_equal(result.mask.array, plain.mask.array)
    (far,) = [d for d in result.decisions if d.prompt_id == "far"]
    assert (far.verdict, far.slice) == ("ignored", -1)
    assert "outside" in far.reason
    assert "far" not in {name for here in result.points for name in here.ids}


def test_prompts_outside_clipped(run):
    grid = GRIDS["coronal"]
    result = segment(run, make_volume(grid), outside_prompts(grid), outside="clip")
    own = [d for d in result.decisions if d.prompt_id == "far" and d.slice == d.from_slice]
    assert len(own) == 1
    assert own[0].slice == grid.depth - 1
    assert own[0].verdict in ("accepted", "rejected")
    assert np.allclose(own[0].xy, (3.0, 4.0), atol=1e-4)


def test_boxes_are_ignored_with_a_reason(run):
    grid = GRIDS["oblique"]
    volume, prompts = make_volume(grid), some_prompts(grid)
    a, b, c = slice_to_ras(np.array([[4.0, 6.0]]), 2, grid)[0].tolist()
    zero = (0.0, 0.0, 0.0)
    box = Box("frame", (a, b, c), ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), zero))
    result = segment(run, volume, replace(prompts, boxes=(box,)))
    (found,) = [d for d in result.decisions if d.prompt_id == "frame"]
    assert found.verdict == "ignored"
    assert "box" in found.reason
    assert found.slice in (1, 2, 3)
    assert np.array_equal(result.mask.array, segment(run, volume, prompts).mask.array)


def test_inference_settings_of_load_run(toy_run, run):
    """Switches that act at inference change what is kept; the run's own settings stay as they were."""
    grid = GRIDS["plain"]
    volume, prompts = make_volume(grid), some_prompts(grid)
    strict = segment(load_run(toy_run, "cpu", tau=1.0, empty="empty_mask"), volume, prompts)
    assert not strict.mask.array.any()
    assert all(d.verdict == "rejected" for d in strict.decisions)
    assert strict.notes["empty_consensus_slices"] == list(range(grid.depth))
    raw = segment(load_run(toy_run, "cpu", prompts="raw"), volume, prompts)
    assert raw.notes["decoder_points"] == len(prompts.points)


def test_numbers_that_are_not_finite_are_not_made_into_a_mask(toy_run):
    broken = load_run(toy_run, "cpu")
    with torch.no_grad():
        next(p for n, p in broken.model.named_parameters() if "mask_decoder" in n).fill_(float("nan"))
    with pytest.raises(OutputError, match="NUMERIC_NONFINITE") as error:
        segment(broken, make_volume(GRIDS["plain"]), some_prompts(GRIDS["plain"]))
    assert error.value.exit_code == 10


def test_threshold_moves_the_mask(run):
    grid = GRIDS["plain"]
    volume, prompts = make_volume(grid), some_prompts(grid)
    sizes = [int(segment(run, volume, prompts, threshold=t).mask.array.sum()) for t in (0.1, 0.5, 0.9)]
    assert sizes[0] > sizes[1] > sizes[2]


def test_prompt_files_give_what_values_give(run, tmp_path):
    """RAS, LPS and ijk files of the same points lead to the same mask."""
    from steadysam.prompts.files import write_prompts

    grid = GRIDS["flipped"]
    volume, prompts = make_volume(grid), some_prompts(grid)
    expected = segment(run, volume, prompts).mask.array
    for frame in ("RAS", "LPS", "ijk"):
        path = write_prompts(tmp_path / f"{frame}.json", prompts, frame=frame, grid=grid)
        assert np.array_equal(segment(run, volume, read_prompts(path, grid)).mask.array, expected)


def looking_twice(run, size):
    """The run with a method that only notes which stack it was given."""
    seen = []

    def note(model, settings, stack, points, cache):
        seen.append(stack)
        return Segmentation(np.zeros((stack.depth, 32, 32), np.float32))

    method = SimpleNamespace(segment=note, TRAITS=Traits(points=False))
    return replace(run, method=method, settings=SimpleNamespace(detail_size=size)), seen


def test_details_are_made_for_methods_that_ask(run):
    volume = make_volume(GRIDS["oblique"])
    twice, seen = looking_twice(run, 48)
    segment(twice, volume, Prompts())
    assert np.array_equal(seen[0].detail, prepare_stack(volume, run.preprocess, 48).detail)  # pyright: ignore
    once, seen = looking_twice(run, 0)
    segment(once, volume, Prompts())
    assert seen[0].detail is None


def test_details_of_another_volume(run):
    """Its own window, its own grid, slices modulo its depth; images and key stay those of the volume."""
    volume, other = make_volume(GRIDS["plain"]), make_volume(GRIDS["coronal"], seed=4)
    other = replace(other, array=other.array * 7 + 100)
    twice, seen = looking_twice(run, 48)
    segment(twice, volume, Prompts())
    segment(twice, volume, Prompts(), detail=other)
    foreign = prepare_stack(other, run.preprocess, 48).detail
    assert foreign is not None
    assert len(foreign) == 4
    assert np.array_equal(seen[1].detail, foreign[[0, 1, 2, 3, 0]])
    assert np.array_equal(seen[0].images, seen[1].images)
    assert seen[0].key == seen[1].key


def test_details_of_another_volume_need_a_method_that_looks_at_them(run):
    volume = make_volume(GRIDS["plain"])
    with pytest.raises(ConfigError, match="DETAIL_UNUSED"):
        segment(run, volume, some_prompts(GRIDS["plain"]), detail=volume)

"""Drawn images: the same bytes for the same seed, and masks, clicks and boxes that fit what is seen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Generator, Tensor

from steadysam.pretraining.batch import PretrainBatch, draw_batch
from steadysam.synthetic.appearance import render
from steadysam.synthetic.config import PromptMix, SceneConfig
from steadysam.synthetic.fields import log_uniform, smooth_field
from steadysam.synthetic.scenes import Scenes, draw_scenes
from steadysam.synthetic.shapes import draw_shapes
from steadysam.synthetic.targets import draw_boxes, draw_clicks, draw_targets, draw_wrong_clicks

PLAIN = SceneConfig(lookalikes=0, colour=0, textures=False, corruption=False)


def generator(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def scenes_of(count: int, config: SceneConfig, size: int = 64, seed: int = 0) -> Scenes:
    return draw_scenes(generator(seed), count, config, size)


def some_masks(count: int = 24, seed: int = 0) -> Tensor:
    """(M, 64, 64) targets, none empty."""
    masks = draw_targets(generator(seed), scenes_of(count, SceneConfig(depth=1), seed=seed), (0.5,)).masks[0]
    return masks[masks.flatten(1).any(1)]


def disc(size: int, x: float, y: float, radius: float) -> Tensor:
    """(size, size) bool."""
    steps = torch.arange(size)
    return (steps[None] - x) ** 2 + (steps[:, None] - y) ** 2 <= radius**2


def at(masks: Tensor, xy: Tensor) -> Tensor:
    """(M, K) values of `masks` (M, S, S) at whole-numbered places (M, K, 2)."""
    assert (xy == xy.round()).all()
    x, y = xy.long().unbind(-1)
    return masks[torch.arange(len(masks))[:, None], y, x]


def bytes_of(batch: PretrainBatch) -> bytes:
    parts = [batch.images]
    for row in batch.rows:
        parts += [row.target, row.xy, row.positive] + ([] if row.boxes is None else [row.boxes])
    return b"".join(part.contiguous().numpy().tobytes() for part in parts)


def test_the_same_seed_gives_the_same_bytes():
    first, again, other = (
        bytes_of(draw_batch(generator(seed), 3, 64, SceneConfig(), PromptMix(), 3)) for seed in (7, 7, 8)
    )
    assert first == again
    assert first != other


def test_the_global_generators_are_left_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    np_before = np.random.get_state()[1].copy()  # pyright: ignore
    drawn = bytes_of(draw_batch(generator(7), 3, 64, SceneConfig(), PromptMix(), 3))
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], np_before)  # pyright: ignore
    torch.manual_seed(4)
    assert bytes_of(draw_batch(generator(7), 3, 64, SceneConfig(), PromptMix(), 3)) == drawn


@pytest.mark.parametrize(("depth", "objects", "size"), [(1, 1, 64), (2, 7, 128), (3, 10, 64), (3, 3, 128)])
def test_images_are_finite_and_in_range(depth: int, objects: int, size: int):
    config = SceneConfig(depth=depth, objects=objects, regions=3)
    drawn = scenes_of(3, config, size)
    images = render(generator(1), drawn, config)
    assert images.shape == (3 * depth, 3, size, size)
    assert torch.isfinite(images).all()
    assert images.min() >= 0
    assert images.max() <= 1
    assert images.flatten(1).std(1).min() > 0.01, "there is something to see"
    assert drawn.labels.shape == (3 * depth, size, size)
    assert drawn.whole.shape == (3 * depth, objects, size, size)
    assert drawn.level.shape == (3, 3 + 2 * objects + 1)
    assert 0 <= int(drawn.labels.min()) <= int(drawn.labels.max()) <= drawn.void == 3 + 2 * objects


def test_a_batch_has_about_as_many_images_as_asked():
    """Six images are three slabs of two slices where slabs are drawn, else six single images."""
    for slabs, depth in ((1.0, 2), (0.0, 1)):
        batch = draw_batch(generator(2), 6, 64, SceneConfig(slabs=slabs, depth=2), PromptMix(), 2)
        assert len(batch.images) == 6
        same = (batch.images[::2] - batch.images[1::2]).abs().mean((1, 2, 3))
        assert (same < 0.15).all() == (depth == 2)
        assert len(batch.rows) == 2
        assert all(row.target.shape == (6, 64, 64) for row in batch.rows)
        assert 0 <= batch.rows[0].rounds < 2
        assert batch.rows[1].rounds == 0
    assert len(draw_batch(generator(2), 1, 64, SceneConfig(slabs=1, depth=3), PromptMix(), 2).images) == 3


def test_a_field_is_about_standard_normal_and_continuous_across_slices():
    z = torch.tensor([[0.0, 0.02, 0.9]])
    field = smooth_field(generator(), 40, z, 32, 6)
    assert field.shape == (3, 40, 32, 32)
    assert abs(float(field.mean())) < 0.1
    assert 0.6 < float(field.std()) < 1.2
    near, far = (field[0] - field[1]).abs().mean(), (field[0] - field[2]).abs().mean()
    assert near < 0.2 * far


def test_log_uniform_is_uniform_in_the_logarithm():
    values = log_uniform(generator(), 20_000, low=0.1, high=10)
    assert values.min() >= 0.1
    assert values.max() <= 10.0001
    assert abs(float((values < 1).float().mean()) - 0.5) < 0.02


def test_clicks_lie_inside_and_interior_ones_deeper():
    masks = some_masks()
    assert len(masks) > 15
    padded = np.pad(masks.numpy(), ((0, 0), (1, 1), (1, 1)))
    depth = torch.from_numpy(np.array([ndimage.distance_transform_edt(mask) for mask in padded]))
    means = {}
    for interior in (False, True):
        xy = draw_clicks(generator(3), masks, 40, torch.full((len(masks),), interior))
        assert xy.shape == (len(masks), 40, 2)
        assert at(masks, xy).all()
        means[interior] = at(depth[:, 1:-1, 1:-1], xy).mean(1)
    assert (means[True] >= means[False]).float().mean() > 0.8
    assert means[True].mean() > 1.3 * means[False].mean()


def test_uniform_clicks_reach_every_pixel_and_a_single_pixel_is_found():
    mask = torch.zeros(1, 32, 32, dtype=torch.bool)
    mask[0, 5, 9:12] = True
    xy = draw_clicks(generator(), mask, 200, torch.tensor([False]))[0]
    assert {tuple(place) for place in xy.tolist()} == {(9, 5), (10, 5), (11, 5)}
    mask[0, 5, 9:11] = False
    for interior in (False, True):
        assert draw_clicks(generator(), mask, 3, torch.tensor([interior]))[0].tolist() == [[11, 5]] * 3
    anywhere = draw_clicks(generator(), torch.zeros_like(mask), 50, torch.tensor([True]))
    assert ((anywhere >= 0) & (anywhere <= 31)).all()
    assert len(anywhere[0].unique(dim=0)) > 30, "an empty mask is clicked anywhere"


def test_boxes_are_the_mask_s_own_up_to_a_fifth_and_stay_in_the_image():
    """A disc of 21 pixels around (30, 40) spans x 20..40, y 30..50; a side moves by 0.3 of 21 pixels at most."""
    masks = disc(64, 30, 40, 10)[None].expand(2000, -1, -1)
    boxes = draw_boxes(generator(), masks)
    moved = boxes - torch.tensor([20.0, 30.0, 40.0, 50.0])
    assert moved.abs().max() <= 0.3 * 21
    outwards = moved * torch.tensor([-1.0, -1.0, 1.0, 1.0])
    assert outwards.max() > 0.25 * 21
    assert -0.2 * 21 - 1e-4 <= outwards.min() < -0.15 * 21
    assert (outwards > 0).float().mean() > 0.55, "rather too large than too small"
    assert 0 < moved.abs().median() < 2, "most boxes are good"


def test_boxes_of_targets_overlap_them_and_stay_in_the_image():
    masks = some_masks(seed=1)
    extents = torch.stack([masks.any(1).sum(1), masks.any(2).sum(1)])
    masks = masks[extents.amin(0) >= 4]  # of a thread one pixel wide a box may miss the pixel's centre
    assert len(masks) > 15
    boxes = draw_boxes(generator(1), masks)
    assert ((boxes >= 0) & (boxes <= 63)).all()
    assert (boxes[:, 2:] >= boxes[:, :2]).all()
    steps = torch.arange(64)
    across = (steps >= boxes[:, :1]) & (steps <= boxes[:, 2:3])
    down = (steps >= boxes[:, 1:2]) & (steps <= boxes[:, 3:])
    inside = masks & across[:, None] & down[:, :, None]
    covered = inside.flatten(1).sum(1) / masks.flatten(1).sum(1)
    assert covered.min() > 0.5
    assert covered.mean() > 0.9


def test_wrong_clicks_are_beside_the_mask_and_most_are_near():
    masks = some_masks(seed=2)
    xy = torch.cat([draw_wrong_clicks(generator(seed), masks) for seed in range(20)], 1)
    assert xy.shape == (len(masks), 20, 2)
    assert not at(masks, xy).any()
    mask = disc(64, 32, 32, 6)[None].expand(1000, -1, -1)
    away = (draw_wrong_clicks(generator(), mask)[:, 0] - 32).norm(dim=1)
    # 60 % within the 8 pixel cells that the disc touches and those next to them: x and y from 16 to 48
    assert 0.6 < (away < 23).float().mean() < 0.85


def dice(a: Tensor, b: Tensor) -> Tensor:
    """(M,) of masks (M, S, S)."""
    both = (a & b).flatten(1).sum(1)
    return 2 * both / (a.flatten(1).sum(1) + b.flatten(1).sum(1)).clamp(min=1)


@pytest.fixture(scope="module")
def slabs() -> tuple[Scenes, Tensor, Tensor]:
    """12 slabs of 3 slices: scenes, targets (12, 3, 64, 64) and the same of another slice."""
    drawn = scenes_of(12, SceneConfig(depth=3), seed=5)
    targets = draw_targets(generator(6), drawn, (0.8,))
    return drawn, targets.masks[0].view(12, 3, 64, 64), targets.elsewhere[0].view(12, 3, 64, 64)


def test_neighbouring_slices_show_the_same_objects(slabs):
    drawn, masks, _ = slabs
    seen = masks.flatten(2).any(2)
    pairs = seen[:, :-1] & seen[:, 1:]
    assert pairs.sum() > 12
    near = dice(masks[:, :-1][pairs], masks[:, 1:][pairs])
    foreign = dice(masks[:, :-1][pairs], masks.roll(1, 0)[:, 1:][pairs])
    assert near.mean() > 0.7
    assert near.mean() > foreign.mean() + 0.3
    labels = drawn.labels.view(12, 3, 64, 64)
    alike = (labels[:, :-1] == labels[:, 1:]).float().mean()
    assert alike > 0.75
    assert alike > (labels == labels.roll(1, 0)).float().mean() + 0.3


def test_a_row_asks_for_one_object_on_all_slices(slabs):
    """The labels under a target are one shape's (or one region's), the same ones on every slice of its slab."""
    drawn, masks, _ = slabs
    labels = drawn.labels.view(12, 3, 64, 64)
    whole = drawn.whole.view(12, 3, -1, 64, 64)
    for b in range(12):
        assert masks[b].any()
        bodies = range(drawn.regions, drawn.void, 2)
        exact = [{r} for r in range(drawn.regions)] + [s for i in bodies for s in ({i}, {i + 1}, {i, i + 1})]
        of_labels = any(torch.equal(masks[b], torch.isin(labels[b], torch.tensor(list(s)))) for s in exact)
        of_shapes = any(torch.equal(masks[b], whole[b, :, i]) for i in range(whole.shape[2]))
        assert of_labels or of_shapes
        area = masks[b].flatten(1).float().mean(1)
        assert ((area > 0.001) & (area < 0.7)).any(), "on some slice it is neither a speck nor everything"


def test_elsewhere_is_the_neighbouring_slice(slabs):
    _, masks, elsewhere = slabs
    assert torch.equal(elsewhere[:, 1], masks[:, 0])
    assert torch.equal(elsewhere[:, 0], masks[:, 2])


def test_targets_by_area_are_larger():
    targets = draw_targets(generator(), scenes_of(40, SceneConfig(depth=1)), (1.0, 0.0)).masks.float().mean((2, 3))
    by_area, equally = targets.mean(1).tolist()
    assert by_area > 1.5 * equally


def test_a_scene_in_which_nothing_can_be_asked_for_has_targets_all_the_same():
    """All that there is lies in the void: no candidate has any area, and all rows are absent."""
    drawn = scenes_of(3, PLAIN.model_copy(update={"depth": 1, "objects": 2}))
    nothing = replace(drawn, labels=torch.full_like(drawn.labels, drawn.void), whole=torch.zeros_like(drawn.whole))
    for by_area in (0.0, 0.8, 1.0):
        assert not draw_targets(generator(), nothing, (by_area,)).masks.any()


def test_lookalikes_share_brightness_and_grain_with_what_they_repeat():
    config = SceneConfig(depth=1, objects=9, lookalikes=0.6, faint=0.4)
    drawn = scenes_of(8, config)
    level = drawn.level[:, config.regions : -1].view(8, 9, 2)
    grain = drawn.grain[:, config.regions : -1].view(8, 9, 2, -1)
    equal = (level[:, :, None] == level[:, None]).all(-1) & (grain[:, :, None] == grain[:, None]).all((-1, -2))
    twins = equal.tril(-1).any(2)
    assert 0.35 < twins[:, 1:].float().mean() < 0.8
    assert not twins[:, 0].any()
    alone = scenes_of(8, config.model_copy(update={"lookalikes": 0.0}))
    level = alone.level[:, config.regions : -1].view(8, 9, 2)
    assert not (level[:, :, None] == level[:, None]).all(-1).tril(-1).any()


def test_twins_are_earlier_shapes_of_the_same_form():
    shapes, twin_of = draw_shapes(generator(4), 6, SceneConfig(objects=9, lookalikes=0.7), torch.zeros(6))
    slab, index = (twin_of >= 0).nonzero(as_tuple=True)
    assert len(slab) > 10
    source = twin_of[slab, index]
    assert (source < index).all()
    direct = twin_of[slab, source] < 0  # a twin of a twin has the numbers from before that one was changed
    slab, index, source = slab[direct], index[direct], source[direct]
    for name in ("kind", "aspect", "wave", "wall"):
        values = getattr(shapes, name)
        assert torch.equal(values[slab, index], values[slab, source]), name
    ratio = shapes.radius[slab, index] / shapes.radius[slab, source]
    assert ((ratio > 0.74) & (ratio < 1.31)).all()
    assert (shapes.centre[slab, index] - shapes.centre[slab, source]).norm(dim=1).min() > 0
    none = draw_shapes(generator(4), 6, SceneConfig(objects=9, lookalikes=0), torch.zeros(6))[1]
    assert (none == -1).all()


def test_without_colour_the_channels_are_equal():
    for colour, corruption in ((0.0, False), (1.0, False)):
        config = SceneConfig(depth=1, colour=colour, corruption=corruption)
        images = render(generator(), scenes_of(4, config), config)
        spread = (images - images[:, :1]).abs().flatten(1).amax(1)
        assert (spread == 0).all() if colour == 0 else (spread > 0.01).all()


def test_without_textures_and_corruption_labels_are_flat():
    """A pixel whose neighbourhood has one label shows that label's brightness, exactly."""
    drawn = scenes_of(3, PLAIN.model_copy(update={"depth": 2}))
    images = render(generator(), drawn, PLAIN)
    expected = drawn.level.repeat_interleave(2, 0).gather(1, drawn.labels.flatten(1)).view(drawn.labels.shape)
    same = torch.from_numpy(
        np.stack([ndimage.maximum_filter(x, 7) == ndimage.minimum_filter(x, 7) for x in drawn.labels.numpy()])
    )
    assert same.float().mean() > 0.2
    assert (images[:, 0] - expected).abs()[same].max() < 1e-5
    rough = SceneConfig(lookalikes=0, colour=0, corruption=False)
    textured = scenes_of(3, rough.model_copy(update={"depth": 2}))
    assert torch.equal(textured.labels, drawn.labels), "the switch changes the appearance only"
    moved = (render(generator(), textured, rough)[:, 0] - expected).abs()[same]
    assert moved.mean() > 0.02
    assert drawn.grain.abs().max() == 0
    assert textured.grain.abs().max() > 0


def test_corruption_changes_the_image_and_not_the_labels():
    dirty = PLAIN.model_copy(update={"corruption": True})
    clean, spoilt = scenes_of(4, PLAIN), scenes_of(4, dirty)
    assert torch.equal(clean.labels, spoilt.labels)
    difference = (render(generator(), clean, PLAIN) - render(generator(), spoilt, dirty)).abs().mean((1, 2, 3))
    assert difference.min() > 0.01


def test_rows_of_a_batch_fit_their_targets():
    """Over many batches: clicks on visible targets lie inside, unless they are said to be wrong or from elsewhere."""
    mix = PromptMix(boxes=0.5, wrong=0, neighbour=0)
    scene = SceneConfig(slabs=0.5, objects=5, regions=3)
    seen = {"box": 0, "click": 0, "negative": 0}
    for seed in range(12):
        batch = draw_batch(generator(seed), 4, 64, scene, mix, 3)
        for row in batch.rows:
            present = row.target.flatten(1).any(1)
            inside = at(row.target, row.xy) if row.xy.shape[1] else row.positive
            assert torch.equal(inside[present], row.positive[present]), "no click is wrong, negatives are beside"
            seen["box"] += row.boxes is not None
            seen["click"] += int(row.positive.sum())
            seen["negative"] += int((~row.positive).sum())
    assert min(seen.values()) > 3, seen


def test_wrong_clicks_are_mixed_in_as_asked():
    """One wrong click in a row of three or more: twice the share, as only every second row can have one."""
    spoilt = rows = 0
    for seed in range(20):
        mix = PromptMix(boxes=0, wrong=0.5, neighbour=0)
        batch = draw_batch(generator(seed), 4, 64, SceneConfig(slabs=0, objects=4, regions=2), mix, 1)
        row = batch.rows[1]
        if row.boxes is None and row.xy.shape[1] >= 3:
            outside = ~at(row.target, row.xy) & row.positive
            assert outside.sum(1).max() <= 1
            spoilt += int(outside.any(1).sum())
            rows += len(row.xy) - int((~row.positive).any(1).sum())
    assert rows > 10
    assert spoilt == rows

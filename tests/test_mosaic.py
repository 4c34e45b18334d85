"""Material of detectors: where a mosaic puts what, boxes of the moved masks, chance, grey and colour."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from steadysam.detection.boxes import boxes_of_mask
from steadysam.errors import InputError
from steadysam.methods.contract import Chance, TrainingCase
from steadysam.methods.detection_samples import DetectionSamples, detector_images, held_out_samples
from steadysam.methods.mosaic import (
    MosaicConfig,
    Picture,
    Tile,
    compose,
    draw_picture,
    jitter,
    moved_boxes,
    moved_mask,
)
from steadysam.types import Frame, Preprocess, SlicePoints, SliceStack

SIZE = 32
PLAIN = MosaicConfig(image_size=SIZE, min_area=1, mosaic=0, scale=0, translate=0, flip=0, hsv=(0, 0, 0))


def case_of(depth=6, size=SIZE, channels=1, name="a", detail=0, seed=0) -> TrainingCase:
    """Noise; object on all slices but the first: a wide and a narrow block, different on every slice."""
    rng = np.random.default_rng(seed)
    images = rng.random((depth, channels, size, size)).astype(np.float32)
    masks = np.zeros((depth, size, size), bool)
    for t in range(1, depth):
        masks[t, 2 : 4 + t, 3:20] = True
        masks[t, 20:30, 25 - t : 28] = True
    stack = SliceStack(images, Frame(size, size, size), Preprocess(size=size), f"{name}-{seed}")
    fine = None
    if detail:
        stack = replace(stack, detail=rng.integers(0, 256, (depth, channels, detail, detail), dtype=np.uint8))
        fine = masks.repeat(detail // size, 1).repeat(detail // size, 2)
    return TrainingCase(name, stack, masks, (SlicePoints.empty(),) * depth, None, fine)


def chance(epoch=0, training=True, seed=0) -> Chance:
    return Chance(seed, "student", epoch, training)


def sample(config, index=2, epochs=100, cases=None, at=None):
    return DetectionSamples(cases or [case_of()], config, epochs).sample(index, at or chance())


def test_a_tile_by_hand():
    """Non-square content: columns 4..9 and rows 2..3 at twice the size, moved by (3, -1)."""
    mask = np.zeros((SIZE, SIZE), bool)
    mask[2:4, 4:10] = True
    tile = Tile(0, (0, 0, SIZE, SIZE), 2.0, (3.0, -1.0))
    picture = Picture((tile,))
    assert moved_boxes([mask], picture, SIZE, 1).tolist() == [[2 * 4 + 3, 2 * 2 - 1, 2 * 10 + 3, 2 * 4 - 1]]
    mirrored = replace(picture, mirrored=True)
    assert moved_boxes([mask], mirrored, SIZE, 1).tolist() == [[SIZE - 23, 3, SIZE - 11, 7]]
    image = compose([torch.from_numpy(mask[None].astype(np.float32))], picture, SIZE)[0].numpy()
    assert image[4:6, 12:22].min() == 1, "inside, away from the rim that bilinear sampling blurs"
    assert image[:2].max() == 0
    assert image[:, :10].max() == 0
    assert image[:, 24:].max() == 0
    assert np.array_equal(compose([torch.from_numpy(mask[None].astype(np.float32))], mirrored, SIZE)[0], image[:, ::-1])


def test_bilinear_weights_by_hand():
    """A ramp stays the ramp under shift and scale, where it is not at the border; outside there is nothing."""
    ramp = torch.arange(SIZE).float().expand(1, SIZE, SIZE)
    moved = compose([ramp], Picture((Tile(0, (0, 0, SIZE, SIZE), 0.5, (4.25, 0.0)),)), SIZE)[0]
    x = torch.arange(SIZE) + 0.5
    expected = (x - 4.25) / 0.5 - 0.5  # the ramp's value at a place is the place less half a pixel
    assert torch.allclose(moved[3, 5:19], expected[5:19], atol=1e-5)
    assert moved[:, :4].abs().max() == 0
    assert moved[:, 21:].abs().max() == 0
    assert moved[16:].abs().max() == 0


def test_four_tiles_meet_by_hand():
    """Scale 1: slice 0 ends and slice 3 begins where they meet; every tile shows its own grey."""
    config = MosaicConfig(image_size=SIZE, scale=0, translate=0, flip=0, hsv=(0, 0, 0))
    generator = np.random.default_rng(3)
    u = np.random.default_rng(3).random(10)
    picture = draw_picture(config, generator)
    meeting = SIZE * (0.5 + u[8:10]) - SIZE / 2  # the picture shows the middle of the canvas
    column, row = (int(np.ceil(at - 0.5)) for at in meeting)
    assert [tile.window for tile in picture.tiles] == [
        (0, 0, column, row),
        (column, 0, SIZE, row),
        (0, row, column, SIZE),
        (column, row, SIZE, SIZE),
    ]
    greys = [torch.full((1, SIZE, SIZE), 0.2 * (k + 1)) for k in range(4)]
    image = compose(greys, picture, SIZE)[0]
    for k, tile in enumerate(picture.tiles):
        x0, y0, x1, y1 = tile.window
        assert torch.allclose(image[y0:y1, x0:x1], torch.tensor(0.2 * (k + 1)), atol=1e-6)
    first, last = picture.tiles[0], picture.tiles[3]
    assert np.allclose(np.array(first.shift) + SIZE, meeting), "its lower right corner"
    assert np.allclose(last.shift, meeting), "its upper left corner"


def test_neighbours_in_a_mosaic_do_not_grow_together():
    """Four full masks touch along the seams: four boxes, which fill the picture without overlap."""
    config = MosaicConfig(image_size=SIZE, scale=0, translate=0, flip=0)
    picture = draw_picture(config, np.random.default_rng(3))
    boxes = moved_boxes([np.ones((SIZE, SIZE), bool)] * 4, picture, SIZE, 1)
    assert boxes.tolist() == [list(map(float, tile.window)) for tile in picture.tiles]


@pytest.mark.parametrize("mosaic", [0.0, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_boxes_are_the_components_of_the_moved_masks(mosaic, seed):
    """Against a picture of the masks themselves, tile by tile, at the default scale, shift and flip."""
    config = MosaicConfig(image_size=SIZE, min_area=3, mosaic=mosaic)
    masks = list(case_of().masks[[1, 3, 4, 5]])
    picture = draw_picture(config, np.random.default_rng(seed))
    found = moved_boxes(masks, picture, SIZE, 3)
    expected = []
    for tile in picture.tiles:
        whole = np.zeros((SIZE, SIZE), bool)
        x0, y0, x1, y1 = tile.window
        whole[y0:y1, x0:x1] = moved_mask(masks[tile.source], tile)
        expected += boxes_of_mask(whole[:, ::-1] if picture.mirrored else whole, 3).tolist()
    assert sorted(found.tolist()) == sorted(expected)
    assert found.dtype == np.float32
    assert (found >= 0).all()
    assert (found <= SIZE).all()


def test_small_components_are_no_objects():
    mask = np.zeros((SIZE, SIZE), bool)
    mask[3:5, 3:6] = True  # 6 px
    mask[10:14, 10:14] = True  # 16 px
    picture = Picture((Tile(0, (0, 0, SIZE, SIZE), 1.0, (0.0, 0.0)),))
    assert len(moved_boxes([mask], picture, SIZE, 6)) == 2
    assert moved_boxes([mask], picture, SIZE, 7).tolist() == [[10, 10, 14, 14]]
    left = Picture((Tile(0, (0, 0, SIZE, SIZE), 1.0, (-12.0, 0.0)),))
    assert moved_boxes([mask], left, SIZE, 9).tolist() == [], "8 px are left of it"


def test_a_target_of_specks_only_is_refused():
    """A detector that is shown no object learns to find none, and its loss looks splendid."""
    case = case_of()
    largest = int(case.masks.sum((1, 2)).max())
    with pytest.raises(InputError, match="DETECT_NO_OBJECT.*") as caught:
        DetectionSamples([case], MosaicConfig(image_size=SIZE, min_area=largest + 1), 5)
    assert str(largest) in str(caught.value.seen)
    nothing = np.zeros_like(case.masks)
    with pytest.raises(InputError, match="DETECT_NO_OBJECT") as caught:  # too thin for the detector's grid
        DetectionSamples([replace(case, detail_masks=nothing)], MosaicConfig(image_size=SIZE), 5)
    assert "at most 0 pixels" in str(caught.value.seen)
    DetectionSamples([replace(case, masks=nothing)], MosaicConfig(image_size=SIZE), 5)


def test_validation_cases_that_show_no_object_do_not_judge(caplog):
    case, config = case_of(), MosaicConfig(image_size=SIZE)
    largest = int(case.masks.sum((1, 2)).max())
    assert len(held_out_samples([case], config)) == 6
    assert caplog.text == ""
    for cases, least in (([case], largest + 1), ([replace(case, masks=np.zeros_like(case.masks))], 1), ([], 1)):
        assert len(held_out_samples(cases, config.model_copy(update={"min_area": least}))) == 0
    assert "no validation case shows a detector an object" in caplog.text


def test_nothing_moves_outside_training():
    config = MosaicConfig(image_size=SIZE, min_area=1)
    case = case_of()
    samples = DetectionSamples([case], config, 100)
    batch = samples.batch([0, 3], chance(training=False))
    assert batch.tensors["images"].shape == (2, 3, SIZE, SIZE)
    assert torch.equal(batch.tensors["images"][1], torch.from_numpy(case.stack.images[3]).expand(3, -1, -1))
    assert batch.tensors["counts"].tolist() == [0, 2]
    assert batch.tensors["boxes"][1].tolist() == [[3, 2, 20, 7], [22, 20, 28, 30]]
    assert len(batch) == 2


def test_without_any_augmentation_training_shows_the_slice():
    image, boxes = sample(PLAIN, index=3)
    assert torch.allclose(image, torch.from_numpy(case_of().stack.images[3]), atol=1e-6)
    assert boxes.tolist() == [[3, 2, 20, 7], [22, 20, 28, 30]]


def test_a_batch_without_objects():
    empty = replace(case_of(), masks=np.zeros((6, SIZE, SIZE), bool))
    batch = DetectionSamples([empty], MosaicConfig(image_size=SIZE), 100).batch([0, 1, 2], chance())
    assert batch.tensors["boxes"].shape == (3, 0, 4)
    assert batch.tensors["counts"].tolist() == [0, 0, 0]
    assert len(batch) == 3


def test_the_last_epochs_have_no_mosaic():
    """Epochs 0 to 89 of 100 have one, epochs 90 to 99 have not: the other slices no longer matter."""
    config = MosaicConfig(image_size=SIZE, close_mosaic=10)
    cases, others = [case_of(seed=0)], [case_of(seed=0)]
    others[0].stack.images[[0, 1, 3, 4, 5]] = 0
    for epoch, same in ((0, False), (89, False), (90, True), (99, True)):
        a, b = (sample(config, 2, 100, some, chance(epoch))[0] for some in (cases, others))
        assert torch.equal(a, b) == same, epoch
    assert not any(len(draw_picture(config, np.random.default_rng(s), mosaic=False).tiles) > 1 for s in range(9))


def test_material_is_a_function_of_chance():
    config = MosaicConfig(image_size=SIZE)
    one, again = (sample(config) for _ in range(2))
    assert torch.equal(one[0], again[0])
    assert np.array_equal(one[1], again[1])
    for other in (chance(epoch=1), chance(seed=1)):
        assert not torch.equal(sample(config, at=other)[0], one[0])
    batch = DetectionSamples([case_of()], config, 100).batch([5, 2], chance())
    assert torch.equal(batch.tensors["images"][1], one[0].expand(3, -1, -1)), "whatever else is in the batch"


def test_settings_do_not_shift_one_anothers_chance():
    """Without the mosaic, the scale and shift of a draw stay what they were."""
    with_it, without = (
        draw_picture(MosaicConfig(image_size=SIZE, mosaic=m), np.random.default_rng(5)) for m in (1.0, 0.0)
    )
    assert with_it.tiles[0].scale == without.tiles[0].scale
    assert (with_it.mirrored, with_it.hsv) == (without.mirrored, without.hsv)


def test_draws_stay_in_their_ranges():
    config = MosaicConfig(image_size=640)
    pictures = [draw_picture(config, np.random.default_rng(seed), mosaic=seed % 2 == 0) for seed in range(300)]
    scales = [p.tiles[0].scale for p in pictures]
    assert 0.5 <= min(scales) < 0.55
    assert 1.45 < max(scales) <= 1.5
    middles = [
        p.tiles[0].shift[0] + p.tiles[0].scale * 320 for p in pictures if len(p.tiles) == 1
    ]  # of the slice, in the picture
    assert 640 * 0.4 <= min(middles) < 640 * 0.43
    assert 640 * 0.57 < max(middles) <= 640 * 0.6
    assert 0.4 < np.mean([p.mirrored for p in pictures]) < 0.6
    hue, saturation, value = np.array([p.hsv for p in pictures]).T
    assert 0.014 < np.abs(hue).max() <= 0.015
    assert 0.68 < np.abs(saturation - 1).max() <= 0.7
    assert 0.38 < np.abs(value - 1).max() <= 0.4


def test_grey_stays_grey_and_only_its_value_changes():
    image = torch.rand(1, 5, 7, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(jitter(image, (0.3, 0.1, 0.8)), image * 0.8)
    assert jitter(image, (0.0, 1.0, 9.0)).max() == 1
    batch = DetectionSamples([case_of()], MosaicConfig(image_size=SIZE), 100).batch([1, 2], chance())
    images = batch.tensors["images"]
    assert torch.equal(images[:, 0], images[:, 1])
    assert torch.equal(images[:, 0], images[:, 2])


def test_colour_by_hand_and_against_the_standard_library():
    import colorsys

    image = torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(jitter(image, (0.0, 1.0, 1.0)), image, atol=1e-6)
    red = torch.tensor([1.0, 0.0, 0.0]).reshape(3, 1, 1)
    assert torch.allclose(jitter(red, (1 / 3, 1.0, 1.0)).flatten(), torch.tensor([0.0, 1.0, 0.0]), atol=1e-6)
    assert torch.allclose(jitter(red, (0.0, 0.5, 1.0)).flatten(), torch.tensor([1.0, 0.5, 0.5]), atol=1e-6)
    grey = torch.full((3, 1, 1), 0.4)
    assert torch.allclose(jitter(grey, (0.4, 1.7, 0.5)), grey / 2)
    moved = jitter(image, (0.1, 0.6, 1.2))
    for y in range(4):
        for x in range(5):
            h, s, v = colorsys.rgb_to_hsv(*image[:, y, x].tolist())
            expected = colorsys.hsv_to_rgb((h + 0.1) % 1, min(1, s * 0.6), min(1, v * 1.2))
            assert np.allclose(moved[:, y, x], expected, atol=1e-5)


def test_grey_and_colour_in_one_mosaic():
    cases = [case_of(channels=1, name="grey"), case_of(channels=3, name="colour")]
    batch = DetectionSamples(cases, MosaicConfig(image_size=SIZE), 100).batch(range(12), chance())
    assert batch.tensors["images"].shape == (12, 3, SIZE, SIZE)
    assert batch.tensors["images"].isfinite().all()


def test_the_detail_is_taken_where_there_is_one():
    case = case_of(detail=64)
    assert case.stack.detail is not None
    config = PLAIN.model_copy(update={"image_size": 64})
    image, boxes = sample(config, index=3, cases=[case], at=chance(training=False))
    assert torch.equal(image, torch.from_numpy(case.stack.detail[3]).float() / 255)
    assert boxes.tolist() == [[6, 4, 40, 14], [44, 40, 56, 60]]
    plain = replace(case, detail_masks=None)
    assert sample(config, 3, cases=[plain], at=chance(training=False))[1].tolist() == boxes.tolist()


def test_without_a_detail_the_images_are_resized():
    stack = case_of().stack
    found = detector_images(stack, slice(1, 4), 64)
    assert found.shape == (3, 3, 64, 64)
    assert torch.equal(found[:, 0], found[:, 2])
    smooth = replace(stack, images=np.full((2, 3, SIZE, SIZE), 0.25, np.float32))
    assert torch.allclose(detector_images(smooth, slice(0, 8), 96), torch.tensor(0.25))


def test_settings_are_checked():
    with pytest.raises(ValueError, match="multiple of 32"):
        MosaicConfig(image_size=100)
    with pytest.raises(ValueError, match="mosaic"):
        MosaicConfig(mosaic=1.5)

"""MedSAM's lanes: what is trained, what is asked, with which box, and what is said about each point."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from steadysam.backbones import build_backbone
from steadysam.embeddings import EmbeddingCache
from steadysam.methods import medsam
from steadysam.methods.contract import Chance, StageSettings
from steadysam.methods.medsam import Config, PromptedSlices, as_box, tuning_losses
from steadysam.methods.slicewise import decode_rows, encode_stack, encoder_key
from steadysam.trainable import select_trainable
from steadysam.types import SlicePoints
from toycases import SIZE, learnt_dice, slice_points, small_case, with_box

Lane = Literal["box", "box_tuned", "points_tuned"]
POINTS = (
    slice_points((4, 5), (20, 9), name="a"),
    SlicePoints.empty(),
    slice_points((12, 14), (30, 30), positive=[True, False], name="c"),
    slice_points((7, 7), positive=[False], name="d"),
)


@pytest.fixture(params=["sam-test", "steadysam-test"])
def model(request):
    return medsam.build(Config(), build_backbone(request.param, SIZE, seed=0)).eval()


def found_with(model, config, points=POINTS):
    return medsam.segment(model, config, small_case(*points).stack, points, EmbeddingCache())


def decoded(model, points, t):
    """The probability of slice t, computed by hand from the backbone alone."""
    stack = small_case(*POINTS).stack
    embeddings = encode_stack(model.sam, stack, EmbeddingCache(), encoder_key(model.sam))
    with torch.no_grad():
        return decode_rows(model.sam, embeddings[t : t + 1].float(), [points]).sigmoid()[0, 0].numpy()


@pytest.mark.parametrize("lane, rate", [("box", 1e-4), ("box_tuned", 1e-4), ("points_tuned", 5e-5)])
def test_the_recipe_belongs_to_the_lane(lane: Lane, rate: float):
    tuning = Config(lane=lane).tuning
    assert (tuning.optimizer, tuning.learning_rate, tuning.weight_decay) == ("adamw", rate, 0.01)
    partly = Config.model_validate({"lane": lane, "tuning": {"epochs": 3}}).tuning
    assert (partly.optimizer, partly.learning_rate, partly.epochs) == ("adamw", rate, 3)
    assert Config.model_validate({"lane": lane, "tuning": {"learning_rate": 0.1}}).tuning.learning_rate == 0.1
    assert Config(lane=lane, tuning=StageSettings()).tuning == StageSettings()


@pytest.mark.parametrize(
    "lane, parts", [("box_tuned", ("image_encoder.", "mask_decoder.")), ("points_tuned", ("mask_decoder.",))]
)
def test_what_each_lane_trains(model, lane: Lane, parts):
    (stage,) = medsam.stages(Config(lane=lane))
    chosen = select_trainable(model, stage)
    expected = {name for name, _ in model.named_parameters() if name.startswith(tuple(f"backbone.{p}" for p in parts))}
    assert set(chosen) == expected
    assert medsam.stages(Config()) == ()
    assert medsam.TRAITS.untrained
    assert medsam.TRAITS.boxes


def test_settings_of_boxes_are_scaled_to_the_models_size():
    """A single point: 20 px of 1024 are 5 of 256."""
    boxed = as_box(slice_points((100, 50)), 256, Config(margin_px=20))
    assert boxed.box is not None
    assert boxed.box.tolist() == [97.5, 47.5, 102.5, 52.5]
    assert len(boxed) == 0
    whole = as_box(slice_points((100, 50), (110, 90), (0, 0), positive=[True, True, False]), 256, Config())
    assert whole.box is not None
    assert whole.box.tolist() == [100, 50, 110, 90]


def test_boxes_are_asked_and_slices_without_positive_points_stay_empty(model):
    found = found_with(model, Config())
    assert found.notes["asked_slices"] == [0, 2]
    assert not found.probability[[1, 3]].any()
    for t in (0, 2):
        boxed = as_box(POINTS[t], SIZE, Config())
        np.testing.assert_allclose(found.probability[t], decoded(model, boxed, t), atol=1e-5)
        box, expected = found.points[t].box, boxed.box
        assert box is not None
        assert expected is not None
        assert np.array_equal(box, expected)
    verdicts = {d.prompt_id: d.verdict for d in found.decisions}
    assert verdicts == {"a0": "accepted", "a1": "accepted", "c0": "accepted", "c1": "ignored", "d0": "ignored"}


def test_a_given_box_takes_the_place_of_the_points(model):
    points = (with_box(POINTS[0], 2, 3, 28, 17), with_box(POINTS[1], 4, 4, 9, 12), *POINTS[2:])
    found = found_with(model, Config(), points)
    assert found.notes["asked_slices"] == [0, 1, 2]
    assert found.points[0].box is not None
    assert found.points[0].box.tolist() == [2, 3, 28, 17]
    np.testing.assert_allclose(
        found.probability[0], decoded(model, with_box(SlicePoints.empty(), 2, 3, 28, 17), 0), atol=1e-5
    )
    assert [d.verdict for d in found.decisions if d.slice == 0] == ["ignored", "ignored"]
    assert "given a box" in found.decisions[0].reason
    assert [d.verdict for d in found.decisions if d.slice == 2] == ["accepted", "ignored"]


def test_the_lane_of_points_decodes_the_points(model):
    found = found_with(model, Config(lane="points_tuned"))
    assert found.notes["asked_slices"] == [0, 2, 3]
    assert not found.probability[1].any()
    np.testing.assert_allclose(found.probability[2], decoded(model, POINTS[2], 2), atol=1e-5)
    assert {d.verdict for d in found.decisions} == {"accepted"}
    assert len(found.decisions) == 5


def test_training_boxes_are_loosened_and_validation_boxes_are_not():
    samples = PromptedSlices([small_case(*POINTS)], Config(lane="box_tuned", jitter_px=96, margin_px=0))  # 3 px of 32
    tight = np.array([4, 5, 20, 9])
    plain = samples.batch([0, 1, 2, 3], Chance(0, "tuning", 0, training=False))
    assert plain.points[0].box is not None
    assert plain.points[0].box.tolist() == tight.tolist()
    assert plain.tensors["asked"].tolist() == [1, 0, 1, 0]
    assert all(len(row) == 0 for row in plain.points)
    seen = set()
    for epoch in range(20):
        still = Config(lane="box_tuned", jitter_px=96, augment=Config().augment.model_copy(update=_STILL))
        box = (
            PromptedSlices([small_case(*POINTS)], still).batch([0], Chance(0, "t", epoch, training=True)).points[0].box
        )
        assert box is not None
        moved = (box - tight) * [-1, -1, 1, 1]
        assert moved.min() >= 0
        assert moved.max() <= 3
        seen.add(box.tobytes())
    assert len(seen) == 20


_STILL = {"rotate_probability": 0.0, "flip_probability": 0.0}


def test_positive_slices_only_where_asked():
    case = small_case(*POINTS)
    assert len(PromptedSlices([case], Config(lane="box_tuned"))) == 4
    samples = PromptedSlices([case], Config(lane="box_tuned", positives_only=True))
    assert samples.inner.slices == [(0, 1), (0, 2), (0, 3)]
    case.masks[:] = False  # nothing is left: a run of a case without the object still has something to look at
    assert len(PromptedSlices([case], Config(lane="box_tuned", positives_only=True))) == 4


def test_loss_by_hand_and_slices_that_are_not_asked_add_nothing(model):
    case = small_case(*POINTS)
    samples = PromptedSlices([case], Config(lane="points_tuned"))
    batch = samples.batch([0, 1, 2], Chance(0, "tuning", 0, training=False))
    terms = tuning_losses(model, batch)
    dice, bce = 0.0, 0.0
    for row in (0, 2):
        with torch.no_grad():
            embedding = model.sam.encode(batch.tensors["images"][row : row + 1])
            logits = decode_rows(model.sam, embedding, [batch.points[row]])
        p, g = logits.sigmoid(), batch.tensors["masks"][row : row + 1]
        dice += float(1 - 2 * (p * g).sum() / ((p**2).sum() + (g**2).sum()))
        bce += float(F.binary_cross_entropy_with_logits(logits, g))
    assert float(terms["dice"].detach()) == pytest.approx(dice / 3, abs=1e-4)
    assert float(terms["bce"].detach()) == pytest.approx(bce / 3, abs=1e-4)


def test_an_augmentation_that_loses_every_point_leaves_the_slice_unasked(model):
    config = Config(lane="points_tuned", augment=Config().augment.model_copy(update={**_STILL, "shift": 0.9}))
    samples = PromptedSlices([small_case(*POINTS)], config)
    asked = [samples.batch([0], Chance(0, "t", e, training=True)).tensors["asked"].item() for e in range(12)]
    assert {0.0, 1.0} == set(asked)
    lost = samples.batch([0], Chance(0, "t", asked.index(0.0), training=True))
    terms = tuning_losses(model, lost)
    assert {float(value.detach()) for value in terms.values()} == {0.0}


@pytest.mark.slow
def test_boxes_of_noisy_points_teach_the_blob(toy_dataset, tmp_path):
    tuning = {"epochs": 16, "learning_rate": 5e-3}
    assert learnt_dice(toy_dataset, tmp_path / "run", "sam-test", tuning, name="medsam", lane="box_tuned") > 0.8

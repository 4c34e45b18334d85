"""Medical SAM Adapter as a method: what is trained, both losses by hand, the backbone's own answers at zero."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from steadysam.backbones import build_backbone
from steadysam.embeddings import EmbeddingCache
from steadysam.losses import dice_loss
from steadysam.methods import medical_sam_adapter, zero_shot
from steadysam.methods.contract import Chance
from steadysam.methods.medical_sam_adapter import Config, tuning_losses
from steadysam.methods.slicewise import decode_rows
from steadysam.trainable import select_trainable
from steadysam.types import SlicePoints
from toycases import SIZE, learnt_dice, slice_points, small_case

POINTS = (slice_points((4, 5), (20, 9), name="a"), SlicePoints.empty(), slice_points((12, 14), name="c"))


@pytest.fixture(params=["sam-test", "steadysam-test"])
def name(request):
    return request.param


def build(name, **settings):
    torch.manual_seed(0)
    return medical_sam_adapter.build(Config(**settings), build_backbone(name, SIZE, seed=0)).eval()


def test_adapters_and_decoder_are_trained_and_nothing_else(name):
    model = build(name)
    (stage,) = medical_sam_adapter.stages(Config())
    chosen = select_trainable(model, stage)
    for parameter, _ in model.named_parameters():
        trained = parameter.startswith("backbone.mask_decoder.") or "adapter." in parameter
        assert (parameter in chosen) == trained, parameter
    assert any(".image_encoder." in parameter for parameter in chosen)


def test_the_authors_rate_stays_when_other_settings_are_given():
    tuning = Config.model_validate({"tuning": {"epochs": 3}}).tuning
    assert (tuning.optimizer, tuning.learning_rate, tuning.weight_decay) == ("adam", 1e-4, 0.0)


@pytest.mark.parametrize("loss", ["bce", "dice_ce"])
def test_losses_by_hand(name, loss):
    config = Config(loss=loss)
    model = build(name)
    (stage,) = medical_sam_adapter.stages(config)
    samples = stage.samples(model, [small_case(*POINTS)], EmbeddingCache())
    batch = samples.batch([0, 1, 2], Chance(0, "tuning", 0, training=False))
    assert [len(row) for row in batch.points] == [2, 0, 1], "all noisy points"
    with torch.no_grad():
        terms = tuning_losses(model, batch, config)
        logits = decode_rows(model.sam, model.sam.encode(batch.tensors["images"]), batch.points)
    masks = batch.tensors["masks"]
    if loss == "bce":
        each = -(2 * masks * F.logsigmoid(logits) + (1 - masks) * F.logsigmoid(-logits))
        expected = {"bce": each.mean()}
    else:
        expected = {
            "dice": dice_loss(logits.sigmoid(), masks).mean(),
            "bce": F.binary_cross_entropy_with_logits(logits, masks),
        }
    assert set(terms) == set(expected)
    for term, value in expected.items():
        torch.testing.assert_close(terms[term], value, atol=1e-5, rtol=1e-5)


def test_untrained_with_zero_adapters_it_is_the_backbone(name):
    stack = small_case(*POINTS).stack
    asked = [0, 2]
    plain = zero_shot.build(zero_shot.Config(), build_backbone(name, SIZE, seed=0)).eval()
    settings = zero_shot.Config(masks="single", islands=True)
    expected = zero_shot.segment(plain, settings, stack, POINTS, EmbeddingCache()).probability
    zero = medical_sam_adapter.segment(build(name, zero_init=True), Config(), stack, POINTS, EmbeddingCache())
    np.testing.assert_allclose(zero.probability[asked], expected[asked], atol=1e-6)
    random = medical_sam_adapter.segment(build(name), Config(), stack, POINTS, EmbeddingCache())
    assert np.abs(random.probability[asked] - expected[asked]).max() > 1e-4
    assert zero.notes == {"decoder_points": 3}
    assert [(d.prompt_id, d.verdict) for d in zero.decisions] == [(p, "accepted") for p in ("a0", "a1", "c0")]


@pytest.mark.slow
def test_adapters_learn_the_blob(toy_dataset, tmp_path):
    tuning = {"epochs": 16, "learning_rate": 5e-3}
    dice = learnt_dice(toy_dataset, tmp_path / "run", "steadysam-test", tuning, name="medical_sam_adapter")
    assert dice > 0.8

"""SAM-Tuning and its two controls: the decoder alone, and the neighbours' points unfiltered."""

import numpy as np
import pytest
import torch

from steadysam.backbones import build_backbone
from steadysam.embeddings import EmbeddingCache
from steadysam.methods import sam_tuning
from steadysam.methods.contract import Chance, TrainingCase
from steadysam.methods.neighbours import gather_neighbours
from steadysam.methods.sam_tuning import Config
from steadysam.methods.slicewise import decode_stack, encode_stack, encoder_key
from steadysam.trainable import select_trainable
from steadysam.types import SlicePoints
from toycases import SIZE, slice_points, small_case

POINTS = (slice_points((4, 5), (20, 9), name="a"), SlicePoints.empty(), slice_points((12, 14), name="c"))


@pytest.fixture(params=["sam-test", "steadysam-test"])
def name(request):
    return request.param


def build(name, config):
    torch.manual_seed(0)
    return sam_tuning.build(config, build_backbone(name, SIZE, seed=0)).eval()


def trained(name, config):
    (stage,) = sam_tuning.stages(config)
    return set(select_trainable(build(name, config), stage))


@pytest.mark.parametrize("adapt", ["lora", "full"])
def test_the_decoder_alone(name, adapt):
    """The encoder is the backbone's own, without adapters, whatever `adapt` says."""
    config = Config(train="decoder", adapt=adapt)
    chosen = trained(name, config)
    plain = build_backbone(name, SIZE, seed=0)
    assert chosen == {f"backbone.mask_decoder.{n}" for n, _ in plain.mask_decoder.named_parameters()}
    assert set(build(name, config).state_dict()) == {f"backbone.{n}" for n in plain.state_dict()}
    encoder = {n for n in trained(name, Config(adapt=adapt)) - chosen}
    assert encoder
    assert all(n.startswith("backbone.image_encoder.") for n in encoder)
    assert all(".lora_" in n for n in encoder) == (adapt == "lora")


def batch_of(config, redraw=None):
    plain = small_case(*POINTS)
    case = TrainingCase(plain.name, plain.stack, plain.masks, plain.points, redraw)
    (stage,) = sam_tuning.stages(config)
    samples = stage.samples(torch.nn.Identity(), [case], EmbeddingCache())
    return samples.batch([0, 1, 2], Chance(0, "tuning", 0, training=redraw is not None))


@pytest.mark.parametrize("n, expected", [(0, [2, 0, 1]), (1, [2, 3, 1]), (2, [3, 3, 3])])
def test_neighbours_points_in_training(n, expected):
    assert [len(row) for row in batch_of(Config(prompts="neighbours", n=n)).points] == expected
    assert [len(row) for row in batch_of(Config(n=n)).points] == [2, 0, 1]


def test_redrawn_points_come_with_neighbours_too():
    still = Config().augment.model_copy(update={"rotate_probability": 0.0})
    other = (slice_points((1, 1)), slice_points((2, 2), name="q"), SlicePoints.empty())
    config = Config(prompts="neighbours", n=1, redraw=True, augment=still)
    assert [len(row) for row in batch_of(config, lambda generator: other).points] == [2, 2, 1]


@pytest.mark.parametrize("prompts", ["raw", "neighbours"])
def test_neighbours_points_at_test(name, prompts):
    config = Config(prompts=prompts, n=1)
    model, stack = build(name, config), small_case(*POINTS).stack
    found = sam_tuning.segment(model, config, stack, POINTS, EmbeddingCache())
    given = POINTS if prompts == "raw" else gather_neighbours(POINTS, 1)
    embeddings = encode_stack(model.sam, stack, EmbeddingCache(), encoder_key(model.sam))
    assert np.array_equal(found.probability, decode_stack(model.sam, embeddings, given))
    assert [here.ids for here in found.points] == [here.ids for here in given]
    assert found.notes == {"decoder_points": 3 if prompts == "raw" else 6}
    assert [(d.prompt_id, d.slice, d.verdict) for d in found.decisions] == [
        ("a0", 0, "accepted"),
        ("a1", 0, "accepted"),
        ("c0", 2, "accepted"),
    ]

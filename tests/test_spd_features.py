"""SPD with a detector's features as one more source of prompts."""

import numpy as np
import pytest
import torch

from steadysam.backbones import build_backbone
from steadysam.embeddings import EmbeddingCache
from steadysam.methods import spd
from steadysam.methods.contract import Chance
from steadysam.methods.spd.config import Config
from steadysam.methods.spd.stages import ConsistencySamples, decoder_losses
from steadysam.trainable import select_trainable
from toycases import SIZE, slice_points, small_case

POINTS = (slice_points((5, 6)), slice_points((12, 14), (3, 3)), slice_points((20, 10)))
FEATURES = {"detector": {"image_size": 64}, "channels": 16}


def settings(**values) -> Config:
    """From plain values, as a TOML file gives them."""
    return Config.model_validate({"features": FEATURES, **values})


@pytest.fixture(params=["sam-test", "steadysam-test"])
def name(request):
    return request.param


def build(name, config, seed=0):
    torch.manual_seed(seed)
    return spd.build(config, build_backbone(name, SIZE, seed=0)).eval()


def segmented(model, config, points=POINTS):
    return spd.segment(model, config, small_case(*points).stack, points, EmbeddingCache())


def shake(module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(7)))


def test_points_and_features_both_reach_the_decoder(name):
    config = settings(prompts="both", tau=0.0)
    model = build(name, config)
    first = segmented(model, config)
    moved = (slice_points((25, 25)), *POINTS[1:])
    assert np.abs(segmented(model, config, moved).probability - first.probability)[0].max() > 1e-6
    shake(model.prompter)
    assert np.abs(segmented(model, config).probability - first.probability).max() > 1e-6


def test_features_alone_do_not_look_at_points(name):
    config = settings(prompts="feature")
    model = build(name, config)
    first, second = segmented(model, config), segmented(model, config, (slice_points((1, 1)),) * 3)
    np.testing.assert_array_equal(first.probability, second.probability)
    assert {d.verdict for d in first.decisions} == {"ignored"}
    assert sorted(d.prompt_id for d in first.decisions) == ["p0", "p0", "p0", "p1"]


def test_the_detectors_stages_come_between(name):
    config = settings(prompts="both", features={**FEATURES, "detector": {"image_size": 64, "teacher": "s"}})
    assert [stage.name for stage in spd.stages(config)] == ["saliency", "teacher", "student", "decoder"]
    assert [stage.name for stage in spd.stages(Config())] == ["saliency", "decoder"]
    model = build(name, config)
    chosen = select_trainable(model, spd.stages(config)[-1])
    assert any(n.startswith("prompter.") for n in chosen)
    assert not any(n.startswith("detector.") for n in chosen)


def test_stage_2_trains_the_prompter_and_leaves_the_detector(name):
    config = settings(prompts="both", variants=2, psc="bi")
    model = build(name, config)
    select_trainable(model, spd.stages(config)[-1])
    samples = ConsistencySamples(model, [small_case(*POINTS)], EmbeddingCache(), config)
    batch = samples.batch([0, 1], Chance(0, "decoder", 0, training=True))
    assert batch.tensors["detail"].shape == (len(batch.points), 3, 64, 64)
    assert (len(batch), len(batch.points)) == (2, 5), "neighbours are no samples: they must not weigh in the means"
    detector, prompter = model.detector, model.prompter
    assert detector is not None
    assert prompter is not None
    before = {n: b.clone() for n, b in detector.named_buffers()}
    torch.stack(list(decoder_losses(model, batch, config).values())).sum().backward()
    assert all(torch.equal(b, before[n]) for n, b in detector.named_buffers())
    assert all(p.grad is None for p in detector.parameters())
    assert prompter.alpha.grad is not None
    assert float(prompter.alpha.grad.abs()) > 0


def test_settings_without_features_are_those_of_before():
    assert Config().features is None
    assert Config().detail_size == 0
    assert Config(prompts="both").detail_size == 640


def test_distilled_is_another_word_for_the_consensus():
    assert Config(prompts="distilled") == Config(prompts="consensus")  # pyright: ignore[reportArgumentType]

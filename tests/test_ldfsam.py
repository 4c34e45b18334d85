"""LDFSAM: what each mode lets through, what is trained, and the structural checks of ldfsam.md 4."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from steadysam.augment import AugmentConfig
from steadysam.backbones import BACKBONES, build_backbone
from steadysam.backbones.configure import empty_model, sam_config
from steadysam.backbones.rows import FeaturePrompts
from steadysam.backbones.sam import SamBackbone
from steadysam.detection import boxes, yolo
from steadysam.embeddings import EmbeddingCache
from steadysam.losses import sam_med2d_terms
from steadysam.methods import detecting, ldfsam
from steadysam.methods.contract import Chance
from steadysam.methods.ldfsam.config import Config
from steadysam.methods.ldfsam.masks import MaskSamples, mask_losses, one_object
from steadysam.methods.ldfsam.model import LdfSam
from steadysam.methods.slicewise import best_mask, encode_stack, encoder_key, to_model
from steadysam.trainable import select_trainable
from steadysam.types import SlicePoints
from toycases import SIZE, small_case

EMPTY = (SlicePoints.empty(),) * 3
DETECTOR = {"image_size": 64}


@pytest.fixture(params=["sam-test", "steadysam-test"])
def name(request):
    return request.param


def settings(**more) -> Config:
    return Config(**{"detector": DETECTOR, "channels": 16, **more})


def build(name, config, seed=0) -> LdfSam:
    torch.manual_seed(seed)
    return ldfsam.build(config, build_backbone(name, SIZE, seed=0)).eval()


def segmented(model, config, case=None):
    case = case or small_case(*EMPTY)
    return ldfsam.segment(model, config, case.stack, EMPTY, EmbeddingCache()).probability


def part(model, name):
    return model.get_submodule(name)


def shake(*parameters) -> None:
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(7)))


def test_without_alpha_and_tokens_it_is_the_model_without_a_prompt(name):
    config = settings(mode="D", alpha=0.0)
    model = build(name, config)
    stack = small_case(*EMPTY).stack
    embeddings = encode_stack(model.sam, stack, EmbeddingCache(), encoder_key(model.sam)).float()
    with torch.no_grad():
        found = model.sam.decode_full(embeddings, EMPTY, features=FeaturePrompts(None, None))
    expected = to_model(best_mask(*found)[0], SIZE).sigmoid().numpy()
    np.testing.assert_array_equal(segmented(model, config), expected)
    np.testing.assert_array_equal(segmented(build(name, settings(mode="none")), settings(mode="none")), expected)


def test_each_mode_lets_its_own_prompts_through(name):
    for mode, dense, sparse in (("SD", True, True), ("D", True, False), ("S", False, True)):
        config = settings(mode=mode)
        model = build(name, config)
        before = segmented(model, config)
        shake(*part(model, "prompter.dense").parameters())
        assert (np.abs(segmented(model, config) - before).max() > 1e-6) == dense, mode
        model = build(name, config)
        shake(*part(model, "prompter.sparse").parameters())
        assert (np.abs(segmented(model, config) - before).max() > 1e-6) == sparse, mode


def test_the_detection_head_has_no_say_in_masks(name):
    """No box is decoded on the way from features to a mask (ldfsam.md 4, check 3)."""
    config = settings()
    model = build(name, config)
    before = segmented(model, config)
    shake(*part(model, "detector.head").parameters())
    np.testing.assert_array_equal(segmented(model, config), before)
    shake(*part(model, "detector.neck").parameters())
    assert np.abs(segmented(model, config) - before).max() > 0


def test_no_box_is_decoded_or_suppressed_on_the_way_to_a_mask(name, monkeypatch):
    """ldfsam.md 4, check 3: with every step from features to boxes broken, masks come out as before."""

    def broken(*_, **__):
        raise AssertionError("boxes were asked for")

    config = settings()
    model = build(name, config)
    before = segmented(model, config)
    monkeypatch.setattr(yolo.Head, "forward", broken)
    monkeypatch.setattr(boxes, "detect", broken)
    monkeypatch.setattr(boxes, "decode_boxes", broken)
    monkeypatch.setattr(boxes, "non_maximum_suppression", broken)
    monkeypatch.setattr(detecting, "detect", broken)
    np.testing.assert_array_equal(segmented(model, config), before)
    box = settings(mode="box")
    with pytest.raises(AssertionError, match="boxes were asked for"):
        segmented(build(name, box), box)


def gradients(model, config) -> dict[str, float]:
    case = small_case(*EMPTY)
    stage = ldfsam.stages(config)[-1]
    select_trainable(model, stage)
    batch = MaskSamples([case], config).batch([0, 1], Chance(0, "masks", 0, training=True))
    torch.stack(list(mask_losses(model, batch, config).values())).sum().backward()
    return {n: 0.0 if p.grad is None else float(p.grad.abs().sum()) for n, p in model.named_parameters()}


@pytest.mark.parametrize(
    ("name", "adapt"),
    [("sam-test", "lora"), ("sam-test", "adapters"), ("steadysam-test", "lora"), ("sam-med2d-test", "adapters")],
)
def test_where_the_mask_loss_reaches(name, adapt):
    """ldfsam.md 4, check 4."""
    config = settings(adapt=adapt)
    model = build(name, config)
    grown = gradients(model, config)
    for part in (
        "prompter.alpha",
        "prompter.dense",
        "prompter.sparse",
        "prompter.mix",
        "detector.neck",
        "backbone.mask",
    ):
        assert any(value > 0 for n, value in grown.items() if n.startswith(part)), part
    assert not any(value for n, value in grown.items() if n.startswith("detector.head"))
    encoder = [n for n in grown if n.startswith("backbone.image_encoder.")]
    learns = {"lora": "lora_", "adapters": "adapter."}[adapt]
    assert any(grown[n] > 0 for n in encoder if learns in n)
    frozen = [n for n in encoder if learns not in n]
    assert frozen
    assert not any(grown[n] for n in frozen)


def test_a_frozen_or_random_detector_stays_as_it_was(name):
    for more in ({"tune_detector": False}, {"generator": "random"}):
        config = settings(**more)
        grown = gradients(build(name, config), config)
        assert not any(value for n, value in grown.items() if n.startswith("detector."))
        assert any(value for n, value in grown.items() if n.startswith("prompter."))


def test_a_fresh_detector_sees_and_is_trained_with_the_masks(name):
    config = settings(generator="fresh")
    model = build(name, config)
    grown = gradients(model, config)
    assert any(value > 0 for n, value in grown.items() if n.startswith("detector.neck"))
    assert not any(value for n, value in grown.items() if n.startswith("detector.head"))
    assert model.teacher is None
    assert [stage.name for stage in ldfsam.stages(config)] == ["masks"]


def test_tuning_leaves_the_detectors_batch_statistics(name):
    config = settings()
    model = build(name, config)
    before = {n: b.clone() for n, b in model.named_buffers()}
    gradients(model, config)
    moved = {n for n, b in model.named_buffers() if not torch.equal(b, before[n])}
    assert moved
    assert all(n.startswith("prompter.") for n in moved)


def test_stages_follow_from_generator_and_mode():
    def names(**more):
        return [stage.name for stage in ldfsam.stages(settings(**more))]

    taught = {"detector": {**DETECTOR, "teacher": "s", "distill": "ld"}}
    assert names() == ["student", "masks"]
    assert names(**taught) == ["teacher", "student", "masks"]
    assert names(**taught, generator="teacher") == ["teacher", "masks"]
    assert names(generator="random") == ["masks"]
    assert names(mode="none") == ["masks"]
    rates = {stage.name: stage.rate_factors for stage in ldfsam.stages(settings())}
    assert rates["masks"] == {"detector.*": 0.1}
    with pytest.raises(ValidationError, match="teacher"):
        settings(generator="teacher")
    with pytest.raises(ValidationError, match="'random'"):
        settings(generator="fresh", tune_detector=False)
    with pytest.raises(ValueError, match="finds boxes"):
        settings(generator="random", mode="box")


def test_release_drops_a_teacher_that_has_taught():
    taught = {"detector": {**DETECTOR, "teacher": "s", "distill": "ld"}}
    model = build("sam-test", settings(**taught))
    assert any(n.startswith("teacher.") for n, _ in model.named_parameters())
    model.release()
    assert not any(n.startswith("teacher.") for n, _ in model.named_parameters())
    prompting = build("sam-test", settings(**taught, generator="teacher"))
    prompting.release()
    assert prompting.source is prompting.teacher
    assert prompting.detector is None


def test_box_mode_without_a_detection_stays_empty(name):
    config = settings(mode="box", detector={**DETECTOR, "confidence": 0.999})
    assert segmented(build(name, config), config).max() == 0


def test_box_mode_unites_the_masks_of_its_boxes(name):
    config = settings(mode="box", detector={**DETECTOR, "confidence": 0.001, "overlap": 0.05})
    model = build(name, config)
    found = ldfsam.segment(model, config, small_case(*EMPTY).stack, EMPTY, EmbeddingCache())
    boxes = found.notes["boxes"]
    assert len(boxes) > 1
    t, *box, _ = boxes[0]
    embeddings = encode_stack(model.sam, small_case(*EMPTY).stack, EmbeddingCache(), encoder_key(model.sam)).float()
    prompt = replace(SlicePoints.empty(), box=np.array(box, np.float32) - 0.5)
    with torch.no_grad():
        one = to_model(best_mask(*model.sam.decode_full(embeddings[[t]], [prompt]))[0], SIZE).sigmoid()[0].numpy()
    assert (found.probability[t] >= one - 1e-4).all()


def corners(row: SlicePoints) -> tuple[float, ...]:
    assert row.box is not None
    return tuple(row.box.tolist())


def test_one_object_takes_a_component_and_its_box():
    mask = np.zeros((12, 12), bool)
    mask[1:4, 2:8] = True
    mask[8:11, 5:7] = True
    seen = set()
    for seed in range(20):
        part, row = one_object(mask, np.random.default_rng(seed), jitter=0.0)
        seen.add(corners(row))
        assert part.sum() in (18, 6)
    assert seen == {(1.5, 0.5, 7.5, 3.5), (4.5, 7.5, 6.5, 10.5)}
    part, row = one_object(np.zeros((12, 12), bool), np.random.default_rng(0), 0.1)
    assert not part.any()
    assert corners(row) == (-0.5, -0.5, 11.5, 11.5)


def test_both_views_of_a_sample_move_together():
    case = small_case(*EMPTY)
    detail = np.repeat(np.repeat(case.stack.images, 2, axis=2), 2, axis=3)
    case = replace(case, stack=replace(case.stack, detail=np.rint(detail * 255).astype(np.uint8)))
    config = settings(augment=AugmentConfig(rotate_degrees=40, rotate_probability=1), detector={"image_size": SIZE * 2})
    batch = MaskSamples([case], config).batch([0, 1, 2], Chance(3, "masks", 0, training=True))
    shrunk = torch.nn.functional.avg_pool2d(batch.tensors["detail"], 2)[:, :1]
    images = (batch.tensors["images"][:, :1] + 1) / 2
    inner = (slice(None), slice(None), slice(8, -8), slice(8, -8))
    assert (shrunk - images)[inner].abs().mean() < 0.05
    plain = MaskSamples([case], config).batch([0, 1, 2], Chance(3, "masks", 0, training=False))
    assert (batch.tensors["images"] - plain.tensors["images"]).abs().mean() > 0.05


def test_the_loss_is_sam_med2ds_on_the_selected_mask(name):
    config = settings(mode="none")
    model = build(name, config)
    case = small_case(*EMPTY)
    batch = MaskSamples([case], config).batch([0, 1, 2], Chance(0, "masks", 0, training=False))
    with torch.no_grad():
        terms = mask_losses(model, batch, config)
        embeddings = model.sam.encode(batch.tensors["images"])
        logits, iou = best_mask(*model.sam.decode_full(embeddings, EMPTY, features=FeaturePrompts(None, None)))
        expected = sam_med2d_terms(to_model(logits, SIZE)[:, None], iou, batch.tensors["masks"])
    assert set(terms) == set(expected)
    for key, value in terms.items():
        assert float(value) == pytest.approx(float(expected[key].mean()), abs=1e-6)


def test_published_size_of_the_whole():
    """ldfsam.md 4.1: 274.5 M with SAM-Med2D at 256 px, of which the prompt branch, detector included, is 3.3 M."""
    spec = BACKBONES["sam-med2d"]
    with torch.device("meta"):
        sam = SamBackbone(empty_model(sam_config(spec.architecture, 256)), spec.name, spec.architecture)
        model = LdfSam(Config(adapt="adapters"), sam)
        branch = [p.numel() for n, p in model.named_parameters() if not n.startswith("backbone.")]
        assert sum(branch) == pytest.approx(3.3e6, abs=0.05e6)
        assert sum(p.numel() for p in model.parameters()) == pytest.approx(274.5e6, abs=0.1e6)
        features = model.prompts(torch.zeros(2, 3, 640, 640))
        embeddings = model.sam.encode(torch.zeros(2, 3, 256, 256))
        masks, iou = model.sam.decode_full(embeddings, (SlicePoints.empty(),) * 2, features=features)
    assert features.sparse is not None
    assert features.dense is not None
    assert features.sparse.shape == (2, 1, 256)
    assert features.dense.shape == (2, 256, 16, 16)
    assert embeddings.shape == (2, 256, 16, 16)
    assert (masks.shape, iou.shape) == ((2, 3, 64, 64), (2, 3))

"""What methods with a detector share: recipe, stages, terms of the loss, and boxes in model pixels."""

from __future__ import annotations

import copy
from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from torch import nn

from steadysam.detection.assign import task_aligned_assign
from steadysam.detection.distill import edge_divergence
from steadysam.detection.yolo import Detector, Predictions
from steadysam.embeddings import EmbeddingCache
from steadysam.errors import ConfigError
from steadysam.methods import detector as method
from steadysam.methods.contract import Batch, Chance
from steadysam.methods.detecting import (
    DetectionSamples,
    DetectorConfig,
    FoundBoxes,
    above,
    ap_loss,
    box_rows,
    detect_stack,
    detector_losses,
    detector_stages,
    to_model_boxes,
    truth_of,
    untrained_detector,
)
from steadysam.trainable import select_trainable
from steadysam.types import Frame, SliceStack
from test_mosaic import case_of

SIZE = 64
SMALL = DetectorConfig(image_size=SIZE, min_area=1)
TAUGHT = DetectorConfig(image_size=SIZE, min_area=1, teacher="n", distill="ld")


def eager(seed: int = 0) -> Detector:
    """A detector of random weights that finds something everywhere."""
    torch.manual_seed(seed)
    detector = untrained_detector("n")
    for branch in detector.head.scores:
        layer = cast(nn.Conv2d, cast(nn.Sequential, branch)[-1])
        nn.init.normal_(layer.weight, std=0.1)
        nn.init.zeros_(cast(nn.Parameter, layer.bias))
    return detector


def build(config: DetectorConfig, seed: int = 0) -> method.DetectorModel:
    torch.manual_seed(seed)
    return method.build(method.Config(detector=config), None)


def a_batch(config: DetectorConfig = SMALL, training: bool = False) -> Batch:
    stage = detector_stages(config)[-1]
    samples = stage.samples(nn.Identity(), [case_of(detail=SIZE)], EmbeddingCache())
    return samples.batch([0, 2, 3], Chance(0, stage.name, 0, training))


def test_the_recipe():
    """ldfsam.md 3.4 and 3.5."""
    config = DetectorConfig()
    assert (config.size, config.image_size, config.teacher, config.distill) == ("n", 640, "", "none")
    assert (config.box, config.cls, config.dfl) == (7.5, 0.5, 1.5)
    assert (config.top_k, config.alpha, config.beta) == (10, 0.5, 6.0)
    assert (config.main_gain, config.vlr_gain, config.temperature, config.gamma) == (1.5, 0.375, 10.0, 0.25)
    assert (config.kd_gain, config.kd_temperature) == (0.5, 2.0)
    assert (config.mosaic, config.close_mosaic, config.hsv, config.ema) == (1.0, 10, (0.015, 0.7, 0.4), 0.9999)
    assert (config.scale, config.translate, config.flip, config.min_area) == (0.5, 0.1, 0.5, 16.0)
    assert (config.confidence, config.overlap) == (0.25, 0.7)
    for stage in (config.teacher_stage, config.student_stage):
        assert (stage.optimizer, stage.learning_rate, stage.momentum) == ("sgd", 0.01 * 16, 0.937)
        assert (stage.schedule, stage.epochs, stage.batch_size) == ("linear", 100, 16)
        assert stage.clip_norm == 10 / 16
        assert stage.weight_decay == pytest.approx(5e-4 / 16, rel=0.01)
    assert config.detail_size == 640


def test_a_part_of_the_recipe_keeps_the_rest():
    config = DetectorConfig.model_validate({"student_stage": {"epochs": 3}})
    assert (config.student_stage.epochs, config.student_stage.optimizer) == (3, "sgd")


def test_distillation_needs_a_teacher():
    with pytest.raises(ValueError, match="needs a teacher"):
        DetectorConfig(distill="kd")


def test_a_teacher_that_is_named_teaches_unless_it_is_not_to():
    assert DetectorConfig().distill == "none"
    assert DetectorConfig(teacher="s").distill == "ld"
    assert DetectorConfig.model_validate({"teacher": "s"}).distill == "ld"
    assert DetectorConfig(teacher="s", distill="none").distill == "none"
    assert DetectorConfig(teacher="").distill == "none"


def test_stages():
    alone, taught = detector_stages(SMALL), detector_stages(TAUGHT)
    assert [(s.name, s.trainable) for s in alone] == [("student", ("detector.*",))]
    assert [(s.name, s.trainable) for s in taught] == [("teacher", ("teacher.*",)), ("student", ("detector.*",))]
    assert all((s.ema, s.final_rate) == (0.9999, 0.01) for s in taught)
    own = detector_stages(DetectorConfig(teacher="n"), "a", "b")
    assert [s.trainable for s in own] == [("b.*",), ("a.*",)]


def test_a_model_without_the_part_is_refused():
    stage = detector_stages(TAUGHT)[0]
    with pytest.raises(ConfigError, match="no teacher"):
        stage.losses(cast(nn.Module, SimpleNamespace(teacher=None)), a_batch())


def test_an_untrained_detector_is_not_blind():
    """As drawn, with batch statistics 0 and 1, P5 would tell two images apart by 1e-9."""
    torch.manual_seed(0)
    images, detector = torch.rand(2, 3, SIZE, SIZE), untrained_detector("n")
    assert not detector.training
    p3, _, p5 = detector.features(images)
    assert min(p3.std(0).max(), p5.std(0).max()) > 0.1
    assert Detector("n").eval().features(images)[2].std(0).max() < 1e-6
    norms = [module for module in detector.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {norm.momentum for norm in norms} == {0.03}


def test_no_level_of_an_untrained_detector_drowns_the_others():
    """On smooth images, as pictures are; with the statistics of white noise P5 would be 4 times P3, all above 100."""
    torch.manual_seed(0)
    ramp = torch.linspace(0, 1, 160)
    images = torch.stack([ramp.expand(3, 160, 160), (ramp[:, None] * ramp).expand(3, 160, 160)])
    p3, p4, p5 = (float(level.detach().std()) for level in untrained_detector("n").features(images))
    assert max(p3, p4, p5) < 3 * min(p3, p4, p5)
    assert 1 < p3 < 100


def test_validation_sees_what_the_loss_cannot():
    """A network whose boxes are all far off has hardly any loss, and the worst average precision."""
    detector, batch = Detector("n").eval(), a_batch()
    for branch in detector.head.edges:
        layer = cast(nn.Conv2d, cast(nn.Sequential, branch)[-1])
        with torch.no_grad():
            bias = cast(nn.Parameter, layer.bias)
            bias.view(4, 16)[:, 0] = 50.0  # every edge at the centre: boxes without an area
    terms = detector_losses(detector, batch, SMALL)
    assert sum(float(terms[name].detach()) for name in ("box", "cls", "dfl")) < 1
    assert terms["ap_loss"] == 100
    assert "ap_loss" not in detector_losses(detector.train(), batch, SMALL)


def test_ap_loss_by_hand():
    """One of two objects found, precisely and surely: AP is 51 / 101 at every IoU."""
    centres, strides = torch.tensor([[12.0, 12.0], [44.0, 44.0]]), torch.full((2,), 8.0)
    edges = torch.full((1, 2, 4, 16), -50.0)
    edges[..., 1] = 50.0  # one stride from the centre to every edge
    found = Predictions(torch.tensor([[[3.0], [-9.0]]]), edges, centres, strides)
    boxes = torch.tensor([[4.0, 4, 20, 20], [36, 36, 52, 52]])
    truth = [(boxes, torch.zeros(2, dtype=torch.long))]
    assert float(ap_loss(found, truth, SMALL)) == pytest.approx(100 * (1 - 51 / 101), abs=1e-4)
    assert float(ap_loss(found, [(boxes[:0], torch.zeros(0, dtype=torch.long))], SMALL)) == 0


def test_truth_of_a_batch():
    boxes = torch.arange(24.0).reshape(2, 3, 4)
    batch = Batch({"images": torch.zeros(2, 3, 8, 8), "boxes": boxes, "counts": torch.tensor([0, 2])})
    (none, no_class), (two, classes) = truth_of(batch)
    assert none.shape == (0, 4)
    assert no_class.shape == (0,)
    assert torch.equal(two, boxes[1, :2])
    assert classes.tolist() == [0, 0]
    assert classes.dtype == torch.long


@pytest.mark.parametrize(
    "distill, extra",
    [("none", set()), ("kd", {"kd"}), ("ld_main", {"ld_main"}), ("ld", {"ld_main", "ld_vlr"})],
)
@pytest.mark.parametrize("region", ["diou", "all_neg"])
def test_terms(distill, extra, region):
    """Named terms, finite; none for the teacher's weights."""
    config = TAUGHT.model_copy(update={"distill": distill, "region": region})
    model, stage = build(config), detector_stages(config)[1]
    select_trainable(model, stage)
    terms = stage.losses(model, a_batch(config))
    assert set(terms) == {"box", "cls", "dfl"} | extra
    assert all(torch.isfinite(value) and value.ndim == 0 for value in terms.values())
    assert all(terms[name] > 0 for name in terms)
    torch.stack(list(terms.values())).sum().backward()
    assert model.teacher is not None
    assert all(p.grad is None for p in model.teacher.parameters())
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in model.source.parameters())


def test_gains_weigh_the_terms():
    model, batch = build(TAUGHT).train(), a_batch()
    plain = detector_losses(model.source, batch, TAUGHT, model.teacher)
    gains = {"box": 2.0, "main_gain": 3.0, "vlr_gain": 0.0}
    other = detector_losses(model.source, batch, TAUGHT.model_copy(update=gains), model.teacher)
    assert torch.isclose(other["box"], plain["box"] * 2 / 7.5)
    assert torch.isclose(other["ld_main"], plain["ld_main"] * 2)
    assert other["ld_vlr"] == 0
    assert torch.equal(other["dfl"], plain["dfl"])


def test_the_teacher_is_in_eval_mode_and_stays_as_it_is():
    model = build(TAUGHT).train()
    assert model.teacher is not None
    before = {name: tensor.clone() for name, tensor in model.teacher.state_dict().items()}
    detector_losses(model.source, a_batch(), TAUGHT, model.teacher)
    assert not model.teacher.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.teacher.state_dict().items())


def test_epochs_of_all_students_are_chosen_by_the_same_terms():
    model, batch = build(TAUGHT).eval(), a_batch()
    terms = detector_losses(model.source, batch, TAUGHT, model.teacher)
    assert set(terms) == {"box", "cls", "dfl", "ap_loss"}
    assert terms.keys() == detector_losses(model.source, batch, SMALL).keys()


def test_a_student_comes_nearer_to_its_teachers_edges_by_ld_than_by_kd_or_alone():
    """ldfsam.md 4, check 10, on slices that neither has seen; what it is worth in AP is an empirical matter.

    Students are the teacher with a fresh head, so that a few steps tell.
    """
    cases = [case_of(detail=SIZE, seed=seed) for seed in range(4)]
    teacher = trained(quick(0), cases, SMALL, steps=40)
    held_out = batch_of([case_of(detail=SIZE, seed=9)], [1, 2, 3, 4, 5])
    images = held_out.tensors["images"]
    with torch.no_grad():
        taught = teacher(images)
    assignment = task_aligned_assign(taught, truth_of(held_out))  # the same places for all students
    assert assignment.foreground.any()
    apart = {}
    for distill in ("none", "kd", "ld_main", "ld"):
        student = copy.deepcopy(teacher)
        student.head = quick(100).head
        for part in (student.backbone, student.neck):
            part.requires_grad_(False)
        config = TAUGHT.model_copy(update={"distill": distill})
        trained(student, cases, config, teacher if distill != "none" else None, steps=40)
        with torch.no_grad():
            apart[distill] = float(edge_divergence(student(images), taught, assignment))
    assert max(apart["ld"], apart["ld_main"]) < 0.8 * min(apart["none"], apart["kd"]), apart


def quick(seed: int) -> Detector:
    """A fresh detector whose batch statistics follow within some steps."""
    torch.manual_seed(seed)
    detector = Detector("n")
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.3
    return detector


def trained(detector: Detector, cases, config: DetectorConfig, teacher: Detector | None = None, *, steps: int):
    """Some steps with what of it has a gradient; in eval mode afterwards."""
    parameters = [parameter for parameter in detector.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, 1e-3)
    rng = np.random.default_rng(0)
    for _ in range(steps):
        batch = batch_of(cases, rng.integers(6 * len(cases), size=6).tolist())
        detector.train()
        for part in (detector.backbone, detector.neck):
            part.train(next(part.parameters()).requires_grad)
        torch.stack(list(detector_losses(detector, batch, config, teacher).values())).sum().backward()
        nn.utils.clip_grad_norm_(parameters, 10.0)
        optimizer.step()
        optimizer.zero_grad()
    return detector.eval()


def batch_of(cases, indices) -> Batch:
    """Slices as they are."""
    return DetectionSamples(cases, SMALL, 0).batch(indices, Chance(0, "student", 0, training=False))


def test_a_batch_without_objects_trains_too():
    empty = replace(case_of(), masks=np.zeros((6, 32, 32), bool))
    for stage in detector_stages(TAUGHT):
        model = build(TAUGHT)
        select_trainable(model, stage)
        samples = stage.samples(model, [empty], EmbeddingCache())
        terms = stage.losses(model, samples.batch([0, 1], Chance(0, stage.name, 0, True)))
        loss = torch.stack(list(terms.values())).sum()
        loss.backward()
        assert torch.isfinite(loss)
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_every_stage_makes_one_step():
    model, case = build(TAUGHT), case_of(detail=SIZE)
    for stage in detector_stages(TAUGHT):
        chosen = select_trainable(model, stage)
        samples = stage.samples(model, [case], EmbeddingCache())
        batch = samples.batch([1, 4], Chance(0, stage.name, 0, True))
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        optimizer = torch.optim.SGD(chosen.values(), lr=0.01)
        torch.stack(list(stage.losses(model, batch).values())).sum().backward()
        optimizer.step()
        moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
        assert moved
        assert moved <= set(chosen)
        assert all(p.isfinite().all() for p in model.parameters())


def stack_of(frame: Frame, depth: int = 11, detail: int = SIZE) -> SliceStack:
    plain = case_of(depth=depth, size=frame.size, detail=detail).stack
    return replace(plain, frame=frame)


def test_boxes_come_back_in_model_pixels():
    """Padded frames round their sides each by itself: by hand for a slice of 10 rows and 30 columns."""
    stack = stack_of(Frame(10, 30, 32, "pad"))
    assert (stack.frame.fitted_hw, Frame(10, 30, SIZE, "pad").fitted_hw) == ((11, 32), (21, 64))
    found = to_model_boxes(np.array([[2, 21, 60, 42.0]], np.float32), stack.frame, SIZE)
    assert np.allclose(found, [[1, 11, 30, 22]], rtol=1e-6)
    square = stack_of(Frame(17, 40, 32))
    found = to_model_boxes(np.array([[-3, 10, 64, 70]], np.float32), square.frame, SIZE)
    assert np.allclose(found, [[0, 5, 32, 32]])
    assert to_model_boxes(np.zeros((0, 4), np.float32), square.frame, SIZE).shape == (0, 4)


def test_a_stack_is_the_same_as_its_slices():
    """Eleven slices go through in batches of eight; each slice by itself gives the same boxes."""
    detector, stack = eager(), stack_of(Frame(32, 32, 32))
    found = detect_stack(detector, stack, SMALL)
    assert len(found) == stack.depth
    assert all(len(here.boxes) for here in found)
    for t, here in enumerate(found):
        detail = cast(np.ndarray, stack.detail)[t : t + 1]
        alone = detect_stack(detector, replace(stack, images=stack.images[t : t + 1], detail=detail), SMALL)[0]
        assert np.allclose(alone.boxes, here.boxes, atol=1e-2)
        assert np.allclose(alone.scores, here.scores, atol=1e-3)
        assert here.boxes.dtype == np.float32
        assert here.boxes.min() >= 0
        assert here.boxes.max() <= 32
        assert (np.diff(here.scores) <= 0).all()
    again = detect_stack(detector, stack, SMALL)
    assert all(np.array_equal(a.boxes, b.boxes) for a, b in zip(found, again, strict=True))


def test_a_lower_confidence_only_adds_boxes():
    detector, stack = eager(), stack_of(Frame(32, 32, 32), depth=3)
    low = detect_stack(detector, stack, SMALL, 0.001)
    middle = float(np.median(np.concatenate([here.scores for here in low])))
    high = detect_stack(detector, stack, SMALL.model_copy(update={"confidence": middle}))
    assert 0 < sum(len(here.boxes) for here in high) < sum(len(here.boxes) for here in low)
    for few, many in zip(high, low, strict=True):
        kept = above(many, middle)
        assert np.array_equal(kept.boxes, few.boxes)
        assert np.array_equal(kept.scores, few.scores)


def test_rows_for_the_record():
    found = FoundBoxes(np.array([[1, 2, 3.00049, 4]], np.float32), np.array([0.87654321], np.float32))
    nothing = FoundBoxes(np.zeros((0, 4), np.float32), np.zeros(0, np.float32))
    assert box_rows([nothing, found]) == [[1, 1.0, 2.0, 3.0, 4.0, 0.8765]]

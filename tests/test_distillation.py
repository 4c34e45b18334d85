"""Localization distillation: terms by hand, gradients, the valuable region, empty images."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from steadysam.detection.assign import Assignment
from steadysam.detection.distill import (
    classification_distillation,
    edge_divergence,
    edge_kl,
    localization_distillation,
    valuable_region,
)
from steadysam.detection.yolo import Predictions, grid

NOTHING = (torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
TRUTH = (torch.tensor([[10.0, 18, 42, 50], [50, 4, 90, 60]]), torch.tensor([0, 0]))
CENTRES, STRIDES = grid([(8, 12), (4, 6), (2, 3)], torch.device("cpu"))  # an image of 64 x 96 px


def predictions(batch: int = 1, classes: int = 1, *, seed: int = 0, grows: bool = True) -> Predictions:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(batch, len(CENTRES), classes, generator=generator)
    edges = torch.randn(batch, len(CENTRES), 4, 16, generator=generator) * 3
    return Predictions(scores.requires_grad_(grows), edges.requires_grad_(grows), CENTRES, STRIDES)


def assignment(batch: int = 1, classes: int = 1, places: dict[tuple[int, int], float] | None = None) -> Assignment:
    """The given (row, location) with their target scores of class 0; all else background."""
    scores = torch.zeros(batch, len(CENTRES), classes)
    for (row, place), score in (places or {}).items():
        scores[row, place, 0] = score
    return Assignment(scores.sum(-1) > 0, torch.zeros(batch, len(CENTRES), 4), scores, scores.sum().clamp_min(1))


SOME = {(0, 27): 0.9, (0, 40): 0.6, (0, 100): 0.5}  # Sigma = 2


def test_main_by_hand():
    student, teacher = predictions(seed=1), predictions(seed=2)
    main = localization_distillation(student, teacher, assignment(places=SOME), [TRUTH])["main"]
    total = 0.0
    for (row, place), score in SOME.items():
        p, q = (np.exp(x.edges[row, place].detach().double().numpy() / 10) for x in (teacher, student))
        p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
        total += score * 10**2 / 4 * float((p * np.log(p / q)).sum())
    assert main.item() == pytest.approx(total / 2, rel=1e-5)
    assert total > 0


def test_main_is_zero_for_equal_edges_and_ignores_a_constant_on_an_edge():
    student, teacher = predictions(seed=1), predictions(seed=2)
    same = localization_distillation(student, student, assignment(places=SOME), [TRUTH])
    assert same["main"].item() == 0
    assert same["vlr"].item() == 0
    before = localization_distillation(student, teacher, assignment(places=SOME), [TRUTH])
    assert before["main"] > 0
    assert before["vlr"] > 0
    moved = replace(student, edges=student.edges + torch.randn(1, len(CENTRES), 4, 1))
    after = localization_distillation(moved, teacher, assignment(places=SOME), [TRUTH])
    for name in ("main", "vlr"):
        torch.testing.assert_close(after[name], before[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 10.0])
def test_gradient_is_the_difference_of_distributions(temperature):
    student, teacher = predictions(seed=1), predictions(seed=2)
    found = assignment(places=SOME)
    terms = localization_distillation(student, teacher, found, [TRUTH], temperature=temperature)
    p_student, p_teacher = ((x.edges.detach() / temperature).softmax(-1) for x in (student, teacher))
    region, weight = valuable_region(CENTRES, STRIDES, TRUTH[0])
    near = (region & ~found.foreground[0]) * weight
    for name, weights in (("main", found.scores[..., 0]), ("vlr", near[None])):
        (gradient,) = torch.autograd.grad(terms[name], student.edges, retain_graph=True)
        expected = temperature * (p_student - p_teacher) / 4 * (weights / 2)[..., None, None]
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)
        assert gradient.abs().max() > 0
    sum(terms.values()).backward()  # pyright: ignore
    assert teacher.edges.grad is None
    assert teacher.scores.grad is None
    assert student.scores.grad is None


def test_edge_kl_sums_over_bins_and_has_the_gradient_of_the_cross_entropy():
    student, teacher = predictions(seed=1).edges, predictions(seed=2, grows=False).edges
    log_p, log_q = (teacher / 10).log_softmax(-1), (student / 10).log_softmax(-1)
    mean = torch.nn.functional.kl_div(log_q, log_p.exp(), reduction="none").mean(-1)  # as the authors' code
    torch.testing.assert_close(100 * edge_kl(student, teacher, 10), 16 * 100 * mean, rtol=1e-3, atol=1e-5)
    (kl,) = torch.autograd.grad(edge_kl(student, teacher, 10).sum(), student)
    (cross,) = torch.autograd.grad(-(log_p.exp() * log_q).sum(), student)
    torch.testing.assert_close(kl, cross, rtol=1e-4, atol=1e-6)


def test_edge_kl_by_hand():
    p, q = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.25, 0.25, 0.5])
    assert edge_kl(q.log(), p.log()).item() == pytest.approx(0.25 * math.log(2), rel=1e-5)
    assert edge_kl(p.log() * 2, q.log() * 2, 2.0).item() == pytest.approx(0.25 * math.log(2), rel=1e-5)
    assert edge_kl(torch.full((16,), -1e4).index_fill(0, torch.tensor(3), 1e4), torch.zeros(16)).isfinite()


def brute_region(boxes: np.ndarray, gamma: float) -> tuple[set[int], dict[int, float]]:
    """The region and weights, location by location."""
    region: set[int] = set()
    weights = dict.fromkeys(range(len(CENTRES)), 0.0)
    for x0, y0, x1, y1 in boxes.tolist():
        iou, diou, candidates = {}, {}, []
        for stride in (8, 16, 32):
            level = [k for k in range(len(CENTRES)) if STRIDES[k] == stride]
            far = {}
            for k in level:
                cx, cy = CENTRES[k].tolist()
                a0, b0, a1, b1 = cx - 4 * stride, cy - 4 * stride, cx + 4 * stride, cy + 4 * stride
                common = max(min(a1, x1) - max(a0, x0), 0) * max(min(b1, y1) - max(b0, y0), 0)
                iou[k] = common / ((8 * stride) ** 2 + (x1 - x0) * (y1 - y0) - common)
                far[k] = (cx - (x0 + x1) / 2) ** 2 + (cy - (y0 + y1) / 2) ** 2
                around = (max(a1, x1) - min(a0, x0)) ** 2 + (max(b1, y1) - min(b0, y0)) ** 2
                diou[k] = iou[k] - far[k] / around
                weights[k] = max(weights[k], iou[k])
            candidates += [iou[k] for k in sorted(level, key=lambda k: (far[k], k))[:9]]
        alpha = np.mean(candidates) + np.std(candidates, ddof=1)
        region |= {k for k in diou if gamma * alpha <= diou[k] < alpha}
    return region, weights


@pytest.mark.parametrize("gamma", [0.25, 0.6])
def test_region_against_loops(gamma):
    boxes = torch.tensor([[10.0, 18, 41, 50], [50, 4, 91, 60], [3, 3, 9, 30]])
    region, weights = valuable_region(CENTRES, STRIDES, boxes, gamma)
    expected, expected_weights = brute_region(boxes.numpy(), gamma)
    assert set(region.nonzero()[:, 0].tolist()) == expected
    assert 0 < len(expected) < len(CENTRES)
    torch.testing.assert_close(weights, torch.tensor(list(expected_weights.values())))


def test_region_shrinks_with_gamma_and_is_empty_at_one():
    regions = [valuable_region(CENTRES, STRIDES, TRUTH[0], g)[0] for g in (0.0, 0.25, 0.5, 0.75, 1.0)]
    for larger, smaller in itertools.pairwise(regions):
        assert not (smaller & ~larger).any()
    counts = [int(r.sum()) for r in regions]
    assert counts[-1] == 0
    assert counts[0] > counts[2] > counts[3] > 0
    student, teacher = predictions(seed=1), predictions(seed=2)
    values = [
        localization_distillation(student, teacher, assignment(), [TRUTH], gamma=g)["vlr"].item()
        for g in (0.0, 0.25, 0.5, 1.0)
    ]
    assert values == sorted(values, reverse=True)
    assert values[-1] == 0


def test_region_leaves_the_foreground_out():
    student, teacher = predictions(seed=1), predictions(seed=2)
    region, weight = valuable_region(CENTRES, STRIDES, TRUTH[0])
    taken = int((region * weight).argmax())
    found = assignment(places={(0, taken): 0.8, (0, int((~region).nonzero()[0, 0])): 0.2})
    vlr = localization_distillation(student, teacher, found, [TRUTH])["vlr"]
    (gradient,) = torch.autograd.grad(vlr, student.edges)
    touched = gradient[0].abs().amax((1, 2)) > 0
    assert not touched[taken]
    assert not (touched & found.foreground[0]).any()
    assert (touched == (region & ~found.foreground[0])).all()
    everything = {(0, k): 0.1 for k in range(len(CENTRES))}
    for mode in ("diou", "all_neg"):
        nothing = localization_distillation(student, teacher, assignment(places=everything), [TRUTH], region=mode)
        assert nothing["vlr"].item() == 0


@pytest.mark.parametrize(
    ("side", "centre", "levels"),
    [
        (256, (320, 320), (0, 96, 64)),
        (256, (336, 336), (0, 96, 56)),
        (64, (320, 320), (64, 24, 0)),
        (64, (324, 324), (56, 24, 0)),
        (24, (320, 324), (30, 2, 0)),
        (24, (324, 324), (28, 3, 0)),
    ],
)
def test_region_sizes_at_640_pixels(side, centre, levels):
    centres, strides = grid([(80, 80), (40, 40), (20, 20)], torch.device("cpu"))
    middle = torch.tensor(centre, dtype=torch.float32)
    box = torch.cat([middle - side / 2, middle + side / 2])[None]
    region, weight = valuable_region(centres, strides, box)
    assert tuple(int(region[strides == s].sum()) for s in (8, 16, 32)) == levels
    assert weight[region].min() > 0
    assert weight.max() <= 1


def test_all_negatives_by_hand():
    student, teacher = predictions(2, 3, seed=1), predictions(2, 3, seed=2)
    found = assignment(2, 3, {(0, 5): 0.5, (0, 60): 0.5})
    vlr = localization_distillation(student, teacher, found, [TRUTH, NOTHING], region="all_neg")["vlr"]
    weight = student.scores[0].detach().sigmoid().amax(-1) * ~found.foreground[0]
    expected = (weight * 25 * edge_kl(student.edges[0], teacher.edges[0], 10).sum(-1)).sum()
    torch.testing.assert_close(vlr, expected)
    vlr.backward()
    assert student.scores.grad is None  # the weight carries no gradient
    assert student.edges.grad is not None
    assert (student.edges.grad[1] == 0).all()


@pytest.mark.parametrize("mode", ["diou", "all_neg"])
def test_empty_images_give_zero(mode):
    student, teacher = predictions(2, seed=1), predictions(2, seed=2)
    terms = localization_distillation(student, teacher, assignment(2), [NOTHING, NOTHING], region=mode)
    kd = classification_distillation(student, teacher, assignment(2))
    assert [terms["main"].item(), terms["vlr"].item(), kd.item()] == [0, 0, 0]
    (terms["main"] + terms["vlr"] + kd).backward()
    for tensor in (student.edges, student.scores):
        assert tensor.grad is not None
        assert (tensor.grad == 0).all()
    assert edge_divergence(student, teacher, assignment(2)).isnan()
    region, weight = valuable_region(CENTRES, STRIDES, NOTHING[0])
    assert not region.any()
    assert (weight == 0).all()
    assert region.shape == weight.shape == STRIDES.shape


def test_an_empty_image_beside_a_full_one_changes_nothing():
    student, teacher = predictions(2, seed=1), predictions(2, seed=2)
    both = localization_distillation(student, teacher, assignment(2, places=SOME), [TRUTH, NOTHING])
    first = [replace(x, scores=x.scores[:1], edges=x.edges[:1]) for x in (student, teacher)]
    alone = localization_distillation(first[0], first[1], assignment(places=SOME), [TRUTH])
    for name in ("main", "vlr"):
        torch.testing.assert_close(both[name], alone[name])


def test_class_distillation_by_hand_where_a_softmax_would_be_zero():
    student, teacher = predictions(seed=1), predictions(seed=2)
    value = classification_distillation(student, teacher, assignment(places=SOME))
    total = 0.0
    for row, place in SOME:
        p, q = (1 / (1 + math.exp(-x.scores[row, place, 0].item() / 2)) for x in (teacher, student))
        total += 4 * (p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)))
    assert value.item() == pytest.approx(total / 2, rel=1e-4)
    assert edge_kl(student.scores, teacher.scores, 2.0).abs().max() == 0  # a softmax over one class
    assert value > 0
    assert classification_distillation(student, student, assignment(places=SOME)).item() == 0
    value.backward()
    assert teacher.scores.grad is None
    assert student.edges.grad is None
    assert student.scores.grad is not None
    here = assignment(places=SOME).foreground
    p_student, p_teacher = ((x.scores.detach() / 2).sigmoid() for x in (student, teacher))
    torch.testing.assert_close(student.scores.grad, 2 * (p_student - p_teacher) / 2 * here[..., None])


def test_class_distillation_of_several_classes_is_the_sum_of_each():
    student, teacher = predictions(1, 3, seed=1), predictions(1, 3, seed=2)
    whole = classification_distillation(student, teacher, assignment(1, 3, SOME))
    parts = []
    for c in range(3):
        one, two = (replace(x, scores=x.scores[..., c : c + 1]) for x in (student, teacher))
        parts.append(classification_distillation(one, two, assignment(places=SOME)))
    torch.testing.assert_close(whole, torch.stack(parts).sum())
    huge = replace(teacher, scores=torch.full_like(teacher.scores, 400.0))
    assert classification_distillation(student, huge, assignment(1, 3, SOME)).isfinite()


def test_edge_divergence_is_the_mean_at_temperature_one():
    student, teacher = predictions(seed=1), predictions(seed=2)
    found = assignment(places=SOME)
    value = edge_divergence(student, teacher, found)
    expected = torch.stack([edge_kl(student.edges[i], teacher.edges[i]).mean() for i in SOME]).mean()
    torch.testing.assert_close(value, expected.detach())
    assert not value.requires_grad
    assert edge_divergence(student, student, found).item() == 0


def test_half_precision_predictions_are_computed_in_float32():
    student, teacher = (replace(x, edges=x.edges.detach().bfloat16()) for x in (predictions(), predictions(seed=2)))
    terms = localization_distillation(student, teacher, assignment(places=SOME), [TRUTH])
    assert {t.dtype for t in terms.values()} == {torch.float32}


def test_other_grids_and_other_batches_are_refused():
    student, found = predictions(1, 1), assignment(places=SOME)
    with pytest.raises(ValueError, match="of a teacher"):
        localization_distillation(student, predictions(2), found, [TRUTH])
    with pytest.raises(ValueError, match="of a teacher"):
        classification_distillation(student, predictions(1, 3), found)
    with pytest.raises(ValueError, match="truth of 2 images"):
        localization_distillation(student, predictions(seed=2), found, [TRUTH, NOTHING])

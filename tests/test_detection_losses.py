"""The detector's loss: numbers by hand, weights, normaliser, empty batches."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from steadysam.detection.boxes import complete_iou, decode_boxes
from steadysam.detection.losses import detection_losses, distribution_focal_loss, edge_distances
from steadysam.detection.yolo import Predictions, grid

NOTHING = (torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
TRUTH = (torch.tensor([[10.0, 18, 42, 50]]), torch.tensor([0]))


def predictions(batch: int = 1, *, seed: int = 0) -> Predictions:
    centres, strides = grid([(8, 12), (4, 6), (2, 3)], torch.device("cpu"))
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(batch, len(centres), 1, generator=generator)
    edges = torch.randn(batch, len(centres), 4, 16, generator=generator)
    return Predictions(scores.requires_grad_(), edges.requires_grad_(), centres, strides)


def test_dfl_between_two_bins():
    logits = torch.full((16,), -30.0)
    logits[2], logits[3] = math.log(0.75), math.log(0.25)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    value = distribution_focal_loss(logits.requires_grad_(), torch.tensor(2.25))
    assert entropy == pytest.approx(0.562335, abs=1e-6)
    assert value.item() == pytest.approx(entropy, abs=1e-5)
    (gradient,) = torch.autograd.grad(value, logits)  # the truth's own distribution is the minimum
    assert gradient.abs().max() < 1e-5
    assert distribution_focal_loss(torch.zeros(5, 4, 16), torch.full((5, 4), 7.3)).shape == (5, 4)
    assert distribution_focal_loss(torch.zeros(16), torch.tensor(7.3)).item() == pytest.approx(math.log(16))


def test_dfl_at_whole_bins_and_beyond_the_ends():
    logits = torch.randn(16, generator=torch.Generator().manual_seed(1))
    for distance, place in ((0.0, 0), (4.0, 4), (15.0, 15), (99.0, 15), (-3.0, 0)):
        value = distribution_focal_loss(logits, torch.tensor(distance))
        torch.testing.assert_close(value, F.cross_entropy(logits[None], torch.tensor([place])))


def test_distances_are_the_inverse_of_decoding():
    one = predictions()
    decoded = decode_boxes(one)
    bins = torch.arange(16.0)
    torch.testing.assert_close(edge_distances(one, decoded), (one.edges.softmax(-1) * bins).sum(-1))


def test_terms_by_hand():
    one = predictions()
    terms, assignment = detection_losses(one, [TRUTH])
    weight, sigma = assignment.scores[0, :, 0], max(assignment.scores.sum().item(), 1)
    overlap = complete_iou(decode_boxes(one)[0], TRUTH[0])
    box = sum(weight[k] * (1 - overlap[k]) for k in range(len(weight)))
    cls = F.binary_cross_entropy_with_logits(one.scores[0, :, 0], weight, reduction="sum")
    distances = edge_distances(one, TRUTH[0].expand(1, len(weight), 4))[0]
    dfl = sum(weight[k] * distribution_focal_loss(one.edges[0, k], distances[k]).mean() for k in range(len(weight)))
    torch.testing.assert_close(terms["box"], 7.5 * box / sigma)
    torch.testing.assert_close(terms["cls"], 0.5 * cls / sigma)
    torch.testing.assert_close(terms["dfl"], 1.5 * dfl / sigma)
    assert list(terms) == ["box", "cls", "dfl"]


def test_gains_are_factors():
    plain, _ = detection_losses(predictions(), [TRUTH], box=1, cls=1, dfl=1)
    twice, _ = detection_losses(predictions(), [TRUTH], box=2, cls=0, dfl=3)
    torch.testing.assert_close(
        [twice[key] for key in ("box", "cls", "dfl")], [2 * plain["box"], 0 * plain["cls"], 3 * plain["dfl"]]
    )


def test_a_batch_without_objects_is_finite():
    one = predictions(2)
    terms, assignment = detection_losses(one, [NOTHING, NOTHING])
    assert (terms["box"].item(), terms["dfl"].item()) == (0, 0)
    torch.testing.assert_close(terms["cls"], 0.5 * F.softplus(one.scores).sum())
    sum(terms.values()).backward()  # pyright: ignore[reportAttributeAccessIssue]
    assert not assignment.foreground.any()
    assert one.scores.grad is not None
    assert one.edges.grad is not None
    assert one.scores.grad.isfinite().all()
    assert not one.edges.grad.any()


def test_an_empty_image_beside_a_full_one():
    one = predictions(2)
    terms, assignment = detection_losses(one, [NOTHING, TRUTH])
    sum(terms.values()).backward()  # pyright: ignore[reportAttributeAccessIssue]
    assert assignment.foreground.any(dim=1).tolist() == [False, True]
    assert one.edges.grad is not None
    assert not one.edges.grad[0].any()
    assert one.edges.grad[1].any()
    assert one.edges.grad.isfinite().all()


def test_loss_does_not_grow_with_the_batch():
    """Sigma counts the whole batch: twice the same image gives the same loss, where Sigma is above 1."""
    one = predictions()
    two = Predictions(one.scores.repeat(2, 1, 1), one.edges.repeat(2, 1, 1, 1), one.centres, one.strides)
    wide = (torch.tensor([[-12.0, -28, 108, 92]]), torch.tensor([0]))  # as the first guesses are
    a, assignment = detection_losses(one, [wide])
    b, _ = detection_losses(two, [wide] * 2)
    assert assignment.scores.sum() > 1
    torch.testing.assert_close(a, b)


def test_half_precision_logits_are_computed_in_float32():
    one = predictions()
    half = Predictions(one.scores.bfloat16(), one.edges.bfloat16(), one.centres, one.strides)
    terms, _ = detection_losses(half, [TRUTH])
    assert {term.dtype for term in terms.values()} == {torch.float32}

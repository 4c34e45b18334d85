"""spd.md section 8, checks 6 and 7."""

import math

import pytest
import torch
from torch.nn import functional as F

from steadysam.losses import (
    cross_entropy,
    dice_loss,
    focal_loss,
    pairwise_consistency,
    sam_med2d_terms,
    segmentation_terms,
    soft_iou,
)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def test_dice_of_equal_binary_maps_is_zero_and_of_disjoint_ones_is_one(generator):
    mask = (torch.rand(3, 1, 5, 9, generator=generator) > 0.5).float()
    assert torch.allclose(dice_loss(mask, mask), torch.zeros(3), atol=1e-6)
    assert torch.allclose(dice_loss(mask, 1 - mask), torch.ones(3), atol=1e-6)


def test_dice_is_summed_per_sample_not_over_the_batch():
    p = torch.tensor([[[1.0, 0.0]], [[0.5, 0.5]]])
    g = torch.tensor([[[1.0, 0.0]], [[1.0, 1.0]]])
    by_hand = torch.tensor([0.0, 1 - 2 * 1.0 / (1.0 + 2.0)])
    assert torch.allclose(dice_loss(p, g), by_hand, atol=1e-6)


def test_dice_with_squares_in_the_denominator_by_hand():
    p, g = torch.tensor([[0.5, 0.2], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    by_hand = torch.tensor([1 - 2 * 0.5 / (0.25 + 0.04 + 1.0), 0.0])
    assert torch.allclose(dice_loss(p, g, squared=True), by_hand, atol=1e-5)


def test_cross_entropy_by_hand():
    logits, target = torch.tensor([[0.0, 2.0, -1.0]]), torch.tensor([[1.0, 0.0, 1.0]])
    at = [math.log(2), math.log(1 + math.exp(2)), math.log(1 + math.exp(1))]
    assert float(cross_entropy(logits, target)) == pytest.approx(sum(at) / 3, rel=1e-6)
    assert float(cross_entropy(logits, target, 2.0)) == pytest.approx((2 * at[0] + at[1] + 2 * at[2]) / 3, rel=1e-6)


def test_focal_with_gamma_zero_is_cross_entropy(generator):
    logits = torch.randn(4, 1, 6, 7, generator=generator) * 4
    target = (torch.rand(4, 1, 6, 7, generator=generator) > 0.7).float()
    expected = F.binary_cross_entropy_with_logits(logits, target)
    assert torch.allclose(focal_loss(logits, target, gamma=0.0).mean(), expected)


def test_focal_by_hand():
    logits = torch.tensor([[0.0, 2.0]])
    target = torch.tensor([[1.0, 0.0]])
    q = torch.tensor([0.5, 1 - torch.sigmoid(torch.tensor(2.0))])
    expected = (-((1 - q) ** 2) * q.log()).mean()
    assert torch.allclose(focal_loss(logits, target)[0], expected, atol=1e-6)


def test_weights_of_equation_1(generator):
    logits = torch.randn(2, 1, 4, 4, generator=generator)
    target = (torch.rand(2, 1, 4, 4, generator=generator) > 0.5).float()
    terms = segmentation_terms(logits, target)
    expected = 0.7 * dice_loss(logits.sigmoid(), target) + 0.3 * focal_loss(logits, target)
    assert torch.allclose(torch.stack(list(terms.values())).sum(0), expected)


@pytest.mark.parametrize("squared", [False, True])
def test_consistency_of_equal_and_of_disjoint_maps(squared):
    a = torch.zeros(1, 4, 6)
    a[0, 1:3, 2:5] = 1
    b = torch.zeros(1, 4, 6)
    b[0, 3, :] = 1
    assert torch.allclose(pairwise_consistency(a, a, squared=squared), torch.zeros(1), atol=1e-6)
    assert torch.allclose(pairwise_consistency(a, b, squared=squared), torch.ones(1), atol=1e-6)


@pytest.mark.parametrize("squared", [False, True])
def test_consistency_is_finite_for_empty_maps_and_reaches_both(squared):
    empty = torch.zeros(1, 4, 6)
    assert torch.isfinite(pairwise_consistency(empty, empty, squared=squared)).all()
    a = torch.full((1, 4, 6), 0.3, requires_grad=True)
    b = torch.full((1, 4, 6), 0.6, requires_grad=True)
    pairwise_consistency(a, b, squared=squared).sum().backward()
    assert a.grad is not None
    assert b.grad is not None
    assert a.grad.abs().sum() > 0
    assert b.grad.abs().sum() > 0


def test_known_defect_flat_maps_are_pushed_up_and_the_squared_form_does_not():
    """spd.md 0.4: at p = 0.1 the paper's term has a negative slope, so it raises empty neighbours."""
    for squared, expected in ((False, "negative"), (True, "zero")):
        logits = torch.full((1, 8, 8), float(torch.logit(torch.tensor(0.1))), requires_grad=True)
        p = logits.sigmoid()
        pairwise_consistency(p, p, squared=squared).sum().backward()
        assert logits.grad is not None
        slope = float(logits.grad.sum())
        assert slope < -1e-3 if expected == "negative" else abs(slope) < 1e-6


def test_sam_med2ds_terms_by_hand():
    """Probabilities 3/4, 3/4, 1/4, 1/4 against 1, 0, 1, 0; beside it a slice that is empty and found empty."""
    z = math.log(3)
    logits = torch.tensor([[[z, z], [-z, -z]], [[-40.0, -40.0], [-40.0, -40.0]]], dtype=torch.float64)
    target = torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    terms = sam_med2d_terms(logits, torch.tensor([[0.8], [0.9]]), target)
    right, wrong = -math.log(3 / 4), -math.log(1 / 4)
    object_, other = 0.25 * (right / 16 + wrong * 9 / 16), 0.75 * (wrong * 9 / 16 + right / 16)
    focal = 20 * (object_ + other) / 4
    assert focal == pytest.approx(3.988854, abs=1e-5)
    assert terms["focal"].tolist() == pytest.approx([focal, 0.0], abs=1e-5)
    assert terms["dice"].tolist() == pytest.approx([1 - 3 / 5, 0.0], abs=1e-6)
    assert terms["iou"].tolist() == pytest.approx([(0.8 - 1 / 3) ** 2, 0.01], abs=1e-6)
    assert all(value.dtype == torch.float32 and value.shape == (2,) for value in terms.values())


def test_sam_med2ds_terms_are_finite_at_the_ends_and_have_gradients_to_mask_and_iou():
    logits = torch.tensor([[200.0, -200.0], [200.0, -200.0]], requires_grad=True)
    said = torch.tensor([0.5, 0.5], requires_grad=True)
    terms = sam_med2d_terms(logits, said, torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    assert all(torch.isfinite(value).all() for value in terms.values())
    assert terms["focal"].tolist() == pytest.approx([2000.0, 0.0])  # 20 (0.25 + 0.75) 200 / 2
    torch.stack([value.sum() for value in terms.values()]).sum().backward()
    for tensor in (logits, said):
        assert tensor.grad is not None
        assert torch.isfinite(tensor.grad).all()
        assert tensor.grad.abs().sum() > 0


def test_soft_iou_by_hand():
    assert soft_iou(torch.tensor([[0.5, 1.0, 0.0]]), torch.tensor([[1.0, 1.0, 1.0]])).item() == pytest.approx(0.5)
    assert soft_iou(torch.zeros(1, 4), torch.zeros(1, 4)).item() == 1


def test_focal_with_class_balance_splits_the_plain_one(generator):
    logits = torch.randn(2, 1, 4, 4, generator=generator)
    target = (torch.rand(2, 1, 4, 4, generator=generator) > 0.5).float()
    parts = focal_loss(logits, target, alpha=0.3) + focal_loss(logits, target, alpha=0.7)
    assert torch.allclose(parts, focal_loss(logits, target), atol=1e-6)

"""Task-aligned assignment on small grids, where every answer can be seen."""

from __future__ import annotations

import pytest
import torch

from steadysam.detection.assign import task_aligned_assign
from steadysam.detection.boxes import complete_iou, decode_boxes
from steadysam.detection.yolo import Predictions, grid

NOTHING = (torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
BOX = torch.tensor([[10.0, 18, 42, 50]])
ZERO = torch.tensor([0])


def uniform(batch: int = 1, height: int = 64, width: int = 96, classes: int = 1) -> Predictions:
    """Predictions that are the same everywhere: edges 7.5 strides, scores 0.5."""
    sides = [(height // s, width // s) for s in (8, 16, 32)]
    centres, strides = grid(sides, torch.device("cpu"))
    count = len(centres)
    return Predictions(torch.zeros(batch, count, classes), torch.zeros(batch, count, 4, 16), centres, strides)


def towards(predictions: Predictions, box: torch.Tensor, row: int = 0) -> Predictions:
    """The same, with every location inside `box` predicting it."""
    c, s = predictions.centres, predictions.strides[:, None]
    distances = torch.cat([c - box[:2], box[2:] - c], dim=1) / s
    here = ((distances > 0) & (distances < 15)).all(dim=1)
    near = 1 - (distances[..., None] - torch.arange(16)).abs()
    edges = predictions.edges.clone()
    edges[row, here] = near.clamp_min(1e-9).log()[here]
    return Predictions(predictions.scores, edges, c, predictions.strides)


def at(predictions: Predictions, x: float, y: float) -> int:
    return int((predictions.centres == torch.tensor([x, y])).all(dim=1).nonzero()[0])


def test_best_score_wins_where_all_boxes_are_right():
    predictions = towards(uniform(), BOX[0])
    place = at(predictions, 28, 36)
    predictions.scores[0, place] = 2.0
    assignment = task_aligned_assign(predictions, [(BOX, ZERO)], top_k=1)
    assert assignment.foreground[0].nonzero().tolist() == [[place]]
    assert assignment.boxes[0, place].tolist() == BOX[0].tolist()
    assert assignment.boxes.count_nonzero() == 4
    assert assignment.scores[0, place].item() == pytest.approx(1, abs=1e-5)
    assert assignment.normaliser.item() == 1


def test_ten_inside_by_default_and_shares_by_hand():
    predictions = towards(uniform(), BOX[0])
    predictions.scores[0, at(predictions, 28, 36)] = torch.tensor(0.81).logit()
    predictions.scores[0, at(predictions, 36, 44)] = torch.tensor(0.64).logit()
    assignment = task_aligned_assign(predictions, [(BOX, ZERO)])
    assert assignment.foreground.sum() == 10
    inside = (predictions.centres > BOX[0, :2]).all(1) & (predictions.centres < BOX[0, 2:]).all(1)
    assert inside[assignment.foreground[0]].all()
    scores = assignment.scores[0, :, 0]
    # overlap 1 everywhere: the shares are the square roots 0.9 : 0.8 : sqrt(0.5)
    assert scores[at(predictions, 28, 36)].item() == pytest.approx(1, abs=1e-5)
    assert scores[at(predictions, 36, 44)].item() == pytest.approx(0.8 / 0.9, abs=1e-5)
    assert sorted(scores.tolist())[-3] == pytest.approx(0.5**0.5 / 0.9, abs=1e-5)
    assert assignment.normaliser.item() == pytest.approx(scores.sum().item())


def test_ties_go_to_the_first_locations():
    predictions = uniform()
    boxes = torch.tensor([[0.0, 0, 96, 64]])
    first = task_aligned_assign(predictions, [(boxes, ZERO)], top_k=3, beta=0)
    assert first.foreground[0].nonzero()[:, 0].tolist() == [0, 1, 2]
    again = task_aligned_assign(predictions, [(boxes, ZERO)], top_k=3, beta=0)
    assert torch.equal(first.scores, again.scores)


def test_overlap_counts_by_its_sixth_power():
    predictions = uniform()
    truth = [(torch.tensor([[0.0, 0, 90, 61]]), ZERO)]  # off the grid's symmetry
    assignment = task_aligned_assign(predictions, truth, top_k=2)
    overlap = complete_iou(decode_boxes(predictions)[0], truth[0][0]).clamp_min(0)
    best = overlap.sort(descending=True, stable=True)
    assert set(assignment.foreground[0].nonzero()[:, 0].tolist()) == set(best.indices[:2].tolist())
    shares = (best.values[:2] / best.values[0]) ** 6 * best.values[0]
    assert 0 < shares[1] < shares[0]
    torch.testing.assert_close(assignment.scores[0, best.indices[:2], 0], shares)


def test_a_disputed_location_goes_to_the_box_it_overlaps_more():
    inner = torch.tensor([20.0, 28, 36, 44])
    predictions = towards(uniform(), inner)
    truth = [(torch.stack([BOX[0], inner]), torch.tensor([0, 0]))]
    assignment = task_aligned_assign(predictions, truth, top_k=40)
    place = at(predictions, 28, 36)
    assert assignment.boxes[0, place].tolist() == inner.tolist()
    outside = at(predictions, 12, 20)
    assert assignment.boxes[0, outside].tolist() == BOX[0].tolist()
    same = [(torch.stack([inner, inner]), torch.tensor([1, 0]))]
    twice = task_aligned_assign(towards(uniform(classes=2), inner), same)
    assert twice.scores[0, place].tolist() == pytest.approx([0, 1], abs=1e-5)  # equals: the earlier box


def test_classes_and_their_own_scores():
    predictions = towards(uniform(classes=2), BOX[0])
    place, other = at(predictions, 28, 36), at(predictions, 20, 28)
    predictions.scores[0, place, 1] = 1.0
    predictions.scores[0, other, 0] = 4.0
    assignment = task_aligned_assign(predictions, [(BOX, torch.tensor([1]))], top_k=1)
    assert assignment.foreground[0].nonzero().tolist() == [[place]]
    assert assignment.scores[0, place].tolist() == pytest.approx([0, 1], abs=1e-5)


def test_images_without_objects_and_boxes_without_centres():
    predictions = uniform(batch=3)
    tiny = (torch.tensor([[5.0, 5, 7, 7]]), ZERO)  # between the centres 4 and 8 and 12
    assignment = task_aligned_assign(predictions, [NOTHING, tiny, (BOX, ZERO)])
    assert assignment.foreground.sum(dim=1).tolist() == [0, 0, 10]
    assert not assignment.scores[:2].any()
    assert not assignment.boxes[:2].any()
    nothing = task_aligned_assign(predictions, [NOTHING] * 3)
    assert nothing.normaliser.item() == 1


def test_rows_do_not_depend_on_each_other():
    predictions = towards(uniform(batch=2), BOX[0], row=1)
    other = (torch.tensor([[40.0, 2, 90, 60]]), ZERO)
    both = task_aligned_assign(predictions, [other, (BOX, ZERO)])
    alone = Predictions(predictions.scores[1:], predictions.edges[1:], predictions.centres, predictions.strides)
    assert torch.equal(both.scores[1:], task_aligned_assign(alone, [(BOX, ZERO)]).scores)


def test_small_overlaps_still_give_a_whole_share():
    """A small object under a large first guess: t is tiny, its best location still gets the best overlap."""
    predictions = uniform(height=128, width=128)
    predictions.scores.fill_(-7)
    box = torch.tensor([[60.0, 60, 70, 70]])
    assignment = task_aligned_assign(predictions, [(box, ZERO)])
    overlap = complete_iou(decode_boxes(predictions)[0], box)[assignment.foreground[0]].max()
    assert 0 < overlap < 0.05
    assert assignment.scores.max().item() == pytest.approx(overlap.item())


def test_nothing_carries_a_gradient_and_counts_must_agree():
    predictions = uniform()
    predictions.scores.requires_grad_()
    predictions.edges.requires_grad_()
    assignment = task_aligned_assign(predictions, [(BOX, ZERO)])
    assert not assignment.scores.requires_grad
    assert not assignment.boxes.requires_grad
    with pytest.raises(ValueError, match="2 images"):
        task_aligned_assign(predictions, [NOTHING, NOTHING])

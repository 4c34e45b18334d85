"""Overlaps, decoding, suppression and the boxes of a mask, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from steadysam.detection.boxes import (
    boxes_of_mask,
    complete_iou,
    decode_boxes,
    detect,
    diou_matrix,
    expected_edges,
    iou_matrix,
    non_maximum_suppression,
)
from steadysam.detection.yolo import Predictions

A = torch.tensor([0.0, 0, 4, 4])
SHIFTED = torch.tensor([2.0, 0, 6, 4])
NARROW = torch.tensor([0.0, 0, 2, 4])
FAR = torch.tensor([10.0, 10, 12, 12])


def test_iou_by_hand():
    both = torch.stack([A, SHIFTED, NARROW, FAR])
    expected = torch.tensor([[1, 1 / 3, 1 / 2, 0], [1 / 3, 1, 0, 0]])
    torch.testing.assert_close(iou_matrix(both[:2], both), expected)
    assert iou_matrix(both[None], both[None, :2]).shape == (1, 4, 2)
    assert iou_matrix(both[:0], both).shape == (0, 4)


def test_diou_by_hand():
    # shifted: centres 2 apart, enclosing 6 x 4; far: centres (9, 9) apart, enclosing 12 x 12
    expected = torch.tensor([[1, 1 / 3 - 4 / 52, 1 / 2 - 1 / 32, -162 / 288]])
    torch.testing.assert_close(diou_matrix(A[None], torch.stack([A, SHIFTED, NARROW, FAR])), expected)


def test_ciou_by_hand():
    v = 4 / math.pi**2 * (math.atan(1) - math.atan(0.5)) ** 2
    narrow = 1 / 2 - 1 / 32 - v / (1 - 1 / 2 + v) * v
    assert narrow == pytest.approx(0.465502, abs=1e-6)
    values = complete_iou(A, torch.stack([A, SHIFTED, NARROW]))
    torch.testing.assert_close(values, torch.tensor([1, 1 / 3 - 4 / 52, narrow]))
    assert complete_iou(A[None, None], torch.stack([A, FAR])[:, None]).shape == (2, 1)


def test_overlaps_of_empty_boxes_and_their_gradients_are_finite():
    empty = torch.tensor([[1.0, 1, 1, 1], [3.0, 3, 3, 8], [0.0, 0, 4, 4]], requires_grad=True)
    values = complete_iou(empty, torch.stack([torch.tensor([1.0, 1, 1, 1]), A, A]))
    values.sum().backward()
    assert values.isfinite().all()
    assert empty.grad is not None
    assert empty.grad.isfinite().all()


def test_ciou_gradient_moves_the_box_towards_the_truth():
    box = FAR.clone().requires_grad_()
    (1 - complete_iou(box, A)).backward()  # apart, where IoU alone has no gradient
    assert box.grad is not None
    assert (box.grad[:2] + box.grad[2:] > 0).all()  # of the centre, which must move up and left


def logits_of(*shares: tuple[int, float]) -> torch.Tensor:
    """(16,) logits of a distribution over few bins."""
    logits = torch.full((16,), -1e4)
    for place, share in shares:
        logits[place] = math.log(share)
    return logits


def predictions_of(*rows: tuple[float, torch.Tensor]) -> Predictions:
    """One image with locations at (20, 12), stride 8, from scores and (4, 16) edges; a last one spans the image."""
    edges = torch.stack([edges for _, edges in rows])[None]
    scores = torch.tensor([score for score, _ in rows])[None, :, None].logit()
    centres = torch.tensor([[20.0, 12]] * len(rows))
    return Predictions(scores, edges, centres, torch.full((len(rows),), 8.0))


def test_expected_edges_and_decoding():
    assert expected_edges(torch.zeros(2, 4, 16)).tolist() == [[7.5] * 4] * 2
    edges = torch.stack([logits_of((2, 0.75), (3, 0.25)), logits_of((1, 1)), logits_of((0, 1)), logits_of((15, 1))])
    torch.testing.assert_close(expected_edges(edges), torch.tensor([2.25, 1, 0, 15]))
    decoded = decode_boxes(predictions_of((0.5, edges)))
    torch.testing.assert_close(decoded, torch.tensor([[[20 - 18.0, 12 - 8, 20, 12 + 120]]]))


def test_suppression_by_hand():
    boxes, scores = torch.stack([SHIFTED, A, FAR, A]), torch.tensor([0.9, 0.8, 0.1, 0.8])
    assert non_maximum_suppression(boxes, scores, 0.5).tolist() == [0, 1, 2]  # the second A goes: the earlier wins
    assert non_maximum_suppression(boxes, scores, 0.3).tolist() == [0, 2]
    third = float(iou_matrix(A[None], SHIFTED[None]))
    assert non_maximum_suppression(boxes, scores, third).tolist() == [0, 1, 2]  # only above the limit
    assert non_maximum_suppression(boxes, scores, 0.3, classes=torch.tensor([0, 1, 0, 1])).tolist() == [0, 1, 2]
    assert non_maximum_suppression(boxes, scores, 0.5, most=2).tolist() == [0, 1]
    assert non_maximum_suppression(boxes[:0], scores[:0], 0.5).tolist() == []


def test_detect_keeps_confident_boxes_inside_the_image():
    small = torch.stack([logits_of((1, 1))] * 4)
    wide = torch.stack([logits_of((15, 1))] * 4)
    predictions = predictions_of((0.3, small), (0.9, small), (0.2, wide), (0.6, wide))
    (found,) = detect(predictions)
    # the image ends at (24, 16), half a stride beyond the last centre
    assert found.boxes.tolist() == [[12, 4, 24, 16], [0, 0, 24, 16]]
    torch.testing.assert_close(found.scores, torch.tensor([0.9, 0.6]))
    assert found.classes.tolist() == [0, 0]
    assert len(detect(predictions, most=1)[0].boxes) == 1
    (none,) = detect(predictions, confidence=0.95)
    assert (none.boxes.shape, none.scores.shape, none.classes.shape) == ((0, 4), (0,), (0,))


def test_detect_suppresses_per_class():
    small = torch.stack([logits_of((1, 1))] * 4)
    predictions = predictions_of((0.5, small), (0.6, small), (0.7, small))
    scores = torch.tensor([[[0.5, 0.1], [0.1, 0.6], [0.7, 0.1]]]).logit()
    (found,) = detect(Predictions(scores, predictions.edges, predictions.centres, predictions.strides))
    assert found.classes.tolist() == [0, 1]
    torch.testing.assert_close(found.scores, torch.tensor([0.7, 0.6]))


def test_boxes_of_a_mask():
    mask = np.zeros((9, 13), bool)
    mask[5:8, 1:4] = True  # second in reading order
    mask[0, 12] = True
    mask[1, 11] = True  # touches at a corner: the same component
    mask[3, 6] = True
    assert boxes_of_mask(mask, 1).tolist() == [[11, 0, 13, 2], [6, 3, 7, 4], [1, 5, 4, 8]]
    assert boxes_of_mask(mask, 2).tolist() == [[11, 0, 13, 2], [1, 5, 4, 8]]
    assert boxes_of_mask(mask, 9).tolist() == [[1, 5, 4, 8]]
    assert boxes_of_mask(mask, 9.5).shape == (0, 4)
    assert boxes_of_mask(np.zeros((3, 5), bool), 0).dtype == np.float32


def test_boxes_of_a_mask_come_by_their_own_corner():
    """A component is found at its first pixel, but its box may start further left: the corner decides."""
    mask = np.zeros((4, 8), bool)
    mask[0, 5], mask[1:3, 4] = True, True
    mask[0, 1] = True
    mask[1, 7] = True
    assert boxes_of_mask(mask, 1).tolist() == [[1, 0, 2, 1], [4, 0, 6, 3], [7, 1, 8, 2]]

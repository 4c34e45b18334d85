"""Simulated clicks on one slice, answers back on the slice's pixels, and the protocol of a simulated user."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from steadysam.backbones.backbone import Backbone
from steadysam.interactive import dice, simulate_user, to_slice
from steadysam.prompts.clicks import distance_inside, interior_click, keep_clicked, next_click, tight_box
from steadysam.types import Frame, SlicePoints


def rectangle(shape: tuple[int, int], rows: slice, columns: slice) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[rows, columns] = True
    return mask


def test_distance_counts_what_lies_beyond_the_image_as_outside():
    """In a full 3 x 5 image: 1 at the border, 2 in the middle row's three inner pixels."""
    assert distance_inside(np.ones((3, 5), bool)).tolist() == [[1] * 5, [1, 2, 2, 2, 1], [1] * 5]
    ell = np.array([[1, 1, 0], [1, 1, 1], [0, 1, 1]], bool)
    assert distance_inside(ell)[1, 1] == pytest.approx(np.sqrt(2))
    assert (distance_inside(ell)[~ell] == 0).all()


def test_an_interior_click_is_deep_in_the_largest_part(rng):
    mask = rectangle((20, 30), slice(4, 13), slice(10, 25)) | rectangle((20, 30), slice(16, 19), slice(1, 4))
    places = {interior_click(mask, rng) for _ in range(300)}
    # the block is 9 x 15: its deepest distance is 5, half of it 2.5, so rows 6 to 10 and columns 12 to 22
    assert places == {(x, y) for x in range(12, 23) for y in range(6, 11)}
    assert {interior_click(mask, rng, depth=1.0) for _ in range(200)} == {(x, 8) for x in range(14, 21)}
    assert {interior_click(mask, rng, depth=0.0) for _ in range(2000)} == {
        (x, y) for x in range(10, 25) for y in range(4, 13)
    }
    assert interior_click(rectangle((5, 4), slice(2, 3), slice(3, 4)), rng) == (3, 2)
    with pytest.raises(ValueError, match="empty"):
        interior_click(np.zeros((4, 4), bool), rng)


def test_the_same_generator_clicks_the_same_place():
    mask = rectangle((20, 30), slice(4, 13), slice(10, 25))
    first, again = ([interior_click(mask, np.random.default_rng(s)) for s in range(9)] for _ in range(2))
    assert first == again
    assert len(set(first)) > 4


def test_the_next_click_goes_into_the_larger_mistake():
    truth = rectangle((20, 30), slice(2, 11), slice(2, 11))
    part = rectangle((20, 30), slice(2, 11), slice(2, 6))  # 5 of 9 columns are missed: 6 to 10
    assert next_click(truth, part) == ((8, 4), True)
    excess = truth | rectangle((20, 30), slice(13, 18), slice(20, 27))
    assert next_click(truth, excess) == ((22, 15), False)
    both = part | rectangle((20, 30), slice(13, 18), slice(20, 27))  # 45 missed, 35 too many
    assert next_click(truth, both) == ((8, 4), True)
    more = part | rectangle((20, 30), slice(13, 20), slice(20, 27))  # 45 missed, 49 too many
    assert next_click(truth, more) == ((23, 16), False)


def test_the_largest_part_decides_and_not_the_sum():
    truth = rectangle((20, 30), slice(0, 5), slice(0, 5))
    dots = np.zeros((20, 30), bool)
    dots[10::2, ::2] = True  # 75 single pixels too many, against 25 in one piece that are missed
    assert next_click(truth, dots) == ((2, 2), True)


def test_without_a_mistake_the_middle_is_confirmed():
    truth = rectangle((20, 30), slice(2, 11), slice(4, 13)) | rectangle((20, 30), slice(15, 18), slice(1, 4))
    assert next_click(truth, truth) == ((8, 6), True)
    with pytest.raises(ValueError, match="empty"):
        next_click(np.zeros((3, 3), bool), np.zeros((3, 3), bool))


def test_a_tight_box_is_of_the_outermost_pixels():
    mask = rectangle((20, 30), slice(4, 13), slice(10, 25))
    assert tight_box(mask).tolist() == [10, 4, 24, 12]
    assert tight_box(rectangle((9, 5), slice(7, 8), slice(2, 3))).tolist() == [2, 7, 2, 7]
    assert tight_box(mask).dtype == np.float32
    with pytest.raises(ValueError, match="empty"):
        tight_box(np.zeros((3, 3), bool))


@pytest.mark.parametrize("fit", ["stretch", "pad"])
@pytest.mark.parametrize(("height", "width"), [(40, 100), (90, 30), (64, 64)])
def test_logits_come_back_to_the_pixels_they_are_of(fit, height: int, width: int):
    """Logits that are x and y of the model's pixels become those of `Frame.to_model` at each slice pixel."""
    frame = Frame(height, width, 64, fit)
    steps = torch.arange(64.0)
    logits = torch.stack([steps.expand(64, 64), steps[:, None].expand(64, 64)])[None]
    back = to_slice(logits, frame)
    assert back.shape == (1, 2, height, width)
    y, x = np.mgrid[:height, :width]
    expected = frame.to_model(np.stack([x.ravel(), y.ravel()], 1)).reshape(height, width, 2)
    fitted_h, fitted_w = frame.fitted_hw
    expected = np.clip(expected, 0, [fitted_w - 1, fitted_h - 1])  # the last half pixel repeats the border
    np.testing.assert_allclose(back[0].numpy(), np.moveaxis(expected, 2, 0), atol=0.01)


def test_padding_does_not_leak_into_the_slice():
    frame = Frame(20, 60, 64, "pad")
    logits = torch.full((1, 1, 32, 32), -1.0)
    logits[:, :, 11:] = 50  # the slice fills 21 rows of 64: below row 11 of 32 lies padding
    assert (to_slice(logits, frame)[..., :18, :] < 0).all()


def test_dice_by_hand():
    a, b = rectangle((4, 4), slice(0, 2), slice(0, 3)), rectangle((4, 4), slice(1, 3), slice(0, 3))
    assert dice(a, b) == 2 * 3 / 12
    assert dice(a, ~a) == 0
    assert dice(np.zeros_like(a), np.zeros_like(a)) == 1


class Oracle(nn.Module):
    """A model that draws the masks it was told beforehand, and writes down what it was asked.

    Args:
        masks: (B, 3, S, S) bool for one click; the first of each is given whenever the prompt is clear.
        iou: (3,) what it predicts for them.
    """

    def __init__(self, masks: Tensor, iou: Sequence[float]) -> None:
        super().__init__()
        self.mask_decoder = nn.Linear(1, 1)
        self.masks, self.iou = masks, torch.tensor(iou)
        self.asked: list[tuple[SlicePoints, Tensor | None, bool]] = []

    def decode_full(
        self, embeddings: Tensor, points: Sequence[SlicePoints], *, masks: Any = None, multimask: bool = True
    ) -> tuple[Tensor, Tensor]:
        rows = embeddings[:, 0, 0, 0].long()
        self.asked += [(p, None if masks is None else masks[i], multimask) for i, p in enumerate(points)]
        logits = (self.masks[rows].float() * 2 - 1) * 9
        count = 3 if multimask else 1
        return logits[:, :count], self.iou[:count].expand(len(rows), -1)


def oracle(masks: Tensor, iou: Sequence[float]) -> tuple[Oracle, Backbone, Tensor]:
    """The model, the same as a backbone, and embeddings that tell it which row they are of."""
    model = Oracle(masks, iou)
    return model, cast(Backbone, model), torch.arange(len(masks)).float().reshape(-1, 1, 1, 1)


FRAME = Frame(32, 64, 64)
TRUTHS = [rectangle((32, 64), slice(5, 17), slice(8, 40)), rectangle((32, 64), slice(10, 30), slice(40, 60))]


def fitted(masks: Sequence[np.ndarray]) -> Tensor:
    """(B, 64, 64): every row of a slice twice."""
    return torch.from_numpy(np.stack(masks).repeat(2, axis=1))


def test_a_model_that_answers_perfectly_has_a_dice_of_one():
    truth = fitted(TRUTHS)
    masks = torch.stack([truth, torch.zeros_like(truth), truth], 1)
    model, backbone, embeddings = oracle(masks, (0.9, 0.1, 0.3))
    rounds = simulate_user(backbone, embeddings, TRUTHS, FRAME, np.random.default_rng(0))
    for values in (rounds.one, rounds.three, rounds.box, rounds.oracle):
        assert values.tolist() == [1.0, 1.0]
    assert rounds.predicted_iou.tolist() == pytest.approx([0.9, 0.9])
    counts = [(len(p), p.box is not None, prior is not None, multi) for p, prior, multi in model.asked]
    one, two, three, box = (
        (1, False, False, True),
        (2, False, True, False),
        (3, False, True, False),
        (0, True, False, False),
    )
    assert counts == [one, one, two, two, three, three, box, box]
    first = model.asked[0][0]
    x, y = FRAME.to_slice(first.xy)[0].round().astype(int)
    assert TRUTHS[0][y, x], "the click lies on the object, in model pixels"
    # x is kept and y doubled: pixel centres 5 and 16 become 10.5 and 32.5
    assert model.asked[-2][0].box == pytest.approx([8, 10.5, 39, 32.5])


def test_the_mask_that_the_model_trusts_is_counted_and_the_best_beside_it():
    truth = fitted(TRUTHS)
    half = truth.clone()
    half[:, :, :24] = False  # columns 24 .. 39 of 8 .. 39 remain of the first: Dice 2 * 16 / (32 + 16)
    half[1] = False
    model, backbone, embeddings = oracle(torch.stack([half, truth, half], 1), (0.8, 0.2, 0.1))
    rounds = simulate_user(backbone, embeddings, TRUTHS, FRAME, np.random.default_rng(0))
    assert rounds.one.tolist() == pytest.approx([2 / 3, 0])
    assert rounds.oracle.tolist() == [1, 1]
    assert rounds.box.tolist() == pytest.approx([2 / 3, 0])
    second = model.asked[2][0]
    assert second.positive.tolist() == [True, True], "something was missed"
    x, y = FRAME.to_slice(second.xy)[1]
    assert 8 <= x < 24
    assert 5 <= y < 17
    prior = model.asked[2][1]
    assert prior is not None
    assert torch.equal(prior[0] > 0, half[0]), "the answer that was shown goes back in"


def test_what_is_too_much_gets_a_negative_click():
    truth = fitted(TRUTHS)
    model, backbone, embeddings = oracle(torch.ones_like(truth)[:, None].repeat(1, 3, 1, 1), (0.5, 0.4, 0.3))
    simulate_user(backbone, embeddings, TRUTHS, FRAME, np.random.default_rng(0))
    for points, _, _ in model.asked[2:4]:
        assert points.positive.tolist() == [True, False]


def test_only_the_parts_that_were_clicked_are_kept():
    mask = np.zeros((6, 8), bool)
    mask[1:3, 1:3], mask[4:6, 5:8] = True, True
    clicks = np.array([[1, 2], [6, 5]], np.float32)  # x, y: the first in the upper part, the second in the lower one
    upper = keep_clicked(mask, clicks, np.array([True, False]))
    assert upper[1:3, 1:3].all()
    assert upper.sum() == 4
    assert np.array_equal(keep_clicked(mask, clicks, np.array([True, True])), mask)
    assert np.array_equal(keep_clicked(mask, np.array([[7, 0]], np.float32), np.array([True])), mask), "beside it: all"
    assert np.array_equal(keep_clicked(mask, np.zeros((0, 2), np.float32), np.zeros(0, bool)), mask), "a box alone: all"

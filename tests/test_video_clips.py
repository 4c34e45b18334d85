"""Clips and the losses of SAM 2's training, by hand on a decoder that says what it is told."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from conftest import make_affine
from steadysam.augment import AugmentConfig
from steadysam.data.slices import fit_masks, prepare_stack
from steadysam.methods.contract import Chance, TrainingCase
from steadysam.methods.video import clips
from steadysam.methods.video.clips import Clips, clip_terms
from steadysam.methods.video.lanes import make_plan
from steadysam.methods.video.propagation import Answer
from steadysam.types import Grid, Preprocess, SlicePoints
from toys import make_volume

STILL = AugmentConfig(rotate_probability=0, flip_probability=0)
TRAINING = Chance(0, "tuning", 0, training=True)


def make_case(depth: int, name: str = "case", redraw=None) -> TrainingCase:
    """The toy ellipse on every slice but the first; the point (t, t) on slice t."""
    grid = Grid((9, 13, depth), make_affine((1.0, 1.5, 4.0)), 2)
    stack = prepare_stack(make_volume(grid), Preprocess(size=32, norm="spd"))
    truth = np.zeros(grid.shape, bool)
    truth[3:7, 4:9, 1:] = True
    points = tuple(SlicePoints(np.full((1, 2), t, np.float32), np.ones(1, bool), (f"p{t}",)) for t in range(depth))
    return TrainingCase(name, stack, fit_masks(truth, grid, stack.frame), points, redraw)


def test_windows():
    samples = Clips([make_case(5), make_case(2, "short")], STILL, length=3)
    assert len(samples) == 7
    windows = [list(samples.window(index)[1]) for index in range(7)]
    assert windows == [[0, 1, 2], [0, 1, 2], [1, 2, 3], [2, 3, 4], [2, 3, 4], [0, 1], [0, 1]]


def test_a_batch_pads_short_clips():
    first, second = make_case(5), make_case(2, "short")
    batch = Clips([first, second], STILL, length=3).batch([2, 6], TRAINING)
    assert {name: tuple(value.shape) for name, value in batch.tensors.items()} == {
        "images": (2, 3, 1, 32, 32),
        "masks": (2, 3, 32, 32),
        "frames": (2,),
    }
    assert batch.tensors["frames"].tolist() == [3, 2]
    assert [here.ids for here in batch.points] == [("p1",), ("p2",), ("p3",), ("p0",), ("p1",), ()]
    assert np.array_equal(batch.tensors["images"][0], first.stack.images[1:4])
    assert np.array_equal(batch.tensors["masks"][1, :2], second.masks)
    assert batch.tensors["images"][1, 2].abs().max() == 0


def test_a_clip_moves_as_one():
    """Equal slices stay equal, and points go with them; validation moves nothing."""
    case = make_case(4)
    always = AugmentConfig(rotate_probability=1, flip_probability=1)
    samples = Clips([case], always, length=4)
    batch = samples.batch([1], TRAINING)
    masks = batch.tensors["masks"][0].numpy()
    assert not np.array_equal(masks[1], case.masks[1])
    assert np.array_equal(masks[1], masks[2])
    assert np.array_equal(samples.batch([1], TRAINING).tensors["masks"][0], masks)
    still = samples.batch([1], Chance(0, "tuning", 0, training=False))
    assert np.array_equal(still.tensors["masks"][0], case.masks)
    moved = np.concatenate([here.xy for here in batch.points])
    assert len(moved) < 4 or not np.allclose(moved, np.concatenate([here.xy for here in case.points]))


def test_points_are_redrawn_in_training_only():
    other = SlicePoints(np.full((1, 2), 16, np.float32), np.ones(1, bool), ("new",))
    case = make_case(3, redraw=lambda generator: (other,) * 3)
    samples = Clips([case], STILL, length=3, redraw=True)
    assert [here.ids for here in samples.batch([0], TRAINING).points] == [("new",)] * 3
    watched = samples.batch([0], Chance(0, "tuning", 0, training=False))
    assert [here.ids for here in watched.points] == [("p0",), ("p1",), ("p2",)]


class Teller(nn.Module):
    """Stands for a video model where only a parameter of its decoder is looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.mask_decoder = nn.Module()
        self.mask_decoder.iou_token = nn.Embedding(1, 4)


def say(monkeypatch, *answers: Answer) -> None:
    monkeypatch.setattr(clips, "unroll", lambda video, images, plan: dict(enumerate(answers)))


def plan(depth: int):
    return make_plan(make_case(depth).points, "key", 32, 1)


def test_terms_by_hand(monkeypatch):
    """Two frames, the object on the first: its better mask is right everywhere with logits of 2, the other wrong."""
    truth = torch.zeros(2, 4, 4)
    truth[0, :2] = 1
    right = (truth[0] * 2 - 1) * 2
    logits = torch.stack([-right, right]).requires_grad_()
    say(
        monkeypatch,
        Answer(logits, torch.tensor([0.25, 0.7]), torch.tensor(1.5)),
        Answer(torch.full((2, 4, 4), 9.0), torch.tensor([0.1, 0.1]), torch.tensor(-0.5)),
    )
    terms = clip_terms(Teller(), torch.zeros(2, 1, 4, 4), truth, plan(2))
    p = 1 / (1 + math.exp(-2))
    assert terms["focal"].item() == pytest.approx(20 * (1 - p) ** 2 * -math.log(p), rel=1e-5)
    assert terms["dice"].item() == pytest.approx(1 - 2 * 8 * p / (8 * p + 8 * (1 - p) + 8), rel=1e-5)
    assert terms["iou"].item() == pytest.approx((0.25 + 0.3) / 2, rel=1e-5)  # true IoU: 0 and 1
    assert terms["object"].item() == pytest.approx(
        (math.log(1 + math.exp(-1.5)) + math.log(1 + math.exp(-0.5))) / 2, rel=1e-5
    )
    (terms["focal"] + terms["dice"]).backward()
    assert logits.grad is not None
    assert logits.grad[0].abs().max() == 0, "only the better mask is taught"
    assert logits.grad[1].abs().max() > 0


def test_without_the_object_only_its_score_is_taught(monkeypatch):
    logits, score = torch.ones(1, 4, 4, requires_grad=True), torch.tensor(0.0, requires_grad=True)
    say(monkeypatch, Answer(logits, torch.tensor([0.5]), score))
    terms = clip_terms(Teller(), torch.zeros(1, 1, 4, 4), torch.zeros(1, 4, 4), plan(1))
    assert [terms[name].item() for name in ("focal", "dice", "iou")] == [0, 0, 0]
    assert terms["object"].item() == pytest.approx(math.log(2))
    torch.stack(list(terms.values())).sum().backward()
    assert logits.grad is None
    assert score.grad is not None


def test_a_clip_without_prompts_teaches_nothing_but_can_be_differentiated():
    nothing = make_plan([SlicePoints.empty()] * 2, "all", 32, 1)
    teller = Teller()
    terms = clip_terms(teller, torch.zeros(2, 1, 4, 4), torch.ones(2, 4, 4), nothing)
    total = torch.stack(list(terms.values())).sum()
    total.backward()
    assert total.item() == 0
    assert max(float(p.grad.abs().max()) for p in teller.parameters() if p.grad is not None) == 0

"""Lanes of the video methods: key slice, plan, tensors, verdicts, largest part; all by hand."""

import numpy as np
import pytest
import torch

from steadysam.methods.video.lanes import (
    decide,
    key_slice,
    largest_component,
    make_plan,
    prompt_tensors,
)
from steadysam.types import SlicePoints


def here(*signs: bool, box=None, xy=None) -> SlicePoints:
    """Points at (4, 6), (5, 7), ... with these signs."""
    places = np.array([(4 + n, 6 + n) for n in range(len(signs))] if xy is None else xy, np.float32).reshape(-1, 2)
    names = tuple(f"p{n}" for n in range(len(signs)))
    return SlicePoints(places, np.array(signs, bool), names, None if box is None else np.array(box, np.float32))


NONE = here()


@pytest.mark.parametrize(
    ("points", "key"),
    [
        ([NONE, NONE], None),
        ([NONE, here(False, False)], None),  # negative points place nothing
        ([here(True), here(True, True), here(True)], 1),
        ([here(True), here(False, False, True), here(True, True)], 2),  # positive ones count
        ([here(True), here(True), here(True), NONE, NONE, NONE], 1),  # the middle of the prompted slices
        ([here(True, True), here(True), here(True), here(True, True)], 0),  # as near: the first
        ([here(True, True), NONE, NONE, here(True), here(True, True), here(True)], 4),  # nearer to 2.5 than 0
        ([here(True, True), here(box=(1, 1, 3, 3)), here(True)], 1),  # a given box goes first
    ],
)
def test_key_slice(points, key):
    assert key_slice(points) == key


def test_plan_of_every_slice():
    points = [NONE, here(True), NONE, here(False), NONE]
    plan = make_plan(points, "all", 32, 2)
    assert (list(plan.prompts), plan.key) == ([1, 3], 1)
    assert plan.prompts[1] is points[1]
    assert plan.order(5) == [(2, False), (4, False), (0, True)]


def test_plan_of_the_key_slice():
    points = [NONE, here(True), here(True, True, False), NONE]
    plan = make_plan(points, "key", 32, 2)
    assert (list(plan.prompts), plan.key) == ([2], 2)
    assert plan.prompts[2] is points[2]
    assert plan.order(4) == [(3, False), (1, True), (0, True)]


def test_plan_of_a_box():
    points = [here(True), here(True, True, False, xy=[(4, 6), (10, 9), (30, 30)])]
    prompt = make_plan(points, "box", 32, 2).prompts[1]
    assert len(prompt) == 0
    assert prompt.box is not None
    assert prompt.box.tolist() == [4, 6, 10, 9]
    single = make_plan([here(True)], "box", 32, 2).prompts[0].box
    assert single is not None
    assert single.tolist() == [3, 5, 5, 7]
    given = make_plan([here(True, box=(1, 2, 8, 9))], "box", 32, 2).prompts[0].box
    assert given is not None
    assert given.tolist() == [1, 2, 8, 9]


@pytest.mark.parametrize("lane", ["all", "key", "box"])
def test_nothing_to_ask(lane):
    plan = make_plan([NONE, NONE], lane, 32, 2)
    assert (dict(plan.prompts), plan.key, plan.order(2)) == ({}, None, [])


def test_prompts_as_tensors():
    """Twice as many pixels: the centre of pixel 4 lies at 8.5."""
    given = prompt_tensors(here(True, False), 2.0, torch.device("cpu"))
    assert given["point_coords"].tolist() == [[[[8.5, 12.5], [10.5, 14.5]]]]
    assert given["point_labels"].tolist() == [[[1, 0]]]
    boxed = prompt_tensors(here(True, box=(0, 1, 2, 3)), 1.0, torch.device("cpu"))
    assert boxed["point_coords"].tolist() == [[[[0, 1], [2, 3], [4, 6]]]]
    assert boxed["point_labels"].tolist() == [[[2, 3, 1]]]
    assert boxed["point_labels"].dtype == torch.int32


def test_verdicts():
    points = [here(True), here(True, False)]
    words = {lane: [d.verdict for d in decide(points, lane, 1)] for lane in ("all", "key", "box")}
    assert words == {
        "all": ["accepted", "accepted", "accepted"],
        "key": ["ignored", "accepted", "accepted"],
        "box": ["ignored", "accepted", "ignored"],
    }
    assert decide([here(False)], "key", None)[0].reason == "no positive point on any slice"
    assert decide([here(True, box=(1, 1, 3, 3))], "box", 0)[0].verdict == "ignored"
    assert [d.xy for d in decide(points, "all", 0)] == [(4, 6), (4, 6), (5, 7)]


def test_only_the_largest_part_stays():
    """Two voxels that touch at a corner across slices are one part of 2; the other has 3; what lies below 0.5 stays."""
    probability = np.full((2, 4, 4), 0.2, np.float32)
    probability[0, 0, 0] = probability[1, 1, 1] = 0.9
    probability[0, 3, 1:4] = 0.8
    kept = largest_component(probability)
    assert (kept[0, 0, 0], kept[1, 1, 1]) == (0, 0)
    assert kept[0, 3, 1:4].tolist() == probability[0, 3, 1:4].tolist()
    assert kept[0, 1, 2] == probability[0, 1, 2]
    probability[0, 3, 1:3] = 0.2
    assert largest_component(probability)[1, 1, 1] == np.float32(0.9)
    assert not largest_component(np.zeros((1, 2, 2), np.float32)).any()

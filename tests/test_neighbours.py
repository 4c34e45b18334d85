"""Points of neighbouring slices: the window, its order, and training cases with redrawn prompts."""

import numpy as np

from steadysam.methods.contract import TrainingCase
from steadysam.methods.neighbours import gather_neighbours, with_neighbours
from steadysam.methods.spd import distill
from steadysam.types import Frame, Preprocess, SlicePoints, SliceStack


def slices(*counts):
    return tuple(
        SlicePoints(np.full((n, 2), t, np.float32), np.arange(n) < 1, tuple(f"{t}.{i}" for i in range(n)))
        for t, n in enumerate(counts)
    )


def test_window_in_order_and_cut_at_the_ends():
    found = gather_neighbours(slices(1, 2, 0, 1), 1)
    assert [here.ids for here in found] == [
        ("0.0", "1.0", "1.1"),
        ("0.0", "1.0", "1.1"),
        ("1.0", "1.1", "3.0"),
        ("3.0",),
    ]
    assert found[2].xy.tolist() == [[1, 1], [1, 1], [3, 3]]
    assert found[2].positive.tolist() == [True, False, True]
    assert [here.ids for here in gather_neighbours(slices(1, 2), 0)] == [("0.0",), ("1.0", "1.1")]


def test_spd_uses_the_same_function():
    assert distill.gather_neighbours is gather_neighbours


def test_a_case_with_neighbours_keeps_the_rest_and_redraws_with_neighbours():
    stack = SliceStack(np.zeros((3, 1, 8, 8), np.float32), Frame(8, 8, 8), Preprocess(size=8), "key")
    case = TrainingCase("case", stack, np.zeros((3, 8, 8), bool), slices(1, 1, 1), lambda generator: slices(2, 0, 1))
    wide = with_neighbours(case, 1)
    assert wide.stack is stack
    assert wide.masks is case.masks
    assert [len(p) for p in wide.points] == [2, 3, 2]
    assert wide.redraw is not None
    assert [len(p) for p in wide.redraw(np.random.default_rng(0))] == [2, 3, 1]
    assert with_neighbours(TrainingCase("case", stack, case.masks, case.points), 1).redraw is None

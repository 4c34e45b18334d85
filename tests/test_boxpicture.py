"""The picture of `steadysam detect`: which slice is shown, with which boxes."""

from __future__ import annotations

import numpy as np

from conftest import GRIDS
from steadysam.box_prompts import CaseBoxes
from steadysam.report.boxpicture import box_panel, box_sheet
from steadysam.types import Mask, Prompts
from toys import make_volume


def case_of(scores, mask=None) -> CaseBoxes:
    grid = GRIDS["plain"]
    boxes = tuple(np.tile(np.array([[1, 2, 4, 6.5]], np.float32), (len(row), 1)) for row in scores)
    rows = tuple(np.array(row, np.float32) for row in scores)
    return CaseBoxes("case", make_volume(grid), boxes, rows, Prompts(), mask)


def test_the_slice_with_the_surest_box():
    case = case_of([[], [0.3], [0.9, 0.2], [0.5], []])
    panel = box_panel(case)
    assert np.array_equal(panel.image, case.volume.slice_image(2))
    assert panel.title == "case, slice 2\nbest score 0.90"
    assert list(panel.boxes) == [(1.0, 2.0, 4.0, 6.5)] * 2
    assert panel.true is None


def test_without_a_box_the_middle_slice():
    mask = Mask(np.ones(GRIDS["plain"].shape, bool), GRIDS["plain"])
    panel = box_panel(case_of([[]] * 5, mask))
    assert panel.title == "case, slice 2\nno box"
    assert panel.true is not None
    assert not panel.boxes


def test_a_sheet_is_a_picture():
    png = box_sheet([box_panel(case_of([[0.5], [], [], [], []]))] * 5)
    assert png.startswith(b"\x89PNG")
    assert png == box_sheet([box_panel(case_of([[0.5], [], [], [], []]))] * 5)

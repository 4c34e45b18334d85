"""The pictures of `steadysam detect` and `predict`: which slice is shown, with which boxes or masks."""

from __future__ import annotations

import numpy as np
import pytest

from conftest import GRIDS
from steadysam.box_prompts import CaseBoxes
from steadysam.data.volumes import write_mask, write_volume
from steadysam.report.sheets import box_panel, mask_panel, sheet, some_of
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
    png = sheet([box_panel(case_of([[0.5], [], [], [], []]))] * 5)
    assert png.startswith(b"\x89PNG")
    assert png == sheet([box_panel(case_of([[0.5], [], [], [], []]))] * 5)


@pytest.mark.parametrize("name", ["sagittal", "flipped"])
def test_the_slice_with_the_largest_mask(tmp_path, name):
    grid = GRIDS[name]
    volume = make_volume(grid)
    mask = np.zeros(grid.shape, bool)
    for t, side in ((1, 2), (3, 4)):
        where = tuple(t if axis == grid.slice_axis else slice(0, side) for axis in range(3))
        mask[where] = True
    write_volume(tmp_path / "image.nii.gz", volume.array, grid)
    write_mask(tmp_path / "c.nii.gz", Mask(mask, grid))
    case = {"case": "c", "slice_axis": grid.slice_axis}
    panel = mask_panel(case, tmp_path / "image.nii.gz", tmp_path)
    assert panel.title == "c, slice 3\n16 px"
    assert panel.pred is not None
    assert np.array_equal(panel.pred, Mask(mask, grid).slice_image(3))
    assert np.allclose(panel.image, volume.slice_image(3))
    write_mask(tmp_path / "c.nii.gz", Mask(np.zeros(grid.shape, bool), grid))
    title = mask_panel(case, tmp_path / "image.nii.gz", tmp_path).title
    assert title == f"c, slice {grid.depth // 2}\nempty mask"


def test_some_are_evenly_chosen():
    assert some_of(range(5), 12) == [0, 1, 2, 3, 4]
    assert some_of(range(25), 12) == [0, 3, 6, 9, 12, 15, 18, 21, 24]
    assert some_of([], 12) == []

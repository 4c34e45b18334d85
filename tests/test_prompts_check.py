"""The check: each fault is found, named, and nothing else is."""

import json
from dataclasses import replace

import numpy as np
import pytest

from steadysam.errors import SteadyError
from steadysam.geometry import flip_lps_ras, ras_to_voxel, voxel_to_ras
from steadysam.prompts.check import check
from steadysam.prompts.rows import slice_box, triple
from steadysam.prompts.scribbles import scribble_points
from steadysam.types import Grid, ImageRef, Point, Prompts


def placed(ijk, grid: Grid, **more) -> Prompts:
    rows = voxel_to_ras(np.array(ijk, float), grid)
    return from_mm(rows, **more)


def from_mm(rows, **more) -> Prompts:
    return Prompts(tuple(Point(f"p{n}", triple(row)) for n, row in enumerate(rows)), **more)


def codes(report) -> list[str]:
    return [finding.code for finding in report.findings]


def test_clean_prompts_have_no_findings(grid, rng):
    image = rng.normal(100, 5, grid.shape)
    axes = [rng.permutation(n)[: min(grid.shape)] for n in grid.shape]
    ijk = np.stack([axis[:1].repeat(len(axes[0])) for axis in axes], axis=1)[:1]
    report = check(placed(ijk, grid), grid, image)
    assert report.findings == ()
    assert not report.has_errors
    assert "nothing found" in report.text()


def test_borders_belong_to_the_volume(grid):
    last = np.array(grid.shape) - 0.5
    assert "PROMPT_OUTSIDE" not in codes(check(placed([last, [-0.5] * 3], grid), grid))


def test_outside_says_how_far_and_where(grid):
    inside = [n // 2 for n in grid.shape]
    away = [*inside]
    away[1] = grid.shape[1] + 3
    report = check(placed([inside, inside, away], grid), grid)
    finding = next(f for f in report.findings if f.code == "PROMPT_OUTSIDE")
    assert finding.ids == ("p2",)
    assert finding.data is not None
    assert finding.data["distance_mm"] == pytest.approx(3.5 * grid.spacing_mm[1], abs=1e-3)
    assert "end of array axis 1" in finding.text
    assert report.has_errors
    assert "PROMPT_SPACE_SUSPECT" not in codes(report)  # one stray click is no wrong frame


SKEW = Grid(
    (40, 60, 12),
    np.array([[1.4, 0.1, 0.3, 60.0], [-0.2, 1.2, -0.4, 80.0], [0.05, 0.2, 6.0, 300.0], [0, 0, 0, 1.0]]),
)


@pytest.mark.parametrize(
    "make, reading",
    [
        (lambda ijk: flip_lps_ras(voxel_to_ras(ijk, SKEW)), "LPS and RAS are swapped"),
        (lambda ijk: ijk, "the numbers are array indices (ijk)"),
        (lambda ijk: ijk[:, ::-1], "the numbers are array indices in reverse order (kji)"),
        (lambda ijk: voxel_to_ras(ijk[:, [2, 1, 0]], SKEW), "the array axes come in the order kji"),
        (lambda ijk: voxel_to_ras(voxel_to_ras(ijk, SKEW), SKEW), "the array indices are millimetres (RAS)"),
    ],
)
def test_wrong_frames_are_suspected_by_name(make, reading):
    ijk = np.stack([np.linspace(20, 38, 30), np.linspace(30, 58, 30), np.linspace(1, 10, 30)], axis=1)
    report = check(from_mm(make(ijk)), SKEW)
    finding = next(f for f in report.findings if f.code == "PROMPT_SPACE_SUSPECT")
    assert report.findings[0] is finding
    assert finding.data is not None
    assert finding.data["share_inside_if"][reading] > 0.9
    assert finding.severity == "error"


def test_points_far_from_everything_are_not_explained_away():
    report = check(from_mm(np.full((5, 3), 1e6) + np.arange(15).reshape(5, 3)), SKEW)
    assert set(codes(report)) == {"PROMPT_OUTSIDE"}


def test_duplicates_and_conflicts(grid):
    here = [[n // 2 for n in grid.shape]] * 2
    twice = placed(here, grid)
    assert codes(check(twice, grid)) == ["PROMPT_DUPLICATE"]
    signs = replace(twice, points=(twice.points[0], replace(twice.points[1], sign="negative")))
    report = check(signs, grid)
    assert codes(report) == ["PROMPT_CONFLICT"]
    assert report.findings[0].ids == ("p0", "p1")
    assert not report.has_errors
    labels = replace(signs, points=(signs.points[0], replace(signs.points[1], label="other")))
    assert codes(check(labels, grid)) == []


def test_padding():
    grid = Grid((30, 20, 6), np.diag([1.0, 1.5, 4.0, 1.0]))
    image = np.random.default_rng(0).normal(100, 9, grid.shape)
    image[:8] = 0
    report = check(placed([[2, 9, 2], [9, 9, 2], [20, 9, 3]], grid), grid, image)
    assert [(f.code, f.ids) for f in report.findings] == [("PROMPT_PADDING", ("p0",))]
    assert codes(check(placed([[2, 9, 2]], grid), grid)) == []
    with pytest.raises(SteadyError, match="PROMPT_GRID"):
        check(placed([[2, 9, 2]], grid), grid, image[1:])


def test_lonely_slices_and_gaps():
    grid = Grid((30, 20, 40), np.diag([1.0, 1.5, 2.0, 1.0]))
    report = check(placed([[5, 5, t] for t in (3, 4, 6, 7, 20, 35)], grid), grid)
    lonely = [f.data["slice"] for f in report.findings if f.code == "PROMPT_LONELY_SLICE" and f.data]
    assert lonely == [20, 35]
    gap = next(f for f in report.findings if f.code == "PROMPT_GAP")
    assert gap.severity == "info"
    assert "27 slices" in gap.text
    assert "5, 8-19, 21-34" in gap.text


def test_boxes():
    grid = Grid((30, 20, 6), np.diag([1.0, 1.5, 4.0, 1.0]))
    boxes = tuple(
        slice_box(name, np.array(low), np.array(high), 2, grid)
        for name, low, high in [
            ("good", [3, 3], [9, 9]),
            ("border", [-0.5, -0.5], [9, 9]),
            ("beyond", [20, 10], [35, 15]),
            ("away", [40, 3], [50, 9]),
            ("whole", [-0.5, -0.5], [29.5, 19.5]),
        ]
    )
    report = check(Prompts(boxes=boxes), grid)
    found = {(f.code, f.ids) for f in report.findings if f.ids}
    assert found == {
        ("PROMPT_OUTSIDE", ("away",)),
        ("PROMPT_BOX_BEYOND", ("beyond",)),
        ("PROMPT_BOX_WHOLE", ("whole",)),
    }


def test_other_image_none_and_negatives(grid):
    middle = [n // 2 for n in grid.shape]
    other = placed([middle], grid, image=ImageRef("a.nii", (1, 2, 3)))
    assert codes(check(other, grid)) == ["PROMPT_WRONG_IMAGE"]
    named = placed([middle], grid, image=ImageRef("a.nii", grid.shape, grid.key()))
    assert codes(check(named, grid, image_name="b.nii")) == ["PROMPT_IMAGE_NAME"]
    assert codes(check(named, grid, image_name="a.nii")) == []
    assert codes(check(Prompts(), grid)) == ["PROMPT_NONE"]
    assert check(Prompts(), grid).findings[0].severity == "error"
    assert check(Prompts(history=({"step": "detect"},)), grid).findings[0].severity == "info"
    only = placed([middle], grid)
    negative = replace(only, points=(replace(only.points[0], sign="negative"),))
    assert codes(check(negative, grid)) == ["PROMPT_NO_POSITIVE"]


def test_report_is_json_and_text(grid):
    report = check(placed([[99, 99, 99]] * 30, grid), grid)
    assert json.loads(json.dumps(report.to_dict()))["ok"] is False
    assert "and 20 more PROMPT_OUTSIDE" in report.text()
    assert report.text().startswith("30 points and 0 boxes on 0 slices, source human")


def strokes(grid: Grid) -> np.ndarray:
    labels = np.full(grid.shape, 4, np.uint8)
    labels[2:5, 3, 1] = 3
    labels[2:5, 5, 1] = 1
    labels[1, 4, 2] = 3
    labels[4:6, 6, 3] = 0
    return labels


def test_scribbles_become_points_per_slice(rng):
    grid = Grid((9, 13, 5), np.diag([1.0, 1.5, 4.0, 1.0]))
    labels = strokes(grid)
    prompts = scribble_points(
        labels, grid, value=3, per_slice=2, generator=rng, ignore=(4,), negatives=5, image_grid=grid
    )
    ijk = np.rint(ras_to_voxel(prompts.points_mm(), grid)).astype(int)
    positive = np.array([point.sign == "positive" for point in prompts.points])
    assert (labels[tuple(ijk[positive].T)] == 3).all()
    assert set(labels[tuple(ijk[~positive].T)]) == {0, 1}
    assert np.bincount(ijk[positive][:, 2], minlength=5).tolist() == [0, 2, 1, 0, 0]
    assert np.bincount(ijk[~positive][:, 2], minlength=5).tolist() == [0, 3, 0, 2, 0]
    assert prompts.sources == ("scribble",)
    assert len({point.id for point in prompts.points}) == len(prompts.points)
    again = scribble_points(
        labels, grid, value=3, per_slice=2, generator=np.random.default_rng(11), ignore=(4,), negatives=5
    )
    assert again.key() == prompts.key()


def test_scribbles_on_another_grid_or_without_the_value(rng):
    grid = Grid((9, 13, 5), np.diag([1.0, 1.5, 4.0, 1.0]))
    moved = Grid(grid.shape, np.diag([1.0, 1.5, 4.5, 1.0]))
    for other in (moved, Grid((9, 13, 6), grid.affine)):
        with pytest.raises(SteadyError, match="PROMPT_GRID"):
            scribble_points(strokes(grid), grid, value=3, per_slice=1, generator=rng, image_grid=other)
    with pytest.raises(SteadyError, match="PROMPT_VALUES"):
        scribble_points(strokes(grid), grid, value=2, per_slice=1, generator=rng)
    for value, per_slice in ((0, 1), (3, 0)):
        with pytest.raises(SteadyError, match="PROMPT_OPTION"):
            scribble_points(strokes(grid), grid, value=value, per_slice=per_slice, generator=rng)

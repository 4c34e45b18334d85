"""Slicer markups: points, curves and ROIs in, audits out."""

import json

import numpy as np
import pytest

from steadysam.errors import SteadyError
from steadysam.geometry import box_corners_voxel, ras_to_voxel, voxel_to_ras
from steadysam.prompts.curves import slice_crossings, smooth_curve
from steadysam.prompts.files import read_prompts
from steadysam.prompts.markups import MarkupsList, MarkupsPoint, prompts_to_markups, write_markups
from steadysam.prompts.rows import triple
from steadysam.types import Box, Grid, Point, Prompts

AFFINE = np.array([[0.1, -1.1, 0.3, 20.0], [0.9, 0.05, -0.4, -30.0], [0.05, 0.2, -3.0, 7.0], [0, 0, 0, 1.0]])
GRID = Grid((40, 30, 12), AFFINE)


def markup(kind="Fiducial", positions=((1.0, 2.0, 3.0),), frame="LPS", **more):
    rows = [{"id": str(n), "label": f"F-{n}", "position": list(p)} for n, p in enumerate(positions, 1)]
    found = {"type": kind, "coordinateSystem": frame, "controlPoints": rows, **more}
    return {key: value for key, value in found.items() if value is not None}


def save(path, *markups):
    path.write_text(json.dumps({"@schema": "x", "markups": list(markups)}))
    return path


@pytest.mark.parametrize(
    "frame, expected", [("LPS", (-1, -2, 3)), ("RAS", (1, 2, 3)), ("0", (1, 2, 3)), (1, (-1, -2, 3))]
)
def test_frames(tmp_path, frame, expected):
    prompts = read_prompts(save(tmp_path / "a.mrk.json", markup(frame=frame)))
    assert prompts.points[0].xyz_mm == expected
    assert prompts.sources == ("human",)


@pytest.mark.parametrize("frame", [None, "MNI", 7])
def test_missing_frame_is_not_guessed(tmp_path, frame):
    with pytest.raises(SteadyError, match="PROMPT_SPACE_MISSING"):
        read_prompts(save(tmp_path / "a.mrk.json", markup(frame=frame)))
    with pytest.raises(SteadyError, match="PROMPT_SPACE_MISSING"):
        read_prompts(save(tmp_path / "a.mrk.json", markup(frame=frame, positions=())))


def test_undefined_and_unselected_points_are_no_prompts(tmp_path):
    value = markup(positions=[(float(n), 0, 0) for n in range(5)])
    value["controlPoints"][0]["positionStatus"] = "undefined"
    value["controlPoints"][1]["selected"] = False
    value["controlPoints"][2]["positionStatus"] = "preview"
    value["controlPoints"][3]["positionStatus"] = "defined"
    prompts = read_prompts(save(tmp_path / "a.mrk.json", value))
    assert [point.id for point in prompts.points] == ["4", "5"]
    assert prompts.history[0]["skipped_undefined"] == 2
    assert prompts.history[0]["skipped_unselected"] == 1


def test_two_lists_signs_and_unique_ids(tmp_path):
    second = markup(positions=[(9.0, 9.0, 9.0)], name="Background points")
    third = markup(positions=[(5.0, 5.0, 5.0)], name="vessel")
    third["controlPoints"][0]["label"] = "negative-1"
    prompts = read_prompts(save(tmp_path / "a.mrk.json", markup(), second, third))
    assert [point.sign for point in prompts.points] == ["positive", "negative", "negative"]
    assert len({point.id for point in prompts.points}) == 3


def test_micrometres_and_unknown_units(tmp_path):
    value = save(tmp_path / "a.mrk.json", markup(coordinateUnits=["um", "UCUM", "micrometre"], frame="RAS"))
    assert np.allclose(read_prompts(value).points_mm(), [[0.001, 0.002, 0.003]])
    with pytest.raises(SteadyError, match="coordinateUnits"):
        read_prompts(save(tmp_path / "a.mrk.json", markup(coordinateUnits="inch")))


@pytest.mark.parametrize("kind", ["Plane", "Angle", "Blob", None, 3])
def test_other_kinds_are_refused(tmp_path, kind):
    with pytest.raises(SteadyError, match="PROMPT_MARKUP_TYPE"):
        read_prompts(save(tmp_path / "a.mrk.json", markup(kind)))


@pytest.mark.parametrize("position", [[1, 2], ["1", 2, 3], [True, 2, 3], None, {"x": 1}])
def test_wrong_positions_are_named(tmp_path, position):
    value = markup()
    value["controlPoints"][0]["position"] = position
    with pytest.raises(SteadyError, match="/markups/0/controlPoints/0/position"):
        read_prompts(save(tmp_path / "a.mrk.json", value))


@pytest.mark.parametrize("content", [{"markups": {}}, {"markups": [1]}])
def test_wrong_shapes(tmp_path, content):
    (tmp_path / "a.mrk.json").write_text(json.dumps(content))
    with pytest.raises(SteadyError, match="PROMPT_SCHEMA"):
        read_prompts(tmp_path / "a.mrk.json")


def test_curves_become_one_point_per_slice_crossing(tmp_path):
    knots = voxel_to_ras(np.array([[5.0, 6, 1.3], [12, 9, 4.0], [20, 20, 8.6]]), GRID)
    value = markup("Curve", knots, "RAS", name="tracing")
    prompts = read_prompts(save(tmp_path / "a.mrk.json", value), GRID)
    ijk = ras_to_voxel(prompts.points_mm(), GRID)
    assert np.allclose(ijk[:, 2], [2, 3, 4, 5, 6, 7, 8], atol=1e-5)
    assert np.allclose(ijk[2], [12, 9, 4], atol=1e-3)  # through the knot
    assert prompts.sources == ("centerline",)
    with pytest.raises(SteadyError, match="PROMPT_GRID_MISSING"):
        read_prompts(tmp_path / "a.mrk.json")
    assert read_prompts(tmp_path / "a.mrk.json", GRID, source="detector").sources == ("detector",)


def test_lines_are_straight_and_closed_curves_come_back(tmp_path):
    ends = voxel_to_ras(np.array([[4.0, 4, 2], [8.0, 12, 6]]), GRID)
    ijk = ras_to_voxel(read_prompts(save(tmp_path / "a.json", markup("Line", ends, "RAS")), GRID).points_mm(), GRID)
    assert np.allclose(ijk, [[4 + n, 4 + 2 * n, 2 + n] for n in range(5)], atol=1e-4)
    ring = voxel_to_ras(np.array([[10.0, 10, 5], [20, 10, 8], [30, 10, 5], [20, 10, 2]]), GRID)
    ijk = ras_to_voxel(
        read_prompts(save(tmp_path / "b.json", markup("ClosedCurve", ring, "RAS")), GRID).points_mm(), GRID
    )
    slices = np.bincount(np.rint(ijk[:, 2]).astype(int))
    assert slices[3:8].tolist() == [2] * 5


def test_crossings_of_paths_along_and_beyond_the_volume():
    grid = Grid((10, 10, 4), np.diag([1.0, 1, 2, 1]))
    down = np.array([[5.0, 5, 20], [5, 5, -20]])
    assert np.allclose(slice_crossings(down, grid)[:, 2], [6, 4, 2, 0])
    flat = np.array([[2.0, 2, 2.4], [6, 4, 2.4]])
    assert np.allclose(slice_crossings(flat, grid), [[4, 3, 2]])
    zigzag = np.array([[1.0, 1, 0], [1, 1, 4], [3, 3, 4], [3, 3, 0]])
    assert slice_crossings(zigzag, grid)[:, 2].tolist() == [
        0,
        2,
        4,
        2,
        0,
    ]  # what runs within a slice counts once
    assert slice_crossings(np.zeros((0, 3)), grid).shape == (0, 3)
    assert len(slice_crossings(np.array([[1.0, 1, 99], [1, 1, 90]]), grid)) == 0
    assert smooth_curve(np.array([[0.0, 0, 0]] * 4)).shape == (1, 3)


def test_roi_becomes_a_box_turned_like_the_roi(tmp_path):
    turned = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]])
    value = markup("ROI", frame="RAS", center=[1.0, 2, 3], size=[4.0, 6, 8], orientation=turned.ravel().tolist())
    box = read_prompts(save(tmp_path / "a.mrk.json", value)).boxes[0]
    assert box.centre_mm == (1, 2, 3)
    assert np.allclose(np.array(box.half_axes_mm).T, turned * [2, 3, 4])
    with pytest.raises(SteadyError, match="PROMPT_BOX_EMPTY"):
        read_prompts(save(tmp_path / "a.mrk.json", markup("ROI", center=[1.0, 2, 3], size=[0.0, 0, 0])))
    with pytest.raises(SteadyError, match="/markups/0/size"):
        read_prompts(save(tmp_path / "a.mrk.json", markup("ROI", center=[1.0, 2, 3])))


def test_prompts_survive_the_way_through_slicer(tmp_path):
    points = (
        Point("a", (1.25, -2.5, 3.0), "positive", "LV", "simulated", "ann; a", "free: text"),
        Point("b", (0.1, 0.2, 0.3), "negative", "", "ground_truth"),
    )
    i, j, k = map(triple, (AFFINE[:3, :3] * [2, 3, 0]).T)
    half = (i, j, k)
    boxes = (
        Box("roi", (5.0, 6.0, 7.0), half, "LV", "detector"),
        Box("flat", (0.0, 0, 0), ((1.0, 0, 0), (0.0, 0, 0), (0.0, 0, 0))),
    )
    path = prompts_to_markups(tmp_path / "a.mrk.json", Prompts(points, boxes))
    again = read_prompts(path)
    assert [(p.id, p.xyz_mm, p.sign, p.label, p.source) for p in again.points] == [
        (p.id, p.xyz_mm, p.sign, p.label, p.source) for p in points
    ]
    assert again.points[0].annotator == "ann, a"
    assert again.points[0].description == "free: text"
    assert [(b.id, b.label, b.source) for b in again.boxes] == [
        ("roi", "LV", "detector"),
        ("flat", "", "human"),
    ]
    for before, after in zip(boxes, again.boxes, strict=True):
        assert np.allclose(box_corners_voxel(before, GRID), box_corners_voxel(after, GRID), atol=1e-4)


def test_audit_lists_are_written_for_slicer(tmp_path):
    rejected = MarkupsPoint("p1", (1.0, 2.0, 3.0), description="saliency 0.02", selected=False)
    kept = MarkupsPoint("p2", (4.0, 5.0, 6.0))
    lists = [
        MarkupsList("prompts", (rejected, kept), {"saliency": [0.02, None]}),
        MarkupsList("consensus", (kept,), is_output=True),
    ]
    path = write_markups(tmp_path / "a.mrk.json", lists)
    content = json.loads(path.read_text())
    assert content["@schema"].endswith("markups-schema-v1.0.3.json#")
    first, second = content["markups"]
    assert first["coordinateSystem"] == "LPS"
    assert first["controlPoints"][0]["position"] == [-1.0, -2.0, 3.0]
    assert [row["selected"] for row in first["controlPoints"]] == [False, True]
    assert {row["positionStatus"] for row in first["controlPoints"]} == {"defined"}
    assert first["measurements"][0]["controlPointValues"] == [0.02, -1.0]
    assert second["name"] == "consensus"
    assert [point.id for point in read_prompts(path).points] == ["p2"]
    assert path.read_bytes() == write_markups(tmp_path / "b.mrk.json", lists).read_bytes()

"""The audit says what became of every prompt, where, and why; in JSON and in markups that read back."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steadysam.audit import audit_case, decisions_to_slice, distance_to_mask_mm, write_audit
from steadysam.files import read_json, write_json
from steadysam.geometry import slice_points, slice_to_ras, voxel_to_ras
from steadysam.prompts.files import read_prompts
from steadysam.types import Box, Decision, Frame, Grid, Mask, Point, Prompts, SlicePoints

SHAPE = (9, 7, 5)


@dataclass(frozen=True, eq=False)
class Segmented:
    mask: Mask
    decisions: tuple[Decision, ...] = ()
    points: tuple[SlicePoints, ...] = field(default_factory=lambda: (SlicePoints.empty(),) * SHAPE[2])


def oblique_grid() -> Grid:
    """Oblique, flipped along the first axis, different spacing along every axis."""
    angle = np.deg2rad(20)
    rotation = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag([-1.5, 2.0, 4.0])
    affine[:3, 3] = [30, -12, 7]
    return Grid(SHAPE, affine)


@pytest.fixture
def grid() -> Grid:
    return oblique_grid()


def click(grid: Grid, name: str, x: float, y: float, z: int, **more) -> Point:
    a, b, c = slice_to_ras(np.array([[x, y]]), z, grid)[0].tolist()
    return Point(name, (a, b, c), source="human", **more)


@pytest.fixture
def prompts(grid: Grid) -> Prompts:
    box = Box("frame", (0.0, 0.0, 0.0), ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 0.0)))
    points = (
        click(grid, "good", 2, 3, 1, label="TI"),
        click(grid, "bad", 7, 5, 1, description="hasty"),
        click(grid, "back", 4, 1, 2, sign="negative"),
    )
    return Prompts(points, (box,))


@pytest.fixture
def result(grid: Grid) -> Segmented:
    """What CPD says: `good` holds on slice 1 and is added to slice 2, `bad` falls."""
    array = np.zeros(SHAPE, bool)
    array[2, 3, 1] = array[2, 3, 2] = True
    context = ((0, 0.1), (1, 0.93), (2, 0.88))
    decisions = (
        Decision("good", 1, 1, "accepted", "saliency 0.93 > 0.5 on its own slice", 0.93, 0.93, context, (2.0, 3.0)),
        Decision("bad", 1, 1, "rejected", "saliency 0.04 <= 0.5 on its own slice", 0.04, 0.04, (), (7.0, 5.0)),
        Decision("good", 2, 1, "added", "from slice 1: 0.93 there and 0.88 here", 0.93, 0.88, context, (2.0, 3.0)),
        Decision("back", 2, 2, "accepted", "negative point: passed on as given", 0.2, 0.2, (), (4.0, 1.0)),
        Decision("frame", -1, -1, "ignored", "a box: this method takes none"),
    )
    points = (
        SlicePoints.empty(),
        SlicePoints(np.array([[2, 3]], np.float32), np.array([True]), ("good",)),
        SlicePoints(np.array([[2, 3], [4, 1]], np.float32), np.array([True, False]), ("good", "back")),
        SlicePoints.empty(),
        SlicePoints.empty(),
    )
    return Segmented(Mask(array, grid), decisions, points)


def test_counts_and_rows(prompts: Prompts, result: Segmented) -> None:
    audit = audit_case("case", prompts, result, {"method": "spd"})
    assert audit["method"] == "spd"
    assert audit["prompt_hash"] == prompts.key()
    assert audit["counts"] == {
        "prompts": 4,
        "accepted": 2,
        "rejected": 1,
        "ignored": 1,
        "added": 1,
        "consensus_points": 3,
        "slices": 5,
        "prompted_slices": 2,
        "consensus_slices": 2,
    }
    good, bad, back, frame = audit["prompts"]
    assert [row["id"] for row in audit["prompts"]] == ["good", "bad", "back", "frame"]
    assert (good["verdict"], good["slice"], good["added_on_slices"]) == ("accepted", 1, [2])
    assert good["saliency"]["neighbours"][2] == {"slice": 2, "saliency": 0.88}
    assert (bad["verdict"], bad["reason"]) == ("rejected", "saliency 0.04 <= 0.5 on its own slice")
    assert (back["sign"], back["verdict"]) == ("negative", "accepted")
    assert (frame["kind"], frame["slice"], frame["saliency"]) == ("box", None, None)


def test_places_are_in_both_world_frames(prompts: Prompts, result: Segmented) -> None:
    for row, point in zip(audit_case("c", prompts, result, {})["prompts"], prompts.points, strict=False):
        assert row["ras_mm"] == pytest.approx(point.xyz_mm, abs=1e-4)
        assert row["lps_mm"] == pytest.approx([-point.xyz_mm[0], -point.xyz_mm[1], point.xyz_mm[2]], abs=1e-4)


def test_an_added_point_keeps_its_pixel_and_changes_its_slice(prompts: Prompts, result: Segmented, grid: Grid) -> None:
    entries = {entry["slice"]: entry["points"] for entry in audit_case("c", prompts, result, {})["consensus"]}
    assert sorted(entries) == [1, 2]
    added = entries[2][0]
    assert (added["verdict"], added["from_slice"], added["xy"]) == ("added", 1, [2.0, 3.0])
    assert added["ras_mm"] == pytest.approx(voxel_to_ras(np.array([[2, 3, 2]]), grid)[0], abs=1e-4)


def test_distance_is_zero_in_the_mask_and_physical_outside(grid: Grid) -> None:
    array = np.zeros(SHAPE, bool)
    array[2, 3, 1] = True
    voxels = np.array([[2, 3, 1], [2.4, 3.4, 1], [3, 3, 1], [2, 5, 1], [2, 3, 3], [5, 3, 1]])
    distance = distance_to_mask_mm(voxel_to_ras(voxels, grid), Mask(array, grid))
    assert distance == pytest.approx([0, 0, 1.5, 4.0, 8.0, 4.5])
    nowhere = distance_to_mask_mm(voxel_to_ras(voxels, grid), Mask(np.zeros(SHAPE, bool), grid))
    assert np.isinf(nowhere).all()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, n - 1) for n in SHAPE]), min_size=1, max_size=6), st.integers(0, 99))
def test_distance_equals_the_search_over_all_voxels(marked: list[tuple[int, int, int]], seed: int) -> None:
    grid = oblique_grid()
    array = np.zeros(SHAPE, bool)
    array[tuple(np.array(marked).T)] = True
    places = voxel_to_ras(np.random.default_rng(seed).integers((0, 0, 0), SHAPE, (8, 3)), grid)
    centres = voxel_to_ras(np.argwhere(array), grid)
    expected = np.linalg.norm(places[:, None] - centres[None], axis=2).min(axis=1)
    assert distance_to_mask_mm(places, Mask(array, grid)) == pytest.approx(expected, abs=1e-5)


def test_empty_mask_has_no_distance(prompts: Prompts, result: Segmented, grid: Grid) -> None:
    empty = replace(result, mask=Mask(np.zeros(SHAPE, bool), grid))
    assert {row["distance_mm"] for row in audit_case("c", prompts, empty, {})["prompts"]} == {None}


def test_a_method_without_decisions_passes_points_on(prompts: Prompts, grid: Grid) -> None:
    points = slice_points(prompts, grid)
    audit = audit_case("c", prompts, Segmented(Mask(np.zeros(SHAPE, bool), grid), (), points), {})
    assert [row["verdict"] for row in audit["prompts"]] == ["accepted"] * 3 + ["ignored"]
    assert audit["counts"]["consensus_points"] == 3


def test_no_prompt_has_gone_missing_when_nothing_was_decided(prompts: Prompts, grid: Grid) -> None:
    audit = audit_case("c", prompts, Segmented(Mask(np.zeros(SHAPE, bool), grid)), {})
    assert [row["verdict"] for row in audit["prompts"]] == ["ignored"] * 4


def test_model_pixels_go_back_to_slice_pixels() -> None:
    frame = Frame(height=70, width=90, size=64, fit="pad")
    model = frame.to_model(np.array([[12.0, 33.0], [0.0, 69.0]]))
    decisions = tuple(Decision("p", 0, 0, "accepted", "", xy=(float(x), float(y))) for x, y in model)
    back = decisions_to_slice(decisions, frame)
    assert np.array([d.xy for d in back]) == pytest.approx(np.array([[12.0, 33.0], [0.0, 69.0]]), abs=1e-4)
    assert decisions_to_slice((), frame) == ()


def test_files_are_the_same_bytes_every_time(tmp_path, prompts: Prompts, result: Segmented) -> None:
    for folder in ("a", "b"):
        write_audit(tmp_path / folder, "case", prompts, result, {"method": "spd"})
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["case.audit.json", "case.audit.mrk.json"]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_markups_show_rejections_and_consensus(tmp_path, prompts: Prompts, result: Segmented) -> None:
    write_audit(tmp_path, "case", prompts, result, {})
    as_given, consensus, box = read_json(tmp_path / "case.audit.mrk.json")["markups"]
    rows = {row["label"]: row for row in as_given["controlPoints"]}
    assert {name: row["selected"] for name, row in rows.items()} == {"good": True, "bad": False, "back": True}
    assert rows["bad"]["description"].startswith("rejected: saliency 0.04")
    assert {row["positionStatus"] for row in rows.values()} == {"defined"}
    measured = {m["name"]: m["controlPointValues"] for m in as_given["measurements"]}
    assert measured["saliency"] == pytest.approx([0.93, 0.04, 0.2])
    assert measured["distance_mm"][0] == 0
    texts = {row["label"]: row["description"] for row in consensus["controlPoints"]}
    assert sorted(texts) == ["back@2", "good@1", "good@2"]
    assert texts["good@2"] == "added from slice 1: 0.93 there and 0.88 here"
    assert consensus["coordinateSystem"] == "LPS"
    assert box["type"] == "ROI"


def test_markups_read_back_as_the_accepted_prompts(tmp_path, prompts: Prompts, result: Segmented, grid: Grid) -> None:
    write_audit(tmp_path, "case", prompts, result, {})
    back = read_prompts(tmp_path / "case.audit.mrk.json", grid)
    assert [point.id for point in back.points] == ["good", "back"]
    for point, original in zip(back.points, (prompts.points[0], prompts.points[2]), strict=True):
        assert point.xyz_mm == pytest.approx(original.xyz_mm, abs=1e-6)
        assert (point.sign, point.label, point.source) == (original.sign, original.label, original.source)
    assert len(back.boxes) == 1


def test_an_older_verdict_is_replaced_and_the_annotators_words_stay(
    tmp_path, prompts: Prompts, result: Segmented, grid: Grid
) -> None:
    first, hasty, *_ = prompts.points
    points = (first, replace(hasty, description="accepted: saliency 0.9 on its own slice; hasty"))
    write_audit(tmp_path, "case", replace(prompts, points=points, boxes=()), result, {})
    row = read_json(tmp_path / "case.audit.mrk.json")["markups"][0]["controlPoints"][1]
    assert row["description"] == "rejected: saliency 0.04 <= 0.5 on its own slice; source: human; hasty"


def test_a_slicer_user_unselects_and_moves_a_click_and_the_file_is_prompts_again(
    tmp_path, prompts: Prompts, result: Segmented, grid: Grid
) -> None:
    write_audit(tmp_path, "case", prompts, result, {})
    content = read_json(tmp_path / "case.audit.mrk.json")
    rows = content["markups"][0]["controlPoints"]
    rows[0]["selected"] = False
    rows[1]["selected"], rows[1]["position"] = True, [-1.0, 2.0, 3.0]
    write_json(tmp_path / "fixed.mrk.json", content)
    back = read_prompts(tmp_path / "fixed.mrk.json", grid)
    assert [point.id for point in back.points] == ["bad", "back"]
    assert back.points[0].xyz_mm == pytest.approx((1.0, -2.0, 3.0))

"""Our prompt JSON: what goes in comes out, and what is not right is refused by name."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steadysam.errors import SteadyError
from steadysam.prompts.files import check_image, read_prompts, require_points, write_prompts
from steadysam.types import Box, Grid, ImageRef, Point, Prompts

AFFINE = np.array([[0.1, -1.1, 0.3, 20.0], [0.9, 0.05, -0.4, -30.0], [0.05, 0.2, -3.0, 7.0], [0, 0, 0, 1.0]])
GRID = Grid((40, 30, 12), AFFINE)

numbers = st.floats(-500, 500, allow_nan=False).map(lambda value: value + 0.0)
triples = st.tuples(numbers, numbers, numbers)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
sources = st.sampled_from(["human", "centerline", "scribble", "simulated", "detector", "ground_truth"])
signs = st.sampled_from(["positive", "negative"])


@st.composite
def prompt_sets(draw) -> Prompts:
    points = draw(st.lists(st.builds(Point, st.just("p"), triples, signs, texts, sources, texts, texts), max_size=4))
    half = st.tuples(triples.filter(any), triples, triples)
    boxes = draw(st.lists(st.builds(Box, st.just("b"), triples, half, texts, sources, texts, texts), max_size=2))
    return Prompts(
        tuple(replace(point, id=f"p{n}") for n, point in enumerate(points)),
        tuple(replace(box, id=f"b{n}") for n, box in enumerate(boxes)),
        draw(st.sampled_from([ImageRef(), ImageRef("a.nii.gz", (40, 30, 12), GRID.key())])),
        ({"step": "simulate", "seed": 3},),
    )


@settings(max_examples=40, deadline=None)
@given(prompts=prompt_sets(), frame=st.sampled_from(["RAS", "LPS"]))
def test_round_trip_keeps_everything(tmp_path_factory, prompts, frame):
    path = tmp_path_factory.mktemp("p") / "case.json"
    write_prompts(path, prompts, frame=frame)
    again = read_prompts(path, GRID)
    assert again == prompts
    assert again.history == prompts.history
    assert again.key() == prompts.key()


@settings(max_examples=20, deadline=None)
@given(prompts=prompt_sets())
def test_round_trip_in_voxels_is_close(tmp_path_factory, prompts):
    path = tmp_path_factory.mktemp("p") / "case.json"
    write_prompts(path, prompts, frame="ijk", grid=GRID)
    again = read_prompts(path, GRID)
    assert np.allclose(again.points_mm(), prompts.points_mm(), atol=1e-5)
    for ours, theirs in zip(prompts.boxes, again.boxes, strict=True):
        assert np.allclose(ours.half_axes_mm, theirs.half_axes_mm, atol=1e-5)


def content(**changes):
    point = {"id": "a", "kind": "point", "coordinates": [1.0, 2.0, 3.0], "source": "human"}
    base = {"format": "steadysam-prompts", "version": 1, "frame": "RAS", "prompts": [point]}
    return {key: value for key, value in {**base, **changes}.items() if value is not None}


def point(**changes):
    base = {"id": "a", "kind": "point", "coordinates": [1.0, 2.0, 3.0], "source": "human"}
    return content(prompts=[{k: v for k, v in {**base, **changes}.items() if v is not None}])


def box(**changes):
    base = {"id": "b", "kind": "box", "coordinates": [[0.0, 0, 0], [4.0, 6, 2]], "source": "human"}
    return content(prompts=[{k: v for k, v in {**base, **changes}.items() if v is not None}])


def write(path, value):
    path.write_text(value if isinstance(value, str) else json.dumps(value), "utf-8")
    return path


@pytest.mark.parametrize(
    "frame, expected",
    [("RAS", (1, 2, 3)), ("LPS", (-1, -2, 3)), ("ijk", tuple(AFFINE[:3, :3] @ [1, 2, 3] + AFFINE[:3, 3]))],
)
def test_frames_become_ras(tmp_path, frame, expected):
    prompts = read_prompts(write(tmp_path / "c.json", {**point(), "frame": frame}), GRID)
    assert np.allclose(prompts.points_mm()[0], expected)


def test_boxes_from_corners_in_every_frame(tmp_path):
    for frame, centre in [("RAS", [2, 3, 1]), ("LPS", [-2, -3, 1])]:
        found = read_prompts(write(tmp_path / "c.json", {**box(), "frame": frame})).boxes[0]
        assert np.allclose(found.centre_mm, centre)
        assert np.allclose(np.abs(found.half_axes_mm), np.diag([2, 3, 1]))
    found = read_prompts(write(tmp_path / "c.json", {**box(), "frame": "ijk"}), GRID).boxes[0]
    assert np.allclose(np.array(found.half_axes_mm).T, AFFINE[:3, :3] * [2, 3, 1])


CASES = [
    ("PROMPT_SPACE_MISSING", content(frame=None)),
    ("PROMPT_SOURCE_MISSING", point(source=None)),
    ("PROMPT_SCHEMA", content(frame="MNI")),
    ("PROMPT_SCHEMA", content(colour="red")),
    ("PROMPT_SCHEMA", content(version=2)),
    ("PROMPT_SCHEMA", content(prompts={})),
    ("PROMPT_SCHEMA", [1, 2]),
    ("PROMPT_SCHEMA", point(weight=3)),
    ("PROMPT_SCHEMA", point(kind="circle")),
    ("PROMPT_SCHEMA", point(sign="plus")),
    ("PROMPT_SCHEMA", point(source="me")),
    ("PROMPT_SCHEMA", point(coordinates=[1, 2])),
    ("PROMPT_SCHEMA", point(coordinates=["1", 2, 3])),
    ("PROMPT_SCHEMA", point(coordinates=[True, 2, 3])),
    ("PROMPT_SCHEMA", point(label="x" * 10_001)),
    ("PROMPT_SCHEMA", content(prompts=point()["prompts"] * 2)),
    ("PROMPT_SCHEMA", box(centre=[1.0, 2, 3])),
    ("PROMPT_SCHEMA", box(coordinates=[[0.0, 0], [1.0, 1]])),
    ("PROMPT_BOX_ORDER", box(coordinates=[[0.0, 9, 0], [4.0, 6, 2]])),
    ("PROMPT_BOX_EMPTY", box(coordinates=[[1.0, 1, 1], [1.0, 1, 1]])),
    ("PROMPT_GRID_MISSING", content(frame="ijk")),
    ("JSON_NONFINITE", json.dumps(point()).replace("1.0", "NaN")),
    ("JSON_NONFINITE", json.dumps(point()).replace("1.0", "1e400")),
    ("JSON_DUPLICATE_KEY", json.dumps(content()).replace('"version"', '"frame": "LPS", "version"')),
    ("JSON_SYNTAX", json.dumps(content())[:-9]),
    ("JSON_SYNTAX", json.dumps(point()).replace("1.0", "9" * 5000)),
    ("JSON_SYNTAX", "[" * 100_000),
]


@pytest.mark.parametrize("code, value", CASES, ids=[f"{code}-{n}" for n, (code, _) in enumerate(CASES)])
def test_what_is_wrong_is_refused_by_name(tmp_path, code, value):
    with pytest.raises(SteadyError) as caught:
        read_prompts(write(tmp_path / "c.json", value))
    assert (caught.value.code, caught.value.exit_code) == (code, 4)
    assert str(tmp_path) in str(caught.value)


def test_schema_errors_point_at_the_field(tmp_path):
    rows = [*point()["prompts"], {**point()["prompts"][0], "id": "z", "coordinates": [1.0, 2.0, "x"]}]
    with pytest.raises(SteadyError, match="/prompts/1/coordinates/2"):
        read_prompts(write(tmp_path / "c.json", content(prompts=rows)))


def test_source_may_stand_once_at_the_top(tmp_path):
    value = {**point(source=None), "source": "detector"}
    assert read_prompts(write(tmp_path / "c.json", value)).sources == ("detector",)


def test_byte_order_mark_is_fine(tmp_path):
    assert len(read_prompts(write(tmp_path / "c.json", "\ufeff" + json.dumps(content())))) == 1


def test_too_many_prompts_is_a_matter_of_resources(tmp_path):
    row = point()["prompts"][0]
    rows = [{**row, "id": str(n)} for n in range(10_001)]
    with pytest.raises(SteadyError) as caught:
        read_prompts(write(tmp_path / "c.json", content(prompts=rows)))
    assert (caught.value.code, caught.value.exit_code) == ("PROMPT_TOO_MANY", 7)


@pytest.mark.parametrize("name", ["a.xlsx", "a.nii.gz", "missing.json"])
def test_unknown_kinds_of_files(tmp_path, name):
    if "missing" not in name:
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(SteadyError) as caught:
        read_prompts(tmp_path / name)
    assert caught.value.code == ("FILE_MISSING" if "missing" in name else "PROMPT_FORMAT")


def test_prompts_of_another_image_are_refused(tmp_path):
    moved = AFFINE.copy()
    moved[0, 3] += 1
    prompts = Prompts((Point("a", (1.0, 2.0, 3.0)),), image=ImageRef("x.nii", GRID.shape, GRID.key()))
    path = write_prompts(tmp_path / "c.json", prompts)
    assert read_prompts(path, Grid(GRID.shape, AFFINE.copy())) == prompts
    for other in (Grid(GRID.shape, moved), Grid((30, 40, 12), AFFINE)):
        with pytest.raises(SteadyError, match="PROMPT_WRONG_IMAGE"):
            read_prompts(path, other)
        assert read_prompts(path, other, verify_image=False) == prompts
    check_image(replace(prompts, image=ImageRef()), Grid((5, 5, 5), moved))


def test_require_points():
    some = Prompts((Point("a", (0.0, 0, 0)),))
    assert require_points(some) is some
    with pytest.raises(SteadyError, match="PROMPT_NONE"):
        require_points(Prompts())
    with pytest.raises(SteadyError, match="PROMPT_NO_POSITIVE"):
        require_points(Prompts((Point("a", (0.0, 0, 0), "negative"),)))


def test_failed_write_leaves_nothing(tmp_path):
    with pytest.raises(SteadyError, match="PROMPT_GRID_MISSING"):
        write_prompts(tmp_path / "c.json", Prompts((Point("a", (0.0, 0, 0)),)), frame="ijk")
    assert list(tmp_path.iterdir()) == []

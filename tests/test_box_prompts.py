"""Boxes of a detector as prompts: pixels to millimetres and back, one per slice, scores against the truth."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from conftest import GRIDS
from steadysam.box_prompts import DetectOptions, box_prompts, detect_volume, detector_of, score_boxes, true_boxes
from steadysam.config import make_config
from steadysam.detection.average_precision import FoundBoxes
from steadysam.errors import ConfigError, ResourceError
from steadysam.geometry import slice_boxes_xyxy, voxel_to_ras
from steadysam.methods import METHODS
from steadysam.methods.detecting import DetectorConfig
from steadysam.methods.detector import Config
from steadysam.prompts.files import read_prompts, write_prompts
from steadysam.runs import Run
from steadysam.types import Frame, Grid, Mask, Preprocess, SliceStack
from test_detecting import eager
from toys import make_volume


def run_of(fit="stretch", size=48, **detector) -> Run:
    """A run whose detector has random weights and finds something everywhere."""
    settings = {"image_size": 64, **detector}
    values = {
        "data": {"dataset": "", "label": "all"},
        "preprocess": {"size": size, "fit": fit},
        "method": {"name": "detector", "detector": settings},
    }
    config = make_config(values)
    model = SimpleNamespace(detector=eager())
    made = {"weights_sha256": "0" * 64, "data": {"label_values": [1]}}
    device = next(eager().parameters()).device
    method = METHODS["detector"]
    return Run(None, config, config.method_config(), method, model, made, device)  # pyright: ignore


def test_a_box_by_hand():
    """The mask's columns 2..4 and rows 1..6 on slice 3: outer borders of its pixels, in mm of an oblique grid."""
    grid = GRIDS["oblique"]
    box = np.array([[1.5, 0.5, 4.5, 6.5]], np.float32)
    nothing = FoundBoxes(np.zeros((0, 4), np.float32), np.zeros(0, np.float32))
    found = [nothing] * 3 + [FoundBoxes(box, np.array([0.75], np.float32)), nothing]
    prompts = box_prompts(found, grid, {"step": "detect"})
    (made,) = prompts.boxes
    assert (made.id, made.source, made.description) == ("s003-0", "detector", "score 0.750")
    assert np.allclose(made.centre_mm, voxel_to_ras(np.array([[3.0, 3.5, 3]]), grid)[0])
    assert np.linalg.norm(made.half_axes_mm[0]) == pytest.approx(1.5 * 0.8)
    assert np.linalg.norm(made.half_axes_mm[1]) == pytest.approx(3.0 * 1.5)
    assert prompts.history == ({"step": "detect"},)
    assert prompts.image.grid_key == grid.key()


@pytest.mark.parametrize("fit", ["stretch", "pad"])
def test_millimetres_come_back_to_the_same_pixels(grid: Grid, fit, tmp_path):
    """Through a file, on every awkward grid: what the detector saw is where the box is read."""
    run, volume = run_of(fit), make_volume(grid)
    found = detect_volume(run, volume)
    path = write_prompts(tmp_path / "case.json", found.prompts)
    back = slice_boxes_xyxy(read_prompts(path, grid), grid)
    height, width = grid.slice_shape
    limit = np.array([width, height] * 2) - 1
    assert len(back) == len(found.boxes) == grid.depth
    assert sum(map(len, back)) > 0
    for read, boxes in zip(back, found.boxes, strict=True):
        assert np.allclose(read, np.clip(boxes, 0, limit), atol=1e-4)
        assert (boxes[:, :2] >= -0.5).all()
        assert (boxes[:, 2:] <= limit[2:] + 0.5).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()


def test_a_box_of_model_pixels_lies_where_its_pixels_lie(monkeypatch):
    """Stretched from 13 x 9 to 48 x 48: continuous 16..32 of 48 is the second third of the slice."""
    grid = GRIDS["oblique"]
    third = FoundBoxes(np.array([[16, 16, 32, 32]], np.float32), np.array([0.9], np.float32))
    monkeypatch.setattr("steadysam.box_prompts.detect_stack", lambda *a: [third] * grid.depth)
    found = detect_volume(run_of(), make_volume(grid))
    height, width = grid.slice_shape
    expected = [width / 3 - 0.5, height / 3 - 0.5, 2 * width / 3 - 0.5, 2 * height / 3 - 0.5]
    assert np.allclose(found.boxes[2], [expected], atol=1e-5)
    back = slice_boxes_xyxy(found.prompts, grid)
    assert all(np.allclose(here, [expected], atol=1e-5) for here in back)


def test_the_best_boxes_of_a_slice():
    run, volume = run_of(), make_volume(GRIDS["plain"])
    everything = detect_volume(run, volume, DetectOptions(confidence=0.3))
    one = detect_volume(run, volume, DetectOptions(confidence=0.3, per_slice=1))
    assert max(map(len, everything.boxes)) > 1
    for few, many, scores in zip(one.boxes, everything.boxes, everything.scores, strict=True):
        assert np.array_equal(few, many[:1])
        assert (np.diff(scores) <= 0).all()
    step = one.prompts.history[0]
    assert (step["confidence"], step["per_slice"], step["method"]) == (0.3, 1, "detector")


def test_options_beat_the_run():
    run = run_of(confidence=0.4)
    assert detector_of(run)[1].confidence == 0.4
    changed = detector_of(run, DetectOptions(confidence=0.1, overlap=0.5))[1]
    assert (changed.confidence, changed.overlap) == (0.1, 0.5)
    assert run.settings == Config(detector=DetectorConfig(image_size=64, confidence=0.4))
    assert detector_of(run, DetectOptions(overlap=1.0))[1].overlap == 1.0, "nothing is suppressed"
    with pytest.raises(ConfigError, match="confidence"):
        detector_of(run, DetectOptions(confidence=1.5))
    with pytest.raises(ConfigError, match="overlap is a share.*more than 0"):
        detector_of(run, DetectOptions(overlap=0.0))


def test_the_detector_of_an_spd_run_whose_features_prompt():
    run, volume = run_of(), make_volume(GRIDS["oblique"])
    method = {"name": "spd", "prompts": "both", "features": {"detector": {"image_size": 64}}}
    data = {"dataset": "", "label": "all"}
    config = make_config({"data": data, "preprocess": {"size": 48, "fit": "stretch"}, "method": method})
    both = replace(run, config=config, settings=config.method_config())
    for one, other in zip(detect_volume(run, volume).boxes, detect_volume(both, volume).boxes, strict=True):
        assert np.array_equal(one, other)
    points = make_config({"data": data, "method": {"name": "spd"}})
    with pytest.raises(ConfigError, match="DETECTOR_MISSING.*method spd"):
        detector_of(replace(run, config=points, settings=points.method_config()))


def test_a_run_without_a_detector():
    run = run_of()
    object.__setattr__(run, "model", SimpleNamespace())
    with pytest.raises(ConfigError, match="DETECTOR_MISSING"):
        detector_of(run)


def test_too_many_boxes_for_a_file():
    grid = GRIDS["plain"]
    many = FoundBoxes(np.tile(np.array([[0, 0, 3, 3]], np.float32), (3000, 1)), np.ones(3000, np.float32))
    with pytest.raises(ResourceError, match="too many boxes"):
        box_prompts([many] * 4, grid, {})


def test_true_boxes_by_hand():
    """A slice of 16 x 32 pixels; the detector sees 64 x 64; boxes are in pixels of the 32 px model image."""
    stack = SliceStack(np.zeros((1, 1, 32, 32), np.float32), Frame(16, 32, 32), Preprocess(size=32), "k")
    array = np.zeros((32, 16, 1), bool)
    array[4:8, 2:6] = True  # columns 4..7 and rows 2..5: one to one along x, one to two along y
    array[20:21, 8:9] = True  # one pixel, 2 x 4 of the detector's
    mask = Mask(array, Grid((32, 16, 1), np.eye(4)))
    small, large = (true_boxes(mask, stack.frame, 64, a)[0] for a in (9, 8))
    assert small.tolist() == [[4, 4, 8, 12]]
    assert large.tolist() == [[4, 4, 8, 12], [20, 16, 21, 18]]


def scored(name, found, truth):
    boxes = FoundBoxes(np.array(found, np.float32).reshape(-1, 4), np.linspace(0.9, 0.5, len(found), dtype=np.float32))
    here = SimpleNamespace(name=name, found=(boxes,), truth=(np.array(truth, np.float32).reshape(-1, 4),), prompts=[1])
    return cast(list, [here])


def test_scores():
    """A perfect case, one that misses one of two, one without objects, and all together."""
    square, other = [0, 0, 10, 10], [20, 20, 30, 30]
    cases = [
        *scored("perfect", [square], [square]),
        *scored("half", [square], [square, other]),
        *scored("empty", [], []),
    ]
    perfect, half, empty, together = score_boxes(cases)
    counts = {"slices": 1, "objects": 1, "boxes": 1}
    no_interval = {"AP_low": None, "AP_high": None}
    assert perfect == {"case": "perfect", **counts, "AP50": 1.0, "AP75": 1.0, "AP": 1.0, **no_interval}
    assert half["AP50"] == pytest.approx(51 / 101)
    assert (empty["objects"], empty["AP50"], empty["AP"]) == (0, None, None)
    assert (together["case"], together["objects"], together["slices"]) == ("all", 3, 3)
    assert together["AP50"] == pytest.approx(67 / 101), "two of three: recall levels 0 to 0.66"
    assert len(score_boxes(cases[:1])) == 1


def test_the_interval_draws_patients():
    """With the patient that is missed drawn n times of four, AP is 1 - n / 4, but for the grid of recall levels."""
    square = [0, 0, 10, 10]
    cases = [*(case for name in "abc" for case in scored(name, [square], [square])), *scored("d", [], [square])]
    *rows, together = score_boxes(cases)
    assert all(row["AP_low"] is row["AP_high"] is None for row in rows)
    assert (together["AP_low"], together["AP_high"]) == pytest.approx((0.25, 1), abs=0.02)
    assert score_boxes(cases)[-1] == together, "chance is an argument"
    pairs = score_boxes(cases, {"a": "one", "b": "one", "c": "two", "d": "two"})[-1]
    assert (pairs["AP_low"], pairs["AP_high"]) == pytest.approx((0.5, 1), abs=0.02)
    one = score_boxes(cases, dict.fromkeys("abcd", "one"))[-1]
    assert (one["AP"], one["AP_low"], one["AP_high"]) == (together["AP"], None, None)
    assert score_boxes([*scored("a", [square], []), *scored("b", [], [])])[-1]["AP_low"] is None, "no object at all"


def test_a_mask_brings_scores_and_changes_no_prompt():
    grid = GRIDS["sagittal"]
    run, volume = run_of(), make_volume(grid)
    plain = detect_volume(run, volume)
    array = volume.array > 150
    known = detect_volume(run, volume, mask=Mask(array, grid))
    assert known.prompts == plain.prompts
    assert len(known.found) == len(known.truth) == grid.depth
    assert sum(map(len, known.truth)) > 0
    assert plain.truth == ()

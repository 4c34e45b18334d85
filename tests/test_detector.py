"""The detector as a method: its mask, its notes, its teacher, and whether it learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from steadysam.backbones.checkpoints import read_safetensors
from steadysam.checkpoints import load_into, save_tensors
from steadysam.config import make_config, merged, read_config
from steadysam.detection.average_precision import FoundBoxes
from steadysam.embeddings import EmbeddingCache
from steadysam.errors import ConfigError
from steadysam.methods import detector as method
from steadysam.methods.detecting import DetectorConfig
from steadysam.methods.detector import Config, covered
from steadysam.runs import load_run
from steadysam.training import train
from steadysam.types import SlicePoints
from test_detecting import SMALL, TAUGHT, eager
from test_mosaic import case_of


def test_the_probability_is_the_score_of_the_best_box():
    """Pixels whose centre is inside: columns 2 and 3 of a box from 1.6 to 4."""
    boxes = np.array([[1.6, 0, 4, 2], [3, 1, 6, 3]], np.float32)
    found = covered(FoundBoxes(boxes, np.array([0.9, 0.4], np.float32)), 6)
    expected = np.zeros((6, 6), np.float32)
    expected[1:3, 3:6] = 0.4
    expected[0:2, 2:4] = 0.9
    assert np.array_equal(found, expected)
    assert not covered(FoundBoxes(boxes[:0], np.zeros(0, np.float32)), 6).any()


def test_what_segment_says():
    model = method.build(Config(detector=SMALL), None)
    model.detector = eager()
    stack = case_of(depth=3).stack
    found = method.segment(model.eval(), Config(detector=SMALL), stack, [SlicePoints.empty()] * 3, EmbeddingCache())
    assert found.probability.shape == (3, 32, 32)
    rows = np.array(found.notes["boxes"])
    assert set(rows[:, 0]) == {0, 1, 2}
    assert rows[:, 5].min() > 0.25
    for t in range(3):
        assert np.isclose(found.probability[t].max(), rows[rows[:, 0] == t, 5].max(), atol=1e-4)


def test_weights_survive_a_file(tmp_path):
    """As in the contract, with networks that see: fresh ones say the same of all images."""
    model, other = (method.build(Config(detector=SMALL), None).eval() for _ in range(2))
    model.detector, other.detector = eager(0), eager(1)
    stack, points = case_of(depth=2).stack, [SlicePoints.empty()] * 2
    first, second = (method.segment(m, Config(detector=SMALL), stack, points, EmbeddingCache()) for m in (model, other))
    assert not np.array_equal(first.probability, second.probability)
    save_tensors(tmp_path / "w.safetensors", model.state_dict())
    load_into(other, read_safetensors(tmp_path / "w.safetensors"), file=tmp_path / "w.safetensors")
    again = method.segment(other, Config(detector=SMALL), stack, points, EmbeddingCache())
    assert again.probability.tobytes() == first.probability.tobytes()
    assert again.notes == first.notes


def test_the_teacher_goes_when_it_has_taught():
    model = method.build(Config(detector=TAUGHT), None)
    assert any(name.startswith("teacher.") for name in model.state_dict())
    model.release()
    model.release()
    assert all(name.startswith("detector.") for name in model.state_dict())
    assert method.build(Config(detector=DetectorConfig()), None).teacher is None


def test_parameters():
    """ldfsam.md 3.1: 3.011 M at one class."""
    model = method.build(Config(), None)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 3) == 3.011
    assert Config().detail_size == 640


def values(dataset: Path, epochs: int, **detector) -> dict:
    stage = {"epochs": epochs, "optimizer": "adamw", "learning_rate": 2e-3, "warmup_steps": 10}
    settings = {"image_size": 64, "teacher_stage": stage, "student_stage": stage, **detector}
    return {
        "data": {"dataset": str(dataset), "label": "blob"},
        "preprocess": {"size": 48},
        "method": {"name": "detector", "detector": settings},
        "compute": {"device": "cpu", "cache": "off", "threads": 1},
    }


@pytest.fixture(scope="module")
def taught(toy_dataset, tmp_path_factory) -> Path:
    """A run with a teacher and distillation, two epochs each."""
    config = make_config(values(toy_dataset, 2, teacher="n", distill="ld"))
    return train(config, tmp_path_factory.mktemp("taught") / "run")


def test_a_run_with_a_teacher(taught):
    logs = {path.name: path.read_text("utf-8").splitlines()[0] for path in (taught / "logs").glob("*-metrics.csv")}
    assert set(logs) == {"teacher-metrics.csv", "student-metrics.csv"}
    for term in ("train_ld_main", "train_ld_vlr", "train_dfl"):
        assert term in logs["student-metrics.csv"].split(",")
    assert "val_ap_loss" in logs["teacher-metrics.csv"]
    assert "train_ap_loss" not in logs["teacher-metrics.csv"]
    assert "ld_main" not in logs["teacher-metrics.csv"]
    run = load_run(taught, "cpu")
    assert all(name.startswith("detector.") for name in run.model.state_dict())
    assert {path.stem for path in (taught / "checkpoints").glob("*.json")} == {"teacher", "student"}


def test_a_run_starts_from_the_teacher_of_another(toy_dataset, taught, tmp_path):
    content = values(toy_dataset, 1, teacher="n", distill="kd")
    config = make_config({**content, "start": {"run": str(taught), "skip": ["teacher"]}})
    folder = train(config, tmp_path / "run")
    assert {path.stem for path in (folder / "checkpoints").glob("*.json")} == {"student"}
    weights = load_run(folder, "cpu").model.state_dict()
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())


def test_a_start_from_a_run_of_another_size_or_target_is_told_of(toy_dataset, taught, tmp_path, caplog):
    content = merged(values(toy_dataset, 1, teacher="n"), {"method": {"detector": {"image_size": 96}}})
    content = merged(content, {"data": {"label": "1"}, "start": {"run": str(taught), "skip": ["teacher"]}})
    train(make_config(content), tmp_path / "run")
    theirs = read_config(taught / "config.toml")["method"]["detector"]["image_size"]
    assert f"was trained with method.detector.image_size = {theirs}, here it is 96" in caplog.text
    assert "was trained with data.label = blob, here it is 1" in caplog.text
    assert "data.dataset" not in caplog.text


def test_a_setting_of_the_detector_leaves_its_others(taught):
    """At another image size than that of training the boxes would be worthless, and nothing would say so."""
    settings: Any = load_run(taught, "cpu", detector={"confidence": 0.1}).settings
    assert (settings.detector.confidence, settings.detector.image_size) == (0.1, 64)
    assert settings.detector.student_stage.epochs == 2


def test_boxes_have_no_dice_to_select_by(toy_dataset):
    with pytest.raises(ConfigError, match="CONFIG_VALUE.*select_by"):
        make_config(values(toy_dataset, 2, student_stage={"select_by": "dice"}))


def test_the_teachers_own_boxes():
    config = Config(detector=DetectorConfig(image_size=64, teacher="s", confidence=0.001), generator="teacher")
    torch.manual_seed(0)
    model = method.build(config, None).eval()
    model.release()
    assert model.detector is None
    assert model.source is model.teacher
    assert [stage.name for stage in method.stages(config)] == ["teacher"]
    with pytest.raises(ValidationError, match="teacher"):
        Config(generator="teacher")

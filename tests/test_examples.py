"""The configurations in examples/ are what was measured, as they say."""

import inspect
from pathlib import Path

import pytest

from steadysam.bench.group import Folders, Group
from steadysam.bench.suite import read_suite
from steadysam.cli.draw import draw
from steadysam.config import make_config, merged, read_config

ROOT = Path(__file__).parents[1]


def example(name, dataset):
    return make_config(merged(read_config(ROOT / "examples" / f"{name}.toml"), {"data": {"dataset": str(dataset)}}))


@pytest.fixture
def measured(tmp_path):
    suite = read_suite(ROOT / "benchmarks" / "suites" / "ldfsam_drawn_cpu.toml")
    return Group(suite, "Kvasir", 10, Folders(tmp_path, tmp_path, tmp_path)).config


def test_ldfsam(measured, toy_dataset):
    own, masks, student = example("ldfsam_cpu", toy_dataset), measured("ldfsam_long"), measured("ld_long")
    assert own.method == {**masks.method, "detector": student.method["detector"]}
    assert own.preprocess == masks.preprocess
    assert own.backbone.name == masks.backbone.name


def test_detector(measured, toy_dataset):
    own, student = example("detector_cpu", toy_dataset).method, measured("detector_long").method
    unused = {"teacher": "", "teacher_stage": own["detector"]["teacher_stage"]}
    assert own == {**student, "detector": {**student["detector"], **unused}}


def test_spd_with_features(tmp_path, toy_dataset):
    suite = read_suite(ROOT / "benchmarks" / "suites" / "spd_features.toml")
    measured = Group(suite, "LV", 0, Folders(tmp_path, tmp_path, tmp_path)).config("both")
    own = example("spd_features_cpu", toy_dataset)
    assert (own.method, own.preprocess) == (measured.method, measured.preprocess)


def test_drawn_pictures(measured, toy_dataset):
    assert example("drawn_cpu", toy_dataset).method == measured("drawn").method
    assert measured("drawn").data.dataset.endswith("pictures-800-192-s0"), "what `steadysam draw` draws by itself"
    assert inspect.signature(draw).parameters["images"].default == 800
    assert [inspect.signature(draw).parameters[name].default for name in ("size", "seed")] == [192, 0]

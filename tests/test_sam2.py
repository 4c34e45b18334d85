"""The methods `sam2` and `medsam2`: settings, notes and verdicts, tuning, a run that is loaded, the command line."""

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from conftest import GRIDS
from steadysam.backbones.video.build import video_model
from steadysam.backbones.video.table import VIDEO_MODELS
from steadysam.backbones.weights import import_weights
from steadysam.config import make_config
from steadysam.data.slices import prepare_stack
from steadysam.data.volumes import read_volume
from steadysam.embeddings import EmbeddingCache
from steadysam.errors import ConfigError
from steadysam.files import read_json
from steadysam.methods import medsam2, sam2
from steadysam.prompts.files import write_prompts
from steadysam.runs import load_run, zero_shot_run
from steadysam.segmenting import segment
from steadysam.trainable import select_trainable
from steadysam.training import train
from steadysam.types import Preprocess, SlicePoints
from toys import make_volume, some_prompts, steadysam, toy_run_values


@pytest.fixture(scope="module")
def stack():
    return prepare_stack(make_volume(GRIDS["plain"]), Preprocess(size=32, norm="spd"))


def points(*counts: int) -> tuple[SlicePoints, ...]:
    """So many positive points on each slice."""
    rng = np.random.default_rng(2)
    return tuple(
        SlicePoints(
            rng.uniform(6, 26, (n, 2)).astype(np.float32), np.ones(n, bool), tuple(f"p{t}.{i}" for i in range(n))
        )
        for t, n in enumerate(counts)
    )


def run(module, stack, given, **settings):
    config = module.Config(**settings)
    torch.manual_seed(0)
    return module.segment(module.build(config, None).eval(), config, stack, given, EmbeddingCache())


def test_defaults():
    assert (sam2.Config().lane, sam2.Config().keep_largest) == ("all", False)
    assert (medsam2.Config().lane, medsam2.Config().keep_largest) == ("box", True)
    others = sam2.Config().model_dump() | {"lane": "box", "keep_largest": True}
    assert medsam2.Config().model_dump() == others


def test_random_weights_are_said(caplog):
    sam2.build(sam2.Config(), None)
    assert "random weights" in caplog.text


def test_size_and_memory_are_set():
    video = sam2.build(sam2.Config(size=96, conditioning=3), None).video
    assert (video.config.image_size, video.config.max_cond_frame_num) == (96, 3)
    assert sam2.build(sam2.Config(conditioning=0), None).video.config.max_cond_frame_num == -1
    with pytest.raises(ConfigError, match="BACKBONE_SIZE"):
        sam2.build(sam2.Config(size=100), None)


def test_points_on_every_slice(stack):
    found = run(sam2, stack, points(1, 0, 2, 0, 0))
    assert found.notes["prompted_slices"] == [0, 2]
    assert found.notes["key_slice"] is None
    assert set(found.notes["object_scores"]) == set("01234")
    assert {d.verdict for d in found.decisions} == {"accepted"}
    assert [len(here) for here in found.points] == [1, 0, 2, 0, 0]


def test_a_key_slice(stack):
    found = run(sam2, stack, points(1, 0, 2, 0, 0), lane="key")
    assert found.notes["key_slice"] == 2
    assert [len(here) for here in found.points] == [0, 0, 2, 0, 0]
    assert [d.verdict for d in found.decisions] == ["ignored", "accepted", "accepted"]


def test_a_box_of_points(stack):
    given = points(1, 0, 2, 0, 0)
    found = run(medsam2, stack, given, keep_largest=False)
    box = found.points[2].box
    assert box is not None
    assert box.tolist() == [*given[2].xy.min(0), *given[2].xy.max(0)]
    assert found.notes["key_slice"] == 2


def test_a_given_box_goes_first(stack):
    given = list(points(3, 0, 1, 0, 1))
    box = np.array([4, 5, 20, 21], np.float32)
    given[4] = replace(given[4], box=box)
    found = run(medsam2, stack, given)
    assert found.notes["key_slice"] == 4
    assert np.array_equal(found.points[4].box, box)  # type: ignore[arg-type]
    assert run(sam2, stack, given, lane="all").notes["unused_box_slices"] == []
    given[1] = replace(given[1], box=box)
    assert run(medsam2, stack, given).notes["unused_box_slices"] == [1]  # 4 has a point, too


@pytest.mark.parametrize("module", [sam2, medsam2])
def test_no_prompts_no_mask(stack, module):
    found = run(module, stack, points(0, 0, 0, 0, 0))
    assert found.probability.max() == 0
    assert found.notes["object_scores"] == {}


def test_the_largest_part_is_kept(stack, monkeypatch):
    logits = torch.full((5, 16, 16), -9.0)
    logits[1:3, 2:6, 2:6] = logits[4, 12, 12] = 9.0
    shared = "steadysam.methods.video.recipe.propagate"
    monkeypatch.setattr(shared, lambda *given: (logits, torch.tensor([1.0, 1, 1, -2, 1])))
    both = run(sam2, stack, points(1, 1, 1, 1, 1))
    assert both.probability[4].max() > 0.5
    assert both.notes["absent_slices"] == [3]
    largest = run(medsam2, stack, points(1, 1, 1, 1, 1))
    assert largest.probability[4].max() <= 0.5
    assert np.array_equal(largest.probability[:3], both.probability[:3])


def test_what_is_trained():
    config = sam2.Config()
    names = {name.split(".")[1] for name in select_trainable(sam2.build(config, None), sam2.stages(config)[0])}
    assert names == {"mask_decoder", "memory_attention", "memory_encoder"}
    config = sam2.Config(train_encoder=True)
    names = {name.split(".")[1] for name in select_trainable(sam2.build(config, None), sam2.stages(config)[0])}
    assert names == {"mask_decoder", "memory_attention", "memory_encoder", "vision_encoder"}


def test_tuning_lowers_the_loss_and_the_run_is_loaded_without_other_weights(toy_dataset, tmp_path, monkeypatch):
    """From imported weights of a published row; they are gone when the run is used."""
    row = replace(VIDEO_MODELS["sam2-test"], name="sam2-published", hub_id="a/b", revision="a" * 40, licence="x")
    monkeypatch.setitem(VIDEO_MODELS, row.name, row)  # type: ignore[arg-type]
    torch.manual_seed(1)
    (tmp_path / "brought").mkdir()
    save_file(video_model("sam2-test").state_dict(), tmp_path / "brought" / "model.safetensors")
    import_weights(row.name, tmp_path / "brought")
    tuning = {"epochs": 3, "batch_size": 4, "learning_rate": 1e-3}
    settings = {"weights": row.name, "lane": "key", "clip": 3, "tuning": tuning}
    values = {**toy_run_values(toy_dataset), "method": {"name": "sam2", **settings}}
    folder = train(make_config(values), tmp_path / "run")
    rows = list(csv.DictReader((folder / "logs" / "tuning-metrics.csv").read_text().splitlines()))
    assert float(rows[-1]["train_loss"]) < 0.7 * float(rows[0]["train_loss"])
    for file in (tmp_path / "home" / "weights").rglob("model.safetensors"):
        file.unlink()
    loaded = load_run(folder, "cpu")
    volume = make_volume(GRIDS["plain"])
    found = segment(loaded, volume, some_prompts(volume.grid))
    assert found.mask.array.shape == volume.array.shape
    assert found.notes["weights"] == row.name


def test_zero_shot_needs_weights_of_its_own():
    with pytest.raises(ConfigError, match="ZERO_SHOT_RANDOM"):
        zero_shot_run("sam2-test", "cpu", method="sam2")
    with pytest.raises(ConfigError, match="BACKBONE_UNKNOWN"):
        zero_shot_run("steadysam-tiny", "cpu", method="sam2")


def test_the_command_line_with_a_folder_of_the_library(toy_dataset, tmp_path):
    torch.manual_seed(1)
    video_model("sam2-test").save_pretrained(tmp_path / "model")
    image = toy_dataset / "imagesTs" / "toy_5_0000.nii.gz"
    write_prompts(tmp_path / "toy_5.mrk.json", some_prompts(read_volume(image).grid))
    command = ["predict", "-i", image, "--prompts", tmp_path / "toy_5.mrk.json", "-m", tmp_path / "model"]
    command += ["--method", "sam2", "-o", tmp_path / "out", "--threads", 1, "--set", "lane=key"]
    assert steadysam(*command) == 0
    record = read_json(tmp_path / "out" / "run.json")
    assert record["config"]["preprocess"]["size"] == 64
    assert record["config"]["method"]["weights"] == str(tmp_path / "model")
    case = record["cases"][0]
    assert case["notes"]["lane"] == "key"
    assert len(case["notes"]["object_scores"]) == 4

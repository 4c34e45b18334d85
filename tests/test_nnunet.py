"""Train and predict with nnU-Net: what its commands are told, what is recorded, what comes back. Its commands are
stand-ins here; `test_nnunet_export.py` asks the real one, where it is installed.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from nnunettoys import notes, stand_in
from steadysam.config import DataConfig
from steadysam.data.cases import read_dataset
from steadysam.data.volumes import read_label_map, read_volume
from steadysam.errors import CheckpointError, ConfigError, ExternalError, FileSystemError, InputError, ResourceError
from steadysam.external.nnunet.environment import VARIABLE
from steadysam.external.nnunet.prediction import predict
from steadysam.external.nnunet.trainers import TRAINERS, trainer_name, write_trainer
from steadysam.external.nnunet.training import TrainOptions, read_run, train
from steadysam.files import read_json, write_json
from toys import leftovers, steadysam

RAW = Path("raw") / "Dataset001_Target"


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> Path:
    return stand_in(tmp_path_factory.mktemp("environment"))


@pytest.fixture(autouse=True)
def _here(environment, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(environment))
    (environment / "notes.jsonl").unlink(missing_ok=True)


@pytest.fixture
def data(toy_dataset) -> DataConfig:
    return DataConfig(dataset=str(toy_dataset), label="blob")


@pytest.fixture(scope="module")
def finished(environment, toy_dataset, tmp_path_factory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, str(environment))
        options = TrainOptions("3d_fullres", 5, device="cpu", workers=2)
        return train(DataConfig(dataset=str(toy_dataset), label="blob"), tmp_path_factory.mktemp("r") / "run", options)


def test_the_commands_are_told_what_to_do(data, environment, tmp_path):
    run = train(data, tmp_path / "run", TrainOptions("2d", 20, device="cpu", workers=3))
    plan, fit = notes(environment)
    assert plan["words"][:4] == ["-d", "1", "-c", "2d"]
    assert plan["words"][4:] == ["--verify_dataset_integrity", "-npfp", "3", "-np", "3", "--no_pbar"]
    words = ["1", "2d", "0", "-tr", "nnUNetTrainer_20epochs", "-p", "nnUNetPlans", "-device", "cpu"]
    assert fit["words"] == words
    assert plan["told"]["nnUNet_raw"] == str(run / "raw")
    assert fit["told"]["nnUNet_results"] == str(run / "results")
    # 0 stops nnU-Net's planning, and is what a training process on the CPU wants
    assert "nnUNet_n_proc_DA" not in plan["told"]
    assert fit["told"]["nnUNet_n_proc_DA"] == "0"


def test_a_run_says_what_it_is(finished, toy_dataset):
    record = read_run(finished)
    assert record["status"] == "finished"
    assert record["trainer"] == "nnUNetTrainer_5epochs"
    assert [Path(command["command"][0]).name for command in record["commands"]] == [
        "nnUNetv2_plan_and_preprocess",
        "nnUNetv2_train",
    ]
    assert all(command["seconds"] > 0 for command in record["commands"])
    assert {"python", "steadysam"} <= set(record["versions"])
    assert record["data"]["split"]["test"] == ["toy_5"]
    assert len(record["data"]["data_hashes"]) == 6
    # nnU-Net finds our split where it looks for its own
    ours = read_json(finished / RAW / "splits_final.json")
    assert read_json(finished / "preprocessed" / "Dataset001_Target" / "splits_final.json") == ours


def test_masks_come_back_on_the_images_own_grid_and_evaluate_knows_them(finished, toy_dataset, environment, tmp_path):
    out = tmp_path / "out"
    assert predict(finished, toy_dataset / "imagesTs", out, device="cpu", workers=1) == out / "run.json"
    (told,) = notes(environment)
    assert told["words"][told["words"].index("-tr") + 1] == "nnUNetTrainer_5epochs"
    assert told["words"][told["words"].index("-c") + 1] == "3d_fullres"
    assert "--disable_tta" not in told["words"]
    volume = read_volume(toy_dataset / "imagesTs" / "toy_5_0000.nii.gz")
    labels, grid = read_label_map(out / "toy_5.nii.gz")
    assert np.array_equal(labels, volume.array > 145)
    assert grid.affine.tobytes() == volume.grid.affine.tobytes()
    record = read_json(out / "run.json")
    assert record["method"] == "nnunet 3d_fullres"
    assert record["prompted"] is False
    assert record["cases"][0]["slice_axis"] == 2
    assert {p.name for p in out.iterdir()} == {"toy_5.nii.gz", "run.json", "logs"}
    # the label that was trained for is taken from the record
    code = steadysam("evaluate", out, toy_dataset / "labelsTs", "-o", tmp_path / "report")
    assert code == 0
    metrics = read_json(tmp_path / "report" / "metrics.json")
    assert "nnunet 3d_fullres" in str(metrics)


def test_the_command_line_trains_and_predicts_pictures(tmp_path, environment):
    folder = tmp_path / "Dataset003_Grey"
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    for n in range(4):
        mask = np.zeros((16, 24), np.uint8)
        mask[3 : 9 + n, 5:20] = 1
        Image.fromarray(mask * 200).save(folder / "imagesTr" / f"g{n}_0000.png")
        Image.fromarray(mask).save(folder / "labelsTr" / f"g{n}.png")
    info = {"channel_names": {"0": "US"}, "labels": {"background": 0, "cyst": 1}, "file_ending": ".png"}
    write_json(folder / "dataset.json", info)
    run = tmp_path / "run"
    split = "data.fractions=[0.5, 0.25, 0.25]"
    words = ("nnunet", "train", folder, "--label", "cyst", "--epochs", 1, "-d", "cpu", "-o", run, "--set", split)
    assert steadysam(*words, "-c", "3d_fullres") == 3  # pictures have no third dimension
    assert steadysam(*words, "-c", "2d", "--continue") == 3  # and that run was begun with another configuration
    run = tmp_path / "run2"
    assert steadysam(*words[:-3], run, *words[-2:]) == 0
    out = tmp_path / "out"
    assert steadysam("nnunet", "predict", "-i", run / RAW / "imagesTs", "-m", run, "-o", out, "--no-mirroring") == 0
    assert "--disable_tta" in notes(environment)[-1]["words"]
    (mask,) = out.glob("*.png")
    truth, _ = read_label_map(run / RAW / "labelsTs" / mask.name)
    assert np.array_equal(read_label_map(mask)[0], truth * 255)
    assert steadysam("evaluate", out, run / RAW / "labelsTs", "-o", tmp_path / "report") == 0


def test_a_stopped_run_goes_on_where_it_was(data, environment, tmp_path):
    run = tmp_path / "run"
    options = TrainOptions("2d", 5, device="cpu", workers=1)
    (run / "raw").parent.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("steadysam.external.nnunet.training._fit", lambda *_: None)
        train(data, run, options)
    (run / "raw" / "fail").touch()
    with pytest.raises(FileSystemError):
        train(data, run, options)
    with pytest.raises(ExternalError) as caught:
        train(data, run, options, resume=True)
    assert "the loss is not what it was" in str(caught.value)
    with pytest.raises(CheckpointError) as unfinished:
        predict(run, tmp_path, tmp_path / "out")
    assert unfinished.value.code == "RUN_UNFINISHED"
    (run / "raw" / "fail").unlink()
    train(data, run, TrainOptions("2d", 5, device="cpu", workers=2), resume=True)  # workers change no result
    assert [note["name"] for note in notes(environment)] == [
        "nnUNetv2_plan_and_preprocess",
        "nnUNetv2_train",
        "nnUNetv2_train",
    ]
    assert notes(environment)[-1]["words"][-1] == "--c"
    with pytest.raises(ConfigError) as changed:
        train(data, run, TrainOptions("2d", 10, device="cpu"), resume=True)
    assert changed.value.seen == "epochs: 10"


def test_only_the_lengths_that_nnunet_has_and_shorter_epochs_by_a_trainer_of_ours(tmp_path):
    assert trainer_name(1) == "nnUNetTrainer_1epoch"
    assert trainer_name(1000) == "nnUNetTrainer"
    assert trainer_name(50) == "nnUNetTrainer_50epochs"
    with pytest.raises(ConfigError) as caught:
        trainer_name(30)
    assert caught.value.expected == "1, 5, 10, 20, 50, 100, 250, 500, 750, 1000, 2000, 4000, 8000"
    with pytest.raises(ConfigError):
        trainer_name(1, 0)
    assert write_trainer(tmp_path, 20, 250) == "nnUNetTrainer_20epochs"
    assert list(tmp_path.iterdir()) == []
    name = write_trainer(tmp_path, 20, 10)
    (file,) = tmp_path.iterdir()
    text = file.read_text("utf-8")
    compile(text, file, "exec")
    assert f"class {name}(nnUNetTrainer)" in text
    for line in ("num_epochs = 20", "num_iterations_per_epoch = 10", "num_val_iterations_per_epoch = 2"):
        assert f"self.{line}\n" in text


def test_the_trainers_of_the_table_are_in_the_real_package(monkeypatch):
    from test_nnunet_export import IN_HOME, REAL

    package = (Path(REAL) if REAL else IN_HOME).glob("lib/python*/site-packages/nnunetv2/training/nnUNetTrainer")
    files = [file for folder in package for file in folder.rglob("*.py")]
    if not files:
        pytest.skip("nnU-Net is not installed: steadysam nnunet install, or STEADYSAM_NNUNET_ENV")
    text = "\n".join(file.read_text("utf-8") for file in files)
    assert [name for name in TRAINERS.values() if f"class {name}(" not in text] == []


def test_a_card_by_number(data, environment, tmp_path, monkeypatch):
    monkeypatch.setattr("steadysam.external.nnunet.environment._ASK", 'print(\'{"versions": {}, "cuda": true}\')')
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    run = train(data, tmp_path / "run", TrainOptions("2d", 5, device="cuda:1", workers=1))
    words = notes(environment)[-1]["words"]
    assert words[words.index("-device") + 1] == "cuda"
    assert "nnUNet_n_proc_DA" not in notes(environment)[-1]["told"]
    assert train(data, run, TrainOptions("2d", 5, device="cuda:0"), resume=True) == run  # another card, the same run
    assert len(notes(environment)) == 2  # and nothing left to do


def test_a_device_that_is_not_there_is_no_silent_fall_back(data, tmp_path):
    with pytest.raises(ResourceError) as caught:
        train(data, tmp_path / "run", TrainOptions(device="cuda:1"))
    assert caught.value.code == "DEVICE_UNAVAILABLE"
    assert not (tmp_path / "run").exists()


def test_images_of_another_kind_and_folders_of_another_kind(finished, toy_run, toy_dataset, tmp_path):
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "x.png")
    with pytest.raises(InputError) as caught:
        predict(finished, tmp_path / "x.png", tmp_path / "out", device="cpu")
    assert caught.value.code == "NNUNET_MIXED"
    assert leftovers(tmp_path) == []
    with pytest.raises(CheckpointError) as ours:
        predict(toy_run, toy_dataset / "imagesTs", tmp_path / "out")
    assert ours.value.code == "RUN_VERSION"
    code = steadysam("predict", "-i", toy_dataset / "imagesTs", "-m", finished, "-o", tmp_path / "out")
    assert code == 5  # and the other way round: an nnU-Net run is none of ours


def test_a_mask_that_is_missing_is_an_error(finished, toy_dataset, environment, tmp_path):
    program = environment / "bin" / "nnUNetv2_predict"
    text = program.read_text("utf-8")
    program.write_text(text.replace("sorted(source.iterdir())", "[]"), "utf-8")
    try:
        with pytest.raises(ExternalError) as caught:
            predict(finished, toy_dataset / "imagesTs", tmp_path / "out", device="cpu")
    finally:
        program.write_text(text, "utf-8")
    assert caught.value.code == "NNUNET_NO_MASK"
    assert leftovers(tmp_path) == []


def test_the_exported_data_set_trains_our_methods_on_the_same_fold(finished):
    dataset = read_dataset(finished / RAW)
    assert [case.name for case in dataset.part("Ts")] == ["toy_5"]
    assert dict(dataset.labels) == {"background": 0, "blob": 1}


def test_a_trainer_in_bfloat16_is_written_beside_the_run(data, tmp_path):
    run = train(data, tmp_path / "run", TrainOptions("2d", 10, 22, precision="bf16", device="cpu", workers=1))
    assert read_run(run)["trainer"] == "SteadyTrainer_10x22_bf16"
    (file,) = (run / "trainers").iterdir()
    with pytest.MonkeyPatch.context() as patch:  # nnU-Net's class, as far as ours uses it

        class Parent:
            def __init__(self, plans, configuration, fold, dataset_json, device):
                self.device = device

            def initialize(self):
                self.network = torch.nn.Conv2d(1, 2, 3)

        for name in ("nnunetv2", "nnunetv2.training", "nnunetv2.training.nnUNetTrainer"):
            patch.setitem(sys.modules, name, ModuleType(name))
        module = ModuleType("nnunetv2.training.nnUNetTrainer.nnUNetTrainer")
        vars(module)["nnUNetTrainer"] = Parent
        patch.setitem(sys.modules, module.__name__, module)
        threads: list[int] = []
        patch.setattr(torch, "set_num_threads", threads.append)
        patch.setenv("OMP_NUM_THREADS", "3,1")
        trainer = runpy.run_path(str(file))["SteadyTrainer_10x22_bf16"]({}, "2d", 0, {}, torch.device("cpu"))
        trainer.initialize()
    assert threads == [3]
    assert (trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch) == (10, 22, 4)
    image = torch.randn(1, 1, 9, 12)
    found = trainer.network(image)
    exact = torch.nn.functional.conv2d(image, trainer.network.weight, trainer.network.bias)
    assert found.dtype == torch.float32  # as the loss wants it
    assert 0 < (found - exact).abs().max() < 0.05
    assert set(trainer.network.state_dict()) == {"weight", "bias"}


@pytest.mark.parametrize("configuration, steps", [("2d", 22), ("3d_fullres", 14)])
def test_a_budget_of_slices_is_shared_out_among_the_plans_batches(data, environment, tmp_path, configuration, steps):
    """2880 slices in ten epochs: of 13 slices per step, or of two patches of ten."""
    run = train(data, tmp_path / "run", TrainOptions(configuration, 10, slices=2880, device="cpu", workers=1))
    assert read_run(run)["trainer"] == f"SteadyTrainer_10x{steps}"
    assert read_run(run)["steps"] == steps
    with pytest.raises(ConfigError, match="slices: 20"):
        train(data, run, TrainOptions(configuration, 10, slices=20, device="cpu"), resume=True)
    small = TrainOptions(configuration, 10, slices=2880, memory_gb=0.5, device="cpu", workers=1)
    assert read_run(train(data, tmp_path / "small", small))["steps"] == pytest.approx(2 * steps, abs=1)
    assert notes(environment)[-2]["words"][-2:] == ["-gpu_memory_target", "0.5"]
    with pytest.raises(ConfigError) as caught:
        train(data, tmp_path / "none", TrainOptions(configuration, memory_gb=-1, device="cpu"))
    assert caught.value.code == "NNUNET_MEMORY"
    assert not (tmp_path / "none").exists()
    few = train(data, tmp_path / "few", TrainOptions(configuration, 10, slices=20, device="cpu", workers=1))
    assert read_run(few)["steps"] == 1

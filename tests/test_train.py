"""The loop: trained sets, resuming after a kill with the same bytes, run folders, configuration faults."""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

from steadysam import loop, training
from steadysam.checkpoints import newest_step
from steadysam.config import ComputeConfig, apply_settings, make_config, merged, read_config, to_toml
from steadysam.errors import CheckpointError, ConfigError, FileSystemError, InputError, OutputError, ResourceError
from steadysam.files import read_json, sha256_file, write_json, write_text
from steadysam.loop import batches
from steadysam.methods import METHODS
from steadysam.methods.contract import Chance, StageSettings
from steadysam.runs import build_model, choose_device, load_run
from steadysam.trainable import select_trainable
from steadysam.training import train
from steadysam.training_data import load_training_data
from test_detector import values


@pytest.fixture(scope="module")
def finished(toy_dataset, tmp_path_factory):
    """One trained toy run for the tests that only look at it."""
    stage = {"epochs": 2, "batch_size": 3, "learning_rate": 1e-3}
    values = {
        "data": {"dataset": str(toy_dataset), "label": "blob"},
        "preprocess": {"size": 32},
        "backbone": {"name": "sam-test"},
        "method": {"name": "spd", "adapt": "lora", "stage1": stage, "stage2": stage},
        "compute": {"device": "cpu", "cache": "off", "threads": 1},
    }
    folder = tmp_path_factory.mktemp("runs") / "toy"
    train(make_config(values), folder)
    return values, folder


def results(folder: Path) -> dict[str, str]:
    """Hashes of everything that must not depend on how often a run was interrupted."""
    names = ["weights.safetensors", "logs/saliency-metrics.csv", "logs/decoder-metrics.csv", "config.toml"]
    return {name: sha256_file(folder / name) for name in names}


def test_a_run_folder_tells_everything(finished):
    _, folder = finished
    record = read_json(folder / "run.json")
    assert record["status"] == "finished"
    assert record["weights_sha256"] == sha256_file(folder / "weights.safetensors")
    assert set(record["versions"]) >= {"steadysam", "torch", "transformers", "peft", "python"}
    assert record["data"]["split"]["test"] == ["toy_5"]
    assert len(record["data"]["prompts"]["hash"]) == 64
    assert record["data"]["prompts"]["sources"] == ["simulated"]
    assert len(record["data"]["data_hashes"]) == 5
    assert record["stages"]["saliency"]["epochs"] == 2
    assert (folder / "prompts" / "promptset.json").is_file()
    assert list((folder / "logs" / "tensorboard").rglob("events*"))
    assert make_config(read_config(folder / "config.toml")) == make_config(finished[0])


def test_the_same_command_gives_the_same_bytes(finished, tmp_path):
    values, folder = finished
    train(make_config(values), tmp_path / "again")
    assert results(tmp_path / "again") == results(folder)


@pytest.mark.parametrize("kill_at", ["saliency-2-step", "decoder-1-save", "decoder-2-step", "finish"])
def test_an_interrupted_run_ends_with_the_same_bytes(finished, tmp_path, monkeypatch, kill_at):
    values, folder = finished

    class Killed(BaseException):
        pass

    def raise_at(where, original):
        def wrapped(*args, **kwargs):
            stage = next((a for a in args if isinstance(a, str) and a in ("saliency", "decoder")), "")
            chance = next((a for a in args if isinstance(a, Chance)), None)
            epoch = chance.epoch + 1 if chance else next((a.epoch for a in args if hasattr(a, "epoch")), 0)
            name = chance.stage if chance else stage
            if kill_at == f"{name}-{epoch}-{where}":
                raise Killed
            return original(*args, **kwargs)

        return wrapped

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_train_epoch", raise_at("step", loop._train_epoch))
        patch.setattr(loop, "_save", raise_at("save", loop._save))
        if kill_at == "finish":
            import steadysam.training as module

            patch.setattr(module, "_finish", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            train(make_config(values), tmp_path / "run")
    with pytest.raises(CheckpointError, match="RUN_UNFINISHED"):
        load_run(tmp_path / "run", "cpu")
    train(make_config(values), tmp_path / "run", resume=True)
    assert results(tmp_path / "run") == results(folder)


@pytest.mark.slow
def test_kill_9_and_continue_from_the_command_line(finished, tmp_path):
    """A real kill of a real process, in the middle of training; then `--continue`."""
    values, folder = finished
    write_text(tmp_path / "run.toml", to_toml(values))
    command = [sys.executable, "-m", "steadysam", "train", "--config", str(tmp_path / "run.toml")]
    command += ["-o", str(tmp_path / "run")]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 90
    while not list((tmp_path / "run" / "checkpoints").glob("saliency-*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    subprocess.run([*command, "--continue"], check=True, timeout=120)
    assert results(tmp_path / "run") == results(folder)
    assert not list((tmp_path / "run").rglob(".tmp-*"))


def test_a_finished_run_keeps_the_end_of_its_stages_only(finished):
    names = {path.name for path in (finished[1] / "checkpoints").iterdir()}
    assert names == {f"{stage}.{end}" for stage in ("saliency", "decoder") for end in ("json", "safetensors")}


def test_a_damaged_checkpoint_is_passed_over(finished, tmp_path, monkeypatch):
    values, _ = finished
    monkeypatch.setattr(training, "drop_steps", lambda folder: None)
    train(make_config(values), tmp_path / "run")
    (step,) = (tmp_path / "run" / "checkpoints").glob("decoder-*/")
    content = bytearray((step / "trained.safetensors").read_bytes())
    content[-1] ^= 1
    (step / "trained.safetensors").write_bytes(content)
    assert newest_step(tmp_path / "run" / "checkpoints", "decoder") is None
    assert newest_step(tmp_path / "run" / "checkpoints", "saliency") is not None


def test_stages_train_exactly_their_parameters(toy_values):
    """spd.md section 8, check 2: after a step everything else is unchanged, to the bit."""
    model, settings = build_model(make_config(toy_values))
    groups = {"saliency": ("saliency_head.", "lora_"), "decoder": ("backbone.mask_decoder.",)}
    for stage in METHODS["spd"].stages(settings):
        chosen = select_trainable(model, stage)
        assert chosen
        for name, parameter in model.named_parameters():
            belongs = any(part in name for part in groups[stage.name])
            assert (name in chosen) == belongs == parameter.requires_grad, name
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        optimizer = torch.optim.Adam(chosen.values(), lr=1e-2)
        sum((p.double() ** 2).sum() for p in chosen.values()).backward()  # pyright: ignore
        optimizer.step()
        for name, tensor in model.state_dict().items():
            assert name in chosen or torch.equal(tensor, before[name]), name


def test_stage_2_never_runs_the_encoder(toy_values, tmp_path, monkeypatch):
    from steadysam.backbones.sam import SamBackbone

    calls = []
    original = SamBackbone.encode

    def counted(self, images):
        calls.append(len(images))
        return original(self, images)

    monkeypatch.setattr(SamBackbone, "encode", counted)
    values = apply_settings(toy_values, ["method.stage1.epochs=0", "method.stage2.epochs=5"])
    train(make_config(values), tmp_path / "run")
    assert sum(calls) == 5 * 4  # each slice of each case once, whatever the number of epochs


def test_starting_from_a_run_skips_its_stages(finished, tmp_path):
    values, folder = finished
    more = {**values, "start": {"run": str(folder), "skip": ["saliency"]}}
    more["method"] = {**values["method"], "prompts": "raw", "psc": "none"}
    train(make_config(more), tmp_path / "raw")
    a, b = load_run(folder, "cpu").model.state_dict(), load_run(tmp_path / "raw", "cpu").model.state_dict()
    assert all(torch.equal(a[n], b[n]) for n in a if "mask_decoder" not in n)
    assert any(not torch.equal(a[n], b[n]) for n in a if "mask_decoder" in n)


def test_a_start_must_not_have_seen_what_judges(finished, tmp_path):
    values, folder = finished
    data = {**values["data"], "split_seed": 1}
    more = {**values, "data": data, "start": {"run": str(folder), "skip": ["saliency"]}}
    with pytest.raises(InputError, match="DATA_LEAK_START.*toy_"):
        train(make_config(more), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_copy_of_the_data_set_under_another_name_hides_no_leak(finished, toy_dataset, tmp_path):
    values, folder = finished
    copy = shutil.copytree(toy_dataset, tmp_path / "Dataset777_Copy")
    data = {**values["data"], "dataset": str(copy), "split_seed": 1}
    more = {**values, "data": data, "start": {"run": str(folder), "skip": ["saliency"]}}
    with pytest.raises(InputError, match="DATA_LEAK_START.*toy_"):
        train(make_config(more), tmp_path / "run")


@pytest.mark.parametrize(("launched", "expected"), [(False, [torch.device("cuda:1")]), (True, [])])
def test_the_gpu_that_is_named_is_the_one(monkeypatch, launched, expected):
    """accelerate takes the current one; under a launcher every process has its own."""
    made = []
    monkeypatch.setattr(training, "choose_device", lambda name: torch.device(name))
    monkeypatch.setattr(training, "Accelerator", lambda **given: given)
    monkeypatch.setattr(torch.cuda, "device", lambda device: made.append(device) or nullcontext())
    if launched:
        monkeypatch.setenv("LOCAL_RANK", "0")
    with training.computing(ComputeConfig(device="cuda:1")) as engine:
        assert engine["cpu"] is False  # pyright: ignore
    assert made == expected


def test_batches_deal_every_sample_once_and_keep_the_mean_exact():
    class Numbers:
        def __len__(self):
            return 11

        def batch(self, indices, chance):
            return list(indices)

    settings = StageSettings(batch_size=2)
    chance = Chance(0, "s", 0, training=True)
    seen = []
    for rank in range(3):
        for indices, weight in batches(Numbers(), settings, chance, rank, 3):  # pyright: ignore
            seen += list(indices) if weight else []  # pyright: ignore
    assert sorted(seen) == list(range(11))
    weights = [[w for _, w in batches(Numbers(), settings, chance, r, 3)] for r in range(3)]  # pyright: ignore
    assert np.allclose(np.sum(weights, axis=0), 3)
    assert len({len(w) for w in weights}) == 1


def test_the_loss_must_be_finite(toy_values, tmp_path):
    values = apply_settings(toy_values, ["method.stage1.learning_rate=1e30"])
    with pytest.raises(OutputError, match="NUMERIC_LOSS") as error:
        train(make_config(values), tmp_path / "run")
    assert error.value.exit_code == 10


@pytest.mark.parametrize(
    "setting, code, hint",
    [
        ("method.tua=0.4", "CONFIG_UNKNOWN_KEY", "'tau'"),
        ("method.stage1.epoch=4", "CONFIG_UNKNOWN_KEY", "'epochs'"),
        ("dataa.label=x", "CONFIG_UNKNOWN_KEY", "'data'"),
        ("method.features.image_size=64", "CONFIG_UNKNOWN_KEY", "detector"),
        ("method.features.detector.sice=n", "CONFIG_UNKNOWN_KEY", "'size'"),
        ("method.tau=2", "CONFIG_VALUE", "tau"),
        ("method.n=-1", "CONFIG_VALUE", "n"),
        ("method.psc=sideways", "CONFIG_VALUE", "psc"),
        ("method.tau=nan", "CONFIG_VALUE", "tau"),
        ("method.name=unet9000", "CONFIG_VALUE", "spd"),
        ("compute.threads=two", "CONFIG_VALUE", "threads"),
    ],
)
def test_configuration_faults(toy_values, setting, code, hint):
    with pytest.raises(ConfigError, match=code) as error:
        make_config(apply_settings(toy_values, [setting]))
    assert hint in str(error.value)
    assert error.value.exit_code == 3


def test_settings_need_an_equals_sign(toy_values):
    with pytest.raises(ConfigError, match="CONFIG_SYNTAX"):
        apply_settings(toy_values, ["method.tau"])


def test_bad_toml(tmp_path):
    write_text(tmp_path / "a.toml", "a = = 1")
    with pytest.raises(ConfigError, match="CONFIG_SYNTAX"):
        read_config(tmp_path / "a.toml")
    with pytest.raises(InputError, match="FILE_MISSING"):
        read_config(tmp_path / "b.toml")


def test_toml_round_trip(toy_values, tmp_path):
    values = make_config(toy_values).model_dump(mode="json")
    write_text(tmp_path / "a.toml", to_toml(values))
    assert make_config(read_config(tmp_path / "a.toml")).model_dump(mode="json") == values


def test_from_scratch_encoders_are_adapted_in_full(toy_values):
    del toy_values["method"]["adapt"]
    assert make_config(toy_values).method["adapt"] == "full"
    toy_values["backbone"] = {"name": "sam-vit-base"}
    assert make_config(toy_values).method["adapt"] == "lora"


def test_a_run_is_not_overwritten_nor_resumed_with_other_settings(finished):
    values, folder = finished
    with pytest.raises(FileSystemError, match="FS_EXISTS"):
        train(make_config(values), folder)
    with pytest.raises(ConfigError, match="RESUME_CONFIG_DIFF") as error:
        train(make_config(apply_settings(values, ["method.tau=0.3"])), folder, resume=True)
    assert "method.tau: 0.5 in the run, 0.3 here" in str(error.value)


def test_a_run_goes_on_with_another_spelling_of_its_data_set(finished, tmp_path):
    values, folder = finished
    here = os.path.relpath(values["data"]["dataset"])
    assert train(make_config(apply_settings(values, [f"data.dataset={here}"])), folder, resume=True) == folder
    with pytest.raises(ConfigError, match=r"data\.dataset: .* in the run"):
        train(make_config(apply_settings(values, [f"data.dataset={tmp_path}"])), folder, resume=True)


def test_unknown_device():
    with pytest.raises(ResourceError, match="DEVICE_UNAVAILABLE"):
        choose_device("cuda:77")


@pytest.mark.parametrize(
    "damage, code", [("flip", "CKPT_HASH"), ("cut", "CKPT_"), ("pickle", "CKPT_"), ("gone", "CKPT_")]
)
def test_damaged_weights_are_refused(finished, tmp_path, damage, code):
    import shutil

    folder = tmp_path / "copy"
    shutil.copytree(finished[1], folder)
    weights = folder / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    if damage == "flip":
        content[-3] ^= 4
    elif damage == "cut":
        content = content[:-100]
    else:
        content = bytearray(b"\x80\x04canary")
    weights.unlink() if damage == "gone" else weights.write_bytes(content)
    with pytest.raises(CheckpointError, match=code) as error:
        load_run(folder, "cpu")
    assert error.value.exit_code == 5


def test_not_a_run_folder(tmp_path):
    with pytest.raises(CheckpointError, match="RUN_MISSING"):
        load_run(tmp_path, "cpu")


def test_weights_of_another_architecture_are_refused(finished, tmp_path):
    import shutil

    folder = tmp_path / "copy"
    shutil.copytree(finished[1], folder)
    text = (folder / "config.toml").read_text().replace("size = 32", "size = 64")
    (folder / "config.toml").write_text(text)
    with pytest.raises(CheckpointError, match="CKPT_SHAPE"):
        load_run(folder, "cpu")


def test_empty_data_set_and_unknown_label(toy_values, tmp_path):
    (tmp_path / "empty").mkdir()
    values = apply_settings(toy_values, [f'data.dataset="{tmp_path / "empty"}"'])
    with pytest.raises(InputError, match="DATA_"):
        train(make_config(values), tmp_path / "run")
    with pytest.raises(InputError, match="blob"):
        train(make_config(apply_settings(toy_values, ["data.label=liver"])), tmp_path / "run2")


def test_what_the_target_is_and_how_ct_is_windowed_are_told(toy_values, toy_dataset, tmp_path, caplog):
    caplog.set_level("INFO", "steadysam")
    load_training_data(make_config(toy_values), None)
    assert "4 training, 1 validation and 1 test cases" in caplog.text
    assert "WARNING" not in caplog.text
    shutil.copytree(toy_dataset, tmp_path / "ct")
    info = {**read_json(toy_dataset / "dataset.json"), "channel_names": {"0": "CT"}}
    write_json(tmp_path / "ct" / "dataset.json", {**info, "labels": {"background": 0, "blob": 1, "vein": 2}})
    values = apply_settings(toy_values, [f'data.dataset="{tmp_path / "ct"}"', "data.label=all"])
    load_training_data(make_config(values), None)
    assert "the union of all labels (blob, vein)" in caplog.text
    assert "CT is windowed by percentiles" in caplog.text
    caplog.clear()
    load_training_data(make_config(apply_settings(values, ["preprocess.window=ct:400,40", "data.label=blob"])), None)
    assert "WARNING" not in caplog.text


@pytest.mark.slow
def test_two_processes_train_like_one(finished, tmp_path):
    """Data parallel over gloo on the CPU: the same run as one process with twice the batch, to rounding."""
    values, _ = finished
    stage1, stage2 = dict(values["method"]["stage1"]), dict(values["method"]["stage2"])
    no_dropout = {"rank": 8, "alpha": 16, "dropout": 0.0, "targets": ["qkv"]}
    for batch, name in ((4, "one"), (2, "two")):
        method = {**values["method"], "lora": no_dropout}
        method["stage1"], method["stage2"] = {**stage1, "batch_size": batch}, {**stage2, "batch_size": batch}
        write_text(tmp_path / f"{name}.toml", to_toml({**values, "method": method}))
    train(make_config(read_config(tmp_path / "one.toml")), tmp_path / "one")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", "-m", "steadysam"]
    command += ["train", "--config", str(tmp_path / "two.toml"), "-o", str(tmp_path / "two")]
    subprocess.run(command, check=True, timeout=180, env={**os.environ, "OMP_NUM_THREADS": "1"})
    one, two = (load_run(tmp_path / name, "cpu").model.state_dict() for name in ("one", "two"))
    worst = max(float((one[n].double() - two[n].double()).abs().max()) for n in one)
    assert worst < 2e-3, worst


def test_a_run_that_fails_before_its_first_step_leaves_nothing(toy_dataset, tmp_path):
    """So that the same command, corrected, can run."""
    content = merged(values(toy_dataset, 1), {"method": {"detector": {"min_area": 4000.0}}})
    with pytest.raises(InputError, match="DETECT_NO_OBJECT[\\s\\S]*method.detector.min_area"):
        train(make_config(content), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    write_text(tmp_path / "run" / "logs" / "mine.txt", "not of this run")
    with pytest.raises(InputError, match="DETECT_NO_OBJECT"):
        train(make_config(content), tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").rglob("*")] == ["logs", "mine.txt"]
    train(make_config(values(toy_dataset, 1)), tmp_path / "run")


def test_half_precision_wants_a_gpu(toy_values, tmp_path):
    toy_values["compute"]["precision"] = "fp16"
    with pytest.raises(ConfigError, match="fp16 on a CPU"):
        train(make_config(toy_values), tmp_path / "run")

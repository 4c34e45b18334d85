"""Pretraining on drawn images: a run folder, going on after an interruption, schedules, losses, the held-out score."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator, nn

from steadysam.backbones import BACKBONES, build_backbone
from steadysam.backbones.checkpoints import read_safetensors
from steadysam.backbones.fingerprint import fingerprint
from steadysam.errors import ConfigError, OutputError, SteadyError
from steadysam.files import read_json, sha256_file
from steadysam.pretraining import loop, run
from steadysam.pretraining.batch import Row, draw_batch
from steadysam.pretraining.config import LossConfig, PretrainConfig, make_pretrain_config
from steadysam.pretraining.run import pretrain, start_backbone
from steadysam.pretraining.score import averaged, held_out_score
from steadysam.pretraining.step import PretrainStep, _correct, row_losses
from steadysam.synthetic.config import PromptMix, SceneConfig
from toys import leftovers, steadysam

VALUES = {
    "model": {"name": "steadysam-test"},
    "scene": {"depth": 2, "objects": 4, "regions": 3},
    "optim": {
        **{"steps": 5, "steps_per_epoch": 2, "sizes": [32, 64], "shares": [0.5, 0.5], "images": 4},
        **{"warmup": 2, "rate": 1e-3, "balanced": 4},
    },
    "loss": {"rounds": 2},
    "compute": {"device": "cpu", "threads": 1},
}


def config_of(**changed: Any) -> PretrainConfig:
    """The tiny run, with some keys of some tables changed."""
    return make_pretrain_config({name: {**VALUES.get(name, {}), **changed.get(name, {})} for name in VALUES | changed})


def quicker(patch: pytest.MonkeyPatch) -> None:
    """The score of an epoch is of 4 images instead of 96, and the machine's speed is not measured."""
    patch.setattr(loop, "held_out_score", lambda *arguments: held_out_score(*arguments, images=4))
    patch.setattr(run, "held_out_score", lambda *arguments, images: held_out_score(*arguments, images=4))
    patch.setattr(run, "speed_record", lambda *arguments: {}, raising=False)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch):
    quicker(monkeypatch)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run that was never interrupted; look at it, do not write to it."""
    folder = tmp_path_factory.mktemp("pretrain") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        quicker(patch)
        assert pretrain(config_of(), folder) == folder / "model.safetensors"
    return folder


def stop_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop is interrupted as by Ctrl-C when so many steps are done."""
    real: Callable = loop._one_step
    done: list[int] = []

    def counted(*arguments: Any) -> dict[str, float]:
        if len(done) == steps:
            raise KeyboardInterrupt
        done.append(1)
        return real(*arguments)

    monkeypatch.setattr(loop, "_one_step", counted)


def test_a_run_leaves_configuration_record_logs_snapshots_and_weights(whole: Path):
    names = {path.name for path in whole.iterdir()}
    assert names == {"config.toml", "run.json", "logs", "checkpoints", "snapshots", "model.safetensors"}
    record = read_json(whole / "run.json")
    assert (record["kind"], record["status"]) == ("pretraining", "finished")
    assert record["weights_sha256"] == sha256_file(whole / "model.safetensors")
    assert "torch" in record["versions"]
    rows = list(csv.DictReader((whole / "logs" / "pretrain-metrics.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    for name in ("one", "three", "box", "best_of_three"):
        assert all(0 <= float(row[f"val_{name}"]) <= 1 for row in rows)
    assert all(np.isfinite(float(row[f"train_{name}"])) for row in rows for name in ("loss", "mask", "iou"))
    images = [sum(config_of().optim.images_at(loop.size_at(config_of(), s)) for s in range(n)) for n in (2, 4, 5)]
    assert [float(row["train_images"]) for row in rows] == images
    # the number of epochs doubles: after the first and the second, and not after the third
    expected = [f"{count:09d}.safetensors" for count in images[:2]]
    assert sorted(path.name for path in (whole / "snapshots").iterdir()) == expected
    assert [path.name for path in (whole / "checkpoints").iterdir()] == ["pretrain-00003"]
    assert leftovers(whole) == []


def test_the_configuration_in_the_folder_is_the_one_that_ran(whole: Path):
    from steadysam.config import read_config

    assert make_pretrain_config(read_config(whole / "config.toml")) == config_of()


def test_the_weights_are_in_half_precision_and_load_by_their_path(whole: Path):
    stored = read_safetensors(whole / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    backbone = build_backbone(whole / "model.safetensors", 64)
    start = start_backbone(config_of())
    assert fingerprint(backbone) != fingerprint(start)
    pairs = zip(backbone.parameters(), start.parameters(), strict=True)
    moved = [float((p - q).detach().abs().max()) for p, q in pairs]
    assert max(moved) < 0.05, "five small steps"
    assert sum(m > 1e-4 for m in moved) > len(moved) / 2
    table = "shared_image_embedding.positional_embedding"
    assert torch.equal(stored[table], start.state_dict()[table].half()), "never trained"


@pytest.mark.parametrize("steps", [2, 3, 5])
def test_a_run_that_was_interrupted_ends_with_the_same_bytes(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
):
    """At the end of an epoch, within one, and between the last checkpoint and the weights (here: after the end)."""
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_after(steps, patch)
        if steps < 5:
            with pytest.raises(KeyboardInterrupt):
                pretrain(config_of(), folder)
            assert read_json(folder / "run.json")["status"] == "training"
            assert not (folder / "model.safetensors").exists()
        else:
            pretrain(config_of(), folder)
            (folder / "model.safetensors").unlink()
    with monkeypatch.context() as patch:
        stop_after(5 - steps // 2 * 2 if steps < 5 else 0, patch)  # no step is taken twice, but those of a lost epoch
        pretrain(config_of(), folder, resume=True)
    for name in ("model.safetensors", "logs/pretrain-metrics.csv", "config.toml"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
    assert sorted(p.name for p in (folder / "snapshots").iterdir()) == sorted(
        p.name for p in (whole / "snapshots").iterdir()
    )


def test_an_existing_folder_and_another_configuration_are_refused(whole: Path):
    before = sha256_file(whole / "model.safetensors")
    with pytest.raises(SteadyError) as error:
        pretrain(config_of(), whole)
    assert error.value.code == "FS_EXISTS"
    with pytest.raises(ConfigError) as error:
        pretrain(config_of(optim={"rate": 2e-3}), whole, resume=True)
    assert error.value.code == "RESUME_CONFIG_DIFF"
    assert "optim.rate: 0.001 in the run, 0.002 here" in str(error.value)
    assert sha256_file(whole / "model.safetensors") == before


@pytest.mark.parametrize(
    ("values", "code", "said"),
    [
        ({"optim": {"step": 3}}, "CONFIG_UNKNOWN_KEY", "did you mean 'steps'"),
        ({"scene": {"lookalike": 0.1}}, "CONFIG_UNKNOWN_KEY", "did you mean 'lookalikes'"),
        ({"promts": {}}, "CONFIG_UNKNOWN_KEY", "did you mean 'prompts'"),
        ({"optim": {"steps": 0}}, "CONFIG_VALUE", "optim.steps"),
        ({"optim": {"sizes": [32], "shares": [0.5, 0.5]}}, "CONFIG_VALUE", "one number"),
        ({"optim": {"sizes": [32], "shares": [0]}}, "CONFIG_VALUE", "one number"),
        ({"compute": {"precision": "double"}}, "CONFIG_VALUE", "compute.precision"),
    ],
)
def test_configurations_that_cannot_be_used(values: dict, code: str, said: str):
    with pytest.raises(ConfigError) as error:
        make_pretrain_config(values)
    assert error.value.code == code
    assert said in str(error.value)


@pytest.mark.parametrize("name", ["sam-test", "sam-vit-base", "nothing"])
def test_only_our_own_rows_are_pretrained(name: str, tmp_path: Path):
    with pytest.raises(ConfigError) as error:
        pretrain(config_of(model={"name": name}), tmp_path / "run")
    assert error.value.code == "CONFIG_VALUE"
    assert "steadysam-test" in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_start_from_other_weights(whole: Path):
    start = start_backbone(config_of(model={"start": str(whole / "model.safetensors")}))
    assert fingerprint(start) == fingerprint(build_backbone(whole, 32))
    assert all(p.requires_grad and p.dtype == torch.float32 for p in start.parameters())


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    real = PretrainStep.forward
    calls: list[int] = []

    def spoilt(self: PretrainStep, *arguments: Any) -> dict[str, torch.Tensor]:
        calls.append(1)
        terms = real(self, *arguments)
        return terms if len(calls) < 4 else {**terms, "loss": terms["loss"] * float("nan")}

    monkeypatch.setattr(PretrainStep, "forward", spoilt)
    with pytest.raises(OutputError) as error:
        pretrain(config_of(), tmp_path / "run")
    assert error.value.code == "NUMERIC_LOSS"
    assert "step 4" in str(error.value)
    progress = loop.newest_step(tmp_path / "run" / "checkpoints", loop.STAGE)
    assert progress is not None
    assert progress.numbers["step"] == 2
    assert all(torch.isfinite(tensor).all() for tensor in progress.trained.values())
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_the_rate_rises_stays_and_falls():
    """Of 100 steps 10 warm up and the last 20 fall to zero."""
    optim = config_of(optim={"steps": 100, "warmup": 10, "decay": 0.2, "rate": 2.0}).optim
    by_hand = {0: 0.2, 4: 1.0, 9: 2.0, 10: 2.0, 50: 2.0, 80: 2.0, 85: 1.5, 90: 1.0, 99: 0.1}
    assert {step: loop.rate_at(optim, step) for step in by_hand} == pytest.approx(by_hand)
    flat = config_of(optim={"steps": 100, "warmup": 0, "decay": 0, "rate": 2.0}).optim
    assert {loop.rate_at(flat, step) for step in range(100)} == {2.0}


def test_sizes_follow_their_shares_and_depend_on_seed_and_step_only():
    config = config_of(optim={"sizes": [32, 64, 96], "shares": [3, 1, 0]})
    sizes = [loop.size_at(config, step) for step in range(2000)]
    assert sizes == [loop.size_at(config, step) for step in range(2000)]
    assert sizes.count(32) / 2000 == pytest.approx(0.75, abs=0.03)
    assert sizes.count(96) == 0
    other = config.model_copy(update={"compute": config.compute.model_copy(update={"seed": 1})})
    assert [loop.size_at(other, step) for step in range(2000)] != sizes


def test_large_images_come_in_proportionally_smaller_batches():
    optim = config_of(optim={"images": 8}).optim
    assert (optim.images_at(32), optim.images_at(64), optim.images_at(128)) == (8, 2, 1)


def test_every_step_process_and_seed_draws_numbers_of_its_own():
    config = config_of()
    seeds = {loop.step_generator(config, s, p, torch.device("cpu")).initial_seed() for s in range(50) for p in range(4)}
    assert len(seeds) == 200
    again = loop.step_generator(config, 7, 1, torch.device("cpu")).initial_seed()
    assert again in seeds


def square(size: int = 16) -> torch.Tensor:
    target = torch.zeros(1, size, size)
    target[:, 4:10, 3:12] = 1
    return target


def losses(
    logits: torch.Tensor, iou: torch.Tensor, target: torch.Tensor, present: bool = True, share: float = 1.0
) -> tuple[torch.Tensor, ...]:
    return row_losses(logits, iou, target, torch.tensor([present]), share, LossConfig())


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_perfect_answer_costs_nothing(share: float):
    target = square()
    logits = ((target * 2 - 1) * 30)[:, None].repeat(1, 4, 1, 1)
    mask, error, quality = losses(logits, torch.ones(1, 4), target, share=share)
    assert float(mask) < 1e-4
    assert float(error) == 0, "the IoU to be predicted is 1"
    assert float(quality) == 1
    wrong, error, quality = losses(-logits, torch.ones(1, 4), target, share=share)
    assert float(wrong) > 1
    assert float(error) == 1
    assert float(quality) == 0


def test_of_three_masks_the_best_counts_and_the_first_always():
    target = square()
    good, bad = (target * 2 - 1) * 30, (1 - target * 2) * 30
    iou = torch.tensor([[0.0, 0.1, 0.9, 0.2]])
    one_good = torch.stack([good, bad, good, bad], 1)
    mask, error, quality = losses(one_good, iou, target)
    assert float(mask) < 1e-4
    # IoUs are 1, 0, 1, 0: errors 1, 0.1, 0.1, 0.2
    assert float(error) == pytest.approx((1 + 0.01 + 0.01 + 0.04) / 4)
    assert float(quality) == 1
    first_bad = torch.stack([bad, bad, good, bad], 1)
    assert float(losses(first_bad, iou, target)[0]) > 1
    trusted_bad = losses(one_good, iou.flip(1), target)
    assert float(trusted_bad[2]) == 0, "0.9 is said of a mask that is wrong"


def test_half_a_mask_by_hand():
    """Logits of 0 in 16 x 16 pixels of which 54 are the target's: p = 1/2, entropy log 2, |p - t| = 1/2 everywhere."""
    target, logits = square(), torch.zeros(1, 4, 16, 16)
    focal = 0.25 * np.log(2)
    dice = 1 - (2 * 27 + 1) / (128 + 54 + 1)
    assert float(losses(logits, torch.zeros(1, 4), target)[0]) == pytest.approx(2 * (20 * focal + dice), rel=1e-5)
    balanced = 2 * np.log(2)  # half of each class's mean entropy, for the clear mask and for the best of three
    assert float(losses(logits, torch.zeros(1, 4), target, share=0)[0]) == pytest.approx(balanced, rel=1e-4)


def test_an_absent_object_teaches_the_iou_only():
    target = torch.zeros(2, 16, 16)
    target[:1] = square()
    logits = torch.randn(2, 4, 16, 16, generator=Generator().manual_seed(0)).requires_grad_()
    iou = torch.full((2, 4), 0.5, requires_grad=True)
    mask, error, _ = row_losses(logits, iou, target, torch.tensor([True, False]), 1.0, LossConfig())
    alone = row_losses(logits[:1], iou[:1], target[:1], torch.tensor([True]), 1.0, LossConfig())
    assert float(mask.detach()) == pytest.approx(float(alone[0].detach()))
    (mask + error).backward()
    assert logits.grad is not None
    assert iou.grad is not None
    assert logits.grad[1].abs().max() == 0
    assert logits.grad[0].abs().max() > 0
    assert (iou.grad[1] > 0).all(), "it must be said that this mask is poor"
    nobody = row_losses(
        logits.detach(), iou.detach(), torch.zeros(2, 16, 16), torch.zeros(2, dtype=torch.bool), 1.0, LossConfig()
    )
    assert float(nobody[0]) == float(nobody[2]) == 0


def test_corrections_go_into_the_larger_mistake():
    """Missed: 6 x 9 pixels; marked wrongly: 2 x 2. Then the other way round, no mistake, and nothing at all."""
    target = torch.zeros(4, 16, 16, dtype=torch.bool)
    target[:3] = square()[0] > 0
    answer = torch.full((4, 1, 16, 16), -5.0)
    answer[0, 0, 13:15, 13:15] = 5
    answer[1, 0, 4:10, 3:12] = 5
    answer[1, 0, 12:15, 12:15] = 5
    answer[2] = (target[2].float() * 2 - 1) * 5
    xy, positive = torch.zeros(4, 1, 2), torch.zeros(4, 1, dtype=torch.bool)
    for seed in range(5):
        moved, sign = _correct(Generator().manual_seed(seed), xy, positive, answer, target)
        assert moved.shape == (4, 2, 2)
        assert torch.equal(moved[:, :1], xy)
        assert sign[:, 1].tolist() == [True, False, True, True]
        x, y = moved[:, 1].long().unbind(-1)
        assert target[0, y[0], x[0]]
        assert 12 <= x[1] < 15
        assert 12 <= y[1] < 15
        assert target[2, y[2], x[2]], "without a mistake into the object"


def test_a_step_learns_what_it_is_shown():
    """A few steps on one batch: loss falls, and every part that is to be trained moves."""
    backbone = build_backbone("steadysam-test", 32, seed=0)
    step = PretrainStep(backbone, LossConfig(rounds=2), BACKBONES["steadysam-test"].norm).train()
    before = {name: p.detach().clone() for name, p in backbone.named_parameters()}
    batch = draw_batch(Generator().manual_seed(4), 4, 32, SceneConfig(objects=4, regions=3), PromptMix(boxes=1), 2)
    optimizer = torch.optim.Adam(backbone.parameters(), lr=3e-3)
    seen: list[float] = []
    for _ in range(12):
        terms = step(batch, Generator().manual_seed(0), 0.0)
        values = {name: float(value.detach()) for name, value in terms.items()}
        loss = values.pop("loss")
        assert loss == pytest.approx(sum(value for name, value in values.items() if not name.startswith("dice")))
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        seen.append(loss)
    assert np.mean(seen[-3:]) < 0.8 * np.mean(seen[:3])
    still = {name for name, p in backbone.named_parameters() if torch.equal(p, before[name])}
    # of three masks only the best is taught
    assert {name for name in still if not name.startswith("mask_decoder.hyper.")} == set()


def test_rounds_of_a_row_are_counted_and_named():
    backbone = build_backbone("steadysam-test", 32, seed=0)
    step = PretrainStep(backbone, LossConfig(rounds=3), "spd")
    target = torch.zeros(2, 32, 32, dtype=torch.bool)
    target[:, 8:20, 8:20] = True
    xy, positive = torch.full((2, 1, 2), 12.0), torch.ones(2, 1, dtype=torch.bool)
    boxes = torch.tensor([[8.0, 8, 19, 19]]).expand(2, -1)
    images = torch.rand(2, 3, 32, 32, generator=Generator().manual_seed(0))
    rows = (Row(target, xy, positive, None, 2), Row(target, xy[:, :0], positive[:, :0], boxes, 0))
    drawn = draw_batch(Generator().manual_seed(0), 2, 32, SceneConfig(depth=1, objects=3), PromptMix(), 1)
    terms = step(replace(drawn, images=images, rows=rows), Generator().manual_seed(0), 1.0)
    assert {name for name in terms if name.startswith("dice")} == {"dice0", "dice1", "dice2", "dice_other"}
    assert set(terms) >= {"loss", "mask", "iou"}
    assert all(torch.isfinite(value) for value in terms.values())


def test_the_score_leaves_the_model_as_it_was():
    backbone = build_backbone("steadysam-test", 64, seed=0).train()
    before = fingerprint(backbone)
    average = {name: p.detach() * 0.5 for name, p in backbone.named_parameters()}
    with averaged(backbone, average):
        assert not backbone.training
        assert all(torch.equal(p, average[name]) for name, p in backbone.named_parameters())
        score = held_out_score(backbone, SceneConfig(objects=3, regions=2), 32, "spd", images=5)
        again = held_out_score(backbone, SceneConfig(objects=3, regions=2), 32, "spd", images=5)
    assert score == again
    assert set(score) == {"one", "one_other_image", "three", "box", "best_of_three", "iou_error"}
    assert all(0 <= score[name] <= 1 for name in ("one", "three", "box", "best_of_three"))
    assert score["best_of_three"] >= score["one"]
    assert fingerprint(backbone) == before
    assert backbone.training
    assert (backbone.image_size, backbone.embedding_size, backbone.mask_size) == (64, 16, 32)


def test_averaged_weights_are_taken_back_after_an_error():
    model = build_backbone("steadysam-test", 32, seed=0)
    before = fingerprint(model)
    with pytest.raises(RuntimeError), averaged(model, {n: p * 2 for n, p in model.named_parameters()}):
        raise RuntimeError
    assert fingerprint(model) == before


def test_the_average_follows_quickly_at_first():
    """Decays are 1/10, 2/11, then at most `decay`: 0 -> 0.9 of 1 -> 2/11 of 0.9 and 9/11 of 1."""
    parameter, average = nn.Parameter(torch.ones(1)), {"w": torch.zeros(1)}
    loop._follow(average, {"w": parameter}, 0.998, 0)
    assert float(average["w"]) == pytest.approx(0.9)
    loop._follow(average, {"w": parameter}, 0.998, 1)
    assert float(average["w"]) == pytest.approx(0.9 * 2 / 11 + 9 / 11)
    late = {"w": torch.zeros(1)}
    loop._follow(late, {"w": parameter}, 0.998, 10**6)
    assert float(late["w"]) == pytest.approx(0.002)


def test_the_command_draws_a_sheet_and_trains_nothing(tmp_path: Path):
    small = ["--set", "scene.objects=3", "--set", "scene.regions=2"]
    assert steadysam("pretrain", "--sheet", tmp_path / "a.png", *small) == 0
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_the_command_says_what_is_missing_or_unknown(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert steadysam("pretrain") == 2
    assert "OUTPUT_MISSING" in capsys.readouterr().err
    assert steadysam("pretrain", "-o", tmp_path / "run", "--set", "optim.stepss=3") == 3
    assert "did you mean 'steps'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()

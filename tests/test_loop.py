"""The loop on a method of a few numbers: batch norm, averaged weights, two rates, a schedule, a teacher that goes."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn

from steadysam import averaging, config, loop, runs, training, training_data
from steadysam.averaging import Averaged, decay_at
from steadysam.backbones.checkpoints import read_safetensors
from steadysam.checkpoints import newest_step
from steadysam.config import make_config, read_config
from steadysam.errors import ConfigError, OutputError
from steadysam.files import read_json, sha256_file
from steadysam.methods import METHODS
from steadysam.methods.contract import Batch, FrozenConfig, Stage, StageSettings, Traits
from steadysam.optimisation import set_rate
from steadysam.runs import load_run
from steadysam.trainable import select_trainable, stage_buffers
from steadysam.training import train

EPOCHS = 4


class Settings(FrozenConfig):
    """`fixed` is the stage's `fixed_statistics`."""

    ema: float = 0.999
    fixed: bool | tuple[str, ...] = False
    schedule: str = "linear"
    select_by: str = "loss"
    epochs: int = EPOCHS
    slices_per_epoch: int = 0
    needs_validation: bool = False
    detail_size: int = 40


class Part(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.SiLU())
        self.head = nn.Conv2d(3, 1, 1)
        self.register_buffer("table", torch.arange(3.0), persistent=False)

    def forward(self, images):
        return self.head(self.body(images))


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.student, self.teacher, self.scale = Part(), Part(), nn.Parameter(torch.ones(()))

    def release(self) -> None:
        self.teacher = None


class Material:
    """Images and masks as they are."""

    def __init__(self, cases):
        self.rows = [(case, t) for case in cases for t in range(case.stack.depth)]

    def __len__(self):
        return len(self.rows)

    def batch(self, indices, chance):
        rows = [self.rows[i] for i in indices]
        images = torch.stack([torch.from_numpy(case.stack.detail[t]).float() / 255 for case, t in rows])
        masks = torch.stack([torch.from_numpy(case.detail_masks[t][None].astype(np.float32)) for case, t in rows])
        return Batch({"images": images + (chance.epoch * 0.01 if chance.training else 0), "masks": masks})


def stages(own: Any) -> tuple[Stage, ...]:
    settings = StageSettings(
        optimizer="sgd", schedule=own.schedule, momentum=0.9, epochs=own.epochs, batch_size=5,
        learning_rate=0.05, warmup_steps=5, patience=0, early_stop=50, select_by=own.select_by,
        slices_per_epoch=own.slices_per_epoch,
    )  # fmt: skip

    def losses(name: str):
        def of(model, batch):
            made = model.scale * getattr(model, name)(batch.tensors["images"])
            return {"bce": nn.functional.binary_cross_entropy_with_logits(made, batch.tensors["masks"])}

        return of

    def material(model, cases, cache):
        return Material(cases)

    more = {"ema": own.ema, "fixed_statistics": own.fixed, "needs_validation": own.needs_validation}
    return (
        Stage("teacher", ("teacher.*",), material, losses("teacher"), settings),
        Stage("student", ("student.*", "scale"), material, losses("student"), settings, {"*.body.*": 0.1}, **more),
    )


@pytest.fixture(autouse=True, scope="module")
def method():
    module = SimpleNamespace(
        Config=Settings,
        build=lambda own, backbone: Toy(),
        stages=stages,
        TRAITS=Traits(points=False, backbone=False),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(averaging, "RAMP", 8)  # else averages of so few steps are the weights themselves
        for user in (config, runs, training, training_data):
            patch.setattr(user, "METHODS", {**METHODS, "toy": module})
        yield


def run(
    dataset: Path,
    folder: Path,
    resume: bool = False,
    start: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    **method: Any,
) -> Path:
    values = {
        "data": {"dataset": str(dataset), "label": "blob", **(data or {})},
        "preprocess": {"size": 16},
        "method": {"name": "toy", **method},
        "compute": {"device": "cpu", "cache": "off", "threads": 1},
        "start": start or {},
    }
    return train(make_config(values), folder, resume=resume)


def rates(folder: Path, stage: str = "student") -> list[float]:
    rows = (folder / "logs" / f"{stage}-metrics.csv").read_text().splitlines()[1:]
    return [float(row.split(",")[1]) for row in rows]


@pytest.fixture(scope="module", autouse=True)
def steps_stay():
    """Those of the last epoch are looked at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "drop_steps", lambda folder: None)
        yield


@pytest.fixture(scope="module", params=["linear"])
def finished(request, method, toy_dataset, tmp_path_factory):
    """A whole run; look at it, do not write to it."""
    return run(toy_dataset, tmp_path_factory.mktemp("runs") / "whole", schedule=request.param)


def test_buffers_belong_to_the_stage(finished):
    held = read_safetensors(finished / "checkpoints" / "student.safetensors")
    assert held["student.body.1.num_batches_tracked"].dtype == torch.int64
    assert set(held) == {name for name in Toy().state_dict() if name.startswith(("student.", "scale"))}
    weights = read_safetensors(finished / "weights.safetensors")
    assert all(torch.equal(weights[name], value) for name, value in held.items())
    assert not torch.equal(held["student.body.1.running_mean"], torch.zeros(3))


def test_best_weights_go_with_the_statistics_of_their_epoch(finished):
    record = read_json(finished / "run.json")["stages"]["student"]
    counted = read_safetensors(finished / "checkpoints" / "student.safetensors")["student.body.1.num_batches_tracked"]
    assert int(counted) == record["best_epoch"] * 4  # 16 training slices in batches of 5


def test_the_stage_ends_with_averages(finished):
    step = newest_step(finished / "checkpoints", "student")
    assert step is not None
    assert step.numbers["updates"] == EPOCHS * 4
    assert set(step.averaged) == {name for name, _ in Toy().named_parameters() if not name.startswith("teacher")}
    assert step.numbers["best_epoch"] == EPOCHS
    for name, value in step.averaged.items():
        assert torch.equal(step.best[name], value)
    assert any(not torch.equal(step.trained[name], value) for name, value in step.averaged.items())
    teacher = newest_step(finished / "checkpoints", "teacher")
    assert teacher is not None
    assert teacher.averaged == {}


def test_one_epoch_of_averages_by_hand(toy_dataset, tmp_path, monkeypatch):
    seen = []
    follow = Averaged.update

    def watched(self):
        follow(self)
        if self.decay:
            seen.append(float(self.tensors["scale"].detach()))

    monkeypatch.setattr(Averaged, "update", watched)
    folder = run(toy_dataset, tmp_path / "run", epochs=1)
    average = 1.0
    for update, value in enumerate(seen, 1):
        share = decay_at(0.999, update)
        average = share * average + (1 - share) * value
    found = float(read_safetensors(folder / "weights.safetensors")["scale"])
    assert found == pytest.approx(average, abs=1e-6)
    assert abs(found - seen[-1]) > 1e-7


@pytest.mark.parametrize("schedule, end", [("linear", 0.05 * (0.25 * 0.99 + 0.01)), ("cosine", 0.05 * (0.145 + 0.01))])
def test_the_schedules_fall_from_epoch_to_epoch(toy_dataset, tmp_path, schedule, end):
    found = rates(run(toy_dataset, tmp_path / "run", schedule=schedule, ema=0))
    assert found[0] == 0.05
    assert found[-1] == pytest.approx(end, rel=2e-3)
    assert found == sorted(found, reverse=True)


@pytest.mark.parametrize("finished", ["linear", "plateau"], indirect=True)
@pytest.mark.parametrize("where", ["student-2-step", "student-2-save", "teacher-1-save"])
def test_a_killed_run_ends_with_the_same_bytes(toy_dataset, finished, tmp_path, monkeypatch, where):
    schedule = read_config(finished / "config.toml")["method"]["schedule"]
    stage, epoch, place = where.split("-")
    name = {"step": "_validate", "save": "_save"}[place]
    original = getattr(loop, name)

    class Killed(BaseException):
        pass

    def killing(*args, **kwargs):
        at = next((a for a in args if isinstance(a, loop.StageState)), None)
        here = next(a.name if isinstance(a, Stage) else a for a in args if isinstance(a, Stage | str))
        calls.append(here)
        if here == stage and (at.epoch if at else calls.count(stage)) == int(epoch):
            raise Killed
        return original(*args, **kwargs)

    calls: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(loop, name, killing)
        with pytest.raises(Killed):
            run(toy_dataset, tmp_path / "cut", schedule=schedule)
    run(toy_dataset, tmp_path / "cut", resume=True, schedule=schedule)
    names = ["weights.safetensors", "checkpoints/student.safetensors", "checkpoints/teacher.safetensors"]
    names += [f"logs/{stage}-metrics.csv" for stage in ("teacher", "student")]
    for name in names:
        assert sha256_file(tmp_path / "cut" / name) == sha256_file(finished / name), name
    steps = [newest_step(folder / "checkpoints", "student") for folder in (tmp_path / "cut", finished)]
    assert steps[0] is not None
    assert steps[1] is not None
    assert steps[0].numbers == steps[1].numbers
    for kind in ("trained", "best", "optimizer", "averaged"):
        a, b = getattr(steps[0], kind), getattr(steps[1], kind)
        assert list(a) == list(b)
        assert all(torch.equal(a[key], b[key]) for key in a), kind


def test_fewer_checkpoints_change_no_result(toy_dataset, finished, tmp_path, monkeypatch):
    """Killed with none but the first stage's: the second starts anew, and its log with it."""
    original, saves, validated = loop.save_step, [], []

    def counted(folder, stage, epoch, *rest):
        saves.append((stage, epoch))
        return original(folder, stage, epoch, *rest)

    def killing(step_module, stage, *rest):
        validated.append(stage.name)
        if validated.count("student") == 3 and len(validated) == validated.count("teacher") + 3:
            raise KeyboardInterrupt
        return validate(step_module, stage, *rest)

    validate = loop._validate
    monkeypatch.setattr(loop, "SAVE_SECONDS", 3600)
    monkeypatch.setattr(loop, "save_step", counted)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "_validate", killing)
        with pytest.raises(KeyboardInterrupt):
            run(toy_dataset, tmp_path / "run", schedule="linear")
    run(toy_dataset, tmp_path / "run", resume=True, schedule="linear")
    assert [stage for stage, _ in saves] == ["teacher", "student"]
    for name in ("weights.safetensors", "logs/student-metrics.csv"):
        assert sha256_file(tmp_path / "run" / name) == sha256_file(finished / name), name


def test_what_only_training_needs_is_dropped(finished):
    weights = read_safetensors(finished / "weights.safetensors")
    assert not any(name.startswith("teacher.") for name in weights)
    model = load_run(finished, "cpu").model
    assert model.teacher is None
    assert read_json(finished / "run.json")["parameters"] == sum(p.numel() for p in model.parameters())


def test_another_run_takes_the_stage_with_its_buffers(toy_dataset, finished, tmp_path):
    start = {"run": str(finished), "skip": ["teacher", "student"]}
    other = run(toy_dataset, tmp_path / "other", start=start)
    assert sha256_file(other / "weights.safetensors") == sha256_file(finished / "weights.safetensors")


@pytest.mark.parametrize("fixed, still", [(False, False), (True, True), (("student.body.*",), True), (("x",), False)])
def test_fixed_statistics(toy_dataset, tmp_path, fixed, still):
    folder = run(toy_dataset, tmp_path / "run", fixed=fixed, epochs=1)
    weights = read_safetensors(folder / "weights.safetensors")
    assert torch.equal(weights["student.body.1.running_mean"], torch.zeros(3)) == still
    assert not torch.equal(weights["student.body.1.weight"], torch.ones(3))


def a_stage(*patterns: str, **more: Any) -> Stage:
    return Stage("s", patterns, *(None,) * 3, **more)  # pyright: ignore


@pytest.mark.parametrize(
    "patterns, training",
    [
        (("*",), {"", "student", "student.body", "student.head", "teacher", "teacher.body", "teacher.head"}),
        (("student.*",), {"student", "student.body", "student.head"}),
        (("student.body.*", "student.head.*"), {"student.body", "student.head"}),
        (("student.bo*",), {"student.body"}),
        (("scale",), set()),
    ],
)
def test_modules_below_the_head_of_a_pattern_are_in_train_mode(patterns, training):
    model = Toy()
    select_trainable(model, a_stage(*patterns))
    parts = {n for n, m in model.named_modules() if m.training and not n.split(".")[-1].isdigit()}
    assert parts == training
    assert model.student.body[1].training == any("student.body" in name for name in training)


def test_statistics_below_a_pattern_of_weights_belong_to_its_stage():
    names = {f"student.body.1.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
    assert set(stage_buffers(Toy(), a_stage("student.body.*weight"))) == names
    assert set(stage_buffers(Toy(), a_stage("student.head.*"))) == set()
    assert set(stage_buffers(Toy(), a_stage("student.*"))) == names, "tables that are not stored are not of the stage"


def test_statistics_are_followed_into_tensors_that_replace_them(toy_dataset, finished, tmp_path, monkeypatch):
    """`Module.to` replaces buffers on the way to another device, or to `cpu:0` in a run of several processes."""
    prepare = Accelerator.prepare

    def moved(self, *given):
        given[0]._apply(torch.clone)
        return prepare(self, *given)

    monkeypatch.setattr(Accelerator, "prepare", moved)
    other = run(toy_dataset, tmp_path / "moved")
    a, b = (newest_step(folder / "checkpoints", "student") for folder in (other, finished))
    assert a is not None
    assert b is not None
    for kind in ("trained", "best"):
        assert all(torch.equal(getattr(a, kind)[name], value) for name, value in getattr(b, kind).items()), kind


@pytest.mark.parametrize("schedule", ["linear", "plateau"])
def test_warm_up_and_schedule_scale_both_groups(toy_dataset, tmp_path, monkeypatch, schedule):
    seen = []

    def noted(optimizer, rate):
        set_rate(optimizer, rate)
        seen.append([group["lr"] for group in optimizer.param_groups])

    monkeypatch.setattr(loop, "set_rate", noted)
    folder = run(toy_dataset, tmp_path / "run", schedule=schedule)
    head, body = np.array(seen[EPOCHS * 4 :]).T  # (steps,) each; the teacher's steps come first, with one rate
    assert {len(group) for group in seen[: EPOCHS * 4]} == {1}
    assert np.allclose(body, 0.1 * head, rtol=1e-12) or np.allclose(head, 0.1 * body, rtol=1e-12)
    top, of_epoch = np.maximum(head, body), np.repeat(rates(folder), 4)
    assert np.allclose(top[:5], of_epoch[:5] * np.arange(1, 6) / 5)
    assert np.allclose(top[5:], of_epoch[5:])


@pytest.mark.parametrize(("select_by", "best"), [("loss", EPOCHS), ("dice", 2)])
def test_the_epoch_is_the_best_one_in_what_selects(toy_dataset, tmp_path, monkeypatch, select_by, best):
    told = {"loss": iter([4.0, 3.0, 2.0, 1.0] * 2), "dice": iter([0.5, 0.2, 0.3, 0.4] * 2)}
    monkeypatch.setattr(loop, "_validate", lambda *_: {name: next(values) for name, values in told.items()})
    folder = run(toy_dataset, tmp_path / "run", select_by=select_by)
    record = read_json(folder / "run.json")["stages"]["student"]
    assert (record["best_epoch"], record["best_loss"]) == (best, {"loss": 1.0, "dice": 0.2}[select_by])
    assert record.get("selected_by", "loss") == select_by
    step = newest_step(folder / "checkpoints", "student")
    assert step is not None
    counted = step.best["student.body.1.num_batches_tracked"]
    assert int(counted) == best * 4, "the weights are those of that epoch"


def test_a_term_that_is_not_there_cannot_select(toy_dataset, tmp_path):
    with pytest.raises(ConfigError, match=r"stage 'teacher' can't select its epoch by 'dice'") as caught:
        run(toy_dataset, tmp_path / "run", select_by="dice")
    assert caught.value.expected == "one of loss, bce"


def test_warm_up_counts_whole_epochs(toy_dataset, tmp_path, monkeypatch):
    """16 slices in batches of 5 are 4 steps; after an epoch cut to 2 of them the next starts at the fifth even so."""
    seen = []
    monkeypatch.setattr(loop, "set_rate", lambda optimizer, rate: seen.append(rate))
    found = rates(run(toy_dataset, tmp_path / "run", slices_per_epoch=10))
    assert np.allclose(seen[EPOCHS * 2 :], np.repeat(found, 2) * [0.2, 0.4, 1, 1, 1, 1, 1, 1])


def chosen_epoch(folder: Path) -> int:
    return read_json(folder / "run.json")["stages"]["student"]["best_epoch"]


@pytest.mark.parametrize(("needed", "best"), [(False, 2), (True, EPOCHS)])
def test_without_validation_cases(toy_dataset, tmp_path, monkeypatch, needed, best):
    """The training losses choose, unless the stage says that they can't: then the last epoch is taken."""
    told = iter([3.0, 1.0, 2.0, 4.0] * 2)
    monkeypatch.setattr(loop, "_train_epoch", lambda *_: {"loss": next(told)})
    fractions = {"fractions": [0.8, 0.0, 0.2]}
    folder = run(toy_dataset, tmp_path / "run", data=fractions, needs_validation=needed, ema=0)
    assert read_json(folder / "run.json")["data"]["split"]["val"] == []
    assert chosen_epoch(folder) == best


def test_validation_cases_without_a_slice_of_use(toy_dataset, tmp_path, monkeypatch):
    """Such as those of box prompts where no validation slice holds the target."""
    told = iter([3.0, 1.0, 2.0, 4.0] * 2)
    train_epoch = loop._train_epoch
    monkeypatch.setattr(loop, "_train_epoch", lambda *given: {**train_epoch(*given), "loss": next(told)})
    monkeypatch.setattr(Material, "__len__", lambda self: len(self.rows) if len(self.rows) > 4 else 0)
    assert chosen_epoch(run(toy_dataset, tmp_path / "run")) == 2


@pytest.mark.parametrize(("steps", "told"), [(8, False), (9, True)])
def test_a_warm_up_that_takes_most_of_the_training_is_told_of(caplog, steps, told):
    settings = StageSettings(epochs=4, batch_size=4, warmup_steps=steps)
    loop._warn_of_rate("masks", settings, 29, 2)  # 4 epochs of 4 steps
    assert ("stage masks: the rate grows for 9 steps, and there are 16" in caplog.text) == told


@pytest.mark.parametrize(("optimizer", "rate", "told"), [("sgd", 0.16, 0), ("adamw", 0.002, 0), ("adamw", 0.16, 1)])
def test_a_rate_of_another_optimizer_is_told_of(caplog, optimizer, rate, told):
    """The detector's recipe is SGD at 0.16; `optimizer` alone leaves that."""
    loop._warn_of_rate("student", StageSettings(optimizer=optimizer, learning_rate=rate), 29, 1)
    assert caplog.text.count("stage student: a learning rate of 0.16 is one for SGD") == told


@pytest.mark.parametrize("schedule", ["linear", "plateau"])
def test_an_epoch_whose_validation_is_no_number_is_not_the_best(toy_dataset, tmp_path, monkeypatch, caplog, schedule):
    """And the checkpoint of that time can be gone on from."""
    told = [math.nan, math.inf, 2.0, 3.0] * 2
    values = iter(told)
    monkeypatch.setattr(loop, "_validate", lambda *_: {"loss": next(values)})
    whole = run(toy_dataset, tmp_path / "whole", schedule=schedule)
    assert chosen_epoch(whole) == 3
    assert read_json(whole / "run.json")["stages"]["student"]["best_loss"] == 2.0
    assert caplog.text.count("is not finite") == 4, "two of each stage"

    class Killed(BaseException):
        pass

    values = iter([*told[:6], Killed])
    monkeypatch.setattr(loop, "_validate", lambda *_: {"loss": killed_or(next(values))})

    def killed_or(value):
        if value is Killed:
            raise Killed
        return value

    with pytest.raises(Killed):
        run(toy_dataset, tmp_path / "cut", schedule=schedule)
    step = newest_step(tmp_path / "cut" / "checkpoints", "student")
    assert step is not None
    assert (step.numbers["epoch"], step.numbers["best_loss"], step.numbers["best_epoch"]) == (2, None, -1)
    values = iter(told[6:])
    run(toy_dataset, tmp_path / "cut", resume=True, schedule=schedule)
    weights = [sha256_file(tmp_path / name / "weights.safetensors") for name in ("whole", "cut")]
    assert weights[0] == weights[1]


def test_without_one_finite_validation_there_is_no_run(toy_dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "_validate", lambda *_: {"loss": math.nan})
    for resume in (False, True):
        with pytest.raises(OutputError, match=r"NUMERIC_LOSS[\s\S]*finite in no epoch[\s\S]*learning rate"):
            run(toy_dataset, tmp_path / "run", resume=resume)
    assert not (tmp_path / "run" / "weights.safetensors").exists()

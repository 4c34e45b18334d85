"""Groups of parameters, and the learning rate of every epoch, by hand."""

import json
import math
from typing import Any, cast

import pytest
import torch
from torch import nn

from steadysam.errors import ConfigError
from steadysam.methods.contract import Stage, StageSettings
from steadysam.optimisation import LearningRate, make_optimisation, rate_groups, set_rate


def a_stage(factors: dict[str, float] | None = None, ema: float = 0.0, **settings: Any) -> Stage:
    nothing = cast(Any, None)
    return Stage("s", ("*",), nothing, nothing, StageSettings(**settings), factors or {}, ema, final_rate=0.1)


def parameters() -> dict[str, nn.Parameter]:
    return {name: nn.Parameter(torch.ones(2)) for name in ("a.x", "b.x", "a.y", "c.x")}


@pytest.mark.parametrize(
    "schedule, expected",
    [
        ("linear", [1, 0.775, 0.55, 0.325]),
        ("cosine", [0.1 + 0.45 * (1 + math.cos(math.pi * e / 4)) for e in range(4)]),
        ("poly", [(1 - e / 4) ** 0.9 for e in range(4)]),
        ("plateau", [1, 1, 1, 1]),
    ],
)
def test_the_rate_of_every_epoch(schedule, expected):
    rate = LearningRate(a_stage(schedule=schedule, epochs=4, learning_rate=0.02))
    assert [rate.at(epoch) / 0.02 for epoch in range(4)] == pytest.approx(expected)


def test_the_new_schedules_would_end_at_the_final_rate():
    for schedule in ("linear", "cosine"):
        rate = LearningRate(a_stage(schedule=schedule, epochs=7, learning_rate=2.0))
        assert rate.at(7) == pytest.approx(0.2)


def test_a_plateau_halves_the_rate_and_survives_a_checkpoint():
    rate = LearningRate(a_stage(learning_rate=0.1, patience=1))
    for loss in (1.0, 1.0, 1.0):
        rate.after(loss)
    assert rate.at(3) == 0.05
    other = LearningRate(a_stage(learning_rate=0.1, patience=1))
    other.load(rate.numbers())
    for loss in (1.0, 1.0):
        rate.after(loss)
        other.after(loss)
    assert rate.at(5) == other.at(5) == 0.025


def test_the_first_pattern_that_fits_gives_the_factor():
    groups = rate_groups(a_stage({"a.y": 0.5, "a.*": 0.1}), parameters())
    names = {factor: list(group) for factor, group in groups.items()}
    assert names == {0.1: ["a.x"], 1.0: ["b.x", "c.x"], 0.5: ["a.y"]}


def test_without_factors_there_is_one_group_in_the_models_order():
    work = make_optimisation(a_stage(), parameters(), {})
    assert len(work.optimizer.param_groups) == 1
    assert list(work.parameters) == ["a.x", "b.x", "a.y", "c.x"]


def test_a_factor_for_nothing_is_refused():
    with pytest.raises(ConfigError, match="CONFIG_VALUE.*d\\.\\*"):
        rate_groups(a_stage({"d.*": 0.1}), parameters())


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_a_step_moves_a_group_by_its_factor(optimizer):
    stage = a_stage({"a.*": 0.1}, optimizer=optimizer, learning_rate=0.5, weight_decay=0)
    work = make_optimisation(stage, parameters(), {})
    assert list(work.parameters) == ["a.x", "a.y", "b.x", "c.x"]
    set_rate(work.optimizer, 0.25)
    sum(p.sum() for p in work.parameters.values()).backward()  # pyright: ignore
    work.optimizer.step()
    moved = {name: 1 - float(p.detach()[0]) for name, p in work.parameters.items()}
    assert moved["a.x"] == pytest.approx(0.1 * moved["b.x"], rel=1e-4)
    assert moved["b.x"] == pytest.approx(0.25 * (1.99 if optimizer == "sgd" else 1), rel=1e-4)


@pytest.mark.parametrize("schedule", ["plateau", "poly", "linear", "cosine"])
def test_what_a_checkpoint_keeps_can_be_written(schedule):
    rate = LearningRate(a_stage(schedule=schedule, epochs=4))
    rate.after(1.0)
    numbers = json.loads(json.dumps(rate.numbers(), allow_nan=False))
    other = LearningRate(a_stage(schedule=schedule, epochs=4))
    other.load(numbers)
    assert other.at(2) == rate.at(2)

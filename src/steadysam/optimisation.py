"""What a stage optimises and how fast: parameter groups, the optimiser, the learning rate from epoch to epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from steadysam.averaging import Averaged
from steadysam.errors import ConfigError
from steadysam.methods.contract import Stage

_PLATEAU_NUMBERS = ("best", "num_bad_epochs", "cooldown_counter", "last_epoch")


class LearningRate:
    """The rate of every epoch, before warm-up and the factors of groups.

    `plateau` multiplies the rate by `factor` when the loss has not improved for `patience` epochs; `poly` is
    (1 - e / E)^0.9 in epoch e = 0, 1, ... of E; `linear` and `cosine` fall from 1 towards `final_rate`, which they
    would have in epoch E.
    """

    def __init__(self, stage: Stage) -> None:
        self.settings, self.final = stage.settings, stage.final_rate
        # torch's rule, on an optimiser that holds the rate only: groups of parameters are scaled alike by `set_rate`
        self._holder = torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=self.settings.learning_rate)
        self._plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            self._holder, factor=self.settings.factor, patience=self.settings.patience
        )

    def at(self, epoch: int) -> float:
        """The rate of an epoch, counted from 0."""
        rate, done = self.settings.learning_rate, epoch / max(1, self.settings.epochs)
        if self.settings.schedule == "poly":
            return rate * (1 - done) ** 0.9
        if self.settings.schedule == "linear":
            return rate * ((1 - done) * (1 - self.final) + self.final)
        if self.settings.schedule == "cosine":
            return rate * ((1 + math.cos(math.pi * done)) / 2 * (1 - self.final) + self.final)
        return self._holder.param_groups[0]["lr"]

    def after(self, loss: float) -> None:
        """Take note of the loss of an epoch."""
        if self.settings.schedule == "plateau":
            self._plateau.step(loss)

    def numbers(self) -> dict[str, Any]:
        """What a checkpoint keeps; the other schedules are functions of the epoch."""
        if self.settings.schedule != "plateau":
            return {}
        plateau = {name: getattr(self._plateau, name) for name in _PLATEAU_NUMBERS}
        plateau["best"] = None if math.isinf(plateau["best"]) else plateau["best"]  # no loss was finite yet
        return {"learning_rate": self._holder.param_groups[0]["lr"], "scheduler": plateau}

    def load(self, numbers: Mapping[str, Any]) -> None:
        """The inverse of `numbers`."""
        if self.settings.schedule != "plateau":
            return
        kept = {name: value for name, value in numbers["scheduler"].items() if value is not None}
        self._plateau.load_state_dict({**self._plateau.state_dict(), **kept})
        self._holder.param_groups[0]["lr"] = numbers["learning_rate"]


@dataclass(eq=False)
class Optimisation:
    """All that moves while a stage is trained.

    Args:
        parameters: those that are trained, in the order of the optimiser's groups.
        buffers: those that belong to the stage, such as the statistics of batch norm layers.
        averaged: averages of the parameters; of none if the stage wants none.
    """

    parameters: dict[str, nn.Parameter]
    buffers: dict[str, Tensor]
    optimizer: torch.optim.Optimizer
    rate: LearningRate
    averaged: Averaged

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers."""
        return {**self.parameters, **self.buffers}

    def copies(self) -> dict[str, Tensor]:
        """The tensors as they are now, on the CPU."""
        return {name: tensor.detach().to("cpu", copy=True) for name, tensor in self.tensors.items()}

    @torch.no_grad()
    def put(self, values: Mapping[str, Tensor]) -> None:
        """Copy values into the tensors that they name."""
        tensors = self.tensors
        for name, value in values.items():
            tensors[name].copy_(value)


def make_optimisation(stage: Stage, parameters: Mapping[str, nn.Parameter], buffers: dict[str, Tensor]) -> Optimisation:
    """The start of a stage.

    Raises:
        ConfigError: see `rate_groups`.
    """
    groups = rate_groups(stage, parameters)
    ordered = {name: parameter for group in groups.values() for name, parameter in group.items()}
    return Optimisation(
        ordered, buffers, make_optimizer(stage, groups), LearningRate(stage), Averaged(ordered, stage.ema)
    )


def rate_groups(stage: Stage, parameters: Mapping[str, nn.Parameter]) -> dict[float, dict[str, nn.Parameter]]:
    """Factor of the learning rate -> parameters by name; the order is that in which they first appear.

    Raises:
        ConfigError: `CONFIG_VALUE` if a pattern of `rate_factors` names no parameter that is trained.
    """
    for pattern in stage.rate_factors:
        if not any(fnmatchcase(name, pattern) for name in parameters):
            raise ConfigError("CONFIG_VALUE", f"stage {stage.name!r} gives {pattern!r} a rate but does not train it")
    groups: dict[float, dict[str, nn.Parameter]] = {}
    for name, parameter in parameters.items():
        found = [factor for pattern, factor in stage.rate_factors.items() if fnmatchcase(name, pattern)]
        groups.setdefault(found[0] if found else 1.0, {})[name] = parameter
    return groups


def make_optimizer(stage: Stage, groups: Mapping[float, Mapping[str, nn.Parameter]]) -> torch.optim.Optimizer:
    """The optimiser of a stage; every group remembers its `factor`."""
    settings = stage.settings
    rate, decay = settings.learning_rate, settings.weight_decay
    named = [{"params": list(group.values()), "lr": rate * f, "factor": f} for f, group in groups.items()]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(named, lr=rate, weight_decay=decay, momentum=settings.momentum, nesterov=True)
    kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    return kind(named, lr=rate, weight_decay=decay)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group `rate` times its factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]

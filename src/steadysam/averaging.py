"""Averaged weights of a stage: an exponential moving average of what is trained, taken after every step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

RAMP = 2000  # updates after which the decay has come to 1 - 1/e of its value


def decay_at(decay: float, updates: int) -> float:
    """decay * (1 - exp(-updates / 2000)): short at first, so that the weights of the start are soon forgotten."""
    return decay * (1 - math.exp(-updates / RAMP))


class Averaged:
    """The averages of named tensors, and how often they were updated.

    Args:
        tensors: what is averaged, by name; the values now are the first average.
        decay: share of the average that an update keeps, in the end (`decay_at`); 0 averages nothing.
    """

    def __init__(self, tensors: Mapping[str, Tensor], decay: float) -> None:
        self.tensors, self.decay, self.updates = dict(tensors) if decay else {}, decay, 0
        self.values = {name: tensor.detach().clone() for name, tensor in self.tensors.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Follow the tensors by one step."""
        self.updates += 1
        share = 1 - decay_at(self.decay, self.updates)
        for name, value in self.values.items():
            value.lerp_(self.tensors[name].detach(), share)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """For the block the tensors hold their averages."""
        own = {name: tensor.detach().clone() for name, tensor in self.tensors.items()}
        self._put(self.values)
        try:
            yield
        finally:
            self._put(own)

    @torch.no_grad()
    def load(self, values: Mapping[str, Tensor], updates: int) -> None:
        """Go on from averages that were stored."""
        self.updates = updates
        for name, value in self.values.items():
            value.copy_(values[name])

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        for name, tensor in self.tensors.items():
            tensor.copy_(values[name])

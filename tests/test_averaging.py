"""Averaged weights against the recursion worked out by hand."""

import math

import pytest
import torch

from steadysam.averaging import Averaged, decay_at


def test_the_decay_grows_to_its_value():
    assert decay_at(0.9999, 0) == 0
    assert decay_at(0.9999, 2000) == pytest.approx(0.9999 * (1 - 1 / math.e))
    assert decay_at(0.9999, 60000) == pytest.approx(0.9999, abs=1e-9)


def test_the_average_follows_by_the_ramped_decay():
    weight = torch.tensor([1.0, 2.0])
    averaged, expected = Averaged({"w": weight}, 0.9), weight.clone()
    for update, value in enumerate([(3.0, 2.0), (5.0, -1.0), (4.0, 0.0)], 1):
        weight.copy_(torch.tensor(value))
        averaged.update()
        decay = 0.9 * (1 - math.exp(-update / 2000))
        expected = decay * expected + (1 - decay) * weight
    assert averaged.updates == 3
    assert torch.allclose(averaged.values["w"], expected, atol=1e-7)
    assert not torch.equal(averaged.values["w"], weight)


def test_averages_are_in_place_for_a_block_only_even_if_it_fails():
    weight = torch.nn.Parameter(torch.zeros(3))
    averaged = Averaged({"w": weight}, 0.99)
    with torch.no_grad():
        weight.fill_(4.0)
    seen = []

    def fail():
        with averaged.in_place():
            seen.append(weight.detach().clone())
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert torch.equal(seen[0], torch.zeros(3))
    assert torch.equal(weight.data, torch.full((3,), 4.0))


def test_no_decay_averages_nothing():
    weight = torch.ones(2)
    averaged = Averaged({"w": weight}, 0.0)
    averaged.update()
    with averaged.in_place():
        assert torch.equal(weight, torch.ones(2))
    assert averaged.values == {}


def test_stored_averages_go_on_as_if_nothing_had_happened():
    weight = torch.ones(2)
    first = Averaged({"w": weight}, 0.5)
    weight.mul_(3)
    first.update()
    other = weight.clone()
    second = Averaged({"w": other}, 0.5)
    second.load({"w": first.values["w"].clone()}, first.updates)
    for tensor, averaged in ((weight, first), (other, second)):
        tensor.add_(1)
        averaged.update()
    assert torch.equal(first.values["w"], second.values["w"])
    assert first.updates == second.updates == 2

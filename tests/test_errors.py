"""Errors survive the way from a worker process."""

import pickle

import pytest

from steadysam.errors import ConfigError, InputError


@pytest.mark.parametrize("kind", [ConfigError, InputError])
def test_an_error_comes_back_from_a_worker_as_it_was(kind):
    error = kind("CODE", "what is wrong", file="a/b", seen=3, expected="4", fix="do this")
    again = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert type(again) is kind
    assert (str(again), again.to_dict()) == (str(error), error.to_dict())
    assert again.seen == 3

"""The cache is named by content; a damaged entry is a miss, and a full disk costs speed only."""

import pytest
import torch

from steadysam import embeddings
from steadysam.embeddings import EmbeddingCache
from steadysam.errors import ResourceError


def counting(value=1.0):
    calls = []

    def compute():
        calls.append(1)
        return torch.full((2, 3, 4, 5), value) / 3

    return compute, calls


@pytest.mark.parametrize("on_disk", [True, False])
def test_second_call_hits_and_gives_the_same_bytes(tmp_path, on_disk):
    cache = EmbeddingCache(tmp_path if on_disk else None)
    compute, calls = counting()
    first, second = cache.get(("a",), compute), cache.get(("a",), compute)
    assert len(calls) == 1
    assert (cache.hits, cache.misses) == (1, 1)
    assert first.dtype == torch.float16
    assert torch.equal(first, second)


def test_other_parts_are_other_entries(tmp_path):
    cache = EmbeddingCache(tmp_path)
    compute, calls = counting()
    for parts in (("image", "weights-1"), ("image", "weights-2"), ("image2", "weights-1")):
        cache.get(parts, compute)
    assert len(calls) == 3


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "swap"])
def test_a_damaged_entry_is_computed_again(tmp_path, damage):
    cache = EmbeddingCache(tmp_path)
    compute, calls = counting()
    expected = cache.get(("a",), compute).clone()
    (path,) = tmp_path.rglob("*.safetensors")
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[-1] ^= 1
    elif damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "empty":
        content = bytearray()
    else:
        other, _ = counting(2.0)
        cache.get(("b",), other)
        content = bytearray(next(p for p in tmp_path.rglob("*.safetensors") if p != path).read_bytes())
    path.write_bytes(content)
    assert torch.equal(EmbeddingCache(tmp_path).get(("a",), compute), expected)
    assert len(calls) == 2


def test_a_full_disk_costs_speed_only(tmp_path, monkeypatch):
    def full(*_):
        raise ResourceError("FS_FULL", "no space left")

    monkeypatch.setattr(embeddings, "write_bytes", full)
    compute, calls = counting()
    cache = EmbeddingCache(tmp_path)
    assert torch.equal(cache.get(("a",), compute), cache.get(("a",), compute))
    assert len(calls) == 2

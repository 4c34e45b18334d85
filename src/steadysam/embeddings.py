"""The embedding cache: named by content, knows no model.

An entry is one float16 tensor (D, C, h, h) for one stack, in a safetensors file whose name is the hash of everything
that decides its values. A damaged entry is a miss.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from steadysam.errors import SteadyError
from steadysam.files import content_key, write_bytes

_FORMAT = 1


class EmbeddingCache:
    """Float16 tensors by content key, on disk or (folder None) in memory for this process only.

    `hits` and `misses` count since construction, for tests and for the run record.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self.hits = 0
        self.misses = 0
        self._memory: dict[str, Tensor] = {}
        self._broken_disk = False

    def get(self, parts: tuple[object, ...], compute: Callable[[], Tensor]) -> Tensor:
        """The tensor named by `parts`, computed at the first call; always rounded to float16, cached or not.

        Args:
            parts: everything that decides the values: stack key, preprocessing, fingerprint of the weights.
            compute: makes the tensor.
        """
        key = content_key(_FORMAT, *parts)
        if self.folder is None:
            if key in self._memory:
                self.hits += 1
            else:
                self.misses += 1
                self._memory[key] = compute().to("cpu", torch.float16)
            return self._memory[key]
        path = self.folder / key[:2] / f"{key}.safetensors"
        tensor = _read(path, key)
        if tensor is not None:
            self.hits += 1
            return tensor
        self.misses += 1
        tensor = compute().to("cpu", torch.float16).contiguous()
        if not self._broken_disk:
            try:
                _write(path, key, tensor)
            except SteadyError:  # a full disk costs speed, not results
                self._broken_disk = True
        return tensor


def _write(path: Path, key: str, tensor: Tensor) -> None:
    payload = hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
    write_bytes(path, save({"embedding": tensor}, metadata={"key": key, "sha256": payload}))


def _read(path: Path, key: str) -> Tensor | None:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensor = file.get_tensor("embedding")
    except (OSError, SafetensorError):
        return None
    if metadata.get("key") != key:
        return None
    if hashlib.sha256(tensor.numpy().tobytes()).hexdigest() != metadata.get("sha256"):
        return None
    return tensor

"""Names for weights: a hash over everything that decides what a module computes."""

from __future__ import annotations

import hashlib

import torch
from torch import nn


def fingerprint(module: nn.Module) -> str:
    """SHA-256 over names, types, shapes and bytes of all tensors of `module`, in the order of their names.

    Goes into the keys of cached embeddings, so that other weights never find these.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        stored = tensor.detach().to("cpu").contiguous()
        digest.update(f"{name}:{stored.dtype}:{tuple(stored.shape)}:".encode())
        digest.update(stored.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()

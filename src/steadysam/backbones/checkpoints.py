"""Reading weights: safetensors only, checked before use, never unpickled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from steadysam.errors import CheckpointError
from steadysam.files import sha256_file

_PICKLES = (".pt", ".pth", ".ckpt", ".pkl", ".bin", ".pickle")
_LONGEST_HEADER = 100_000_000


def read_safetensors(path: str | Path, *, sha256: str | None = None) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU, as stored.

    Args:
        path: the file.
        sha256: the hash that its bytes must have, if known.

    Raises:
        CheckpointError: `CKPT_MISSING`, `CKPT_TRUNCATED`, `CKPT_FORMAT`, `CKPT_PICKLE_REFUSED`, `CKPT_HASH`,
            `CKPT_NONFINITE`.
    """
    path = Path(path)
    refuse_pickle(path)
    check_header(path)
    if sha256 is not None and (seen := sha256_file(path)) != sha256:
        raise CheckpointError(
            "CKPT_HASH",
            "the weights are not the ones that were recorded",
            file=path,
            seen=seen,
            expected=sha256,
            fix="the file was damaged or replaced: get it again",
        )
    try:
        state = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise _format_error(path, str(error)) from error
    for name, tensor in state.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise CheckpointError(
                "CKPT_NONFINITE",
                "the weights hold NaN or infinity",
                file=path,
                seen=name,
                fix="the training that made them diverged: use an earlier checkpoint",
            )
    return state


def refuse_pickle(path: Path) -> None:
    """Refuse files that can only be read by running what they contain."""
    if path.suffix.lower() in _PICKLES:
        raise CheckpointError(
            "CKPT_PICKLE_REFUSED",
            "a pickled checkpoint can run any code when it is read",
            file=path,
            expected="a .safetensors file",
            fix="where you trust the file: torch.load(FILE, weights_only=True), then"
            " safetensors.torch.save_file, then `steadysam models import NAME FILE.safetensors`",
        )


def check_header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file as a dict, after comparing it with the file's length.

    The library checks shapes, types and overlaps of tensors; this tells a file that was cut from one that is
    something else, and refuses names that stand twice.
    """
    if not path.is_file():
        raise CheckpointError("CKPT_MISSING", "no such weights file", file=path, fix="check the path")
    size = path.stat().st_size
    with open(path, "rb") as handle:
        first = handle.read(8)
        if len(first) < 8:
            raise _truncated(path, size, "8 bytes at least")
        length = int.from_bytes(first, "little")
        if not 2 <= length <= _LONGEST_HEADER:
            # only now: 0x80, a pickle's first byte, is also the low byte of many a header's length
            foreign = first[:4] == b"PK\x03\x04" or first[0] == 0x80
            detail = "a zip archive or a pickle under another name" if foreign else f"header of {length} bytes"
            raise _format_error(path, detail)
        if 8 + length > size:
            raise _truncated(path, size, f"a header that ends at byte {8 + length}")
        text = handle.read(length)
    header = _parse(path, text)
    end = 8 + length + _data_length(path, header)
    if end > size:
        raise _truncated(path, size, f"{end} bytes")
    if end < size:
        raise _format_error(path, f"{size - end} bytes after the last tensor")
    return header


def load_strict(module: nn.Module, state: Mapping[str, Tensor], file: str | Path) -> None:
    """Put `state` into `module` (which may be on the meta device) as float32, all of it or nothing.

    Raises:
        CheckpointError: `CKPT_SHAPE`, names are missing or too many, or shapes differ; lists the first of
        them.
    """
    own = module.state_dict()
    faults = [f"missing {name}" for name in own if name not in state]
    faults += [f"unknown {name}" for name in state if name not in own]
    faults += [
        f"{name} {tuple(state[name].shape)} for {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    if faults:
        raise CheckpointError(
            "CKPT_SHAPE",
            f"{len(faults)} tensors do not fit the model",
            file=file,
            seen="; ".join(faults[:8]),
            expected=f"{len(own)} tensors of the model's names and shapes",
            fix="use weights of this architecture, in the layout of transformers or of segment-anything",
        )
    full = {name: state[name].to(torch.float32, copy=True).contiguous() for name in own}
    module.load_state_dict(full, assign=True)


def _parse(path: Path, text: bytes) -> dict[str, Any]:
    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in items}) != len(items):
            raise ValueError("a name stands twice")
        return dict(items)

    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=pairs)
    except (ValueError, RecursionError) as error:
        raise _format_error(path, f"header is no JSON: {error}") from error
    if not isinstance(header, dict):
        raise _format_error(path, "header is no JSON object")
    return header


def _data_length(path: Path, header: Mapping[str, Any]) -> int:
    try:
        return max((int(row["data_offsets"][1]) for name, row in header.items() if name != "__metadata__"), default=0)
    except (KeyError, TypeError, IndexError, ValueError, OverflowError) as error:
        raise _format_error(path, "a tensor without offsets") from error


def _format_error(path: Path, detail: str) -> CheckpointError:
    return CheckpointError(
        "CKPT_FORMAT", "not a sound safetensors file", file=path, seen=detail, fix="get the file again"
    )


def _truncated(path: Path, size: int, expected: str) -> CheckpointError:
    return CheckpointError(
        "CKPT_TRUNCATED",
        "the weights file ends too early",
        file=path,
        seen=f"{size} bytes",
        expected=expected,
        fix="the copy or download broke off: get the file again",
    )

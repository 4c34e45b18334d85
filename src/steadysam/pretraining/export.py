"""Weights as a file that every `--backbone` takes: half precision, with the architecture in its metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from steadysam.backbones.conv.model import ConvBackbone
from steadysam.checkpoints import save_tensors


def export(backbone: ConvBackbone, average: Mapping[str, Tensor], path: Path) -> str:
    """Write the averaged weights in half precision and return the file's hash; bytes depend on the values only."""
    state = {name: average.get(name, value) for name, value in backbone.state_dict().items()}
    shape = json.dumps(asdict(backbone.architecture), sort_keys=True)
    return save_tensors(path, {n: t.to(torch.float16) for n, t in sorted(state.items())}, architecture=shape)

"""Position tables for another image size (spd.md 2.1 and 3.1: bilinear; relative positions linear)."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from torch import Tensor
from torch.nn import functional

_RELATIVE = re.compile(r"^image_encoder\.layers\.(\d+)\.attn\.rel_pos_[hw]$")
_ABSOLUTE = "image_encoder.pos_embed"


def resize_positions(state: Mapping[str, Tensor], grid: int, global_layers: Collection[int]) -> dict[str, Tensor]:
    """Weights of a SAM of any image size -> the same for `grid` x `grid` tokens.

    The absolute table (1, H, W, C) is resized bilinearly, the relative tables (2H - 1, c) of layers with
    global attention linearly, both with `align_corners=False`. Tables of windowed layers keep their size.
    Nothing changes where the size is right already, and the result of the resized relative tables equals what
    SAM computes at run time.
    """
    resized = dict(state)
    for name, tensor in state.items():
        match = _RELATIVE.match(name)
        if name == _ABSOLUTE and tensor.ndim == 4:
            resized[name] = _bilinear(tensor, grid)
        elif match and int(match[1]) in global_layers and tensor.ndim == 2:
            resized[name] = _linear(tensor, 2 * grid - 1)
    return resized


def _bilinear(table: Tensor, grid: int) -> Tensor:
    if tuple(table.shape[1:3]) == (grid, grid):
        return table
    channels_first = table.float().permute(0, 3, 1, 2)
    scaled = functional.interpolate(channels_first, (grid, grid), mode="bilinear", align_corners=False)
    return scaled.permute(0, 2, 3, 1).contiguous()


def _linear(table: Tensor, length: int) -> Tensor:
    if len(table) == length:
        return table
    channels_first = table.float().T[None]
    return functional.interpolate(channels_first, length, mode="linear", align_corners=False)[0].T.contiguous()

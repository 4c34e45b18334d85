"""The five sizes of YOLOv8 as numbers; importing this loads no torch.

Depth, width and the cap of channels are those of the public model table; `ldfsam.md 3.1`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

Size = Literal["n", "s", "m", "l", "x"]
SIZES: tuple[Size, ...] = get_args(Size)

STRIDES = (8, 16, 32)  # pixels between the locations of P3, P4, P5
BINS = 16  # of one edge's distance, 0..15 strides
EDGES = 4  # left, top, right, bottom


@dataclass(frozen=True)
class Scale:
    """One size: what the full network's numbers are multiplied by.

    Args:
        depth: factor of the number of bottlenecks.
        width: factor of the channels.
        cap: most channels before the factor.
    """

    depth: float
    width: float
    cap: int

    def channels(self, full: int) -> int:
        """Channels of a layer that has `full` in the full network, rounded up to a multiple of 8."""
        return math.ceil(min(full, self.cap) * self.width / 8) * 8

    def repeats(self, full: int) -> int:
        """Bottlenecks of a block that has `full` in the full network, at least one."""
        return max(round(full * self.depth), 1)


SCALES: dict[Size, Scale] = {
    "n": Scale(0.33, 0.25, 1024),
    "s": Scale(0.33, 0.50, 1024),
    "m": Scale(0.67, 0.75, 768),
    "l": Scale(1.00, 1.00, 512),
    "x": Scale(1.00, 1.25, 512),
}

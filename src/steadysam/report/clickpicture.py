"""The picture of `steadysam segment-click`: the slices with prompts, one panel per mask."""

from __future__ import annotations

import numpy as np

from steadysam.clicks import ClickResult
from steadysam.report.figures import Marks, Panel, strip
from steadysam.types import Volume

_MOST = 4


def click_picture(volume: Volume, result: ClickResult) -> bytes:
    """PNG with a row per slice that has prompts (at most four, evenly chosen) and a panel per mask."""
    asked = sorted(result.iou)
    shown = [asked[i] for i in np.unique(np.linspace(0, len(asked) - 1, _MOST).round().astype(int))]
    rows = []
    for t in shown:
        here = result.points[t]
        marks = Marks(here.xy, tuple("accepted" if sign else "rejected" for sign in here.positive))
        box = None if here.box is None else tuple(map(float, here.box))
        rows.append(
            [
                Panel(
                    volume.slice_image(t),
                    f"mask {place + 1}: predicted IoU {result.iou[t][place]:.2f}",
                    pred=mask.slice_image(t),
                    marks=marks,
                    box=box,  # pyright: ignore
                )
                for place, mask in enumerate(result.masks)
            ]
        )
    titles = [f"slice {t}" for t in shown] if volume.grid.depth > 1 else []
    return strip(rows, titles, spacing=volume.grid.slice_spacing_mm, panel_inches=2.6, legend=False)

"""The picture of `steadysam detect`: one slice of some cases, with the boxes that were found there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from steadysam.box_prompts import CaseBoxes
from steadysam.report.figures import Panel, strip

_COLUMNS = 4
_LONGEST = 26  # letters of a name above a panel


def box_panel(case: CaseBoxes) -> Panel:
    """The slice with the surest box, and all boxes there; the middle slice where there is none."""
    best = [scores.max(initial=0.0) for scores in case.scores]
    t = int(np.argmax(best)) if any(best) else len(best) // 2
    image, boxes = case.volume.slice_image(t), case.boxes[t].tolist()
    name = case.name if len(case.name) <= _LONGEST else f"{case.name[:8]}…{case.name[9 - _LONGEST :]}"
    title = name if len(best) == 1 else f"{name}, slice {t}"
    score = f"best score {best[t]:.2f}" if len(boxes) else "no box"
    true = None if case.mask is None else case.mask.slice_image(t)
    return Panel(image, f"{title}\n{score}", true, boxes=[(b[0], b[1], b[2], b[3]) for b in boxes])


def box_sheet(panels: Sequence[Panel]) -> bytes:
    """PNG of the panels, four in a row; true masks are outlined."""
    rows = [panels[start : start + _COLUMNS] for start in range(0, len(panels), _COLUMNS)]
    return strip(rows)

"""Pictures of evaluated cases: the slices that say most about what went wrong."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steadysam.errors import InputError
from steadysam.files import read_json
from steadysam.geometry import describe_grid, ras_to_voxel
from steadysam.metrics import CaseScores
from steadysam.report.figures import Marks, Panel, strip, zoom_window
from steadysam.report.html import Picture
from steadysam.types import Grid, Volume, stack_slices


def telling_slices(case: CaseScores, most: int = 4) -> list[int]:
    """Up to `most` slices, in slice order: the worst by Dice; slices empty on both sides only if all are."""
    marked = [row for row in case.slices if not (row.true_empty and row.pred_empty)] or list(case.slices)
    return sorted(row.slice for row in sorted(marked, key=lambda row: (row.dsc, row.slice))[:most])


def case_picture(
    case: CaseScores,
    volume: Volume,
    pred: NDArray[Any],
    true: NDArray[Any],
    grid: Grid,
    marks: Mapping[int, Marks] | None = None,
) -> Picture:
    """A strip of the telling slices of one case: above the whole slice, below the same slice near the masks.

    Args:
        pred, true: (I, J, K) masks on `grid`; `volume` has the same shape.
        marks: slice -> prompts in slice pixels.

    Raises:
        InputError: `LABEL_GRID` if the image has another shape.
    """
    if volume.array.shape[:3] != grid.shape:
        raise InputError(
            "LABEL_GRID",
            "image and label differ in shape",
            seen=describe_grid(volume.grid),
            expected=describe_grid(grid),
        )
    images, preds, trues = (stack_slices(array, grid) for array in (volume.array, pred, true))
    whole, near = [], []
    for t in telling_slices(case):
        points = (marks or {}).get(t)
        title = f"slice {t} · Dice {case.slices[t].dsc:.2f}"
        whole.append(Panel(images[t], title, trues[t], preds[t], points))
        window = zoom_window(trues[t].shape, trues[t], preds[t])
        near.append(Panel(images[t], "", trues[t], preds[t], points, window=window))
    if len(whole) == 1:  # a picture: both views side by side
        rows, titles = [[*whole, *near]], []
    else:
        rows, titles = [whole, near], ["whole slice", "near the masks"]
    png = strip(rows, titles, spacing=grid.slice_spacing_mm)
    return Picture(png, f"{case.name}: volume Dice {case.volume.dice:.3f}, its {len(whole)} worst slices")


def audit_marks(path: Path, grid: Grid) -> dict[int, Marks]:
    """Slice -> prompts with their verdicts in slice pixels, from a `CASE.audit.json`; {} without such a file.

    Rejected and ignored prompts stand where they were clicked, accepted and added ones where the decoder got
    them. Read leniently: a row without a place is passed over.
    """
    content = read_json(path) if path.is_file() else {}
    if not isinstance(content, dict):
        return {}
    found: dict[int, list[tuple[tuple[float, float], str]]] = {}
    for row in content.get("prompts") or ():
        if row.get("verdict") in ("rejected", "ignored") and row.get("slice") is not None and "ras_mm" in row:
            ijk = ras_to_voxel(np.array([row["ras_mm"]]), grid)[0]
            x_axis, y_axis = grid.plane_axes
            place = (float(ijk[x_axis]), float(ijk[y_axis]))
            found.setdefault(row["slice"], []).append((place, row["verdict"]))
    for entry in content.get("consensus") or ():
        for point in entry.get("points") or ():
            if "xy" in point:
                x, y = point["xy"]
                found.setdefault(entry["slice"], []).append(((x, y), point.get("verdict", "accepted")))
    return {
        t: Marks(np.array([xy for xy, _ in points], float).reshape(-1, 2), tuple(kind for _, kind in points))
        for t, points in found.items()
    }

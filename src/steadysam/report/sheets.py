"""The pictures that `detect` and `predict` leave beside their files: one slice of some cases, to see at a glance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from steadysam.box_prompts import CaseBoxes
from steadysam.data.volumes import mask_ending, read_label_map, read_volume
from steadysam.report.casepictures import audit_marks
from steadysam.report.figures import Panel, strip
from steadysam.types import stack_slices

T = TypeVar("T")
MOST = 12
_COLUMNS = 4
_LONGEST = 26  # letters of a name above a panel


def some_of(rows: Sequence[T], most: int = MOST) -> list[T]:
    """At most so many, evenly chosen."""
    return list(rows[:: max(1, -(-len(rows) // most))])


def box_panel(case: CaseBoxes) -> Panel:
    """The slice with the surest box, and all boxes there; the middle slice where there is none."""
    best = [scores.max(initial=0.0) for scores in case.scores]
    t = int(np.argmax(best)) if any(best) else len(best) // 2
    image, boxes = case.volume.slice_image(t), case.boxes[t].tolist()
    score = f"best score {best[t]:.2f}" if len(boxes) else "no box"
    true = None if case.mask is None else case.mask.slice_image(t)
    title = f"{_place(case.name, t, len(best))}\n{score}"
    return Panel(image, title, true, boxes=[(b[0], b[1], b[2], b[3]) for b in boxes])


def mask_panel(case: Mapping[str, Any], image: Path, folder: Path) -> Panel:
    """The slice with the largest mask, and the prompts there; the middle slice of an empty mask.

    Args:
        case: its entry in the `run.json` that predict wrote.
        folder: of the mask and its audit.
    """
    name = str(case["case"])
    volume = read_volume(image, slice_axis=case["slice_axis"])
    labels, _ = read_label_map(folder / f"{name}{mask_ending(volume)}", slice_axis=volume.grid.slice_axis)
    masks = stack_slices(labels > 0, volume.grid)
    areas = masks.sum(axis=(1, 2))
    t = int(areas.argmax()) if areas.any() else len(areas) // 2
    marks = audit_marks(folder / f"{name}.audit.json", volume.grid).get(t)
    said = f"{areas[t]} px" if areas.any() else "empty mask"
    return Panel(volume.slice_image(t), f"{_place(name, t, len(areas))}\n{said}", pred=masks[t], marks=marks)


def label_panel(name: str, combined: Mapping[str, Any], image: Path, folder: Path) -> Panel:
    """The slice that shows most labels, and of these the one with the largest area; the middle one of an empty map.

    Args:
        combined: content of the `combined.json` in `folder`, which holds the label maps.
    """
    runs = combined["runs"].values()
    axes = [case["slice_axis"] for run in runs for case in run.get("cases", ()) if case["case"] == name]
    volume = read_volume(image, slice_axis=axes[0] if axes else None)
    array, _ = read_label_map(folder / f"{name}{mask_ending(volume)}", slice_axis=volume.grid.slice_axis)
    labels = stack_slices(array, volume.grid)
    structures = {label: labels == value for label, value in combined["labels"].items()}
    areas = np.array([mask.sum(axis=(1, 2)) for mask in structures.values()])
    ranks = (areas > 0).sum(axis=0) * labels[0].size + areas.sum(axis=0)
    t = int(ranks.argmax()) if ranks.any() else len(labels) // 2
    said = f"{(areas[:, t] > 0).sum()} of {len(areas)} labels" if ranks.any() else "empty label map"
    shown = {label: mask[t] for label, mask in structures.items()}
    return Panel(volume.slice_image(t), f"{_place(name, t, len(labels))}\n{said}", structures=shown)


def sheet(panels: Sequence[Panel]) -> bytes:
    """PNG of the panels, four in a row."""
    return strip([panels[start : start + _COLUMNS] for start in range(0, len(panels), _COLUMNS)])


def _place(name: str, t: int, depth: int) -> str:
    name = name if len(name) <= _LONGEST else f"{name[:8]}…{name[9 - _LONGEST :]}"
    return name if depth == 1 else f"{name}, slice {t}"

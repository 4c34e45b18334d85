"""Slicer markups (`.mrk.json`, schema 1.0.3), written; read by `steadysam.prompts.markups_read`.

Positions are written in LPS millimetres, Slicer's own default, with `positionStatus` said explicitly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steadysam.files import write_json
from steadysam.geometry import flip_lps_ras
from steadysam.prompts.rows import triple
from steadysam.types import Box, Point, Prompts

SCHEMA = (
    "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/Schema/"
    "markups-schema-v1.0.3.json#"
)
OUTPUT_ROLE = "output"
NO_VALUE = -1.0  # measurements must be numbers; -1 stands for "was not computed"


@dataclass(frozen=True)
class MarkupsPoint:
    """One control point; `xyz_mm` is RAS+ mm. Unselected points are shown by Slicer, but are no prompts for
    us.
    """

    id: str
    xyz_mm: tuple[float, float, float]
    label: str = ""
    description: str = ""
    selected: bool = True


@dataclass(frozen=True)
class MarkupsList:
    """One list of points in a markups file.

    Args:
        name: shown by Slicer.
        points: the control points.
        values: measurement name -> one number (or None) per control point, for colouring in Slicer.
        is_output: the list is a result (such as consensus points); our reader does not take it for prompts.
        color: RGB of selected points, 0 to 1.
    """

    name: str
    points: tuple[MarkupsPoint, ...]
    values: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    is_output: bool = False
    color: tuple[float, float, float] = (0.2, 0.9, 0.3)


def write_markups(path: str | Path, lists: Sequence[MarkupsList], boxes: Sequence[Box] = ()) -> Path:
    """Write lists of points, and boxes as ROIs, to one `.mrk.json`, atomically.

    Raises:
        FileSystemError, ResourceError: see `steadysam.files.atomic_write`.
    """
    rows = [_list(entry) for entry in lists] + [_roi(box) for box in boxes]
    return write_json(path, {"@schema": SCHEMA, "markups": rows})


def prompts_to_markups(path: str | Path, prompts: Prompts, name: str = "prompts") -> Path:
    """Write prompts as one list of points (if there are any) and one ROI per box.

    Slicer has no field for sign, source, label and annotator: they stand in the description (`source: human;
    sign: negative; …`), from where our reader takes them again.
    """
    points = tuple(MarkupsPoint(p.id, p.xyz_mm, p.id, describe(p)) for p in prompts.points)
    return write_markups(path, [MarkupsList(name, points)] if points else [], prompts.boxes)


def describe(prompt: Point | Box) -> str:
    """What Slicer has no field for, as `key: value; …`, followed by the prompt's own description."""
    facts = {"source": prompt.source, "label": prompt.label, "annotator": prompt.annotator}
    if isinstance(prompt, Point) and prompt.sign == "negative":
        facts["sign"] = prompt.sign
    parts = [f"{key}: {value.replace(';', ',')}" for key, value in facts.items() if value]
    return "; ".join([*parts, *([prompt.description] if prompt.description else [])])


def _list(entry: MarkupsList) -> dict[str, Any]:
    row: dict[str, Any] = {
        "type": "Fiducial",
        "name": entry.name,
        "coordinateSystem": "LPS",
        "coordinateUnits": "mm",
        "locked": False,
        "fixedNumberOfControlPoints": False,
        "labelFormat": "%N-%d",
        "controlPoints": [_control_point(point) for point in entry.points],
        "measurements": [_measurement(name, values) for name, values in entry.values.items()],
        "display": {
            "visibility": True,
            "opacity": 1.0,
            "color": [0.6, 0.6, 0.6],  # of unselected points
            "selectedColor": list(entry.color),
            "glyphType": "Sphere3D",
            "glyphScale": 2.0,
        },
    }
    if entry.is_output:
        row["steadysam"] = {"role": OUTPUT_ROLE}
    return row


def _control_point(point: MarkupsPoint) -> dict[str, Any]:
    return {
        "id": point.id,
        "label": point.label or point.id,
        "description": point.description,
        "associatedNodeID": "",
        "position": list(triple(flip_lps_ras(np.array(point.xyz_mm)))),
        "orientation": [-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0],
        "selected": point.selected,
        "locked": False,
        "visibility": True,
        "positionStatus": "defined",
    }


def _measurement(name: str, values: Sequence[float | None]) -> dict[str, Any]:
    numbers = [NO_VALUE if value is None else float(value) for value in values]
    return {"name": name, "enabled": True, "units": "", "printFormat": "%5.3f", "controlPointValues": numbers}


def _roi(box: Box) -> dict[str, Any]:
    half = flip_lps_ras(np.array(box.half_axes_mm))
    lengths = np.linalg.norm(half, axis=1)
    centre = list(triple(flip_lps_ras(np.array(box.centre_mm))))
    point = MarkupsPoint(box.id, box.centre_mm, box.id, describe(box))
    return {
        "type": "ROI",
        "name": box.id,
        "coordinateSystem": "LPS",
        "coordinateUnits": "mm",
        "locked": False,
        "roiType": "Box",
        "center": centre,
        "orientation": _directions(half, lengths).T.ravel().tolist(),
        "size": (2 * lengths).tolist(),
        "controlPoints": [_control_point(point)],
    }


def _directions(half: NDArray[np.float64], lengths: NDArray[np.float64]) -> NDArray[np.float64]:
    """(3, 3) unit directions, one per row, right-handed; missing ones (flat boxes) are filled in."""
    rows = [axis / length if length > 0 else None for axis, length in zip(half, lengths, strict=True)]
    for n in range(3):
        if rows[n] is None:
            others = [row for row in rows if row is not None]
            if len(others) == 2:
                rows[n] = np.cross(rows[(n + 1) % 3], rows[(n + 2) % 3])  # type: ignore[arg-type]
            else:
                free = np.eye(3)[int(np.abs(np.sum(np.abs(others), axis=0)).argmin())] if others else np.eye(3)[n]
                rows[n] = free - sum((free @ row) * row for row in others)
            rows[n] = rows[n] / np.linalg.norm(rows[n])  # type: ignore[operator]
    directions = np.array(rows) + 0.0
    if np.linalg.det(directions) < 0:
        directions[2] *= -1  # a box is the same with any axis turned round
    return directions

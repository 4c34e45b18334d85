"""Slicer markups (`.mrk.json`) as prompts: point lists, lines and curves (cut by slices), ROIs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steadysam.errors import InputError
from steadysam.geometry import to_ras
from steadysam.prompts.curves import slice_crossings, smooth_curve
from steadysam.prompts.markups import OUTPUT_ROLE
from steadysam.prompts.rows import triple, unique_id
from steadysam.types import Box, Grid, Point, Prompts, PromptSource, Sign

_FRAMES = {"LPS": "LPS", "RAS": "RAS", "0": "RAS", "1": "LPS"}
_POINTS = ("Fiducial", "Point", "PointList")
_CURVES = ("Line", "Curve", "ClosedCurve")
_SOURCES = ("human", "centerline", "scribble", "simulated", "detector", "ground_truth")
_FACT = re.compile(r"\b(source|sign|label|annotator): ([^;]*)(?:; |;|$)")
_NEGATIVE_LIST = re.compile(r"(?<![a-z])(negative|background)(?![a-z])", re.IGNORECASE)
_NEGATIVE_LABEL = re.compile(r"^(-$|-\s|(neg|negative|background|bg)(?![a-z]))", re.IGNORECASE)


def markups_to_prompts(
    content: Any, path: Path, grid: Grid | None = None, source: PromptSource | None = None
) -> Prompts:
    """The prompts in the parsed content of a `.mrk.json`.

    Point lists give their points, curves one point per slice crossing (through a smooth curve over their
    knots), ROIs give boxes. Left out, and counted in the history: points without a defined position, and
    points that are *unselected* (that is how an audit marks rejected prompts). Lists that an audit wrote as
    its result are no prompts. A point is negative if its description says `sign: negative`, or its label
    begins with, or the name of its list contains, "negative" or "background".

    Args:
        grid: needed for curves.
        source: of everything that does not say it; default `human`, for curves `centerline`.

    Raises:
        InputError: `PROMPT_SPACE_MISSING` without `coordinateSystem`, `PROMPT_MARKUP_TYPE` for planes and
            angles, `PROMPT_SCHEMA`, `PROMPT_GRID_MISSING`, `PROMPT_BOX_EMPTY`.
    """
    markups = content.get("markups")
    if not isinstance(markups, list) or not all(isinstance(markup, dict) for markup in markups):
        raise InputError("PROMPT_SCHEMA", "/markups: must be a list of objects", file=path)
    points: list[Point] = []
    boxes: list[Box] = []
    skipped = {"undefined": 0, "unselected": 0}
    ids: set[str] = set()
    for n, markup in enumerate(markups):
        where = f"/markups/{n}"
        if _is_output(markup):
            continue
        kind = markup.get("type")
        if kind in _POINTS:
            points += _points(markup, where, path, source, ids, skipped)
        elif kind in _CURVES:
            points += _curve(markup, where, path, grid, source, ids, skipped)
        elif kind == "ROI":
            boxes.append(_roi(markup, where, path, source, ids))
        else:
            raise InputError(
                "PROMPT_MARKUP_TYPE",
                f"{where}: this kind of markup cannot be a prompt",
                file=path,
                seen=ascii(kind)[:60],
                expected="Fiducial, Line, Curve, ClosedCurve or ROI",
                fix="save the points or the ROI to a file of their own",
            )
    step = {
        "step": "read",
        "format": "slicer-markups",
        **{f"skipped_{k}": v for k, v in skipped.items() if v},
    }
    return Prompts(tuple(points), tuple(boxes), history=(step,))


def _is_output(markup: dict[str, Any]) -> bool:
    ours = markup.get("steadysam")
    return isinstance(ours, dict) and ours.get("role") == OUTPUT_ROLE


def _points(
    markup: dict[str, Any],
    where: str,
    path: Path,
    source: PromptSource | None,
    ids: set[str],
    skipped: dict[str, int],
) -> Iterator[Point]:
    list_is_negative = bool(_NEGATIVE_LIST.search(str(markup.get("name", ""))))
    for point, xyz, pointer in _control_points(markup, where, path, skipped):
        label, text = str(point.get("label", "")), str(point.get("description", ""))
        facts = dict(_FACT.findall(text))
        negative = list_is_negative or bool(_NEGATIVE_LABEL.match(label)) or facts.get("sign") == "negative"
        sign: Sign = "negative" if negative else "positive"
        yield Point(
            unique_id(str(point.get("id", "")) or label or "point", ids),
            triple(xyz),
            sign,
            facts.get("label", ""),
            _source(facts, source or "human", path, pointer),
            facts.get("annotator", ""),
            _FACT.sub("", text).strip(),
        )


def _curve(
    markup: dict[str, Any],
    where: str,
    path: Path,
    grid: Grid | None,
    source: PromptSource | None,
    ids: set[str],
    skipped: dict[str, int],
) -> list[Point]:
    knots = [xyz for _, xyz, _ in _control_points(markup, where, path, skipped)]
    if grid is None:
        raise InputError(
            "PROMPT_GRID_MISSING",
            f"{where}: a curve is cut by the slices of its image, which is not known here",
            file=path,
            fix="name the image, for example with --image",
        )
    if not knots:
        return []
    path_mm = np.array(knots)
    if markup["type"] != "Line":
        path_mm = smooth_curve(path_mm, closed=markup["type"] == "ClosedCurve", step_mm=min(grid.spacing_mm) / 2)
    name = str(markup.get("name", "")) or "curve"
    return [
        Point(unique_id(f"{name}-{n}", ids), triple(xyz), source=source or "centerline")
        for n, xyz in enumerate(slice_crossings(path_mm, grid))
    ]


def _roi(markup: dict[str, Any], where: str, path: Path, source: PromptSource | None, ids: set[str]) -> Box:
    centre = _world(_numbers(markup, "center", 3, where, path), markup, where, path)
    size = _numbers(markup, "size", 3, where, path)
    turned = "orientation" in markup
    matrix = (_numbers(markup, "orientation", 9, where, path) if turned else np.eye(3)).reshape(3, 3)
    # columns are the box's axes; directions carry no unit, so the scale of micrometres touches `size` alone
    axes = to_ras(matrix.T, _frame(markup, where, path)) * (np.abs(size) / 2 * _unit_mm(markup, where, path))[:, None]
    if not axes.any():
        raise InputError("PROMPT_BOX_EMPTY", f"{where}: the ROI has no extent", file=path)
    first = next(iter(markup.get("controlPoints") or [{}]))
    text = str(first.get("description", "")) if isinstance(first, dict) else ""
    facts = dict(_FACT.findall(text))
    rows = (triple(axes[0]), triple(axes[1]), triple(axes[2]))
    name = unique_id(str(markup.get("name", "")) or "roi", ids)
    who = _source(facts, source or "human", path, where)
    label, annotator = facts.get("label", ""), facts.get("annotator", "")
    return Box(name, triple(centre), rows, label, who, annotator, _FACT.sub("", text).strip())


def _control_points(
    markup: dict[str, Any], where: str, path: Path, skipped: dict[str, int]
) -> Iterator[tuple[dict[str, Any], NDArray[np.float64], str]]:
    """The points that are defined and selected: (row, RAS+ mm, JSON pointer)."""
    _frame(markup, where, path)  # refuse a list without frame even if it is empty
    rows = markup.get("controlPoints", [])
    if not isinstance(rows, list):
        raise InputError("PROMPT_SCHEMA", f"{where}/controlPoints: must be a list", file=path)
    for n, row in enumerate(rows):
        pointer = f"{where}/controlPoints/{n}"
        if not isinstance(row, dict):
            raise InputError("PROMPT_SCHEMA", f"{pointer}: must be an object", file=path)
        if row.get("positionStatus", "defined") != "defined":
            skipped["undefined"] += 1
        elif row.get("selected", True) is False:
            skipped["unselected"] += 1
        else:
            yield row, _world(_numbers(row, "position", 3, pointer, path), markup, where, path), pointer


def _world(xyz: NDArray[Any], markup: dict[str, Any], where: str, path: Path) -> NDArray[np.float64]:
    return to_ras(xyz * _unit_mm(markup, where, path), _frame(markup, where, path))[0]


def _frame(markup: dict[str, Any], where: str, path: Path) -> Any:
    frame = markup.get("coordinateSystem")
    found = _FRAMES.get(str(frame).strip().upper()) if frame is not None else None
    if found is None:
        raise InputError(
            "PROMPT_SPACE_MISSING",
            f"{where}: the markup does not say in which frame its positions are",
            file=path,
            seen=None if frame is None else ascii(frame)[:60],
            expected='"coordinateSystem": "LPS" or "RAS"',
            fix="add the field; Slicer itself writes LPS",
        )
    return found


def _unit_mm(markup: dict[str, Any], where: str, path: Path) -> float:
    unit = markup.get("coordinateUnits", "mm")
    unit = unit[0] if isinstance(unit, list) and unit else unit
    if unit not in ("mm", "um"):
        raise InputError("PROMPT_SCHEMA", f"{where}/coordinateUnits", file=path, seen=ascii(unit)[:60], expected="mm")
    return 1.0 if unit == "mm" else 1e-3


def _numbers(row: dict[str, Any], key: str, count: int, where: str, path: Path) -> NDArray[np.float64]:
    value = row.get(key)
    good = isinstance(value, list) and len(value) == count
    if not good or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in value or ()):
        raise InputError(
            "PROMPT_SCHEMA", f"{where}/{key}", file=path, seen=ascii(value)[:80], expected=f"{count} numbers"
        )
    return np.array(value, np.float64)


def _source(facts: dict[str, str], default: PromptSource, path: Path, pointer: str) -> Any:
    source = facts.get("source", default)
    if source not in _SOURCES:
        raise InputError(
            "PROMPT_SCHEMA",
            f"{pointer}: unknown source",
            file=path,
            seen=ascii(source)[:60],
            expected=", ".join(_SOURCES),
        )
    return source

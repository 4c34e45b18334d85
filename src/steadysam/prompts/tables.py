"""Prompts in tables: Slicer `.fcsv`, Slicer control-point tables (CSV, TSV), napari points (CSV).

Nothing is guessed: the frame stands in the header or in the letters of the columns. Errors name the row as a
    text
editor counts it.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from steadysam.errors import InputError
from steadysam.geometry import PromptFrame, to_ras
from steadysam.prompts.rows import triple, unique_id
from steadysam.types import Grid, Point, Prompts, PromptSource

_FCSV_COLUMNS = ["id", "x", "y", "z"]  # the others may follow; a header line names them
_FCSV_FRAMES: dict[str, PromptFrame] = {"LPS": "LPS", "1": "LPS", "RAS": "RAS", "0": "RAS"}
_NAPARI = ("axis-0", "axis-1", "axis-2")
_TRUE, _FALSE = ("1", "true", "yes"), ("0", "false", "no")

Row = tuple[int, list[str]]
"""Line number in the file, cells."""


def read_table(path: Path, grid: Grid | None, source: PromptSource) -> Prompts:
    """Read `.fcsv`, `.csv` or `.tsv`; which of the three formats is told by the header.

    Points that are not selected or not defined are left out and counted in the history.

    Raises:
        InputError: `PROMPT_CSV` with the row, `PROMPT_SPACE_MISSING`, `PROMPT_GRID_MISSING` (napari without
            grid).
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError("PROMPT_CSV", "not UTF-8 text", file=path, seen=f"byte {error.start}") from error
    if "\0" in text:
        raise InputError("PROMPT_CSV", "not a text table", file=path, seen="a zero byte")
    lines = text.splitlines()
    if path.name.lower().endswith(".fcsv") or text.startswith("# Markups fiducial file"):
        points, skipped = _fcsv(lines, path, source)
        kind = "fcsv"
    else:
        header, rows = _split(lines, path)
        if set(_NAPARI[:2]) <= set(header):
            points, skipped, kind = _napari(header, rows, path, grid, source), 0, "napari"
        else:
            points, skipped = _slicer_table(header, rows, path, source)
            kind = "slicer-table"
    step: dict[str, Any] = {"step": "read", "format": kind}
    return Prompts(tuple(points), history=({**step, "skipped": skipped} if skipped else step,))


def _fcsv(lines: Sequence[str], path: Path, source: PromptSource) -> tuple[list[Point], int]:
    frame: PromptFrame | None = None
    columns = _FCSV_COLUMNS
    rows: list[Row] = []
    for number, line in enumerate(lines, 1):
        if line.startswith("#"):
            key, _, value = line[1:].partition("=")
            if key.strip().lower() == "coordinatesystem":
                frame = _FCSV_FRAMES.get(value.strip().upper())
            elif key.strip().lower() == "columns":
                columns = [name.strip() for name in value.split(",")]
        elif line.strip():
            rows.append((number, next(csv.reader([line]))))
    if frame is None:
        raise InputError(
            "PROMPT_SPACE_MISSING",
            "the header does not say in which frame the positions are",
            file=path,
            expected="a line `# CoordinateSystem = LPS` (or RAS, 0 for RAS, 1 for LPS)",
            fix="add the line; it is never guessed",
        )
    if not {"x", "y", "z"} <= set(columns):
        raise InputError("PROMPT_CSV", "the header names no columns x, y, z", file=path, seen=columns)
    return _points(
        rows,
        columns,
        ("x", "y", "z"),
        path,
        source,
        lambda xyz: to_ras(np.array(xyz), frame)[0],
        optional=len(columns) - max(columns.index(name) for name in "xyz") - 1,
    )


def _slicer_table(header: list[str], rows: list[Row], path: Path, source: PromptSource) -> tuple[list[Point], int]:
    letters = {"LPS": ("l", "p", "s"), "RAS": ("r", "a", "s")}
    found = [frame for frame, names in letters.items() if set(names) <= set(header)]
    if len(found) != 1:
        looks = {"x", "y", "z"} <= set(header)
        raise InputError(
            "PROMPT_SPACE_MISSING" if looks else "PROMPT_CSV",
            "the columns do not say in which frame the positions are" if looks else "no known columns in the header",
            file=path,
            seen=ascii(header)[:120],
            expected="label,l,p,s,… or label,r,a,s,… (Slicer) or index,axis-0,axis-1,axis-2 (napari)",
            fix="name the columns l,p,s or r,a,s" if looks else None,
        )
    frame: Any = found[0]
    return _points(rows, header, letters[frame], path, source, lambda xyz: to_ras(np.array(xyz), frame)[0])


def _napari(header: list[str], rows: list[Row], path: Path, grid: Grid | None, source: PromptSource) -> list[Point]:
    if not set(_NAPARI) <= set(header):
        raise InputError(
            "PROMPT_SLICE_MISSING",
            "points of a 2-D layer have no slice",
            file=path,
            expected=",".join(_NAPARI),
        )
    if grid is None:
        raise InputError(
            "PROMPT_GRID_MISSING",
            "napari stores array indices, which need their image to become millimetres",
            file=path,
            fix="name the image, for example with --image",
        )
    points, _ = _points(
        rows,
        header,
        _NAPARI,
        path,
        source,
        lambda ijk: to_ras(np.array(ijk), "ijk", grid)[0],
        label_is_id=False,
    )
    return points


def _points(
    rows: list[Row],
    columns: Sequence[str],
    axes: Sequence[str],
    path: Path,
    source: PromptSource,
    place: Callable[[list[float]], Any],
    *,
    optional: int = 0,
    label_is_id: bool = True,
) -> tuple[list[Point], int]:
    """Points from rows; `optional` trailing columns may be missing. Returns also the number of rows left
    out.
    """
    points, skipped, ids = [], 0, set()
    for number, cells in rows:
        if not len(columns) - optional <= len(cells) <= len(columns):
            _refuse(path, number, f"{len(cells)} cells", f"{len(columns)} cells")
        row = dict(zip(columns, (cell.strip() for cell in cells), strict=False))
        used = [_flag(row, name, path, number) for name in ("sel", "selected", "defined")]
        if not all(used):
            skipped += 1
            continue
        xyz = [_number(row[axis], path, number) for axis in axes]
        name = row.get("id") or (row.get("label") if label_is_id else "") or row.get("index") or str(len(ids) + 1)
        negative = row.get("sign", "").lower() in ("negative", "-") or _is_negative(row)
        points.append(
            Point(
                unique_id(name[:200], ids),
                triple(place(xyz)),
                "negative" if negative else "positive",
                source=source,
                description=(row.get("description") or row.get("desc") or "")[:1000],
            )
        )
    return points, skipped


def _is_negative(row: Mapping[str, str]) -> bool:
    return row.get("label", "").lower().startswith(("negative", "background"))


def _split(lines: Sequence[str], path: Path) -> tuple[list[str], list[Row]]:
    """Header (lower case) and rows of a table with `,` `;` or tab; empty lines are skipped."""
    filled = [(n, line) for n, line in enumerate(lines, 1) if line.strip() and not line.startswith("#")]
    if not filled:
        raise InputError("PROMPT_CSV", "the table is empty", file=path, expected="a header and rows")
    first = filled[0][1]
    delimiter = max(",;\t", key=first.count)
    try:
        cells = [(n, next(csv.reader([line], delimiter=delimiter, strict=True))) for n, line in filled]
    except csv.Error as error:
        raise InputError("PROMPT_CSV", f"cannot be read: {error}", file=path) from error
    header = [name.strip().lower() for name in cells[0][1]]
    if len(set(header)) != len(header):
        _refuse(path, cells[0][0], "a column name that stands twice", "different names")
    return header, cells[1:]


def _number(cell: str, path: Path, number: int) -> float:
    try:
        value = float(cell) if "_" not in cell else math.nan
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        _refuse(path, number, ascii(cell)[:60], "a finite number with a decimal point")
    return value


def _flag(row: Mapping[str, str], name: str, path: Path, number: int) -> bool:
    cell = row.get(name, "1").lower() or "1"
    if cell not in (*_TRUE, *_FALSE):
        _refuse(path, number, f"{name} = {ascii(cell)[:60]}", "0 or 1")
    return cell in _TRUE


def _refuse(path: Path, number: int, seen: str, expected: str) -> NoReturn:
    raise InputError("PROMPT_CSV", f"row {number} cannot be read", file=path, seen=seen, expected=expected)

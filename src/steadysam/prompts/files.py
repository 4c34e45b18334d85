"""Prompt files: our JSON read and written, other formats recognised and handed to their readers.

Inside, everything is RAS+ millimetres. Our JSON must say its `frame` and the `source` of every prompt;
nothing is guessed (ecosystem.md 3.4, reliability.md 2.5).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from steadysam.errors import InputError, ResourceError
from steadysam.files import read_json, write_json
from steadysam.geometry import PromptFrame, describe_grid, from_ras, to_ras
from steadysam.prompts.rows import triple
from steadysam.types import Box, Grid, ImageRef, Point, Prompts, PromptSource

MAX_PROMPTS = 10_000
MAX_BYTES = 50 << 20
_SCRIBBLES = (".nii", ".nii.gz", ".nrrd", ".mha")


def read_prompts(
    path: str | Path,
    grid: Grid | None = None,
    *,
    source: PromptSource | None = None,
    verify_image: bool = True,
) -> Prompts:
    """Read prompts of any supported text format, told by suffix and content.

    Args:
        grid: the image's grid. Needed for array indices (ijk, napari) and for curves, which are cut by its
            slices; where the file names an image, it is checked against the grid.
        source: who made the prompts, for formats that do not say (default: `human`; curves: `centerline`).
        verify_image: whether prompts of another image are refused (`prompts check` reports them instead).

    Raises:
        InputError: `FILE_MISSING`, `PROMPT_FORMAT`, `PROMPT_SCHEMA`, `PROMPT_SPACE_MISSING`,
            `PROMPT_SOURCE_MISSING`, `PROMPT_CSV`, `PROMPT_WRONG_IMAGE`, `PROMPT_GRID_MISSING`,
            `PROMPT_BOX_ORDER`, `PROMPT_TOO_LARGE`, `JSON_*`.
        ResourceError: `PROMPT_TOO_MANY`.
    """
    path = Path(path)
    name = path.name.lower()
    if not path.is_file():
        raise InputError("FILE_MISSING", "no such prompt file", file=path, fix="check the path")
    if name.endswith(_SCRIBBLES):
        raise InputError(
            "PROMPT_FORMAT",
            "scribbles are a label volume, which must first be turned into points",
            file=path,
            fix="run `steadysam prompts convert SCRIBBLES -o FILE.json --value N`",
        )
    if path.stat().st_size > MAX_BYTES:
        raise InputError(
            "PROMPT_TOO_LARGE",
            "too large for a prompt file",
            file=path,
            seen=path.stat().st_size,
            expected=MAX_BYTES,
        )
    if name.endswith((".csv", ".tsv", ".fcsv")):
        from steadysam.prompts.tables import read_table

        prompts = read_table(path, grid, source or "human")
    elif name.endswith(".json"):
        prompts = _read_any_json(path, grid, source)
    else:
        raise InputError(
            "PROMPT_FORMAT",
            "unknown kind of prompt file",
            file=path,
            expected=".json, .mrk.json, .fcsv, .csv, .tsv",
        )
    if len(prompts) > MAX_PROMPTS:
        raise ResourceError("PROMPT_TOO_MANY", "too many prompts", file=path, seen=len(prompts), expected=MAX_PROMPTS)
    if grid is not None and verify_image:
        check_image(prompts, grid, path)
    return prompts


def write_prompts(path: str | Path, prompts: Prompts, *, frame: PromptFrame = "RAS", grid: Grid | None = None) -> Path:
    """Write our JSON, atomically. RAS and LPS keep every coordinate bit for bit; ijk needs the grid and
    rounds.
    """
    rows = [_point_row(point, frame, grid) for point in prompts.points]
    rows += [_box_row(box, frame, grid) for box in prompts.boxes]
    image = prompts.image
    content = {
        "format": "steadysam-prompts",
        "version": 1,
        "frame": frame,
        "image": _filled(
            {"name": image.name, "shape": list(image.shape) if image.shape else None, "grid": image.grid_key}
        ),
        "prompts": rows,
        "history": [dict(step) for step in prompts.history],
    }
    return write_json(path, content)


def check_image(prompts: Prompts, grid: Grid, path: str | Path | None = None) -> None:
    """Refuse prompts that say they belong to another image.

    Raises:
        InputError: `PROMPT_WRONG_IMAGE` if the shape or the grid's hash differs from what the file says.
    """
    image = prompts.image
    shape_differs = image.shape is not None and tuple(image.shape) != tuple(grid.shape)
    key_differs = bool(image.grid_key) and image.grid_key != grid.key()
    if shape_differs or key_differs:
        seen = f"image of shape {image.shape}" + (f", grid {image.grid_key[:12]}" if image.grid_key else "")
        raise InputError(
            "PROMPT_WRONG_IMAGE",
            "the prompts were made for another image" + (f" ({image.name})" if image.name else ""),
            file=path,
            seen=seen,
            expected=f"{describe_grid(grid)}, grid {grid.key()[:12]}",
            fix="give the image that the prompts were drawn on; if only its header was repaired, delete the "
            "field `image` of the prompt file",
        )


def found_nothing(prompts: Prompts) -> bool:
    """Whether these are the prompts of a detector that looked and drew no box: an answer, not an omission."""
    return not len(prompts) and any(step.get("step") == "detect" for step in prompts.history)


def require_points(prompts: Prompts, path: str | Path | None = None) -> Prompts:
    """The same prompts, if there is at least one positive point or a box.

    Raises:
        InputError: `PROMPT_NONE`, `PROMPT_NO_POSITIVE`.
    """
    if not len(prompts):
        raise InputError("PROMPT_NONE", "there are no prompts at all", file=path, fix="place at least one point")
    if not prompts.boxes and all(point.sign == "negative" for point in prompts.points):
        raise InputError("PROMPT_NO_POSITIVE", "all prompts are negative", file=path, fix="add a positive point")
    return prompts


def _read_any_json(path: Path, grid: Grid | None, source: PromptSource | None) -> Prompts:
    content = read_json(path)
    if isinstance(content, dict) and "markups" in content:
        from steadysam.prompts.markups_read import markups_to_prompts

        return markups_to_prompts(content, path, grid, source)
    return _parse(content, path, grid)


def _parse(content: Any, path: Path, grid: Grid | None) -> Prompts:
    from steadysam.prompts.schema import BoxEntry, PointEntry, PromptFile, parse

    if isinstance(content, dict) and "frame" not in content:
        raise InputError(
            "PROMPT_SPACE_MISSING",
            "the file does not say in which frame its coordinates are",
            file=path,
            expected='"frame": "RAS", "LPS" or "ijk" (array indices of the stored file)',
            fix="add the field; it is never guessed",
        )
    file = parse(PromptFile, content, path)
    if file.frame == "ijk" and grid is None:
        raise InputError(
            "PROMPT_GRID_MISSING",
            "array indices (ijk) need their image to become millimetres",
            file=path,
            fix="name the image, for example with --image",
        )
    if len(file.prompts) > MAX_PROMPTS:
        raise ResourceError(
            "PROMPT_TOO_MANY", "too many prompts", file=path, seen=len(file.prompts), expected=MAX_PROMPTS
        )
    points, boxes, ids = [], [], set()
    for n, row in enumerate(file.prompts):
        pointer = f"/prompts/{n}"
        entry = parse(BoxEntry if row.get("kind") == "box" else PointEntry, row, path, pointer)
        if entry.id in ids:
            raise InputError("PROMPT_SCHEMA", f"{pointer}/id: stands twice", file=path, seen=ascii(entry.id))
        ids.add(entry.id)
        common = _common(entry, file.source, path, pointer)
        if isinstance(entry, PointEntry):
            xyz = triple(to_ras(np.array(entry.coordinates), file.frame, grid)[0])
            points.append(Point(xyz_mm=xyz, sign=entry.sign, **common))
        else:
            centre, axes = _box_axes(entry, file.frame, grid, path, pointer)
            boxes.append(Box(centre_mm=centre, half_axes_mm=axes, **common))
    shape = tuple(file.image.shape) if file.image.shape else None
    image = ImageRef(file.image.name, shape, file.image.grid)  # type: ignore[arg-type]
    return Prompts(tuple(points), tuple(boxes), image, tuple(file.history))


def _common(entry: Any, default: PromptSource | None, path: Path, pointer: str) -> dict[str, Any]:
    """What points and boxes share; the source may stand once at the top of the file."""
    source = entry.source or default
    if source is None:
        raise InputError(
            "PROMPT_SOURCE_MISSING",
            f"{pointer}: the file does not say where this prompt comes from",
            file=path,
            expected="source: human, centerline, scribble, simulated, detector or ground_truth",
            fix="add `source` to the prompt, or once at the top level",
        )
    texts = {name: getattr(entry, name) for name in ("id", "label", "annotator", "description")}
    return {**texts, "source": source}


def _box_axes(entry: Any, frame: PromptFrame, grid: Grid | None, path: Path, pointer: str) -> tuple[Any, Any]:
    """Centre and half-axes in RAS+ mm from either form of a box."""
    if entry.coordinates is not None and entry.centre is None and entry.half_axes is None:
        corners = _numbers(entry.coordinates, (2, 3), path, f"{pointer}/coordinates")
        if (corners[0] > corners[1]).any():
            raise InputError(
                "PROMPT_BOX_ORDER",
                f"{pointer}/coordinates: the first corner must be the smaller one along every axis",
                file=path,
                seen=entry.coordinates,
            )
        centre, half = corners.mean(axis=0), np.diag((corners[1] - corners[0]) / 2)
    elif entry.coordinates is None and entry.centre is not None and entry.half_axes is not None:
        centre = _numbers(entry.centre, (3,), path, f"{pointer}/centre")
        half = _numbers(entry.half_axes, (3, 3), path, f"{pointer}/half_axes")
    else:
        raise InputError(
            "PROMPT_SCHEMA",
            f"{pointer}: a box has either `coordinates` or `centre` and `half_axes`",
            file=path,
        )
    if not half.any():
        raise InputError("PROMPT_BOX_EMPTY", f"{pointer}: the box has no extent", file=path)
    middle = to_ras(centre, frame, grid)[0]
    zero = to_ras(np.zeros(3), frame, grid)[0]
    axes = [triple(to_ras(row, frame, grid)[0] - zero) for row in half]  # directions: without the origin
    return triple(middle), (axes[0], axes[1], axes[2])


def _numbers(value: Any, shape: tuple[int, ...], path: Path, pointer: str) -> Any:
    try:
        array = np.array(value, np.float64)
    except ValueError:
        array = np.zeros(0)
    if array.shape != shape:
        raise InputError("PROMPT_SCHEMA", f"{pointer}: wrong number of values", file=path, expected=f"shape {shape}")
    return array


def _point_row(point: Point, frame: PromptFrame, grid: Grid | None) -> dict[str, Any]:
    row = {
        "id": point.id,
        "kind": "point",
        "sign": point.sign,
        "coordinates": list(triple(from_ras(np.array(point.xyz_mm), frame, grid)[0])),
        "source": point.source,
        "label": point.label,
        "annotator": point.annotator,
        "description": point.description,
    }
    return _filled(row)


def _box_row(box: Box, frame: PromptFrame, grid: Grid | None) -> dict[str, Any]:
    zero = from_ras(np.zeros(3), frame, grid)[0]
    axes = [list(triple(from_ras(np.array(axis), frame, grid)[0] - zero)) for axis in box.half_axes_mm]
    row = {
        "id": box.id,
        "kind": "box",
        "centre": list(triple(from_ras(np.array(box.centre_mm), frame, grid)[0])),
        "half_axes": axes,
        "source": box.source,
        "label": box.label,
        "annotator": box.annotator,
        "description": box.description,
    }
    return _filled(row)


def _filled(row: Mapping[str, Any]) -> dict[str, Any]:
    """Without empty texts, which the reader fills in again."""
    return {key: value for key, value in row.items() if value not in ("", None)}

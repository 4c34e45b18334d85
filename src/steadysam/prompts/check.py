"""What is wrong, or odd, about prompts on an image; needs no model."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import permutations
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from steadysam.errors import InputError
from steadysam.geometry import (
    box_corners_voxel,
    distance_outside_mm,
    flip_lps_ras,
    nearest_slices,
    ras_to_voxel,
    voxel_to_ras,
)
from steadysam.prompts.files import check_image, found_nothing
from steadysam.types import Grid, Prompts

Severity = Literal["error", "warning", "info"]

_MOSTLY = 0.5  # a wrong frame is suspected when more than this share of the points is outside, and comes in by it
_NEIGHBOURS = 2  # slices on either side in which a prompted slice expects company
_SHOWN = 10  # findings of one code that the text for people lists
_PATCH = 2  # voxels on either side that must all be equal for a point to lie on padding


@dataclass(frozen=True)
class Finding:
    """One thing worth knowing.

    Args:
        code: stable name; those of errors are the codes of the errors that other commands would raise.
        severity: `error` (cannot be used as it is), `warning` (probably not meant), `info`.
        text: one sentence for people.
        ids: the prompts concerned.
        data: numbers behind the sentence.
    """

    code: str
    severity: Severity
    text: str
    ids: tuple[str, ...] = ()
    data: dict[str, Any] | None = None


@dataclass(frozen=True)
class CheckReport:
    """All findings, errors first, and what was checked."""

    findings: tuple[Finding, ...]
    points: int
    boxes: int
    slices: int
    sources: tuple[str, ...]

    @property
    def has_errors(self) -> bool:
        """Whether the prompts cannot be used as they are."""
        return any(finding.severity == "error" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `ok` is false if there are errors."""
        return {"ok": not self.has_errors, **asdict(self)}

    def text(self) -> str:
        """For people: a summary line, then one line per finding."""
        head = (
            f"{self.points} points and {self.boxes} boxes on {self.slices} slices, "
            f"source {', '.join(self.sources) or 'none'}"
        )
        shown: Counter[str] = Counter()
        rows = []
        for finding in self.findings:
            shown[finding.code] += 1
            if shown[finding.code] <= _SHOWN:
                rows.append(f"{finding.severity:<7} {finding.code:<22} {finding.text}")
        rows += [f"… and {n - _SHOWN} more {code}" for code, n in shown.items() if n > _SHOWN]
        return "\n".join([head, *(rows or ["nothing found"])])


def check(prompts: Prompts, grid: Grid, image: NDArray[Any] | None = None, image_name: str = "") -> CheckReport:
    """Look for points outside, wrong frames, duplicates, sign conflicts, points on padding and lonely slices.

    Args:
        image: (I, J, K[, C]) voxels, for the check on padding; left out without it.
        image_name: file name of the image, compared with the name that the prompts give.
    """
    ijk = ras_to_voxel(prompts.points_mm(), grid)
    distance = distance_outside_mm(prompts.points_mm(), grid)
    inside = distance == 0
    findings = [
        *_other_image(prompts, grid, image_name),
        *_none(prompts),
        *_outside(prompts, ijk, distance, grid),
    ]
    findings += _same_voxel(prompts, ijk, inside)
    findings += _boxes(prompts, grid)
    if image is not None:
        findings += _padding(prompts, ijk, inside, grid, image)
    slices = sorted(set(nearest_slices(ijk[inside], grid).tolist()))
    findings += _lonely(slices) if len(slices) > 1 else []
    order = ("error", "warning", "info")
    findings.sort(key=lambda finding: order.index(finding.severity))
    return CheckReport(tuple(findings), len(prompts.points), len(prompts.boxes), len(slices), prompts.sources)


def _other_image(prompts: Prompts, grid: Grid, image_name: str) -> Iterator[Finding]:
    try:
        check_image(prompts, grid)
    except InputError as error:
        yield Finding(error.code, "error", f"{error.what} (seen {error.seen})")
    if image_name and prompts.image.name and prompts.image.name != image_name:
        # grids of two patients can be equal, and files get renamed: worth a look, no error
        text = f"the prompts name the image {prompts.image.name!r}, this is {image_name!r}"
        yield Finding("PROMPT_IMAGE_NAME", "warning", text)


def _none(prompts: Prompts) -> Iterator[Finding]:
    if found_nothing(prompts):
        yield Finding("PROMPT_NONE", "info", "a detector found nothing: predict writes an empty mask")
    elif not len(prompts):
        yield Finding("PROMPT_NONE", "error", "there are no prompts at all")
    elif not prompts.boxes and all(point.sign == "negative" for point in prompts.points):
        yield Finding("PROMPT_NO_POSITIVE", "warning", "all prompts are negative")
    if "ground_truth" in prompts.sources:
        yield Finding(
            "PROMPT_GROUND_TRUTH",
            "info",
            "some prompts come from the ground truth; results must say so",
        )


def _outside(prompts: Prompts, ijk: NDArray[Any], distance: NDArray[np.float64], grid: Grid) -> Iterator[Finding]:
    beyond = distance > 0
    if not beyond.any():
        return
    if beyond.mean() > _MOSTLY:
        yield from _suspects(prompts, grid, float(beyond.mean()))
    for n in np.flatnonzero(beyond):
        side, border = _nearest_border(ijk[n], grid)
        yield Finding(
            "PROMPT_OUTSIDE",
            "error",
            f"point {prompts.points[n].id!r} lies {distance[n]:.1f} mm outside, "
            f"beyond the {side} of array axis {border}",
            (prompts.points[n].id,),
            {"distance_mm": round(float(distance[n]), 3), "voxel": [round(float(v), 2) for v in ijk[n]]},
        )


def _nearest_border(ijk: NDArray[Any], grid: Grid) -> tuple[str, int]:
    """The border that the point is farthest beyond, in mm."""
    low, high = -0.5 - ijk, ijk - (np.array(grid.shape) - 0.5)
    over = np.maximum(low, high) * np.array(grid.spacing_mm)
    axis = int(over.argmax())
    return ("start" if low[axis] > high[axis] else "end"), axis


def _suspects(prompts: Prompts, grid: Grid, share_outside: float) -> Iterator[Finding]:
    """The readings of the numbers under which the points would lie inside; the simplest that explains
    them.
    """
    best = {name: float(np.mean(distance_outside_mm(xyz, grid) == 0)) for name, xyz in _readings(prompts, grid)}
    found = {name: share for name, share in best.items() if share > 1 - _MOSTLY and share > 1 - share_outside}
    top = max(found.values(), default=0.0)
    names = [name for name, share in found.items() if share == top]
    if names:
        yield Finding(
            "PROMPT_SPACE_SUSPECT",
            "error",
            f"{share_outside:.0%} of the points lie outside, but {top:.0%} lie inside if {' or '.join(names[:2])}",
            tuple(point.id for point in prompts.points),
            {"share_outside": share_outside, "share_inside_if": found},
        )


def _readings(prompts: Prompts, grid: Grid) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """What the coordinates could have meant instead, as RAS+ mm, the commonest mistakes first."""
    world = prompts.points_mm()
    ijk = ras_to_voxel(world, grid)
    last = np.array(grid.shape) - 1
    yield "LPS and RAS are swapped", flip_lps_ras(world)
    yield "the numbers are array indices (ijk)", voxel_to_ras(world, grid)
    yield "the numbers are array indices in reverse order (kji)", voxel_to_ras(world[:, ::-1], grid)
    yield "the array indices are millimetres (RAS)", ijk
    yield "the array indices are millimetres (LPS)", flip_lps_ras(ijk)
    for order in list(permutations(range(3)))[1:]:
        name = "".join("ijk"[axis] for axis in order)
        yield f"the array axes come in the order {name}", voxel_to_ras(ijk[:, list(order)], grid)
    for axis in range(3):
        turned = ijk.copy()
        turned[:, axis] = last[axis] - turned[:, axis]
        yield f"array axis {axis} runs backwards", voxel_to_ras(turned, grid)


def _same_voxel(prompts: Prompts, ijk: NDArray[Any], inside: NDArray[np.bool_]) -> Iterator[Finding]:
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for n in np.flatnonzero(inside):
        groups[tuple(np.floor(ijk[n] + 0.5).astype(int).tolist())].append(int(n))
    for voxel, rows in groups.items():
        if len(rows) < 2:
            continue
        points = [prompts.points[n] for n in rows]
        ids = tuple(point.id for point in points)
        at = f"voxel {list(voxel)}"
        for label in dict.fromkeys(point.label for point in points):
            signs = [point.sign for point in points if point.label == label]
            if len(set(signs)) > 1:
                text = f"{at} is marked positive and negative"
                yield Finding("PROMPT_CONFLICT", "warning", text, ids, {"voxel": list(voxel)})
            elif len(signs) > 1:
                text = f"{len(signs)} equal points in {at}"
                yield Finding("PROMPT_DUPLICATE", "warning", text, ids, {"voxel": list(voxel)})


def _boxes(prompts: Prompts, grid: Grid) -> Iterator[Finding]:
    last = np.array(grid.shape) - 0.5
    for box in prompts.boxes:
        low, high = box_corners_voxel(box, grid)
        if (high < -0.5).any() or (low > last).any():
            yield Finding("PROMPT_OUTSIDE", "error", f"box {box.id!r} lies outside the volume", (box.id,))
        elif (low < -0.5 - 1e-4).any() or (high > last + 1e-4).any():
            yield Finding("PROMPT_BOX_BEYOND", "warning", f"box {box.id!r} reaches beyond the volume", (box.id,))
        in_plane = list(grid.plane_axes)
        if (low[in_plane] <= -0.4).all() and (high[in_plane] >= last[in_plane] - 0.1).all():
            yield Finding("PROMPT_BOX_WHOLE", "warning", f"box {box.id!r} covers whole slices", (box.id,))


def _padding(
    prompts: Prompts, ijk: NDArray[Any], inside: NDArray[np.bool_], grid: Grid, image: NDArray[Any]
) -> Iterator[Finding]:
    """Points whose whole surrounding in the slice is one value, namely the image's lowest."""
    if image.shape[:3] != grid.shape:
        raise InputError("PROMPT_GRID", "the image lies on another grid", seen=image.shape, expected=grid.shape)
    lowest = image.min()
    ids = []
    for n in np.flatnonzero(inside):
        centre = np.clip(np.floor(ijk[n] + 0.5).astype(int), 0, np.array(grid.shape) - 1)
        cut = [slice(max(0, c - _PATCH), c + _PATCH + 1) for c in centre]
        cut[grid.slice_axis] = slice(centre[grid.slice_axis], centre[grid.slice_axis] + 1)
        if (image[tuple(cut)] == lowest).all():
            ids.append(prompts.points[n].id)
    if ids:
        text = f"{len(ids)} points lie on padding or air (constant {lowest:g} around them)"
        yield Finding("PROMPT_PADDING", "warning", text, tuple(ids))


def _lonely(slices: list[int]) -> list[Finding]:
    """Slices without company within two slices, and gaps of the tracing."""
    findings = []
    for n, t in enumerate(slices):
        near = [abs(t - other) for other in slices[max(0, n - 1) : n + 2] if other != t]
        if min(near) > _NEIGHBOURS:
            text = f"slice {t} has prompts, but no slice within {_NEIGHBOURS} of it has"
            findings.append(Finding("PROMPT_LONELY_SLICE", "warning", text, data={"slice": t}))
    gaps = [(a, b) for a, b in zip(slices[:-1], slices[1:], strict=True) if b - a > 1]
    if gaps:
        missing = sum(b - a - 1 for a, b in gaps)
        where = ", ".join(f"{a + 1}-{b - 1}" if b - a > 2 else str(a + 1) for a, b in gaps[:8])
        text = f"{missing} slices between the first and the last prompted one have no prompt: {where}"
        findings.append(Finding("PROMPT_GAP", "info", text + (" …" if len(gaps) > 8 else "")))
    return findings

"""The audit: what became of every prompt and why, as JSON for programs and as markups for 3D Slicer.

`CASE.audit.json` holds every prompt with verdict, reason and evidence, and the consensus points by slice.
`CASE.audit.mrk.json` shows the same in two lists: the prompts as given, all but the accepted ones unselected,
and the points that the decoder was given. Unselected points and the second list are no prompts for our
reader: with some clicks moved, the file can be used as prompts again. Both files depend on their input only.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from steadysam.files import write_json
from steadysam.geometry import flip_lps_ras, ras_to_voxel, slice_to_ras, voxel_to_ras
from steadysam.prompts.markups import MarkupsList, MarkupsPoint, describe, write_markups
from steadysam.types import Decision, Frame, Grid, Mask, Point, Prompts, SlicePoints

FORMAT = "steadysam-audit/1"
_DIGITS = 4  # of saliencies and millimetres in the files
_CONSENSUS_RGB = (0.2, 0.7, 1.0)
_VERDICT = re.compile(r"^(accepted|rejected|ignored|added)\b[^;]*(;\s*|$)")


class Audited(Protocol):
    """What an audit needs of a segmented volume; `steadysam.segmenting.Result` has it."""

    @property
    def mask(self) -> Mask: ...
    @property
    def decisions(self) -> Sequence[Decision]: ...
    @property
    def points(self) -> Sequence[SlicePoints]: ...


def decisions_to_slice(decisions: Sequence[Decision], frame: Frame) -> tuple[Decision, ...]:
    """The same decisions with `xy` brought from model pixels to slice pixels."""
    if not decisions:
        return ()
    xy = frame.to_slice(np.array([decision.xy for decision in decisions]))
    return tuple(replace(decision, xy=(float(x), float(y))) for decision, (x, y) in zip(decisions, xy, strict=True))


def audit_case(case: str, prompts: Prompts, result: Audited, meta: Mapping[str, Any]) -> dict[str, Any]:
    """The content of `CASE.audit.json`.

    Args:
        case: case name.
        prompts: as they were given.
        result: mask, decisions and decoder points, the last two in slice pixels.
        meta: facts about the run (method, hash of the weights), copied.

    Returns:
        JSON-able: `counts`, `prompts` (one row each, in file order), `consensus` (one entry per slice that
        has points). Saliency is read at the point on the slice where it was placed (`own`), on the slice in
        question (`here`) and on the context window (`neighbours`). `distance_mm` goes to the nearest voxel
        centre of the mask; 0 in the mask, null if the mask is empty.
    """
    grid = result.mask.grid
    own = _own_decisions(prompts, result)
    rows = _prompt_rows(prompts, result, own)
    consensus = _consensus(result, grid)
    verdicts = Counter(row["verdict"] for row in rows)
    prompted = {row["slice"] for row in rows if row["slice"] is not None}
    points = sum(len(entry["points"]) for entry in consensus)
    counts = {
        "prompts": len(rows),
        **{verdict: verdicts[verdict] for verdict in ("accepted", "rejected", "ignored")},
        "added": sum(point["verdict"] == "added" for entry in consensus for point in entry["points"]),
        "consensus_points": points,
        "slices": grid.depth,
        "prompted_slices": len(prompted),
        "consensus_slices": len(consensus),
    }
    return {
        "format": FORMAT,
        "case": case,
        **meta,
        "prompt_hash": prompts.key(),
        "counts": counts,
        "prompts": rows,
        "consensus": consensus,
    }


def write_audit(
    folder: str | Path, case: str, prompts: Prompts, result: Audited, meta: Mapping[str, Any]
) -> dict[str, Any]:
    """Write `CASE.audit.json` and `CASE.audit.mrk.json` into `folder`; returns the content of the first.

    Raises:
        FileSystemError, ResourceError: see `steadysam.files.atomic_write`.
    """
    audit = audit_case(case, prompts, result, meta)
    write_json(Path(folder) / f"{case}.audit.json", audit)
    write_markups(Path(folder) / f"{case}.audit.mrk.json", audit_lists(prompts, audit), prompts.boxes)
    return audit


def audit_lists(prompts: Prompts, audit: Mapping[str, Any]) -> tuple[MarkupsList, MarkupsList]:
    """The two lists of `CASE.audit.mrk.json`, with saliency and distance as measurements of their points."""
    rows = [row for row in audit["prompts"] if row["kind"] == "point"]
    given = [
        MarkupsPoint(p.id, p.xyz_mm, p.id, _described(p, row), row["verdict"] == "accepted")
        for p, row in zip(prompts.points, rows, strict=True)
    ]
    chosen, here, origin = [], [], []
    for entry in audit["consensus"]:
        for row in entry["points"]:
            name, (x, y, z) = f"{row['prompt']}@{entry['slice']}", row["ras_mm"]
            colon = " " if row["verdict"] == "added" else ": "
            chosen.append(MarkupsPoint(name, (x, y, z), name, f"{row['verdict']}{colon}{row['reason']}"))
            here.append(row["saliency"] and row["saliency"]["here"])
            origin.append(row["from_slice"])
    own = [row["saliency"] and row["saliency"]["own"] for row in rows]
    distance = [row["distance_mm"] for row in rows]
    return (
        MarkupsList(f"{audit['case']} prompts", tuple(given), {"saliency": own, "distance_mm": distance}),
        MarkupsList(
            f"{audit['case']} consensus",
            tuple(chosen),
            {"saliency": here, "from_slice": origin},
            is_output=True,
            color=_CONSENSUS_RGB,
        ),
    )


def _described(prompt: Point, row: Mapping[str, Any]) -> str:
    """Verdict and reason first; then what Slicer has no field for. An older verdict is replaced."""
    facts = describe(replace(prompt, description=_VERDICT.sub("", prompt.description)))
    return f"{row['verdict']}: {row['reason']}; {facts}"


def _own_decisions(prompts: Prompts, result: Audited) -> dict[str, Decision]:
    """Prompt id -> the decision taken on its own slice; methods that decide nothing pass every point on."""
    found = {d.prompt_id: d for d in result.decisions if d.slice == d.from_slice}
    for t, points in enumerate(result.points):
        for name, (x, y) in zip(points.ids, points.xy.tolist(), strict=True):
            found.setdefault(name, Decision(name, t, t, "accepted", "passed on as given", xy=(x, y)))
    for row in (*prompts.points, *prompts.boxes):
        found.setdefault(row.id, Decision(row.id, -1, -1, "ignored", "not used by this method"))
    return found


def _prompt_rows(prompts: Prompts, result: Audited, own: Mapping[str, Decision]) -> list[dict[str, Any]]:
    added: dict[str, list[int]] = {}
    for decision in result.decisions:
        if decision.verdict == "added":
            added.setdefault(decision.prompt_id, []).append(decision.slice)
    kinds = [("point", point.sign, point.xyz_mm, point) for point in prompts.points]
    kinds += [("box", "positive", box.centre_mm, box) for box in prompts.boxes]
    places = np.array([place for _, _, place, _ in kinds], np.float64).reshape(-1, 3)
    distance = distance_to_mask_mm(places, result.mask)
    rows = []
    for (kind, sign, place, prompt), away in zip(kinds, distance.tolist(), strict=True):
        decision = own[prompt.id]
        rows.append(
            {
                "id": prompt.id,
                "kind": kind,
                "sign": sign,
                "label": prompt.label,
                "source": prompt.source,
                "slice": decision.slice if decision.slice >= 0 else None,
                "verdict": decision.verdict,
                "reason": decision.reason,
                "saliency": _saliency(decision),
                "added_on_slices": sorted(added.get(prompt.id, [])),
                "distance_mm": _rounded(away) if np.isfinite(away) else None,
                **_place(np.array(place)),
            }
        )
    return rows


def _consensus(result: Audited, grid: Grid) -> list[dict[str, Any]]:
    """Per slice, the points that the decoder was given, with the decision that brought each there."""
    by_place = {(d.prompt_id, d.slice): d for d in result.decisions if d.verdict in ("accepted", "added")}
    entries = []
    for t, points in enumerate(result.points):
        rows = []
        for name, xy, positive in zip(points.ids, points.xy.tolist(), points.positive.tolist(), strict=True):
            decision = by_place.get((name, t)) or Decision(name, t, t, "accepted", "passed on as given")
            rows.append(
                {
                    "prompt": name,
                    "sign": "positive" if positive else "negative",
                    "verdict": decision.verdict,
                    "from_slice": decision.from_slice,
                    "reason": decision.reason,
                    "saliency": _saliency(decision),
                    "xy": [_rounded(value) for value in xy],
                    **_place(slice_to_ras(np.array([xy]), t, grid)[0]),
                }
            )
        if rows:
            entries.append({"slice": t, "points": rows})
    return entries


def distance_to_mask_mm(points_mm: NDArray[np.float64], mask: Mask) -> NDArray[np.float64]:
    """(N,) mm from each point (N, 3) RAS+ to the nearest voxel centre of the mask; inf if the mask is empty.

    A point is in the mask, at distance 0, when the voxel that holds it belongs to the mask.
    """
    from scipy.spatial import KDTree

    if not mask.array.any() or not len(points_mm):
        return np.full(len(points_mm), np.inf)
    distance, _ = KDTree(voxel_to_ras(np.argwhere(mask.array), mask.grid)).query(points_mm)
    voxel: NDArray[np.int64] = np.floor(ras_to_voxel(points_mm, mask.grid) + 0.5).astype(int)
    within: NDArray[np.bool_] = np.all((voxel >= 0) & (voxel < mask.array.shape), axis=1)
    held = mask.array[tuple(np.where(within[:, None], voxel, 0).T)]
    return np.where(within & held, 0.0, distance)


def _saliency(decision: Decision) -> dict[str, Any] | None:
    if decision.saliency_own is None or decision.saliency_here is None:
        return None
    return {
        "own": _rounded(decision.saliency_own),
        "here": _rounded(decision.saliency_here),
        "neighbours": [{"slice": t, "saliency": _rounded(value)} for t, value in decision.neighbours],
    }


def _place(ras_mm: NDArray[np.float64]) -> dict[str, list[float]]:
    lps_mm = flip_lps_ras(ras_mm)
    return {
        "ras_mm": [_rounded(v) for v in ras_mm.tolist()],
        "lps_mm": [_rounded(v) for v in lps_mm.tolist()],
    }


def _rounded(value: float) -> float:
    return round(float(value), _DIGITS) + 0.0  # no negative zero

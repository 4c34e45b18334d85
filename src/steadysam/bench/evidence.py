"""What a method did with its prompts, against the truth: were true points kept, is saliency a judge?

The truth is looked at after the masks are made, to count; no method sees it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steadysam.box_prompts import true_boxes
from steadysam.data.slices import fit_masks
from steadysam.detection.average_precision import OVERLAPS, FoundBoxes, Hits, match_boxes, precisions
from steadysam.geometry import slice_points
from steadysam.segmenting import Result
from steadysam.types import Mask, Prompts, SlicePoints

BINS = 20


@dataclass(eq=False)
class Evidence:
    """Counts over the slices of many cases.

    `raw`, `raw_true`, `true_kept`: points on slices with the target, those in it, and those of them that were accepted
    on their own slice. `given`, `given_true`: points of the decoder on these slices. `empty_*`: slices for which the
    decoder got no positive point, by whether the target is there. `inside`, `outside`: histograms of saliency over
    [0, 1] in `BINS` bins on the pixels of the target and on all others. `found`: number of boxes, for methods that
    find some; `matches`: those of every case with the true ones; `least_score`: what a found box has at least.
    """

    counts: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(
            (
                "slices_positive",
                "slices_empty",
                "raw",
                "raw_true",
                "true_kept",
                "given",
                "given_true",
                "empty_on_positive",
                "empty_on_empty",
            ),
            0,
        )
    )
    inside: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))
    outside: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))
    found: int = 0
    matches: dict[str, Hits] = field(default_factory=dict)
    least_score: float | None = None

    def add(self, result: Result, prompts: Prompts, truth: Mask) -> None:
        """Count one case; `prompts` are those that the method was given."""
        kept = {(d.prompt_id, d.slice) for d in result.decisions if d.verdict == "accepted"}
        raw = slice_points(prompts, truth.grid)
        given = result.points or (SlicePoints.empty(),) * len(raw)  # a method that decodes nothing names none
        for t, (before, after) in enumerate(zip(raw, given, strict=True)):
            plane = truth.slice_image(t)
            kind = "positive" if plane.any() else "empty"
            self.counts[f"slices_{kind}"] += 1
            self.counts[f"empty_on_{kind}"] += not after.positive.any()
            if kind == "empty":
                continue
            true = in_mask(before, plane)
            self.counts["raw"] += len(before)
            self.counts["raw_true"] += int(true.sum())
            self.counts["true_kept"] += sum((before.ids[i], t) in kept for i in np.flatnonzero(true))
            self.counts["given"] += len(after)
            self.counts["given_true"] += int(in_mask(after, plane).sum())
        if result.saliency is not None:
            target = fit_masks(truth.array, truth.grid, result.frame)
            self.inside += np.histogram(result.saliency[target], BINS, (0.0, 1.0))[0]
            self.outside += np.histogram(result.saliency[~target], BINS, (0.0, 1.0))[0]

    def add_boxes(self, name: str, result: Result, truth: Mask, settings: Any) -> None:
        """Count the boxes of one case, `notes["boxes"]`: [slice, x0, y0, x1, y1, score], continuous model pixels.

        Args:
            name: of the case.
            settings: of the method; its detector's image and its least area say which components have a true box.
        """
        if "boxes" not in result.notes:
            return
        detector = getattr(settings, "detector", settings)
        self.least_score = getattr(detector, "confidence", None)
        rows = np.array(result.notes["boxes"], np.float64).reshape(-1, 6)
        size, least = getattr(detector, "image_size", 640), getattr(detector, "min_area", 16)
        slices = [rows[rows[:, 0] == t] for t in range(truth.grid.depth)]
        found = [FoundBoxes(here[:, 1:5], here[:, 5]) for here in slices]
        self.found += len(rows)
        self.matches[name] = match_boxes(found, true_boxes(truth, result.frame, size, least))

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `saliency` and `detection` only where there was some."""
        values: dict[str, Any] = dict(self.counts)
        if self.inside.sum() + self.outside.sum():
            values["saliency"] = {"inside": self.inside.tolist(), "outside": self.outside.tolist()}
        if self.matches:
            values["detection"] = self.detection()
        return values

    def detection(self) -> dict[str, Any]:
        """AP50, AP75 and AP over all slices (None without a true box), how many boxes there were, and their matches."""
        matches = list(self.matches.values())
        shown = {name: None if np.isnan(value) else round(value, 5) for name, value in precisions(matches).items()}
        counts = {"found": self.found, "true": sum(hits.true for hits in matches)}
        cases = {name: _packed(hits) for name, hits in self.matches.items()}
        return {**shown, **counts, "least_score": self.least_score, "cases": cases}


def _packed(hits: Hits) -> dict[str, Any]:
    """For JSON; bit n of a box's `hits` is its match at `OVERLAPS[n]`."""
    bits = hits.hits @ (1 << np.arange(len(OVERLAPS)))
    scores = [round(score, 5) for score in hits.scores.tolist()]
    return {"scores": scores, "hits": bits.tolist(), "true": hits.true}


def kept_matches(detection: Mapping[str, Any]) -> dict[str, Hits] | None:
    """The matches of every case from `Evidence.detection()`; None from a cell that is older than they are."""
    if "cases" not in detection:
        return None
    places = np.arange(len(OVERLAPS))
    return {
        name: Hits(
            np.array(one["scores"], np.float64),
            (np.array(one["hits"], np.int64)[:, None] >> places & 1).astype(bool),
            one["true"],
        )
        for name, one in detection["cases"].items()
    }


def in_mask(points: SlicePoints, plane: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(N,) whether each point, in slice pixels, lies on the target of `plane` (H, W)."""
    if not len(points):
        return np.zeros(0, bool)
    height, width = plane.shape
    x = np.clip(np.rint(points.xy[:, 0]).astype(int), 0, width - 1)
    y = np.clip(np.rint(points.xy[:, 1]).astype(int), 0, height - 1)
    return plane[y, x]

"""Segment one volume with a trained run: values in, values out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steadysam.audit import decisions_to_slice
from steadysam.data.slices import prepare_stack, unfit_masks
from steadysam.embeddings import EmbeddingCache
from steadysam.errors import OutputError
from steadysam.geometry import Outside, slice_boxes_xyxy, slice_points, to_model_points
from steadysam.prompts.files import check_image, require_points
from steadysam.runs import Run
from steadysam.types import Decision, Frame, Mask, Prompts, SlicePoints, Volume


@dataclass(frozen=True, eq=False)
class Result:
    """A segmented volume.

    Args:
        mask: on the volume's own grid.
        decisions: what became of every prompt, in slice pixels.
        points: the points that the decoder was given, in slice pixels, one entry per slice.
        probability, saliency: (D, S, S) in model pixels; saliency is None for methods without one.
        frame: slice pixels <-> model pixels.
        notes: plain facts, for the run record.
    """

    mask: Mask
    decisions: tuple[Decision, ...]
    points: tuple[SlicePoints, ...]
    probability: NDArray[np.float32]
    saliency: NDArray[np.float32] | None
    frame: Frame
    notes: dict[str, Any]


def segment(
    run: Run,
    volume: Volume,
    prompts: Prompts,
    *,
    cache: EmbeddingCache | None = None,
    outside: Outside = "error",
    threshold: float = 0.5,
) -> Result:
    """Segment `volume` (I, J, K) with noisy `prompts` and say what became of each of them.

    Args:
        cache: embeddings are kept here; None keeps them for this call only.
        outside: what to do with prompts outside the volume: `error`, `drop` or `clip`.
        threshold: the mask is where the probability is larger.

    Raises:
        InputError: `PROMPT_NONE`, `PROMPT_WRONG_IMAGE`, `PROMPT_OUTSIDE`.
        OutputError: `NUMERIC_NONFINITE` if the network gives numbers that are not finite.
    """
    require_points(prompts)
    check_image(prompts, volume.grid)
    stack = prepare_stack(volume, run.preprocess)
    points = to_model_points(slice_points(prompts, volume.grid, outside), stack.frame)
    found = run.method.segment(run.model, run.settings, stack, points, cache or EmbeddingCache())
    if not np.isfinite(found.probability).all():
        raise OutputError("NUMERIC_NONFINITE", "the network gave numbers that are not finite; no mask is written")
    mask = Mask(unfit_masks(found.probability > threshold, volume.grid, stack.frame), volume.grid)
    decisions = (*decisions_to_slice(found.decisions, stack.frame), *_unused(prompts, volume, points))
    back = tuple(SlicePoints(stack.frame.to_slice(p.xy), p.positive, p.ids) for p in found.points)
    notes = {"foreground_voxels": int(mask.array.sum()), **found.notes}
    return Result(mask, decisions, back, found.probability, found.saliency, stack.frame, notes)


def _unused(prompts: Prompts, volume: Volume, points: Sequence[SlicePoints]) -> list[Decision]:
    """Prompts that the method did not see: points dropped for lying outside, and boxes."""
    seen = {name for here in points for name in here.ids}
    rows = [
        Decision(point.id, -1, -1, "ignored", "outside the volume: dropped as asked")
        for point in prompts.points
        if point.id not in seen
    ]
    crossed = slice_boxes_xyxy(prompts, volume.grid) if prompts.boxes else ()
    for box in prompts.boxes:
        first = next((t for t, boxes in enumerate(crossed) if len(boxes)), -1)
        rows.append(Decision(box.id, first, first, "ignored", "a box: this method takes points only"))
    return rows

"""Segment one volume with a trained run: values in, values out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steadysam.audit import decisions_to_slice
from steadysam.data.cases import check_pair
from steadysam.data.slices import detail_images, fit_masks, frame_of, prepare_stack, unfit_masks
from steadysam.embeddings import EmbeddingCache
from steadysam.errors import ConfigError, InputError, OutputError
from steadysam.geometry import (
    Outside,
    box_is_outside,
    slice_boxes_xyxy,
    slice_points,
    to_model_points,
    to_slice_points,
)
from steadysam.methods.contract import Traits, traits_of
from steadysam.prompts.files import check_image, found_nothing, require_points
from steadysam.runs import Run
from steadysam.types import Decision, Frame, Grid, Mask, Prompts, SlicePoints, Volume


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
    prompts: Prompts = Prompts(),
    *,
    cache: EmbeddingCache | None = None,
    outside: Outside = "error",
    threshold: float = 0.5,
    coarse: Mask | None = None,
    detail: Volume | None = None,
) -> Result:
    """Segment `volume` (I, J, K) with noisy `prompts` and say what became of each of them.

    Args:
        prompts: none for methods without prompts. Those of a detector that found nothing give an empty mask.
        cache: embeddings are kept here; None keeps them for this call only.
        outside: what to do with prompts outside the volume: `error`, `drop` or `clip`.
        threshold: the mask is where the probability is larger.
        coarse: the mask to be refined, for methods that refine one.
        detail: for methods that look at slices at a second size (`detail_size` of their settings), take these from
            another volume, slice t from its slice t modulo its depth: a control that tells what they contribute.

    Raises:
        InputError: `PROMPT_NONE`, `PROMPT_WRONG_IMAGE`, `PROMPT_OUTSIDE`, `COARSE_MISSING`, `LABEL_GRID`.
        ConfigError: `DETAIL_UNUSED`, `detail` for a method that looks at one size only.
        OutputError: `NUMERIC_NONFINITE` if the network gives numbers that are not finite.
    """
    traits = traits_of(run.method, run.settings)
    takes_boxes = traits.boxes
    if traits.prompted and not (takes_boxes and prompts.boxes) and not found_nothing(prompts):
        require_points(prompts)
    check_image(prompts, volume.grid)
    if traits.prompted and found_nothing(prompts):
        return _nothing(run, volume)
    stack = prepare_stack(volume, run.preprocess, detail_size(run))
    if detail is not None:
        stack = replace(stack, detail=_foreign_detail(run, detail, stack.depth))
    if traits.coarse:
        stack = replace(stack, coarse=coarse_masks(run, volume, stack.frame, coarse))
    given = slice_points(prompts if traits.points else Prompts(), volume.grid, outside)
    if takes_boxes:
        given = with_boxes(given, slice_boxes_xyxy(boxes_inside(prompts, volume.grid, outside), volume.grid))
    points = to_model_points(given, stack.frame)
    found = run.method.segment(run.model, run.settings, stack, points, cache or EmbeddingCache())
    if not np.isfinite(found.probability).all():
        raise OutputError("NUMERIC_NONFINITE", "the network gave numbers that are not finite; no mask is written")
    mask = Mask(unfit_masks(found.probability > threshold, volume.grid, stack.frame), volume.grid)
    decisions = (*decisions_to_slice(found.decisions, stack.frame), *_unused(prompts, volume, points, traits))
    back = to_slice_points(found.points, stack.frame)
    notes = {"foreground_voxels": int(mask.array.sum()), **found.notes}
    return Result(mask, decisions, back, found.probability, found.saliency, stack.frame, notes)


def _nothing(run: Run, volume: Volume) -> Result:
    """An empty mask, without a look at the image."""
    frame, depth = frame_of(volume, run.preprocess), volume.grid.depth
    mask = Mask(np.zeros(volume.grid.shape, bool), volume.grid)
    probability = np.zeros((depth, frame.size, frame.size), np.float32)
    notes = {"foreground_voxels": 0, "detector_found_nothing": True}
    return Result(mask, (), (SlicePoints.empty(),) * depth, probability, None, frame, notes)


def detail_size(run: Run) -> int:
    """Pixels per side of the second images that the run's method looks at; 0: none."""
    return int(getattr(run.settings, "detail_size", 0))


def _foreign_detail(run: Run, volume: Volume, depth: int) -> NDArray[np.uint8]:
    size = detail_size(run)
    if not size:
        raise ConfigError("DETAIL_UNUSED", f"{run.config.method_name} looks at slices at one size only")
    images = detail_images(volume, run.preprocess, size)
    return images[np.arange(depth) % len(images)]


def coarse_masks(run: Run, volume: Volume, frame: Frame, coarse: Mask | None) -> NDArray[np.bool_]:
    """(D, S, S) masks to be refined, in model pixels.

    Raises:
        InputError: `COARSE_MISSING`; `LABEL_GRID` if it lies on another grid than the image.
    """
    if coarse is None:
        raise InputError(
            "COARSE_MISSING",
            f"{run.config.method_name} refines a mask, and none was given",
            fix="pass --coarse: a mask file, or a folder of masks named like the cases",
        )
    check_pair(volume.grid, coarse.grid, "the coarse mask")
    return fit_masks(coarse.array, volume.grid, frame)


def boxes_inside(prompts: Prompts, grid: Grid, outside: Outside) -> Prompts:
    """The prompts without boxes that lie wholly outside the volume; to move one to the border would leave nothing.

    Raises:
        InputError: `PROMPT_OUTSIDE`, there is one, and `outside` is `error`.
    """
    beyond = {box.id for box in prompts.boxes if box_is_outside(box, grid)}
    if beyond and outside == "error":
        raise InputError(
            "PROMPT_OUTSIDE",
            f"{len(beyond)} of {len(prompts.boxes)} boxes lie outside the volume",
            seen=", ".join(sorted(beyond)),
            expected=f"voxel indices from 0 to {[n - 1 for n in grid.shape]}",
            fix="correct the box, or pass --outside drop",
        )
    return replace(prompts, boxes=tuple(box for box in prompts.boxes if box.id not in beyond))


def with_boxes(points: Sequence[SlicePoints], boxes: Sequence[NDArray[np.float32]]) -> tuple[SlicePoints, ...]:
    """The points of every slice with the slice's box, in slice pixels.

    Raises:
        InputError: `PROMPT_BOXES`, a slice is crossed by more than one box: a prompt asks for one object.
    """
    for t, here in enumerate(boxes):
        if len(here) > 1:
            raise InputError(
                "PROMPT_BOXES",
                f"{len(here)} boxes on slice {t}",
                expected="one box per slice: a mask is of one object",
                fix="segment the objects one after the other, each with its own prompt file",
            )
    return tuple(replace(p, box=b[0]) if len(b) else p for p, b in zip(points, boxes, strict=True))


def _unused(prompts: Prompts, volume: Volume, points: Sequence[SlicePoints], traits: Traits) -> list[Decision]:
    """Prompts that the method did not see: points dropped for lying outside, boxes, all of a method without prompts."""
    seen, takes_boxes = {name for here in points for name in here.ids}, traits.boxes
    why = "outside the volume: dropped as asked" if traits.points else "a point: this method takes none"
    rows = [Decision(point.id, -1, -1, "ignored", why) for point in prompts.points if point.id not in seen]
    for box in prompts.boxes:
        crossed = slice_boxes_xyxy(Prompts(boxes=(box,)), volume.grid)
        first = next((t for t, boxes in enumerate(crossed) if len(boxes)), -1)
        if takes_boxes and box_is_outside(box, volume.grid):
            rows.append(Decision(box.id, -1, -1, "ignored", "outside the volume: dropped as asked"))
        elif takes_boxes:
            rows.append(Decision(box.id, first, first, "accepted", "not checked: this method obeys every prompt"))
        else:
            rows.append(Decision(box.id, first, first, "ignored", "a box: this method takes none"))
    return rows

"""Boxes that a trained detector finds in a volume, as prompts, and how good they are where the truth is known."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steadysam.data.slices import fit_masks, prepare_stack
from steadysam.detection.average_precision import FoundBoxes, Hits, match_boxes, precisions, redrawn_precision
from steadysam.detection.boxes import boxes_of_mask
from steadysam.detection.yolo import Detector
from steadysam.errors import ConfigError, ResourceError
from steadysam.methods.detecting import LOWEST_SCORE, DetectorConfig, above, detect_stack, to_model_boxes
from steadysam.prompts.files import MAX_PROMPTS
from steadysam.prompts.rows import slice_box
from steadysam.runs import Run
from steadysam.statistics import percentile_interval, times_drawn
from steadysam.summary import generator_of
from steadysam.types import Box, Frame, Grid, ImageRef, Mask, Prompts, Volume


@dataclass(frozen=True)
class DetectOptions:
    """How to detect.

    Args:
        slice_axis: as in `read_volume`; None lets the spacing decide.
        confidence, overlap: least score, and most IoU of two boxes that are both kept; None: as in the run.
        per_slice: keep the best so many boxes of a slice; 0: all.
    """

    slice_axis: int | None = None
    confidence: float | None = None
    overlap: float | None = None
    per_slice: int = 0


@dataclass(frozen=True, eq=False)
class CaseBoxes:
    """What was found in one case.

    Args:
        name: of the case.
        boxes: (K, 4) per slice, in slice pixels (centres at integers), the best first.
        scores: (K,) per slice.
        prompts: the same as prompts, RAS mm.
        mask: the true mask, or None.
        found, truth: per slice, all boxes down to the lowest score and the true ones, continuous model pixels; () where
            there is no truth.
    """

    name: str
    volume: Volume
    boxes: tuple[NDArray[np.float32], ...]
    scores: tuple[NDArray[np.float32], ...]
    prompts: Prompts
    mask: Mask | None = None
    found: tuple[FoundBoxes, ...] = ()
    truth: tuple[NDArray[np.float32], ...] = ()


def detector_of(run: Run, options: DetectOptions = DetectOptions()) -> tuple[Detector, DetectorConfig]:
    """The detector of a run and its settings, changed as the options say.

    Raises:
        ConfigError: `DETECTOR_MISSING`, the run has none; `CONFIG_VALUE`.
    """
    prompted = getattr(run.settings, "feature_prompts", None)  # SPD with features
    config = getattr(prompted or run.settings, "detector", None)
    found = getattr(run.model, "detector", None) or getattr(run.model, "teacher", None)
    if not isinstance(config, DetectorConfig) or not isinstance(found, Detector):
        mode = getattr(run.settings, "mode", "")
        raise ConfigError(
            "DETECTOR_MISSING",
            "this run has no detector",
            seen=f"method {run.config.method_name}" + (f", mode {mode}" if mode else ""),
            expected="a run of detector or ldfsam, or of spd with feature prompts",
            fix="train one: steadysam train DATASET --method detector -o RUN",
        )
    if (generator := getattr(run.settings, "generator", "")) in ("random", "fresh"):
        raise ConfigError(
            "DETECTOR_MISSING",
            "nobody trained this run's detector to find boxes",
            seen=f"generator = {generator!r}",
            expected="a run with generator student or teacher",
        )
    changes = {"confidence": options.confidence, "overlap": options.overlap}
    if (least := options.confidence) is not None and not LOWEST_SCORE <= least < 1:
        expected = f"from {LOWEST_SCORE} to less than 1"
        raise ConfigError("CONFIG_VALUE", "confidence is a share", seen=least, expected=expected)
    if options.overlap is not None and not 0 < options.overlap <= 1:
        raise ConfigError("CONFIG_VALUE", "overlap is a share", seen=options.overlap, expected="more than 0, up to 1")
    return found, config.model_copy(update={name: value for name, value in changes.items() if value is not None})


def detect_volume(
    run: Run, volume: Volume, options: DetectOptions = DetectOptions(), mask: Mask | None = None
) -> CaseBoxes:
    """The boxes of one volume, as prompts with source `detector`, and beside them what a score needs.

    Args:
        mask: the true mask on the volume's grid.

    Raises:
        ConfigError: those of `detector_of`.
    """
    detector, config = detector_of(run, options)
    stack = prepare_stack(volume, run.preprocess, config.image_size)
    found = detect_stack(detector, stack, config, LOWEST_SCORE if mask is not None else None)
    kept = [_slice_boxes(above(here, config.confidence), stack.frame, options.per_slice) for here in found]
    step = {
        "step": "detect",
        "method": run.config.method_name,
        "weights_sha256": run.record["weights_sha256"],
        "confidence": config.confidence,
        "overlap": config.overlap,
        "per_slice": options.per_slice,
    }
    prompts = box_prompts(kept, volume.grid, step)
    boxes, scores = tuple(here.boxes for here in kept), tuple(here.scores for here in kept)
    if mask is None:
        return CaseBoxes(volume.name, volume, boxes, scores, prompts)
    truth = true_boxes(mask, stack.frame, config.image_size, config.min_area)
    return CaseBoxes(volume.name, volume, boxes, scores, prompts, mask, tuple(found), tuple(truth))


def _slice_boxes(found: FoundBoxes, frame: Frame, most: int) -> FoundBoxes:
    """Boxes in continuous model pixels -> in slice pixels, cut at the slice's border; those left empty are dropped."""
    corners = frame.to_slice(found.boxes.reshape(-1, 2) - 0.5).reshape(-1, 2, 2)
    corners = np.clip(corners, -0.5, np.array([frame.width, frame.height], np.float32) - 0.5)
    whole = (corners[:, 1] > corners[:, 0]).all(axis=1)
    boxes, scores = corners[whole].reshape(-1, 4), found.scores[whole]
    return FoundBoxes(boxes[: most or None], scores[: most or None])


def box_prompts(found: Sequence[FoundBoxes], grid: Grid, step: Mapping[str, Any]) -> Prompts:
    """Boxes in slice pixels (centres at integers), per slice -> prompts with the score in their description.

    Raises:
        ResourceError: `PROMPT_TOO_MANY`, more than a prompt file may hold.
    """
    rows: list[Box] = []
    for t, here in enumerate(found):
        for n, (box, score) in enumerate(zip(here.boxes, here.scores, strict=True)):
            flat = slice_box(f"s{t:03d}-{n}", box[:2], box[2:], t, grid, "detector")
            rows.append(replace(flat, description=f"score {score:.3f}"))
    if len(rows) > MAX_PROMPTS:
        raise ResourceError(
            "PROMPT_TOO_MANY", "too many boxes", seen=len(rows), expected=MAX_PROMPTS, fix="raise --confidence"
        )
    return Prompts((), tuple(rows), ImageRef(shape=grid.shape, grid_key=grid.key()), (dict(step),))


def true_boxes(mask: Mask, frame: Frame, size: int, min_area: float) -> list[NDArray[np.float32]]:
    """(K, 4) per slice, continuous model pixels: the objects that a detector is trained to find.

    Args:
        frame: of the model's image.
        size: the detector's image, px, at which components are found; `min_area`: pixels of the smallest.
    """
    masks = fit_masks(mask.array, mask.grid, replace(frame, size=size))
    return [to_model_boxes(boxes_of_mask(plane, min_area), frame, size) for plane in masks]


def score_boxes(
    cases: Sequence[CaseBoxes], patients: Mapping[str, str] | None = None, *, seed: int = 0, draws: int = 2_000
) -> list[dict[str, Any]]:
    """A row per case and one of all together: `case`, `slices`, `objects`, `boxes`, `AP50`, `AP75`, `AP`, its interval.

    Average precision looks at all boxes down to a score of 0.001; `boxes` counts those that became prompts. None where
    there is no object. `AP_low` and `AP_high`, of all cases only, are a 95 % bootstrap interval that draws patients;
    None with fewer than two.

    Args:
        patients: case -> patient; a case that is not there is a patient of its own.
        seed, draws: of the bootstrap.
    """
    matches = [match_boxes(case.found, case.truth) for case in cases]
    rows = [_score(case.name, [case], [hits]) for case, hits in zip(cases, matches, strict=True)]
    if len(cases) > 1:
        together = _score("all", cases, matches)
        owners = [(patients or {}).get(case.name, case.name) for case in cases]
        if together["AP"] is not None and len(set(owners)) > 1:
            low, high = _interval(matches, owners, generator_of(seed, "AP", "patients"), draws)
            together |= {"AP_low": low, "AP_high": high}
        rows.append(together)
    return rows


def _score(name: str, cases: Sequence[CaseBoxes], matches: Sequence[Hits]) -> dict[str, Any]:
    slices, boxes = sum(len(case.truth) for case in cases), sum(len(case.prompts) for case in cases)
    counts = {"slices": slices, "objects": sum(hits.true for hits in matches), "boxes": boxes}
    shown = {key: None if math.isnan(value) else value for key, value in precisions(matches).items()}
    return {"case": name, **counts, **shown, "AP_low": None, "AP_high": None}


def _interval(
    matches: Sequence[Hits], owners: Sequence[str], generator: np.random.Generator, draws: int
) -> tuple[float, float]:
    place = {name: n for n, name in enumerate(dict.fromkeys(owners))}
    _, times = times_drawn(generator, draws, 1, len(place))
    return percentile_interval(redrawn_precision(matches, times[:, [place[name] for name in owners]], "AP"))

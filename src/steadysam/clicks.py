"""Segment what clicks, a box or a rough mask ask for, slice by slice, with a model that was not trained on it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from steadysam.backbones.backbone import Backbone
from steadysam.data.slices import fit_masks, prepare_stack
from steadysam.embeddings import EmbeddingCache
from steadysam.errors import InputError
from steadysam.geometry import Outside, describe_grid, grids_agree, slice_boxes_xyxy, slice_points, to_model_points
from steadysam.interactive import to_slice
from steadysam.methods.slicewise import ask, encode_stack, encoder_key, only_slices
from steadysam.prompts.clicks import keep_clicked
from steadysam.prompts.files import check_image, require_points
from steadysam.runs import Run
from steadysam.segmenting import boxes_inside, with_boxes
from steadysam.types import Mask, Prompts, SlicePoints, Volume, put_slices

_SURE = 10.0  # logit of a mask prompt


@dataclass(frozen=True, eq=False)
class ClickResult:
    """Answers to the prompts of one volume, the one that the model trusts most first.

    Args:
        masks: one or three masks on the volume's own grid; slices without prompts are empty.
        iou: slice -> the predicted IoU of its masks, in the same order.
        points: the prompts of every slice, in slice pixels.
    """

    masks: tuple[Mask, ...]
    iou: dict[int, tuple[float, ...]]
    points: tuple[SlicePoints, ...]


@torch.no_grad()
def segment_clicks(
    run: Run,
    volume: Volume,
    prompts: Prompts,
    *,
    prior: Mask | None = None,
    outside: Outside = "error",
    cache: EmbeddingCache | None = None,
) -> ClickResult:
    """Answer the prompts of a volume (I, J, K) or picture.

    Args:
        run: made by `steadysam.runs.zero_shot_run`, or a trained run, whose backbone is used.
        prior: a rough mask on the volume's grid, as one more prompt on the slices where it is not empty.
        outside: what to do with prompts outside the volume.

    Raises:
        InputError: `PROMPT_NONE`, `PROMPT_NO_POSITIVE`, `PROMPT_WRONG_IMAGE`, `PROMPT_OUTSIDE`, `PROMPT_BOXES`,
            `MASK_GRID` (the prior lies on another grid).
    """
    if prior is None or not prior.array.any():
        require_points(prompts)
        prior = None
    check_image(prompts, volume.grid)
    if prior is not None and not grids_agree(prior.grid, volume.grid):
        raise InputError(
            "MASK_GRID",
            "the mask prompt lies on another grid than the image",
            seen=describe_grid(prior.grid),
            expected=describe_grid(volume.grid),
            fix="resample the mask to the image",
        )
    backbone: Backbone = run.model.backbone  # pyright: ignore
    stack = prepare_stack(volume, run.preprocess)
    prompts = boxes_inside(prompts, volume.grid, outside)
    given = with_boxes(slice_points(prompts, volume.grid, outside), slice_boxes_xyxy(prompts, volume.grid))
    rough = None if prior is None else fit_masks(prior.array, volume.grid, stack.frame)
    asked = [
        t for t, p in enumerate(given) if len(p) or p.box is not None or (rough is not None and bool(rough[t].any()))
    ]
    if not asked:
        raise InputError("PROMPT_NONE", "no prompt lies inside the image", fix="place one on the image")
    embeddings = encode_stack(backbone, only_slices(stack, asked), cache or EmbeddingCache(), encoder_key(backbone))
    points = to_model_points(given, stack.frame)
    logits = None
    if rough is not None:
        signed = torch.from_numpy(rough[asked].astype(np.float32) * 2 - 1)[:, None] * _SURE
        full = F.interpolate(signed, (backbone.mask_size,) * 2, mode="bilinear", align_corners=False, antialias=True)
        # "nothing is here" would be a prompt as well: slices without a rough mask are given none
        logits = [mask if rough[t].any() else None for t, mask in zip(asked, full, strict=True)]
    answers = ask(backbone, embeddings, [points[t] for t in asked], logits)
    shown = (to_slice(answers.logits, stack.frame) > 0).numpy()
    for masks, t in zip(shown, asked, strict=True):  # in place: what looks alike elsewhere is not asked for
        masks[:] = [keep_clicked(mask, given[t].xy, given[t].positive) for mask in masks]
    count = shown.shape[1]
    slices = np.zeros((count, stack.depth, *volume.grid.slice_shape), bool)
    slices[:, asked] = shown.swapaxes(0, 1)
    masks = tuple(Mask(put_slices(part, volume.grid), volume.grid) for part in slices)
    iou = {t: tuple(round(float(v), 4) for v in row) for t, row in zip(asked, answers.iou, strict=True)}
    return ClickResult(masks, iou, given)

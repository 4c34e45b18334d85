"""MedSAM's lanes: a box around the noisy points, as the model came or after tuning; or tuning of the decoder on points.

After Ma et al. (Nature Communications 2024), written from its description. MedSAM's prompt is a box: here it is the box
of a slice's positive points, and as wrong as they are. A slice that has neither points nor a box is not asked and stays
empty, at test as in training, where it adds nothing to the loss. Both kinds of backbone serve all lanes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from steadysam.augment import AugmentConfig
from steadysam.backbones.backbone import Backbone
from steadysam.embeddings import EmbeddingCache
from steadysam.losses import cross_entropy, dice_loss
from steadysam.methods.boxes import box_of_points, loosen_box
from steadysam.methods.contract import Batch, Chance, FrozenConfig, Stage, StageSettings, TrainingCase, Traits
from steadysam.methods.samples import AugmentedSlices
from steadysam.methods.slicewise import (
    BackboneOnly,
    accept_all,
    decode_rows,
    decode_stack,
    encode_stack,
    encoder_key,
    mean_terms,
    only_slices,
)
from steadysam.types import Decision, Segmentation, SlicePoints, SliceStack

TRAITS = Traits(boxes=True, untrained=True)
NATIVE_SIZE = 1024  # MedSAM's image, in whose pixels the settings of boxes are given
_RATES = {"box": 1e-4, "box_tuned": 1e-4, "points_tuned": 5e-5}


class Config(FrozenConfig):
    """The lane, and how boxes are made.

    `box` trains nothing; `box_tuned` trains image encoder and mask decoder on boxes, `points_tuned` the mask decoder on
    the points themselves. Tuning that does not say otherwise is AdamW with decay 0.01 at the lane's own rate.

    Args:
        margin_px: smallest side of a box of points, such as one of a single point, in pixels of a 1024 px image.
        jitter_px: in training each side of a box is moved outwards by 0 to this, in pixels of a 1024 px image.
        positives_only: train and validate on slices that hold the object only, as MedSAM's own preprocessing leaves.
    """

    FIXED: ClassVar[frozenset[str]] = frozenset(("jitter_px", "positives_only", "redraw"))

    lane: Literal["box", "box_tuned", "points_tuned"] = "box"
    margin_px: float = Field(default=20.0, ge=0)
    jitter_px: float = Field(default=20.0, ge=0)
    positives_only: bool = False
    redraw: bool = False
    augment: AugmentConfig = AugmentConfig()
    tuning: StageSettings = StageSettings(optimizer="adamw", learning_rate=_RATES["box"], weight_decay=0.01)

    @model_validator(mode="before")
    @classmethod
    def _own_recipe(cls, values: Any) -> Any:
        """Settings of the tuning that are not given are those of the lane."""
        if not isinstance(values, Mapping) or not isinstance(values.get("tuning", {}), Mapping):
            return values
        rate = _RATES.get(values.get("lane", "box"), _RATES["box"])  # an unknown lane is refused below
        recipe = {"optimizer": "adamw", "learning_rate": rate, "weight_decay": 0.01}
        return {**values, "tuning": {**recipe, **values.get("tuning", {})}}


def build(config: Config, backbone: Backbone) -> BackboneOnly:
    """The backbone as it came."""
    return BackboneOnly(backbone)


def stages(config: Config) -> tuple[Stage, ...]:
    """None in the lane `box`, else one."""
    if config.lane == "box":
        return ()
    decoder = "backbone.mask_decoder.*"
    return (
        Stage(
            name="tuning",
            trainable=(decoder, "backbone.image_encoder.*") if config.lane == "box_tuned" else (decoder,),
            samples=lambda model, cases, cache: PromptedSlices(cases, config),
            losses=lambda model, batch: tuning_losses(cast(BackboneOnly, model), batch),
            settings=config.tuning,
        ),
    )


class PromptedSlices:
    """Augmented slices with the prompt of the lane: the loosened box of the points, or the points."""

    def __init__(self, cases: Sequence[TrainingCase], config: Config) -> None:
        self.config = config
        self.inner = AugmentedSlices(cases, config.augment, prompted=True, redraw=config.redraw)
        if config.positives_only:
            with_object = [(c, t) for c, t in self.inner.slices if cases[c].masks[t].any()]
            self.inner.slices = with_object or self.inner.slices

    def __len__(self) -> int:
        return len(self.inner)

    def batch(self, indices: Sequence[int], chance: Chance) -> Batch:
        """As `AugmentedSlices` does, and `asked` (B,): 1 for slices with a prompt, 0 for those that have none."""
        plain = self.inner.batch(indices, chance)
        points = list(plain.points)
        if self.config.lane == "box_tuned":
            points = [self._boxed(row, index, chance) for row, index in zip(points, indices, strict=True)]
        asked = torch.tensor([float(_is_asked(row)) for row in points])
        return Batch({**plain.tensors, "asked": asked}, tuple(points))

    def _boxed(self, points: SlicePoints, index: int, chance: Chance) -> SlicePoints:
        c, t = self.inner.slices[index]
        case = self.inner.cases[c]
        size = case.stack.preprocess.size
        boxed = as_box(points, size, self.config)
        if boxed.box is None or not chance.training:
            return boxed
        most = self.config.jitter_px * size / NATIVE_SIZE
        return replace(boxed, box=loosen_box(boxed.box, size, most, chance.generator(case.name, t, "box")))


def as_box(points: SlicePoints, size: int, config: Config) -> SlicePoints:
    """The prompt of a slice in a lane of boxes: the box that was given, else that of its positive points, alone."""
    box = points.box
    if box is None:
        box = box_of_points(points, size, config.margin_px * size / NATIVE_SIZE)
    return replace(SlicePoints.empty(), box=box)


def _is_asked(points: SlicePoints) -> bool:
    return len(points) > 0 or points.box is not None


def tuning_losses(model: BackboneOnly, batch: Batch) -> dict[str, Tensor]:
    """Dice with squares in its denominator + cross-entropy; slices that are not asked add 0 and count in the mean."""
    embeddings = model.sam.encode(batch.tensors["images"])
    logits, masks = decode_rows(model.sam, embeddings, batch.points), batch.tensors["masks"]
    dice = dice_loss(torch.sigmoid(logits.float()), masks, squared=True)
    asked = batch.tensors["asked"]
    return mean_terms({"dice": asked * dice, "bce": asked * cross_entropy(logits, masks)})


def segment(
    model: nn.Module, config: Config, stack: SliceStack, points: Sequence[SlicePoints], cache: EmbeddingCache
) -> Segmentation:
    """Encode and decode the slices that have a prompt. A box that was given wins over the box of the points."""
    sam = cast(BackboneOnly, model).sam
    size = stack.preprocess.size
    given = tuple(points) if config.lane == "points_tuned" else tuple(as_box(p, size, config) for p in points)
    asked = [t for t, here in enumerate(given) if _is_asked(here)]
    probability = np.zeros((stack.depth, size, size), np.float32)
    if asked:
        embeddings = encode_stack(sam, only_slices(stack, asked), cache, encoder_key(sam))
        probability[asked] = decode_stack(sam, embeddings, [given[t] for t in asked])
    notes = {"lane": config.lane, "asked_slices": asked, "decoder_points": sum(map(len, given))}
    if config.lane == "points_tuned":
        return Segmentation(probability, None, given, accept_all(points), notes)
    return Segmentation(probability, None, given, tuple(_verdicts(points)), notes)


def _verdicts(points: Sequence[SlicePoints]) -> list[Decision]:
    """What became of each point where the prompt is a box."""
    decisions = []
    for t, here in enumerate(points):
        for name, xy, positive in zip(here.ids, here.xy.tolist(), here.positive, strict=True):
            verdict, reason = "accepted", "not checked: inside the box that is drawn around the slice's positive points"
            if here.box is not None:
                verdict, reason = "ignored", "this slice was given a box, which takes the place of its points"
            elif not positive:
                verdict, reason = "ignored", "a negative point: the box is drawn around positive points"
            decisions.append(Decision(name, t, t, verdict, reason, xy=(xy[0], xy[1])))
    return decisions

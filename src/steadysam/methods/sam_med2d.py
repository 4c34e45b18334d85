"""SAM-Med2D: adapters in the frozen image encoder, prompt encoder and mask decoder, on boxes, points or nothing.

After Cheng et al. (arXiv 2308.16184) and ldfsam.md 1.7, written from their description. With `adapt = "adapters"` a
backbone that is no SAM-Med2D is given fresh adapters of its kind first; our own convolutional model has them after its
residual blocks (`steadysam.backbones.adapters`). Of three masks the one with the highest predicted IoU is taken, in
training as at test. A slice without a prompt is not asked and stays empty, but for `prompts = "none"`, where every
slice is decoded without any token of a prompt.

Where we had to choose: a training box is that of the whole mask of a slice, as a prompt file has one box per slice; the
authors take the largest part. They step the optimiser after every interactive round; here the rounds are one mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from steadysam.augment import AugmentConfig
from steadysam.backbones.backbone import Backbone
from steadysam.backbones.rows import FeaturePrompts
from steadysam.embeddings import EmbeddingCache
from steadysam.losses import sam_med2d_terms
from steadysam.methods.adaptation import Adaptation, adapt_encoder, encoder_parameters
from steadysam.methods.boxes import box_of_points
from steadysam.methods.contract import (
    Batch,
    Chance,
    FrozenConfig,
    LoraConfig,
    Stage,
    StageSettings,
    TrainingCase,
    Traits,
)
from steadysam.methods.samples import AugmentedSlices
from steadysam.methods.slicewise import (
    BackboneOnly,
    accept_all,
    best_mask,
    encode_stack,
    encoder_key,
    only_slices,
    to_model,
)
from steadysam.types import Decision, Segmentation, SlicePoints, SliceStack

TRAITS = Traits(boxes=True)
NATIVE_SIZE = 256  # SAM-Med2D's image, in whose pixels the settings of boxes are given
CLICKS = (1, 3, 5, 9)  # how many clicks a correction may have
_ROWS = 8  # slices per forward pass outside training; fixed, so that results do not depend on what else runs


class Tuning(StageSettings):
    """The authors' rate: Adam at 1e-4 without weight decay."""

    weight_decay: float = Field(default=0.0, ge=0)


class Config(FrozenConfig):
    """What prompts, and what of the encoder is trained.

    Args:
        prompts: `box`: in training the box of the true mask, moved by chance; at test the slice's box, or that of its
            positive points where none was given. `points`: the points as they come, at test with the box if there is
            one. `none`: nothing, whatever is given.
        adapt: what of the image encoder is trained: SAM-Med2D's `adapters`, `lora`, or all of it, `full`.
        zero_init: fresh adapters add nothing at first; the authors' do (`ensure_med2d_adapters`).
        multimask: take the best of three masks by predicted IoU; else the one mask.
        iterations: rounds per training sample: the first on the prompt; then clicks in the wrong parts of the last
            answer and that answer as a mask prompt; the last on the mask alone. The encoder learns in the first only.
            The authors have 9; validation has one.
        jitter_px: a training box is moved by up to this along both axes, in pixels of a 256 px image, and by no more
            than half its shorter side.
        margin_px: smallest side of a box of points, in the same pixels.
    """

    FIXED: ClassVar[frozenset[str]] = frozenset(("adapt", "zero_init", "jitter_px", "redraw"))

    prompts: Literal["none", "box", "points"] = "points"
    adapt: Adaptation = "adapters"
    zero_init: bool = True
    lora: LoraConfig = LoraConfig()
    multimask: bool = True
    iterations: int = Field(default=1, ge=1)
    jitter_px: float = Field(default=5.0, ge=0)
    margin_px: float = Field(default=5.0, ge=0)
    redraw: bool = False
    augment: AugmentConfig = AugmentConfig()
    tuning: Tuning = Tuning()

    @property
    def unprompted(self) -> bool:
        """Whether no prompt is looked at."""
        return self.prompts == "none"


def build(config: Config, backbone: Backbone) -> BackboneOnly:
    """The backbone, with fresh adapters where it has none, or with LoRA."""
    adapt_encoder(backbone, config.adapt, config.lora, zero_init=config.zero_init)
    return BackboneOnly(backbone)


def stages(config: Config) -> tuple[Stage, ...]:
    """One stage."""
    return (
        Stage(
            name="tuning",
            trainable=("backbone.mask_decoder.*", "backbone.prompt_encoder.*", encoder_parameters(config.adapt)),
            samples=lambda model, cases, cache: PromptedSlices(cases, config),
            losses=lambda model, batch: tuning_losses(cast(BackboneOnly, model), batch, config),
            settings=config.tuning,
        ),
    )


class PromptedSlices:
    """Augmented slices with the prompts of the configuration, and the numbers that later rounds draw clicks with."""

    def __init__(self, cases: Sequence[TrainingCase], config: Config) -> None:
        self.cases, self.config = cases, config
        prompted = config.prompts == "points"
        self.inner = AugmentedSlices(cases, config.augment, prompted=prompted, redraw=config.redraw)

    def __len__(self) -> int:
        return len(self.inner)

    def batch(self, indices: Sequence[int], chance: Chance) -> Batch:
        """As `AugmentedSlices` does, and `asked` (B,), 1 for slices that are asked; `draws` (B, rounds, 9) in [0, 1).

        A draw below 0 is no click; there are no rounds in validation.
        """
        plain = self.inner.batch(indices, chance)
        points = list(plain.points) or [SlicePoints.empty()] * len(plain)
        rounds = self.config.iterations - 1 if chance.training else 0
        draws = np.full((len(plain), rounds, max(CLICKS)), -1.0)
        for row, index in enumerate(indices):
            c, t = self.inner.slices[index]
            generator = chance.generator(self.cases[c].name, t, "prompt")
            if self.config.prompts == "box":
                mask = plain.tensors["masks"][row, 0].numpy() > 0.5
                most = self.config.jitter_px * mask.shape[-1] / NATIVE_SIZE if chance.training else 0.0
                points[row] = replace(points[row], box=box_of_mask(mask, most, generator))
            for here in draws[row, :-1]:  # the last round has no clicks
                count = int(generator.choice(CLICKS))
                here[:count] = generator.random(count)
        everywhere = self.config.prompts == "none"
        asked = torch.tensor([float(everywhere or _is_asked(row)) for row in points])
        tensors = {**plain.tensors, "asked": asked, "draws": torch.from_numpy(draws.astype(np.float32))}
        return Batch(tensors, tuple(points))


def box_of_mask(mask: NDArray[np.bool_], most: float, generator: np.random.Generator) -> NDArray[np.float32] | None:
    """(4,) outer borders of the pixels of (S, S) in model pixels, moved as a whole; None without any pixel.

    Args:
        most: by up to so many pixels along x and along y, but no more than half the shorter side.
    """
    y, x = np.nonzero(mask)
    if not len(x):
        return None
    box = np.array([x.min() - 0.5, y.min() - 0.5, x.max() + 0.5, y.max() + 0.5])
    room = min(most, 0.5 * min(box[2] - box[0], box[3] - box[1]))
    return (box + np.tile(generator.uniform(-room, room, 2), 2)).clip(-0.5, len(mask) - 0.5).astype(np.float32)


def _is_asked(points: SlicePoints) -> bool:
    return len(points) > 0 or points.box is not None


def answer(
    backbone: Backbone, embeddings: Tensor, points: Sequence[SlicePoints], masks: Tensor | None, multimask: bool
) -> tuple[Tensor, Tensor]:
    """Logits (B, 1, m, m) of the mask that the model trusts most, and the IoU (B,) that it predicts.

    Rows without points and box have no token of a prompt, as in SAM-Med2D.
    """
    found = backbone.decode_full(embeddings, points, masks=masks, multimask=multimask, features=FeaturePrompts())
    logits, iou = best_mask(*found)
    return logits[:, None], iou


def tuning_losses(model: BackboneOnly, batch: Batch, config: Config) -> dict[str, Tensor]:
    """SAM-Med2D's loss, mean over rounds; slices that are not asked add 0 and count in the mean."""
    sam, truth, draws = model.sam, batch.tensors["masks"], batch.tensors["draws"]
    embeddings, points, prior = sam.encode(batch.tensors["images"]), batch.points, None
    size = truth.shape[-1]
    sums: dict[str, Tensor] = {}
    for now in range(1 + draws.shape[1]):
        logits, iou = answer(sam, embeddings, points, prior, config.multimask)
        full = to_model(logits[:, 0], size)
        for name, value in sam_med2d_terms(full, iou, truth[:, 0]).items():
            sums[name] = sums.get(name, torch.zeros_like(value)) + value
        if now < draws.shape[1]:
            embeddings, prior = embeddings.detach(), logits.detach()
            points = corrections(full.detach() > 0, truth[:, 0] > 0.5, draws[:, now])
    return {name: (batch.tensors["asked"] * value).mean() / (1 + draws.shape[1]) for name, value in sums.items()}


def corrections(found: Tensor, truth: Tensor, draws: Tensor) -> list[SlicePoints]:
    """Clicks on wrong pixels, each as likely as the others: positive where the mask lacks something, negative where it
    has too much; none on a row without a mistake.

    Args:
        found, truth: (B, S, S) bool.
        draws: (B, K) in [0, 1); below 0 is no click.
    """
    rows = []
    for mask, target, here in zip(found.cpu().numpy(), truth.cpu().numpy(), draws.cpu().numpy(), strict=True):
        wrong = np.argwhere(mask != target)
        places = np.minimum(here[here >= 0] * len(wrong), len(wrong) - 1).astype(int)  # a rounded draw may be 1
        chosen = wrong[places] if len(wrong) else wrong
        names = tuple(f"r{number}" for number in range(len(chosen)))
        rows.append(SlicePoints(chosen[:, ::-1].astype(np.float32), target[chosen[:, 0], chosen[:, 1]], names))
    return rows


@torch.no_grad()
def segment(
    model: nn.Module, config: Config, stack: SliceStack, points: Sequence[SlicePoints], cache: EmbeddingCache
) -> Segmentation:
    """Encode and decode the slices that are asked. `notes` has the predicted IoU of each of them."""
    sam, size = cast(BackboneOnly, model).sam, stack.preprocess.size
    given = tuple(as_prompt(here, size, config) for here in points)
    asked = [t for t, here in enumerate(given) if config.prompts == "none" or _is_asked(here)]
    probability = np.zeros((stack.depth, size, size), np.float32)
    scores: dict[str, float] = {}
    if asked:
        chosen = stack if len(asked) == stack.depth else only_slices(stack, asked)
        embeddings = encode_stack(sam, chosen, cache, encoder_key(sam))
        device = next(sam.mask_decoder.parameters()).device
        for start in range(0, len(asked), _ROWS):
            part = asked[start : start + _ROWS]
            rows = embeddings[start : start + _ROWS].to(device).float()
            logits, iou = answer(sam, rows, [given[t] for t in part], None, config.multimask)
            probability[part] = to_model(logits[:, 0], size).sigmoid().cpu().numpy()
            scores |= {str(t): round(float(score), 4) for t, score in zip(part, iou, strict=True)}
    notes = {"prompts": config.prompts, "asked_slices": asked, "predicted_iou": scores}
    return Segmentation(probability, None, given, verdicts(points, config), notes)


def as_prompt(points: SlicePoints, size: int, config: Config) -> SlicePoints:
    """What of a slice's prompts the model is given."""
    if config.prompts == "points":
        return points
    if config.prompts == "none":
        return SlicePoints.empty()
    box = points.box
    if box is None:
        box = box_of_points(points, size, config.margin_px * size / NATIVE_SIZE)
    return replace(SlicePoints.empty(), box=box)


def verdicts(points: Sequence[SlicePoints], config: Config) -> tuple[Decision, ...]:
    """What became of each point."""
    if config.prompts == "points":
        return accept_all(points)
    found = []
    plain = iter(accept_all(points, "not checked: inside the box that is drawn around the slice's positive points"))
    for here in points:
        for positive in here.positive:
            decision, reason = next(plain), ""
            if config.prompts == "none":
                reason = "this model was trained without prompts and is asked without any"
            elif here.box is not None:
                reason = "this slice was given a box, which takes the place of its points"
            elif not positive:
                reason = "a negative point: the box is drawn around positive points"
            found.append(replace(decision, verdict="ignored", reason=reason) if reason else decision)
    return tuple(found)

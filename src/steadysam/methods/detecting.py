"""What methods with a detector share: its settings, its stages (teacher, then student), and boxes found in a stack.

Detector losses are those of YOLOv8; the student may learn from the teacher by Localization Distillation (Zheng et al.,
CVPR 2022) as LDFSAM does (eq. 7; ldfsam.md 3.4), or by classification distillation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from steadysam.detection.assign import Truth
from steadysam.detection.average_precision import FoundBoxes, average_precision_summary
from steadysam.detection.boxes import detect
from steadysam.detection.distill import classification_distillation, localization_distillation
from steadysam.detection.losses import detection_losses
from steadysam.detection.table import Size
from steadysam.detection.yolo import Detector, Predictions
from steadysam.errors import ConfigError
from steadysam.methods.contract import Batch, Stage, StageSettings
from steadysam.methods.detection_samples import DetectionSamples, detector_images, held_out_samples
from steadysam.methods.mosaic import MosaicConfig
from steadysam.types import Frame, SliceStack

__all__ = ["DetectionSamples", "DetectorConfig", "FoundBoxes", "detect_stack", "detector_images", "detector_stages"]

_ROWS = 8  # slices per forward pass; fixed, so that results do not depend on what else runs
FINAL_RATE = 0.01  # share of the learning rate that is left in the last epoch
SELECTION_SCORE = 0.01  # of boxes that count when the best epoch is chosen
LOWEST_SCORE = 0.001  # boxes below say nothing, also not for average precision


class DetectorStage(StageSettings):
    """YOLOv8's recipe: SGD with momentum, a rate that falls along a line, a short warm-up (ldfsam.md 3.5).

    The recipe's three epochs of warm-up are given in steps: 300 are three epochs of 1600 slices in batches of 16. Its
    loss is a sum over the batch and ours a mean: its rate of 0.01, decay of 5e-4 and clipping at a norm of 10 are, for
    batches of 16, the same as 0.16, 3.1e-5 and 0.625 here.
    """

    optimizer: Literal["adam", "adamw", "sgd"] = "sgd"
    schedule: Literal["plateau", "poly", "linear", "cosine"] = "linear"
    momentum: float = Field(default=0.937, ge=0, lt=1)
    batch_size: int = Field(default=16, ge=1)
    learning_rate: float = Field(default=0.16, gt=0)
    weight_decay: float = Field(default=3.1e-5, ge=0)
    clip_norm: float = Field(default=0.625, ge=0)
    early_stop: int = Field(default=50, ge=1)
    select_by: Literal["loss"] = "loss"  # boxes have no Dice
    warmup_steps: int = Field(default=300, ge=0)


class DetectorConfig(MosaicConfig):
    """A detector, its training and its distillation; lengths are pixels of the detector's own image.

    Args:
        size: of the detector (the student).
        teacher: size of the teacher; "" is none, and there is one stage less.
        distill: what the student takes from the teacher: nothing, the class scores at its positive locations (`kd`),
            the edges there (`ld_main`), or the edges there and in the valuable region around (`ld`). Where a teacher
            is named and nothing is said of this, `ld`.
        region: the valuable region by DIoU of square priors, as in the paper, or all negative locations, as the authors
            of LD advise for detectors without anchors.
        temperature, kd_temperature: of edges and of class scores.
        gamma: lower bound of the region, as a share of its upper one.
        main_gain, vlr_gain, kd_gain: weights of the terms; LD's code, too, has a quarter for both kinds of region.
        box, cls, dfl: weights of YOLOv8's losses.
        top_k, alpha, beta: of the task-aligned assigner.
        ema: decay of averaged weights.
        confidence, overlap: least score, and most IoU of two boxes that are both kept.
    """

    FIXED: ClassVar[frozenset[str]] = frozenset(MosaicConfig.model_fields) | frozenset(
        ("size", "teacher", "distill", "region", "temperature", "kd_temperature", "gamma", "main_gain", "vlr_gain")
        + ("kd_gain", "box", "cls", "dfl", "top_k", "alpha", "beta", "ema")
    )

    size: Size = "n"
    teacher: Literal["", "n", "s", "m", "l", "x"] = ""
    distill: Literal["none", "kd", "ld_main", "ld"] = "none"
    region: Literal["diou", "all_neg"] = "diou"
    temperature: float = Field(default=10.0, gt=0)
    kd_temperature: float = Field(default=2.0, gt=0)
    gamma: float = Field(default=0.25, ge=0, le=1)
    main_gain: float = Field(default=1.5, ge=0)
    vlr_gain: float = Field(default=0.375, ge=0)
    kd_gain: float = Field(default=0.5, ge=0)
    box: float = Field(default=7.5, ge=0)
    cls: float = Field(default=0.5, ge=0)
    dfl: float = Field(default=1.5, ge=0)
    top_k: int = Field(default=10, ge=1)
    alpha: float = Field(default=0.5, ge=0)
    beta: float = Field(default=6.0, ge=0)
    ema: float = Field(default=0.9999, ge=0, lt=1)
    confidence: float = Field(default=0.25, ge=LOWEST_SCORE, lt=1)
    overlap: float = Field(default=0.7, gt=0, le=1)
    teacher_stage: DetectorStage = DetectorStage()
    student_stage: DetectorStage = DetectorStage()

    @model_validator(mode="before")
    @classmethod
    def _a_teacher_teaches(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("teacher") and "distill" not in values:
            return {**values, "distill": "ld"}
        return values

    @model_validator(mode="after")
    def _someone_teaches(self) -> DetectorConfig:
        if self.distill != "none" and not self.teacher:
            raise ValueError(f"distill = {self.distill!r} needs a teacher, such as teacher = 'x'")
        return self

    @property
    def detail_size(self) -> int:
        """Side of the detector's image, px."""
        return self.image_size


def untrained_detector(size: Size) -> Detector:
    """A detector of random weights that is to stay so, with the batch statistics of clouds: a control.

    With the usual 0 and 1 the signal of a fresh network dies out on the way (P5 varies by 1e-9), and its features would
    be the same for every image. With those of white noise, which has little of the low frequencies of a picture, it
    grows a thousandfold, P5 the most, and a mix of the three would be P5 alone. Not a start for training: the
    statistics lag behind the weights, and the network in eval mode overflows for a while.
    """
    detector = Detector(size)
    norms = [module for module in detector.modules() if isinstance(module, nn.BatchNorm2d)]
    momentum = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None  # the plain mean over batches, here of one
    with torch.no_grad():
        detector.train()(_clouds())
    for norm, value in zip(norms, momentum, strict=True):
        norm.momentum = value
    return detector.eval()


def _clouds() -> Tensor:
    """(4, 3, 160, 160) in [0, 1]: noise of three scales, with about as much of each as a picture has."""
    planes = [torch.rand(4, 3, side, side) for side in (3, 10, 40)]
    return torch.stack([F.interpolate(p, (160, 160), mode="bilinear", align_corners=False) for p in planes]).mean(0)


def detector_stages(config: DetectorConfig, detector: str = "detector", teacher: str = "teacher") -> tuple[Stage, ...]:
    """The stage `teacher`, if there is one, and the stage `student`.

    Terms are logged by name. The ratio `ld_main : dfl` should be of order 1 in the first epochs (ldfsam.md 3.4); both
    are columns of the stage's metrics.csv and curves of its TensorBoard folder, gains included.

    Args:
        detector, teacher: attributes of the model under which its two `Detector`s lie.
    """
    student = _stage("student", detector, config, config.student_stage, teacher if config.distill != "none" else "")
    if not config.teacher:
        return (student,)
    return _stage("teacher", teacher, config, config.teacher_stage), student


def _stage(name: str, attribute: str, config: DetectorConfig, settings: StageSettings, taught_by: str = "") -> Stage:
    return Stage(
        name=name,
        trainable=(f"{attribute}.*",),
        samples=lambda model, cases, cache: DetectionSamples(cases, config, settings.epochs),
        validation_samples=lambda model, cases, cache: held_out_samples(cases, config),
        losses=lambda model, batch: detector_losses(
            _part(model, attribute), batch, config, _part(model, taught_by) if taught_by else None
        ),
        settings=settings,
        ema=config.ema,
        final_rate=FINAL_RATE,
        needs_validation=True,
    )


def _part(model: nn.Module, attribute: str) -> Detector:
    found = getattr(model, attribute)
    if not isinstance(found, Detector):
        raise ConfigError("CONFIG_VALUE", f"the model has no {attribute}", fix="build it with the same configuration")
    return found


def detector_losses(
    detector: Detector, batch: Batch, config: DetectorConfig, teacher: Detector | None = None
) -> dict[str, Tensor]:
    """`box`, `cls` and `dfl`, and with a teacher `kd`, or `ld_main` and `ld_vlr`; all times their gains.

    In eval mode, which is validation, `ap_loss` is added, by which the best epoch is chosen: 100 (1 - AP) of the batch.
    The other terms cannot tell: task-aligned targets are as weak as the boxes that a network draws, so that one which
    finds nothing has a loss near 0. The teacher's terms are left out there, so that all students are chosen alike.
    """
    images, truth = batch.tensors["images"], truth_of(batch)
    found = detector(images)
    terms, assignment = detection_losses(
        found,
        truth,
        **{"box": config.box, "cls": config.cls, "dfl": config.dfl},
        **{"top_k": config.top_k, "alpha": config.alpha, "beta": config.beta},
    )
    if not detector.training:
        return {**terms, "ap_loss": ap_loss(found, truth, config)}
    if teacher is None:
        return terms
    with torch.no_grad():
        taught = teacher.eval()(images)
    if config.distill == "kd":
        kd = classification_distillation(found, taught, assignment, temperature=config.kd_temperature)
        return {**terms, "kd": config.kd_gain * kd}
    ld = localization_distillation(
        found,
        taught,
        assignment,
        truth,
        **{"temperature": config.temperature, "gamma": config.gamma, "region": config.region},
    )
    terms = {**terms, "ld_main": config.main_gain * ld["main"]}
    return {**terms, "ld_vlr": config.vlr_gain * ld["vlr"]} if config.distill == "ld" else terms


def ap_loss(predictions: Predictions, truth: Truth, config: DetectorConfig) -> Tensor:
    """100 (1 - AP) over IoU 0.50 to 0.95 of a batch's boxes with a score above 0.01; 0 for a batch without objects."""
    found = detect(predictions, confidence=SELECTION_SCORE, overlap=config.overlap, most=100)
    value = average_precision_summary(found, [boxes.cpu().numpy() for boxes, _ in truth])["AP"]
    return predictions.scores.new_tensor(0.0 if math.isnan(value) else 100 * (1 - value))


def truth_of(batch: Batch) -> list[tuple[Tensor, Tensor]]:
    """The boxes (K, 4) of every image of a batch and their classes (K,), which are all 0: the foreground."""
    counts = batch.tensors["counts"].tolist()
    rows = [boxes[:count] for boxes, count in zip(batch.tensors["boxes"], counts, strict=True)]
    return [(boxes, boxes.new_zeros(len(boxes), dtype=torch.long)) for boxes in rows]


@torch.no_grad()
def detect_stack(
    detector: Detector, stack: SliceStack, config: DetectorConfig, confidence: float | None = None
) -> list[FoundBoxes]:
    """The boxes of every slice, in continuous model pixels of the stack, after non-maximum suppression.

    A lower `confidence` than that of the configuration adds boxes and changes none of the others, as suppression goes
    from the best box down (of 300 boxes at most).
    """
    least = config.confidence if confidence is None else confidence
    device = next(detector.parameters()).device
    found: list[FoundBoxes] = []
    for start in range(0, stack.depth, _ROWS):
        images = detector_images(stack, slice(start, start + _ROWS), config.image_size).to(device)
        for here in detect(detector(images), confidence=least, overlap=config.overlap):
            boxes = to_model_boxes(here.boxes.float().cpu().numpy(), stack.frame, config.image_size)
            found.append(FoundBoxes(boxes, here.scores.float().cpu().numpy()))
    return found


def to_model_boxes(boxes: NDArray[np.float32], frame: Frame, size: int) -> NDArray[np.float32]:
    """(K, 4) continuous pixels of the detector's image -> continuous model pixels, inside the image.

    Both images show the slice in the same way, but where one is padded, their sides are rounded each by itself.
    """
    own = Frame(frame.height, frame.width, size, frame.fit)
    factor = np.array([*frame.scale_xy] * 2) / np.array([*own.scale_xy] * 2)
    return np.clip(boxes * factor, 0, frame.size).astype(np.float32)


def above(found: FoundBoxes, confidence: float) -> FoundBoxes:
    """The boxes of a higher score than `confidence`."""
    keep = found.scores > confidence
    return FoundBoxes(found.boxes[keep], found.scores[keep])


def box_rows(found: Sequence[FoundBoxes]) -> list[list[float]]:
    """[slice, x0, y0, x1, y1, score] of every box, for `Segmentation.notes["boxes"]`."""
    return [
        [t, *(round(float(edge), 3) for edge in box), round(float(score), 4)]
        for t, here in enumerate(found)
        for box, score in zip(here.boxes, here.scores, strict=True)
    ]

"""YOLOv8 as a method of its own: boxes of the object's parts on every slice; its mask is what they cover.

LDFSAM's box baseline and `steadysam detect` stand on it. The stages `teacher` and `student` are those of LDFSAM, so
that runs can start from one another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator
from torch import nn

from steadysam.detection.average_precision import FoundBoxes
from steadysam.detection.yolo import Detector
from steadysam.embeddings import EmbeddingCache
from steadysam.methods.contract import FrozenConfig, Stage, Traits
from steadysam.methods.detecting import (
    LOWEST_SCORE,
    DetectorConfig,
    above,
    box_rows,
    detect_stack,
    detector_stages,
)
from steadysam.types import Segmentation, SlicePoints, SliceStack

TRAITS = Traits(points=False, backbone=False)


class Config(FrozenConfig):
    """The detector, its training and its distillation.

    Args:
        generator: whose boxes are asked for; with `teacher` there is no student.
    """

    FIXED: ClassVar[frozenset[str]] = frozenset(("generator",))

    detector: DetectorConfig = DetectorConfig()
    generator: Literal["student", "teacher"] = "student"

    @model_validator(mode="after")
    def _teacher_exists(self) -> Config:
        if self.generator == "teacher" and not self.detector.teacher:
            raise ValueError("generator = 'teacher' needs detector.teacher, the teacher's size")
        return self

    @property
    def detail_size(self) -> int:
        """Side of the detector's image, px."""
        return self.detector.detail_size


class DetectorModel(nn.Module):
    """Parameters lie below `detector.` and, until it has taught, `teacher.`."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.generator, size = config.generator, config.detector.teacher
        self.detector = Detector(config.detector.size) if config.generator == "student" else None
        self.teacher = Detector(size) if size else None

    @property
    def source(self) -> Detector:
        """The one whose boxes are asked for."""
        return cast(Detector, self.detector if self.generator == "student" else self.teacher)

    def release(self) -> None:
        """Drop a teacher of which no boxes are asked for."""
        if self.generator == "student":
            self.teacher = None


def build(config: Config, backbone: None) -> DetectorModel:
    """The networks, from random weights."""
    return DetectorModel(config)


def stages(config: Config) -> tuple[Stage, ...]:
    """The teacher, if there is one, then the student."""
    found = detector_stages(config.detector)
    return found if config.generator == "student" else found[:1]


def segment(
    model: nn.Module, config: Config, stack: SliceStack, points: Sequence[SlicePoints], cache: EmbeddingCache
) -> Segmentation:
    """The probability of a pixel is the score of the best box that covers it; `points` are not looked at.

    Boxes below `confidence` count, too, as low probabilities; `notes["boxes"]` has those above.
    """
    found = detect_stack(cast(DetectorModel, model).source, stack, config.detector, LOWEST_SCORE)
    probability = np.stack([covered(here, stack.preprocess.size) for here in found])
    sure = [above(here, config.detector.confidence) for here in found]
    return Segmentation(probability, notes={"boxes": box_rows(sure)})


def covered(found: FoundBoxes, size: int) -> NDArray[np.float32]:
    """(S, S): the greatest score of the boxes that hold a pixel's centre; 0 without a box."""
    result = np.zeros((size, size), np.float32)
    centres = np.arange(size) + 0.5
    for (x0, y0, x1, y1), score in zip(found.boxes.tolist(), found.scores.tolist(), strict=True):
        columns, rows = ((low <= centres) & (centres < high) for low, high in ((x0, x1), (y0, y1)))
        result[np.ix_(rows, columns)] = np.maximum(result[np.ix_(rows, columns)], score)
    return result

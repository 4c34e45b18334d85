"""YOLOv8 as a method of its own: boxes of the object's parts on every slice; its mask is what they cover.

LDFSAM's box baseline and `steadysam detect` stand on it. The stages `teacher` and `student` are those of LDFSAM, so
that runs can start from one another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray
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
    """The detector, its training and its distillation."""

    detector: DetectorConfig = DetectorConfig()

    @property
    def detail_size(self) -> int:
        """Side of the detector's image, px."""
        return self.detector.detail_size


class DetectorModel(nn.Module):
    """Parameters lie below `detector.` and, until it has taught, `teacher.`."""

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__()
        self.detector = Detector(config.size)
        self.teacher = Detector(config.teacher) if config.teacher else None

    def release(self) -> None:
        """Drop the teacher: no boxes of it are asked for."""
        self.teacher = None


def build(config: Config, backbone: None) -> DetectorModel:
    """The networks, from random weights."""
    return DetectorModel(config.detector)


def stages(config: Config) -> tuple[Stage, ...]:
    """The teacher, if there is one, then the student."""
    return detector_stages(config.detector)


def segment(
    model: nn.Module, config: Config, stack: SliceStack, points: Sequence[SlicePoints], cache: EmbeddingCache
) -> Segmentation:
    """The probability of a pixel is the score of the best box that covers it; `points` are not looked at.

    Boxes below `confidence` count, too, as low probabilities; `notes["boxes"]` has those above.
    """
    found = detect_stack(cast(DetectorModel, model).detector, stack, config.detector, LOWEST_SCORE)
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

"""The network of LDFSAM: a promptable model, a detector, its teacher, and what turns features into prompts."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from steadysam.backbones.backbone import Backbone
from steadysam.backbones.rows import FeaturePrompts
from steadysam.detection.yolo import Detector
from steadysam.methods.detecting import untrained_detector
from steadysam.methods.feature_prompting import feature_prompts, make_prompter
from steadysam.methods.ldfsam.config import Config
from steadysam.methods.slicewise import best_mask
from steadysam.types import SlicePoints


class LdfSam(nn.Module):
    """Parameters lie below `backbone.`, `detector.`, `teacher.` and `prompter.`; what a mode lacks is None."""

    def __init__(self, config: Config, backbone: Backbone) -> None:
        super().__init__()
        size, asks = config.detector.size, config.mode != "none"
        self.mode, self.generator = config.mode, config.generator
        self.backbone = cast(nn.Module, backbone)
        self.detector = None
        if asks and config.generator != "teacher":
            # one that nobody trains has to see something: a fresh one is all but blind (`untrained_detector`)
            trained = config.generator == "student"
            self.detector = Detector(size) if trained else untrained_detector(size)
        taught = asks and config.detector.teacher and config.generator in ("student", "teacher")
        self.teacher = Detector(config.detector.teacher) if taught and config.detector.teacher else None
        self.prompter = None
        if config.feature_mode:
            self.prompter = make_prompter(
                self.source, backbone, channels=config.channels, tokens=config.tokens, alpha=config.alpha
            )

    @property
    def sam(self) -> Backbone:
        """The backbone under its contract."""
        return cast(Backbone, self.backbone)

    @property
    def source(self) -> Detector:
        """The detector that prompts."""
        return cast(Detector, self.teacher if self.generator == "teacher" else self.detector)

    def release(self) -> None:
        """Drop the teacher, once it has taught."""
        if self.generator != "teacher":
            self.teacher = None

    def prompts(self, detail: Tensor) -> FeaturePrompts:
        """(B, 3, F, F) images in [0, 1] -> the feature prompts of the mode; none in mode `none`."""
        if self.prompter is None:
            return FeaturePrompts(None, None)
        return feature_prompts(self.source, self.prompter, detail, self.mode)

    def decode(self, embeddings: Tensor, features: FeaturePrompts, multimask: bool) -> tuple[Tensor, Tensor]:
        """(B, C, h, h) embeddings and their prompts -> logits (B, m, m) and predicted IoU (B,) of the best mask."""
        nothing = [SlicePoints.empty()] * len(embeddings)
        return best_mask(*self.sam.decode_full(embeddings, nothing, multimask=multimask, features=features))

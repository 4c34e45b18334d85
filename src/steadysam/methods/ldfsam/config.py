"""Every switch of LDFSAM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from steadysam.augment import AugmentConfig
from steadysam.methods.adaptation import Adaptation
from steadysam.methods.contract import FrozenConfig, LoraConfig, StageSettings
from steadysam.methods.detecting import DetectorConfig

Mode = Literal["SD", "S", "D", "box", "none"]
Generator = Literal["student", "teacher", "random", "fresh"]


class Masks(StageSettings):
    """The mask stage: AdamW at 1e-4 along a cosine, the epoch of the best validation Dice (ldfsam.md 2 and 3.5)."""

    LATER: ClassVar[Mapping[str, Any]] = {}  # another default: an older run that says nothing went by the loss

    optimizer: Literal["adam", "adamw", "sgd"] = "adamw"
    schedule: Literal["plateau", "poly", "linear", "cosine"] = "cosine"
    batch_size: int = Field(default=8, ge=1)
    learning_rate: float = Field(default=1e-4, gt=0)
    weight_decay: float = Field(default=1e-4, ge=0)
    # focal loss has 20 times the weight of Dice, and can grow again while the masks still get better
    select_by: Literal["loss", "dice"] = "dice"


class Config(FrozenConfig):
    """Every switch of LDFSAM; the defaults are the paper's, or ldfsam.md's where the paper is silent.

    All but two: no teacher is trained unless its size is named, as the paper's is twenty times the student's; and
    `adapt`, which is the paper's `adapters` for the backbone of SAM-Med2D only (`steadysam train` sets it).

    Args:
        detector: the detector and its distillation.
        generator: whose features prompt: the (distilled) student's, the teacher's, or, as controls, those of a
            detector that nobody trained (`random`) or that is trained with the masks only (`fresh`).
        mode: sparse and dense feature prompts (`SD`), one of them, the boxes that the detector finds, or `none`: the
            segmenter by itself, trained as long.
        tokens: number of sparse prompts.
        channels: width of the mixed feature map.
        alpha: weight of the dense prompt at the start; it is learnt.
        tune_detector: train its backbone and neck in the mask stage, at `detector_rate` of the stage's rate.
        multimask: take the best of three masks by predicted IoU, as SAM-Med2D does; else the one mask.
        box_jitter: in mode `box`, each side of a true box is moved in training by up to this share of it.
        adapt: what of the image encoder is trained: `lora`, `full`, or the `adapters` that it has (SAM-Med2D).
    """

    FIXED: ClassVar[frozenset[str]] = frozenset(
        ("generator", "mode", "tokens", "channels", "alpha", "tune_detector", "detector_rate", "box_jitter", "adapt")
    )

    detector: DetectorConfig = DetectorConfig()
    generator: Generator = "student"
    mode: Mode = "SD"
    tokens: int = Field(default=1, ge=1)
    channels: int = Field(default=256, ge=8)
    alpha: float = 1.0
    tune_detector: bool = True
    detector_rate: float = Field(default=0.1, gt=0, le=1)
    multimask: bool = True
    box_jitter: float = Field(default=0.1, ge=0, le=0.5)
    adapt: Adaptation = "lora"
    lora: LoraConfig = LoraConfig()
    augment: AugmentConfig = AugmentConfig(scale=0.1, gamma=0.2)
    masks: Masks = Masks()

    @model_validator(mode="after")
    def _generator_exists(self) -> Config:
        if self.generator == "teacher" and not self.detector.teacher:
            raise ValueError("generator = 'teacher' needs detector.teacher, the teacher's size")
        if self.generator == "fresh" and not self.tune_detector:
            raise ValueError("generator = 'fresh' learns in the mask stage: with tune_detector = false it is 'random'")
        if self.mode == "box" and self.generator in ("random", "fresh"):
            raise ValueError(f"mode = 'box' needs a detector that finds boxes, which {self.generator!r} does not")
        return self

    @property
    def feature_mode(self) -> bool:
        """Whether features prompt, rather than boxes or nothing."""
        return self.mode in ("SD", "S", "D")

    @property
    def tuned(self) -> bool:
        """Whether the mask stage trains the detector; a random one stays as it is, and boxes have no gradient."""
        return self.tune_detector and self.feature_mode and self.generator != "random"

    @property
    def detail_size(self) -> int:
        """The detector's image, px; 0 where there is no detector."""
        return 0 if self.mode == "none" else self.detector.image_size

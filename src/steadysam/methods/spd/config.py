"""Every switch of SPD."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, field_validator

from steadysam.augment import AugmentConfig
from steadysam.methods.contract import FrozenConfig, LoraConfig, StageSettings
from steadysam.methods.detecting import DetectorConfig
from steadysam.methods.spd.distill import EmptyPolicy, Rule, Sampling

PromptChoice = Literal["consensus", "raw", "neighbours", "feature", "both"]


class Features(FrozenConfig):
    """Feature prompts beside or instead of points: a detector, and what is made of its features (see `ldfsam`)."""

    detector: DetectorConfig = DetectorConfig()
    tokens: int = Field(default=1, ge=1)
    channels: int = Field(default=256, ge=8)
    alpha: float = 1.0


class Config(FrozenConfig):
    """Every switch of SPD; the defaults are the paper's, or spd.md's where the paper is silent.

    `prompts` chooses what the decoder is given: `consensus` (CPD; `n = 0` is "local only"), `raw` (no filter),
    `neighbours` (own and neighbours' points, unfiltered), `feature` (a detector's features and no point, as in
    LDFSAM) or `both` (consensus and features); `distilled` is another word for `consensus`. `features` says how they
    are made. `output = saliency` returns the stage-1 head's map.
    """

    FIXED: ClassVar[frozenset[str]] = frozenset(
        ("adapt", "features", "redraw", "psc", "psc_weight", "psc_squared", "psc_skip_empty")
        + ("dice_weight", "focal_weight", "focal_gamma", "dice_eps")
    )

    adapt: Literal["lora", "full"] = "lora"
    lora: LoraConfig = LoraConfig()
    saliency_bias: float = 0.0
    saliency_temperature: float = Field(default=1.0, gt=0)
    prompts: PromptChoice = "consensus"
    tau: float = Field(default=0.5, ge=0, le=1)
    n: int = Field(default=2, ge=0)
    sampling: Sampling = "nearest"
    top: int = Field(default=0, ge=0)
    empty: EmptyPolicy = "no_prompt"
    redraw: bool = False
    psc: Literal["none", "prev", "next", "bi"] = "next"
    psc_weight: float = Field(default=0.1, ge=0)
    psc_squared: bool = False
    psc_skip_empty: bool = False
    dice_weight: float = Field(default=0.7, ge=0)
    focal_weight: float = Field(default=0.3, ge=0)
    focal_gamma: float = Field(default=2.0, ge=0)
    dice_eps: float = Field(default=1e-6, gt=0)
    variants: int = Field(default=1, ge=1)
    output: Literal["mask", "saliency"] = "mask"
    features: Features | None = None
    augment: AugmentConfig = AugmentConfig()
    stage1: StageSettings = StageSettings()
    stage2: StageSettings = StageSettings()

    @field_validator("prompts", mode="before")
    @classmethod
    def _by_its_other_name(cls, value: object) -> object:
        return "consensus" if value == "distilled" else value

    @property
    def unprompted(self) -> bool:
        """Whether no click is looked at."""
        return self.prompts == "feature"

    @property
    def feature_prompts(self) -> Features | None:
        """How features prompt; None where they do not."""
        return (self.features or Features()) if self.prompts in ("feature", "both") else None

    @property
    def detail_size(self) -> int:
        """The detector's image, px; 0 without one."""
        return 0 if self.feature_prompts is None else self.feature_prompts.detector.image_size

    @property
    def rule(self) -> Rule:
        """The part that distillation needs."""
        return Rule(self.tau, self.n, self.sampling, self.top, self.empty)

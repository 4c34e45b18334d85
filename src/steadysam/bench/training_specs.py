"""What of a suite is trained, and on what."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from steadysam.methods.contract import FrozenConfig


class NnUnet(FrozenConfig):
    """nnU-Net itself, by its own commands: see `TrainOptions`; `mirroring` is its test-time augmentation."""

    configuration: Literal["2d", "3d_fullres"] = "2d"
    epochs: int = Field(default=1000, ge=1)
    steps: int = Field(default=250, ge=1)
    slices: int = Field(default=0, ge=0)
    memory_gb: float = Field(default=0.0, ge=0)
    precision: Literal["own", "bf16"] = "own"
    mirroring: bool = True


class Drawn(FrozenConfig):
    """Pictures drawn from random numbers, as `steadysam draw` does; `seed` is that of the training on them, too."""

    images: int = Field(default=800, ge=2)
    size: int = Field(default=192, ge=32)
    seed: int = Field(default=0, ge=0)


class RunSpec(FrozenConfig):
    """Something that is trained.

    Args:
        nnunet: nnU-Net instead of a method of ours.
        method: `name` and settings, merged over those of the suite's `[run.method]` that the method knows.
        drawn: it is trained on drawn pictures instead of a target's, once, for all targets and seeds to begin with.
        start: another run of the suite whose weights it starts from; `skip`: stages taken from it as they are.
        begin: another run of the suite whose stages those of the same names begin with, as `start.begin` of a run.
        backbone, preprocess, data: values that differ from the suite's. A `data.train_fraction` below 1 draws its
            patients with the seed of the cell, unless `data.subset_seed` says otherwise.
        seeds: the seeds with which it is trained; without it all of the suite.
        sweep: dotted keys below `method` of the learning rates that are chosen on validation cases, together.
        like: with `sweep`, take the rate that was chosen for this run instead of choosing again.
    """

    method: dict[str, Any] = {}
    nnunet: NnUnet | None = None
    drawn: Drawn | None = None
    start: str | None = None
    skip: tuple[str, ...] = ()
    begin: str | None = None
    backbone: dict[str, Any] = {}
    preprocess: dict[str, Any] = {}
    data: dict[str, Any] = {}
    seeds: tuple[int, ...] | None = None
    sweep: tuple[str, ...] = ()
    like: str | None = None

    @model_validator(mode="after")
    def _drawn_by_itself(self) -> RunSpec:
        if self.drawn is not None and (self.start or self.begin or self.sweep or self.nnunet):
            raise ValueError("a run on drawn pictures is of no target: it has no start, begin, sweep or nnunet")
        return self

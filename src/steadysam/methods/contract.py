"""What a method is: a module with four names, `Config`, `build`, `stages`, `segment`.

A fifth, `TRAITS`, is there where a method is not one that takes points and stands on a backbone.

A method says which parameters are trained and which losses drive them, stage by stage; the one training loop
(`steadysam.training`) does the rest. It never reads files and never sees millimetres.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer
from torch import Tensor, nn

from steadysam.embeddings import EmbeddingCache
from steadysam.files import content_key
from steadysam.types import Segmentation, SlicePoints, SliceStack


class FrozenConfig(BaseModel):
    """Settings: frozen, unknown keys refused, no NaN.

    `LATER` names settings that came later, each with the value at which it is not written: older runs and stored
    results keep their text and keys. A class that changes such a default must write it.

    `FIXED` names settings that only act in training, or decide the shape of what is trained, and `TRAINING_ONLY` says
    so of a whole table: a finished run refuses to change them (`fixed_by_training`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    LATER: ClassVar[Mapping[str, Any]] = {}
    FIXED: ClassVar[frozenset[str]] = frozenset()
    TRAINING_ONLY: ClassVar[bool] = False

    @model_serializer(mode="wrap")
    def _as_before(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {k: v for k, v in serialise(self).items() if k not in self.LATER or v != self.LATER[k]}


def fixed_by_training(kind: type[BaseModel], settings: Mapping[str, Any]) -> list[str]:
    """Those of `settings` that a finished run cannot change, as `table.key`; unknown ones are not judged."""
    found = []
    for key, value in settings.items():
        inner = kind.model_fields[key].annotation if key in kind.model_fields else None
        if key in getattr(kind, "FIXED", ()) or getattr(inner, "TRAINING_ONLY", False):
            found.append(key)
        elif isinstance(inner, type) and issubclass(inner, BaseModel) and isinstance(value, Mapping):
            found += [f"{key}.{name}" for name in fixed_by_training(inner, value)]
    return found


@dataclass(frozen=True)
class Traits:
    """What a method is given.

    Args:
        points, boxes: prompts that it looks at; a method without either needs no prompt files.
        backbone: False for networks of their own; `build` is then handed None.
        coarse: the method refines a mask that something else made, `stack.coarse`.
        untrained: it is of use with the backbone's own weights, before any training.
    """

    points: bool = True
    boxes: bool = False
    backbone: bool = True
    coarse: bool = False
    untrained: bool = False

    @property
    def prompted(self) -> bool:
        """Whether there must be prompts."""
        return self.points or self.boxes


@dataclass(frozen=True, eq=False)
class TrainingCase:
    """One labelled case in model pixels.

    Args:
        name: case name.
        stack: the images, (D, C, S, S).
        masks: (D, S, S) bool.
        points: the noisy prompts of every slice, D entries.
        redraw: draws another set of noisy prompts from the same simulator, or None if the prompts came from files.
        detail_masks: (D, F, F) bool, the masks at the size of `stack.detail`; None where the stack has none.
    """

    name: str
    stack: SliceStack
    masks: NDArray[np.bool_]
    points: tuple[SlicePoints, ...]
    redraw: Callable[[np.random.Generator], tuple[SlicePoints, ...]] | None = None
    detail_masks: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Chance:
    """Where in a run we are, as far as random numbers are concerned; every draw is a function of this."""

    seed: int
    stage: str
    epoch: int
    training: bool

    def generator(self, *words: Any) -> np.random.Generator:
        """A generator that depends on seed, stage, epoch and `words` only."""
        key = content_key([self.seed, self.stage, self.epoch, *map(str, words)])
        return np.random.default_rng(int(key[:16], 16))


@dataclass(frozen=True, eq=False)
class Batch:
    """One training batch of `B` samples.

    Args:
        tensors: named tensors, first axis B, moved to the device by the loop.
        points: per row of the decoder batch, the prompts in model pixels.
    """

    tensors: Mapping[str, Tensor]
    points: tuple[SlicePoints, ...] = ()

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`."""
        return Batch({name: value.to(device) for name, value in self.tensors.items()}, self.points)


class Samples(Protocol):
    """The training material of one stage: `len` samples that can be put into batches."""

    def __len__(self) -> int: ...

    def batch(self, indices: Sequence[int], chance: Chance) -> Batch:
        """The samples `indices`, augmented and prompted as `chance` says (no augmentation if not training)."""
        ...


class LoraConfig(FrozenConfig):
    """LoRA on the image encoder (spd.md 2.1); without `targets` the layers are the backbone's own choice."""

    TRAINING_ONLY: ClassVar[bool] = True

    rank: int = Field(default=8, ge=1)
    alpha: int = Field(default=16, ge=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    targets: tuple[str, ...] = ()


class StageSettings(FrozenConfig):
    """Optimisation of one stage (spd.md 2.1 and 2.3).

    With `plateau` the rate is multiplied by `factor` when validation has not improved for `patience` epochs;
    with `poly` it falls as (1 - epoch / epochs)^0.9, with `linear` and `cosine` from 1 to the stage's `final_rate`.
    Training stops after `early_stop` epochs without improvement. `select_by` names the mean over validation slices in
    which an epoch improves: the whole `loss`, or its term `dice`, where others outweigh the masks that are wanted.
    `slices_per_epoch = 0` means all. `warmup_steps` count whole epochs: where `slices_per_epoch` cuts these, the
    warm-up ends in the same epoch or as the next begins, so after fewer steps. SGD has Nesterov momentum 0.99 as in
    nnU-Net unless `momentum` says otherwise.
    """

    TRAINING_ONLY: ClassVar[bool] = True

    LATER: ClassVar[Mapping[str, Any]] = {"select_by": "loss"}

    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    schedule: Literal["plateau", "poly", "linear", "cosine"] = "plateau"
    momentum: float = Field(default=0.99, ge=0, lt=1)

    epochs: int = Field(default=100, ge=0)
    batch_size: int = Field(default=4, ge=1)
    learning_rate: float = Field(default=1e-4, gt=0)
    weight_decay: float = Field(default=1e-5, ge=0)
    factor: float = Field(default=0.5, gt=0, le=1)
    patience: int = Field(default=4, ge=0)
    early_stop: int = Field(default=20, ge=1)
    select_by: Literal["loss", "dice"] = "loss"
    warmup_steps: int = Field(default=0, ge=0)
    slices_per_epoch: int = Field(default=0, ge=0)
    clip_norm: float = Field(default=0.0, ge=0)


@dataclass(frozen=True)
class Stage:
    """One stage of training.

    Args:
        name: goes into logs and checkpoints.
        trainable: patterns (`fnmatch`) of the parameter names that are trained; everything else is frozen. Modules
            below the fixed head of a pattern are in train mode (dropout acts), all others in eval mode. Buffers that
            a pattern names, and the statistics of batch norm layers below its head, belong to the stage, too.
        samples: makes the training material from cases; called once for training and once for validation cases.
            Whatever is frozen may be computed here, through the cache.
        losses: (model, batch) -> named terms whose sum is minimised, each a mean over samples.
        settings: learning rate, epochs and so on.
        rate_factors: pattern of parameter names -> factor of the learning rate; the first that fits counts, without
            one it is 1. Schedules and warm-up scale all alike.
        ema: decay of averaged weights, ramped as ema * (1 - exp(-updates / 2000)); validation, the best weights and
            the stage's result are then the averaged ones, with the buffers as they are. 0: none.
        final_rate: share of the learning rate at the end of the schedules `linear` and `cosine`.
        fixed_statistics: batch norm layers stay in eval mode, all or those that a pattern of module names fits: they
            use their statistics and do not change them.
        needs_validation: only the validation losses can tell a good epoch; without them the last one is taken.
        validation_samples: makes the validation material where it differs; of length 0 if its cases cannot judge.
    """

    name: str
    trainable: tuple[str, ...]
    samples: Callable[[nn.Module, Sequence[TrainingCase], EmbeddingCache], Samples]
    losses: Callable[[nn.Module, Batch], Mapping[str, Tensor]]
    settings: StageSettings
    rate_factors: Mapping[str, float] = field(default_factory=dict)
    ema: float = 0.0
    final_rate: float = 0.01
    fixed_statistics: bool | tuple[str, ...] = False
    needs_validation: bool = False
    validation_samples: Callable[[nn.Module, Sequence[TrainingCase], EmbeddingCache], Samples] | None = None


class Method(Protocol):
    """The four names. Modules are checked against this where the table `METHODS` is written."""

    @property
    def Config(self) -> type[FrozenConfig]:
        """The settings; a class of the method's own."""
        ...

    def build(self, config: Any, backbone: Any) -> nn.Module:
        """The network, with fresh weights for whatever the backbone does not bring.

        Args:
            backbone: a `Backbone`; None for a method whose `TRAITS` say that it has none.
        """
        ...

    def stages(self, config: Any) -> tuple[Stage, ...]:
        """What to train, in order; () for methods without training."""
        ...

    def segment(
        self,
        model: nn.Module,
        config: Any,
        stack: SliceStack,
        points: Sequence[SlicePoints],
        cache: EmbeddingCache,
    ) -> Segmentation:
        """Segment one stack; deterministic, no gradient."""
        ...


def traits_of(method: Any, settings: Any = None) -> Traits:
    """`TRAITS` of a method's module; the default where it has none.

    Args:
        settings: of the method; where their property `unprompted` is true the method looks at no prompt with them.
    """
    traits = getattr(method, "TRAITS", Traits())
    return replace(traits, points=False, boxes=False) if getattr(settings, "unprompted", False) else traits

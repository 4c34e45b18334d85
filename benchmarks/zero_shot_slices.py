"""What the zero-shot benchmarks look at: slices of real test cases, and the first click that all methods share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steadysam.data.cases import read_dataset, resolve_label
from steadysam.data.slices import prepare_stack
from steadysam.prompts.clicks import interior_click
from steadysam.prompts.simulate import generator_for
from steadysam.training_data import read_case
from steadysam.types import Frame, Preprocess, stack_slices

Xy = tuple[int, int]


@dataclass(frozen=True, eq=False)
class CaseSlices:
    """The chosen slices of one case.

    Args:
        indices: N slice numbers of the volume.
        images: (N, C, S, S) float32 in [0, 1], windowed and fitted; C is 1 or 3.
        truths: (N, H, W) bool on the slice's own pixels, none empty.
        frame: slice pixels <-> pixels of the fitted image.
    """

    target: str
    case: str
    patient: str
    indices: tuple[int, ...]
    images: NDArray[np.float32]
    truths: NDArray[np.bool_]
    frame: Frame

    def generator(self, seed: int) -> np.random.Generator:
        """The generator of the clicks of this case; whoever draws from it in slice order gets the same clicks."""
        return generator_for(seed, "zero-shot", self.target, self.case)

    def first_clicks(self, seed: int) -> list[Xy]:
        """N first clicks (x, y) in slice pixels, those that `steadysam.interactive.simulate_user` draws."""
        return self.clicks_from(self.generator(seed))

    def clicks_from(self, generator: np.random.Generator) -> list[Xy]:
        """N first clicks, drawn with a generator of the caller's."""
        return [interior_click(truth, generator) for truth in self.truths]


@dataclass(frozen=True)
class Choice:
    """Which slices are looked at.

    Args:
        part: `Ts`; `Tr` only to see that a method is not broken.
        size: pixels of the fitted image.
        smallest_object: pixels of the truth on the slice's own grid.
        slices_per_case, cases: at most, evenly chosen; 0 takes all.
        fit: see `steadysam.types.Preprocess`.
    """

    part: str = "Ts"
    size: int = 256
    smallest_object: int = 20
    slices_per_case: int = 0
    cases: int = 0
    fit: str = "stretch"


def choice_of(suite: Mapping[str, Any], size: int = 0, subset: bool = False, fit: str = "stretch") -> Choice:
    """The choice that a suite describes, or its smaller subset."""
    limits = suite["subset"] if subset else suite
    return Choice(
        suite["part"],
        size or suite["size"],
        suite["smallest_object"],
        limits["slices_per_case"],
        limits.get("cases", 0),
        fit,
    )


def read_target(data: Path, name: str, target: Mapping[str, Any], choice: Choice) -> Iterator[CaseSlices]:
    """The cases of a target that have a slice large enough, by name.

    Args:
        data: the folder that holds the data sets.
        target: a table `targets.NAME` of the suite.
    """
    dataset = read_dataset(data / target["dataset"])
    values = resolve_label(dataset, target["label"])
    preprocess = Preprocess(size=choice.size, fit=choice.fit, window=target.get("window", "percentile"))  # pyright: ignore
    for case in evenly(dataset.part(choice.part), choice.cases):  # pyright: ignore
        volume, mask = read_case(case, values, dataset.slice_axis, dataset)
        truths = stack_slices(mask.array, volume.grid)
        large = [t for t in range(len(truths)) if int(truths[t].sum()) >= choice.smallest_object]
        if not large:
            continue
        chosen = evenly(large, choice.slices_per_case)
        stack = prepare_stack(volume, preprocess)
        yield CaseSlices(
            name,
            case.name,
            case.patient,
            tuple(chosen),
            np.ascontiguousarray(stack.images[chosen]),
            np.ascontiguousarray(truths[chosen]),
            stack.frame,
        )


def evenly(items: Sequence[Any], most: int) -> list[Any]:
    """At most `most` items, the first and the last among them; all of them if `most` is 0."""
    if not most or len(items) <= most:
        return list(items)
    return [items[i] for i in np.unique(np.linspace(0, len(items) - 1, most).round().astype(int))]

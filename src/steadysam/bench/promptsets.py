"""Frozen prompt sets of a target and seed: simulated, made worse, or annotators' strokes; and what rows do to them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from steadysam.bench.suite import PromptSpec, Scribbles, Suite
from steadysam.data.volumes import read_label_map
from steadysam.errors import ConfigError
from steadysam.geometry import nearest_slices, ras_to_voxel, slice_to_ras
from steadysam.prompts.corrupt import CORRUPTIONS
from steadysam.prompts.scribbles import scribble_points
from steadysam.prompts.simulate import SIMULATORS, generator_for
from steadysam.types import Grid, Mask, Point, Prompts, SlicePoints, Volume

Read = Mapping[str, tuple[Volume, Mask]]  # case -> image and truth
NOTHING = "nothing"  # instead of a simulator's name


def draw_set(
    suite: Suite, name: str, target: str, seed: int, cases: Read, folder: Path
) -> tuple[dict[str, Prompts], dict[str, Any]]:
    """The prompts of every case and what is known of them; a function of the arguments.

    Args:
        cases: those that get prompts; strokes exist for test cases only.
        folder: of the data set.

    Raises:
        ConfigError: `BENCH_PROMPTS` if the target has no strokes of this name.
    """
    spec = suite.prompts[name]
    if spec.base is not None and spec.corruption is not None:
        before, meta = draw_set(suite, spec.base, target, seed, cases, folder)
        return _corrupted(spec, before, target, seed, cases), {
            **meta,
            "corruption": spec.corruption,
            "severity": spec.severity,
            "oracle": spec.oracle or meta["oracle"],
        }
    meta = {"simulator": spec.simulator, "options": spec.options, "seed": seed, "oracle": spec.oracle}
    if spec.simulator is None:
        strokes = suite.targets[target].scribbles.get(name)
        if strokes is None:
            raise ConfigError("BENCH_PROMPTS", f"target {target} has no [targets.{target}.scribbles.{name}]")
        meta |= {"simulator": "scribbles", "options": strokes.model_dump(mode="json")}
        return {case: _strokes(strokes, folder, case, seed, volume) for case, (volume, _) in cases.items()}, meta
    prompts = {}
    for case, (volume, mask) in cases.items():
        generator = generator_for(seed, spec.simulator, target, case)
        prompts[case] = SIMULATORS[spec.simulator](mask.array, volume.grid, generator, **spec.options)
    return prompts, meta


def nothing(cases: Iterable[str], seed: int) -> tuple[dict[str, Prompts], dict[str, Any]]:
    """The set without a prompt, and what is known of it."""
    return dict.fromkeys(cases, Prompts()), {"simulator": NOTHING, "options": {}, "seed": seed, "oracle": False}


def noise_model(meta: Mapping[str, Any]) -> str | None:
    """How the prompts of a set are wrong, in words; None where there are none."""
    if meta["simulator"] == NOTHING:
        return None
    options = ", ".join(f"{key} {value}" for key, value in meta["options"].items() if key != "empty_rule")
    words = {"paper": "paper: in-mask point and 2-5 uniform points", "scribbles": "as drawn", "clicks": "none"}
    text = words.get(meta["simulator"], str(meta["simulator"])) + (f" ({options})" if options else "")
    return f"{text}; {meta['corruption']} {meta['severity']}" if "corruption" in meta else text


def some_points(prompts: Prompts, grid: Grid, count: int, generator: np.random.Generator) -> Prompts:
    """At most `count` points of every slice, drawn without replacement; boxes stay."""
    slices = nearest_slices(ras_to_voxel(prompts.points_mm(), grid), grid)
    kept: list[Point] = []
    for t in sorted(set(slices.tolist())):
        here = np.flatnonzero(slices == t)
        kept += [prompts.points[i] for i in sorted(generator.permutation(here)[:count].tolist())]
    return replace(prompts, points=tuple(kept))


def chosen_points(points: Sequence[SlicePoints], prompts: Prompts, grid: Grid) -> Prompts:
    """The points that a method gave to its decoder (slice pixels, one entry per slice) as prompts of their own."""
    source = prompts.points[0].source if prompts.points else "human"
    rows = [
        Point(f"s{t:03d}-{n}", tuple(xyz.tolist()), "positive" if sign else "negative", source=source)
        for t, here in enumerate(points)
        for n, (xyz, sign) in enumerate(zip(slice_to_ras(here.xy, t, grid), here.positive, strict=True))
    ]
    return replace(prompts, points=tuple(rows))


def _corrupted(
    spec: PromptSpec, before: Mapping[str, Prompts], target: str, seed: int, cases: Read
) -> dict[str, Prompts]:
    name = str(spec.corruption)
    after = {}
    for case, prompts in before.items():
        volume = cases[case][0]
        generator = generator_for(seed, name, target, case)
        image = {"image": volume.array} if name == "lookalike" else {}
        after[case] = CORRUPTIONS[name](prompts, spec.severity, volume.grid, generator, **image)
    return after


def _strokes(strokes: Scribbles, folder: Path, case: str, seed: int, volume: Volume) -> Prompts:
    labels, grid = read_label_map(folder / strokes.folder / f"{case}.nii.gz", slice_axis=volume.grid.slice_axis)
    return scribble_points(
        labels,
        grid,
        value=strokes.value,
        per_slice=strokes.per_slice,
        generator=generator_for(seed, "scribbles", case),
        image_grid=volume.grid,
        ignore=strokes.ignore,
    )

"""From a data set on disk to training cases in model pixels, and the frozen prompt set that goes with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from steadysam.config import RunConfig
from steadysam.data.cases import Case, Dataset, check_pair, read_dataset, resolve_label
from steadysam.data.slices import fit_masks, prepare_stack
from steadysam.data.splits import Split, split_cases
from steadysam.data.volumes import read_label_map, read_volume, select_label
from steadysam.errors import InputError
from steadysam.files import content_key
from steadysam.geometry import slice_points, to_model_points
from steadysam.methods.contract import TrainingCase
from steadysam.prompts.files import read_prompts
from steadysam.prompts.sets import find_prompt_file, write_set
from steadysam.prompts.simulate import SIMULATORS, generator_for
from steadysam.types import Mask, Preprocess, Prompts, SlicePoints, Volume


@dataclass(frozen=True, eq=False)
class TrainingData:
    """Cases for training and validation, and what the run record says about them."""

    train: tuple[TrainingCase, ...]
    val: tuple[TrainingCase, ...]
    record: dict[str, Any]


def load_training_data(
    config: RunConfig, prompt_folder: Path | None, track: Callable[[Iterable[Case]], Iterable[Case]] = iter
) -> TrainingData:
    """Read, check, window and fit all training and validation cases, with their prompts.

    Args:
        prompt_folder: the prompts used are written here as a frozen set, whatever they came from (None: not written,
            for all processes but the first).
        track: wraps the sequence of cases for a progress bar.

    Raises:
        InputError: `DATA_*`, `IMG_*`, `LABEL_*`, `PROMPT_*` with the file concerned.
    """
    dataset = read_dataset(config.data.dataset, channel=config.data.channel)
    values = resolve_label(dataset, config.data.label)
    split = split_of(config, dataset)
    chosen = [*split.train, *split.val]
    prompts: dict[str, Prompts] = {}
    cases: dict[str, TrainingCase] = {}
    hashes: dict[str, str] = {}
    for case in track(chosen):
        volume, mask = read_case(case, values, config.data.slice_axis)
        prompts[case.name] = prompts_of_case(config, dataset, case, volume, mask)
        cases[case.name] = make_case(config, case.name, volume, mask, prompts[case.name])
        hashes[case.name] = content_key(volume.sha256, np.packbits(mask.array))
    if not any(case.masks.any() for case in cases.values()):
        raise InputError("LABEL_EMPTY", f"no training case has a voxel of label {config.data.label!r}")
    frozen = {"meta": _prompt_meta(config), "sources": _sources(prompts.values())}
    if prompt_folder is not None:
        frozen["hash"] = write_set(prompt_folder, prompts, _prompt_meta(config)).hash
    record = {
        "dataset": dataset.name,
        "label": config.data.label,
        "label_values": list(values),
        "split": {
            "rule": split.rule,
            "train": [case.name for case in split.train],
            "val": [case.name for case in split.val],
            "test": [case.name for case in split.test],
        },
        "data_hashes": hashes,
        "prompts": frozen,
    }
    return TrainingData(
        tuple(cases[case.name] for case in split.train), tuple(cases[case.name] for case in split.val), record
    )


def split_of(config: RunConfig, dataset: Dataset) -> Split:
    """The run's split; `data.train_patients` keeps the first so many patients of its training part."""
    data = config.data
    split = split_cases(dataset, seed=data.split_seed, fractions=data.fractions, fold=data.fold)
    if data.train_patients:
        patients = list(dict.fromkeys(case.patient for case in split.train))[: data.train_patients]
        kept = tuple(case for case in split.train if case.patient in patients)
        split = Split(kept, split.val, split.test, f"{split.rule}; first {data.train_patients} training patients")
    return split


def read_case(case: Case, values: Sequence[int], slice_axis: int | None) -> tuple[Volume, Mask]:
    """Image and target mask of one labelled case, on the same grid.

    Raises:
        InputError: `DATA_PAIRS` without a label, `LABEL_GRID` if the grids differ.
    """
    volume = read_volume(case.image, slice_axis=slice_axis)
    if case.label is None:
        raise InputError("DATA_PAIRS", f"case {case.name} has no label file", file=case.image)
    labels, grid = read_label_map(case.label)
    check_pair(volume.grid, grid)
    return volume, Mask(select_label(labels, values), volume.grid)


def make_case(config: RunConfig, name: str, volume: Volume, mask: Mask, prompts: Prompts) -> TrainingCase:
    """A case in model pixels."""
    stack = prepare_stack(volume, Preprocess(**config.preprocess.model_dump()))
    to_points = partial(_model_points, config, volume, stack.frame)
    redraw = None
    if config.prompts.folder is None and "simulated" in prompts.sources:
        redraw = partial(_redraw, config, mask, to_points)
    masks = fit_masks(mask.array, volume.grid, stack.frame)
    return TrainingCase(name, stack, masks, to_points(prompts), redraw)


def prompts_of_case(config: RunConfig, dataset: Dataset, case: Case, volume: Volume, mask: Mask) -> Prompts:
    """Prompts from the folder that the run names, else from the data set's own, else simulated.

    Raises:
        InputError: `PROMPT_CASE_MISSING` if a folder has no file for the case.
    """
    folder = Path(config.prompts.folder) if config.prompts.folder else dataset.folder / f"prompts{case.part}"
    if config.prompts.folder or folder.is_dir():
        path = find_prompt_file(folder, case.name)
        if path is None:
            raise InputError("PROMPT_CASE_MISSING", f"no prompt file for case {case.name}", file=folder)
        return read_prompts(path, volume.grid)
    simulate = SIMULATORS[config.prompts.simulator]
    generator = generator_for(config.prompts.seed, config.prompts.simulator, case.name)
    return simulate(mask.array, volume.grid, generator, **config.prompts.options)


def _model_points(config: RunConfig, volume: Volume, frame: Any, prompts: Prompts) -> tuple[SlicePoints, ...]:
    return to_model_points(slice_points(prompts, volume.grid, config.prompts.outside), frame)


def _redraw(
    config: RunConfig,
    mask: Mask,
    to_points: Callable[[Prompts], tuple[SlicePoints, ...]],
    generator: np.random.Generator,
) -> tuple[SlicePoints, ...]:
    simulate = SIMULATORS[config.prompts.simulator]
    return to_points(simulate(mask.array, mask.grid, generator, **config.prompts.options))


def _prompt_meta(config: RunConfig) -> dict[str, Any]:
    prompts = config.prompts
    if prompts.folder:
        return {"origin": "files", "folder": Path(prompts.folder).name}
    return {"origin": "simulator", "simulator": prompts.simulator, "seed": prompts.seed, "options": prompts.options}


def _sources(prompts: Iterable[Prompts]) -> list[str]:
    return sorted({source for case in prompts for source in case.sources})

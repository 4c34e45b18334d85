"""From a data set on disk to training cases in model pixels, and the frozen prompt set that goes with them."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steadysam.cachefolder import cache_folder
from steadysam.config import RunConfig
from steadysam.data.cases import Case, Dataset, check_pair, check_values, read_dataset, resolve_label
from steadysam.data.slices import fit_masks, prepare_stack
from steadysam.data.splits import Split, refuse_byte_leaks, split_cases
from steadysam.data.volumes import read_label_map, read_volume, select_label
from steadysam.errors import ConfigError, InputError
from steadysam.files import atomic_write, content_key, sha256_file
from steadysam.geometry import slice_points, to_model_points
from steadysam.methods import METHODS
from steadysam.methods.contract import TrainingCase, traits_of
from steadysam.prompts.files import read_prompts
from steadysam.prompts.rows import stamped
from steadysam.prompts.sets import find_prompt_file, write_set
from steadysam.prompts.simulate import SIMULATORS, generator_for
from steadysam.types import Mask, Preprocess, Prompts, SlicePoints, SliceStack, Volume

logger = logging.getLogger(__name__)

_SPILL_BYTES = 64 << 20  # a CT of 64 slices at 512 px


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
    _tell_of_defaults(config, dataset, values)
    split = split_of(config, dataset)
    refuse_byte_leaks(split)
    chosen = [*split.train, *split.val]
    spill = cache_folder(config.compute.cache)
    prompted = traits_of(METHODS[config.method_name], config.method_config()).prompted
    prompts: dict[str, Prompts] = {}
    cases: dict[str, TrainingCase] = {}
    hashes: dict[str, str] = {}
    images: dict[str, str] = {}
    axes: set[int] = set()
    marked: set[str] = set()
    for case in track(chosen):
        volume, mask = read_case(case, values, slice_axis_of(config, dataset), dataset)
        axes.add(volume.grid.slice_axis)
        if mask.array.any():
            marked.add(case.name)
        folder = prompt_files(config, dataset, case.part)
        if prompted and folder:
            prompts[case.name] = read_case_prompts(folder, case, volume)
        else:
            prompts[case.name] = simulate(config, case.name, mask) if prompted else Prompts()
        redraw = partial(_redraw, config, mask) if prompted and not folder else None
        cases[case.name] = make_case(config, case.name, volume, mask, prompts[case.name], redraw, spill)
        hashes[case.name] = content_key(volume.sha256, np.packbits(mask.array))
        images[case.name] = volume.sha256
    _refuse_empty(config, [cases[case.name] for case in split.train], marked)
    if split.val and not any(cases[case.name].masks.any() for case in split.val):
        logger.warning("no validation case has a voxel of label %r: they can't tell good epochs", config.data.label)
    logger.info("%s", split.summary)
    logger.info("slices across array axis %s", " and ".join(map(str, sorted(axes))))
    meta = _prompt_meta(config, prompt_files(config, dataset, "Tr")) if prompted else {"origin": "none"}
    frozen = {"meta": meta, "sources": sorted({source for p in prompts.values() for source in p.sources})}
    if prompt_folder is not None and prompted:
        frozen["hash"] = write_set(prompt_folder, prompts, meta).hash
    record = {
        "dataset": dataset.name,
        "label": config.data.label,
        "label_values": list(values),
        "slice_axis": slice_axis_of(config, dataset),
        "image_channels": sorted({case.stack.images.shape[1] for case in cases.values()}),
        "split": {
            "rule": split.rule,
            "train": [case.name for case in split.train],
            "val": [case.name for case in split.val],
            "test": [case.name for case in split.test],
        },
        "data_hashes": hashes,
        "image_hashes": images | {case.name: sha256_file(case.image) for case in split.test},
        "prompts": frozen,
    }
    return TrainingData(
        tuple(cases[case.name] for case in split.train), tuple(cases[case.name] for case in split.val), record
    )


def _tell_of_defaults(config: RunConfig, dataset: Dataset, values: Sequence[int]) -> None:
    """Defaults that a user of this data set may not want."""
    if config.data.label == "all" and len(values) > 1:
        union = ", ".join(name for name, value in dataset.labels.items() if value in values)
        logger.warning("the target is the union of all labels (%s): --label NAME takes one of them", union)
    if dataset.channel_name(config.data.channel).upper() == "CT" and config.preprocess.window == "percentile":
        logger.warning("CT is windowed by percentiles: --set preprocess.window=ct:400,40 takes HU (width, level)")


def _refuse_empty(config: RunConfig, cases: Sequence[TrainingCase], marked: Collection[str]) -> None:
    """Args: marked: names of the cases whose label files hold the target."""
    if any(case.masks.any() for case in cases):
        return
    label, size = config.data.label, config.preprocess.size
    if any(case.name in marked for case in cases):
        raise InputError(
            "LABEL_EMPTY",
            f"of label {label!r} nothing is left when slices are fitted to {size} x {size} pixels",
            fix="raise preprocess.size: the target is too small for it",
        )
    raise InputError(
        "LABEL_EMPTY",
        f"none of the {len(cases)} training cases has a voxel of label {label!r}",
        fix="choose another label, more of the training patients, or another split",
    )


def split_of(config: RunConfig, dataset: Dataset) -> Split:
    """The run's split; of its training part the patients of `data.train_patients` and `data.train_fraction` only."""
    data = config.data
    split = split_cases(dataset, seed=data.split_seed, fractions=data.fractions, fold=data.fold)
    if data.train_patients:
        patients = list(dict.fromkeys(case.patient for case in split.train))[: data.train_patients]
        kept = tuple(case for case in split.train if case.patient in patients)
        split = Split(kept, split.val, split.test, f"{split.rule}; first {data.train_patients} training patients")
    if data.train_fraction < 1:
        patients = {case.patient for case in split.train}
        chosen = draw_patients(patients, data.train_fraction, data.subset_seed)
        kept = tuple(case for case in split.train if case.patient in chosen)
        share = f"{data.train_fraction:g} of the training patients, {len(chosen)} of {len(patients)}"
        split = Split(kept, split.val, split.test, f"{split.rule}; {share}, seed {data.subset_seed}")
    return split


def draw_patients(patients: Collection[str], fraction: float, seed: int) -> frozenset[str]:
    """A random share of the patients, at least one; with one seed the sets of growing fractions are nested."""
    ordered = sorted(patients)
    chance = np.random.default_rng(int(content_key(["subset", seed])[:16], 16))  # not the draw of the split itself
    order = chance.permutation(len(ordered))
    count = max(1, math.floor(fraction * len(ordered) + 0.5))
    return frozenset(ordered[int(place)] for place in order[:count])


def slice_axis_of(config: RunConfig, dataset: Dataset) -> int | None:
    """The axis of the configuration, else of the data set's description; None lets the spacing decide."""
    return config.data.slice_axis if config.data.slice_axis is not None else dataset.slice_axis


def read_case(
    case: Case, values: Sequence[int], slice_axis: int | None, dataset: Dataset | None = None
) -> tuple[Volume, Mask]:
    """Image and target mask of one labelled case, on the same grid.

    Args:
        dataset: where given, label values that it does not declare are refused.

    Raises:
        InputError: `DATA_PAIRS` without a label, `LABEL_GRID` if the grids differ, `LABEL_UNKNOWN`.
    """
    volume = read_volume(case.image, slice_axis=slice_axis)
    if case.label is None:
        raise InputError("DATA_PAIRS", f"case {case.name} has no label file", file=case.image)
    labels, grid = read_label_map(case.label, slice_axis=volume.grid.slice_axis)
    check_pair(volume.grid, grid, case.label)
    if dataset is not None:
        check_values(dataset, labels, case.label)
    return volume, Mask(select_label(labels, values), volume.grid)


def make_case(
    config: RunConfig,
    name: str,
    volume: Volume,
    mask: Mask,
    prompts: Prompts,
    redraw: Callable[[np.random.Generator], Prompts] | None = None,
    spill: Path | None = None,
) -> TrainingCase:
    """A case in model pixels.

    Args:
        redraw: draws other prompts of the same kind.
        spill: folder for the pixels of cases too large to be held in memory by the hundred; they are mapped.
    """
    size = int(getattr(config.method_config(), "detail_size", 0))
    stack = prepare_stack(volume, Preprocess(**config.preprocess.model_dump()), size)
    masks = fit_masks(mask.array, volume.grid, stack.frame)
    fine = fit_masks(mask.array, volume.grid, replace(stack.frame, size=size)) if size else None
    if spill is not None:
        stack, masks, fine = _spilled(spill / "stacks", stack, masks, fine)

    def to_points(given: Prompts) -> tuple[SlicePoints, ...]:
        return to_model_points(slice_points(given, volume.grid, config.prompts.outside), stack.frame)

    again = None if redraw is None else (lambda generator: to_points(redraw(generator)))
    return TrainingCase(name, stack, masks, to_points(prompts), again, fine)


def prompt_files(config: RunConfig, dataset: Dataset, part: str) -> Path | None:
    """The folder of prompt files: the configuration's, else the data set's own; None: prompts are simulated."""
    if config.prompts.folder:
        return Path(config.prompts.folder)
    folder = dataset.folder / f"prompts{part}"
    return folder if folder.is_dir() else None


def read_case_prompts(folder: Path, case: Case, volume: Volume) -> Prompts:
    """The prompt file of one case.

    Raises:
        InputError: `PROMPT_CASE_MISSING` if the folder has none, and those of `read_prompts`.
    """
    path = find_prompt_file(folder, case.name)
    if path is None:
        raise InputError("PROMPT_CASE_MISSING", f"no prompt file for case {case.name}", file=folder)
    return read_prompts(path, volume.grid)


def simulate(config: RunConfig, name: str, mask: Mask) -> Prompts:
    """Prompts from the configured simulator; a function of the mask, the seed and the case's name."""
    generator = generator_for(config.prompts.seed, config.prompts.simulator, name)
    return stamped(_redraw(config, mask, generator), seed=config.prompts.seed)


def _redraw(config: RunConfig, mask: Mask, generator: np.random.Generator) -> Prompts:
    name = config.prompts.simulator
    if name not in SIMULATORS:
        raise ConfigError("CONFIG_VALUE", f"no simulator {name!r}", expected=", ".join(SIMULATORS))
    return SIMULATORS[name](mask.array, mask.grid, generator, **config.prompts.options)


def _prompt_meta(config: RunConfig, folder: Path | None) -> dict[str, Any]:
    if folder is not None:
        return {"origin": "files", "folder": folder.name}
    prompts = config.prompts
    return {
        "origin": "simulator",
        "simulator": prompts.simulator,
        "seed": prompts.seed,
        "options": prompts.options,
    }


def _spilled(
    folder: Path, stack: SliceStack, masks: NDArray[np.bool_], fine: NDArray[np.bool_] | None
) -> tuple[SliceStack, NDArray[np.bool_], NDArray[np.bool_] | None]:
    """The same, with images that are large, and the masks of their size, in files that are mapped."""
    if stack.images.nbytes > _SPILL_BYTES:
        key = content_key(stack.key, np.packbits(masks))
        stack = replace(stack, images=_mapped(folder / f"{key}-images.npy", stack.images))
        masks = _mapped(folder / f"{key}-masks.npy", masks)
    if stack.detail is not None and fine is not None and stack.detail.nbytes > _SPILL_BYTES:
        key, size = content_key(stack.key, np.packbits(fine)), stack.detail.shape[-1]
        stack = replace(stack, detail=_mapped(folder / f"{key}-detail{size}-bytes.npy", stack.detail))
        fine = _mapped(folder / f"{key}-detail{size}-masks.npy", fine)
    return stack, masks, fine


def _mapped(path: Path, array: NDArray[Any]) -> NDArray[Any]:
    """The array as a read-only memory map of a file that is written once."""
    if not path.is_file():

        def produce(temporary: Path) -> None:
            with open(temporary, "wb") as handle:  # by handle: NumPy would add a suffix to the name
                np.save(handle, array, allow_pickle=False)

        atomic_write(path, produce)
    return np.load(path, mmap_mode="r", allow_pickle=False)

"""What the `steadysam prompts` commands share: finding cases, reading and writing, one case at a time."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from steadysam.errors import ConfigError, InputError, UsageError
from steadysam.geometry import PromptFrame
from steadysam.types import Grid, ImageRef, Prompts


def say(text: str) -> None:
    """One message to stdout, as it is."""
    Console(soft_wrap=True, highlight=False, markup=False, emoji=False).print(text)


def simulate_case(
    name: str,
    label: Path,
    values: tuple[int, ...] | None,
    image: Path | None,
    how: tuple[str, int, Any, int | None],
) -> Prompts:
    """Prompts of one label file; `how` is simulator, seed, options, slice axis."""
    from steadysam.data.cases import check_pair
    from steadysam.data.volumes import read_grid, read_label_map, select_label
    from steadysam.prompts.rows import stamped
    from steadysam.prompts.simulate import SIMULATORS, generator_for

    simulator, seed, options, axis = how
    if simulator not in SIMULATORS:
        raise ConfigError("PROMPT_OPTION", "no such simulator", seen=simulator, expected=", ".join(SIMULATORS))
    labels, grid = read_label_map(label, slice_axis=axis)
    if image is not None:
        label_grid, grid = grid, read_grid(image, axis)
        check_pair(grid, label_grid, label)
    mask = labels > 0 if values is None else select_label(labels, values)
    if values is not None and not mask.any() and not labels.any():
        raise InputError("LABEL_EMPTY", "the label map is empty", file=label)
    prompts = SIMULATORS[simulator](mask, grid, generator_for(seed, simulator, name), **options)
    return tied_to(stamped(prompts, seed=seed, case=name), image, grid)


def corrupt_case(name: str, prompts: Prompts, grid: Grid, array: Any, how: tuple[str, float, int]) -> Prompts:
    """Worse prompts of one case; `how` is corruption, severity, seed."""
    from steadysam.prompts.corrupt import CORRUPTIONS
    from steadysam.prompts.rows import stamped
    from steadysam.prompts.simulate import generator_for

    corruption, severity, seed = how
    if corruption not in CORRUPTIONS:
        raise ConfigError("PROMPT_OPTION", "no such corruption", seen=corruption, expected=", ".join(CORRUPTIONS))
    options = {"image": array} if corruption == "lookalike" else {}
    worse = CORRUPTIONS[corruption](prompts, severity, grid, generator_for(seed, corruption, name), **options)
    return worse if worse is prompts else stamped(worse, seed=seed)


def scribble_prompts(
    path: Path,
    image_grid: Grid | None,
    axis: int | None,
    how: tuple[int | None, int, int, tuple[int, ...], int],
) -> Prompts:
    """Points from a scribble volume; `how` is value, per_slice, negatives, ignore, seed."""
    from steadysam.data.volumes import case_name, read_label_map
    from steadysam.prompts.rows import stamped
    from steadysam.prompts.scribbles import scribble_points
    from steadysam.prompts.simulate import generator_for

    value, per_slice, negatives, ignore, seed = how
    if value is None:
        raise UsageError("USAGE", "scribbles need --value, the structure wanted", seen=str(path))
    labels, grid = read_label_map(path, slice_axis=axis)
    prompts = scribble_points(
        labels,
        grid,
        value=value,
        per_slice=per_slice,
        generator=generator_for(seed, "scribbles", case_name(path)),
        image_grid=image_grid,
        ignore=ignore,
        negatives=negatives,
    )
    return stamped(prompts, seed=seed)


def labelled_cases(
    folder: Path, label: str | None, part: str
) -> tuple[list[tuple[str, Path, tuple[int, ...], Path]], int | None]:
    """(name, label file, label values, image) of the labelled cases, and the data set's slice axis."""
    from steadysam.data.cases import read_dataset, resolve_label

    if label is None:
        raise UsageError("USAGE", "a data set needs --label", fix="name a structure, a value or a union such as LV+MYO")
    dataset = read_dataset(folder)
    values = tuple(resolve_label(dataset, label))
    chosen = [case for case in dataset.cases if case.label is not None and part in ("all", case.part)]
    if not chosen:
        raise InputError("DATA_EMPTY", f"no labelled case in part {part}", file=folder)
    return [(case.name, Path(str(case.label)), values, case.image) for case in chosen], dataset.slice_axis


def prompt_image_pairs(prompts: Path, image: Path) -> list[tuple[str, Path, Path]]:
    """(case, prompt file, image) for a file and an image, or for a folder and a folder."""
    if not prompts.is_dir():
        return [(prompts.name, prompts, image)]
    from steadysam.prompts.sets import find_prompt_file

    if not image.is_dir():
        raise UsageError("USAGE", "a folder of prompts needs a folder of images or a data set", seen=str(image))
    images = _images(image)
    rows = [(name, find_prompt_file(prompts, name), picture) for name, picture in images.items()]
    found = [(name, path, picture) for name, path, picture in rows if path is not None]
    if not found:
        raise InputError(
            "PROMPT_CASE_MISSING",
            "no image has a prompt file of its name",
            file=prompts,
            expected=sorted(images)[:5],
        )
    return found


def _images(folder: Path) -> dict[str, Path]:
    from steadysam.data.cases import read_dataset
    from steadysam.data.volumes import case_name

    if (folder / "dataset.json").is_file():
        return {case.name: case.image for case in read_dataset(folder).cases}
    endings = (".nii", ".nii.gz", ".nrrd", ".mha", ".mhd", ".png", ".jpg", ".jpeg")
    return {case_name(p): p for p in sorted(folder.iterdir()) if p.name.lower().endswith(endings)}


def read_image(path: Path, axis: int | None, header_only: bool) -> tuple[Grid, Any]:
    """Grid and voxels of an image; no voxels if only the header is read."""
    from steadysam.data.volumes import read_grid, read_volume

    if header_only:
        return read_grid(path, axis), None
    volume = read_volume(path, slice_axis=axis)
    return volume.grid, volume.array


def tied_to(prompts: Prompts, image: Path | None, grid: Grid | None) -> Prompts:
    """The same prompts with a reference to the image they were made for."""
    if grid is None:
        return prompts
    name = image.name if image is not None else prompts.image.name
    return replace(prompts, image=ImageRef(name, grid.shape, grid.key()))


def write_any(output: Path, prompts: Prompts, source: Path, frame: PromptFrame | None, grid: Grid | None) -> None:
    """Write our JSON or Slicer markups, as the suffix says; never over the input."""
    from steadysam.prompts.files import write_prompts
    from steadysam.prompts.markups import prompts_to_markups

    if output.resolve() == source.resolve():
        raise UsageError("USAGE", "the output would replace the input", seen=str(output), fix="choose another name")
    if output.name.lower().endswith(".mrk.json"):
        if frame not in (None, "LPS"):
            raise UsageError("USAGE", "Slicer markups are always written in LPS", seen=f"--frame {frame}")
        prompts_to_markups(output, prompts)
    elif output.suffix.lower() == ".json":
        write_prompts(output, prompts, frame=frame or "RAS", grid=grid)
    else:
        raise UsageError("USAGE", "unknown kind of output", seen=str(output), expected=".json or .mrk.json")
    say(f"{output}: {len(prompts.points)} points, {len(prompts.boxes)} boxes")


def label_values(label: str | None) -> tuple[int, ...] | None:
    """The values named by `--label` for a label file; None stands for all above 0."""
    if label is None:
        return None
    try:
        return tuple(int(word) for word in label.replace(",", "+").split("+"))
    except ValueError as error:
        raise UsageError(
            "USAGE",
            "a label file has values, no names",
            seen=label,
            expected="a number, or a union such as 1+3",
        ) from error


def parse_options(settings: Iterable[str]) -> dict[str, Any]:
    """`NAME=VALUE` pairs; values are JSON where they can be, else text."""
    options = {}
    for setting in settings:
        name, sign, text = setting.partition("=")
        if not sign or not name:
            raise UsageError("USAGE", "--set takes NAME=VALUE", seen=setting)
        try:
            options[name] = json.loads(text)
        except ValueError:
            options[name] = text
    return options


def progress(rows: list[Any], title: str) -> Iterator[Any]:
    """A progress bar with an estimate of the end, on stderr, and only where a person watches."""
    from rich.progress import track

    console = Console(stderr=True)
    yield from track(rows, title, console=console, disable=not console.is_terminal, transient=True)

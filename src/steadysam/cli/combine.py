"""`steadysam combine`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter
from rich.console import Console

from steadysam.cli.tables import progress
from steadysam.errors import UsageError

if TYPE_CHECKING:
    from steadysam.combining import Structure


def combine(
    masks: tuple[str, ...],
    /,
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    dataset: Path | None = None,
    disputed: Literal["order", "probability"] = "order",
) -> None:
    """Put masks of several structures together into label maps.

    A run segments one structure. Train one per label, predict with each, and combine what they say; where two claim a
    voxel, the structure that is named first keeps it, and combined.json says how many there were. `train --label each`
    and `predict` on its folder do all this by themselves, by probability.

    For example:

        steadysam combine LV=out/lv RV=out/rv --dataset DATASET -o out/all
        steadysam combine 1=out/rv 3=out/lv -o out/all

    Parameters
    ----------
    masks
        NAME=FOLDER for every structure, in order of precedence: a label's name or number, and the folder that predict
        wrote.
    output
        Folder to write: CASE.nii.gz (CASE.png of pictures) and combined.json.
    dataset
        Data set folder, for the numbers of label names.
    disputed
        Who keeps a voxel that several structures claim: order, the one that is named first; probability, the most
        probable one, if all were predicted with --probabilities.
    """
    from steadysam.combining import combine_folders

    structures = [_structure(text, dataset) for text in masks]
    record = combine_folders(structures, output, progress("combining"), disputed=disputed)
    claimed = sum(case["disputed_voxels"] for case in record["cases"].values())
    Console(highlight=False, markup=False).print(
        f"{len(record['cases'])} label maps in {output}; {claimed} voxels were claimed by more than one structure"
    )


def _structure(text: str, dataset: Path | None) -> Structure:
    from steadysam.combining import Structure
    from steadysam.data.cases import read_dataset, resolve_label

    name, equals, folder = text.partition("=")
    if not equals or not name or not folder:
        raise UsageError("COMBINE_SYNTAX", "a structure is NAME=FOLDER", seen=text, expected="for example LV=out/lv")
    if name.isdigit():
        return Structure(name, int(name), Path(folder))
    if dataset is None:
        raise UsageError(
            "COMBINE_LABEL", "a label name needs a data set that explains it", seen=name, fix="pass --dataset FOLDER"
        )
    values = resolve_label(read_dataset(dataset), name)
    if len(values) != 1:
        raise UsageError("COMBINE_LABEL", "one structure has one number", seen=f"{name}: {values}")
    return Structure(name, values[0], Path(folder))

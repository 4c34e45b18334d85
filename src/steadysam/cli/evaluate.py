"""`steadysam evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from steadysam.errors import InputError, UsageError


def evaluate(
    predictions: Path,
    labels: Path,
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    label: str | None = None,
    dataset: Path | None = None,
    images: Path | None = None,
    patients: Path | None = None,
    size: int = 512,
    compare: Annotated[tuple[Path, ...], Parameter(name="--compare", negative="")] = (),
    seed: int = 0,
    slice_axis: Literal[0, 1, 2] | None = None,
    pictures: int = 12,
    allow_missing: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Score the masks of a folder against the labels of another.

    Writes metrics.json (everything), slices.csv, cases.csv and report.html (one file, worst cases first). If
    cases are missing on one side or cannot be scored, the others are, and the exit code is 6.

    For example:

        steadysam evaluate out DATASET/labelsTs --label LV --images DATASET/imagesTs -o out/report
        steadysam evaluate combined DATASET/labelsTs --label each -o combined/report
        steadysam evaluate spd labelsTs --label LV --compare raw --compare unet -o spd/report

    Parameters
    ----------
    predictions
        Folder of masks named CASE.nii.gz (CASE.png of pictures); what is not 0 is foreground; run.json tells where they
        are from. Label maps, such as those of steadysam combine, are scored by the numbers of --label.
    labels
        Folder of label maps named like the cases.
    output
        Folder to write.
    label
        Target: a name or number, several joined by + (union), or all. Default: what was trained for. Of label maps,
        such as those of steadysam combine, each scores one label after the other: OUTPUT/LABEL, labels.csv with all.
    dataset
        Data set folder, for label names and patients; default: the folder around LABELS.
    images
        Folder of images, for pictures of the worst cases.
    patients
        patients.csv or cases.csv with columns case and patient; default: that of the data set.
    size
        Slices are scored stretched to SIZE x SIZE pixels, as in the paper; 0 scores native pixels.
    compare
        Another folder of predictions for paired tests, any number of times.
    seed
        Seed of the bootstrap intervals.
    slice_axis
        Axis across which slices are cut (0, 1, 2); default: as recorded by predict, else as in training.
    pictures
        How many of the worst cases to draw.
    allow_missing
        Score the common cases and end with exit code 0.
    """
    from steadysam.cli.scoring import Given, data_set_of, evaluate_each, evaluate_target, target_of
    from steadysam.data.cases import EACH
    from steadysam.evaluate import read_record

    if size < 0:
        raise UsageError(
            "EVAL_SIZE", "a size below 0", seen=size, expected="0 for native pixels, or a number of pixels"
        )
    if not predictions.is_dir():
        raise InputError("FILE_MISSING", "no such folder of predictions", file=predictions, fix="check the path")
    given = Given(predictions, labels, images, patients, size, compare, seed, pictures)
    record, data = read_record(predictions), data_set_of(labels, dataset)
    if "detector" in record:
        raise InputError(
            "EVAL_BOXES",
            "this folder holds boxes, not masks",
            file=predictions,
            fix="score boxes by `steadysam detect … --labels`, or masks made from them by `steadysam predict`",
        )
    if label != EACH:
        problems = [evaluate_target(given, target_of(record, data, label, slice_axis), output)[1]]
    else:
        problems = evaluate_each(given, record, data, slice_axis, output)
    for problem in problems:
        if problem is not None and not (allow_missing and problem.code == "EVAL_MISSING"):
            raise problem

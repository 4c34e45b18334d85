"""`steadysam prompts`: check, convert, simulate and corrupt prompt files. Starts without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from steadysam.cli.prompts_io import (
    corrupt_case,
    label_values,
    labelled_cases,
    parse_options,
    progress,
    prompt_image_pairs,
    read_image,
    say,
    scribble_prompts,
    simulate_case,
    tied_to,
    write_any,
)
from steadysam.errors import UsageError
from steadysam.geometry import PromptFrame
from steadysam.types import PromptSource

app = App(name="prompts", help="Check, convert, simulate and corrupt prompt files.")

Output = Annotated[Path, Parameter(name=["--output", "-o"])]
Settings = Annotated[tuple[str, ...], Parameter(name="--set", negative="")]
Values = Annotated[str, Parameter(name="--label")]


@app.command
def check(
    prompts: Path,
    *,
    image: Annotated[Path, Parameter(name=["--image", "-i"])],
    slice_axis: Literal[0, 1, 2] | None = None,
    header_only: Annotated[bool, Parameter(negative="")] = False,
    json_: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> int:
    """Say what is wrong, or odd, about prompts on their image; needs no model.

    Finds points outside the volume (with the distance, and whether an LPS/RAS swap, another order of the
    axes or array indices taken for millimetres would bring them in), duplicates, sign conflicts, points on
    padding, lonely slices and prompts of another image. Exit code 4 if the prompts cannot be used as they
    are.

    For example:

    One file:

        steadysam prompts check clicks.mrk.json --image case_0000.nii.gz

    A folder, with an image folder or a data set; for a script:

        steadysam prompts check promptsTr --image Dataset901_ACDC --json

    Parameters
    ----------
    prompts
        A prompt file (.json, .mrk.json, .fcsv, .csv, .tsv), or a folder of them, named like their cases.
    image
        The image; for a folder of prompts a folder of images or a data set.
    slice_axis
        Axis across which slices are cut; default: the largest spacing, else the last.
    header_only
        Read the image's header only: faster, but points on padding are not looked for.
    json_
        Print JSON for machines.
    """
    from steadysam.prompts.check import check as check_prompts
    from steadysam.prompts.files import read_prompts

    reports = {}
    for name, path, picture in prompt_image_pairs(prompts, image):
        grid, array = read_image(picture, slice_axis, header_only)
        reports[name] = check_prompts(read_prompts(path, grid, verify_image=False), grid, array, picture.name)
    if json_:
        rows = {name: report.to_dict() for name, report in reports.items()}
        say(json.dumps(rows if prompts.is_dir() else next(iter(rows.values())), indent=2))
    else:
        for name, report in reports.items():
            say(f"{name}: {report.text()}")
    return 4 if any(report.has_errors for report in reports.values()) else 0


@app.command
def convert(
    source: Path,
    *,
    output: Output,
    image: Annotated[Path | None, Parameter(name=["--image", "-i"])] = None,
    frame: PromptFrame | None = None,
    made_by: Annotated[PromptSource | None, Parameter(name="--source")] = None,
    value: int | None = None,
    per_slice: int = 3,
    negatives: int = 0,
    ignore: tuple[int, ...] = (0,),
    seed: int = 0,
    slice_axis: Literal[0, 1, 2] | None = None,
) -> None:
    """Turn a prompt file, or a scribble volume, into our JSON or Slicer markups (told by the output's
    suffix).

    Curves become one point per slice crossing. Everything is kept; what Slicer has no field for (sign,
    source, label) stands in the description, from where it is read again.

    For example:

    Slicer points to our JSON, tied to the image:

        steadysam prompts convert F.mrk.json -o case.json --image case_0000.nii.gz

    Annotators' scribbles of structure 3 (4 means: not annotated) to three points per slice, to look at in
    Slicer:

        steadysam prompts convert scribbles.nii.gz -o case.mrk.json --value 3 --ignore 0 --ignore 4

    Parameters
    ----------
    source
        A prompt file of any kind, or a label volume of scribbles.
    output
        .json or .mrk.json.
    image
        The image. Needed for napari points, curves and `--frame ijk`; written into our JSON as a reference.
    frame
        Frame of the coordinates in our JSON: RAS (default), LPS, ijk (array indices).
    made_by
        Who made the prompts, where the file does not say: human (default), centerline, detector …
    value
        Scribbles: the structure wanted.
    per_slice
        Scribbles: positive points per slice.
    negatives
        Scribbles: negative points per slice, from the strokes of other structures.
    ignore
        Scribbles: values that are no strokes.
    seed
        Scribbles: which pixels of the strokes are drawn.
    slice_axis
        As for `check`.
    """
    from steadysam.data.volumes import read_grid
    from steadysam.prompts.files import read_prompts

    grid = read_grid(image, slice_axis) if image else None
    if source.name.lower().endswith((".nii", ".nii.gz", ".nrrd", ".mha")):
        prompts = scribble_prompts(source, grid, slice_axis, (value, per_slice, negatives, ignore, seed))
    else:
        prompts = read_prompts(source, grid, source=made_by)
    write_any(output, tied_to(prompts, image, grid), source, frame, grid)


@app.command
def simulate(
    source: Path,
    *,
    output: Output,
    label: Values | None = None,
    simulator: str = "paper",
    seed: int = 0,
    settings: Settings = (),
    part: Literal["Tr", "Ts", "all"] = "all",
    image: Annotated[Path | None, Parameter(name=["--image", "-i"])] = None,
    slice_axis: Literal[0, 1, 2] | None = None,
) -> None:
    """Draw prompts from ground-truth labels: paper, centerline, clicks or boxes.

    A data set gives a frozen prompt set: a folder with one file per case and a hash that results name. The
        same
    seed and settings give the same files on every machine. `steadysam info` lists the simulators.

    For example:

    The paper's noisy points for every labelled case:

        steadysam prompts simulate Dataset901_ACDC -o promptsLV --label LV --seed 0

    More noise: eight uniform points per slice, the true one missing half of the time:

        steadysam prompts simulate Dataset901_ACDC -o noisy --label LV --set k=8 --set drop=0.5

    A tracing that overshoots by the structure's whole length, for one label file:

        steadysam prompts simulate case.nii.gz -o case.json --simulator centerline --set overshoot=1

    Parameters
    ----------
    source
        A data set folder (nnU-Net v2 raw, MSD), or one label file.
    output
        Data set: a new folder. Label file: a .json or .mrk.json.
    label
        Structure: a name, a value, or a union such as LV+MYO; for a label file values, default all above 0.
    simulator
        paper, centerline, clicks or boxes.
    seed
        Decides every draw, together with simulator and case name.
    settings
        NAME=VALUE, may be given several times: options of the simulator.
    part
        Data set: training cases, test cases or both.
    image
        Label file: its image, which the prompts are tied to.
    slice_axis
        As for `check`.
    """
    from steadysam.prompts.sets import write_set

    options = parse_options(settings)
    if source.is_dir():
        jobs, axis = labelled_cases(source, label, part)
        axis = slice_axis if slice_axis is not None else axis
        found = {
            name: simulate_case(name, labels, values, picture, (simulator, seed, options, axis))
            for name, labels, values, picture in progress(jobs, "simulating")
        }
        meta = {
            "origin": "simulator",
            "simulator": simulator,
            "seed": seed,
            "options": options,
            "label": label,
            "dataset": source.resolve().name,
        }
        written = write_set(output, found, meta)
        say(f"{output}: {len(found)} cases, set {written.hash[:16]}")
        return
    if part != "all":
        raise UsageError("USAGE", "--part is for data sets", seen=str(source))
    from steadysam.data.volumes import case_name

    values = label_values(label)
    prompts = simulate_case(case_name(source), source, values, image, (simulator, seed, options, slice_axis))
    write_any(output, prompts, source, None, None)


@app.command
def corrupt(
    source: Path,
    *,
    output: Output,
    corruption: str,
    severity: float,
    image: Annotated[Path, Parameter(name=["--image", "-i"])],
    seed: int = 0,
    slice_axis: Literal[0, 1, 2] | None = None,
) -> None:
    """Make prompts worse by a known amount; severity 0 changes nothing, 1 is the worst.

    `steadysam info` lists the corruptions: jitter, drop, distractors, shift, wrong_slice, overshoot,
    sign_swap, loose_box, lookalike.

    For example:

    One file:

        steadysam prompts corrupt case.json -o worse.json --image case_0000.nii.gz --corruption jitter
        --severity 0.5

    A frozen set; the result is a frozen set again:

        steadysam prompts corrupt promptsLV -o shifted --image Dataset901_ACDC --corruption shift --severity
        0.3

    Parameters
    ----------
    source
        A prompt file or a frozen prompt set.
    output
        A .json or .mrk.json, or a new folder.
    corruption
        Which one.
    severity
        From 0 to 1.
    image
        The image; for a set a folder of images or a data set.
    seed
        Decides every draw, together with corruption and case name.
    slice_axis
        As for `check`.
    """
    from steadysam.prompts.files import read_prompts
    from steadysam.prompts.sets import SET_FILE, read_set, write_set

    frozen = read_set(source) if source.is_dir() and (source / SET_FILE).is_file() else None
    pairs = prompt_image_pairs(source, image)
    found = {}
    for name, path, picture in progress(pairs, "corrupting") if source.is_dir() else pairs:
        grid, array = read_image(picture, slice_axis, header_only=corruption != "lookalike")
        found[name] = corrupt_case(name, read_prompts(path, grid), grid, array, (corruption, severity, seed))
    if not source.is_dir():
        write_any(output, next(iter(found.values())), source, None, None)
        return
    step = {"corruption": corruption, "severity": severity, "seed": seed}
    before = dict(frozen.meta) if frozen else {"origin": "files", "folder": source.resolve().name}
    meta = {
        **before,
        "corruptions": [*before.get("corruptions", []), step],
        "from": frozen.hash if frozen else None,
    }
    written = write_set(output, found, meta)
    say(f"{output}: {len(found)} cases, set {written.hash[:16]}")

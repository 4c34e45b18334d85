"""`steadysam detect`."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from steadysam.errors import UsageError

if TYPE_CHECKING:
    from steadysam.box_prompts import CaseBoxes
    from steadysam.jobs import Job
    from steadysam.report.figures import Panel

log = logging.getLogger(__name__)


def detect(
    *,
    input_: Annotated[Path, Parameter(name=["--input", "-i"])],
    model: Annotated[Path, Parameter(name=["--model", "-m"])],
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    labels: Path | None = None,
    label: str | None = None,
    confidence: float | None = None,
    overlap: float | None = None,
    per_slice: int = 0,
    device: Annotated[str, Parameter(name=["--device", "-d"])] = "auto",
    slice_axis: Literal[0, 1, 2] | None = None,
    channel: int = 0,
    part: Literal["train", "val", "test"] | None = None,
    threads: int = 0,
    seed: int = 0,
) -> None:
    """Find boxes with a trained detector and write them as prompts.

    For every case: CASE.json, a prompt file whose boxes have the source `detector` and their score as description.
    boxes.png shows some of them; run.json names inputs, weights and settings by hash. With --labels a table of average
    precision is printed and written (detection.json, detection.csv). One bad case does not stop the others; the exit
    code is then 6 and failures.jsonl says why.

    For example:

        steadysam detect -i DATASET/imagesTs -m runs/boxes --labels DATASET/labelsTs -o found

    Where a data set has no imagesTs, training held a part of imagesTr back:

        steadysam detect -i DATASET/imagesTr --part test -m runs/boxes --labels DATASET/labelsTr -o found

    Boxes as prompts, one per slice, for a model that was not trained here:

        steadysam detect -i DATASET/imagesTs -m runs/boxes --per-slice 1 -o found
        steadysam predict -i DATASET/imagesTs --prompts found -m steadysam-tiny -o out

    Parameters
    ----------
    input_
        Image file (NIfTI, NRRD, MHA, PNG, JPEG) or folder of them.
    model
        Run folder of the method detector or ldfsam, or of spd with feature prompts.
    output
        Folder to write.
    labels
        Folder of label maps named like the cases, to score the boxes.
    label
        Values of the target in these labels, such as 1 or 1+3, or the run's own label by name; default: what the run
        was trained for.
    confidence
        Least score of a box; default: as in the run (0.25).
    overlap
        Of two boxes with a larger IoU the better one is kept; default: as in the run (0.7).
    per_slice
        Keep the best so many boxes of a slice; 0: all. Methods that take boxes take one per slice.
    device
        auto, cpu, cuda, cuda:N or mps.
    slice_axis
        Axis across which slices are cut (0, 1, 2); default: what training was told, else the largest spacing.
    channel
        Channel number in the names of a folder's files.
    part
        Only cases of this part of the split that the run was trained with: test is what it has never seen.
    threads
        CPU threads; 0 as torch chooses. The same number gives the same bytes.
    seed
        Seed of the interval of average precision, which draws the patients of patients.csv or cases.csv beside LABELS.
    """
    from steadysam.box_files import Truth, detect_files
    from steadysam.box_prompts import DetectOptions
    from steadysam.cli.prompts_io import label_values
    from steadysam.cli.tables import print_rows
    from steadysam.files import write_bytes
    from steadysam.jobs import find_jobs, jobs_of_part
    from steadysam.logs import progress_bar
    from steadysam.report.sheets import box_panel, sheet, some_of
    from steadysam.runs import load_run
    from steadysam.training import computing

    if per_slice < 0:
        raise UsageError("DETECT_PER_SLICE", "boxes of a slice to keep", seen=per_slice, expected="0 (all) or more")
    trained = load_run(model, device)
    axis = slice_axis if slice_axis is not None else trained.record["data"].get("slice_axis")
    options = DetectOptions(axis, confidence, overlap, per_slice)
    own = label == trained.record["data"].get("label")
    truth = None if labels is None else Truth(labels, label_values(None if own else label), seed)
    jobs = find_jobs(input_, None, channel)
    jobs = jobs_of_part(trained, jobs, part) if part else jobs
    pictured = {job.name for job in some_of(jobs)}
    panels: list[Panel] = []
    given = {"device": str(trained.device), "threads": threads, "precision": "no"}
    with computing(trained.config.compute.model_copy(update=given)), progress_bar() as bar:
        task = bar.add_task("cases", total=len(jobs), note="")

        def track(jobs: Iterable[Job]) -> Iterator[Job]:
            for job in jobs:
                bar.update(task, note=job.name)
                yield job
                bar.advance(task)

        def show(case: CaseBoxes) -> None:
            if case.name in pictured:
                panels.append(box_panel(case))

        try:
            rows = detect_files(trained, jobs, output, options, truth=truth, track=track, show=show)
        finally:
            if panels:
                write_bytes(output / "boxes.png", sheet(panels))
    print_rows(rows)
    log.info("%d case(s) written to %s", len(jobs), output)

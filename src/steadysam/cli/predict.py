"""`steadysam predict`."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from steadysam.errors import BatchError, UsageError

if TYPE_CHECKING:
    from steadysam.jobs import Job
    from steadysam.labelwise import LabelRun
    from steadysam.runs import Run

log = logging.getLogger(__name__)


def predict(
    *,
    input_: Annotated[Path, Parameter(name=["--input", "-i"])],
    prompts: Path | None = None,
    coarse: Path | None = None,
    model: Annotated[str, Parameter(name=["--model", "-m"])],
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    method: str = "zero_shot",
    device: Annotated[str, Parameter(name=["--device", "-d"])] = "auto",
    outside: Literal["error", "drop", "clip"] = "error",
    slice_axis: Literal[0, 1, 2] | None = None,
    channel: int = 0,
    part: Literal["train", "val", "test"] | None = None,
    threshold: float = 0.5,
    probabilities: Annotated[bool, Parameter(negative="")] = False,
    pictures: int = 12,
    threads: int = 0,
    cache: str = "auto",
    settings: Annotated[tuple[str, ...], Parameter(name="--set", negative="")] = (),
) -> None:
    """Segment an image, or a folder of images, from noisy prompts.

    For every case: CASE.nii.gz (the mask on the image's own grid; of a PNG or JPEG CASE.png, black and white),
    CASE.audit.json (what became of every prompt and why) and CASE.audit.mrk.json (the same for 3D Slicer: rejected
    points unselected, consensus points as a second list). run.json names all inputs, weights and settings by hash, and
    pictures/masks.png shows some cases. One bad case does not stop the others; the exit code is then 6 and
    failures.jsonl says why.

    For example:

        steadysam predict -i case.nii.gz --prompts clicks.mrk.json -m runs/lv -o out
        steadysam predict -i imagesTs --prompts promptsTs -m runs/lv -o out --set tau=0.4 --set empty=empty_mask

    Without training, with the model in the package; points and boxes are obeyed as they are:

        steadysam predict -i case.nii.gz --prompts clicks.mrk.json -m steadysam-tiny -o out

    Where a data set has no imagesTs, training held a part of imagesTr back:

        steadysam predict -i imagesTr --part test -m runs/polyp -o out

    A run of a method without prompts, such as unet, needs none; sam_refiner wants masks to refine instead:

        steadysam predict -i imagesTs -m runs/unet -o coarse
        steadysam predict -i imagesTs --coarse coarse -m steadysam-tiny --method sam_refiner -o refined

    SAM 2 and MedSAM2 follow the object from slice to slice:

        steadysam predict -i case.nii.gz --prompts clicks.mrk.json -m sam2.1-hiera-tiny --method sam2 -o out

    Parameters
    ----------
    input_
        Image file (NIfTI, NRRD, MHA, PNG, JPEG) or folder of them.
    prompts
        Prompt file, or folder of prompt files named like the cases; needed by all methods that take prompts. With a
        run per label: a folder with a subfolder of prompt files for each, named like the subfolders of the runs.
    coarse
        Mask file, or folder of masks named like the cases, for methods that refine masks; likewise.
    model
        Run folder written by train, or the folder of `train --label each`: masks are then in OUTPUT/LABEL, label maps
        in OUTPUT; or a row of `steadysam models list` with weights, such as steadysam-tiny, or a
        weights file or folder, to segment without any training.
    output
        Folder to write.
    method
        With a model that was not trained here: how it is used, a row of `steadysam info` (zero_shot, sam_refiner, ...).
    device
        auto, cpu, cuda, cuda:N or mps.
    outside
        What to do with prompts outside the volume.
    slice_axis
        Axis across which slices are cut (0, 1, 2); default: what training was told, else the largest spacing.
    channel
        Channel number in the names of a folder's files.
    part
        Only cases of this part of the split that the run was trained with: test is what it has never seen.
    threshold
        The mask is where the probability is larger.
    probabilities
        Write them, too: OUTPUT/probabilities/CASE.nii.gz, 0 to 1 (of pictures a PNG, 0 to 65535). They are what
        the method thresholds, and not calibrated. With a run per label they are always written.
    pictures
        Cases to show in pictures/masks.png, evenly chosen: the slice with the largest mask, its outline and the prompts
        there; 0 draws nothing.
    threads
        CPU threads; 0 as torch chooses. The same number gives the same bytes.
    cache
        Folder of the embedding cache; auto is in STEADYSAM_HOME, off keeps nothing.
    settings
        key=value of the method, acting at inference, such as tau=0.4.
    """
    from steadysam.config import apply_settings
    from steadysam.labelwise import label_runs

    if not 0 <= threshold < 1:
        raise UsageError("PREDICT_THRESHOLD", "a probability", seen=threshold, expected="from 0 to less than 1")
    call = _Call(
        input_=input_,
        prompts=prompts,
        coarse=coarse,
        device=device,
        method=method,
        outside=outside,
        slice_axis=slice_axis,
        channel=channel,
        part=part,
        threshold=threshold,
        probabilities=probabilities,
        pictures=pictures,
        threads=threads,
        cache=cache,
        overrides=apply_settings({}, settings),
    )
    runs = label_runs(model)
    if runs:
        _segment_each(runs, call, output)
    else:
        _segment(model, call, output)


@dataclass(frozen=True, kw_only=True)
class _Call:
    """What a call of the command is given, but for the model and the output."""

    input_: Path
    prompts: Path | None
    coarse: Path | None
    device: str
    method: str
    outside: Literal["error", "drop", "clip"]
    slice_axis: int | None
    channel: int
    part: Literal["train", "val", "test"] | None
    threshold: float
    probabilities: bool
    pictures: int
    threads: int
    cache: str
    overrides: Mapping[str, Any]


def _segment(model: str, call: _Call, output: Path) -> None:
    """All cases of a call by one model, with pictures."""
    from steadysam.cachefolder import cache_folder
    from steadysam.embeddings import EmbeddingCache
    from steadysam.jobs import find_jobs, jobs_of_part
    from steadysam.logs import progress_bar
    from steadysam.prediction import PredictOptions
    from steadysam.prediction import predict as run_prediction
    from steadysam.training import computing

    run = _run_of(model, call.device, call.method, call.overrides)
    axis = call.slice_axis if call.slice_axis is not None else run.record["data"].get("slice_axis")
    settings = dict(call.overrides)
    options = PredictOptions(axis, call.outside, call.channel, settings, call.threshold, call.probabilities, call.part)
    given = {"device": str(run.device), "threads": call.threads, "precision": "no"}
    with computing(run.config.compute.model_copy(update=given)), progress_bar() as bar:
        task = bar.add_task("cases", total=None, note="")

        def track(jobs: Iterable[Job]) -> Iterator[Job]:
            jobs = list(jobs)
            bar.update(task, total=len(jobs))
            for job in jobs:
                bar.update(task, note=job.name)
                yield job
                bar.advance(task)

        jobs = find_jobs(call.input_, call.prompts, call.channel, call.coarse)
        jobs = jobs if call.part is None else jobs_of_part(run, jobs, call.part)
        cache = EmbeddingCache(cache_folder(call.cache))
        try:
            record = run_prediction(run, jobs, output, options, cache=cache, track=track)
        except BatchError:  # the other cases are written
            _draw(jobs, output, call.pictures)
            raise
        _draw(jobs, output, call.pictures)
    log.info("%d case(s) written; record: %s", len(jobs), record)


def _segment_each(runs: Sequence[LabelRun], call: _Call, output: Path) -> None:
    """All cases by the run of every label, put together; prompts and coarse masks are in a subfolder for each label."""
    from steadysam.labelwise import given_to, predict_each
    from steadysam.outputs import refuse_output

    refuse_output(output, (call.input_, call.prompts, call.coarse))
    given = {run: [given_to(run, getattr(call, what), what) for what in ("prompts", "coarse")] for run in runs}
    for number, what in enumerate(("prompts", "coarse")):
        if (folder := getattr(call, what)) is not None and not any(found[number] for found in given.values()):
            log.warning("none of these runs looks at --%s: %s is not used", what, folder)

    def predict_label(run: LabelRun) -> None:
        prompts, coarse = given[run]
        own = replace(call, prompts=prompts, coarse=coarse, probabilities=True)
        _segment(str(run.folder), own, output / run.folder.name)

    try:
        record = predict_each(runs, output, predict_label)
    except BatchError:  # the other cases are written
        _draw_labels(call, output)
        raise
    _draw_labels(call, output)
    disputed = sum(case["disputed_voxels"] for case in record["cases"].values())
    log.info("%d label map(s) in %s; %d voxels were claimed more than once", len(record["cases"]), output, disputed)


def _run_of(model: str, device: str, method: str, overrides: Mapping[str, Any]) -> Run:
    from steadysam.backbones import BACKBONES
    from steadysam.backbones.video.table import VIDEO_MODELS
    from steadysam.runs import load_run, zero_shot_run

    named = model in BACKBONES or model in VIDEO_MODELS
    if named or Path(model).is_file() or (Path(model) / "config.json").is_file():
        return zero_shot_run(model, device, method=method, **overrides)
    return load_run(model, device, **overrides)


def _draw(jobs: Sequence[Job], output: Path, pictures: int) -> None:
    from steadysam.evaluate import read_record
    from steadysam.files import write_bytes
    from steadysam.report.sheets import mask_panel, sheet, some_of

    images = {job.name: job.image for job in jobs}
    written = [case for case in read_record(output).get("cases", ()) if case["case"] in images]
    if pictures > 0 and written:
        panels = [mask_panel(case, images[case["case"]], output) for case in some_of(written, pictures)]
        write_bytes(output / "pictures" / "masks.png", sheet(panels))


def _draw_labels(call: _Call, output: Path) -> None:
    from steadysam.data.cases import image_cases
    from steadysam.evaluate import COMBINED_FILE
    from steadysam.files import read_json, write_bytes
    from steadysam.report.sheets import label_panel, sheet, some_of

    images, combined = dict(image_cases(call.input_, call.channel)), read_json(output / COMBINED_FILE)
    written = [name for name in combined["cases"] if name in images]
    if call.pictures > 0 and written:
        panels = [label_panel(name, combined, images[name], output) for name in some_of(written, call.pictures)]
        write_bytes(output / "pictures" / "masks.png", sheet(panels))

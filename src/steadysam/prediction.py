"""Segment files or folders of files with a trained run, with audit and provenance; one bad case stops no other."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from steadysam.audit import write_audit
from steadysam.data.slices import channels_of, unfit_values
from steadysam.data.volumes import mask_ending, read_label_map, read_volume, write_mask, write_probability
from steadysam.embeddings import EmbeddingCache
from steadysam.errors import BatchError, InputError, SteadyError
from steadysam.evaluate import COMBINED_FILE, PROBABILITIES, listed, masks_lying_in
from steadysam.files import files_together, sha256_file, sweep_temporaries, write_json, write_text
from steadysam.geometry import Outside, describe_grid
from steadysam.jobs import Job
from steadysam.locks import alone_in
from steadysam.methods.contract import traits_of
from steadysam.outputs import refuse_output
from steadysam.prompts.files import read_prompts
from steadysam.prompts.sets import SET_FILE, read_set, set_hash
from steadysam.runs import Run, versions
from steadysam.segmenting import segment
from steadysam.types import Mask, Prompts, Volume

logger = logging.getLogger(__name__)

_CLEARLY = 1.5  # times the next spacing: then slices are thick, and lie across this axis


@dataclass(frozen=True)
class PredictOptions:
    """How to predict.

    Args:
        slice_axis: as in `read_volume`; None lets the spacing decide.
        outside: what to do with prompts outside the volume.
        channel: channel number in nnU-Net file names of a folder.
        settings: settings of the method that differ from the run's, for the record.
        threshold: the mask is where the probability is larger.
        probabilities: write these, too, into a folder of this name.
        part: of the run's split, to which the jobs were cut down, for the record: `evaluate` misses no other case then.
    """

    slice_axis: int | None = None
    outside: Outside = "error"
    channel: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    threshold: float = 0.5
    probabilities: bool = False
    part: str | None = None


def predict(
    run: Run,
    jobs: list[Job],
    output: str | Path,
    options: PredictOptions = PredictOptions(),
    *,
    cache: EmbeddingCache | None = None,
    track: Callable[[Iterable[Job]], Iterable[Job]] = iter,
) -> Path:
    """Write `CASE.nii.gz` (of a picture `CASE.png`) and the two audit files of every job, and `run.json`.

    With `options.probabilities` also `probabilities/CASE.nii.gz` (of a picture a PNG of 16 bits).

    Returns:
        The path of `run.json`.

    Raises:
        FileSystemError: those of `refuse_output`.
        InputError: `PROMPT_SET_CHANGED`.
        LockedError: `FS_LOCKED`, another process predicts into the same folder.
        BatchError: `BATCH_FAILED` after the last case if some failed; `failures.jsonl` says which and why. A single
            job raises its own error.
    """
    output = Path(output)
    refuse_output(output, {path for job in jobs for path in (job.image, job.prompts, job.coarse)})
    with alone_in(output):
        return _predict(run, jobs, output, options, cache, track)


def _predict(
    run: Run,
    jobs: list[Job],
    output: Path,
    options: PredictOptions,
    cache: EmbeddingCache | None,
    track: Callable[[Iterable[Job]], Iterable[Job]],
) -> Path:
    sweep_temporaries(output)
    sweep_temporaries(output / PROBABILITIES)
    before = masks_lying_in(output)
    if not traits_of(run.method, run.settings).prompted and any(job.prompts is not None for job in jobs):
        logger.warning("%s looks at no prompts: those given are not used", run.config.method_name)
    prompt_set = _prompt_set(jobs)
    started = time.monotonic()
    cases, failures = [], []
    for job in track(jobs):
        try:
            cases.append(_predict_case(run, job, output, options, cache))
        except SteadyError as error:
            if len(jobs) == 1:
                raise
            failures.append({"case": job.name, **error.to_dict()})
            logger.error("%s: %s", job.name, error)
    record = {
        "steadysam": versions(),
        "method": run.config.method_name,
        "run": {"name": run.folder.name, "weights_sha256": run.record["weights_sha256"]},
        "config": run.config.model_dump(mode="json"),
        "overrides": options.settings,
        "threshold": options.threshold,
        "part": options.part,
        "prompted": traits_of(run.method, run.settings).prompted,
        "prompt_sources": sorted({source for case in cases for source in case["prompts"]["sources"]}),
        "prompt_set_hash": set_hash({case["case"]: case["prompts"]["hash"] for case in cases}),
        "prompt_set": prompt_set,
        "cases": cases,
        "failures": failures,
        "seconds": round(time.monotonic() - started, 3),
    }
    path = write_json(output / "run.json", record)
    (output / COMBINED_FILE).unlink(missing_ok=True)  # of label maps that lay here
    _warn(output, cases, before)
    _warn_of_images(cases, run.record["data"])
    warn_of_training(cases)
    report_failures(output, failures, len(jobs))
    return path


def report_failures(output: Path, failures: Sequence[Mapping[str, Any]], jobs: int) -> None:
    """Write `failures.jsonl` and raise BatchError `BATCH_FAILED`; without failures take an older file away."""
    if not failures:
        (output / "failures.jsonl").unlink(missing_ok=True)
        return
    text = "".join(json.dumps(failure, ensure_ascii=False) + "\n" for failure in failures)
    write_text(output / "failures.jsonl", text)
    raise BatchError(
        "BATCH_FAILED",
        f"{len(failures)} of {jobs} cases failed" + ("; the others are written" if len(failures) < jobs else ""),
        file=output / "failures.jsonl",
        seen=", ".join(str(failure["case"]) for failure in failures[:5]),
    )


def _warn(output: Path, cases: list[dict[str, Any]], before: Collection[str]) -> None:
    """Of empty masks, and of what an earlier call left for `evaluate` to score."""
    empty = sum(case["notes"]["foreground_voxels"] == 0 for case in cases)
    if empty:
        logger.warning("%d of %d masks are empty", empty, len(cases))
    left = sorted(set(before) - {case["case"] for case in cases})
    if left:
        logger.warning("%s holds masks of an earlier call, which evaluate would score: %s", output, listed(left, 5))


def _warn_of_images(cases: Sequence[Mapping[str, Any]], data: Mapping[str, Any]) -> None:
    """Of images unlike those of training, `data` of its record: grey and colour, and slices that lie otherwise."""
    trained = data.get("image_channels")
    unlike = sum(case["image_channels"] not in trained for case in cases) if trained else 0
    if unlike:
        kinds = " and ".join({1: "grey", 3: "colour"}.get(n, f"{n}-channel") for n in trained or ())
        logger.warning("%d of %d images are no %s images, which this run was trained on", unlike, len(cases), kinds)
    axis = data.get("slice_axis")
    names = [case["case"] for case in cases if case["slice_axis"] == axis and _lies_otherwise(case)]
    if names:
        said = "%d of %d images were cut across axis %d, as in training, but their voxels are longest along another: %s"
        logger.warning(said + "; --slice-axis chooses", len(names), len(cases), axis, listed(names, 5))


def _lies_otherwise(case: Mapping[str, Any]) -> bool:
    """Whether another axis than that of the slices is the one with clearly the largest spacing."""
    *_, second, largest = sorted(case["image"]["spacing_mm"])
    own = case["image"]["spacing_mm"][case["slice_axis"]]
    return largest > _CLEARLY * second and own < largest


def warn_of_training(cases: Sequence[Mapping[str, Any]]) -> None:
    """Of images that this run has seen, by `part` of the records of cases."""
    counts = [sum(case["part"] == part for case in cases) for part in ("train", "val")]
    if any(counts):
        said = "%d of %d images trained this run and %d chose its epochs: their scores say little of new images"
        logger.warning(said, counts[0], len(cases), counts[1])


def part_of(run: Run, sha256: str) -> str | None:
    """`train` or `val` for an image that made this run, by its content."""
    data = run.record["data"]
    hashes = data.get("image_hashes", {})
    for part in ("train", "val"):
        if any(hashes.get(name) == sha256 for name in data.get("split", {}).get(part, ())):
            return part
    return None


def _predict_case(
    run: Run, job: Job, output: Path, options: PredictOptions, cache: EmbeddingCache | None
) -> dict[str, Any]:
    traits = traits_of(run.method, run.settings)
    if traits.prompted and job.prompts is None:
        raise InputError(
            "PROMPT_CASE_MISSING",
            f"no prompt file for case {job.name}",
            file=job.image,
            fix=f"pass --prompts: {run.config.method_name} needs prompts",
        )
    clock = [time.monotonic()]
    volume = read_volume(job.image, slice_axis=options.slice_axis)
    prompts = Prompts() if job.prompts is None else read_prompts(job.prompts, volume.grid)
    coarse = read_coarse(job.coarse, volume) if traits.coarse and job.coarse is not None else None
    clock.append(time.monotonic())
    given = {"cache": cache, "outside": options.outside, "coarse": coarse, "threshold": options.threshold}
    result = segment(run, volume, prompts, **given)
    clock.append(time.monotonic())
    meta = {"method": run.config.method_name, "weights_sha256": run.record["weights_sha256"]}
    name = f"{job.name}{mask_ending(volume)}"
    chances = output / PROBABILITIES / name
    chances.unlink(missing_ok=True)  # of an earlier call
    with files_together(output) as part:  # no mask without its audit
        write_mask(part / name, result.mask)
        write_audit(part, job.name, prompts, result, meta)
    if options.probabilities:
        write_probability(chances, unfit_values(result.probability, volume.grid, result.frame), volume.grid)
    clock.append(time.monotonic())
    read, network, written = (round(b - a, 3) for a, b in zip(clock, clock[1:], strict=False))
    return {
        "case": job.name,
        "image": described(job.image, volume),
        "part": part_of(run, volume.sha256),
        "slice_axis": volume.grid.slice_axis,
        "image_channels": channels_of(volume.array),
        "coarse": _named_file(job.coarse if traits.coarse else None),
        "prompts": {
            **_named_file(job.prompts),
            "hash": prompts.key(),
            "sources": list(prompts.sources),
            "history": [dict(step) for step in prompts.history],
        },
        "mask_sha256": sha256_file(output / name),
        "probability_sha256": sha256_file(chances) if options.probabilities else None,
        "notes": result.notes,
        "seconds": {"read": read, "segment": network, "write": written},
    }


def read_coarse(path: Path, volume: Volume) -> Mask:
    """A mask file to be refined: whatever is not 0 belongs to the target.

    Raises:
        InputError: those of `read_label_map`.
    """
    labels, grid = read_label_map(path, slice_axis=volume.grid.slice_axis)
    return Mask(labels > 0, grid)


def described(file: Path, volume: Volume) -> dict[str, Any]:
    """An image for the record; one in which nothing is to be seen is told of."""
    spacing = [round(float(length), 4) for length in volume.grid.spacing_mm]
    facts = {"file": file.name, "sha256": volume.sha256, "grid": describe_grid(volume.grid), "spacing_mm": spacing}
    if volume.array.size and volume.array.min() == volume.array.max():
        logger.warning("%s: all voxels of the image are alike", file.name)
    return facts


def _named_file(path: Path | None) -> dict[str, Any]:
    return {} if path is None else {"file": path.name, "file_sha256": sha256_file(path)}


def _prompt_set(jobs: list[Job]) -> dict[str, Any] | None:
    """What is known of the frozen set that the prompt files belong to; None for files outside a set.

    Raises:
        InputError: `PROMPT_SET_CHANGED` if its files are not those that were frozen.
    """
    folders = {job.prompts.parent for job in jobs if job.prompts is not None}
    if len(folders) != 1 or not (next(iter(folders)) / SET_FILE).is_file():
        return None
    found = read_set(next(iter(folders)))
    return {"hash": found.hash, "sources": list(found.sources), **found.meta}

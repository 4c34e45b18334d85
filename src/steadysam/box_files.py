"""Boxes of files or folders of files, written as prompt files with provenance; one bad case stops no other."""

from __future__ import annotations

import csv
import io
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from steadysam.box_prompts import CaseBoxes, DetectOptions, detect_volume, detector_of, score_boxes
from steadysam.data.cases import check_pair
from steadysam.data.patients import read_patients
from steadysam.data.volumes import read_label_map, read_volume, select_label
from steadysam.errors import InputError, SteadyError
from steadysam.evaluate import listed, mask_files, read_record
from steadysam.files import sha256_file, sweep_temporaries, write_json, write_text
from steadysam.jobs import Job
from steadysam.locks import alone_in
from steadysam.outputs import refuse_output
from steadysam.prediction import described, part_of, report_failures, warn_of_training
from steadysam.prompts.files import write_prompts
from steadysam.prompts.sets import set_hash
from steadysam.runs import Run, versions
from steadysam.types import Grid, Mask

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Truth:
    """Labels to score the boxes with.

    Args:
        folder: label maps named like the cases.
        values: labels whose union is the target; None: what the run was trained for.
        seed: of the bootstrap, which draws the patients that `patients.csv` or `cases.csv` beside the folder names.
    """

    folder: Path
    values: tuple[int, ...] | None = None
    seed: int = 0


def detect_files(
    run: Run,
    jobs: Sequence[Job],
    output: str | Path,
    options: DetectOptions,
    *,
    truth: Truth | None = None,
    track: Callable[[Iterable[Job]], Iterable[Job]] = iter,
    show: Callable[[CaseBoxes], None] | None = None,
) -> list[dict[str, Any]]:
    """Write `CASE.json` for every job and one `run.json`; with labels `detection.json` and `detection.csv`, too.

    Args:
        truth: labels to score the boxes with.
        show: is called with every case, in order.

    Returns:
        The rows of `score_boxes`; [] without labels.

    Raises:
        ConfigError: those of `detector_of`. FileSystemError: those of `refuse_output`. InputError: `DATA_PAIRS`, no
            case has a label; `DATA_PATIENTS`. LockedError: `FS_LOCKED`, another process writes into the same folder.
            BatchError: `BATCH_FAILED` after the last case if some failed; `failures.jsonl` says which and why. A single
            job raises its own error.
    """
    output, started = Path(output), time.monotonic()
    _, config = detector_of(run, options)
    refuse_output(output, {*(job.image for job in jobs), None if truth is None else truth.folder})
    labels = None if truth is None else _label_files(truth.folder, jobs)
    patients = {} if truth is None or labels is None else _patients(truth.folder, jobs, labels)
    with alone_in(output):
        sweep_temporaries(output)
        before = _earlier(output)
        for scores in ("detection.csv", "detection.json"):  # of boxes that lay here
            (output / scores).unlink(missing_ok=True)
        records, failures, scored = [], [], []
        for job in track(jobs):
            try:
                mask = None if truth is None or labels is None else partial(_true_mask, run, truth, labels, job.name)
                case = _detect_job(run, job, options, mask)
                path = write_prompts(output / f"{job.name}.json", case.prompts)
            except SteadyError as error:
                if len(jobs) == 1:
                    raise
                failures.append({"case": job.name, **error.to_dict()})
                logger.error("%s: %s", job.name, error)
                continue
            records.append(_record(run, job, case, path))
            if show is not None:
                show(case)
            if truth is not None:
                scored.append(_without_pixels(case))
        boxes = [entry["boxes"] for entry in records]
        logger.info("%d boxes, in %d of %d cases", sum(boxes), sum(count > 0 for count in boxes), len(boxes))
        rows = score_boxes(scored, patients, seed=truth.seed) if truth is not None and scored else []
        if rows and not rows[-1]["objects"]:
            logger.warning("the labels hold no object of the target: there is nothing to score")
        if rows:
            write_text(output / "detection.csv", _csv(rows))
            write_json(output / "detection.json", {"rows": rows})
        used = {"confidence": config.confidence, "overlap": config.overlap, "per_slice": options.per_slice}
        facts = {
            "detector": used,
            "cases": records,
            "failures": failures,
            "seconds": round(time.monotonic() - started, 3),
        }
        write_json(output / "run.json", {**_provenance(run, records), **facts})
        if left := sorted(before - {entry["case"] for entry in records}):
            logger.warning("%s still holds boxes of an earlier call: %s", output, listed(left, 5))
        warn_of_training(records)
        report_failures(output, failures, len(jobs))
    return rows


def _earlier(output: Path) -> set[str]:
    """The cases of an earlier call, of which prompt files lie here; what lies here may be anything."""
    try:
        cases = read_record(output).get("cases", ())
        return {str(case["case"]) for case in cases if (output / f"{case['case']}.json").is_file()}
    except (SteadyError, KeyError, TypeError):
        return set()


def _label_files(folder: Path, jobs: Sequence[Job]) -> dict[str, Path]:
    """The label maps by case; a folder that has none of the cases is the wrong one."""
    found = mask_files(folder)
    if not any(job.name in found for job in jobs):
        raise InputError(
            "DATA_PAIRS",
            "no case has a label in this folder",
            file=folder,
            seen=listed(sorted(found), 5),
            expected=listed([job.name for job in jobs], 5),
            fix="name the folder with the labels of these images, such as labelsTs",
        )
    return found


def _patients(folder: Path, jobs: Sequence[Job], labels: Mapping[str, Path]) -> dict[str, str]:
    return read_patients(folder.resolve().parent, [job.name for job in jobs if job.name in labels])


def _detect_job(run: Run, job: Job, options: DetectOptions, true_mask: Callable[[Grid], Mask] | None) -> CaseBoxes:
    volume = read_volume(job.image, slice_axis=options.slice_axis)
    case = detect_volume(run, volume, options, None if true_mask is None else true_mask(volume.grid))
    image = replace(case.prompts.image, name=job.image.name)
    return replace(case, name=job.name, prompts=replace(case.prompts, image=image))


def _true_mask(run: Run, truth: Truth, labels: Mapping[str, Path], name: str, grid: Grid) -> Mask:
    if name not in labels:
        raise InputError("DATA_PAIRS", f"no label for case {name}", file=truth.folder)
    array, label_grid = read_label_map(labels[name], slice_axis=grid.slice_axis)
    check_pair(grid, label_grid, labels[name])
    return Mask(select_label(array, truth.values or run.record["data"]["label_values"]), grid)


def _provenance(run: Run, records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "steadysam": versions(),
        "method": run.config.method_name,
        "run": {"name": run.folder.name, "weights_sha256": run.record["weights_sha256"]},
        "config": run.config.model_dump(mode="json"),
        "prompt_sources": ["detector"],
        "prompt_set_hash": set_hash({entry["case"]: entry["prompts"]["hash"] for entry in records}),
    }


def _record(run: Run, job: Job, case: CaseBoxes, path: Path) -> dict[str, Any]:
    grid = case.volume.grid
    return {
        "case": job.name,
        "image": described(job.image, case.volume),
        "part": part_of(run, case.volume.sha256),
        "slice_axis": grid.slice_axis,
        "prompts": {
            "file": path.name,
            "file_sha256": sha256_file(path),
            "hash": case.prompts.key(),
            "sources": list(case.prompts.sources),
            "history": [dict(step) for step in case.prompts.history],
        },
        "boxes": len(case.prompts.boxes),
        "slices_with_several": sum(len(boxes) > 1 for boxes in case.boxes),
    }


def _without_pixels(case: CaseBoxes) -> CaseBoxes:
    """What scores need, for thousands of cases in memory."""
    return replace(case, volume=replace(case.volume, array=np.zeros((0, 0, 0))), mask=None)


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()

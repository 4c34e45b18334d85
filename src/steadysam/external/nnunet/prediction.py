"""Segment images with a trained nnU-Net: binary masks on the images' own grids, and a record beside them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import steadysam
from steadysam.data.cases import image_cases
from steadysam.data.volumes import mask_ending, read_label_map, read_volume, write_mask
from steadysam.errors import ExternalError, InputError
from steadysam.external.nnunet.environment import Environment, find_environment, nnunet_variables
from steadysam.external.nnunet.export import image_kind_of, write_image
from steadysam.external.nnunet.training import DATASET_ID, PLANS, choose_device, device_kind, read_run, worker_count
from steadysam.external.processes import Finished, run_logged
from steadysam.files import remove_folder, sha256_file, sweep_temporaries, write_json
from steadysam.geometry import describe_grid, grids_agree
from steadysam.locks import alone_in
from steadysam.outputs import refuse_output
from steadysam.types import Mask, Volume


def predict(
    run: str | Path,
    images: str | Path,
    output: str | Path,
    *,
    device: str = "auto",
    workers: int = 0,
    mirroring: bool = True,
    channel: int = 0,
) -> Path:
    """Write `CASE.nii.gz` (of a picture `CASE.png`) for every image, and `run.json`, which `evaluate` goes by.

    Args:
        run: folder of a finished `train`.
        images: an image or a folder of them, in any format that we read.
        device: as in training; it may be another one.
        workers: processes for reading and writing; 0 is one per core, at most 8.
        mirroring: nnU-Net's test-time augmentation, which costs 4 (2d) or 8 passes.
        channel: channel number in the names of a folder's files.

    Returns:
        The path of `run.json`.

    Raises:
        CheckpointError: `RUN_MISSING`, `RUN_VERSION`, `RUN_UNFINISHED`.
        FileSystemError: those of `refuse_output`.
        LockedError: `FS_LOCKED`, another process predicts into the same folder.
        InputError: `NNUNET_MIXED` (images of another kind than in training), and those of reading.
        ExternalError, ResourceError: as in training, and `NNUNET_NO_MASK`.
    """
    run, output = Path(run).resolve(), Path(output).resolve()
    record, environment = read_run(run), find_environment()
    cases = image_cases(images, channel)
    refuse_output(output, (run, *(path for _, path in cases)))
    asked = {"device": choose_device(environment, device), "workers": worker_count(workers), "mirroring": mirroring}
    with alone_in(output):
        sweep_temporaries(output)
        inside = output / f".tmp-{os.getpid()}-nnunet"
        try:
            volumes = {name: _hand_over(inside / "in", name, path, record) for name, path in cases}
            done = _run(environment, run, record, inside, output / "logs" / "predict.log", asked)
            rows = [
                _take_back(inside / "out", output, volume, record["data"]["file_ending"], path)
                for (_, path), volume in zip(cases, volumes.values(), strict=True)
            ]
        finally:
            remove_folder(inside)
        return write_json(output / "run.json", _record(environment, record, asked, done, rows))


def _hand_over(folder: Path, name: str, path: Path, record: Mapping[str, Any]) -> Volume:
    """Write the image as nnU-Net reads it; what is returned keeps the grid but not the voxels."""
    volume = read_volume(path, slice_axis=record["data"]["slice_axis"])
    ending, _ = image_kind_of(volume, path)
    if ending != record["data"]["file_ending"]:
        raise InputError(
            "NNUNET_MIXED",
            "this run was trained on images of another kind",
            file=path,
            seen=ending,
            expected=record["data"]["file_ending"],
        )
    write_image(folder, name, volume)
    return Volume(volume.array[:0].copy(), volume.grid, name, volume.sha256, volume.has_physical_spacing)


def _run(
    environment: Environment, run: Path, record: Mapping[str, Any], inside: Path, log: Path, asked: Mapping[str, Any]
) -> Finished:
    command = [environment.program("nnUNetv2_predict"), "-i", inside / "in", "-o", inside / "out"]
    command += ["-d", DATASET_ID, "-c", record["asked"]["configuration"], "-tr", record["trainer"], "-p", PLANS]
    command += ["-f", "0", "-device", device_kind(asked["device"]), "-npp", asked["workers"], "-nps", asked["workers"]]
    command += ["--disable_progress_bar", *([] if asked["mirroring"] else ["--disable_tta"])]
    variables = nnunet_variables(run, asked["device"], asked["workers"])
    return run_logged([str(word) for word in command], log, variables)


def _take_back(folder: Path, output: Path, volume: Volume, ending: str, image: Path) -> dict[str, Any]:
    """nnU-Net's mask, checked, as ours: the grid is the image's bit for bit."""
    path = folder / f"{volume.name}{ending}"
    if not path.is_file():
        raise ExternalError("NNUNET_NO_MASK", f"nnU-Net wrote no mask of case {volume.name}", file=image)
    labels, grid = read_label_map(path, slice_axis=volume.grid.slice_axis)
    if not grids_agree(grid, volume.grid):
        raise ExternalError(
            "NNUNET_NO_MASK",
            "nnU-Net's mask does not lie on the image's grid",
            file=image,
            seen=describe_grid(grid),
            expected=describe_grid(volume.grid),
        )
    target = output / f"{volume.name}{mask_ending(volume)}"
    write_mask(target, Mask(labels > 0, volume.grid))
    return {
        "case": volume.name,
        "image": {"file": image.name, "sha256": volume.sha256, "grid": describe_grid(volume.grid)},
        "slice_axis": volume.grid.slice_axis,
        "mask_sha256": sha256_file(target),
    }


def _record(
    environment: Environment,
    record: Mapping[str, Any],
    asked: Mapping[str, Any],
    done: Finished,
    rows: list[dict[str, Any]],
) -> dict[str, Any]:
    """What `evaluate` reads: method, training data and label, per case the slice axis and the mask's hash."""
    return {
        "method": f"nnunet {record['asked']['configuration']}",
        "prompted": False,
        "versions": {"steadysam": steadysam.__version__, **environment.facts["versions"]},
        "run": {"trainer": record["trainer"], "weights_sha256": record["weights_sha256"]},
        "config": {"data": record["asked"]["data"]},
        "overrides": dict(asked),
        "cases": rows,
        "commands": [done.record()],
        "seconds": round(done.seconds, 3),
    }

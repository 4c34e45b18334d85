"""Train nnU-Net on a data set of ours, with our split, by its own commands.

RUN/run.json        versions, command lines, seconds, split, hashes; `status` says how far it got
RUN/raw/            the exported data set; RUN/preprocessed/, RUN/results/ are nnU-Net's
RUN/trainers/       a trainer with shorter epochs, where one was asked for
RUN/logs/           what each command said
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import steadysam
from steadysam.config import DataConfig
from steadysam.errors import CheckpointError, ConfigError, ExternalError, FileSystemError, ResourceError
from steadysam.external.nnunet.environment import Environment, find_environment, nnunet_variables
from steadysam.external.nnunet.export import PICTURES, Track, export_dataset
from steadysam.external.nnunet.trainers import STEPS_PER_EPOCH, Precision, trainer_name, write_trainer
from steadysam.external.processes import run_logged
from steadysam.files import read_json, sha256_file, sweep_temporaries, write_json
from steadysam.locks import alone_in, is_lock

FORMAT = "steadysam-nnunet/1"
DATASET_ID, DATASET = 1, "Dataset001_Target"  # a run has its own folders, so no other data set is in the way
PLANS = "nnUNetPlans"
CONFIGURATIONS = ("2d", "3d_fullres")
_SPLITS = "splits_final.json"
_MOST_WORKERS = 8

Configuration = Literal["2d", "3d_fullres"]


@dataclass(frozen=True)
class TrainOptions:
    """What nnU-Net is asked for.

    Args:
        configuration: `2d` or `3d_fullres`.
        epochs: a key of `TRAINERS`.
        steps: per epoch; other than 250 it is no longer nnU-Net's own training.
        slices: instead, so many slices in all epochs together: the steps follow from the plan's batch and patch, at
            least one per epoch; a patch counts as what it holds of a whole slice. For comparisons on one budget.
        memory_gb: the GPU memory, GB, for which nnU-Net plans batch and patch; 0 is its own 8. With less a step sees
            less, and the same slices are more steps.
        precision: `bf16` trains in bfloat16 on a CPU, where nnU-Net has float32 only.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        workers: processes for preprocessing and export; 0 is one per core, at most 8.
    """

    configuration: Configuration = "2d"
    epochs: int = 1000
    steps: int = STEPS_PER_EPOCH
    slices: int = 0
    memory_gb: float = 0.0
    precision: Precision = "own"
    device: str = "auto"
    workers: int = 0


def train(
    data: DataConfig,
    run: str | Path,
    options: TrainOptions,
    *,
    resume: bool = False,
    wait: bool = False,
    track: Track = iter,
) -> Path:
    """Export, plan, preprocess and train; returns the run folder.

    Args:
        data: data set, label and split, as a run of ours has them.
        resume: go on with a run that was stopped; finished steps are kept.
        wait: until another process that trains in this folder has ended, instead of an error.
        track: wraps the cases being exported.

    Raises:
        ExternalError: `NNUNET_MISSING`, `NNUNET_NO_MODEL`, `EXTERNAL_FAILED`.
        ResourceError: `EXTERNAL_MEMORY`, `EXTERNAL_DISK`, `DEVICE_UNAVAILABLE`.
        ConfigError: `NNUNET_EPOCHS`, `NNUNET_STEPS`, `NNUNET_MEMORY`, `NNUNET_CONFIGURATION`, `NNUNET_CHANGED`.
        FileSystemError: `FS_EXISTS`. LockedError: `FS_LOCKED`. And those of `export_dataset`.
    """
    run = Path(run).resolve()
    trainer_name(options.epochs, options.steps, options.precision)  # before anything is written
    if options.configuration not in CONFIGURATIONS:
        raise ConfigError(
            "NNUNET_CONFIGURATION", "no such configuration", seen=options.configuration, expected="2d, 3d_fullres"
        )
    if not 0 <= options.memory_gb < math.inf:
        raise ConfigError(
            "NNUNET_MEMORY",
            "nnU-Net cannot plan for this memory",
            seen=options.memory_gb,
            expected="GB; 0 is its own 8",
        )
    environment = find_environment()
    asked = {
        "data": data.model_dump(mode="json"),
        **asdict(options),
        "device": choose_device(environment, options.device),
    }
    with alone_in(run, wait=wait):
        _work_through(environment, data, run, options, asked, resume, track)
    return run


def _work_through(
    environment: Environment,
    data: DataConfig,
    run: Path,
    options: TrainOptions,
    asked: dict[str, Any],
    resume: bool,
    track: Track,
) -> None:
    """Export, plan, train: each step that is not behind us."""
    record = _begin(run, asked, resume)
    record["versions"] = {"steadysam": steadysam.__version__, **environment.facts["versions"]}
    if record["status"] == "begun":
        sweep_temporaries(run / "raw")
        record["data"] = export_dataset(data, run / "raw" / DATASET, track)
        _save(run, record, "exported")
    _refuse_flat_volumes(options.configuration, record["data"]["file_ending"])
    if record["status"] == "exported":
        _plan(environment, run, record)
    if record["status"] == "planned":
        record["steps"] = _steps_of(run, options)
        record["trainer"] = write_trainer(run / "trainers", options.epochs, record["steps"], options.precision)
        _fit(environment, run, record, resume)


def read_run(run: str | Path) -> dict[str, Any]:
    """The record of a finished run.

    Raises:
        CheckpointError: `RUN_MISSING`, `RUN_VERSION`, `RUN_UNFINISHED`.
    """
    path = Path(run) / "run.json"
    if not path.is_file():
        raise CheckpointError("RUN_MISSING", "no run.json here", file=run, fix="name a folder that nnunet train made")
    record = read_json(path)
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise CheckpointError("RUN_VERSION", "this is no run of nnunet train", file=path, expected=FORMAT)
    if record["status"] != "finished":
        raise CheckpointError(
            "RUN_UNFINISHED",
            "this run has not finished training",
            file=run,
            seen=record["status"],
            fix="finish it with `steadysam nnunet train … --continue`",
        )
    return record


def worker_count(workers: int) -> int:
    """0 -> one per core, at most 8, since each holds a case and a copy of torch."""
    return workers or min(_MOST_WORKERS, os.cpu_count() or 1)


def model_folder(run: Path, record: dict[str, Any]) -> Path:
    """Where nnU-Net put the weights of its one fold."""
    name = f"{record['trainer']}__{PLANS}__{record['asked']['configuration']}"
    return run / "results" / DATASET / name / "fold_0"


def choose_device(environment: Environment, name: str) -> str:
    """`auto` -> cuda where nnU-Net's own torch has it, else cpu; never a silent fall-back.

    Raises:
        ResourceError: `DEVICE_UNAVAILABLE`.
    """
    cuda = environment.facts["cuda"]
    if name == "auto":
        return "cuda" if cuda else "cpu"
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", name) or (name.startswith("cuda") and not cuda):
        raise ResourceError(
            "DEVICE_UNAVAILABLE",
            f"device {name!r} cannot be used by nnU-Net here",
            expected="cpu, cuda, cuda:N or mps",
            fix="use --device cpu, or install a CUDA build of torch in its environment",
        )
    return name


def device_kind(device: str) -> str:
    """`cuda:1` -> cuda, which is all that nnU-Net's commands know."""
    return device.partition(":")[0]


def _begin(run: Path, asked: dict[str, Any], resume: bool) -> dict[str, Any]:
    """The record of a new run, or that of the run to go on with."""
    if (run / "run.json").is_file():
        record = read_json(run / "run.json")
        if not resume or record.get("format") != FORMAT:
            fix = "choose another name, or go on with --continue"
            raise FileSystemError("FS_EXISTS", "the folder holds a run already", file=run, fix=fix)
        free = ("workers", "device")  # where and by how many it is computed
        known = {**asdict(TrainOptions()), **record["asked"]}  # an option may be younger than the run
        changed = sorted(key for key, value in asked.items() if key not in free and known[key] != value)
        if changed:
            raise ConfigError(
                "NNUNET_CHANGED",
                "this run was begun with other settings",
                file=run,
                seen=", ".join(f"{key}: {asked[key]}" for key in changed),
                expected=", ".join(f"{key}: {known[key]}" for key in changed),
            )
        return {**record, "asked": asked}
    if any(not is_lock(path) for path in run.iterdir()):
        raise FileSystemError("FS_EXISTS", "the folder is not empty", file=run, fix="choose another name")
    record: dict[str, Any] = {"format": FORMAT, "status": "begun", "asked": asked, "commands": []}
    _save(run, record, "begun")
    return record


def _save(run: Path, record: dict[str, Any], status: str) -> None:
    record["status"] = status
    write_json(run / "run.json", record)


def _refuse_flat_volumes(configuration: str, ending: str) -> None:
    if ending == PICTURES and configuration != "2d":
        raise ConfigError("NNUNET_CONFIGURATION", "pictures have no third dimension", seen=configuration, expected="2d")


def _plan(environment: Environment, run: Path, record: dict[str, Any]) -> None:
    """Fingerprint, plan and preprocess, after nnU-Net's own check of the data; then our split takes its place."""
    asked = record["asked"]
    workers = str(worker_count(asked["workers"]))
    command = [environment.program("nnUNetv2_plan_and_preprocess"), "-d", DATASET_ID, "-c", asked["configuration"]]
    command += ["--verify_dataset_integrity", "-npfp", workers, "-np", workers, "--no_pbar"]
    command += ["-gpu_memory_target", str(asked["memory_gb"])] if asked["memory_gb"] else []
    variables = nnunet_variables(run, asked["device"], int(workers))
    done = run_logged([str(word) for word in command], run / "logs" / "plan_and_preprocess.log", variables)
    write_json(run / "preprocessed" / DATASET / "splits_final.json", read_json(run / "raw" / DATASET / _SPLITS))
    record["commands"].append(done.record())
    _save(run, record, "planned")


def _steps_of(run: Path, options: TrainOptions) -> int:
    """Steps per epoch: as asked, or those in which the plan's batches hold the slices asked for."""
    if not options.slices:
        return options.steps
    plan = read_json(run / "preprocessed" / DATASET / f"{PLANS}.json")["configurations"][options.configuration]
    whole = math.prod(plan["median_image_size_in_voxels"][-2:])  # the axis across slices comes first
    per_step = plan["batch_size"] * math.prod(plan["patch_size"]) / whole
    return max(1, round(options.slices / (options.epochs * per_step)))


def _fit(environment: Environment, run: Path, record: dict[str, Any], resume: bool) -> None:
    asked = record["asked"]
    command = [environment.program("nnUNetv2_train"), DATASET_ID, asked["configuration"], "0"]
    command += [
        "-tr",
        record["trainer"],
        "-p",
        PLANS,
        "-device",
        device_kind(asked["device"]),
        *(["--c"] if resume else []),
    ]
    # on the CPU the training process augments by itself: workers would take the cores from the network. Only here:
    # with 0, planning fails
    alone = {"nnUNet_n_proc_DA": "0"} if asked["device"] == "cpu" else {}
    variables = nnunet_variables(run, asked["device"], worker_count(asked["workers"]), **alone)
    done = run_logged([str(word) for word in command], run / "logs" / "train.log", variables)
    record["commands"].append(done.record())
    weights = model_folder(run, record) / "checkpoint_final.pth"
    if not weights.is_file():
        raise ExternalError(
            "NNUNET_NO_MODEL", "nnU-Net ended without a final checkpoint", file=weights, fix=f"read {done.log}"
        )
    record["weights_sha256"] = sha256_file(weights)
    _save(run, record, "finished")

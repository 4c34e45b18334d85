"""`steadysam nnunet`: nnU-Net v2 as an outside competitor, in an environment of its own."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

if TYPE_CHECKING:
    from steadysam.config import DataConfig
    from steadysam.external.nnunet.export import Track

app = App(name="nnunet", help="Train and use nnU-Net v2, in an environment of its own, on the same splits.")
log = logging.getLogger(__name__)

Settings = Annotated[tuple[str, ...], Parameter(name="--set", negative="")]


@app.command
def install(*, home: Path | None = None) -> None:
    """Make a virtual environment with nnU-Net 2.8.1 (Apache-2.0), torch 2.13.0 and what they need; 2 to 6 GB.

    Run again, it completes what was left half-made. An environment that has nnunetv2 already can be used instead:
    name it in STEADYSAM_NNUNET_ENV.

    For example:

        steadysam nnunet install

    Parameters
    ----------
    home
        The environment becomes HOME/envs/nnunet; default STEADYSAM_HOME, else ~/.cache/steadysam. With another home,
        set STEADYSAM_NNUNET_ENV to it afterwards.
    """
    from steadysam.external.nnunet.environment import VERSION, environment_folder
    from steadysam.external.nnunet.environment import install as make

    log.info("installing nnU-Net %s into %s; this takes minutes", VERSION, environment_folder(home))
    environment = make(home)
    log.info("%s", ", ".join(f"{name} {version}" for name, version in environment.facts["versions"].items()))


@app.command
def export(
    dataset: Path | None = None,
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    label: str | None = None,
    fold: Annotated[int | None, Parameter(name=["--fold", "-f"])] = None,
    config: Path | None = None,
    settings: Settings = (),
) -> None:
    """Write a data set with our split and one binary target as an nnU-Net v2 raw folder.

    imagesTr and labelsTr hold the training and validation cases, imagesTs and labelsTs the test cases;
    splits_final.json goes into nnU-Net's preprocessed folder. `steadysam nnunet train` does all this by itself.

    For example:

        steadysam nnunet export DATASET --label LV -o nnUNet_raw/Dataset501_LV

    Parameters
    ----------
    dataset
        Data set folder; or `data.dataset` of the configuration.
    output
        New folder, named DatasetNNN_NAME as nnU-Net wants it.
    label
        Target: a name or number of dataset.json, several joined by + (union), or all.
    fold
        Fold of the data set's splits_final.json; without it the split is by patient, as in `steadysam train`.
    config
        TOML file; its [data] section is used, so config.toml of a run of ours gives the same split.
    settings
        data.key=value, such as data.split_seed=1 or data.train_patients=10.
    """
    from steadysam.external.nnunet.export import export_dataset

    data = _data(dataset, label, fold, config, settings)
    with _progress() as track:
        record = export_dataset(data, output, track)
    counts = {part: len(record["split"][part]) for part in ("train", "val", "test")}
    log.info("%s: %d training, %d validation, %d test cases", output, *counts.values())


@app.command
def train(
    dataset: Path | None = None,
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    configuration: Annotated[Literal["2d", "3d_fullres"], Parameter(name=["--configuration", "-c"])] = "2d",
    label: str | None = None,
    epochs: int = 1000,
    steps: int = 250,
    slices: int = 0,
    memory: float = 0.0,
    precision: Literal["own", "bf16"] = "own",
    fold: Annotated[int | None, Parameter(name=["--fold", "-f"])] = None,
    device: Annotated[str, Parameter(name=["--device", "-d"])] = "auto",
    workers: int = 0,
    config: Path | None = None,
    settings: Settings = (),
    resume: Annotated[bool, Parameter(name=["--continue"], negative="")] = False,
) -> None:
    """Export, plan, preprocess and train with nnU-Net's own commands, on our split.

    RUN/run.json has versions, command lines and seconds; RUN/logs what the commands said; nnU-Net's three folders are
    in RUN, too.

    For example:

        steadysam nnunet train DATASET --label LV -c 3d_fullres --epochs 250 -o runs/nnunet-lv

    Parameters
    ----------
    dataset
        Data set folder; or `data.dataset` of the configuration.
    output
        Run folder to write.
    configuration
        2d or 3d_fullres.
    label
        Target: a name or number of dataset.json, several joined by + (union), or all.
    epochs
        One of the lengths for which nnU-Net has a trainer: 1, 5, 10, 20, 50, 100, 250, 500, 750, 1000, ...
    steps
        Training steps per epoch. Only 250 is nnU-Net's own training; fewer is for slow machines, by a trainer of ours
        that sets this number, and is recorded.
    slices
        Instead of --steps: so many slices in all epochs together; the steps follow from nnU-Net's plan. For comparisons
        on one budget.
    memory
        GPU memory, GB, for which nnU-Net plans batch and patch; 0 is its own 8. With less a step sees less, and the
        same --slices are more steps. It warns of it: the result is no longer its default plan's.
    precision
        own, or bf16: bfloat16 on a CPU, where nnU-Net has float32 only; twice as fast where the CPU knows it.
    fold
        Fold of the data set's splits_final.json; without it the split is by patient, as in `steadysam train`.
    device
        auto, cpu, cuda, cuda:N or mps.
    workers
        Processes for preprocessing and export; 0 is one per core, at most 8.
    config
        TOML file; its [data] section is used, so config.toml of a run of ours gives the same split.
    settings
        data.key=value, such as data.split_seed=1 or data.train_patients=10.
    resume
        Go on with the run in the output folder.
    """
    from steadysam.external.nnunet.training import TrainOptions
    from steadysam.external.nnunet.training import train as run_training

    options = TrainOptions(configuration, epochs, steps, slices, memory, precision, device, workers)
    data = _data(dataset, label, fold, config, settings)
    log.info("training; follow it in %s", output / "logs" / "train.log")
    with _progress() as track:
        folder = run_training(data, output, options, resume=resume, track=track)
    log.info("run folder: %s", folder)


@app.command
def predict(
    *,
    input_: Annotated[Path, Parameter(name=["--input", "-i"])],
    model: Annotated[Path, Parameter(name=["--model", "-m"])],
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    device: Annotated[str, Parameter(name=["--device", "-d"])] = "auto",
    workers: int = 0,
    mirroring: bool = True,
    channel: int = 0,
) -> None:
    """Segment images with a trained nnU-Net: CASE.nii.gz (or CASE.png) on each image's own grid, and run.json.

    For example:

        steadysam nnunet predict -i DATASET/imagesTs -m runs/nnunet-lv -o out
        steadysam evaluate out DATASET/labelsTs --label LV -o out/report

    Where the test cases were split off by us, they lie in RUN/raw/Dataset001_Target/imagesTs and labelsTs.

    Parameters
    ----------
    input_
        Image, or folder of images, in any format that we read.
    model
        Run folder written by nnunet train.
    output
        Folder to write.
    device
        auto, cpu, cuda, cuda:N or mps.
    workers
        Processes for reading and writing; 0 is one per core, at most 8.
    mirroring
        nnU-Net's test-time augmentation; without it prediction takes a quarter (2d) or an eighth of the time.
    channel
        Channel number in the names of a folder's files.
    """
    from steadysam.external.nnunet.prediction import predict as run_prediction

    record = run_prediction(model, input_, output, device=device, workers=workers, mirroring=mirroring, channel=channel)
    log.info("record: %s", record)


def _data(
    dataset: Path | None, label: str | None, fold: int | None, config: Path | None, settings: tuple[str, ...]
) -> DataConfig:
    """The `data` section of a configuration; flags win over the file, `--set` over both."""
    from steadysam.config import apply_settings, make_config, read_config

    data: dict[str, Any] = dict(read_config(config).get("data", {})) if config else {}
    flags = {"dataset": str(dataset) if dataset else None, "label": label, "fold": fold}
    data.update({key: value for key, value in flags.items() if value is not None})
    return make_config(apply_settings({"data": data}, settings)).data


@contextmanager
def _progress() -> Iterator[Track]:
    """A bar over the cases that are exported."""
    from steadysam.logs import progress_bar

    with progress_bar() as bar:

        def track(cases: Iterable[Any]) -> Iterator[Any]:
            cases = list(cases)
            task = bar.add_task("export", total=len(cases), note="")
            for case in cases:
                bar.update(task, note=case.name)
                yield case
                bar.advance(task)
            bar.remove_task(task)

        yield track

"""`steadysam train`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

log = logging.getLogger(__name__)


def train(
    dataset: Path | None = None,
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"])],
    method: Annotated[str | None, Parameter(name=["--method"])] = None,
    label: str | None = None,
    backbone: str | None = None,
    prompts: Path | None = None,
    size: int | None = None,
    fold: Annotated[int | None, Parameter(name=["--fold", "-f"])] = None,
    seed: int | None = None,
    device: Annotated[str | None, Parameter(name=["--device", "-d"])] = None,
    config: Path | None = None,
    settings: Annotated[tuple[str, ...], Parameter(name="--set", negative="")] = (),
    resume: Annotated[bool, Parameter(name=["--continue", "-c"], negative="")] = False,
) -> None:
    """Train a method on a data set in nnU-Net v2 raw or MSD layout, and write a run folder.

    The run folder holds the weights, the full configuration, the frozen prompts, versions, hashes and logs.

    For example:

    On a laptop, from the model in the package, at 128 px, with the paper's noisy prompts simulated from the labels:

        steadysam train Dataset901_ACDC --label LV --size 128 -o runs/lv

    With your own prompt files (one per case, named like the case) and SAM ViT-B with LoRA at 512 px:

        steadysam models download sam-vit-base
        steadysam train DATASET --label LV --backbone sam-vit-base --prompts DATASET/promptsTr -o runs/lv

    Every label by a method without prompts, and then label maps:

        steadysam train DATASET --method ldfsam --label each -o runs/organs
        steadysam predict -i DATASET/imagesTs -m runs/organs -o out
        steadysam evaluate out DATASET/labelsTs --label each -o out/report

    Other settings by TOML or one by one (see docs/concepts.md), and after an interruption the same command with
    --continue:

        steadysam train DATASET --config run.toml --set method.tau=0.4 --set method.psc=bi -o runs/lv --continue

    Parameters
    ----------
    dataset
        Data set folder; or `data.dataset` of the configuration.
    output
        Run folder to write.
    method
        Row of `steadysam info`, such as spd, sam_tuning, medsam, unet; some train nothing (zero_shot). Default: spd.
    label
        Target: a name or number of dataset.json, several joined by + (union), or all (the union of all). each trains
        one label after the other, into OUTPUT/LABEL; predict -m OUTPUT then writes label maps.
    backbone
        Row of `steadysam models list`, a folder, or a .safetensors file. Default: steadysam-tiny, in the package.
    prompts
        Folder of prompt files. Default: promptsTr of the data set, else simulated.
    size
        Side of the model's image in pixels. Default: 256 for steadysam-tiny, 512 for SAM.
    fold
        Fold of splits_final.json.
    seed
        Seed of order, augmentation and dropout.
    device
        auto, cpu, cuda, cuda:N or mps.
    config
        TOML file; flags win over it.
    settings
        section.key=value, any number of times; wins over everything.
    resume
        Go on with the run in the output folder.
    """
    from steadysam.config import apply_settings, make_config, read_config
    from steadysam.data.cases import EACH
    from steadysam.errors import FileSystemError, InputError
    from steadysam.labelwise import label_runs, train_each
    from steadysam.methods import METHODS
    from steadysam.methods.contract import traits_of
    from steadysam.training import train as run_training

    values = read_config(config) if config else {}
    flags = {
        ("data", "dataset"): str(dataset) if dataset else None,
        ("data", "label"): label,
        ("data", "fold"): fold,
        ("method", "name"): method,
        ("backbone", "name"): backbone,
        ("prompts", "folder"): str(prompts) if prompts else None,
        ("preprocess", "size"): size,
        ("compute", "seed"): seed,
        ("compute", "device"): device,
    }
    for (section, key), value in flags.items():
        if value is not None:
            values.setdefault(section, {})[key] = value
    made = make_config(apply_settings(values, settings))
    if prompts is not None and not prompts.is_dir():
        raise InputError("FILE_MISSING", "no such folder of prompts", file=prompts, fix="check the path")
    traits = traits_of(METHODS[made.method_name], made.method_config())
    if prompts is not None and not traits.prompted:
        log.warning("%s looks at no prompts: %s is not used", made.method_name, prompts)
    if backbone is not None and not traits.backbone:
        log.warning("%s is a network of its own: backbone %s is not used", made.method_name, backbone)
    if resume and not (output / "config.toml").exists() and not label_runs(output):
        log.warning("%s holds no run to go on with: a new one starts", output)
    if made.data.label == EACH:
        runs = train_each(made, output, resume=resume)
        log.info("run folders: %s", ", ".join(str(run.folder) for run in runs))
        return
    if label_runs(output):
        raise FileSystemError("FS_EXISTS", "the runs of several labels are here", file=output, fix="choose another -o")
    folder = run_training(made, output, resume=resume)
    log.info("run folder: %s", folder)

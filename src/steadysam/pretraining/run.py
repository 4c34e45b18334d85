"""A pretraining run: a folder with its configuration, checkpoints, logs, and at the end the weights."""

from __future__ import annotations

import csv
from pathlib import Path

from steadysam.backbones import BACKBONES
from steadysam.backbones.checkpoints import load_strict, read_safetensors
from steadysam.backbones.conv.model import ConvBackbone, random_conv
from steadysam.config import ComputeConfig, to_toml
from steadysam.errors import ConfigError
from steadysam.files import write_json
from steadysam.pretraining.config import PretrainConfig
from steadysam.pretraining.export import export
from steadysam.pretraining.loop import STAGE, run_steps
from steadysam.pretraining.meter import speed_record
from steadysam.pretraining.score import averaged, held_out_score
from steadysam.pretraining.step import PretrainStep
from steadysam.runs import versions
from steadysam.training import computing, main_alone, open_folder

WEIGHTS = "model.safetensors"


def pretrain(config: PretrainConfig, folder: str | Path, *, resume: bool = False) -> Path:
    """Pretrain and write `folder/model.safetensors` in half precision; returns its path.

    Args:
        config: see `PretrainConfig`.
        folder: new, or with `resume` one in which the same configuration was started before.

    Raises:
        FileSystemError: `FS_EXISTS`. LockedError: `FS_LOCKED`. ConfigError: `RESUME_CONFIG_DIFF`, `CONFIG_VALUE`.
        OutputError: `NUMERIC_LOSS`.
    """
    folder = Path(folder)
    backbone = start_backbone(config)
    compute = ComputeConfig(**config.compute.model_dump())
    with computing(compute) as accelerator, main_alone(accelerator, folder):
        if accelerator.is_main_process:
            open_folder(to_toml(config.model_dump(mode="json")), folder, resume, {"kind": "pretraining"})
        accelerator.wait_for_everyone()
        step = PretrainStep(backbone, config.loss, BACKBONES[config.model.name].norm)
        step.train()
        average = run_steps(step, config, accelerator, folder)
        if accelerator.is_main_process:
            digest = export(backbone, average, folder / WEIGHTS)
            with averaged(backbone, average):
                score = held_out_score(backbone, config.scene, min(config.optim.sizes), step.norm, images=192)
            record = {"kind": "pretraining", "status": "finished", "weights_sha256": digest, "versions": versions()}
            images, seconds = cost(folder)
            record |= {
                "held_out": score,
                "images": images,
                "seconds": seconds,
                "speed": speed_record(step, config, accelerator, seconds),
            }
            write_json(folder / "run.json", record)
        accelerator.wait_for_everyone()
    return folder / WEIGHTS


def cost(folder: Path) -> tuple[float, float]:
    """Images drawn and seconds spent in all sessions of a run, from its logs."""
    images = [float(row["train_images"]) for row in _rows(folder / "logs" / f"{STAGE}-metrics.csv")]
    seconds = [float(row["seconds"]) for row in _rows(folder / "logs" / f"{STAGE}-timing.csv")]
    return images[-1] if images else 0.0, round(sum(seconds), 1)


def _rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text("utf-8").splitlines())) if path.is_file() else []


def start_backbone(config: PretrainConfig) -> ConvBackbone:
    """The model at the scenes' size, from random numbers or from `model.start`."""
    spec = BACKBONES.get(config.model.name)
    if spec is None or not spec.own:
        rows = [row.name for row in BACKBONES.values() if row.own]
        raise ConfigError("CONFIG_VALUE", "cannot be pretrained here", seen=config.model.name, expected=", ".join(rows))
    backbone = random_conv(spec.architecture, min(config.optim.sizes), seed=config.model.seed, name=spec.name)
    if config.model.start is not None:
        load_strict(backbone, read_safetensors(config.model.start), config.model.start)
    return backbone

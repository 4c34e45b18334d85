"""How long nnU-Net trains: the lengths for which it has trainers; for slow machines shorter ones, in bfloat16."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from steadysam.errors import ConfigError
from steadysam.files import write_text

# epochs -> class name, as nnU-Net 2.8.1 has them; an epoch is 250 steps, whatever the data set
TRAINERS = {
    1: "nnUNetTrainer_1epoch",
    1000: "nnUNetTrainer",
    **{n: f"nnUNetTrainer_{n}epochs" for n in (5, 10, 20, 50, 100, 250, 500, 750, 2000, 4000, 8000)},
}
STEPS_PER_EPOCH = 250
_VALIDATION_SHARE = 5  # nnU-Net takes 50 validation steps with 250 training steps

# nnU-Net has no setting for the number of steps, nor for mixed precision on a CPU; it does look for trainers in the
# folders that the variable nnUNet_extTrainer names
_SHORTER = '''"""nnU-Net's trainer with {epochs} epochs of {steps} steps, {precision}; written by SteadySAM."""

import os

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class {name}(nnUNetTrainer):
    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cuda")):
        super().__init__(plans, configuration, fold, dataset_json, device)
        threads = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
        if device.type == "cpu" and threads:  # nnU-Net takes one for every core; waiting for a busy one they spin
            torch.set_num_threads(int(threads))
        self.num_epochs = {epochs}
        self.num_iterations_per_epoch = {steps}
        self.num_val_iterations_per_epoch = {val_steps}

    def perform_actual_validation(self, save_probabilities=False):
        """Nothing reads the masks of the validation cases."""
'''
_BF16 = """
    def initialize(self):
        super().initialize()
        if self.device.type == "cpu":  # elsewhere nnU-Net sees to it
            self.network.forward = in_bfloat16(self.network.forward)


def in_bfloat16(forward):
    def wrapped(x):
        with torch.autocast("cpu", torch.bfloat16):
            found = forward(x)
        return [one.float() for one in found] if isinstance(found, (list, tuple)) else found.float()

    return wrapped
"""
Precision = Literal["own", "bf16"]


def trainer_name(epochs: int, steps: int = STEPS_PER_EPOCH, precision: Precision = "own") -> str:
    """The trainer class for a length of training; nnU-Net's own where an epoch has its 250 steps in its precision.

    Args:
        precision: `own` is float32 on a CPU; `bf16` runs the network, not the loss, in bfloat16 there.

    Raises:
        ConfigError: `NNUNET_EPOCHS` with the lengths there are, `NNUNET_STEPS`.
    """
    if epochs not in TRAINERS:
        raise ConfigError(
            "NNUNET_EPOCHS",
            "nnU-Net has no trainer of this length",
            seen=epochs,
            expected=", ".join(map(str, sorted(TRAINERS))),
        )
    if steps < 1:
        raise ConfigError("NNUNET_STEPS", "an epoch needs steps", seen=steps, expected="1 or more")
    if steps == STEPS_PER_EPOCH and precision == "own":
        return TRAINERS[epochs]
    return f"SteadyTrainer_{epochs}x{steps}" + ("" if precision == "own" else f"_{precision}")


def write_trainer(folder: Path, epochs: int, steps: int, precision: Precision = "own") -> str:
    """Put the trainer class into `folder` unless it is one of nnU-Net's own; returns its name.

    Raises:
        ConfigError: as `trainer_name`.
    """
    name = trainer_name(epochs, steps, precision)
    if name not in TRAINERS.values():
        values = {"epochs": epochs, "steps": steps, "precision": precision}
        text = _SHORTER.format(name=name, val_steps=max(1, steps // _VALIDATION_SHARE), **values)
        text += "" if precision == "own" else _BF16
        write_text(folder / f"{name.lower()}.py", text)
    return name

"""How long nnU-Net trains: the lengths for which it has trainers of its own, and a shorter epoch for slow machines."""

from __future__ import annotations

from pathlib import Path

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

# nnU-Net has no setting for the number of steps; it does look for trainers in the folders that the variable
# nnUNet_extTrainer names, and a class there may set two numbers
_SHORTER = '''"""nnU-Net's trainer with {epochs} epochs of {steps} steps; written by SteadySAM."""

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class {name}(nnUNetTrainer):
    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cuda")):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = {epochs}
        self.num_iterations_per_epoch = {steps}
        self.num_val_iterations_per_epoch = {val_steps}
'''


def trainer_name(epochs: int, steps: int = STEPS_PER_EPOCH) -> str:
    """The trainer class for a length of training; nnU-Net's own where an epoch has its 250 steps.

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
    return TRAINERS[epochs] if steps == STEPS_PER_EPOCH else f"SteadyTrainer_{epochs}x{steps}"


def write_trainer(folder: Path, epochs: int, steps: int) -> str:
    """Put the trainer class into `folder` unless it is one of nnU-Net's own; returns its name.

    Raises:
        ConfigError: as `trainer_name`.
    """
    name = trainer_name(epochs, steps)
    if steps != STEPS_PER_EPOCH:
        val_steps = max(1, steps // _VALIDATION_SHARE)
        text = _SHORTER.format(name=name, epochs=epochs, steps=steps, val_steps=val_steps)
        write_text(folder / f"{name.lower()}.py", text)
    return name

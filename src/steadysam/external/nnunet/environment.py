"""The virtual environment of nnU-Net v2: where it is, how it is made, what its commands are told.

nnU-Net (MIC-DKFZ/nnUNet, Apache-2.0; Isensee et al., Nature Methods 18, 203, 2021) needs torchvision and some thirty
other packages that we do not. Its checkpoints are pickles, which only its own process in this environment opens.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from steadysam.cachefolder import home as default_home
from steadysam.errors import ExternalError, ResourceError
from steadysam.external.processes import run_logged
from steadysam.files import write_text

VERSION = "2.8.1"
VARIABLE = "STEADYSAM_NNUNET_ENV"
# what decides numbers, as tested together
PINS: Mapping[str, str] = {
    "nnunetv2": VERSION,
    "torch": "2.13.0",
    "torchvision": "0.28.0",
    "dynamic-network-architectures": "0.4.4",
    "batchgenerators": "0.25.5",
    "batchgeneratorsv2": "0.3.6",
    "acvl-utils": "0.2.6",
    "blosc2": "4.14.1",
    "numpy": "2.4.6",
    "scipy": "1.17.1",
    "scikit-image": "0.26.0",
    "SimpleITK": "2.5.7",
    "nibabel": "5.4.2",
}
PROGRAMS = ("nnUNetv2_plan_and_preprocess", "nnUNetv2_train", "nnUNetv2_predict")
_NEEDED_BYTES = 6 << 30  # 2 GB with the CPU build of torch, 6 GB with the CUDA build
_ASK = """
import importlib.metadata as m, json, platform, sys
found = {"python": platform.python_version()}
for name in sys.argv[1:]:
    try:
        found[name] = m.version(name)
    except m.PackageNotFoundError:
        pass
try:
    import torch
    cuda = torch.cuda.is_available()
except ImportError:
    cuda = False
print(json.dumps({"versions": found, "cuda": cuda}))
"""


@dataclass(frozen=True)
class Environment:
    """A virtual environment that holds nnU-Net's commands."""

    folder: Path

    def program(self, name: str) -> Path:
        """`nnUNetv2_train` or `python` -> its path."""
        windows = os.name == "nt"
        return self.folder / ("Scripts" if windows else "bin") / (f"{name}.exe" if windows else name)

    @property
    def complete(self) -> bool:
        """Whether the commands are there."""
        return all(self.program(name).is_file() for name in PROGRAMS)

    @cached_property
    def facts(self) -> dict[str, Any]:
        """`versions` of the packages in `PINS`, and whether `cuda` can be used, as its own Python says."""
        command = [str(self.program("python")), "-c", _ASK, *PINS]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=clean_variables())
        if done.returncode != 0:
            raise ExternalError(
                "NNUNET_BROKEN",
                f"the environment's Python does not run: {done.stderr.strip()[-300:]}",
                file=self.folder,
                fix="remove the folder and run: steadysam nnunet install",
            )
        return json.loads(done.stdout)


def environment_folder(home: Path | None = None) -> Path:
    """`envs/nnunet` in `home`, or else `STEADYSAM_NNUNET_ENV`, or else the same in STEADYSAM_HOME."""
    named = os.environ.get(VARIABLE)
    if home is None and named:
        return Path(named).expanduser()
    return (home or default_home()) / "envs" / "nnunet"


def find_environment() -> Environment:
    """The environment with nnU-Net's commands.

    Raises:
        ExternalError: `NNUNET_MISSING`, with the command that installs it.
    """
    environment = Environment(environment_folder())
    if not environment.complete:
        raise ExternalError(
            "NNUNET_MISSING",
            "nnU-Net is not installed: it lives in an environment of its own",
            file=environment.folder,
            expected=", ".join(PROGRAMS),
            fix=f"run: steadysam nnunet install   (or point {VARIABLE} to a virtual environment that has nnunetv2)",
        )
    return environment


def install(home: Path | None = None) -> Environment:
    """Make the environment, or complete one that was left half-made.

    Raises:
        ResourceError: `EXTERNAL_DISK`, less than 6 GB free.
        ExternalError: `EXTERNAL_FAILED` with pip's last words, `NNUNET_BROKEN`.
    """
    environment = Environment(environment_folder(home))
    folder = environment.folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder.parent).free
    if not environment.complete and free < _NEEDED_BYTES:
        raise ResourceError(
            "EXTERNAL_DISK",
            "too little space for the environment",
            file=folder,
            seen=f"{free / 1e9:.1f} GB free",
            expected=f"{_NEEDED_BYTES / 1e9:.0f} GB",
            fix="free some, or choose another place with --home",
        )
    log = folder.parent / "nnunet-install.log"
    variables = clean_variables()
    if not environment.program("python").is_file():
        run_logged([sys.executable, "-m", "venv", folder], log, variables)
    pins = write_text(folder / "constraints.txt", "".join(f"{name}=={version}\n" for name, version in PINS.items()))
    pip = [environment.program("python"), "-m", "pip", "install", "--disable-pip-version-check"]
    run_logged([*pip, "-c", pins, f"nnunetv2=={VERSION}"], log, variables)
    _match_torch(environment, pip, log)
    if not environment.complete:
        raise ExternalError("NNUNET_BROKEN", "installed, but its commands are missing", file=folder, fix=f"read {log}")
    return environment


def _match_torch(environment: Environment, pip: list[Path | str], log: Path) -> None:
    """Replace torch where torchvision was built for another build of it.

    An index may offer a CPU build of torch beside the torchvision of PyPI, whose operators then do not load; every
    trainer of nnU-Net but the first imports torchvision. `===` leaves out all builds but PyPI's own.
    """
    check = [environment.program("python"), "-c", "import torchvision"]
    try:
        run_logged(check, log, clean_variables())
    except ExternalError:
        run_logged([*pip, f"torch==={PINS['torch']}", f"torchvision=={PINS['torchvision']}"], log, clean_variables())
        run_logged(check, log, clean_variables())


def clean_variables(**more: str) -> dict[str, str]:
    """Our environment variables without what would mix two Python environments, and with `more`."""
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    return {**kept, "PYTHONUNBUFFERED": "1", **more}


def nnunet_variables(run: Path, device: str, workers: int, **more: str) -> dict[str, str]:
    """What nnU-Net's commands are told beside their arguments: its folders inside `run`, card, processes, and `more`.

    Of the last two, what the user has set wins. Its `-device cuda` is the first card that it sees: of `cuda:N` it sees
    only card N.
    """
    folders = {f"nnUNet_{name}": str(run / name) for name in ("raw", "preprocessed", "results")}
    ours = {"nnUNet_def_n_proc": str(workers), **more}
    chosen = {key: os.environ.get(key, value) for key, value in ours.items()}
    _, _, index = device.partition(":")
    card = {"CUDA_VISIBLE_DEVICES": _card(int(index))} if index else {}
    return clean_variables(**folders, **chosen, **card, nnUNet_extTrainer=str(run / "trainers"))


def _card(index: int) -> str:
    """Card `index` of those that we see."""
    seen = [card for card in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if card.strip()]
    return seen[index].strip() if index < len(seen) else str(index)

"""Small awkward worlds for tests: nothing is square, cubic or axis-aligned."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from steadysam.types import Grid

# two threads gain nothing on tiny models, and wait for each other for ever where another program wants the cores
os.environ.setdefault("OMP_NUM_THREADS", "1")


def rotation(degrees: float, axis: int) -> np.ndarray:
    """(3, 3) rotation about a world axis."""
    a = np.radians(degrees)
    c, s = np.cos(a), np.sin(a)
    i, j = [k for k in range(3) if k != axis]
    matrix = np.eye(3)
    matrix[i, i], matrix[i, j], matrix[j, i], matrix[j, j] = c, -s, s, c
    return matrix


def make_affine(spacing, degrees=0.0, flips=(1, 1, 1), order=(0, 1, 2), origin=(10.0, -20.0, 5.0)) -> np.ndarray:
    """An affine with spacing, oblique rotation, flips and axis order."""
    affine = np.eye(4)
    directions = rotation(degrees, 0) @ rotation(degrees / 2, 2) @ np.eye(3)[:, list(order)] * np.array(flips)
    affine[:3, :3] = directions * np.array(spacing)
    affine[:3, 3] = origin
    return affine


GRIDS = {
    "plain": Grid((9, 13, 5), make_affine((1.0, 1.5, 4.0)), 2),
    "oblique": Grid((9, 13, 5), make_affine((0.8, 1.5, 4.0), degrees=23), 2),
    "flipped": Grid((9, 13, 5), make_affine((0.8, 1.5, 4.0), flips=(-1, 1, -1)), 2),
    "sagittal": Grid((5, 13, 9), make_affine((4.0, 0.7, 1.1), degrees=-11, flips=(1, -1, 1)), 0),
    "coronal": Grid((7, 4, 11), make_affine((1.2, 5.0, 0.9), degrees=7, order=(2, 0, 1)), 1),
    "one_slice": Grid((17, 11, 1), make_affine((1.0, 1.0, 1.0)), 2),
}


@pytest.fixture(params=list(GRIDS))
def grid(request) -> Grid:
    """Every awkward grid in turn."""
    return GRIDS[request.param]


@pytest.fixture
def rng() -> np.random.Generator:
    """A fixed generator."""
    return np.random.default_rng(11)


@pytest.fixture(autouse=True, scope="session")
def checkpoints_after_every_epoch():
    """Epochs take milliseconds here."""
    from steadysam import loop

    loop.SAVE_SECONDS = 0


@pytest.fixture(autouse=True)
def steadysam_home(tmp_path, monkeypatch) -> Path:
    """Caches and weights of tests stay in the test's own folder."""
    home = tmp_path / "home"
    monkeypatch.setenv("STEADYSAM_HOME", str(home))
    return home


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets, or a skip that says how to provide it."""
    folder = os.environ.get("STEADYSAM_TEST_DATA", "")
    if not folder or not Path(folder).is_dir():
        pytest.skip("set STEADYSAM_TEST_DATA to a folder of real data sets in nnU-Net raw layout")
    return Path(folder)


@pytest.fixture(scope="session")
def acdc(real_data) -> Path:
    """Cardiac MRI (Bernard et al., IEEE TMI 2018): LV, RV and myocardium."""
    return _data_set(real_data, "*ACDC*")


@pytest.fixture(scope="session")
def isic(real_data) -> Path:
    """Dermoscopy (Codella et al., 2019), JPEG pictures with PNG labels."""
    return _data_set(real_data, "*ISIC*")


def _data_set(folder: Path, pattern: str) -> Path:
    found = sorted(path for path in folder.glob(pattern) if (path / "dataset.json").is_file())
    if not found:
        pytest.skip(f"no folder named {pattern} with a dataset.json in {folder}")
    return found[0]


@pytest.fixture(scope="session")
def toy_dataset(tmp_path_factory) -> Path:
    """Six labelled volumes of a bright, drifting blob in nnU-Net raw layout: (20, 26, 4), oblique, 1 x 1.2 x 4 mm."""
    from steadysam.data.volumes import write_mask, write_volume
    from steadysam.files import write_json
    from steadysam.types import Mask

    folder = tmp_path_factory.mktemp("data") / "Dataset001_Toy"
    rng = np.random.default_rng(5)
    i, j = np.mgrid[:20, :26]
    for n in range(6):
        part = "Ts" if n == 5 else "Tr"
        centre = rng.uniform([7, 8], [13, 18])
        mask = np.stack([(i - centre[0] - k) ** 2 + (j - centre[1]) ** 2 < (0 if k == 0 else 16) for k in range(4)], 2)
        image = (rng.normal(100, 12, mask.shape) + 90 * mask).astype(np.int16)
        grid = Grid((20, 26, 4), make_affine((1.0, 1.2, 4.0), degrees=9), 2)
        write_volume(folder / f"images{part}" / f"toy_{n}_0000.nii.gz", image, grid)
        write_mask(folder / f"labels{part}" / f"toy_{n}.nii.gz", Mask(mask, grid))
    description = {"channel_names": {"0": "MRI"}, "labels": {"background": 0, "blob": 1}, "numTraining": 5}
    write_json(folder / "dataset.json", {**description, "file_ending": ".nii.gz"})
    return folder


@pytest.fixture
def toy_values(toy_dataset) -> dict:
    """Configuration values of a run that takes about two seconds."""
    stage = {"epochs": 2, "batch_size": 3, "learning_rate": 1e-3}
    return {
        "data": {"dataset": str(toy_dataset), "label": "blob"},
        "preprocess": {"size": 32},
        "backbone": {"name": "sam-test"},
        "method": {"name": "spd", "adapt": "lora", "stage1": stage, "stage2": stage},
        "compute": {"device": "cpu", "cache": "off", "threads": 1},
    }


@pytest.fixture(scope="session")
def toy_run(toy_dataset, tmp_path_factory) -> Path:
    """One SPD run on the toy data that tells good points from bad; look at it, do not write to it."""
    from toys import train_toy

    return train_toy(toy_dataset, tmp_path_factory.mktemp("runs") / "toy")

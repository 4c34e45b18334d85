"""Small awkward worlds for tests: nothing is square, cubic or axis-aligned."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from steadysam.types import Grid

os.environ.setdefault("OMP_NUM_THREADS", "2")


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

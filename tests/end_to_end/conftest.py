"""Real data sets, found by their names in the folder that STEADYSAM_TEST_DATA names."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def acdc(real_data) -> Path:
    """Cardiac MRI (Bernard et al., IEEE TMI 2018): LV, RV and myocardium."""
    return _one_of(real_data, "*ACDC*")


@pytest.fixture(scope="module")
def isic(real_data) -> Path:
    """Dermoscopy (Codella et al., 2019), JPEG pictures with PNG labels."""
    return _one_of(real_data, "*ISIC*")


def _one_of(folder: Path, pattern: str) -> Path:
    found = sorted(path for path in folder.glob(pattern) if (path / "dataset.json").is_file())
    if not found:
        pytest.skip(f"no folder named {pattern} with a dataset.json in {folder}")
    return found[0]

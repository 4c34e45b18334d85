"""Slices that several methods are trained on."""

import numpy as np
import pytest
import torch

from steadysam.augment import AugmentConfig
from steadysam.methods.contract import Chance
from steadysam.methods.samples import AugmentedSlices
from test_mosaic import case_of


@pytest.mark.parametrize("training", [False, True])
def test_grey_pictures_among_coloured_ones(training):
    cases = [case_of(depth=2, name="grey"), case_of(depth=2, channels=3, name="colour", seed=1)]
    chance = Chance(0, "masks", 0, training)
    together = AugmentedSlices(cases, AugmentConfig(scale=0.1, gamma=0.2), prompted=False).batch([1, 3], chance)
    images = together.tensors["images"]
    assert images.shape == (2, 3, 32, 32)
    assert torch.equal(images[0, 0], images[0, 2])
    for case, row in zip(cases, images, strict=True):
        alone = AugmentedSlices([case], AugmentConfig(scale=0.1, gamma=0.2), prompted=False).batch([1], chance)
        np.testing.assert_allclose(row, alone.tensors["images"][0], atol=1e-6)

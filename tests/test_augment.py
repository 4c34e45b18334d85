"""spd.md section 8, check 10: image, mask and points move together, and so do the slices of a pair."""

import numpy as np
import pytest
import torch

from steadysam.augment import IDENTITY, Augmentation, AugmentConfig, draw, move_images, move_points
from steadysam.types import SlicePoints

MOVES = [
    Augmentation(flip=True),
    Augmentation(angle=0.3),
    Augmentation(angle=-0.4, flip=True, scale=1.2, shift_xy=(0.05, -0.08)),
    Augmentation(scale=0.8, shift_xy=(-0.1, 0.02)),
]


@pytest.mark.parametrize("move", MOVES)
def test_a_bright_spot_goes_where_the_point_goes(move):
    size, x, y = 96, 60, 38
    image = torch.zeros(1, 1, size, size)
    image[0, 0, y - 2 : y + 3, x - 2 : x + 3] = 1
    moved = move_images(image, [move])[0, 0].numpy()
    rows, columns = np.mgrid[:size, :size]
    centre = np.array([(moved * columns).sum(), (moved * rows).sum()]) / moved.sum()
    point = move_points(SlicePoints(np.array([[x, y]], np.float32), np.ones(1, bool), ("p",)), move, size)
    assert np.abs(point.xy[0] - centre).max() < 0.15


@pytest.mark.parametrize("move", MOVES)
def test_mask_at_a_point_is_kept(move, rng):
    """transform(mask)(transform(point)) == mask(point), away from the border of the mask."""
    size = 96
    mask = torch.zeros(1, 1, size, size)
    mask[0, 0, 30:62, 44:70] = 1
    moved = move_images(mask, [move], nearest=True)[0, 0].numpy()
    inside = np.stack([rng.integers(47, 67, 20), rng.integers(33, 59, 20)], axis=1)
    outside = np.stack([rng.integers(20, 41, 20), rng.integers(33, 59, 20)], axis=1)
    for xy, value in ((inside, 1), (outside, 0)):
        ids = tuple(map(str, range(20)))
        found = move_points(SlicePoints(xy.astype(np.float32), np.ones(20, bool), ids), move, size)
        pixels = np.floor(found.xy + 0.5).astype(int).clip(0, size - 1)
        assert (moved[pixels[:, 1], pixels[:, 0]] == value).all()


def test_points_that_leave_the_image_are_dropped():
    points = SlicePoints(np.array([[2, 2], [48, 48]], np.float32), np.ones(2, bool), ("corner", "middle"))
    assert move_points(points, Augmentation(scale=1.5), 96).ids == ("middle",)


def test_masks_stay_binary_and_gamma_leaves_them_alone():
    mask = (torch.rand(2, 1, 40, 40, generator=torch.Generator().manual_seed(1)) > 0.5).float()
    moved = move_images(mask, [Augmentation(angle=0.2, gamma=1.7)] * 2, nearest=True)
    assert set(moved.unique().tolist()) <= {0.0, 1.0}


def test_identity_is_the_same_tensor():
    image = torch.rand(1, 1, 8, 8)
    assert move_images(image, [IDENTITY]) is image


def test_defaults_are_the_papers():
    rng = np.random.default_rng(0)
    drawn = [draw(AugmentConfig(), rng) for _ in range(2000)]
    angles = np.degrees([a.angle for a in drawn])
    assert np.abs(angles).max() <= 15
    assert 0.45 < np.mean(angles != 0) < 0.55
    assert 0.45 < np.mean([a.flip for a in drawn]) < 0.55
    assert all(a.scale == 1 and a.shift_xy == (0, 0) and a.gamma == 1 for a in drawn)


def test_same_seed_same_augmentation():
    config = AugmentConfig(scale=0.2, shift=0.1, gamma=0.3)
    assert draw(config, np.random.default_rng(5)) == draw(config, np.random.default_rng(5))

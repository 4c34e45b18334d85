"""Drawn pictures on disk, in nnU-Net v2 raw layout: what a detector can learn from before it sees real ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from steadysam.data.volumes import write_volume
from steadysam.errors import ConfigError
from steadysam.files import new_folder, write_json
from steadysam.synthetic.appearance import render
from steadysam.synthetic.config import SceneConfig
from steadysam.synthetic.scenes import Scenes, draw_scenes
from steadysam.synthetic.targets import VISIBLE, label_areas
from steadysam.types import Grid

LABEL = "object"
SCENES = SceneConfig(objects=3, depth=1, slabs=0, colour=0.5)  # few objects, as a detector's class is "the target"
_BATCH = 16
_SMALLEST = 0.004  # of the image
_TEST_SHARE = 20


def draw_pictures(
    folder: str | Path,
    count: int,
    seed: int,
    *,
    size: int = 192,
    scenes: SceneConfig = SCENES,
    track: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> Path:
    """Draw `count` RGB pictures of `size` x `size` pixels with the masks of their objects; the folder appears whole.

    One in 20 is a test picture, at least one. Of one seed a larger data set begins with the smaller one's pictures.

    Args:
        folder: a new folder; gets `dataset.json` (label 1, `object`), `imagesTr`, `labelsTr`, `imagesTs`, `labelsTs`.
        track: wraps the numbers of the pictures, for a progress bar.

    Raises:
        ConfigError: `DRAW_COUNT`. FileSystemError: `FS_EXISTS`, the folder exists.
    """
    if count < 2 or size < 32 or size % 2:
        raise ConfigError(
            "DRAW_COUNT", "nothing to draw", seen=f"{count} of {size} px", expected="2 or more, of an even size from 32"
        )
    pictures = _pictures(torch.Generator().manual_seed(seed), size, scenes)
    grid = Grid((size, size, 1), np.eye(4), 2)
    tests = {number for number in range(count) if number % _TEST_SHARE == 1}
    with new_folder(folder) as inside:
        for number in track(range(count)):
            image, mask = next(pictures)
            part, name = "Ts" if number in tests else "Tr", f"drawn_{number:05d}"
            write_volume(inside / f"images{part}" / f"{name}_0000.png", image, grid)
            write_volume(inside / f"labels{part}" / f"{name}.png", mask, grid)
        description = {
            "name": "SteadySAM drawn pictures",
            "description": f"drawn from random numbers, seed {seed}: no patients",
            "channel_names": {"0": "rgb"},
            "labels": {"background": 0, LABEL: 1},
            "numTraining": count - len(tests),
            "numTest": len(tests),
            "file_ending": ".png",
        }
        write_json(inside / "dataset.json", description)
    return Path(folder)


def _pictures(
    generator: torch.Generator, size: int, config: SceneConfig
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """(W, H, 1, 3) images and (W, H, 1) masks without end; pictures on which no object can be seen are passed over."""
    while True:
        scenes = draw_scenes(generator, _BATCH, config, size)
        images = (render(generator, scenes, config).clamp(0, 1) * 255).byte().permute(0, 3, 2, 1)
        for image, mask in zip(images.numpy(), _visible(scenes).permute(0, 2, 1).numpy(), strict=True):
            if mask.any():
                yield image[:, :, None], mask[:, :, None].astype(np.uint8)


def _visible(scenes: Scenes) -> torch.Tensor:
    """(M, S, S) bool: whole objects, with what lies on them, of which enough can be seen."""
    area = label_areas(scenes)
    shown = area[:, scenes.regions : -1 : 2] + area[:, scenes.regions + 1 : -1 : 2]  # body and lumen
    whole = scenes.whole.flatten(2).float().mean(2)
    fit = (whole > _SMALLEST) & (shown > VISIBLE * whole)
    return (scenes.whole & fit[..., None, None]).any(1)

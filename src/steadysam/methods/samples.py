"""Training material that several methods share: single slices, freshly augmented at each visit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from steadysam.augment import IDENTITY, AugmentConfig, draw, move_images, move_points
from steadysam.data.slices import normalise
from steadysam.methods.contract import Batch, Chance, TrainingCase


def list_slices(cases: Sequence[TrainingCase]) -> list[tuple[int, int]]:
    """(case, slice) of every slice, in order."""
    return [(c, t) for c, case in enumerate(cases) for t in range(case.stack.depth)]


class AugmentedSlices:
    """Slices with their masks and, if `prompted`, their raw points; all moved together.

    Args:
        redraw: draw the points anew at each visit where the case can (simulated prompts).
    """

    def __init__(
        self, cases: Sequence[TrainingCase], augment: AugmentConfig, *, prompted: bool, redraw: bool = False
    ) -> None:
        self.cases, self.augment, self.prompted, self.redraw = cases, augment, prompted, redraw
        self.slices = list_slices(cases)

    def __len__(self) -> int:
        return len(self.slices)

    def batch(self, indices: Sequence[int], chance: Chance) -> Batch:
        """`images` (B, 3, S, S) normalised, `masks` (B, 1, S, S) in {0, 1}, and B point sets if prompted."""
        images, masks, moves, points = [], [], [], []
        for index in indices:
            c, t = self.slices[index]
            case = self.cases[c]
            moves.append(draw(self.augment, chance.generator(case.name, t)) if chance.training else IDENTITY)
            images.append(torch.from_numpy(np.array(case.stack.images[t])))
            masks.append(torch.from_numpy(case.masks[t][None].astype(np.float32)))
            if self.prompted:
                here = case.points[t]
                if self.redraw and chance.training and case.redraw is not None:
                    here = case.redraw(chance.generator(case.name, t, "redraw"))[t]
                points.append(move_points(here, moves[-1], case.stack.preprocess.size))
        if len({len(image) for image in images}) > 1:  # grey pictures among coloured ones
            images = [image.expand(3, -1, -1) for image in images]
        norm = self.cases[0].stack.preprocess.norm
        tensors = {
            "images": normalise(move_images(torch.stack(images), moves), norm),
            "masks": move_images(torch.stack(masks), moves, nearest=True),
        }
        return Batch(tensors, tuple(points))

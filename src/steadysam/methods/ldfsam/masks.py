"""The mask stage: slices with the detector's view of them, and SAM-Med2D's loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import label
from torch import Tensor

from steadysam.augment import IDENTITY, draw
from steadysam.detection.boxes import boxes_of_mask
from steadysam.losses import sam_med2d_terms
from steadysam.methods.contract import Batch, Chance, TrainingCase
from steadysam.methods.feature_prompting import moved_details
from steadysam.methods.ldfsam.config import Config
from steadysam.methods.ldfsam.model import LdfSam
from steadysam.methods.samples import AugmentedSlices
from steadysam.methods.slicewise import best_mask, mean_terms, to_model
from steadysam.types import SlicePoints


class MaskSamples:
    """Slices, their masks, and the same slices at the detector's size, all moved by one augmentation.

    In mode `box` a sample is one object of a slice with its jittered true box; slices without an object are left out.
    """

    def __init__(self, cases: Sequence[TrainingCase], config: Config) -> None:
        self.cases, self.config = cases, config
        self.inner = AugmentedSlices(cases, config.augment, prompted=False)
        if config.mode == "box":
            self.inner.slices = [(c, t) for c, t in self.inner.slices if cases[c].masks[t].any()]

    def __len__(self) -> int:
        return len(self.inner)

    def batch(self, indices: Sequence[int], chance: Chance) -> Batch:
        """`images` (B, 3, S, S), `masks` (B, 1, S, S), and `detail` (B, 3, F, F) in [0, 1] where features prompt."""
        plain = self.inner.batch(indices, chance)
        if self.config.feature_mode:
            return Batch({**plain.tensors, "detail": self._detail(indices, chance)})
        if self.config.mode == "box":
            return self._boxed(plain, indices, chance)
        return plain

    def _detail(self, indices: Sequence[int], chance: Chance) -> Tensor:
        places = [self.inner.slices[index] for index in indices]
        moves = [IDENTITY] * len(places)
        if chance.training:  # the draws of `AugmentedSlices`, once more
            moves = [draw(self.config.augment, chance.generator(self.cases[c].name, t)) for c, t in places]
        return moved_details(self.cases, places, moves, self.config.detector.image_size)

    def _boxed(self, plain: Batch, indices: Sequence[int], chance: Chance) -> Batch:
        masks, points = [], []
        for mask, index in zip(plain.tensors["masks"][:, 0].numpy() > 0.5, indices, strict=True):
            c, t = self.inner.slices[index]
            generator = chance.generator(self.cases[c].name, t, "box")
            part, row = one_object(mask, generator, self.config.box_jitter if chance.training else 0.0)
            masks.append(torch.from_numpy(part.astype(np.float32))[None])
            points.append(row)
        return Batch({**plain.tensors, "masks": torch.stack(masks)}, tuple(points))


def one_object(
    mask: NDArray[np.bool_], generator: np.random.Generator, jitter: float
) -> tuple[NDArray[np.bool_], SlicePoints]:
    """One component of (S, S), by chance, and its box with every side moved by up to `jitter` of the box's side.

    Components are 8-connected, as those that the detector learns. A slice whose object has left the image gets its
    whole as a box, and an empty mask.
    """
    size = mask.shape[-1]
    parts, count = label(mask, np.ones((3, 3)))  # pyright: ignore
    if not count:
        return mask, boxed(np.array([0, 0, size, size], np.float32))
    part = parts == 1 + int(generator.integers(count))
    box = boxes_of_mask(part, 1)[0]
    sides = np.tile(box[2:] - box[:2], 2)
    moved = box + generator.uniform(-jitter, jitter, 4).astype(np.float32) * sides
    return part, boxed(np.clip(moved, 0, size))


def boxed(box: NDArray[np.float32]) -> SlicePoints:
    """A prompt that is one box; `box` in continuous pixels, prompts have pixel centres at integers."""
    return replace(SlicePoints.empty(), box=(box - 0.5).astype(np.float32))


def mask_losses(model: LdfSam, batch: Batch, config: Config) -> dict[str, Tensor]:
    """20 x focal + Dice + error of the predicted IoU, on the selected mask at the image size (ldfsam.md 3.4)."""
    embeddings = model.sam.encode(batch.tensors["images"])
    masks = batch.tensors["masks"]
    if config.mode == "box":
        found = model.sam.decode_full(embeddings, batch.points, multimask=config.multimask)
        logits, iou = best_mask(*found)
    else:
        features = model.prompts(batch.tensors.get("detail", embeddings))
        logits, iou = model.decode(embeddings, features, config.multimask)
    return mean_terms(sam_med2d_terms(to_model(logits, masks.shape[-1])[:, None], iou, masks))

"""Slices as a detector sees them, with the boxes of their objects, for training and for choosing an epoch."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from steadysam.detection.boxes import boxes_of_mask
from steadysam.errors import InputError
from steadysam.methods.contract import Batch, Chance, TrainingCase
from steadysam.methods.mosaic import MosaicConfig, compose, draw_picture, jitter, moved_boxes
from steadysam.methods.samples import list_slices
from steadysam.types import SliceStack

logger = logging.getLogger(__name__)


class DetectionSamples:
    """Slices at the detector's size, with the boxes of their objects.

    Args:
        epochs: of the stage; the last `close_mosaic` of them have no mosaic.
        strict: refuse a target that shows no object.

    Raises:
        InputError: `DETECT_NO_OBJECT` if there is a target but all its components are too small to be objects, or gone
            at the detector's size.
    """

    def __init__(
        self, cases: Sequence[TrainingCase], config: MosaicConfig, epochs: int, *, strict: bool = True
    ) -> None:
        self.cases, self.config = cases, config
        self.slices = list_slices(cases)
        self.mosaic_epochs = epochs - config.close_mosaic
        if strict:
            self._refuse_only_small()

    def __len__(self) -> int:
        return len(self.slices)

    def batch(self, indices: Sequence[int], chance: Chance) -> Batch:
        """`images` (B, 3, F, F) RGB in [0, 1], `boxes` (B, K, 4) filled up with zeros, and `counts` (B,)."""
        pairs = [self.sample(index, chance) for index in indices]
        counts = [len(boxes) for _, boxes in pairs]
        boxes = torch.zeros(len(pairs), max(counts), 4)
        for row, (_, here) in zip(boxes, pairs, strict=True):
            row[: len(here)] = torch.from_numpy(here)
        images = torch.stack([image.expand(3, -1, -1) for image, _ in pairs])
        return Batch({"images": images, "boxes": boxes, "counts": torch.tensor(counts)})

    def sample(self, index: int, chance: Chance) -> tuple[Tensor, NDArray[np.float32]]:
        """(1 or 3, F, F) image and (K, 4) boxes of one sample."""
        size = self.config.image_size
        if not chance.training:
            image, mask = self._read(index)
            return image, boxes_of_mask(mask, self.config.min_area)
        c, t = self.slices[index]
        generator = chance.generator(self.cases[c].name, t)
        others = generator.integers(len(self.slices), size=3).tolist()
        picture = draw_picture(self.config, generator, mosaic=chance.epoch < self.mosaic_epochs)
        sources = [self._read(i) for i in [index, *others][: len(picture.tiles)]]
        image = jitter(compose([image for image, _ in sources], picture, size), picture.hsv)
        return image, moved_boxes([mask for _, mask in sources], picture, size, self.config.min_area)

    def shows_objects(self) -> bool:
        """Whether any slice has an object; looks as far as the first."""
        return any(len(boxes_of_mask(self._mask(i), self.config.min_area)) for i in range(len(self)))

    def _refuse_only_small(self) -> None:
        """A network that is shown no object learns to find none, with a splendid loss."""
        size, least = self.config.image_size, self.config.min_area
        if self.shows_objects():
            return
        largest = max((int(self._mask(index).sum()) for index in range(len(self))), default=0)
        if largest or any(case.masks.any() for case in self.cases):
            raise InputError(
                "DETECT_NO_OBJECT",
                "every component of the target is too small to be an object",
                seen=f"at most {largest} pixels of target on a slice of {size} x {size}",
                expected=f"components of min_area = {least:g} pixels or more",
                fix="lower method.detector.min_area, or raise method.detector.image_size",
            )

    def _read(self, index: int) -> tuple[Tensor, NDArray[np.bool_]]:
        c, t = self.slices[index]
        return _fitted(self.cases[c].stack, slice(t, t + 1), self.config.image_size)[0], self._mask(index)

    def _mask(self, index: int) -> NDArray[np.bool_]:
        """(F, F) bool."""
        c, t = self.slices[index]
        case, size = self.cases[c], self.config.image_size
        mask = np.asarray(case.masks[t] if case.detail_masks is None else case.detail_masks[t])
        if mask.shape[-1] != size:
            nearest = (2 * np.arange(size) + 1) * mask.shape[-1] // (2 * size)
            mask = mask[nearest[:, None], nearest[None, :]]
        return mask


def held_out_samples(cases: Sequence[TrainingCase], config: MosaicConfig) -> DetectionSamples:
    """Validation cases as a detector sees them; none of them where no object is shown, as they can't judge then."""
    samples = DetectionSamples(cases, config, 0, strict=False)
    if samples.shows_objects():
        return samples
    logger.warning("no validation case shows a detector an object: the last epoch is taken")
    return DetectionSamples((), config, 0)


def detector_images(stack: SliceStack, rows: slice, size: int) -> Tensor:
    """(B, 3, F, F) in [0, 1]: some slices as the detector sees them; grey becomes three equal channels."""
    return _fitted(stack, rows, size).expand(-1, 3, -1, -1)


def _fitted(stack: SliceStack, rows: slice, size: int) -> Tensor:
    """(B, C, F, F): the stack's `detail` where it has that size, else its images, resized."""
    # copies: the stack may be a read-only map of a file
    if stack.detail is None:
        images = torch.from_numpy(np.array(stack.images[rows], np.float32))
    else:
        images = torch.from_numpy(np.array(stack.detail[rows])).float() / 255
    if images.shape[-1] == size:
        return images
    return F.interpolate(images, (size, size), mode="bilinear", align_corners=False, antialias=True).clamp(0, 1)

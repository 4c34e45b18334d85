"""How good the model is on drawn images that it is never trained on; what choices are made by."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Generator, Tensor

from steadysam.backbones.conv.model import ConvBackbone
from steadysam.data.slices import normalise
from steadysam.interactive import simulate_user
from steadysam.synthetic.appearance import render
from steadysam.synthetic.config import SceneConfig
from steadysam.synthetic.scenes import draw_scenes
from steadysam.synthetic.targets import draw_targets
from steadysam.types import Frame

_HELD_OUT = 1 << 60  # seeds of held-out images begin here; training never reaches it


@torch.no_grad()
def held_out_score(
    backbone: ConvBackbone, scene: SceneConfig, size: int, norm: str, images: int = 96
) -> dict[str, float]:
    """Mean Dice after one and three clicks and with a box on `images` held-out images of one object each.

    Besides: `best_of_three`, the Dice of the best of the three masks; `iou_error`, the mean absolute error of the IoU
    that the model predicts for the mask it trusts most; and `one_other_image`, the Dice after one click when the model
    is shown another image: what the click's place alone is worth.
    """
    device = next(backbone.parameters()).device
    rows: dict[str, list[float]] = {}
    frame = Frame(size, size, size)
    before = backbone.image_size
    backbone.resize(size)
    for start in range(0, images, 16):
        generator = Generator().manual_seed(_HELD_OUT + start)
        scenes = draw_scenes(generator, min(16, images - start), scene.model_copy(update={"depth": 1}), size)
        pictures = render(generator, scenes, scene)
        truths = draw_targets(generator, scenes, (0.5,)).masks[0].numpy()
        keep = [i for i, truth in enumerate(truths) if truth.any()]
        embeddings = backbone.encode(normalise(pictures[keep], norm).to(device))  # pyright: ignore
        rounds = simulate_user(backbone, embeddings, [truths[i] for i in keep], frame, np.random.default_rng(start))
        other = simulate_user(
            backbone, embeddings.roll(1, 0), [truths[i] for i in keep], frame, np.random.default_rng(start)
        )
        values = {
            "one": rounds.one,
            "one_other_image": other.one,
            "three": rounds.three,
            "box": rounds.box,
            "best_of_three": rounds.oracle,
        }
        values["iou_error"] = np.abs(rounds.predicted_iou - rounds.one / (2 - rounds.one))
        for name, numbers in values.items():
            rows.setdefault(name, []).extend(numbers.tolist())
    backbone.resize(before)
    return {name: float(np.mean(numbers)) for name, numbers in rows.items()}


@contextmanager
def averaged(backbone: ConvBackbone, average: dict[str, Tensor]) -> Iterator[ConvBackbone]:
    """Inside the block the backbone has the averaged weights and is in eval mode."""
    named, training = dict(backbone.named_parameters()), backbone.training
    kept = {name: named[name].detach().clone() for name in average}
    with torch.no_grad():
        for name, value in average.items():
            named[name].copy_(value)
        backbone.eval()
        try:
            yield backbone
        finally:
            for name, value in kept.items():
                named[name].copy_(value)
            backbone.train(training)

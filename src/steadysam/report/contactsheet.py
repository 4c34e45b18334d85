"""A contact sheet of drawn images with a target and a prompt on each, to look at what the model is taught."""

from __future__ import annotations

import numpy as np
from torch import Generator

from steadysam.pretraining.config import PretrainConfig
from steadysam.report.figures import Marks, Panel, strip
from steadysam.synthetic.appearance import render
from steadysam.synthetic.fields import happens
from steadysam.synthetic.scenes import draw_scenes
from steadysam.synthetic.targets import draw_boxes, draw_clicks, draw_targets

_COLUMNS = 8


def contact_sheet(config: PretrainConfig, seed: int = 0, rows: int = 5, size: int = 128) -> bytes:
    """PNG of `rows` x 8 images: neighbours from left to right are the slices of a slab.

    The target is outlined; with a click, or with a jittered box on every other slab.
    """
    generator = Generator().manual_seed(seed)
    depth = config.scene.depth
    slabs = rows * max(1, _COLUMNS // depth)
    scenes = draw_scenes(generator, slabs, config.scene, size)
    images = render(generator, scenes, config.scene).numpy()
    targets = draw_targets(generator, scenes, (config.prompts.by_area,))
    mask = targets.masks[0]
    clicks = draw_clicks(generator, mask, 1, happens(generator, config.prompts.interior, len(mask))).numpy()
    boxes = draw_boxes(generator, mask).numpy()
    panels = []
    for i in range(len(images)):
        present, boxed = bool(mask[i].any()), (i // depth) % 2 == 1
        panels.append(
            Panel(
                np.moveaxis(images[i], 0, 2),
                true=mask[i].numpy(),
                marks=Marks.raw(clicks[i]) if present and not boxed else None,
                box=tuple(map(float, boxes[i])) if present and boxed else None,  # pyright: ignore
            )
        )
    per_row = max(1, _COLUMNS // depth) * depth
    grid = [panels[start : start + per_row] for start in range(0, len(panels), per_row)]
    return strip(grid, panel_inches=1.25, legend=False, dpi=80)

"""One step's material: images, the targets that its rows ask for, and the prompts of each row's first round."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from steadysam.synthetic.appearance import render
from steadysam.synthetic.config import PromptMix, SceneConfig
from steadysam.synthetic.fields import happens, uniform
from steadysam.synthetic.scenes import draw_scenes
from steadysam.synthetic.targets import draw_boxes, draw_clicks, draw_targets, draw_wrong_clicks


@dataclass(frozen=True, eq=False)
class Row:
    """One prompt per image: what the decoder is given, and what it should answer.

    Args:
        target: (M, S, S) bool; empty where the object is absent.
        xy, positive: (M, K, 2) and (M, K) points; K may be 0.
        boxes: (M, 4) or None.
        rounds: corrections that follow.
    """

    target: Tensor
    xy: Tensor
    positive: Tensor
    boxes: Tensor | None
    rounds: int


@dataclass(frozen=True, eq=False)
class PretrainBatch:
    """Images (M, 3, S, S) in [0, 1], their labels (M, S, S) int64, and rows of prompts."""

    images: Tensor
    labels: Tensor
    rows: tuple[Row, ...]


def draw_batch(
    generator: Generator, images: int, size: int, scene: SceneConfig, mix: PromptMix, rounds: int
) -> PretrainBatch:
    """About `images` images of `size` x `size` pixels, single or in slabs, with two rows of prompts.

    The first is corrected round by round, the second has a box, or many clicks of which some are wrong.
    """
    dice = uniform(generator, 4).tolist()
    scene = scene if dice[3] < scene.slabs else scene.model_copy(update={"depth": 1})
    scenes = draw_scenes(generator, max(1, images // scene.depth), scene, size)
    pictures = render(generator, scenes, scene)
    targets = draw_targets(generator, scenes, (mix.by_area, 0.0))
    turns = int(dice[2] * rounds)
    first = _boxed if dice[0] < mix.boxes / 2 else _clicked
    second = _boxed if dice[1] < 0.5 else _shaky
    rows = (
        first(generator, targets.masks[0], targets.elsewhere[0], mix, turns),
        second(generator, targets.masks[1], targets.elsewhere[1], mix, 0),
    )
    return PretrainBatch(pictures, scenes.labels, rows)


def _clicked(generator: Generator, mask: Tensor, elsewhere: Tensor, mix: PromptMix, rounds: int) -> Row:
    """One click on the target; where it is absent, at the place where it was on another slice."""
    interior = happens(generator, mix.interior, len(mask))
    xy = draw_clicks(generator, _visible(mask, elsewhere), 1, interior)
    return Row(mask, xy, torch.ones(xy.shape[:2], dtype=torch.bool, device=xy.device), None, rounds)


def _boxed(generator: Generator, mask: Tensor, elsewhere: Tensor, mix: PromptMix, rounds: int) -> Row:
    """A jittered box, sometimes with a click."""
    visible = _visible(mask, elsewhere)
    boxes = draw_boxes(generator, visible)
    clicks = int(uniform(generator, 1).item() < 0.3)
    xy = draw_clicks(generator, visible, 1, happens(generator, mix.interior, len(mask)))[:, :clicks]
    return Row(mask, xy, torch.ones(xy.shape[:2], dtype=torch.bool, device=xy.device), boxes, rounds)


def _shaky(generator: Generator, mask: Tensor, elsewhere: Tensor, mix: PromptMix, rounds: int) -> Row:
    """Two to six clicks; some rows have a wrong one among them, some were placed on another slice, some a negative."""
    count = 2 + int(uniform(generator, 1).item() * 5)
    visible = _visible(mask, elsewhere)
    moved = happens(generator, mix.neighbour * 2, len(mask))[:, None, None] & elsewhere.flatten(1).any(1)[:, None, None]
    xy = draw_clicks(
        generator, torch.where(moved, elsewhere, visible), count, happens(generator, mix.interior, len(mask))
    )
    positive = torch.ones(xy.shape[:2], dtype=torch.bool, device=xy.device)
    wrong = draw_wrong_clicks(generator, visible)[:, 0]
    dice = uniform(generator, len(mask))
    spoiled = (dice < mix.wrong * 2) & (count >= 3)
    negative = dice > 0.7
    place = (uniform(generator, len(mask)) * count).long()
    rows = torch.arange(len(mask), device=xy.device)
    xy[rows, place] = torch.where((spoiled | negative)[:, None], wrong, xy[rows, place])
    positive[rows, place] = ~negative
    return Row(mask, xy, positive, None, rounds)


def _visible(mask: Tensor, elsewhere: Tensor) -> Tensor:
    return torch.where(mask.flatten(1).any(1)[:, None, None], mask, elsewhere)

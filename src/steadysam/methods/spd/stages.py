"""The training material and the losses of SPD's two stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from steadysam.augment import IDENTITY, Augmentation, draw, move_images, move_points
from steadysam.embeddings import EmbeddingCache
from steadysam.losses import pairwise_consistency, segmentation_terms
from steadysam.methods.contract import Batch, Chance, TrainingCase
from steadysam.methods.feature_prompting import moved_details
from steadysam.methods.neighbours import gather_neighbours
from steadysam.methods.samples import list_slices
from steadysam.methods.slicewise import accept_all, decode_rows, encode_stack, encoder_key, mean_terms
from steadysam.methods.spd.config import Config
from steadysam.methods.spd.distill import Distilled, distill
from steadysam.methods.spd.saliency import Spd, saliency_maps
from steadysam.types import SlicePoints


def saliency_losses(model: Spd, batch: Batch, config: Config) -> dict[str, Tensor]:
    """Eq. 1: 0.7 Dice + 0.3 focal on the saliency logits at full size."""
    embeddings = model.sam.encode(batch.tensors["images"])
    return mean_terms(_segmentation(model.saliency_head(embeddings), batch.tensors["masks"], config))


def choose_points(points: Sequence[SlicePoints], saliency: NDArray[np.float32], config: Config) -> Distilled:
    """The decoder's points by `config.prompts`; `raw` and `neighbours` accept everything, and say so."""
    if config.prompts in ("consensus", "both"):
        return distill(points, saliency, config.rule)
    if config.prompts == "feature":
        kept = accept_all(points, "not looked at: this run prompts with features")
        return Distilled((SlicePoints.empty(),) * len(points), tuple(replace(d, verdict="ignored") for d in kept), ())
    chosen = tuple(points) if config.prompts == "raw" else gather_neighbours(points, config.n)
    decisions = accept_all(points, "not checked: this run uses raw prompts")
    empty = tuple(t for t, here in enumerate(chosen) if not here.positive.any())
    return Distilled(chosen, decisions, empty)


class ConsistencySamples:
    """Stage 2: slices with consensus prompts and the neighbours that pairwise consistency needs.

    Embeddings of all slices (and of `variants - 1` stored augmentations) are computed here, once, through the cache:
    an epoch of stage 2 never runs the encoder. Saliency and distillation always see the slices un-augmented; the
    points then move with the image.
    """

    def __init__(self, model: Spd, cases: Sequence[TrainingCase], cache: EmbeddingCache, config: Config) -> None:
        self.cases, self.config = cases, config
        self.slices = list_slices(cases)
        key = encoder_key(model.sam)
        self.moves = [_stored_variants(case.name, config) for case in cases]
        self.embeddings = [
            [encode_stack(model.sam, case.stack, cache, key, move) for move in moves]
            for case, moves in zip(cases, self.moves, strict=True)
        ]
        saliency = [saliency_maps(model.saliency_head, rows[0]).numpy() for rows in self.embeddings]
        self.points = [choose_points(c.points, s, config).points for c, s in zip(cases, saliency, strict=True)]
        self.saliency = saliency if config.redraw else []  # kept only where new prompts must be judged later

    def __len__(self) -> int:
        return len(self.slices)

    def batch(self, indices: Sequence[int], chance: Chance) -> Batch:
        """Rows: the B slices themselves, then the neighbours that exist.

        Tensors: `masks` (B, 1, S, S); `embeddings` (R, C, h, h) with R >= B; for each neighbour row `pair_of`
        (R - B,) the row of its slice; `neighbour_masks` (R - B, 1, S, S); where features prompt `detail` (R, 3, F, F).
        """
        rows, pair_of = self._rows(indices)
        embeddings, masks, points, moves = [], [], [], []
        redrawn: dict[int, tuple[SlicePoints, ...]] = {}
        for row, (c, t) in enumerate(rows):
            case = self.cases[c]
            anchor = row if row < len(indices) else pair_of[row - len(indices)]
            v = int(chance.generator(case.name, rows[anchor][1], "variant").integers(self.config.variants))
            v = v if chance.training else 0
            move, size = self.moves[c][v], case.stack.preprocess.size
            embeddings.append(self.embeddings[c][v][t])
            masks.append(
                move_images(torch.from_numpy(case.masks[t][None, None].astype(np.float32)), [move], nearest=True)
            )
            chosen = self.points[c]
            if self.config.redraw and chance.training and case.redraw is not None:
                if c not in redrawn:
                    raw = case.redraw(chance.generator(case.name, "redraw"))
                    redrawn[c] = choose_points(raw, self.saliency[c], self.config).points
                chosen = redrawn[c]
            points.append(move_points(chosen[t], move, size))
            moves.append(move)
        split, more = len(indices), {}
        if self.config.feature_prompts is not None:
            more = {"detail": moved_details(self.cases, rows, moves, self.config.detail_size)}
        return Batch(
            {
                "masks": torch.cat(masks[:split]),  # first: its length is that of the batch
                "embeddings": torch.stack(embeddings).float(),
                "pair_of": torch.tensor(pair_of, dtype=torch.long),
                "neighbour_masks": torch.cat(masks[split:]) if pair_of else torch.zeros(0),
                **more,
            },
            tuple(points),
        )

    def _rows(self, indices: Sequence[int]) -> tuple[list[tuple[int, int]], list[int]]:
        offsets = {"none": (), "next": (1,), "prev": (-1,), "bi": (-1, 1)}[self.config.psc]
        rows = [self.slices[index] for index in indices]
        pair_of = []
        for row, (c, t) in enumerate(list(rows)):
            for offset in offsets:
                if 0 <= t + offset < self.cases[c].stack.depth:
                    rows.append((c, t + offset))
                    pair_of.append(row)
        return rows, pair_of


def _stored_variants(name: str, config: Config) -> list[Augmentation]:
    """Variant 0 is the slice as it is; the others are fixed by the case's name, one for the whole volume."""
    chance = Chance(seed=0, stage="variants", epoch=0, training=True)
    others = [draw(config.augment, chance.generator(name, v)) for v in range(1, config.variants)]
    return [IDENTITY, *others]


def decoder_losses(model: Spd, batch: Batch, config: Config) -> dict[str, Tensor]:
    """Eq. 9: segmentation loss of the slices plus `psc_weight` x consistency with their neighbours (Eq. 8).

    A slice without the neighbour contributes 0 and still counts in the mean; `bi` takes the mean of two neighbours.
    """
    features = model.prompts(batch.tensors["detail"]) if "detail" in batch.tensors else None
    logits = decode_rows(model.sam, batch.tensors["embeddings"], batch.points, features)
    masks = batch.tensors["masks"]
    count = len(masks)
    terms = mean_terms(_segmentation(logits[:count], masks, config))
    pair_of = batch.tensors["pair_of"]
    if config.psc == "none":
        return terms
    if not len(pair_of):
        return {**terms, "psc": logits.sum() * 0}
    maps = logits.float().sigmoid()
    each = pairwise_consistency(maps[:count][pair_of], maps[count:], squared=config.psc_squared)
    if config.psc_skip_empty:
        present = (masks[pair_of].flatten(1).sum(1) + batch.tensors["neighbour_masks"].flatten(1).sum(1)) > 0
        each = each * present
    neighbours = torch.zeros(count, device=each.device).index_add_(0, pair_of, torch.ones_like(each))
    terms["psc"] = config.psc_weight * (each / neighbours[pair_of]).sum() / count
    return terms


def _segmentation(logits: Tensor, masks: Tensor, config: Config) -> dict[str, Tensor]:
    return segmentation_terms(
        logits,
        masks,
        dice=config.dice_weight,
        focal=config.focal_weight,
        gamma=config.focal_gamma,
        eps=config.dice_eps,
    )

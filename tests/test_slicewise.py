"""Which of several masks is taken."""

import numpy as np
import torch

from steadysam.backbones import build_backbone
from steadysam.methods.slicewise import ask, stability
from steadysam.types import SlicePoints


def test_stability_is_the_overlap_of_the_masks_at_two_thresholds():
    logits = torch.tensor([[[[2.0, 0.5], [-0.5, -3.0]]], [[[5.0, 5.0], [-5.0, -5.0]]], [[[-9.0] * 2] * 2]])
    assert torch.equal(stability(logits), torch.tensor([[1 / 3], [1.0], [0.0]]))


def test_masks_come_in_the_order_of_what_they_are_ranked_by():
    backbone = build_backbone("steadysam-test", 32, seed=0)
    generator = torch.Generator().manual_seed(0)
    h = backbone.embedding_size
    embeddings = torch.randn(6, backbone.embedding_channels, h, h, generator=generator)
    points = [SlicePoints(np.array([[4.0 * n, 9.0]], np.float32), np.ones(1, bool), ("a",)) for n in range(6)]
    stable, by_iou = (ask(backbone, embeddings, points, rank=rank) for rank in ("stable", "iou"))
    assert (by_iou.iou.diff(dim=1) <= 0).all()
    trust = stable.iou * stability(stable.logits)
    assert (trust.diff(dim=1) <= 0).all()
    assert torch.equal(stable.iou.sort(1).values, by_iou.iou.sort(1).values)

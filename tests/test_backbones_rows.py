"""Feature prompts on both kinds of backbone: parity with no prompt at all, order of rows, gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from steadysam.backbones import BACKBONES, build_backbone
from steadysam.backbones.backbone import Backbone
from steadysam.backbones.configure import random_model, sam_config
from steadysam.backbones.rows import FeaturePrompts, with_features
from steadysam.backbones.sam import SamBackbone
from steadysam.types import SlicePoints

SIZE = 64
SAM = BACKBONES["sam-test"].architecture
NOTHING = SlicePoints.empty()
CLICKS = SlicePoints(np.array([[20, 30], [41, 12]], np.float32), np.array([True, False]), ("a", "b"))
BOX = SlicePoints(NOTHING.xy, NOTHING.positive, (), np.array([4, 8, 40, 50], np.float32))
ROWS = [CLICKS, NOTHING, BOX, NOTHING, CLICKS]


def images(count: int) -> torch.Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(count))


def features(model: Backbone, rows: int, tokens: int = 2) -> FeaturePrompts:
    generator = torch.Generator().manual_seed(rows)
    h = model.embedding_size
    return FeaturePrompts(
        torch.randn(rows, tokens, model.token_channels, generator=generator),
        torch.randn(rows, model.embedding_channels, h, h, generator=generator),
    )


@pytest.fixture(scope="module", params=["sam-test", "steadysam-test"])
def model(request) -> Backbone:
    return build_backbone(request.param, SIZE, seed=3)


@pytest.mark.parametrize("multimask", [False, True])
@torch.no_grad()
def test_no_features_at_all_are_the_librarys_own_no_prompt(multimask: bool):
    library = random_model(sam_config(SAM, SIZE), seed=5)
    ours = SamBackbone(random_model(sam_config(SAM, SIZE), seed=5), "same", SAM).eval()
    theirs = library(pixel_values=images(2), multimask_output=multimask)
    logits, iou = ours.decode_full(
        ours.encode(images(2)), [NOTHING] * 2, multimask=multimask, features=FeaturePrompts()
    )
    assert torch.equal(logits, theirs.pred_masks[:, 0])
    assert torch.equal(iou, theirs.iou_scores[:, 0])


@torch.no_grad()
def test_what_each_row_is_given(model: Backbone):
    plain = {row: (s[i], d[i]) for rows, s, d in model.embed(ROWS) for i, row in enumerate(rows)}
    given = features(model, 5)
    assert given.sparse is not None
    assert given.dense is not None
    seen = {row: (s[i], d[i]) for rows, s, d in model.embed(ROWS, None, given) for i, row in enumerate(rows)}
    own = [3, 0, 2, 0, 3]  # two points and the token that says: no box; nothing; two corners
    for row, count in enumerate(own):
        sparse, dense = seen[row]
        assert torch.equal(sparse[:count], plain[row][0][:count])
        assert torch.equal(sparse[count:], given.sparse[row])
        assert torch.equal(dense, plain[row][1] + given.dense[row])
    bare = {row: s[i] for rows, s, _ in model.embed(ROWS, None, FeaturePrompts()) for i, row in enumerate(rows)}
    assert [len(bare[row]) for row in range(5)] == own
    assert [len(plain[row][0]) for row in range(5)] == [3, 1, 2, 1, 3]


@torch.no_grad()
def test_rows_keep_their_order_and_do_not_see_one_another(model: Backbone):
    given, embeddings = features(model, 5), model.encode(images(5))
    assert given.sparse is not None
    assert given.dense is not None
    logits, iou = model.decode_full(embeddings, ROWS, features=given)
    single = model.decode(embeddings, ROWS, features=given)
    assert logits.std() > 1e-3
    for row in range(5):
        own = FeaturePrompts(given.sparse[row : row + 1], given.dense[row : row + 1])
        alone = model.decode_full(embeddings[row : row + 1], ROWS[row : row + 1], features=own)
        torch.testing.assert_close(logits[row], alone[0][0], atol=1e-5, rtol=0)
        torch.testing.assert_close(iou[row], alone[1][0], atol=1e-5, rtol=0)
        one = model.decode(embeddings[row : row + 1], ROWS[row : row + 1], features=own)
        torch.testing.assert_close(single[row], one[0], atol=1e-5, rtol=0)
    turned = FeaturePrompts(given.sparse.flip(0), given.dense.flip(0))
    back = model.decode_full(embeddings.flip(0), ROWS[::-1], features=turned)[0].flip(0)
    torch.testing.assert_close(back, logits, atol=1e-5, rtol=0)


@torch.no_grad()
def test_both_kinds_are_looked_at_and_none_changes_nothing(model: Backbone):
    given, embeddings = features(model, 1), model.encode(images(1))
    without = model.decode(embeddings, [NOTHING], features=FeaturePrompts())
    sparse = model.decode(embeddings, [NOTHING], features=FeaturePrompts(sparse=given.sparse))
    dense = model.decode(embeddings, [NOTHING], features=FeaturePrompts(dense=given.dense))
    both = model.decode(embeddings, [NOTHING], features=given)
    answers = [without, sparse, dense, both, model.decode(embeddings, [NOTHING])]
    for i, a in enumerate(answers):
        assert all((a - b).abs().max() > 1e-4 for b in answers[:i])
    groups = model.embed(ROWS)
    for (rows, s, d), (rows2, s2, d2) in zip(groups, with_features(groups, ROWS, None), strict=True):
        assert rows == rows2
        assert s is s2
        assert d is d2


def test_a_mask_prompt_stays_and_brings_no_token(model: Backbone):
    prior = torch.randn(2, 1, model.mask_size, model.mask_size, generator=torch.Generator().manual_seed(0))
    ((_, sparse, dense),) = model.embed([NOTHING] * 2, prior, FeaturePrompts())
    assert sparse.shape[1] == 0
    torch.testing.assert_close(dense, model.embed([NOTHING] * 2, prior)[0][2])


def test_gradients_reach_both(model: Backbone):
    given, embeddings = features(model, 3), model.encode(images(3)).detach()
    assert given.sparse is not None
    assert given.dense is not None
    given.sparse.requires_grad_()
    given.dense.requires_grad_()
    logits, _ = model.decode_full(embeddings, [CLICKS, NOTHING, BOX], features=given)
    logits.square().mean().backward()
    for tensor in (given.sparse, given.dense):
        assert tensor.grad is not None
        assert all(row.abs().sum() > 0 for row in tensor.grad)


def test_as_many_rows_of_features_as_of_points(model: Backbone):
    with pytest.raises(ValueError, match="3 rows of sparse features but 2 rows of points"):
        model.embed([NOTHING] * 2, None, features(model, 3))
    given = FeaturePrompts(dense=features(model, 1).dense)
    with pytest.raises(ValueError, match="1 rows of dense features"):
        model.decode_full(model.encode(images(2)), [NOTHING] * 2, features=given)

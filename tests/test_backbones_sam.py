"""The three verbs: parity with transformers, batches, points, gradients."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steadysam.backbones import BACKBONES, build_backbone
from steadysam.backbones.backbone import Backbone
from steadysam.backbones.configure import random_model, sam_config
from steadysam.backbones.fingerprint import fingerprint
from steadysam.backbones.sam import SamBackbone
from steadysam.errors import ConfigError
from steadysam.types import SlicePoints

SIZE = 64
TEST = BACKBONES["sam-test"].architecture


def some_points(rng: np.random.Generator, count: int, size: int = SIZE) -> SlicePoints:
    xy = rng.uniform(0, size, (count, 2)).astype(np.float32)
    return SlicePoints(xy, rng.random(count) < 0.7, tuple(f"p{n}" for n in range(count)))


@pytest.fixture(scope="module")
def backbone() -> SamBackbone:
    return lively(build_backbone("sam-test", SIZE, seed=3))


def lively(backbone: SamBackbone) -> SamBackbone:
    """Larger weights than a fresh model's, so that differences between outputs are differences."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return backbone


def images(count: int, size: int = SIZE) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(count))


def test_shapes_and_contract(backbone: SamBackbone):
    model: Backbone = backbone
    embeddings = model.encode(images(2))
    assert embeddings.shape == (2, 32, 8, 8)
    assert (model.embedding_channels, model.embedding_size, model.image_size) == (32, 8, 64)
    rng = np.random.default_rng(0)
    assert model.decode(embeddings, [some_points(rng, 2), some_points(rng, 0)]).shape == (2, 1, 32, 32)
    logits, iou = backbone.decode_full(embeddings, [some_points(rng, 2), some_points(rng, 5)])
    assert logits.shape == (2, 3, 32, 32)
    assert iou.shape == (2, 3)


def test_parameters_have_the_promised_names(backbone: SamBackbone):
    stems = {name.split(".")[0] for name, _ in backbone.named_parameters()}
    assert stems == {"image_encoder", "prompt_encoder", "mask_decoder", "shared_image_embedding"}
    frozen = {name.split(".")[0] for name, p in backbone.named_parameters() if not p.requires_grad}
    assert frozen == {"prompt_encoder", "shared_image_embedding"}


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("multimask", [False, True])
def test_equals_the_library_on_single_images(count: int, multimask: bool):
    library = random_model(sam_config(TEST, SIZE), seed=5)
    ours = SamBackbone(random_model(sam_config(TEST, SIZE), seed=5), "same", TEST).eval()
    points = some_points(np.random.default_rng(count), count)
    with torch.no_grad():
        theirs = library(
            pixel_values=images(1),
            input_points=torch.from_numpy(points.xy)[None, None],
            input_labels=torch.from_numpy(points.positive.astype(np.int64))[None, None],
            multimask_output=multimask,
        )
        logits, iou = ours.decode_full(ours.encode(images(1)), [points], multimask=multimask)
    torch.testing.assert_close(logits, theirs.pred_masks[:, 0], atol=1e-5, rtol=0)
    torch.testing.assert_close(iou, theirs.iou_scores[:, 0], atol=1e-5, rtol=0)


@settings(max_examples=15, deadline=None)
@given(counts=st.lists(st.integers(0, 5), min_size=1, max_size=6), seed=st.integers(0, 1000))
def test_rows_do_not_depend_on_their_batch_mates(backbone: SamBackbone, counts: list[int], seed: int):
    rng = np.random.default_rng(seed)
    points = [some_points(rng, count) for count in counts]
    exact = deepcopy(backbone)  # all single, rounding alone can reach the bound; prompts stay single
    exact.image_encoder.double()
    exact.mask_decoder.double()
    with torch.no_grad():
        embeddings = exact.encode(images(len(counts)).double())
        together = exact.decode(embeddings, points)
        alone = [exact.decode(embeddings[n : n + 1], [points[n]]) for n in range(len(counts))]
    assert together.dtype == torch.float64
    assert together.std() > 1e-2  # there is something to compare
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=0)


def test_order_of_points_does_not_matter_but_the_points_do(backbone: SamBackbone):
    points = some_points(np.random.default_rng(1), 4)
    turned = SlicePoints(points.xy[::-1].copy(), points.positive[::-1].copy(), points.ids[::-1])
    swapped = SlicePoints(points.xy[:, ::-1].copy(), points.positive, points.ids)
    flipped = SlicePoints(points.xy, ~points.positive, points.ids)
    with torch.no_grad():
        embeddings = backbone.encode(images(1))
        reference = backbone.decode(embeddings, [points])
        torch.testing.assert_close(backbone.decode(embeddings, [turned]), reference, atol=1e-5, rtol=0)
        for other in (swapped, flipped, SlicePoints.empty()):
            assert (backbone.decode(embeddings, [other]) - reference).abs().max() > 1e-3


def test_no_points_give_exactly_one_not_a_point_token(backbone: SamBackbone):
    ((rows, sparse, dense),) = backbone.embed([SlicePoints.empty(), SlicePoints.empty()])
    assert rows == [0, 1]
    assert sparse.shape == (2, 1, 32)
    assert dense.shape == (2, 32, 8, 8)
    token = backbone.prompt_encoder.get_parameter("not_a_point_embed.weight")
    torch.testing.assert_close(sparse[0], token)


def test_groups_hold_rows_of_equal_counts_and_every_row_once(backbone: SamBackbone):
    rng = np.random.default_rng(2)
    counts = [3, 0, 3, 1, 0]
    groups = backbone.embed([some_points(rng, count) for count in counts])
    assert sorted(row for rows, _, _ in groups for row in rows) == [0, 1, 2, 3, 4]
    for rows, sparse, dense in groups:
        assert len(sparse) == len(dense) == len(rows)
        assert all(counts[row] + 1 == sparse.shape[1] for row in rows)


def test_a_click_has_the_code_of_the_cell_it_lies_in(backbone: SamBackbone):
    # the centre of an 8 px patch lies at pixel 3.5, where centres of pixels are integers
    points = SlicePoints(np.array([[8 * 5 + 3.5, 8 * 2 + 3.5]], np.float32), np.array([True]), ("a",))
    ((_, sparse, _),) = backbone.embed([points])
    code = sparse[0, 0] - backbone.prompt_encoder.get_parameter("point_embed.1.weight")[0]
    distance = (backbone.image_positions()[0] - code[:, None, None]).norm(dim=0)
    assert divmod(int(distance.argmin()), 8) == (2, 5)
    assert distance.min() < 1e-4


def test_gradients_reach_encoder_and_decoder(backbone: SamBackbone):
    backbone.zero_grad()
    points = [some_points(np.random.default_rng(3), 2)]
    backbone.decode(backbone.encode(images(1)), points).square().mean().backward()
    for part in (
        backbone.image_encoder.get_parameter("pos_embed"),
        backbone.mask_decoder.get_parameter("mask_tokens.weight"),
    ):
        assert part.grad is not None
        assert part.grad.abs().sum() > 0
    assert all(p.grad is None for p in backbone.prompt_encoder.parameters())


def test_as_many_embeddings_as_rows(backbone: SamBackbone):
    with pytest.raises(ValueError, match="2 embeddings but 1 rows"):
        backbone.decode(torch.zeros(2, 32, 8, 8), [SlicePoints.empty()])


def test_random_weights_depend_on_the_seed_only_and_leave_the_global_generator_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = fingerprint(build_backbone("sam-test", SIZE, seed=7))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert fingerprint(build_backbone("sam-test", SIZE, seed=7)) == first
    assert fingerprint(build_backbone("sam-test", SIZE, seed=8)) != first


def test_fresh_weights_are_fit_for_training():
    backbone = build_backbone("sam-tiny", 96, seed=0)
    weight = backbone.image_encoder.get_parameter("layers.0.attn.qkv.weight")
    assert 0.015 < weight.std() < 0.025  # not the library's 1e-10
    assert 0.7 < backbone.shared_image_embedding.get_parameter("positional_embedding").std() < 1.3
    token = backbone.mask_decoder.get_parameter("mask_tokens.weight")
    assert 0.8 < token.std() < 1.2
    names = [
        name for name, _ in backbone.mask_decoder.named_modules() if "cross_attn" in name and name.endswith("q_proj")
    ]
    assert len(names) == 4
    for name in names:
        query = backbone.mask_decoder.get_parameter(f"{name}.weight")
        torch.testing.assert_close(query, backbone.mask_decoder.get_parameter(f"{name[:-6]}k_proj.weight"))
        torch.testing.assert_close(query @ query.T, 2.25 * torch.eye(len(query)), atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [96, 160])
def test_any_multiple_of_the_patch(size: int):
    backbone = build_backbone("sam-test", size)
    with torch.no_grad():
        embeddings = backbone.encode(images(1, size))
        logits = backbone.decode(embeddings, [SlicePoints.empty()])
    assert embeddings.shape[-1] == size // 8
    assert logits.shape[-1] == size // 2


@pytest.mark.parametrize("size", [0, -8, 100])
def test_other_sizes_are_refused(size: int):
    with pytest.raises(ConfigError) as error:
        build_backbone("sam-test", size)
    assert error.value.code == "BACKBONE_SIZE"


def test_fingerprint_sees_values_names_and_shapes():
    layer = torch.nn.Linear(6, 4, bias=False)
    other = torch.nn.Linear(4, 6, bias=False)
    with torch.no_grad():
        other.weight.copy_(layer.weight.reshape(6, 4))
    first = fingerprint(layer)
    assert first != fingerprint(other)
    with torch.no_grad():
        layer.weight[0, 0] += 1e-7
    assert fingerprint(layer) != first
    assert fingerprint(torch.nn.Sequential(layer)) != fingerprint(layer)

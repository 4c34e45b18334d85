"""LoRA-SAM without prompts: what is trained, the default prompt against SAM's own embedding, blindness to points."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from steadysam.backbones import build_backbone
from steadysam.embeddings import EmbeddingCache
from steadysam.losses import dice_loss
from steadysam.methods import lora_sam
from steadysam.methods.contract import Chance
from steadysam.methods.lora_sam import Config, tuning_losses
from steadysam.methods.slicewise import decode_rows
from steadysam.trainable import select_trainable
from steadysam.types import SlicePoints
from toycases import SIZE, slice_points, small_case

EMPTY = (SlicePoints.empty(),) * 3


@pytest.fixture(params=["sam-test", "steadysam-test"])
def name(request):
    return request.param


def build(name, seed=0, **settings):
    torch.manual_seed(seed)
    return lora_sam.build(Config(**settings), build_backbone(name, SIZE, seed=0)).eval()


def segmented(model, points=EMPTY):
    return lora_sam.segment(model, Config(), small_case(*EMPTY).stack, points, EmbeddingCache())


def test_what_is_trained(name):
    model = build(name)
    (stage,) = lora_sam.stages(Config())
    chosen = set(select_trainable(model, stage))
    assert "default_prompt.shift" in chosen
    for parameter, _ in model.named_parameters():
        trained = parameter.startswith(("backbone.mask_decoder.", "default_prompt.")) or ".lora_" in parameter
        assert (parameter in chosen) == trained, parameter
    assert not any(parameter.startswith("backbone.prompt_encoder.") for parameter in chosen)


def test_where_lora_sits():
    sam = [n for n, _ in build("sam-test").named_parameters() if ".lora_" in n]
    assert len(sam) == 2 * 4
    assert all(".attn.qkv.lora_query_" in n or ".attn.qkv.lora_value_" in n for n in sam)
    own = [n for n, _ in build("steadysam-test").named_parameters() if ".lora_" in n]
    assert len(own) == 5 * 2 * 2  # two convolutions in each of five blocks, two factors each
    assert all(".conv1.lora_" in n or ".conv2.lora_" in n for n in own)
    shapes = {p.shape[0] for n, p in build("steadysam-test", rank=3).named_parameters() if ".lora_A." in n}
    assert shapes == {3}


def test_the_authors_recipe_stays_when_other_settings_are_given():
    tuning = Config.model_validate({"tuning": {"epochs": 3}}).tuning
    assert (tuning.optimizer, tuning.learning_rate, tuning.warmup_steps) == ("adamw", 5e-3, 250)
    assert Config().rank == 4


@torch.no_grad()
def test_the_default_prompt_is_sams_no_mask_embedding():
    """Training the shift is training the embedding: both ways give the same masks."""
    shift = torch.randn(32, generator=torch.Generator().manual_seed(1))
    shifted, edited = build("sam-test"), build("sam-test")
    before = segmented(shifted).probability
    shifted.default_prompt.shift.copy_(shift)
    edited.sam.prompt_encoder.get_parameter("no_mask_embed.weight").add_(shift)
    found = segmented(shifted).probability
    np.testing.assert_allclose(found, segmented(edited).probability, atol=1e-5)
    assert np.abs(found - before).max() > 1e-3


def test_fresh_it_is_the_backbone_without_prompts(name):
    plain = build_backbone(name, SIZE, seed=0)
    images = torch.from_numpy(small_case(*EMPTY).stack.images).expand(-1, 3, -1, -1) * 2 - 1
    with torch.no_grad():
        expected = decode_rows(plain, plain.encode(images).half().float(), EMPTY).sigmoid()[:, 0].numpy()
    np.testing.assert_allclose(segmented(build(name)).probability, expected, atol=1e-5)


def test_points_are_not_looked_at(name):
    model = build(name)
    blind = segmented(model, (slice_points((4, 5)), SlicePoints.empty(), slice_points((9, 9), name="q")))
    assert blind.probability.tobytes() == segmented(model).probability.tobytes()
    assert blind.decisions == ()
    assert not lora_sam.TRAITS.prompted


def test_losses_by_hand(name):
    model = build(name)
    (stage,) = lora_sam.stages(Config())
    batch = stage.samples(model, [small_case(*EMPTY)], EmbeddingCache()).batch(
        [0, 1, 2], Chance(0, "tuning", 0, training=False)
    )
    assert batch.points == ()
    with torch.no_grad():
        model.default_prompt.shift.fill_(0.3)
        terms = tuning_losses(model, batch, Config())
        logits = decode_rows(model.sam, model.sam.encode(batch.tensors["images"]) + 0.3, EMPTY)
    masks = batch.tensors["masks"]
    torch.testing.assert_close(terms["dice"], 0.8 * dice_loss(logits.sigmoid(), masks).mean())
    torch.testing.assert_close(terms["bce"], 0.2 * F.binary_cross_entropy_with_logits(logits, masks))

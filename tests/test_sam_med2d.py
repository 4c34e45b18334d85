"""SAM-Med2D's method: what is trained, boxes of the truth, the best of three masks, interactive rounds, verdicts."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch

from steadysam.backbones import build_backbone
from steadysam.backbones.rows import FeaturePrompts
from steadysam.embeddings import EmbeddingCache
from steadysam.losses import sam_med2d_terms
from steadysam.methods import sam_med2d
from steadysam.methods.contract import Chance
from steadysam.methods.sam_med2d import Config, PromptedSlices, answer, box_of_mask, corrections, tuning_losses
from steadysam.methods.slicewise import encode_stack, encoder_key, to_model
from steadysam.trainable import select_trainable
from steadysam.types import SlicePoints
from toycases import SIZE, learnt_dice, slice_points, small_case, with_box

Prompts = Literal["none", "box", "points"]
STILL = Config().augment.model_copy(update={"rotate_probability": 0.0, "flip_probability": 0.0})
TRAINING, VALIDATION = Chance(0, "tuning", 0, training=True), Chance(0, "tuning", 0, training=False)
POINTS = (
    slice_points((4, 5), (20, 9), name="a"),
    SlicePoints.empty(),
    slice_points((12, 14), (30, 30), positive=[True, False], name="c"),
    slice_points((7, 7), positive=[False], name="d"),
)


@pytest.fixture(params=["sam-test", "sam-med2d-test", "steadysam-test"])
def model(request):
    torch.manual_seed(0)
    return sam_med2d.build(Config(), build_backbone(request.param, SIZE, seed=0)).eval()


def batch_of(config: Config, chance: Chance = VALIDATION, rows: tuple[int, ...] = (0, 1, 2, 3)):
    return PromptedSlices([small_case(*POINTS)], config).batch(rows, chance)


def found_with(model, config: Config, points=POINTS):
    return sam_med2d.segment(model, config, small_case(*points).stack, points, EmbeddingCache())


@torch.no_grad()
def decoded(model, points: SlicePoints, t: int, *, multimask: bool = True) -> np.ndarray:
    """The probability of slice t from the backbone alone."""
    stack = small_case(*POINTS).stack
    row = encode_stack(model.sam, stack, EmbeddingCache(), encoder_key(model.sam))[t : t + 1].float()
    logits, iou = model.sam.decode_full(row, [points], multimask=multimask, features=FeaturePrompts())
    return to_model(logits[:, int(iou.argmax())], SIZE).sigmoid()[0].numpy()


@pytest.mark.parametrize("adapt, word", [("adapters", "adapter."), ("lora", "lora_"), ("full", "")])
@pytest.mark.parametrize("name", ["sam-test", "sam-med2d-test", "steadysam-test"])
def test_what_is_trained(name: str, adapt: Literal["adapters", "lora", "full"], word: str):
    config = Config(adapt=adapt)
    model = sam_med2d.build(config, build_backbone(name, SIZE, seed=0))
    (stage,) = sam_med2d.stages(config)
    chosen = set(select_trainable(model, stage))
    expected = {
        n
        for n, _ in model.named_parameters()
        if n.startswith(("backbone.prompt_encoder.", "backbone.mask_decoder."))
        or (n.startswith("backbone.image_encoder.") and word in n)
    }
    assert chosen == expected
    assert any(n.startswith("backbone.image_encoder.") for n in chosen)
    assert (stage.settings.optimizer, stage.settings.learning_rate, stage.settings.weight_decay) == ("adam", 1e-4, 0)


def test_fresh_adapters_change_nothing_at_first():
    plain = build_backbone("sam-test", SIZE, seed=0)
    images = torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    before = plain.encode(images)
    assert torch.equal(sam_med2d.build(Config(), plain).sam.encode(images), before)
    wild = sam_med2d.build(Config(zero_init=False), build_backbone("sam-test", SIZE, seed=0))
    assert not torch.allclose(wild.sam.encode(images), before, atol=1e-3)


def test_a_box_is_the_masks_outline_moved_as_a_whole():
    mask = np.zeros((SIZE, SIZE), bool)
    mask[8:20, 10:26] = mask[3, 4] = True  # two parts, one box, as in a prompt file
    tight = [3.5, 2.5, 25.5, 19.5]
    assert np.array_equal(np.asarray(box_of_mask(mask, 0.0, np.random.default_rng(0))), tight)
    assert box_of_mask(np.zeros((4, 4), bool), 5, np.random.default_rng(0)) is None
    seen = [np.asarray(box_of_mask(mask, 2.0, np.random.default_rng(n))) - tight for n in range(30)]
    assert all(np.allclose(move[:2], move[2:], atol=1e-5) for move in seen)
    assert 1 < max(np.abs(move).max() for move in seen) <= 2
    small = np.zeros((SIZE, SIZE), bool)
    small[16, 10:20] = True  # one pixel high: no more than half of that
    moved = [np.asarray(box_of_mask(small, 5.0, np.random.default_rng(n))) for n in range(30)]
    assert all(abs(box[1] - 15.5) <= 0.5 and abs(box[0] - 9.5) <= 0.5 for box in moved)
    mask[:] = True
    full = np.asarray(box_of_mask(mask, 5.0, np.random.default_rng(1)))
    assert full.min() >= -0.5
    assert full.max() <= SIZE - 0.5


def test_what_each_kind_of_prompt_gives_a_batch():
    boxes = batch_of(Config(prompts="box"))
    assert boxes.tensors["asked"].tolist() == [0, 1, 1, 1]  # the first slice has no object
    assert boxes.points[0].box is None
    assert all(len(row) == 0 for row in boxes.points)
    for row in boxes.points[1:]:
        assert np.array_equal(np.asarray(row.box), [9.5, 7.5, 25.5, 19.5])
    points = batch_of(Config(prompts="points"))
    assert points.tensors["asked"].tolist() == [1, 0, 1, 1]
    assert [len(row) for row in points.points] == [2, 0, 2, 1]
    nothing = batch_of(Config(prompts="none"))
    assert nothing.tensors["asked"].tolist() == [1, 1, 1, 1]
    assert all(len(row) == 0 and row.box is None for row in nothing.points)


def test_training_boxes_move_with_the_image_and_by_chance():
    config = Config(prompts="box", jitter_px=16, augment=STILL)  # 2 px of 32
    seen = []
    for epoch in range(12):
        box = batch_of(config, Chance(0, "tuning", epoch, training=True), (1,)).points[0].box
        seen.append(np.asarray(box) - [9.5, 7.5, 25.5, 19.5])
    assert len({move.tobytes() for move in seen}) == 12
    assert 0.5 < np.abs(seen).max() <= 2
    flipped = Config(prompts="box", jitter_px=0, augment=STILL.model_copy(update={"flip_probability": 1.0}))
    box = batch_of(flipped, TRAINING, (1,)).points[0].box
    assert np.array_equal(np.asarray(box), [5.5, 7.5, 21.5, 19.5])  # 32 - 1 - x


def test_the_mask_that_the_model_trusts_most(model):
    rows = torch.randn(3, model.sam.embedding_channels, *[model.sam.embedding_size] * 2)
    points = [POINTS[0], SlicePoints.empty(), POINTS[2]]
    with torch.no_grad():
        logits, iou = model.sam.decode_full(rows, points, features=FeaturePrompts())
        best, said = answer(model.sam, rows, points, None, multimask=True)
        single, _ = answer(model.sam, rows, points, None, multimask=False)
    for row in range(3):
        assert torch.equal(best[row, 0], logits[row, int(iou[row].argmax())])
        assert said[row] == iou[row].max()
    expected = model.sam.decode_full(rows, points, multimask=False, features=FeaturePrompts())[0]
    assert torch.equal(single, expected)


@pytest.mark.parametrize("prompts, asked", [("points", [0, 2, 3]), ("box", [1, 2, 3]), ("none", [0, 1, 2, 3])])
def test_loss_by_hand(model, prompts: Prompts, asked: list[int]):
    config = Config(prompts=prompts)
    batch = batch_of(config)
    terms = tuning_losses(model, batch, config)
    expected: dict[str, float] = {}
    for row in asked:
        with torch.no_grad():
            embedding = model.sam.encode(batch.tensors["images"][row : row + 1])
            logits, iou = answer(model.sam, embedding, [batch.points[row]], None, multimask=True)
        found = sam_med2d_terms(to_model(logits[:, 0], SIZE), iou, batch.tensors["masks"][row])
        for name, value in found.items():
            expected[name] = expected.get(name, 0.0) + float(value) / 4
    assert {name: float(value.detach()) for name, value in terms.items()} == pytest.approx(expected, abs=1e-4)


def test_clicks_lie_in_the_wrong_parts():
    truth = torch.zeros(3, 4, 4, dtype=torch.bool)
    truth[:, 1:3, 1:3] = True
    found = truth.clone()
    found[0, 1, 2] = False  # lacks (x 2, y 1)
    found[1, 0, 3] = True  # too much at (x 3, y 0)
    found[1, 3, 0] = True  # and at (x 0, y 3)
    draws = torch.tensor([[0.0, 0.999, -1.0], [0.2, 0.7, 1.0], [0.5, 0.5, 0.5]])
    rows = corrections(found, truth, draws)
    assert [row.xy.tolist() for row in rows] == [[[2, 1], [2, 1]], [[3, 0], [0, 3], [0, 3]], []]
    assert [row.positive.tolist() for row in rows] == [[True, True], [False, False, False], []]
    assert [len(row) for row in rows] == [2, 3, 0]


def test_rounds_draw_clicks_and_end_with_the_mask_alone():
    batch = batch_of(Config(iterations=4), TRAINING)
    draws = batch.tensors["draws"]
    assert draws.shape == (4, 3, 9)
    counts = (draws >= 0).sum(2)
    assert set(counts[:, :-1].flatten().tolist()) <= {1, 3, 5, 9}
    assert counts[:, -1].tolist() == [0, 0, 0, 0]
    assert torch.equal(draws, batch_of(Config(iterations=4), TRAINING).tensors["draws"])
    assert batch_of(Config(iterations=4)).tensors["draws"].shape == (4, 0, 9)
    assert batch_of(Config(), TRAINING).tensors["draws"].shape == (4, 0, 9)


def test_rounds_by_hand_and_the_encoder_learns_in_the_first_only(model):
    config = Config(iterations=2, prompts="none", augment=STILL)
    batch = batch_of(config, TRAINING, (1, 2))
    (stage,) = sam_med2d.stages(config)
    chosen = select_trainable(model, stage)
    terms = tuning_losses(model, batch, config)
    torch.stack(list(terms.values())).sum().backward()
    encoder = {n: p.grad for n, p in chosen.items() if "image_encoder" in n and p.grad is not None}
    mask_embed = [n for n, p in chosen.items() if "prompt_encoder" in n and p.grad is not None and p.grad.any()]
    first = tuning_losses(model, replace(batch, tensors={**batch.tensors, "draws": torch.zeros(2, 0, 9)}), config)
    for parameter in chosen.values():
        parameter.grad = None
    (torch.stack(list(first.values())).sum() / 2).backward()
    for name, grad in encoder.items():
        torch.testing.assert_close(chosen[name].grad, grad, atol=1e-5, rtol=1e-3)
    assert any(grad.any() for grad in encoder.values())
    assert any("mask_embed" in n or "dense" in n or "direct" in n for n in mask_embed)
    with torch.no_grad():
        embeddings = model.sam.encode(batch.tensors["images"])
        logits, _ = answer(model.sam, embeddings, batch.points, None, multimask=True)
        again, iou = answer(model.sam, embeddings, [SlicePoints.empty()] * 2, logits, multimask=True)
    second = sam_med2d_terms(to_model(again[:, 0], SIZE), iou, batch.tensors["masks"][:, 0])
    for name, value in terms.items():
        assert float(value.detach()) == pytest.approx(float(first[name].detach() + second[name].mean()) / 2, abs=1e-4)


@pytest.mark.parametrize("prompts", ["points", "box", "none"])
def test_rounds_with_clicks_are_finite(model, prompts: Prompts):
    config = Config(iterations=4, prompts=prompts)
    terms = tuning_losses(model, batch_of(config, TRAINING), config)
    assert all(torch.isfinite(value) for value in terms.values())


def test_points_and_boxes_are_given_as_they_come(model):
    points = (with_box(POINTS[0], 2, 3, 28, 17), *POINTS[1:])
    found = found_with(model, Config(), points)
    assert found.notes["asked_slices"] == [0, 2, 3]
    assert not found.probability[1].any()
    for t in (0, 2, 3):
        np.testing.assert_allclose(found.probability[t], decoded(model, points[t], t), atol=1e-5)
    assert {d.verdict for d in found.decisions} == {"accepted"}
    assert set(found.notes["predicted_iou"]) == {"0", "2", "3"}


def test_a_box_wins_over_the_box_of_points(model):
    points = (with_box(POINTS[0], 2, 3, 28, 17), *POINTS[1:])
    found = found_with(model, Config(prompts="box", margin_px=32), points)  # 4 px of 32
    assert found.notes["asked_slices"] == [0, 2]
    boxes = [None if row.box is None else row.box.tolist() for row in found.points]
    assert boxes == [[2, 3, 28, 17], None, [10, 12, 14, 16], None]
    alone = with_box(SlicePoints.empty(), 10, 12, 14, 16)
    np.testing.assert_allclose(found.probability[2], decoded(model, alone, 2), atol=1e-5)
    verdicts = {d.prompt_id: d.verdict for d in found.decisions}
    assert verdicts == {"a0": "ignored", "a1": "ignored", "c0": "accepted", "c1": "ignored", "d0": "ignored"}


def test_without_prompts_every_slice_is_decoded_and_nothing_is_looked_at(model):
    found = found_with(model, Config(prompts="none"))
    assert found.notes["asked_slices"] == [0, 1, 2, 3]
    for t in range(4):
        np.testing.assert_allclose(found.probability[t], decoded(model, SlicePoints.empty(), t), atol=1e-5)
    empty = found_with(model, Config(prompts="none"), tuple([SlicePoints.empty()] * 4))
    assert empty.probability.tobytes() == found.probability.tobytes()
    assert {d.verdict for d in found.decisions} == {"ignored"}
    single = found_with(model, Config(prompts="none", multimask=False)).probability[1]
    np.testing.assert_allclose(single, decoded(model, SlicePoints.empty(), 1, multimask=False), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "backbone, prompts, epochs", [("sam-med2d-test", "none", 40), ("steadysam-test", "points", 25)]
)
def test_the_blob_is_learnt(toy_dataset, tmp_path, backbone: str, prompts: Prompts, epochs: int):
    tuning = {"epochs": epochs, "learning_rate": 5e-3}
    method = {"name": "sam_med2d", "prompts": prompts, "adapt": "adapters"}
    assert learnt_dice(toy_dataset, tmp_path / "run", backbone, tuning, **method) > 0.8

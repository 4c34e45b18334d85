"""SAM 2 through slices: memory reaches other slices, absence empties them, and tuning computes what segmenting does."""

import numpy as np
import pytest
import torch

from steadysam.backbones.video.build import video_model
from steadysam.methods.video.lanes import Lane, make_plan
from steadysam.methods.video.propagation import frames_of, propagate, unroll
from steadysam.types import SlicePoints


def at(x: float, y: float) -> SlicePoints:
    return SlicePoints(np.array([[x, y]], np.float32), np.ones(1, bool), ("p",))


def plan_of(lane: Lane = "key", **points):
    """Points by slice number, as `t2=at(..)`."""
    return make_plan([points.get(f"t{t}", SlicePoints.empty()) for t in range(5)], lane, 32, 1)


@pytest.fixture(scope="module")
def video():
    torch.manual_seed(0)
    return video_model("sam2-test")


@pytest.fixture(scope="module")
def images():
    return torch.rand(5, 1, 32, 32, generator=torch.Generator().manual_seed(3))


def test_frames_are_resized_and_normalised():
    """Grey 0.5 of 255 less ImageNet's mean over its deviation, in three channels."""
    frames = frames_of(torch.full((2, 1, 32, 32), 0.5), 64)
    assert frames.shape == (2, 3, 64, 64)
    expected = (127.5 - np.array([123.675, 116.28, 103.53])) / np.array([58.395, 57.12, 57.375])
    assert np.allclose(frames[1, :, 7, 9], expected, atol=1e-5)


def test_shapes_scores_and_determinism(video, images):
    logits, scores = propagate(video, images, plan_of(t2=at(9, 20)))
    assert (logits.shape, scores.shape) == ((5, 16, 16), (5,))
    assert torch.isfinite(scores).all()
    again, _ = propagate(video, images, plan_of(t2=at(9, 20)))
    assert torch.equal(logits, again)


def test_no_prompt_is_empty_and_asks_nothing(video, images):
    logits, scores = propagate(video, images, plan_of())
    assert logits.sigmoid().max() == 0
    assert scores.isnan().all()


def test_the_prompt_reaches_other_slices(video, images):
    """Slice 0 and slice 4 have no prompt: what changes there came through the memory."""
    one, _ = propagate(video, images, plan_of(t2=at(4, 5)))
    other, _ = propagate(video, images, plan_of(t2=at(27, 22)))
    for t in (0, 4):
        assert (one[t] - other[t]).abs().max() > 1e-4


def test_so_does_the_image_of_the_key_slice(video, images):
    changed = images.clone()
    changed[2] = 1 - changed[2]
    one, _ = propagate(video, images, plan_of(t2=at(4, 5)))
    other, _ = propagate(video, changed, plan_of(t2=at(4, 5)))
    assert (one[4] - other[4]).abs().max() > 1e-4


def test_prompted_slices_are_answered_by_themselves(video, images):
    """In the lane `all` a slice with a prompt does not depend on another's; one without depends on them."""
    one, _ = propagate(video, images, plan_of("all", t1=at(4, 5), t3=at(9, 9)))
    other, _ = propagate(video, images, plan_of("all", t1=at(27, 22), t3=at(9, 9)))
    assert torch.equal(one[3], other[3])
    assert not torch.equal(one[1], other[1])
    assert (one[2] - other[2]).abs().max() > 1e-4


def test_an_absent_object_empties_every_slice(images):
    torch.manual_seed(0)
    video = video_model("sam2-test")
    with torch.no_grad():
        video.mask_decoder.pred_obj_score_head.proj_out.bias.fill_(-50)
    logits, scores = propagate(video, images, plan_of(t2=at(9, 20)))
    assert (scores < 0).all()
    assert logits.sigmoid().max() == 0


def test_only_the_nearest_prompts_are_remembered(monkeypatch):
    """Slice 0 of 12, prompts on 1, 3 and 11: with a limit of 2 the one on 11 brings no memory, 4 x 4 tokens less."""
    torch.manual_seed(0)
    video, seen = video_model("sam2-test"), []
    real = video.memory_attention.forward
    monkeypatch.setattr(
        video.memory_attention, "forward", lambda **given: seen.append(len(given["memory"])) or real(**given)
    )
    points = [at(9, 9) if t in (1, 3, 11) else SlicePoints.empty() for t in range(12)]
    for limit in (-1, 2):
        video.config.max_cond_frame_num = limit
        propagate(video, torch.rand(12, 1, 32, 32), make_plan(points, "all", 32, 1))
    assert len(seen) == 18  # nine slices without a prompt, twice; slice 0 comes last
    assert seen[8] - seen[17] == 16


@pytest.mark.parametrize("lane", ["key", "all"])
def test_tuning_computes_what_segmenting_does(video, images, lane, monkeypatch):
    """With the memories of prompted slices made alike, the best of `unroll`'s masks are `propagate`'s."""
    real = video._encode_new_memory

    def soft(*args, is_mask_from_pts, **more):
        return real(*args, is_mask_from_pts=False, **more)

    monkeypatch.setattr(video, "_encode_new_memory", soft)
    plan = plan_of(lane, t1=at(9, 20), t3=at(20, 6))
    logits, scores = propagate(video, images, plan)
    with torch.no_grad():
        answers = unroll(video, images, plan)
    assert sorted(answers) == [0, 1, 2, 3, 4]
    for t, answer in answers.items():
        assert torch.equal(answer.score, scores[t])
        assert torch.equal(answer.logits[answer.iou.argmax()], logits[t])


def test_gradients_go_through_the_memory(images):
    """The answer on the last slice teaches the prompted one's mask: through its memory and its pointer."""
    torch.manual_seed(0)
    video = video_model("sam2-test")
    propagate(video, images, plan_of(t0=at(9, 20)))  # in inference mode before: nothing of it may be left
    masks = []

    def keep(module, given, output):
        if output[0].requires_grad:
            output[0].retain_grad()
        masks.append(output[0])

    video.mask_decoder.register_forward_hook(keep)
    answers = unroll(video, images, plan_of(t0=at(9, 20)))
    answers[4].logits.square().mean().backward()
    assert masks[0].grad.abs().max() > 0
    for part in ("mask_decoder", "memory_attention", "memory_encoder"):
        grads = [p.grad for p in video.get_submodule(part).parameters() if p.grad is not None]
        assert max(float(g.abs().max()) for g in grads) > 0, part

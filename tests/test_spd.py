"""SPD's parts: saliency head, Eq. 9 by hand, pairs, the switches of inference."""

import numpy as np
import pytest
import torch

from steadysam.backbones import build_backbone
from steadysam.embeddings import EmbeddingCache
from steadysam.losses import dice_loss, focal_loss, pairwise_consistency
from steadysam.methods import spd
from steadysam.methods.contract import Chance, TrainingCase
from steadysam.methods.spd.config import Config
from steadysam.methods.spd.saliency import SaliencyHead
from steadysam.methods.spd.stages import ConsistencySamples, choose_points, decoder_losses
from steadysam.types import Frame, Preprocess, Prompts, SlicePoints, SliceStack
from toys import click, toy_run_values


def make_case(depth=5, size=32, seed=0, name="case") -> TrainingCase:
    rng = np.random.default_rng(seed)
    images = rng.random((depth, 1, size, size)).astype(np.float32)
    masks = np.zeros((depth, size, size), bool)
    masks[1:4, 8:20, 10:26] = True
    points = []
    for t in range(depth):
        count = int(rng.integers(1, 5))
        xy = (rng.random((count, 2)) * size).astype(np.float32)
        points.append(SlicePoints(xy, np.ones(count, bool), tuple(f"{t}.{i}" for i in range(count))))
    stack = SliceStack(images, Frame(size, size, size), Preprocess(size=size), f"key-{name}-{seed}")
    return TrainingCase(name, stack, masks, tuple(points))


@pytest.fixture
def model():
    return spd.build(Config(adapt="lora"), build_backbone("sam-test", 32, seed=0)).eval()


@pytest.mark.parametrize("size, h, channels", [(512, 32, 256), (96, 12, 64), (32, 4, 16)])
def test_head_shapes(size, h, channels):
    head = SaliencyHead(channels, h, size)
    assert head(torch.zeros(2, channels, h, h)).shape == (2, 1, size, size)


def test_head_of_the_specification_has_about_039_million_parameters():
    count = sum(p.numel() for p in SaliencyHead(256, 32, 512).parameters())
    assert 0.37e6 < count < 0.41e6


def test_head_bias_and_temperature():
    head = SaliencyHead(16, 4, 32, bias_init=-1.735, temperature=2.0)
    assert float(head.last.bias.detach()) == pytest.approx(-1.735)  # pyright: ignore
    hot, cold = SaliencyHead(16, 4, 32), SaliencyHead(16, 4, 32, temperature=4.0)
    cold.load_state_dict(hot.state_dict())
    x = torch.randn(1, 16, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(hot(x), cold(x) * 4, atol=1e-6)


def test_head_refuses_sizes_it_cannot_reach():
    with pytest.raises(ValueError, match="power of two"):
        SaliencyHead(16, 5, 32)


@pytest.mark.parametrize("psc, expected", [("none", 0), ("next", 4), ("prev", 4), ("bi", 8)])
def test_rows_of_pairs(model, psc, expected):
    """Five slices: the ends have one neighbour; nothing wraps around."""
    case = make_case()
    samples = ConsistencySamples(model, [case], EmbeddingCache(), Config(psc=psc))
    batch = samples.batch(range(5), Chance(0, "decoder", 0, training=True))
    assert len(batch.tensors["masks"]) == 5
    assert len(batch.tensors["embeddings"]) == len(batch.points) == 5 + expected
    last = samples.batch([4], Chance(0, "decoder", 0, training=True))
    assert len(last.tensors["pair_of"]) == {"none": 0, "next": 0, "prev": 1, "bi": 1}[psc]


@pytest.mark.parametrize("squared, skip", [(False, False), (True, False), (False, True)])
def test_equation_9_matches_a_hand_sum(model, squared, skip):
    config = Config(psc="next", psc_squared=squared, psc_skip_empty=skip)
    case = make_case()
    samples = ConsistencySamples(model, [case], EmbeddingCache(), config)
    indices = [0, 3, 4]
    batch = samples.batch(indices, Chance(0, "decoder", 0, training=False))
    terms = decoder_losses(model, batch, config)

    def logits(t):
        rows = samples.embeddings[0][0][t : t + 1].float()
        low = model.sam.decode(rows, [samples.points[0][t]])
        return torch.nn.functional.interpolate(low, (32, 32), mode="bilinear", align_corners=False)

    total = torch.zeros(())
    for t in indices:
        mask = torch.from_numpy(case.masks[t][None, None].astype(np.float32))
        total += 0.7 * dice_loss(logits(t).sigmoid(), mask)[0] + 0.3 * focal_loss(logits(t), mask)[0]
        empty_pair = t + 1 < 5 and not case.masks[t : t + 2].any()
        if t + 1 < 5 and not (skip and empty_pair):
            total += 0.1 * pairwise_consistency(logits(t).sigmoid(), logits(t + 1).sigmoid(), squared=squared)[0]
    assert torch.allclose(torch.stack(list(terms.values())).sum(), total / 3, atol=1e-5)


def test_both_slices_of_a_pair_share_the_stored_variant(model):
    case = make_case()
    samples = ConsistencySamples(model, [case], EmbeddingCache(), Config(variants=3))
    assert len(samples.moves[0]) == 3
    seen = set()
    for epoch in range(12):
        batch = samples.batch([1], Chance(0, "decoder", epoch, training=True))
        rows = batch.tensors["embeddings"].half()
        (own,) = [v for v in range(3) if torch.equal(rows[0], samples.embeddings[0][v][1])]
        (other,) = [v for v in range(3) if torch.equal(rows[1], samples.embeddings[0][v][2])]
        assert own == other
        seen.add(own)
    assert len(seen) > 1


def test_prompts_are_redrawn_when_asked(model):
    fixed = make_case()
    drawn = []

    def redraw(generator):
        drawn.append(float(generator.random()))
        return fixed.points

    case = TrainingCase(fixed.name, fixed.stack, fixed.masks, fixed.points, redraw)
    for config, times in ((Config(redraw=False), 0), (Config(redraw=True), 2)):
        drawn.clear()
        samples = ConsistencySamples(model, [case], EmbeddingCache(), config)
        for epoch in (0, 1):
            samples.batch([0, 1], Chance(0, "decoder", epoch, training=True))
        samples.batch([0], Chance(0, "decoder", 0, training=False))  # validation keeps the frozen prompts
        assert len(drawn) == len(set(drawn)) == times


def test_choices_of_prompts():
    case = make_case()
    saliency = np.zeros((5, 32, 32), np.float32)
    raw = choose_points(case.points, saliency, Config(prompts="raw")).points
    assert sum(map(len, raw)) == sum(map(len, case.points))
    assert sum(map(len, choose_points(case.points, saliency, Config()).points)) == 0
    wide = choose_points(case.points, saliency, Config(prompts="neighbours", n=1)).points
    assert len(wide[2]) == sum(len(case.points[t]) for t in (1, 2, 3))


def test_empty_consensus_gives_exactly_one_not_a_point_token(model):
    """spd.md section 8, check 13."""
    ((rows, sparse, _),) = model.sam.embed([SlicePoints.empty()])
    assert rows == [0]
    assert sparse.shape[1] == 1
    assert torch.equal(sparse[0, 0], model.sam.prompt_encoder.not_a_point_embed.weight[0])


def test_segment_is_deterministic_and_honours_its_switches(model):
    case = make_case()
    config = Config(tau=1.0)  # nothing is that salient: every consensus is empty
    first = spd.segment(model, config, case.stack, case.points, EmbeddingCache())
    again = spd.segment(model, config, case.stack, case.points, EmbeddingCache())
    assert np.array_equal(first.probability, again.probability)
    assert first.probability.shape == (5, 32, 32)
    assert first.notes["empty_consensus_slices"] == [0, 1, 2, 3, 4]
    blank = spd.segment(model, Config(tau=1.0, empty="empty_mask"), case.stack, case.points, EmbeddingCache())
    assert not blank.probability.any()
    head = spd.segment(model, Config(output="saliency"), case.stack, case.points, EmbeddingCache())
    assert head.saliency is not None
    assert np.array_equal(head.probability, head.saliency)


def test_a_volume_of_one_slice(model):
    case = make_case(depth=1)
    found = spd.segment(model, Config(), case.stack, case.points, EmbeddingCache())
    assert found.probability.shape == (1, 32, 32)


def test_the_head_alone_is_a_function_of_stage_1_only(toy_dataset, tmp_path):
    """`output = saliency` without any stage 2: the same map as with one, whatever the decoder and the prompts are."""
    from steadysam.config import make_config
    from steadysam.data.volumes import read_volume
    from steadysam.runs import load_run
    from steadysam.segmenting import segment
    from steadysam.training import train

    volume = read_volume(toy_dataset / "imagesTs" / "toy_5_0000.nii.gz", slice_axis=2)
    runs = []
    for epochs in (0, 1):
        stages = {f"stage{k}": {"epochs": e, "batch_size": 5, "learning_rate": 5e-3} for k, e in ((1, 2), (2, epochs))}
        values = toy_run_values(toy_dataset, output="saliency", **stages)
        runs.append(load_run(train(make_config(values), tmp_path / str(epochs)), "cpu"))
    head, both = runs
    assert head.record["stages"]["decoder"]["epochs"] == 0
    assert head.record["stages"]["saliency"]["epochs"] == 2
    decoders = [run.model.backbone.mask_decoder.state_dict() for run in runs]
    fresh = build_backbone("sam-test", 32, seed=0).mask_decoder.state_dict()
    assert all(torch.equal(decoders[0][name], tensor) for name, tensor in fresh.items()), "stage 2 trained nothing"
    assert not all(torch.equal(decoders[1][name], tensor) for name, tensor in fresh.items())

    prompts = [Prompts((click("p", xy, 1, volume.grid),)) for xy in ((3, 4), (12, 15))]
    found = [segment(run, volume, given) for run, given in ((head, prompts[0]), (head, prompts[1]), (both, prompts[0]))]
    assert len({result.probability.tobytes() for result in found}) == 1
    assert found[0].probability.std() > 0

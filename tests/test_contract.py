"""The contracts: every method of `METHODS` and every from-scratch backbone of `BACKBONES`, in turn."""

from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from conftest import GRIDS, make_affine
from steadysam.backbones import BACKBONES, build_backbone
from steadysam.backbones.checkpoints import read_safetensors
from steadysam.checkpoints import load_into, save_tensors
from steadysam.cli.info import collect, methods
from steadysam.data.slices import fit_masks, prepare_stack
from steadysam.embeddings import EmbeddingCache
from steadysam.errors import ConfigError
from steadysam.methods import METHODS
from steadysam.methods.contract import Chance, FrozenConfig, Stage, TrainingCase, fixed_by_training, traits_of
from steadysam.runs import load_run
from steadysam.trainable import select_trainable
from steadysam.types import Grid, Preprocess, Segmentation, SlicePoints, Volume

SIZE = 32
SMALL = ["sam-test", "steadysam-test"]  # one of each kind
SCRATCH = [name for name, spec in BACKBONES.items() if spec.from_scratch]


# everywhere else the prompt encoder is never trained
TRAIN_PROMPT_ENCODER = ("sam_med2d", "ldfsam")
PAIRS = [(name, kind) for name, module in METHODS.items() for kind in (SMALL if traits_of(module).backbone else [""])]


@pytest.fixture(params=PAIRS, ids="-".join)
def pair(request):
    """Every row of the table with the smallest backbone of either kind, or with none where the method has its own."""
    return request.param


@pytest.fixture
def method(pair):
    return METHODS[pair[0]]


@pytest.fixture
def small(pair):
    return pair[1]


def build(method, small, seed=0):
    """The method's network with its default settings on a small backbone."""
    torch.manual_seed(seed)
    return method.build(method.Config(), build_backbone(small, SIZE, seed=seed) if small else None).eval()


def make_stack(grid: Grid, fit: Literal["stretch", "pad"] = "stretch", seed=0, method=None):
    """A stack of noise; with a coarse mask, empty on one slice, for methods that refine one."""
    rng = np.random.default_rng(seed)
    volume = Volume(rng.normal(100, 30, grid.shape).astype(np.float32), grid)
    stack = prepare_stack(volume, Preprocess(size=SIZE, fit=fit, norm="spd"))
    if method is None or not traits_of(method).coarse:
        return stack
    coarse = np.zeros((stack.depth, SIZE, SIZE), bool)
    coarse[: max(1, stack.depth - 1), 8:20, 6:15] = True
    return replace(stack, coarse=coarse)


def make_points(counts, seed=1) -> tuple[SlicePoints, ...]:
    """`counts[t]` points on slice t, the last of several negative, in model pixels."""
    rng = np.random.default_rng(seed)
    slices = []
    for t, count in enumerate(counts):
        positive = np.arange(count) < max(1, count - 1)
        xy = rng.uniform(0, SIZE - 1, (count, 2)).astype(np.float32)
        slices.append(SlicePoints(xy, positive, tuple(f"p{t}.{i}" for i in range(count))))
    return tuple(slices)


def make_case(grid: Grid, counts, seed=0) -> TrainingCase:
    stack = make_stack(grid, seed=seed)
    mask = np.zeros(grid.shape, bool)
    mask[3:7, 4:9, :] = True
    return TrainingCase(f"case{seed}", stack, fit_masks(mask, grid, stack.frame), make_points(counts, seed))


def run_segment(method, model, stack, points) -> Segmentation:
    return method.segment(model, method.Config(), stack, points, EmbeddingCache())


def check_segmentation(found: Segmentation, stack, points, method) -> None:
    """What every method promises about what it returns; decisions only of methods that look at points."""
    assert found.probability.shape == (stack.depth, SIZE, SIZE)
    assert found.probability.dtype == np.float32
    assert np.isfinite(found.probability).all()
    assert found.probability.min() >= 0
    assert found.probability.max() <= 1
    if found.saliency is not None:
        assert found.saliency.shape == found.probability.shape
    given = {name for here in points for name in here.ids}
    if not traits_of(method).points:
        assert found.decisions == ()
        return
    assert {name for here in found.points for name in here.ids} <= given
    assert {decision.prompt_id for decision in found.decisions} <= given
    own = [decision for decision in found.decisions if decision.slice == decision.from_slice]
    assert sorted(decision.prompt_id for decision in own) == sorted(given), "one verdict on each prompt"
    for decision in own:
        assert decision.prompt_id in points[decision.slice].ids
        assert decision.reason
    for decision in found.decisions:
        assert 0 <= decision.slice < stack.depth
        source = points[decision.from_slice]
        assert decision.xy == tuple(source.xy[source.ids.index(decision.prompt_id)].tolist())


def test_config_is_frozen_and_refuses_unknown_keys(method):
    config = method.Config()
    assert isinstance(config, FrozenConfig)
    with pytest.raises(ValidationError, match="no_such_setting"):
        method.Config(no_such_setting=1)
    name = next(iter(method.Config.model_fields))
    with pytest.raises(ValidationError, match="frozen"):
        setattr(config, name, getattr(config, name))
    assert method.Config(**config.model_dump(mode="json")) == config


def test_build_gives_a_network_that_keeps_its_backbone(method, small):
    backbone = build_backbone(small, SIZE, seed=0) if small else None
    model = method.build(method.Config(), backbone)
    assert isinstance(model, nn.Module)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    if backbone is not None:
        assert len(dict(model.named_parameters())) >= len(list(backbone.parameters()))


def test_the_same_seed_builds_the_same_network(method, small):
    a, b = build(method, small, seed=3).state_dict(), build(method, small, seed=3).state_dict()
    assert list(a) == list(b)
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_stages_name_parts_that_exist(pair, method, small):
    model = build(method, small)
    found = method.stages(method.Config())
    assert len({stage.name for stage in found}) == len(found)
    for stage in found:
        assert isinstance(stage, Stage)
        chosen = select_trainable(model, stage)
        assert chosen
        if small:
            assert len(chosen) < len(dict(model.named_parameters())), "the prompt encoder is never trained"
        if pair[0] not in TRAIN_PROMPT_ENCODER:
            assert not any("prompt_encoder" in name for name in chosen)


def test_one_step_of_every_stage_keeps_all_numbers_finite(method, small):
    """Odd point counts, an empty slice and two cases of different depth in one batch."""
    model = build(method, small)
    cases = [
        make_case(GRIDS["oblique"], (0, 3, 1, 2, 1)),
        make_case(Grid((10, 11, 2), make_affine((1, 1.3, 5))), (2, 0), 1),
    ]
    for stage in method.stages(method.Config()):
        chosen = select_trainable(model, stage)
        samples = stage.samples(model, cases, EmbeddingCache())
        assert len(samples) == 7
        batch = samples.batch([0, 6, 3], Chance(0, stage.name, 0, training=True))
        assert len(batch) == 3
        terms = stage.losses(model, batch)
        assert terms
        loss = torch.stack(list(terms.values())).sum()
        assert torch.isfinite(loss), terms
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        optimizer = torch.optim.Adam(chosen.values(), lr=1e-3)
        loss.backward()
        grads = [p.grad for p in chosen.values() if p.grad is not None]
        assert any(g.abs().max() > 0 for g in grads)
        assert all(torch.isfinite(g).all() for g in grads)
        optimizer.step()
        after = model.state_dict()
        assert all(torch.isfinite(tensor).all() for tensor in after.values())
        moved = {name for name in after if not torch.equal(after[name], before[name])}
        assert moved
        assert moved <= set(chosen)
        again = stage.losses(model, batch)
        assert torch.isfinite(torch.stack(list(again.values())).sum()), again


def test_material_is_a_function_of_chance(method, small):
    model, cases = build(method, small), [make_case(GRIDS["plain"], (1, 2, 1, 0, 1))]
    for stage in method.stages(method.Config()):
        samples = stage.samples(model, cases, EmbeddingCache())
        chance = Chance(5, stage.name, 2, training=True)
        a, b = samples.batch([0, 3], chance), samples.batch([0, 3], chance)
        assert all(torch.equal(a.tensors[name], b.tensors[name]) for name in a.tensors)
        assert all(np.array_equal(p.xy, q.xy) for p, q in zip(a.points, b.points, strict=True))


@pytest.mark.parametrize("fit", ["stretch", "pad"])
def test_segment_on_every_frame(method, small, grid, fit):
    """Non-square, oblique, flipped, sagittal, coronal, one slice; a slice without points among others."""
    model, stack = build(method, small), make_stack(grid, fit, method=method)
    counts = [(0, 3, 1, 2)[t % 4] for t in range(grid.depth)]
    points = make_points(counts if grid.depth > 1 else [2])
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = run_segment(method, model, stack, points)
    check_segmentation(found, stack, points, method)
    again = run_segment(method, model, stack, points)
    assert found.probability.tobytes() == again.probability.tobytes()
    assert found.decisions == again.decisions
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


def test_segment_without_a_single_point(method, small):
    """All slices empty: whatever the method does then, it returns numbers and no decisions."""
    model, stack = build(method, small), make_stack(GRIDS["plain"], method=method)
    points = make_points([0] * stack.depth)
    found = run_segment(method, model, stack, points)
    check_segmentation(found, stack, points, method)
    assert found.decisions == ()


def test_segment_of_a_cached_stack_is_the_same(method, small, tmp_path):
    """Embeddings from memory, from a cold disk cache and from a warm one give the same bytes."""
    model, stack = build(method, small), make_stack(GRIDS["oblique"], method=method)
    points, config = make_points([1, 0, 2, 1, 3]), method.Config()
    cache = EmbeddingCache(tmp_path)
    results = [method.segment(model, config, stack, points, c) for c in (EmbeddingCache(), cache, cache)]
    if small:
        assert (cache.misses, cache.hits) == (1, 1)
    assert len({found.probability.tobytes() for found in results}) == 1


def test_weights_survive_a_file(method, small, tmp_path):
    """A network of other random weights, filled from the file, segments to the same bytes."""
    model, other = build(method, small, seed=0), build(method, small, seed=1)
    stack, points = make_stack(GRIDS["sagittal"], method=method), make_points([2, 1, 0, 1, 1])
    expected = run_segment(method, model, stack, points).probability
    if np.ptp(expected) > 0:  # a fresh network may say the same everywhere, whatever its weights
        assert run_segment(method, other, stack, points).probability.tobytes() != expected.tobytes()
    path = tmp_path / "weights.safetensors"
    save_tensors(path, model.state_dict())
    load_into(other, read_safetensors(path), file=path)
    assert run_segment(method, other, stack, points).probability.tobytes() == expected.tobytes()


@pytest.mark.parametrize("name", SCRATCH)
def test_backbone_encodes(name):
    backbone = build_backbone(name, 64, seed=0)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    embeddings = backbone.encode(images)
    h = backbone.embedding_size
    assert embeddings.shape == (2, backbone.embedding_channels, h, h)
    embeddings.square().mean().backward()
    assert images.grad is not None
    assert images.grad.abs().max() > 0


@pytest.mark.parametrize("name", SCRATCH)
def test_backbone_embeds_every_row_once(name):
    backbone = build_backbone(name, 64, seed=0)
    h, channels = backbone.embedding_size, backbone.embedding_channels
    width = backbone.architecture.token_channels if BACKBONES[name].own else channels
    points = make_points([2, 0, 1, 2])
    groups = backbone.embed(points)
    assert sorted(row for rows, _, _ in groups for row in rows) == [0, 1, 2, 3]
    for rows, sparse, dense in groups:
        assert len({len(points[row]) for row in rows}) == 1, "no padding token inside a group"
        assert sparse.shape[0] == len(rows)
        assert sparse.shape[2] == width
        assert dense.shape == (len(rows), channels, h, h)


@pytest.mark.parametrize("name", SCRATCH)
@torch.no_grad()
def test_backbone_decodes_ragged_rows_as_one_by_one(name):
    backbone = build_backbone(name, 64, seed=0)
    h, channels = backbone.embedding_size, backbone.embedding_channels
    embeddings = torch.randn(4, channels, h, h, generator=torch.Generator().manual_seed(1))
    points = make_points([2, 0, 1, 5])
    together = backbone.decode(embeddings, points)
    assert together.shape == (4, 1, backbone.mask_size, backbone.mask_size)
    single = torch.cat([backbone.decode(embeddings[t : t + 1], points[t : t + 1]) for t in range(4)])
    assert (together - single).abs().max() <= 1e-5
    assert (together[0] - together[2]).abs().max() > 0


def test_info_lists_exactly_what_the_tables_hold():
    assert set(methods()) == set(METHODS)
    content = collect()
    assert set(content["methods"]) == set(METHODS)
    assert set(content["backbones"]) == set(BACKBONES)
    assert all(content["methods"].values()), "every method says in one line what it is"
    assert all(content["backbones"].values())


@pytest.mark.parametrize("name", list(METHODS))
def test_what_training_fixes_is_a_setting_and_stages_are(name):
    kind = METHODS[name].Config
    assert set(kind.FIXED) <= set(kind.model_fields)
    stages = [key for key, f in kind.model_fields.items() if getattr(f.annotation, "TRAINING_ONLY", False)]
    own = [*dict.fromkeys((*stages, *kind.FIXED))]
    assert fixed_by_training(kind, dict.fromkeys([*own, "unknown"])) == own


def test_a_finished_run_refuses_what_training_has_fixed(toy_run):
    for settings, seen in (
        ({"psc": "none"}, "psc"),
        ({"stage2": {"epochs": 9}}, "stage2"),
        ({"augment": {}}, "augment"),
    ):
        with pytest.raises(ConfigError, match=rf"SETTING_FIXED[\s\S]*seen {seen}"):
            load_run(toy_run, "cpu", **settings)
    assert load_run(toy_run, "cpu", tau=0.3).settings.model_dump()["tau"] == 0.3
    detector = {"detector": {"image_size": 64, "confidence": 0.1}}
    assert fixed_by_training(METHODS["ldfsam"].Config, detector) == ["detector.image_size"]

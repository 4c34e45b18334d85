"""Our own convolutional network: shapes, groups of rows, prompts, sizes, seeds, adapters, and its packaged weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from steadysam.backbones import BACKBONES, build_backbone
from steadysam.backbones.backbone import Backbone
from steadysam.backbones.checkpoints import read_safetensors
from steadysam.backbones.conv.blocks import ResidualBlock
from steadysam.backbones.conv.decoder import PromptPooling
from steadysam.backbones.conv.model import ConvBackbone
from steadysam.backbones.conv.positions import FourierPositions
from steadysam.backbones.conv.prompts import _filled, _prior, _spots
from steadysam.backbones.fingerprint import fingerprint
from steadysam.backbones.lora import inject_lora, lora_disabled, lora_state, merge_lora
from steadysam.errors import CheckpointError, ConfigError
from steadysam.files import sha256_file
from steadysam.pretraining.export import export
from steadysam.pretraining.score import held_out_score
from steadysam.synthetic.config import SceneConfig
from steadysam.types import SlicePoints

NAME, SIZE = "steadysam-test", 64
TINY = BACKBONES["steadysam-tiny"]


def some_points(count: int, seed: int = 0, size: int = SIZE) -> SlicePoints:
    rng = np.random.default_rng(seed)
    xy = rng.uniform(0, size - 1, (count, 2)).astype(np.float32)
    return SlicePoints(xy, rng.random(count) < 0.7, tuple(f"p{n}" for n in range(count)))


def boxed(points: SlicePoints, *box: float) -> SlicePoints:
    return replace(points, box=np.array(box, np.float32))


def images(count: int, size: int = SIZE) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(count))


def ramp(size: int = SIZE) -> torch.Tensor:
    """(1, 3, size, size): grows along x in the first channel, along y in the second, along both in the third."""
    steps = torch.arange(size) / size
    x, y = steps.expand(size, size), steps[:, None].expand(size, size)
    return torch.stack([x, y, (x + y) / 2])[None] * 2 - 1


def largest(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max())


@pytest.fixture(scope="module")
def backbone() -> ConvBackbone:
    """A network whose answers differ by more than rounding."""
    return build_backbone(NAME, SIZE, seed=3)


@pytest.mark.parametrize("size", [32, 64, 96])
@torch.no_grad()
def test_shapes_and_contract(size: int):
    model: Backbone = build_backbone(NAME, size)
    h = size // 4
    assert (model.image_size, model.embedding_size, model.mask_size, model.embedding_channels) == (size, h, 2 * h, 16)
    embeddings = model.encode(images(3, size))
    assert embeddings.shape == (3, 16, h, h)
    points = [some_points(2), boxed(some_points(0), 3, 4, 20, 22), some_points(2, 1)]
    groups = model.embed(points)
    assert [(rows, tuple(sparse.shape), tuple(dense.shape)) for rows, sparse, dense in groups] == [
        ([1], (1, 2, 32), (1, 16, h, h)),  # the two corners of the box
        ([0, 2], (2, 3, 32), (2, 16, h, h)),  # two points and the token that says: no box
    ]
    assert model.decode(embeddings, points).shape == (3, 1, 2 * h, 2 * h)
    logits, iou = model.decode_full(embeddings, points)
    assert logits.shape == (3, 3, 2 * h, 2 * h)
    assert iou.shape == (3, 3)
    single, one = model.decode_full(embeddings, points, multimask=False)
    assert single.shape == (3, 1, 2 * h, 2 * h)
    assert one.shape == (3, 1)
    assert all(torch.isfinite(t).all() for t in (embeddings, logits, iou, single))


def test_sizes_that_are_no_multiple_of_the_patch_are_refused():
    with pytest.raises(ConfigError, match="BACKBONE_SIZE"):
        build_backbone(NAME, 66)


def test_parameters_have_the_promised_names(backbone: ConvBackbone):
    assert {name.split(".")[0] for name, _ in backbone.named_parameters()} == {
        "image_encoder",
        "prompt_encoder",
        "mask_decoder",
    }
    assert [name for name, _ in backbone.named_buffers()] == ["shared_image_embedding.positional_embedding"]


@pytest.mark.parametrize("multimask", [False, True])
@torch.no_grad()
def test_a_row_depends_on_its_own_prompts_only(backbone: ConvBackbone, multimask: bool):
    points = [some_points(n, n) for n in (2, 0, 1, 5, 1)]
    points[2], points[1] = boxed(points[2], 5, 6, 40, 30), boxed(points[1], 1, 2, 30, 60)
    embeddings = backbone.encode(images(5))
    masks = torch.randn(5, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    for prior in (None, masks):
        logits, iou = backbone.decode_full(embeddings, points, masks=prior, multimask=multimask)
        assert logits.std() > 1e-2, "there is something to compare"
        for row in range(5):
            own = None if prior is None else prior[row : row + 1]
            alone = backbone.decode_full(embeddings[row : row + 1], [points[row]], masks=own, multimask=multimask)
            assert largest(alone[0][0], logits[row]) <= 1e-5
            assert largest(alone[1][0], iou[row]) <= 1e-5
        order = [3, 1, 4, 0, 2]
        turned = None if prior is None else prior[order]
        again = backbone.decode_full(embeddings[order], [points[o] for o in order], masks=turned, multimask=multimask)
        assert largest(again[0], logits[order]) <= 1e-5
        assert largest(again[1], iou[order]) <= 1e-5


@torch.no_grad()
def test_an_image_is_encoded_the_same_alone_and_in_company(backbone: ConvBackbone):
    together = backbone.encode(images(4))
    assert largest(backbone.encode(images(4)[2:3])[0], together[2]) <= 1e-5
    assert largest(together[0], together[1]) > 1e-2


@torch.no_grad()
def test_every_kind_of_prompt_changes_the_answer(backbone: ConvBackbone):
    embeddings = backbone.encode(images(1))
    point = SlicePoints(np.array([[20, 30]], np.float32), np.array([True]), ("a",))
    swapped = replace(point, xy=point.xy[:, ::-1].copy())
    negative = replace(point, positive=np.array([False]))
    rough = torch.full((1, 1, 32, 32), -10.0)
    rough[..., 8:20, 4:12] = 10
    asked = [SlicePoints.empty(), point, swapped, negative, boxed(point, 4, 8, 40, 50), boxed(point, 4, 8, 40, 30)]
    asked.append(boxed(SlicePoints.empty(), 4, 8, 40, 50))
    answers = [backbone.decode(embeddings, [row]) for row in asked]
    answers.append(backbone.decode_full(embeddings, [point], masks=rough, multimask=False)[0])
    answers.append(backbone.decode_full(embeddings, [point], masks=rough.mT, multimask=False)[0])
    answers.append(backbone.decode_full(embeddings, [SlicePoints.empty()], masks=rough, multimask=False)[0])
    for i, a in enumerate(answers):
        assert torch.isfinite(a).all()
        for j, b in enumerate(answers[:i]):
            assert largest(a, b) > 1e-3, (i, j)


@torch.no_grad()
def test_the_order_of_points_does_not_matter(backbone: ConvBackbone):
    points = some_points(4, 7)
    turned = SlicePoints(points.xy[::-1].copy(), points.positive[::-1].copy(), points.ids[::-1])
    embeddings = backbone.encode(images(1))
    assert largest(backbone.decode(embeddings, [points]), backbone.decode(embeddings, [turned])) <= 1e-5


def test_as_many_embeddings_as_rows(backbone: ConvBackbone):
    with pytest.raises(ValueError, match="2 embeddings but 1 rows"):
        backbone.decode(torch.zeros(2, 16, 16, 16), [SlicePoints.empty()])


def test_spots_lie_where_the_point_is():
    """On 8 cells a place of 5.5 / 8 is the centre of cell 5: 1 there, exp(-1/2) one cell on for a deviation of 1."""
    unit = torch.tensor([[[5.5, 2.5], [0.5, 0.5]]]) / 8
    spots = _spots(unit, torch.tensor([[True, False]]), 8)
    assert spots.shape == (1, 4, 8, 8)
    near_positive, near_negative, wide_positive, _ = spots[0]
    assert near_positive[2, 5] == near_negative[0, 0] == 1
    assert float(near_positive[2, 6]) == pytest.approx(np.exp(-0.5))
    assert float(wide_positive[2, 6]) == pytest.approx(np.exp(-0.5 / 16))
    assert near_negative[2, 5] < 1e-5


def test_a_box_fills_the_cells_that_it_covers():
    """Pixels 2..9 of 16 on 4 cells are 0.625 to 2.375 cells: 0.375, 1, 0.375 of cells 0, 1, 2 (2.5 / 4 .. 9.5 / 4)."""
    filled = _filled(torch.tensor([[2.0, 4.0, 9.0, 11.0]]), 1, 16, 4, torch.device("cpu"))
    across = torch.tensor([0.375, 1, 0.375, 0])
    down = torch.tensor([0, 0.875, 0.875, 0])
    torch.testing.assert_close(filled[0, 0], down[:, None] * across)
    assert _filled(None, 2, 16, 4, torch.device("cpu")).shape == (2, 1, 4, 4)


def test_a_mask_prompt_says_that_it_is_there():
    rough = torch.full((1, 1, 8, 8), 4.0)
    prior = _prior(rough, torch.zeros(1, 0, 2), 4)
    assert float(prior[0, 0, 2, 2]) == pytest.approx(np.tanh(1))
    assert (prior[0, 1] == 1).all()
    assert (_prior(None, torch.zeros(1, 0, 2), 4) == 0).all()


@torch.no_grad()
def test_the_same_weights_serve_another_size():
    small, large = build_backbone(NAME, 32, seed=5), build_backbone(NAME, 96, seed=5)
    assert fingerprint(small) == fingerprint(large)
    points = [some_points(2, 1, 96)]
    expected = large.decode(large.encode(images(1, 96)), points)
    small.resize(96)
    assert torch.equal(small.decode(small.encode(images(1, 96)), points), expected)
    assert (small.image_size, small.embedding_size, small.mask_size) == (96, 24, 48)
    small.resize(32)
    assert largest(small.decode(small.encode(images(1, 32)), points), expected[..., :16, :16]) > 1e-3


def test_positions_follow_the_formula_of_sam():
    from transformers import SamVisionConfig
    from transformers.models.sam.modeling_sam import SamPositionalEmbedding

    config = SamVisionConfig(num_pos_feats=16)
    theirs, ours = SamPositionalEmbedding(config), FourierPositions(32)
    ours.positional_embedding.copy_(theirs.positional_embedding)
    places = torch.rand(5, 7, 2, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours(places), theirs(places), atol=1e-5, rtol=0)
    grid = ours.of_grid(3, 4)
    assert grid.shape == (1, 32, 3, 4)
    centre = torch.tensor([[2.5 / 4, 1.5 / 3]])  # of the cell in row 1, column 2
    torch.testing.assert_close(grid[0, :, 1, 2], theirs(centre)[0], atol=1e-5, rtol=0)


@torch.no_grad()
def test_positions_cover_the_coarsest_level_of_any_size():
    """Embeddings of 15 cells become 8, then 4 cells by two strided convolutions."""
    model = build_backbone(NAME, 60)
    assert model.image_positions().shape == (1, 32, 4, 4)
    assert model.decode(model.encode(images(1, 60)), [some_points(1)]).shape == (1, 1, 30, 30)


def test_random_weights_depend_on_the_seed_only():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = fingerprint(build_backbone(NAME, SIZE, seed=2))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(9)
    assert fingerprint(build_backbone(NAME, SIZE, seed=2)) == first
    assert fingerprint(build_backbone(NAME, SIZE, seed=3)) != first


def test_gradients_reach_all_parts():
    model = build_backbone(NAME, SIZE)
    points = [boxed(some_points(2), 5, 5, 30, 40)]
    logits, iou = model.decode_full(model.encode(images(1)), points, masks=torch.ones(1, 1, 32, 32))
    (logits.square().mean() + iou.square().mean()).backward()
    for part in (model.image_encoder.stem1, model.prompt_encoder.dense1, model.mask_decoder.iou[0]):
        assert part.weight.grad.abs().max() > 0


def test_adapters_wrap_the_convolutions_and_start_as_identity():
    model = build_backbone(NAME, SIZE, seed=1)
    before = model.encode(images(2))
    inject_lora(model)
    names = {name for name, p in model.named_parameters() if p.requires_grad}
    assert names == set(lora_state(model))
    layers = {name.split(".lora_")[0] for name in names}
    # three levels of one block and two blocks on the way up, two convolutions each
    assert len(layers) == 2 * (3 + 2)
    assert {layer.rsplit(".", 1)[1] for layer in layers} == {"conv1", "conv2"}
    assert all(layer.startswith("image_encoder.") for layer in layers)
    assert torch.equal(model.encode(images(2)), before)


@torch.no_grad()
def test_adapters_merge_and_switch_off():
    model = inject_lora(build_backbone(NAME, SIZE, seed=1))
    base = model.encode(images(2))
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    adapted = model.encode(images(2))
    assert largest(adapted, base) > 1e-2
    with lora_disabled(model):
        assert torch.equal(model.encode(images(2)), base)
    merge_lora(model)
    assert largest(model.encode(images(2)), adapted) <= 1e-5
    assert list(model.state_dict()) == list(build_backbone(NAME, SIZE).state_dict())


@torch.no_grad()
def test_golden_numbers():
    """Written down once: a change of the architecture, of the seed's use or of a formula shows here."""
    model = build_backbone(NAME, SIZE, seed=0)
    embeddings = model.encode(ramp())
    point = SlicePoints(np.array([[20, 30]], np.float32), np.array([True]), ("a",))
    logits, iou = model.decode_full(embeddings, [point])
    assert embeddings[0, :3, 8, 5].tolist() == pytest.approx([0.04606, 0.18933, -0.53742], abs=1e-4)
    assert logits[0, :, 16, 10].tolist() == pytest.approx([-5e-05, 0.00515, 0.00896], abs=1e-4)
    assert iou[0].tolist() == pytest.approx([-0.01211, 0.06637, 0.11898], abs=1e-4)


def test_activations_do_not_grow_from_level_to_level():
    """Without norms before the transitions each level multiplied what the one before had summed up, until the embedding
    was the same for all images (benchmarks/LOG.md, 2026-11-24)."""
    encoder = build_backbone("steadysam-tiny-scratch", 64, seed=0).image_encoder
    with torch.no_grad():
        for block in encoder.modules():  # as after some training: every block adds as much as it was given
            if isinstance(block, ResidualBlock):
                torch.nn.init.orthogonal_(block.conv2.weight, gain=10)
        x = encoder.levels[0](encoder.stem2(encoder.stem1(images(2))))
        deviations = [float(x.std())]
        for step, level in zip(encoder.downs, list(encoder.levels)[1:], strict=True):
            x = level(step(x))
            deviations.append(float(x.std()))
    assert max(deviations) < 10 * min(deviations)


def test_prompt_pooling_finds_what_looks_as_it_does_at_the_prompt():
    """Two kinds of cells; a positive point on one of them, a negative one on the other, no box and no mask."""
    pooling, prompts = PromptPooling(16), build_backbone(NAME, SIZE, seed=0).prompt_encoder
    embeddings = torch.zeros(1, 16, 16, 16)
    embeddings[:, 0, :, :8], embeddings[:, 1, :, 8:] = 1, 1
    points = torch.tensor([[[10.0, 32.0], [54.0, 32.0]]])  # cells 2 and 13
    with torch.no_grad():
        prompts.dense2.weight.zero_()
        prompts.dense2.bias.zero_()
        _, dense = prompts(points, torch.tensor([[True, False]]), None, None, SIZE, 16)
        likeness = pooling(embeddings, dense)[0]
    assert likeness[0, :, :8].min() > 0.9
    assert likeness[0, :, 8:].max() < 0.4
    assert likeness[1, :, 8:].min() > 0.9
    assert likeness[1, :, :8].max() < 0.4


def test_exported_weights_build_a_network_by_their_path(tmp_path):
    """Half precision on disk, float32 in memory; the architecture comes from the file's metadata."""
    model = build_backbone(NAME, SIZE, seed=4)
    average = {name: p.detach() + 1 for name, p in model.named_parameters() if name.startswith("image_encoder")}
    digest = export(model, average, tmp_path / "model.safetensors")
    assert digest == sha256_file(tmp_path / "model.safetensors")
    assert digest == export(model, average, tmp_path / "again.safetensors")
    stored = read_safetensors(tmp_path / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    for path in (tmp_path, tmp_path / "model.safetensors"):
        loaded = build_backbone(path, 96)
        assert isinstance(loaded, ConvBackbone)
        assert (loaded.architecture, loaded.image_size) == (BACKBONES[NAME].architecture, 96)
        assert not loaded.training
        for name, value in loaded.state_dict().items():
            assert value.dtype == torch.float32
            expected = average.get(name, model.state_dict()[name]).to(torch.float16).float()
            assert torch.equal(value, expected), name
    assert build_backbone(tmp_path, 32, weights=False).architecture == BACKBONES[NAME].architecture


@pytest.mark.parametrize(
    "text",
    [
        *("{}", "[1]", "no json", '{"widths": [16]}', '{"widths": [16], "depths": [1], "sort": 1}'),
        *('{"widths": 16, "depths": 1}', '{"widths": [16], "depths": [1], "channels": 12}'),  # make no network
    ],
)
def test_a_spoilt_architecture_is_refused(tmp_path, text: str):
    file = tmp_path / "model.safetensors"
    save_file(build_backbone(NAME, SIZE).state_dict(), file, metadata={"architecture": text})
    with pytest.raises(CheckpointError) as error:
        build_backbone(file, SIZE)
    assert error.value.code == "CKPT_CONFIG"


@pytest.mark.skipif(TINY.sha256 is None, reason="the packaged weights are not there yet: the table names no hash")
def test_the_packaged_weights():
    file = TINY.packaged_file
    assert sha256_file(file) == TINY.sha256
    assert file.stat().st_size <= 20_000_000
    assert {tensor.dtype for tensor in read_safetensors(file).values()} == {torch.float16}
    model = build_backbone("steadysam-tiny", 128)
    assert isinstance(model, ConvBackbone)
    assert sum(p.numel() for p in model.parameters()) == TINY.parameters
    with torch.no_grad():
        assert torch.isfinite(model.encode(images(1, 128))).all()


@pytest.mark.skipif(TINY.sha256 is None, reason="the packaged weights are not there yet: the table names no hash")
def test_the_packaged_model_is_not_blind():
    """Shown another image it must be clearly worse: a network that only draws blobs around clicks is not (LOG.md)."""
    score = held_out_score(build_backbone("steadysam-tiny", 128), SceneConfig(), 128, "spd", images=48)
    assert score["one"] > score["one_other_image"] + 0.1
    assert score["box"] > 0.7

"""Networks of their own: shapes, counts of parameters, prompt channels, and whether they learn."""

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from conftest import make_affine
from steadysam.augment import Augmentation
from steadysam.config import make_config
from steadysam.data.cases import read_dataset
from steadysam.embeddings import EmbeddingCache
from steadysam.evaluate import evaluate_case
from steadysam.methods import METHODS, prompt_unet, unet
from steadysam.methods.contract import Batch, Chance
from steadysam.methods.dense import ChannelSamples, PromptedConfig, dense_losses, prompt_channels, spots
from steadysam.methods.hybrid import SHAPES, StandardisedConv, TransUnet
from steadysam.methods.networks import Network, levels_for
from steadysam.runs import load_run
from steadysam.segmenting import segment
from steadysam.trainable import select_trainable
from steadysam.training import train
from steadysam.training_data import read_case, simulate, split_of
from steadysam.types import Grid, Prompts, SlicePoints
from test_contract import make_case
from toys import toy_run_values

NETS = ("unet", "unetpp", "transunet", "dynunet", "prompt_unet", "prompt_dynunet")


def points_at(*xy, positive=True) -> SlicePoints:
    places = np.array(xy, np.float32).reshape(-1, 2)
    return SlicePoints(places, np.full(len(places), positive), tuple(f"p{i}" for i in range(len(places))))


def test_transunet_has_as_many_parameters_as_the_published_network():
    """R50 + ViT-B/16 with two classes at 224 px: 105,276,066; each further class adds 16 * 9 + 1.

    Group norm in the decoder has as many parameters as the authors' batch norm.
    """
    with torch.device("meta"):
        two = sum(p.numel() for p in TransUnet(SHAPES["r50-vit-b16"], 2).parameters())
        nine = sum(p.numel() for p in TransUnet(SHAPES["r50-vit-b16"], 9).parameters())
    assert two == 105_276_066
    assert nine - two == 7 * (16 * 9 + 1)


def test_transunet_takes_the_trunks_skips_and_any_size():
    with torch.device("meta"):
        net = TransUnet(SHAPES["r50-vit-b16"], 1).eval()
        deep, skips = net.trunk(torch.zeros(1, 3, 512, 512))
    assert deep.shape == (1, 1024, 32, 32)
    assert [tuple(s.shape[1:]) for s in skips] == [(512, 64, 64), (256, 128, 128), (64, 256, 256)]
    small = TransUnet(SHAPES["small"]).eval()
    for size in (32, 96, 112):
        assert small(torch.zeros(1, 3, size, size)).shape == (1, 1, size, size)


def test_kernels_are_standardised():
    torch.manual_seed(0)
    layer = StandardisedConv(2, 3, 3, padding=1, bias=False)
    image = torch.randn(1, 2, 5, 5)
    kernels = torch.stack([(k - k.mean()) / (k.var(unbiased=False) + 1e-5).sqrt() for k in layer.weight])
    assert torch.allclose(layer(image), torch.nn.functional.conv2d(image, kernels, padding=1), atol=1e-5)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("size", [20, 32, 50])
def test_sizes_that_are_no_multiple_are_padded_inside(name, size):
    torch.manual_seed(0)
    method: Any = METHODS[name]
    config = method.Config()
    model = method.build(config, None)
    channels = 3 + getattr(config, "channels", 0)
    outputs = model.train()(torch.randn(2, channels, size, size))
    assert all(output.shape == (2, 1, size, size) for output in outputs)
    assert sum(model.weights(len(outputs))) == pytest.approx(1)
    assert len(model.eval()(torch.randn(1, channels, size, size))) == 1
    assert len(outputs) == {"unetpp": 4, "dynunet": 3, "prompt_dynunet": 3}.get(name, 1)


def test_the_final_output_comes_first_and_weighs_most():
    final, middle, coarse = (torch.full((1, 1, 4, 4), v) for v in (1.0, 2.0, 3.0))

    class Listed(torch.nn.Module):
        def forward(self, x):
            return [coarse, middle, final]

    class Stacked(torch.nn.Module):
        def forward(self, x):
            return torch.stack([final, middle, coarse], 1)

    for net in (Listed(), Stacked()):
        network = Network(net, 2).train()
        assert [o.mean().item() for o in network(torch.zeros(1, 3, 4, 4))] == [1, 2, 3]
        assert network.weights(3) == pytest.approx([4 / 7, 2 / 7, 1 / 7])
        assert [o.mean().item() for o in network.eval()(torch.zeros(1, 3, 4, 4))] == [1]


@pytest.mark.parametrize("name, count", [("unetpp", 4), ("dynunet", 3), ("prompt_dynunet", 3)])
def test_the_loops_own_train_mode_supervises_every_output(name, count):
    """`select_trainable` sets the mode of `net.*`, not of the wrapper; every head must get a gradient all the same."""
    torch.manual_seed(0)
    method: Any = METHODS[name]
    config = method.Config()
    model, (stage,) = method.build(config, None), method.stages(config)
    chosen = select_trainable(model, stage)
    assert len(model(torch.zeros(2, 3 + getattr(config, "channels", 0), 32, 32))) == count
    samples = stage.samples(
        model, [make_case(Grid((10, 11, 3), make_affine((1, 1.3, 5))), (2, 0, 1))], EmbeddingCache()
    )
    batch = samples.batch([0, 1], Chance(0, stage.name, 0, training=True))
    torch.stack(list(stage.losses(model, batch).values())).sum().backward()
    assert [name for name, p in chosen.items() if p.grad is None] == []
    assert len(model.eval()(torch.zeros(1, 3 + getattr(config, "channels", 0), 32, 32))) == 1


@pytest.mark.parametrize("name", ["dynunet", "prompt_dynunet"])
def test_fewest_levels_that_the_library_builds(name):
    method: Any = METHODS[name]
    config = method.Config(levels=3, first=4, most=8)
    model = method.build(config, None).train()
    assert len(model(torch.zeros(2, 3 + getattr(config, "channels", 0), 32, 32))) == 1
    with pytest.raises(ValidationError, match="greater than or equal to 3"):
        method.Config(levels=2)


def test_nnunets_rule_for_the_number_of_levels():
    assert [levels_for(size) for size in (32, 96, 256, 512)] == [4, 5, 7, 8]


def test_spots_are_gaussians_of_the_nearest_point():
    plane = spots(np.array([[2.0, 1.0], [6.0, 1.0]], np.float32), 8, 2.0)
    assert plane[1, 2] == plane[1, 6] == 1
    assert plane[1, 4] == pytest.approx(np.exp(-4 / 8))
    assert plane[4, 2] == pytest.approx(np.exp(-9 / 8))
    assert not spots(np.zeros((0, 2), np.float32), 8, 2.0).any()


def test_channels_are_own_points_by_sign_and_neighbours_in_order():
    config = PromptedConfig(n=1, sigma_px=1.0)
    slices = (
        points_at((1, 1)),
        SlicePoints(np.array([[5, 5], [9, 2]], np.float32), np.array([True, False]), ("a", "b")),
        points_at((3, 7)),
    )
    found = prompt_channels(slices, 1, config, 12)
    assert found.shape == (4, 12, 12)
    assert [tuple(np.argwhere(plane == 1)[0]) for plane in found] == [(5, 5), (2, 9), (1, 1), (7, 3)]
    first = prompt_channels(slices, 0, config, 12)
    assert not first[1].any(), "no negative point"
    assert not first[2].any(), "nothing before the first slice"
    assert first[3][5, 5] == 1
    assert prompt_channels(slices, 1, PromptedConfig(n=2), 12).shape == (6, 12, 12)


def test_points_move_with_the_image_in_channels():
    flipped = prompt_channels((points_at((2, 5)),), 0, PromptedConfig(n=0, sigma_px=1.0), 12, Augmentation(flip=True))
    assert np.argwhere(flipped[0] == 1).tolist() == [[5, 9]]


def test_training_material_has_channels_where_the_points_are():
    case = make_case(Grid((10, 11, 3), make_affine((1, 1.3, 5))), (2, 0, 1))
    config = prompt_unet.Config(n=1)
    samples = ChannelSamples([case], config)
    assert len(samples) == 3
    batch = samples.batch([0, 1], Chance(0, "tuning", 0, training=False))
    assert batch.tensors["channels"].shape == (2, 4, 32, 32)
    assert batch.tensors["channels"][0, 0].max() > 0.9
    assert batch.tensors["channels"][1, 0].max() == 0
    assert torch.equal(batch.tensors["channels"][1, 2], batch.tensors["channels"][0, 0]), "the slice before"


def test_losses_are_weighted_over_outputs_by_hand():
    class Constant(torch.nn.Module):
        def forward(self, x):
            return [torch.full((1, 1, 2, 2), -1.0), torch.zeros(1, 1, 2, 2)]

    model = Network(Constant(), 1, decay=0.5).train()
    batch = Batch({"images": torch.zeros(1, 3, 2, 2), "masks": torch.ones(1, 1, 2, 2)})
    terms = dense_losses(model, batch, unet.Config())
    p = torch.sigmoid(torch.tensor(-1.0))
    assert terms["ce"].item() == pytest.approx(0.5 * (2 / 3 * np.log(2) + 1 / 3 * -np.log(p.item())))
    dice = [1 - (2 * 4 * q + 1) / (4 * q + 4 + 1) for q in (0.5, p.item())]
    assert terms["dice"].item() == pytest.approx(0.5 * (2 / 3 * dice[0] + 1 / 3 * dice[1]))


@pytest.mark.parametrize("name", ["unet", "prompt_unet"])
def test_a_network_learns_the_toy_and_needs_no_backbone(name, toy_dataset, tmp_path):
    values = toy_run_values(toy_dataset)
    stage = {"epochs": 30, "batch_size": 5, "learning_rate": 5e-3}
    values["method"] = {"name": name, "features": [8, 8, 16, 16, 16, 8], "tuning": stage}
    del values["backbone"]
    config = make_config(values)
    assert config.backbone.name == "none"
    run = load_run(train(config, tmp_path / "run"), "cpu")
    case = split_of(config, read_dataset(toy_dataset)).test[0]
    volume, mask = read_case(case, (1,), None)
    prompts = Prompts() if name == "unet" else simulate(config, case.name, mask)
    found = segment(run, volume, prompts)
    assert evaluate_case(found.mask.array, mask.array, volume.grid, 0).volume.dice > 0.8
    assert len(found.decisions) == len(prompts)
    assert (tmp_path / "run" / "prompts").exists() == (name == "prompt_unet")

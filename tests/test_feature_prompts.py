"""Prompts from detector features: sizes, cost, alignment of cells, invariances."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from steadysam.backbones.rows import FeaturePrompts
from steadysam.detection.feature_prompts import FeaturePrompter
from steadysam.detection.yolo import Detector


def prompter(**changes) -> FeaturePrompter:
    torch.manual_seed(0)
    settings = {"width": 8, "grid": 4, "embedding_channels": 6, "token_channels": 5} | changes
    return FeaturePrompter((2, 3, 4), **settings).eval()


def features(batch: int = 2, height: int = 16, width: int = 16) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    return tuple(
        torch.randn(batch, c, height // s, width // s, generator=generator) for c, s in ((2, 1), (3, 2), (4, 4))
    )


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_parameters_and_operations_of_the_branch_at_640_pixels():
    with torch.device("meta"):
        detector = Detector("n")
        branch = FeaturePrompter(detector.channels, 256, grid=16, embedding_channels=256, token_channels=256)
        images = torch.zeros(1, 3, 640, 640)
    detector.eval()
    branch.eval()
    with FlopCounterMode(display=False) as counter:
        maps = detector.features(images)
        detector.predict(maps)
        prompts = branch(maps)
    assert detector.channels == (64, 128, 256)
    assert count(detector) == pytest.approx(3.011e6, abs=500)
    # mix 448*256 + 2*256, dense 256*256 + 256, sparse twice that, alpha
    assert count(branch) == 115_200 + 65_792 + 2 * 65_792 + 1
    assert count(detector) + count(branch) == pytest.approx(3.324e6, abs=500)
    assert counter.get_total_flops() / 1e9 == pytest.approx(9.58, abs=0.05)
    assert prompts.dense.shape == (1, 256, 16, 16)
    assert prompts.sparse.shape == (1, 1, 256)


def test_the_large_detector_has_1600_channels():
    with torch.device("meta"):
        branch = FeaturePrompter((320, 640, 640), grid=16, embedding_channels=256, token_channels=256, tokens=4)
    assert branch.mix[0].weight.shape == (256, 1600, 1, 1)
    assert branch.sparse[2].weight.shape == (4 * 256, 256)


def test_parts_and_initial_values():
    branch = FeaturePrompter((64, 128, 256), grid=16, embedding_channels=256, token_channels=256, alpha=0.5)
    conv, norm, act = branch.mix
    assert conv.bias is None
    assert norm.eps == 1e-3
    assert isinstance(act, nn.SiLU)
    assert branch.dense.weight.std().item() == pytest.approx(1e-3, rel=0.02)
    assert (branch.dense.bias == 0).all()
    assert branch.alpha.shape == ()
    assert branch.alpha.item() == 0.5
    assert [type(m) for m in branch.sparse] == [nn.Linear, nn.GELU, nn.Linear]
    assert {name.split(".")[0] for name in branch.state_dict()} == {"mix", "dense", "sparse", "alpha"}


def test_shapes_also_of_non_square_images_and_several_tokens():
    branch = prompter(tokens=3)
    prompts = branch(features(2, 16, 24))
    assert isinstance(prompts, FeaturePrompts)
    assert branch.fused(*features(2, 16, 24)).shape == (2, 8, 16, 24)
    assert prompts.dense is not None
    assert prompts.sparse is not None
    assert prompts.dense.shape == (2, 6, 4, 4)
    assert prompts.sparse.shape == (2, 3, 5)
    torch.testing.assert_close(prompts.sparse, branch.sparse_prompt(branch.fused(*features(2, 16, 24))))


def test_maps_are_repeated_not_interpolated():
    branch = prompter(width=9)
    branch.mix = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
    p3, p4, p5 = features()
    fused = branch.fused(p3, p4, p5)
    for y, x in ((0, 0), (5, 6), (15, 9)):
        expected = torch.cat([p3[:, :, y, x], p4[:, :, y // 2, x // 2], p5[:, :, y // 4, x // 4]], 1)
        assert torch.equal(fused[:, :, y, x], expected)


def test_five_cells_of_the_map_are_one_cell_of_the_dense_prompt():
    branch = prompter(grid=16)
    fused = torch.randn(1, 8, 80, 80, generator=torch.Generator().manual_seed(2))
    before = branch.dense_prompt(fused)
    for axis in (2, 3):
        after = branch.dense_prompt(fused.roll(5, axis))
        torch.testing.assert_close(after.narrow(axis, 1, 15), before.narrow(axis, 0, 15))
        off = branch.dense_prompt(fused.roll(4, axis))
        assert (off.narrow(axis, 1, 15) - before.narrow(axis, 0, 15)).abs().max() > 1e-5
    block = fused[:, :, 10:15, 35:40].mean((2, 3))
    torch.testing.assert_close(before[:, :, 2, 7], branch.dense(block[..., None, None])[..., 0, 0])


@pytest.mark.parametrize("sides", [(12, 20), (10, 18)])
def test_pooling_is_adaptive(sides):
    branch = prompter()
    fused = torch.randn(2, 8, *sides)
    expected = branch.dense(nn.functional.adaptive_avg_pool2d(fused, 4))
    torch.testing.assert_close(branch.dense_prompt(fused), expected)


def test_the_token_does_not_know_where():
    branch = prompter()
    fused = torch.randn(2, 8, 16, 24)
    order = torch.randperm(16 * 24, generator=torch.Generator().manual_seed(3))
    mixed = fused.flatten(2)[..., order].view_as(fused)
    torch.testing.assert_close(branch.sparse_prompt(mixed), branch.sparse_prompt(fused))
    assert not torch.allclose(branch.dense_prompt(mixed), branch.dense_prompt(fused))
    assert not torch.allclose(branch.sparse_prompt(fused + 1), branch.sparse_prompt(fused))


def test_alpha_zero_gives_no_dense_prompt():
    branch = prompter(alpha=0.0)
    prompts = branch(features())
    assert (prompts.dense == 0).all()
    assert (prompts.sparse != 0).any()
    once, twice = (prompter(alpha=a)(features()).dense for a in (1.0, 2.0))
    torch.testing.assert_close(2 * once, twice)


def test_every_parameter_and_the_features_get_a_gradient():
    branch = prompter().train()
    maps = [m.requires_grad_() for m in features()]
    prompts = branch(maps)
    (prompts.dense.square().sum() + prompts.sparse.square().sum()).backward()
    for name, parameter in branch.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad != 0).any(), name
    assert all(m.grad is not None and (m.grad != 0).any() for m in maps)

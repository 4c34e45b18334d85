"""Adapters of Medical SAM Adapter: published sizes, the block against plain torch operations, zero starts."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from steadysam.backbones import BACKBONES, build_backbone
from steadysam.backbones.adapters import Adapter, Order, inject_adapters
from steadysam.backbones.build import random_backbone
from steadysam.backbones.configure import empty_model, sam_config
from steadysam.backbones.sam import SamBackbone
from steadysam.backbones.table import Architecture

# windows of 3 tokens on a grid of 4: every window but the first has padding; the last layer is global
WINDOWED = Architecture(
    hidden=16,
    layers=2,
    heads=2,
    mlp=24,
    patch=8,
    window=3,
    global_layers=(1,),
    channels=16,
    decoder_mlp=16,
    decoder_heads=2,
    mask_channels=4,
)


def windowed() -> SamBackbone:
    """A small SAM with windows whose every parameter is random, so that no bias is zero."""
    backbone = random_backbone(WINDOWED, 32, seed=0, name="windowed")
    generator = torch.Generator().manual_seed(1)
    for parameter in backbone.image_encoder.parameters():
        parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return backbone


def images(size: int, rows: int = 2) -> Tensor:
    return torch.randn(rows, 3, size, size, generator=torch.Generator().manual_seed(2))


def count(module: nn.Module, word: str) -> int:
    return sum(p.numel() for name, p in module.named_parameters() if word in name)


def test_number_of_adapter_parameters_of_vit_b():
    """Two adapters per block, each d x d/4 + d/4 and d/4 x d + d."""
    architecture = BACKBONES["sam-vit-base"].architecture
    backbone = SamBackbone(empty_model(sam_config(architecture, 1024)), "sam-vit-base", architecture)
    before = sum(p.numel() for p in backbone.parameters())
    with torch.device("meta"):
        inject_adapters(backbone)
    d = 768
    expected = 12 * 2 * (d * d // 4 + d // 4 + d // 4 * d + d)
    assert expected == 7_100_928
    assert count(backbone, "adapter.") == expected
    assert sum(p.numel() for p in backbone.parameters()) == before + expected


def test_number_of_adapter_parameters_of_our_own_model():
    """One 1x1 bottleneck after each residual block of the encoder: three levels and two on the way back up."""
    backbone = build_backbone("steadysam-test", 32, seed=0)
    inject_adapters(backbone)
    widths = [16, 16, 24, 16, 16]
    assert count(backbone, "adapter.") == sum(2 * c * (c // 4) + c // 4 + c for c in widths)
    assert count(backbone.mask_decoder, "adapter.") == 0


def plain_adapter(x: Tensor, state: Mapping[str, Tensor], name: str) -> Tensor:
    hidden = x @ state[f"{name}.down.weight"].T + state[f"{name}.down.bias"]
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    return hidden @ state[f"{name}.up.weight"].T + state[f"{name}.up.bias"]


def plain_norm(x: Tensor, state: Mapping[str, Tensor], name: str) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]


def plain_attention(x: Tensor, state: Mapping[str, Tensor], heads: int) -> Tensor:
    """(N, n, n, d): scores plus the two relative position terms of the unscaled query, softmax, projection."""
    rows, n, _, d = x.shape
    qkv = x @ state["layer.attn.qkv.weight"].T + state["layer.attn.qkv.bias"]
    q, k, v = (part.reshape(rows, n * n, heads, d // heads).transpose(1, 2) for part in qkv.split(d, -1))
    scores = (q @ k.transpose(-1, -2) / math.sqrt(d // heads)).reshape(rows, heads, n, n, n, n)
    grid = q.reshape(rows, heads, n, n, d // heads)
    for a in range(n):
        for b in range(n):
            offset = a - b + n - 1
            scores[:, :, a, :, b, :] += (grid[:, :, a] @ state["layer.attn.rel_pos_h"][offset])[..., None]
            scores[:, :, :, a, :, b] += (grid[:, :, :, a] @ state["layer.attn.rel_pos_w"][offset])[..., None]
    mixed = scores.reshape(rows, heads, n * n, n * n).softmax(-1) @ v
    mixed = mixed.transpose(1, 2).reshape(rows, n, n, d)
    return mixed @ state["layer.attn.proj.weight"].T + state["layer.attn.proj.bias"]


def plain_windows(x: Tensor, state: Mapping[str, Tensor], heads: int, window: int, order: Order) -> Tensor:
    """Attention window by window, each cut out of the padded picture by hand."""
    size = x.shape[1]
    padded = math.ceil(size / window) * window
    space = (0, 0, 0, padded - size, 0, padded - size)
    if order == "sam":
        ready = F.pad(plain_norm(x, state, "layer.layer_norm1"), space)
    else:
        ready = plain_norm(F.pad(x, space), state, "layer.layer_norm1")
    found = torch.zeros_like(ready)
    for top in range(0, padded, window):
        for left in range(0, padded, window):
            part = ready[:, top : top + window, left : left + window]
            found[:, top : top + window, left : left + window] = plain_attention(part, state, heads)
    return found[:, :size, :size]


@pytest.mark.parametrize("order", ["sam", "released"])
@pytest.mark.parametrize("index", [0, 1], ids=["windowed", "global"])
@torch.no_grad()
def test_an_adapted_layer_is_what_plain_operations_give(order: Order, index: int):
    backbone = windowed()
    inject_adapters(backbone, order=order)
    layer = backbone.image_encoder.layers[index]
    state = layer.state_dict()
    x = torch.randn(2, 4, 4, 16, generator=torch.Generator().manual_seed(3))
    attended = plain_windows(x, state, 2, 3 if index == 0 else 4, order)
    y = x + attended + plain_adapter(attended, state, "attention_adapter")
    normed = plain_norm(y, state, "layer.layer_norm2")
    hidden = F.gelu(normed @ state["layer.mlp.lin1.weight"].T + state["layer.mlp.lin1.bias"])
    mlp = hidden @ state["layer.mlp.lin2.weight"].T + state["layer.mlp.lin2.bias"]
    expected = y + mlp + 0.5 * plain_adapter(normed, state, "mlp_adapter")
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)
    assert (plain_adapter(normed, state, "mlp_adapter")).abs().max() > 1e-2, "the adapters take part"


@torch.no_grad()
def test_an_adapted_block_of_our_own_model_is_what_plain_operations_give():
    backbone = build_backbone("steadysam-test", 32, seed=0)
    inject_adapters(backbone)
    adapted = backbone.image_encoder.levels[2][0]
    state = adapted.adapter.state_dict()
    x = torch.randn(2, 24, 5, 3, generator=torch.Generator().manual_seed(3))
    y = adapted.block(x)
    hidden = torch.einsum("oc,bchw->bohw", state["down.weight"][:, :, 0, 0], y) + state["down.bias"][:, None, None]
    more = (
        torch.einsum("oc,bchw->bohw", state["up.weight"][:, :, 0, 0], F.gelu(hidden)) + state["up.bias"][:, None, None]
    )
    torch.testing.assert_close(adapted(x), y + more, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["sam-test", "steadysam-test", "windowed"])
@torch.no_grad()
def test_adapters_that_start_at_zero_change_nothing(name: str):
    backbone = windowed() if name == "windowed" else build_backbone(name, 32, seed=0)
    before = backbone.encode(images(32))
    inject_adapters(backbone, zero_init=True)
    assert torch.equal(backbone.encode(images(32)), before)
    for parameter_name, parameter in backbone.named_parameters():
        if "adapter.up." in parameter_name:
            parameter.add_(0.1)
    assert (backbone.encode(images(32)) - before).abs().max() > 1e-3


@torch.no_grad()
def test_the_orders_differ_where_windows_are_padded_and_only_there():
    found = {}
    for window in (3, 2):  # 2 divides the grid of 4
        for order in ("sam", "released"):
            torch.manual_seed(0)
            backbone = windowed()
            inject_adapters(backbone, order=order)
            layer = backbone.image_encoder.layers[0]
            layer.layer.window_size = window
            tables = layer.layer.attn
            tables.rel_pos_h.data = tables.rel_pos_h.data[: 2 * window - 1]
            tables.rel_pos_w.data = tables.rel_pos_w.data[: 2 * window - 1]
            found[window, order] = backbone.encode(images(32))
    assert (found[3, "sam"] - found[3, "released"]).abs().max() > 1e-3
    torch.testing.assert_close(found[2, "sam"], found[2, "released"], atol=1e-5, rtol=1e-5)


def test_adapters_start_at_random_by_default_from_torchs_generator():
    torch.manual_seed(4)
    first = Adapter(8, zero_init=False)
    torch.manual_seed(4)
    again = Adapter(8, zero_init=False)
    assert torch.equal(first.up.weight, again.up.weight)
    assert first.up.weight.abs().max() > 0
    assert first.down.weight.shape == (2, 8)


def test_adapters_once_only_and_in_known_encoders():
    backbone = build_backbone("sam-test", 32, seed=0)
    inject_adapters(backbone)
    assert not any(module.training for module in backbone.modules())
    with pytest.raises(ValueError, match="adapters already"):
        inject_adapters(backbone)
    with pytest.raises(ValueError, match="Linear"):
        inject_adapters(nn.Linear(2, 2))

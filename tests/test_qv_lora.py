"""LoRA on queries and values: published size, the sum by hand, keys left alone, fresh adapters change nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from steadysam.backbones import BACKBONES, build_backbone
from steadysam.backbones.configure import empty_model, sam_config
from steadysam.backbones.lora import has_lora, inject_query_value_lora, lora_disabled, merge_lora
from steadysam.backbones.qv_lora import QueryValueLora
from steadysam.backbones.sam import SamBackbone


def test_number_of_parameters_of_vit_b_at_rank_4():
    architecture = BACKBONES["sam-vit-base"].architecture
    backbone = SamBackbone(empty_model(sam_config(architecture, 512)), "sam-vit-base", architecture)
    with torch.device("meta"):
        inject_query_value_lora(backbone, 4)
    found = sum(p.numel() for name, p in backbone.named_parameters() if ".lora_" in name)
    assert found == 12 * 2 * (4 * 768 + 768 * 4) == 147_456


@torch.no_grad()
def test_queries_and_values_by_hand_and_keys_left_alone():
    torch.manual_seed(0)
    layer = QueryValueLora(nn.Linear(6, 18), 2)
    for part in (layer.lora_query_B, layer.lora_value_B):
        nn.init.normal_(part.weight)
    x = torch.randn(3, 5, 6)
    base = layer.base_layer(x)
    expected = base.clone()
    expected[..., :6] += x @ (layer.lora_query_B.weight @ layer.lora_query_A.weight).T
    expected[..., 12:] += x @ (layer.lora_value_B.weight @ layer.lora_value_A.weight).T
    torch.testing.assert_close(layer(x), expected)
    assert torch.equal(layer(x)[..., 6:12], base[..., 6:12])
    assert (layer(x) - base).abs().max() > 0.1


@torch.no_grad()
def test_fresh_adapters_change_nothing_and_come_once():
    backbone = build_backbone("sam-test", 32, seed=0)
    image = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    before = backbone.encode(image)
    inject_query_value_lora(backbone, 4)
    assert torch.equal(backbone.encode(image), before)
    assert not any(module.training for module in backbone.modules())
    with pytest.raises(ValueError, match="adapters already"):
        inject_query_value_lora(backbone, 4)


@torch.no_grad()
def test_switched_off_is_the_base_and_merged_is_the_same_under_plain_names():
    backbone = build_backbone("sam-test", 32, seed=0)
    image = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    base, names = backbone.encode(image), list(backbone.state_dict())
    torch.manual_seed(0)
    inject_query_value_lora(backbone, 4)
    for layer in backbone.modules():
        if isinstance(layer, QueryValueLora):
            nn.init.normal_(layer.lora_query_B.weight)
            nn.init.normal_(layer.lora_value_B.weight)
    adapted = backbone.encode(image)
    assert (adapted - base).abs().max() > 1e-2
    with lora_disabled(backbone):
        assert torch.equal(backbone.encode(image), base)
    assert torch.equal(backbone.encode(image), adapted)
    merge_lora(backbone)
    assert not has_lora(backbone)
    assert list(backbone.state_dict()) == names
    torch.testing.assert_close(backbone.encode(image), adapted, atol=1e-4, rtol=1e-4)

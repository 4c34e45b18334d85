"""Adapters: what is trained, that off means off, that merged means the same (spd.md 8, checks 1 and 2)."""

from __future__ import annotations

import pytest
import torch

from steadysam.backbones import BACKBONES, build_backbone
from steadysam.backbones.configure import empty_model, sam_config
from steadysam.backbones.conv.model import ConvBackbone
from steadysam.backbones.fingerprint import fingerprint
from steadysam.backbones.lora import has_lora, inject_lora, load_lora, lora_disabled, lora_state, merge_lora
from steadysam.backbones.sam import SamBackbone
from steadysam.errors import CheckpointError

IMAGE = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def encoded(backbone: SamBackbone) -> torch.Tensor:
    with torch.no_grad():
        return backbone.encode(IMAGE)


def trained(seed: int = 0) -> SamBackbone:
    """A backbone whose adapters do something."""
    backbone = inject_lora(build_backbone("sam-test", 64, seed=1))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return backbone


def count(module: torch.nn.Module, trainable: bool = False) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable)


def test_published_counts_of_vit_b():
    architecture = BACKBONES["sam-vit-base"].architecture
    backbone = SamBackbone(empty_model(sam_config(architecture, 1024)), "sam-vit-base", architecture)
    assert count(backbone.mask_decoder) == 4_058_340
    assert count(backbone.prompt_encoder) == 6_220
    assert count(backbone) - count(backbone.shared_image_embedding) == 93_735_472
    inject_lora(backbone)
    assert count(backbone, trainable=True) == 294_912


@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_parameters_as_the_table_says(name: str):
    spec = BACKBONES[name]
    if spec.own:
        with torch.device("meta"):
            model = ConvBackbone(spec.architecture, spec.native_size, name)
    else:
        model = SamBackbone(empty_model(sam_config(spec.architecture, spec.native_size)), name, spec.architecture)
    assert count(model) == spec.parameters


def test_fresh_adapters_change_nothing():
    backbone = build_backbone("sam-test", 64, seed=1)
    before = encoded(backbone)
    inject_lora(backbone)
    assert torch.equal(encoded(backbone), before)
    assert has_lora(backbone)


def test_only_adapters_of_the_encoder_are_trainable():
    backbone = inject_lora(build_backbone("sam-test", 64))
    names = {name for name, p in backbone.named_parameters() if p.requires_grad}
    assert names == set(lora_state(backbone))
    assert len(names) == 2 * 2  # two factors in each of two layers
    assert all(name.startswith("image_encoder.layers.") and ".attn.qkv.lora_" in name for name in names)
    assert not backbone.training
    assert not any(module.training for module in backbone.modules())


def test_switched_off_is_the_base_bit_for_bit():
    base = encoded(build_backbone("sam-test", 64, seed=1))
    backbone = trained()
    flags = [p.requires_grad for p in backbone.parameters()]
    adapted = encoded(backbone)
    assert (adapted - base).abs().max() > 1e-2
    with lora_disabled(backbone):
        assert torch.equal(encoded(backbone), base)
    assert torch.equal(encoded(backbone), adapted)
    assert [p.requires_grad for p in backbone.parameters()] == flags


def test_switched_on_again_after_an_error():
    backbone = trained()
    adapted = encoded(backbone)
    with pytest.raises(RuntimeError), lora_disabled(backbone):
        raise RuntimeError
    assert torch.equal(encoded(backbone), adapted)


def test_merged_computes_the_same_under_plain_names():
    backbone = trained()
    adapted = encoded(backbone)
    merge_lora(backbone)
    torch.testing.assert_close(encoded(backbone), adapted, atol=1e-4, rtol=1e-4)
    assert not has_lora(backbone)
    plain = build_backbone("sam-test", 64)
    assert list(backbone.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(backbone.state_dict())
    assert torch.equal(encoded(plain), encoded(backbone))


def test_state_goes_from_one_backbone_to_another():
    source = trained(seed=4)
    target = inject_lora(build_backbone("sam-test", 64, seed=1), seed=9)
    assert fingerprint(source) != fingerprint(target)
    load_lora(target, lora_state(source))
    assert fingerprint(source) == fingerprint(target)


def test_foreign_state_is_refused_wholly():
    target = inject_lora(build_backbone("sam-test", 64))
    before = fingerprint(target)
    other_rank = lora_state(inject_lora(build_backbone("sam-test", 64), r=4))
    for state in (other_rank, {}, {"image_encoder.layers.0.attn.qkv.lora_C": torch.zeros(1)}):
        with pytest.raises(CheckpointError) as error:
            load_lora(target, state)
        assert error.value.code == "CKPT_SHAPE"
    assert fingerprint(target) == before


def test_adapters_once_only_and_somewhere():
    backbone = inject_lora(build_backbone("sam-test", 64))
    with pytest.raises(ValueError, match="adapters already"):
        inject_lora(backbone)
    with pytest.raises(ValueError, match="nowhere"):
        inject_lora(build_backbone("sam-test", 64), targets=("nowhere",))


def test_first_factors_depend_on_the_seed_only():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = fingerprint(inject_lora(build_backbone("sam-test", 64), seed=5))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert fingerprint(inject_lora(build_backbone("sam-test", 64), seed=5)) == first
    assert fingerprint(inject_lora(build_backbone("sam-test", 64), seed=6)) != first


def test_dropout_acts_in_training_only():
    backbone = trained()
    assert torch.equal(encoded(backbone), encoded(backbone))
    backbone.train()
    assert not torch.equal(encoded(backbone), encoded(backbone))


def test_one_step_moves_adapters_only():
    backbone = inject_lora(build_backbone("sam-test", 64)).train()
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    optimiser = torch.optim.Adam([p for p in backbone.parameters() if p.requires_grad], lr=1e-2)
    backbone.encode(IMAGE).square().mean().backward()
    optimiser.step()
    moved = {name for name, value in backbone.state_dict().items() if not torch.equal(value, before[name])}
    assert moved
    assert moved <= set(lora_state(backbone))

"""SAM-Med2D as a backbone: published sizes, the adapter against plain operations, released names, order of colours."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from steadysam.backbones import BACKBONES, build_backbone
from steadysam.backbones.adapters import ensure_med2d_adapters
from steadysam.backbones.build import check_weights, random_backbone
from steadysam.backbones.configure import empty_model, random_model, sam_config
from steadysam.backbones.fingerprint import fingerprint
from steadysam.backbones.med2d import Med2dAdapter
from steadysam.backbones.rows import FeaturePrompts
from steadysam.backbones.sam import SamBackbone
from steadysam.backbones.table import Architecture, architecture_from
from steadysam.backbones.weights import download, import_weights
from steadysam.config import PreprocessConfig, make_config
from steadysam.errors import CheckpointError
from steadysam.types import SlicePoints

TEST = BACKBONES["sam-med2d-test"]
# windows of 3 tokens on a grid of 4 (and of 5, an odd one, at 40 px); eight heads in the decoder as in a file's default
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
    decoder_heads=8,
    mask_channels=4,
    adapter="sam-med2d",
)
MEAN, DEVIATION = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])


def noisy(architecture: Architecture, size: int = 32) -> SamBackbone:
    """A small SAM-Med2D whose every parameter is random, so that no bias is zero."""
    backbone = random_backbone(architecture, size, seed=0, name="small")
    generator = torch.Generator().manual_seed(1)
    for parameter in backbone.parameters():
        parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return backbone


def released(backbone: SamBackbone) -> dict[str, Tensor]:
    """The weights under the names that the authors' files have."""
    state = {}
    for ours, value in backbone.state_dict().items():
        name = ours
        for a, b in (
            ("patch_embed.projection.", "patch_embed.proj."),
            ("mlp.adapter.", "Adapter."),
            ("neck.conv1.", "neck.0."),
            ("neck.layer_norm1.", "neck.1."),
            ("neck.conv2.", "neck.2."),
            ("neck.layer_norm2.", "neck.3."),
            (
                "shared_image_embedding.positional_embedding",
                "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
            ),
            ("encoder.point_embed.", "encoder.point_embeddings."),
            ("mask_embed.conv1.", "mask_downscaling.0."),
            ("mask_embed.layer_norm1.", "mask_downscaling.1."),
            ("mask_embed.conv2.", "mask_downscaling.3."),
            ("mask_embed.layer_norm2.", "mask_downscaling.4."),
            ("mask_embed.conv3.", "mask_downscaling.6."),
            ("upscale_conv1.", "output_upscaling.0."),
            ("upscale_layer_norm.", "output_upscaling.1."),
            ("upscale_conv2.", "output_upscaling.3."),
            ("layer_norm_final_attn.", "norm_final_attn."),
        ):
            name = name.replace(a, b)
        if name.startswith("image_encoder.layers."):
            name = name.replace("image_encoder.layers.", "image_encoder.blocks.")
        if "_mlps." in name or "iou_prediction_head." in name:
            name = name.replace(".layers.0.", ".layers.1.").replace(".proj_in.", ".layers.0.")
            name = name.replace(".proj_out.", ".layers.2.")
        else:
            name = name.replace(".layer_norm", ".norm") if "transformer." in name or "blocks." in name else name
        state[name] = value.clone()
    return state


def count(module: nn.Module, word: str = "") -> int:
    return sum(p.numel() for name, p in module.named_parameters() if word in name)


def test_published_sizes():
    """ldfsam.md 1.7 and 4.1: 271.242 M at 256 px, 12 adapters of 15.04 M."""
    spec = BACKBONES["sam-med2d"]
    with torch.device("meta"):
        backbone = SamBackbone(empty_model(sam_config(spec.architecture, 256)), spec.name, spec.architecture)
    one = 2 * 768 * 192 + 768 * 768 * (9 + 16) + 2 * 768
    assert one == 15_042_048
    assert count(backbone, "adapter.") == 12 * one == 180_504_576
    assert count(backbone) == spec.parameters == 271_242_032
    assert count(backbone.mask_decoder) == 4_058_340
    assert count(backbone.prompt_encoder) == 6_220
    assert spec.native_size == 256
    assert not spec.from_scratch
    assert (backbone.embedding_size, backbone.mask_size) == (16, 64)
    assert count(build_backbone(TEST.name, TEST.native_size)) == TEST.parameters


def plain_adapter(x: Tensor, state: dict[str, Tensor]) -> Tensor:
    """(B, h, w, d), one output pixel at a time where the strides make it hard to see."""
    rows, height, width, d = x.shape
    mean = x.reshape(rows, -1, d).mean(1)
    gate = ((mean @ state["channel.0.weight"].T).clamp(min=0) @ state["channel.2.weight"].T).sigmoid()
    gated = F.pad(x * gate[:, None, None], (0, 0, 1, 1, 1, 1))
    down, up = state["spatial.0.weight"], state["spatial.2.weight"]
    half = torch.zeros(rows, -(-height // 2), -(-width // 2), d)
    for i in range(half.shape[1]):
        for j in range(half.shape[2]):
            part = gated[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
            half[:, i, j] = torch.einsum("bhwc,ochw->bo", F.pad(part, (0, 0, 0, 3 - part.shape[2])), down)
    half = half.clamp(min=0)
    around = torch.zeros(rows, height + 4, width + 4, d)
    for i in range(half.shape[1]):
        for j in range(half.shape[2]):  # every coarse pixel paints 4 x 4 fine ones, from one before its own two
            patch = torch.einsum("bc,cohw->bhwo", half[:, i, j], up)
            around[:, 2 * i : 2 * i + 4, 2 * j : 2 * j + 4] += patch[:, : height + 4 - 2 * i, : width + 4 - 2 * j]
    y = x + around[:, 1 : height + 1, 1 : width + 1].clamp(min=0)
    y = (y - y.mean(-1, keepdim=True)) / (y.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    return y * state["norm.weight"] + state["norm.bias"]


@pytest.mark.parametrize("size", [(4, 6), (5, 3)])
@torch.no_grad()
def test_the_adapter_is_what_plain_operations_give(size: tuple[int, int]):
    adapter = Med2dAdapter(8)
    for parameter in adapter.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    x = torch.randn(2, *size, 8, generator=torch.Generator().manual_seed(4))
    expected = plain_adapter(x, adapter.state_dict())
    torch.testing.assert_close(adapter(x), expected, atol=1e-5, rtol=1e-4)
    adapter.conv = True
    torch.testing.assert_close(adapter(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("index", [0, 1], ids=["windowed", "global"])
@torch.no_grad()
def test_a_layer_is_the_plain_one_and_the_adapter_on_the_second_norm(index: int):
    backbone = noisy(WINDOWED)
    layer = backbone.image_encoder.layers[index]
    plain = SamBackbone(random_model(sam_config(WINDOWED, 32), 0), "plain", replace(WINDOWED, adapter=""))
    twin = plain.image_encoder.layers[index]
    twin.load_state_dict({k: v for k, v in layer.state_dict().items() if "adapter" not in k})
    x = torch.randn(2, 4, 4, 16, generator=torch.Generator().manual_seed(3))
    seen: list[Tensor] = []
    twin.layer_norm2.register_forward_hook(lambda module, given, out: seen.append(out))
    expected = twin(x) + layer.mlp.adapter(seen[0] if seen else x)
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-4)
    assert (layer(x) - twin(x)).abs().max() > 1e-2, "the adapter takes part"


def test_random_weights_depend_on_the_seed_only():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = fingerprint(build_backbone(TEST.name, 64, seed=7))
    assert torch.equal(torch.get_rng_state(), before)
    assert fingerprint(build_backbone(TEST.name, 64, seed=7)) == first
    assert fingerprint(build_backbone(TEST.name, 64, seed=8)) != first


def test_old_run_records_still_say_what_a_sam_is():
    old = asdict(BACKBONES["sam-vit-base"].architecture)
    del old["adapter"]
    assert architecture_from(old) == BACKBONES["sam-vit-base"].architecture
    assert architecture_from(asdict(TEST.architecture)) == TEST.architecture
    blank = build_backbone("gone", 64, weights=False, architecture=TEST.architecture)
    assert set(blank.state_dict()) == set(build_backbone(TEST.name, 64).state_dict())


@pytest.mark.parametrize("size", [32, 40, 64])
@torch.no_grad()
def test_own_files_are_recognised_and_other_sizes_work(tmp_path: Path, size: int):
    backbone = noisy(WINDOWED)
    save_file(backbone.state_dict(), tmp_path / "model.safetensors")
    loaded = build_backbone(tmp_path, size)
    assert loaded.architecture == WINDOWED
    assert loaded.encode(torch.zeros(1, 3, size, size)).shape == (1, 16, size // 8, size // 8)
    if size == 32:
        assert fingerprint(loaded) == fingerprint(backbone)


@torch.no_grad()
def test_the_released_layout_with_images_in_the_order_of_colours(tmp_path: Path):
    """The released model sees (B, G, R) minus the mean of (R, G, B); ours sees images as every SAM does."""
    backbone = noisy(WINDOWED)
    state = released(backbone)
    for name in ("norm.weight", "norm.bias", "channel.0.weight", "channel.2.weight"):
        assert f"image_encoder.blocks.1.Adapter.{name}" in state
    assert {f"image_encoder.blocks.0.Adapter.spatial.{n}.weight" for n in (0, 2)} < set(state)
    save_file(state, tmp_path / "sam-med2d_b.safetensors")
    loaded = build_backbone(tmp_path / "sam-med2d_b.safetensors", 32)
    assert loaded.architecture == WINDOWED
    first = "image_encoder.patch_embed.projection."
    ours, theirs = loaded.state_dict(), backbone.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs if not name.startswith(first))
    picture = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(5)) * 255
    mean, deviation = MEAN[:, None, None], DEVIATION[:, None, None]
    as_they_saw = backbone.encode((picture.flip(1) - mean) / deviation)
    torch.testing.assert_close(loaded.encode((picture - mean) / deviation), as_they_saw, atol=1e-4, rtol=1e-4)
    assert (loaded.encode((picture.flip(1) - mean) / deviation) - as_they_saw).abs().max() > 1e-2
    grey = picture[:, :1].expand(-1, 3, -1, -1)
    torch.testing.assert_close(
        loaded.encode((grey - mean) / deviation), backbone.encode((grey - mean) / deviation), atol=1e-4, rtol=1e-4
    )


def test_a_file_of_the_row_is_checked(tmp_path: Path):
    spec = replace(TEST, name="like-sam-med2d", architecture=replace(TEST.architecture, decoder_heads=8), source="x")
    good, other = tmp_path / "good.safetensors", tmp_path / "other.safetensors"
    save_file(released(build_backbone(TEST.name, 64)), good)
    check_weights(spec, good)
    save_file(build_backbone("sam-test", 64).state_dict(), other)
    with pytest.raises(CheckpointError) as error:
        check_weights(spec, other)
    assert error.value.code == "CKPT_CONFIG"
    lame = {**released(build_backbone(TEST.name, 64))}
    lame["image_encoder.patch_embed.proj.weight"] = torch.zeros(32, 1, 8, 8)
    save_file(lame, other)
    with pytest.raises(CheckpointError) as error:
        check_weights(spec, other)
    assert error.value.code == "CKPT_SHAPE"


def test_from_the_released_file_to_a_backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("STEADYSAM_OFFLINE", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    architecture = replace(TEST.architecture, decoder_heads=8)
    spec = replace(TEST, name="published-med2d", architecture=architecture, source="https://x.org", safetensors=False)
    monkeypatch.setitem(BACKBONES, spec.name, spec)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="(?s)https://x.org holds pickled weights only.*models import") as error:
        download(spec.name, home=tmp_path)
    assert error.value.code == "CKPT_PICKLE_REFUSED"
    with pytest.raises(CheckpointError, match="CKPT_MISSING"):
        build_backbone(spec.name, 64, home=tmp_path)
    torch.save({"model": released(build_backbone(TEST.name, 64, seed=5))}, tmp_path / "med2d.pth")
    state = torch.load(tmp_path / "med2d.pth", map_location="cpu", weights_only=True)["model"]
    save_file(state, tmp_path / "med2d.safetensors")
    import_weights(spec.name, tmp_path / "med2d.safetensors", home=tmp_path)
    loaded = build_backbone(spec.name, 64, home=tmp_path)
    assert loaded.architecture == architecture
    name = "image_encoder.layers.1.mlp.adapter.spatial.2.weight"
    assert torch.equal(loaded.state_dict()[name], build_backbone(TEST.name, 64, seed=5).state_dict()[name])


@torch.no_grad()
def test_mask_prompts_are_probabilities_as_it_was_trained():
    backbone, empty = build_backbone(TEST.name, 64), [SlicePoints.empty()]
    logits = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    ((_, _, dense),) = backbone.embed(empty, logits, FeaturePrompts())
    torch.testing.assert_close(dense, backbone.prompt_encoder.mask_embed(logits.sigmoid()))


@pytest.mark.parametrize("name", ["sam-test", "steadysam-test"])
@torch.no_grad()
def test_fresh_adapters_add_nothing_unless_they_start_as_the_authors_do(name: str):
    images = torch.randn(2, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    backbone = build_backbone(name, 40)
    before, parameters = backbone.encode(images), count(backbone)
    ensure_med2d_adapters(backbone)
    torch.testing.assert_close(backbone.encode(images), before, atol=0, rtol=0)
    widths = [32, 32] if name == "sam-test" else [16, 16, 24, 16, 16]
    assert count(backbone) - parameters == count(backbone.image_encoder, "adapter.")
    assert count(backbone, "adapter.") == sum(2 * d * (d // 4) + 25 * d * d + 2 * d for d in widths)
    assert not any(module.training for module in backbone.modules())
    ensure_med2d_adapters(backbone)  # they are there
    assert count(backbone, "adapter.") == count(backbone) - parameters
    other = build_backbone(name, 40)
    ensure_med2d_adapters(other, zero_init=False)
    assert (other.encode(images) - before).abs().max() > 1e-2


def test_a_backbone_that_has_them_keeps_them_and_others_are_refused():
    backbone = build_backbone(TEST.name, 64)
    before = fingerprint(backbone)
    ensure_med2d_adapters(backbone)
    assert fingerprint(backbone) == before
    with pytest.raises(ValueError, match="Linear"):
        ensure_med2d_adapters(nn.Linear(2, 2))


@pytest.mark.parametrize(
    "backbone, method, adapt",
    [
        ("sam-med2d", "sam_med2d", "adapters"),
        ("sam-med2d", "sam_tuning", "lora"),
        ("sam-vit-base", "sam_med2d", "adapters"),
        ("sam-vit-base", "sam_tuning", "lora"),
        ("sam-med2d-test", "sam_med2d", "full"),
    ],
)
def test_how_a_backbone_is_adapted_unless_one_says(backbone: str, method: str, adapt: str):
    values = {"data": {"dataset": "d", "label": "x"}, "backbone": {"name": backbone}, "method": {"name": method}}
    assert make_config(values).method["adapt"] == adapt


def test_a_backbone_with_adapters_sets_the_size_and_the_normalisation_of_its_weights():
    def preprocess(backbone: str, **said):
        values = {"data": {"dataset": "d", "label": "x"}, "backbone": {"name": backbone}, "preprocess": said}
        found = make_config(values).preprocess
        return found.size, found.norm

    assert preprocess("sam-med2d") == (256, "sam")
    assert preprocess("sam-med2d", size=512, norm="spd") == (512, "spd"), "what is said counts"
    assert preprocess("sam-vit-base") == (PreprocessConfig().size, PreprocessConfig().norm)


def test_gradients_reach_the_adapters():
    backbone = build_backbone(TEST.name, 64)
    backbone.encode(torch.randn(1, 3, 64, 64)).square().mean().backward()
    found = {name for name, p in backbone.named_parameters() if p.grad is not None and float(p.grad.abs().sum()) > 0}
    wanted = {name for name, _ in backbone.named_parameters() if "adapter." in name}
    assert wanted <= found
    assert np.isfinite([float(p.grad.sum()) for p in backbone.parameters() if p.grad is not None]).all()

"""Weights from files: layouts, other image sizes, strict keys, unsound files (reliability.md K01 to K09)."""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from steadysam.backbones import build_backbone
from steadysam.backbones.build import random_backbone
from steadysam.backbones.checkpoints import read_safetensors
from steadysam.backbones.configure import random_model, sam_config
from steadysam.backbones.fingerprint import fingerprint
from steadysam.backbones.infer import infer_architecture
from steadysam.backbones.layouts import from_official
from steadysam.backbones.resize import resize_positions
from steadysam.backbones.sam import SamBackbone
from steadysam.backbones.table import BACKBONES, Architecture
from steadysam.errors import CheckpointError, ConfigError
from steadysam.files import sha256_file
from steadysam.types import SlicePoints

# the shape of a SAM in small: windowed layers, two global ones, eight heads in the decoder
SMALL = Architecture(
    hidden=24,
    layers=4,
    heads=2,
    mlp=48,
    window=3,
    global_layers=(1, 3),
    channels=32,
    decoder_mlp=40,
    decoder_heads=8,
    mask_channels=8,
)
POINTS = [SlicePoints(np.array([[20.0, 41.0], [70.0, 3.0]], np.float32), np.array([True, False]), ("a", "b"))]


def small(size: int = 128, seed: int = 0) -> SamBackbone:
    backbone = random_backbone(SMALL, size, seed=seed, name="small")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return backbone


def official_state(seed: int = 0) -> dict[str, Tensor]:
    """A checkpoint with the names and shapes of the official package, for `SMALL` at 128 px."""
    h, c, m, k, s = SMALL.hidden, SMALL.channels, SMALL.mlp, SMALL.decoder_mlp, SMALL.mask_channels
    shapes: dict[str, tuple[int, ...]] = {
        "image_encoder.pos_embed": (1, 8, 8, h),
        "image_encoder.patch_embed.proj.weight": (h, 3, 16, 16),
        "image_encoder.patch_embed.proj.bias": (h,),
        "image_encoder.neck.0.weight": (c, h, 1, 1),
        "image_encoder.neck.1.weight": (c,),
        "image_encoder.neck.1.bias": (c,),
        "image_encoder.neck.2.weight": (c, c, 3, 3),
        "image_encoder.neck.3.weight": (c,),
        "image_encoder.neck.3.bias": (c,),
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix": (2, c // 2),
        "prompt_encoder.not_a_point_embed.weight": (1, c),
        "prompt_encoder.no_mask_embed.weight": (1, c),
        "prompt_encoder.mask_downscaling.0.weight": (s // 4, 1, 2, 2),
        "prompt_encoder.mask_downscaling.3.weight": (s, s // 4, 2, 2),
        "prompt_encoder.mask_downscaling.6.weight": (c, s, 1, 1),
        "mask_decoder.iou_token.weight": (1, c),
        "mask_decoder.mask_tokens.weight": (4, c),
        "mask_decoder.output_upscaling.0.weight": (c, c // 4, 2, 2),
        "mask_decoder.output_upscaling.0.bias": (c // 4,),
        "mask_decoder.output_upscaling.1.weight": (c // 4,),
        "mask_decoder.output_upscaling.1.bias": (c // 4,),
        "mask_decoder.output_upscaling.3.weight": (c // 4, c // 8, 2, 2),
        "mask_decoder.output_upscaling.3.bias": (c // 8,),
    }
    for number, size in ((0, s // 4), (1, s // 4), (3, s), (4, s), (6, c)):
        shapes[f"prompt_encoder.mask_downscaling.{number}.bias"] = (size,)
        shapes.setdefault(f"prompt_encoder.mask_downscaling.{number}.weight", (size,))
    for number in range(4):
        shapes[f"prompt_encoder.point_embeddings.{number}.weight"] = (1, c)
    for layer in range(4):
        stem = f"image_encoder.blocks.{layer}"
        length = 15 if layer in (1, 3) else 5
        shapes |= {f"{stem}.attn.rel_pos_h": (length, h // 2), f"{stem}.attn.rel_pos_w": (length, h // 2)}
        layers = (("attn.qkv", 3 * h, h), ("attn.proj", h, h), ("mlp.lin1", m, h), ("mlp.lin2", h, m))
        for name, out, into in layers:
            shapes |= {f"{stem}.{name}.weight": (out, into), f"{stem}.{name}.bias": (out,)}
        for norm in ("norm1", "norm2"):
            shapes |= {f"{stem}.{norm}.weight": (h,), f"{stem}.{norm}.bias": (h,)}
    attentions = {"mask_decoder.transformer.final_attn_token_to_image": c // 2}
    norms = ["mask_decoder.transformer.norm_final_attn"]
    for layer in range(2):
        stem = f"mask_decoder.transformer.layers.{layer}"
        attentions |= {f"{stem}.self_attn": c, f"{stem}.cross_attn_token_to_image": c // 2}
        attentions |= {f"{stem}.cross_attn_image_to_token": c // 2}
        norms += [f"{stem}.norm{number}" for number in (1, 2, 3, 4)]
        shapes |= {f"{stem}.mlp.lin1.weight": (k, c), f"{stem}.mlp.lin1.bias": (k,)}
        shapes |= {f"{stem}.mlp.lin2.weight": (c, k), f"{stem}.mlp.lin2.bias": (c,)}
    for stem, inner in attentions.items():
        for name in ("q_proj", "k_proj", "v_proj"):
            shapes |= {f"{stem}.{name}.weight": (inner, c), f"{stem}.{name}.bias": (inner,)}
        shapes |= {f"{stem}.out_proj.weight": (c, inner), f"{stem}.out_proj.bias": (c,)}
    for stem in norms:
        shapes |= {f"{stem}.weight": (c,), f"{stem}.bias": (c,)}
    heads = {f"mask_decoder.output_hypernetworks_mlps.{n}": c // 8 for n in range(4)}
    for stem, out in {**heads, "mask_decoder.iou_prediction_head": 4}.items():
        for number, size in enumerate((c, c, out)):
            shapes |= {f"{stem}.layers.{number}.weight": (size, c), f"{stem}.layers.{number}.bias": (size,)}
    generator = torch.Generator().manual_seed(seed)
    return {name: 0.2 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def written(folder: Path, state: dict[str, Tensor], name: str = "model.safetensors") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in state.items()}, folder / name)
    return folder / name


def transformers_state(backbone: SamBackbone, twice: bool) -> dict[str, Tensor]:
    state = {
        name.replace("image_encoder.", "vision_encoder.", 1): value.clone()
        for name, value in backbone.state_dict().items()
    }
    if twice:
        positions = state["shared_image_embedding.positional_embedding"]
        state["prompt_encoder.shared_embedding.positional_embedding"] = positions.clone()
    return state


def code_of(call: Callable[[], object]) -> str:
    with pytest.raises((CheckpointError, ConfigError)) as error:
        call()
    return error.value.code


def output(backbone: SamBackbone) -> Tensor:
    size = backbone.image_size
    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        return backbone.decode(backbone.encode(image), POINTS)


# --- layouts ---


@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("as_folder", [False, True])
def test_transformers_layout(tmp_path: Path, twice: bool, as_folder: bool):
    backbone = small()
    file = written(tmp_path / "w", transformers_state(backbone, twice))
    loaded = build_backbone(file.parent if as_folder else file, 128)
    assert fingerprint(loaded) == fingerprint(backbone)
    assert loaded.architecture == SMALL
    assert torch.equal(output(loaded), output(backbone))


def test_own_layout_and_half_precision(tmp_path: Path):
    backbone = small()
    state = {name: value.half() for name, value in backbone.state_dict().items()}
    loaded = build_backbone(written(tmp_path, state), 128)
    assert {value.dtype for value in loaded.state_dict().values()} == {torch.float32}
    torch.testing.assert_close(output(loaded), output(backbone), atol=2e-2, rtol=2e-2)


def test_a_folder_saved_by_the_library(tmp_path: Path):
    architecture = replace(SMALL, decoder_heads=2)  # only config.json tells this number
    model = random_model(sam_config(architecture, 128), seed=4)
    model.save_pretrained(tmp_path / "saved")
    loaded = build_backbone(tmp_path / "saved", 128)
    assert loaded.architecture == architecture
    assert torch.equal(output(loaded), output(SamBackbone(model, "library", architecture)))


def test_official_layout(tmp_path: Path):
    state = official_state()
    buffers = {"pixel_mean": torch.zeros(3, 1, 1), "pixel_std": torch.ones(3, 1, 1)}
    loaded = build_backbone(written(tmp_path, {**state, **buffers}, "sam_vit_small.safetensors"), 128)
    own = loaded.state_dict()
    assert len(own) == len(state)
    assert loaded.architecture == SMALL
    assert torch.isfinite(output(loaded)).all()
    encoder, prompts, decoder = "image_encoder.", "prompt_encoder.", "mask_decoder."
    pairs = {
        f"{encoder}blocks.2.norm2.bias": f"{encoder}layers.2.layer_norm2.bias",
        f"{encoder}neck.2.weight": f"{encoder}neck.conv2.weight",
        f"{encoder}neck.3.weight": f"{encoder}neck.layer_norm2.weight",
        f"{prompts}point_embeddings.1.weight": f"{prompts}point_embed.1.weight",
        f"{prompts}mask_downscaling.4.bias": f"{prompts}mask_embed.layer_norm2.bias",
        f"{decoder}transformer.layers.1.norm4.weight": f"{decoder}transformer.layers.1.layer_norm4.weight",
        f"{decoder}output_upscaling.3.weight": f"{decoder}upscale_conv2.weight",
    }
    heads = [f"output_hypernetworks_mlps.{number}" for number in range(4)] + ["iou_prediction_head"]
    for head in heads:
        for theirs, ours in (("layers.0", "proj_in"), ("layers.1", "layers.0"), ("layers.2", "proj_out")):
            pairs[f"{decoder}{head}.{theirs}.weight"] = f"{decoder}{head}.{ours}.weight"
    for official, ours in pairs.items():
        assert torch.equal(own[ours], state[official]), ours


def test_official_names_of_vit_b_are_complete():
    deep = {
        name.replace("blocks.3", f"blocks.{layer}"): value
        for layer in range(3, 12)
        for name, value in official_state().items()
    }
    backbone = random_backbone(replace(SMALL, layers=12, global_layers=(1,)), 128, seed=0, name="deep")
    assert set(from_official(deep)) == set(backbone.state_dict())


def test_two_tables_of_positions_that_differ(tmp_path: Path):
    state = transformers_state(small(), twice=True)
    state["prompt_encoder.shared_embedding.positional_embedding"] += 1
    assert code_of(lambda: build_backbone(written(tmp_path, state), 128)) == "CKPT_CONFIG"


# --- other image sizes ---


@pytest.mark.parametrize("size", [64, 192, 112])
def test_tables_are_resized(tmp_path: Path, size: int):
    backbone = small(128)
    loaded = build_backbone(written(tmp_path, transformers_state(backbone, False)), size)
    grid = size // 16
    old, new = backbone.state_dict(), loaded.state_dict()
    wanted = functional.interpolate(
        old["image_encoder.pos_embed"].permute(0, 3, 1, 2), (grid, grid), mode="bilinear", align_corners=False
    )
    torch.testing.assert_close(new["image_encoder.pos_embed"], wanted.permute(0, 2, 3, 1))
    name = "image_encoder.layers.{}.attn.rel_pos_h"
    assert new[name.format(1)].shape == (2 * grid - 1, 12)
    assert torch.equal(new[name.format(0)], old[name.format(0)])  # a window keeps its size
    untouched = [key for key in old if "rel_pos" not in key and "pos_embed" not in key]
    assert all(torch.equal(old[key], new[key]) for key in untouched)
    assert output(loaded).shape == (1, 1, 4 * grid, 4 * grid)


def test_512_px_from_1024_px_as_the_paper_has_it():
    state = {
        "image_encoder.pos_embed": torch.randn(1, 64, 64, 5),
        "image_encoder.layers.2.attn.rel_pos_w": torch.randn(127, 3),
        "image_encoder.layers.3.attn.rel_pos_w": torch.randn(27, 3),
    }
    resized = resize_positions(state, 32, (2, 5, 8, 11))
    assert [tuple(value.shape) for value in resized.values()] == [(1, 32, 32, 5), (63, 3), (27, 3)]
    # halving with align_corners=False and bilinear weights is the mean of 2 x 2 neighbours
    mean = state["image_encoder.pos_embed"].reshape(1, 32, 2, 32, 2, 5).mean(dim=(2, 4))
    torch.testing.assert_close(resized["image_encoder.pos_embed"], mean)


def test_relative_tables_resized_once_equal_those_resized_at_every_call(tmp_path: Path):
    backbone = small(128)
    attention = backbone.image_encoder.get_submodule("layers.1.attn")
    table = attention.get_parameter("rel_pos_h")
    at_run_time = attention.get_rel_pos(4, 4, table)  # type: ignore[operator]
    once = resize_positions({"image_encoder.layers.1.attn.rel_pos_h": table}, 4, (1,))
    resized = once["image_encoder.layers.1.attn.rel_pos_h"]
    assert torch.equal(attention.get_rel_pos(4, 4, resized), at_run_time)  # type: ignore[operator]


def test_image_size_must_fit(tmp_path: Path):
    file = written(tmp_path, transformers_state(small(), False))
    assert code_of(lambda: build_backbone(file, 100)) == "BACKBONE_SIZE"


# --- strict keys ---


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.pop("mask_decoder.iou_token.weight"),
        lambda state: state.update({"mask_decoder.more.weight": torch.zeros(1)}),
        lambda state: state.update({"mask_decoder.iou_token.weight": torch.zeros(2, 32)}),
        lambda state: state.update({"vision_encoder.layers.0.attn.rel_pos_h": torch.zeros(9, 12)}),
        lambda state: state.pop("vision_encoder.pos_embed"),
        lambda state: state.pop("prompt_encoder.mask_embed.conv3.weight"),
    ],
)
def test_missing_extra_and_misshaped_tensors(tmp_path: Path, change: Callable[[dict[str, Tensor]], object]):
    state = transformers_state(small(), False)
    change(state)
    assert code_of(lambda: build_backbone(written(tmp_path, state), 128)) == "CKPT_SHAPE"


def test_other_architectures(tmp_path: Path):
    file = written(tmp_path / "a", {"features.0.weight": torch.zeros(3)})
    assert code_of(lambda: build_backbone(file, 128)) == "CKPT_CONFIG"
    file = written(tmp_path / "b", transformers_state(small(), False))
    (file.parent / "config.json").write_text(json.dumps({"model_type": "sam2"}))
    assert code_of(lambda: build_backbone(file.parent, 128)) == "CKPT_CONFIG"


def test_names_that_are_nothing():
    assert code_of(lambda: build_backbone("sam-vit-bose", 128)) == "BACKBONE_UNKNOWN"


def test_blank_models_wait_for_weights(tmp_path: Path):
    file = written(tmp_path, transformers_state(small(), False))
    full = build_backbone(file, 64)
    for blank in (
        build_backbone(file, 64, weights=False),
        build_backbone("gone.safetensors", 64, weights=False, architecture=full.architecture),
    ):
        assert all(not value.any() for value in blank.state_dict().values())
        blank.load_state_dict(full.state_dict())
        assert fingerprint(blank) == fingerprint(full)
        assert torch.equal(output(blank), output(full))
    assert code_of(lambda: build_backbone("gone.safetensors", 64, weights=False)) == "BACKBONE_UNKNOWN"
    assert build_backbone("sam-test", 64, weights=False).embedding_size == 8


def test_architecture_from_shapes_for_every_row():
    for spec in (BACKBONES["sam-test"], BACKBONES["sam-tiny"]):
        state = build_backbone(spec.name, spec.native_size).state_dict()
        heads = spec.architecture.decoder_heads
        assert infer_architecture(state, "x", decoder_heads=heads) == spec.architecture


# --- files ---


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    return written(tmp_path, {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.int64)})


def test_reads_what_was_written(sound: Path):
    assert torch.equal(read_safetensors(sound)["a"], torch.arange(6.0).reshape(2, 3))
    assert set(read_safetensors(sound, sha256=sha256_file(sound))) == {"a", "b"}


def test_every_cut_is_seen(sound: Path):
    content = sound.read_bytes()
    for length in (0, 5, 8, 40, len(content) - 40, len(content) - 1):
        sound.write_bytes(content[:length])
        assert code_of(lambda: read_safetensors(sound)) == "CKPT_TRUNCATED", length


def test_missing(tmp_path: Path):
    assert code_of(lambda: read_safetensors(tmp_path / "no.safetensors")) == "CKPT_MISSING"
    (tmp_path / "empty").mkdir()
    assert code_of(lambda: build_backbone(tmp_path / "empty", 128)) == "CKPT_MISSING"


def test_a_flipped_bit_is_seen_by_the_hash(sound: Path):
    digest = sha256_file(sound)
    content = bytearray(sound.read_bytes())
    content[-3] ^= 4
    sound.write_bytes(content)
    assert code_of(lambda: read_safetensors(sound, sha256=digest)) == "CKPT_HASH"


def raw(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data


ROW = '{{"dtype":"{}","shape":{},"data_offsets":[{},{}]}}'


def rows(*spans: tuple[int, int], dtype: str = "F32", shape: str = "[1]", names: str = "abc") -> bytes:
    """A header whose tensors take the given spans of bytes."""
    cells = [f'"{name}":' + ROW.format(dtype, shape, *span) for name, span in zip(names, spans, strict=False)]
    return ("{" + ",".join(cells) + "}").encode()


UNSOUND = {
    "no json": raw(b"no json"),
    "no object": raw(b"[1, 2]"),
    "no offsets": raw(b'{"a": {"dtype": "F32", "shape": [1]}}', b"1234"),
    "twice": raw(rows((0, 4), (0, 4), names="aa"), b"1234"),
    "overlap": raw(rows((0, 4), (2, 6)), b"123456"),
    "gap": raw(rows((0, 4), (6, 10)), bytes(10)),
    "unknown type": raw(rows((0, 4), dtype="Q77"), b"1234"),
    "shape and span differ": raw(rows((0, 4), shape="[3]"), b"1234"),
    "shape of NaN": raw(rows((0, 4), shape="[NaN]"), b"1234"),
    "bytes after the end": raw(rows((0, 4)), b"12345"),
    "header of 200 MB": struct.pack("<Q", 200_000_000) + bytes(100),
    "zeros": bytes(64),
}


@pytest.mark.parametrize("content", UNSOUND.values(), ids=UNSOUND.keys())
def test_unsound_files(tmp_path: Path, content: bytes):
    file = tmp_path / "bad.safetensors"
    file.write_bytes(content)
    assert code_of(lambda: read_safetensors(file)) == "CKPT_FORMAT"


class Canary:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".ckpt", ".pkl", ".bin", ".safetensors"])
@pytest.mark.parametrize("zipped", [False, True])
def test_nothing_is_unpickled(tmp_path: Path, suffix: str, zipped: bool):
    canary, file = tmp_path / "canary", tmp_path / f"model{suffix}"
    content = pickle.dumps(Canary(canary))
    if zipped:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("archive/data.pkl", content)
    else:
        file.write_bytes(content)
    expected = "CKPT_FORMAT" if suffix == ".safetensors" else "CKPT_PICKLE_REFUSED"
    assert code_of(lambda: build_backbone(file, 128)) == expected
    assert not canary.exists()


def test_a_folder_with_pickles_only(tmp_path: Path):
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps({}))
    assert code_of(lambda: build_backbone(tmp_path, 128)) == "CKPT_PICKLE_REFUSED"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none(tmp_path: Path, value: float):
    state = transformers_state(small(), False)
    state["mask_decoder.iou_token.weight"][0, 3] = value
    with pytest.raises(CheckpointError) as error:
        build_backbone(written(tmp_path, state), 128)
    assert error.value.code == "CKPT_NONFINITE"
    assert error.value.seen == "mask_decoder.iou_token.weight"


def test_the_loaded_model_does_not_hang_on_the_file(tmp_path: Path):
    file = written(tmp_path, transformers_state(small(), False))
    loaded = build_backbone(file, 128)
    before = fingerprint(loaded)
    size = file.stat().st_size
    with open(file, "r+b") as handle:
        handle.seek(size // 2)
        handle.write(bytes(size // 4))
    assert fingerprint(loaded) == before
    assert load_file(file)  # still a sound file, with other numbers

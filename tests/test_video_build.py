"""Video models: from the table, from `transformers`' own files, from the registry; what is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import Sam2VideoModel

from steadysam.backbones import build_backbone
from steadysam.backbones.fingerprint import fingerprint
from steadysam.backbones.video.build import native_size, video_model
from steadysam.backbones.video.configure import stated_architecture, video_config
from steadysam.backbones.video.table import VIDEO_MODELS, VideoArchitecture
from steadysam.backbones.weights import download, hub_row, import_weights
from steadysam.errors import CheckpointError, ConfigError, SteadyError

TEST = VIDEO_MODELS["sam2-test"]


def code_of(error: type[SteadyError], call) -> str:
    with pytest.raises(error) as caught:
        call()
    return caught.value.code


@pytest.fixture
def folder(tmp_path) -> Path:
    """What `save_pretrained` writes for a model of the test's size, at 96 px."""
    torch.manual_seed(5)
    model = Sam2VideoModel(video_config(TEST.architecture, 96))
    model.prompt_encoder.shared_embedding.load_state_dict(model.shared_image_embedding.state_dict())
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("name", VIDEO_MODELS)
def test_parameters_are_those_of_the_table(name):
    with torch.device("meta"):
        model = Sam2VideoModel(video_config(VIDEO_MODELS[name].architecture, VIDEO_MODELS[name].native_size))
    assert sum(p.numel() for p in model.parameters()) == VIDEO_MODELS[name].parameters


def test_rows():
    for spec in VIDEO_MODELS.values():
        assert spec.from_scratch or spec.licence
        assert spec.native_size % spec.architecture.patch == 0
    assert hub_row("sam2.1-hiera-tiny").hub_id == "facebook/sam2.1-hiera-tiny"
    assert (VIDEO_MODELS["medsam2"].native_size, VIDEO_MODELS["medsam2"].safetensors) == (512, False)


def test_fresh_weights_come_from_the_seed():
    def drawn(seed: int) -> str:
        torch.manual_seed(seed)
        return fingerprint(video_model("sam2-test"))

    assert drawn(1) == drawn(1) != drawn(2)
    model = video_model("sam2-test", 96)
    assert (model.config.image_size, model.image_size) == (96, 96)
    tables = (
        model.shared_image_embedding.positional_embedding,
        model.prompt_encoder.shared_embedding.positional_embedding,
    )
    assert torch.equal(*tables)


def test_a_folder_of_the_library(folder):
    model = video_model(str(folder))
    saved = Sam2VideoModel.from_pretrained(folder)
    assert fingerprint(model) == fingerprint(saved)
    assert (native_size(str(folder)), model.config.image_size) == (96, 96)
    assert fingerprint(video_model(str(folder / "model.safetensors"))) == fingerprint(saved)
    assert video_model(str(folder), 64).config.image_size == 64
    assert stated_architecture(json.loads((folder / "config.json").read_text()), folder) == (TEST.architecture, 96)
    assert not model.training


def test_loading_leaves_the_generator_alone(folder):
    before = torch.get_rng_state()
    video_model(str(folder))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_blank_model_needs_no_weights(folder):
    (folder / "model.safetensors").unlink()
    assert code_of(CheckpointError, lambda: video_model(str(folder))) == "CKPT_MISSING"
    blank = video_model(str(folder), weights=False)
    assert blank.config.image_size == 96
    assert code_of(CheckpointError, lambda: video_model("sam2.1-hiera-tiny")) == "CKPT_MISSING"


def test_what_is_refused(folder, tmp_path):
    assert code_of(ConfigError, lambda: video_model("sam3")) == "BACKBONE_UNKNOWN"
    assert code_of(ConfigError, lambda: video_model("sam2-test", 40)) == "BACKBONE_SIZE"
    assert "--method sam2" in str(pytest.raises(ConfigError, build_backbone, "sam2.1-hiera-tiny", 64).value)
    weights = folder / "model.safetensors"
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    shutil.copy(folder / "config.json", pickled)
    (pickled / "MedSAM2_latest.pt").write_bytes(b"\x80\x02.")
    for name in (pickled, pickled / "MedSAM2_latest.pt"):
        assert code_of(CheckpointError, lambda name=name: video_model(str(name))) == "CKPT_PICKLE_REFUSED"
    save_file(build_backbone("sam-test", 64).state_dict(), weights)
    assert code_of(CheckpointError, lambda: video_model(str(folder))) == "CKPT_CONFIG"
    (folder / "config.json").write_text(json.dumps({"model_type": "sam"}))
    assert code_of(CheckpointError, lambda: video_model(str(folder))) == "CKPT_CONFIG"
    (folder / "config.json").write_text(json.dumps({"model_type": "sam2_video", "image_size": [64, 96]}))
    assert code_of(CheckpointError, lambda: video_model(str(folder))) == "CKPT_CONFIG"
    (folder / "config.json").unlink()
    assert code_of(CheckpointError, lambda: video_model(str(folder))) == "CKPT_CONFIG"


def test_a_cut_file_and_one_of_another_shape(folder):
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-5])
    assert code_of(CheckpointError, lambda: video_model(str(folder))) == "CKPT_TRUNCATED"
    weights.write_bytes(whole)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "memory_attention_num_layers": 2}))
    assert code_of(CheckpointError, lambda: video_model(str(folder))) == "CKPT_SHAPE"


def test_usual_numbers_are_filled_in():
    """A configuration of the library that differs from its defaults in nothing states nothing."""
    assert stated_architecture({"model_type": "sam2_video"}, Path("x")) == (VideoArchitecture(), 1024)
    whole = video_config(VIDEO_MODELS["sam2.1-hiera-large"].architecture, 1024).to_dict()
    assert stated_architecture(whole, Path("x")) == (VIDEO_MODELS["sam2.1-hiera-large"].architecture, 1024)


def test_the_registry_imports_and_downloads(folder, monkeypatch):
    """A published row of the test's size; its table of positions stands once in the file, as in tied checkpoints."""
    for name in ("STEADYSAM_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    row = replace(TEST, name="sam2-published", hub_id="someone/sam2", revision="a" * 40, licence="Apache-2.0")
    monkeypatch.setitem(VIDEO_MODELS, row.name, row)  # type: ignore[arg-type]
    state = Sam2VideoModel.from_pretrained(folder).state_dict()
    state.pop("prompt_encoder.shared_embedding.positional_embedding")
    save_file(state, folder / "model.safetensors")
    import_weights(row.name, folder)
    expected = fingerprint(Sam2VideoModel.from_pretrained(folder).vision_encoder)
    assert fingerprint(video_model(row.name).vision_encoder) == expected
    assert video_model(row.name).config.image_size == 64
    state.pop("no_object_pointer")
    save_file(state, folder / "model.safetensors")
    assert code_of(CheckpointError, lambda: import_weights(row.name, folder)) == "CKPT_SHAPE"
    with pytest.raises(CheckpointError, match="weights_only=True"):
        download("medsam2")

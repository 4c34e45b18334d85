"""The registry of weights and `steadysam models`."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from steadysam.backbones import BACKBONES, build_backbone, weights
from steadysam.backbones.fingerprint import fingerprint
from steadysam.backbones.table import BackboneSpec
from steadysam.backbones.video.table import VIDEO_MODELS
from steadysam.backbones.weights import download, find, import_weights, require
from steadysam.cli.models import app
from steadysam.errors import CheckpointError, ConfigError, NetworkError, SteadyError
from steadysam.files import sha256_file

NAME = "sam-test-published"


@pytest.fixture(autouse=True)
def published(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> BackboneSpec:
    """A row like those of the hub, but of the smallest size, and a home of its own."""
    for name in ("STEADYSAM_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("STEADYSAM_HOME", str(tmp_path / "home"))
    spec = row(decoder_heads=8)
    monkeypatch.setitem(BACKBONES, NAME, spec)  # type: ignore[arg-type]
    return spec


def row(decoder_heads: int) -> BackboneSpec:
    architecture = replace(BACKBONES["sam-test"].architecture, decoder_heads=decoder_heads)
    return replace(
        BACKBONES["sam-test"],
        name=NAME,
        architecture=architecture,
        hub_id="someone/sam",
        revision="a" * 40,
        licence="Apache-2.0",
    )


def model_file(folder: Path, seed: int = 0, size: int = 64) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    backbone = build_backbone("sam-test", size, seed=seed)
    save_file(backbone.state_dict(), folder / "model.safetensors")
    return folder / "model.safetensors"


def bring(file: Path):
    """A `fetch` that copies `file` instead of asking the hub."""

    def fetch(spec: BackboneSpec, folder: Path) -> Path:
        (folder / "model.safetensors").write_bytes(file.read_bytes())
        return folder / "model.safetensors"

    return fetch


def code_of(error: type[SteadyError], call) -> str:
    with pytest.raises(error) as caught:
        call()
    return caught.value.code


def test_import_then_build(tmp_path: Path, published: BackboneSpec):
    assert find(published) is None
    assert code_of(CheckpointError, lambda: build_backbone(NAME, 64)) == "CKPT_MISSING"
    file = model_file(tmp_path / "brought", seed=3)
    record = import_weights(NAME, file.parent)
    assert record.sha256 == sha256_file(file) == sha256_file(record.file)
    assert record == require(published)
    loaded = build_backbone(NAME, 64)
    assert fingerprint(loaded) == fingerprint(build_backbone("sam-test", 64, seed=3))
    assert build_backbone(NAME, 96).embedding_size == 12
    assert import_weights(NAME, file) == record  # again is nothing


def test_import_does_not_replace_other_weights(tmp_path: Path):
    import_weights(NAME, model_file(tmp_path / "a", seed=1))
    other = model_file(tmp_path / "b", seed=2)
    assert code_of(CheckpointError, lambda: import_weights(NAME, other)) == "CKPT_EXISTS"


def test_import_checks_everything_and_leaves_nothing(tmp_path: Path, published: BackboneSpec):
    file = model_file(tmp_path / "cut")
    file.write_bytes(file.read_bytes()[:-9])
    assert code_of(CheckpointError, lambda: import_weights(NAME, file)) == "CKPT_TRUNCATED"
    pickled = tmp_path / "sam_vit_b.pth"
    pickled.write_bytes(b"\x80\x02.")
    assert code_of(CheckpointError, lambda: import_weights(NAME, pickled)) == "CKPT_PICKLE_REFUSED"
    foreign = tmp_path / "foreign.safetensors"
    save_file(build_backbone("sam-tiny", 64).state_dict(), foreign)
    assert code_of(CheckpointError, lambda: import_weights(NAME, foreign)) == "CKPT_CONFIG"
    assert code_of(ConfigError, lambda: import_weights("sam-tiny", foreign)) == "BACKBONE_UNKNOWN"
    assert find(published) is None
    assert not list((tmp_path / "home").rglob("*.safetensors"))


def test_damage_after_the_import_is_seen(tmp_path: Path):
    record = import_weights(NAME, model_file(tmp_path / "a"))
    content = bytearray(record.file.read_bytes())
    content[-2] ^= 1
    record.file.write_bytes(content)
    assert code_of(CheckpointError, lambda: build_backbone(NAME, 64)) == "CKPT_HASH"


def test_download_says_the_licence_first_and_verifies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = model_file(tmp_path / "hub", seed=5)
    spec = replace(row(8), sha256=sha256_file(file))
    monkeypatch.setitem(BACKBONES, NAME, spec)  # type: ignore[arg-type]
    said: list[str] = []

    def fetch(spec: BackboneSpec, folder: Path) -> Path:
        assert any("Apache-2.0" in text and "a" * 40 in text for text in said)
        return bring(file)(spec, folder)

    record = download(NAME, say=said.append, fetch=fetch)
    assert record.source == f"hub:someone/sam@{'a' * 40}"
    assert len(said) == 1
    assert fingerprint(build_backbone(NAME, 64)) == fingerprint(build_backbone("sam-test", 64, seed=5))

    def never(spec: BackboneSpec, folder: Path) -> Path:
        raise AssertionError("it is here already")

    assert download(NAME, say=said.append, fetch=never) == record


def test_download_without_a_known_hash_says_so(tmp_path: Path):
    file = model_file(tmp_path / "hub")
    said: list[str] = []
    download(NAME, say=said.append, fetch=bring(file))
    assert sha256_file(file) in said[-1]
    assert "not pinned" in said[-1]


def test_download_with_another_hash_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, published: BackboneSpec
):
    monkeypatch.setitem(BACKBONES, NAME, replace(published, sha256="0" * 64))  # type: ignore[arg-type]
    fetch = bring(model_file(tmp_path / "hub"))
    assert code_of(NetworkError, lambda: download(NAME, fetch=fetch)) == "CKPT_HASH"
    assert find(published) is None
    assert not list((tmp_path / "home").rglob("*.safetensors"))


def test_a_download_that_breaks_off(tmp_path: Path, published: BackboneSpec):
    file = model_file(tmp_path / "hub")
    file.write_bytes(file.read_bytes()[:-100])
    assert code_of(CheckpointError, lambda: download(NAME, fetch=bring(file))) == "CKPT_TRUNCATED"
    assert find(published) is None


def test_no_network(monkeypatch: pytest.MonkeyPatch):
    import huggingface_hub

    def fail(*args: object, **options: object):
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", fail)
    with pytest.raises(NetworkError) as error:
        download(NAME)
    assert error.value.code == "NET_DOWNLOAD"
    assert "models import" in str(error.value)


@pytest.mark.parametrize("variable", ["STEADYSAM_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_mode(monkeypatch: pytest.MonkeyPatch, variable: str):
    monkeypatch.setenv(variable, "1")
    with pytest.raises(NetworkError) as error:
        download(NAME)
    assert error.value.code == "NET_OFFLINE"
    assert error.value.exit_code == 11
    assert "models import" in str(error.value)


def test_repositories_with_pickles_only_are_refused():
    with pytest.raises(CheckpointError) as error:
        download("medsam-vit-base")
    assert error.value.code == "CKPT_PICKLE_REFUSED"
    assert "models import medsam-vit-base" in str(error.value)


def test_a_spoilt_record(tmp_path: Path):
    record = import_weights(NAME, model_file(tmp_path / "a"))
    (record.file.parent / "record.json").write_text("[]")
    assert code_of(CheckpointError, lambda: build_backbone(NAME, 64)) == "CKPT_FORMAT"


def test_every_published_row_is_pinned():
    for spec in BACKBONES.values():
        assert spec.packaged + (spec.hub_id is not None) + bool(spec.source) + spec.from_scratch == 1, spec.name
        if spec.hub_id is not None:
            assert spec.pinned, spec.name
        if not spec.from_scratch:
            assert spec.licence == "Apache-2.0"
            assert spec.sha256 is None or len(spec.sha256) == 64
    assert weights.hub_row("sam-vit-base").sha256 is not None


def run(*words: str) -> None:
    app(list(words), result_action="return_value")


def test_list_as_json(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    import_weights(NAME, model_file(tmp_path / "a"))
    run("list", "--json")
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert set(rows) == set(BACKBONES) | set(VIDEO_MODELS)
    assert rows["sam-vit-base"]["parameters"] == 93_735_728
    assert rows["sam-vit-base"]["file"] is None
    assert rows[NAME]["file"].endswith("model.safetensors")


def test_list_as_a_table(capsys: pytest.CaptureFixture[str]):
    run("list")
    text = capsys.readouterr().out
    assert all(name in text for name in BACKBONES)
    assert "not here" in text


def test_import_by_command(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    file = model_file(tmp_path / "a")
    run("import", NAME, str(file), "--home", str(tmp_path / "elsewhere"))
    assert sha256_file(file) in capsys.readouterr().out
    assert (tmp_path / "elsewhere" / "weights" / NAME / "model.safetensors").is_file()


def test_list_imports_no_torch_and_is_quick():
    script = (
        "import sys; from steadysam.cli.models import app; app(['list'], result_action='return_value');"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_two_downloads_at_once_bring_one_file(tmp_path: Path):
    from concurrent.futures import ThreadPoolExecutor

    file = model_file(tmp_path / "hub")
    calls: list[int] = []

    def fetch(spec: BackboneSpec, folder: Path) -> Path:
        calls.append(1)
        return bring(file)(spec, folder)

    with ThreadPoolExecutor(2) as pool:
        records = list(pool.map(lambda _: download(NAME, fetch=fetch), range(2)))
    assert records[0] == records[1]
    assert len(calls) == 1


def test_weights_stay_the_same_whatever_the_global_generator(tmp_path: Path):
    import_weights(NAME, model_file(tmp_path / "a"))
    torch.manual_seed(0)
    before = torch.get_rng_state()
    build_backbone(NAME, 64)
    assert torch.equal(torch.get_rng_state(), before)

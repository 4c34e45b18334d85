"""nnU-Net's environment: found where it is said to be, refused with a way out elsewhere, installed step by step."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from nnunettoys import stand_in
from steadysam.errors import ExternalError, ResourceError
from steadysam.external.nnunet import environment as nnunet
from toys import steadysam


def test_it_is_looked_for_where_the_variable_says_else_in_the_home(tmp_path, monkeypatch, steadysam_home):
    monkeypatch.delenv(nnunet.VARIABLE, raising=False)
    assert nnunet.environment_folder() == steadysam_home / "envs" / "nnunet"
    assert nnunet.environment_folder(tmp_path) == tmp_path / "envs" / "nnunet"
    monkeypatch.setenv(nnunet.VARIABLE, str(tmp_path / "mine"))
    assert nnunet.environment_folder() == tmp_path / "mine"
    stand_in(tmp_path / "mine")
    found = nnunet.find_environment()
    assert found.program("nnUNetv2_train") == tmp_path / "mine" / "bin" / "nnUNetv2_train"
    assert found.facts["versions"]["python"].split(".")[:2] == [str(n) for n in sys.version_info[:2]]
    assert found.facts["cuda"] in (True, False)


def test_a_missing_environment_says_how_to_make_it(monkeypatch, capsys, tmp_path):
    monkeypatch.delenv(nnunet.VARIABLE, raising=False)
    with pytest.raises(ExternalError) as caught:
        nnunet.find_environment()
    assert caught.value.code == "NNUNET_MISSING"
    assert "steadysam nnunet install" in str(caught.value.fix)
    assert steadysam("nnunet", "predict", "-i", tmp_path, "-m", tmp_path, "-o", tmp_path / "out") == 5  # no run either


def test_commands_get_no_python_path_of_ours_and_what_the_user_sets_wins(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    monkeypatch.setenv("nnUNet_def_n_proc", "3")
    told = nnunet.nnunet_variables(Path("/run"), "cpu", 2, nnUNet_n_proc_DA="0")
    assert "PYTHONPATH" not in told
    assert told["nnUNet_raw"] == str(Path("/run/raw"))
    assert (told["nnUNet_def_n_proc"], told["nnUNet_n_proc_DA"]) == ("3", "0")


def test_one_card_is_shown_to_nnunet_which_takes_the_first_that_it_sees(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    told = [nnunet.nnunet_variables(Path("/run"), device, 1) for device in ("cuda", "cuda:2")]
    assert [words.get("CUDA_VISIBLE_DEVICES") for words in told] == [None, "2"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    told = [nnunet.nnunet_variables(Path("/run"), device, 1) for device in ("cuda", "cuda:1")]
    assert [words["CUDA_VISIBLE_DEVICES"] for words in told] == ["4,7", "7"]


@pytest.mark.parametrize("matching", [True, False])
def test_install_pins_versions_and_replaces_a_torch_that_torchvision_cannot_use(tmp_path, monkeypatch, matching):
    said: list[list[str]] = []

    def run(command, log, variables):
        words = [str(word) for word in command]
        said.append(words)
        if words[1:3] == ["-m", "venv"]:
            stand_in(Path(words[3]))
        if "import torchvision" in words and not matching and sum("import torchvision" in w for w in said) == 1:
            raise ExternalError("EXTERNAL_FAILED", "operator torchvision::nms does not exist")

    monkeypatch.setattr(nnunet, "run_logged", run)
    made = nnunet.install(tmp_path)
    pins = made.folder / "constraints.txt"
    assert "nnunetv2==2.8.1\n" in pins.read_text("utf-8")
    assert "torch==2.13.0\n" in pins.read_text("utf-8")
    assert said[1][1:] == ["-m", "pip", "install", "--disable-pip-version-check", "-c", str(pins), "nnunetv2==2.8.1"]
    again = [words for words in said if "torch===2.13.0" in words]
    assert len(again) == (0 if matching else 1)


def test_install_wants_space(tmp_path, monkeypatch):
    monkeypatch.setattr(nnunet, "_NEEDED_BYTES", 1 << 60)
    with pytest.raises(ResourceError) as caught:
        nnunet.install(tmp_path)
    assert caught.value.code == "EXTERNAL_DISK"
    assert not (tmp_path / "envs" / "nnunet").exists()

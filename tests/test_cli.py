"""The command line: train, predict, evaluate as a user types them; exit codes, help, and a quick start."""

import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest

from steadysam import __version__, cli
from steadysam.config import to_toml
from steadysam.files import read_json, write_json, write_text
from steadysam.methods import METHODS
from toys import leftovers, steadysam, toy_run_values

COMMANDS = [
    *("train", "predict", "evaluate", "info", "prompts check", "prompts convert", "prompts simulate"),
    *("prompts corrupt", "models list", "models download", "models import", "demo", "segment-click", "pretrain"),
    *("draw", "bench", "report", "nnunet install", "nnunet export", "nnunet train", "nnunet predict"),
]


def shell(*words: str, **environment: str) -> subprocess.CompletedProcess:
    """The real thing, in its own process."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, "-m", "steadysam", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=env)


@pytest.fixture(scope="module")
def work(toy_dataset, tmp_path_factory) -> Path:
    """A folder in which a user has trained, predicted with simulated prompts, and evaluated."""
    folder = tmp_path_factory.mktemp("user")
    values = toy_run_values(toy_dataset)
    values["method"]["stage1"] = values["method"]["stage2"] = {"epochs": 2, "learning_rate": 3e-3}
    del values["data"], values["backbone"]
    write_text(folder / "run.toml", to_toml(values))
    train = ["train", toy_dataset, "--label", "blob", "--backbone", "sam-test", "--config", folder / "run.toml"]
    train += ["--set", "method.tau=0.45", "--set", "compute.seed=4", "-o", folder / "run"]
    assert steadysam(*train) == 0
    simulate = ["prompts", "simulate", toy_dataset, "-o", folder / "promptsTs", "--label", "blob", "--part", "Ts"]
    assert steadysam(*simulate) == 0
    predict = ["predict", "-i", toy_dataset / "imagesTs", "--prompts", folder / "promptsTs", "-m", folder / "run"]
    assert steadysam(*predict, "-o", folder / "out", "--threads", 1, "--cache", "off") == 0
    evaluate = ["evaluate", folder / "out", toy_dataset / "labelsTs", "--images", toy_dataset / "imagesTs"]
    assert steadysam(*evaluate, "-o", folder / "report") == 0
    return folder


def test_train_leaves_a_run_folder(work):
    record = read_json(work / "run" / "run.json")
    assert record["status"] == "finished"
    config = (work / "run" / "config.toml").read_text()
    for line in ("tau = 0.45", "seed = 4", 'label = "blob"', 'name = "sam-test"', "size = 32"):
        assert line in config, line
    names = {path.name for path in (work / "run").iterdir()}
    assert names >= {"run.json", "config.toml", "weights.safetensors", "prompts", "logs"}
    assert leftovers(work) == []


def test_predict_leaves_masks_audits_and_a_record(work):
    names = sorted(path.name for path in (work / "out").iterdir())
    assert names == ["pictures", "run.json", "toy_5.audit.json", "toy_5.audit.mrk.json", "toy_5.nii.gz"]
    record = read_json(work / "out" / "run.json")
    assert record["prompt_sources"] == ["simulated"]
    assert record["run"]["weights_sha256"] == read_json(work / "run" / "run.json")["weights_sha256"]


def test_evaluate_leaves_a_report(work):
    names = {path.name for path in (work / "report").iterdir()}
    assert names == {"metrics.json", "slices.csv", "cases.csv", "report.html"}
    metrics = read_json(work / "report" / "metrics.json")
    assert "dsc" in json.dumps(metrics)
    page = (work / "report" / "report.html").read_text()
    HTMLParser().feed(page)
    assert "toy_5" in page
    assert "<img" in page or "data:image" in page or "<svg" in page
    assert not re.search(r'(src|href)="https?://', page), "a report needs no network"


def test_training_again_or_on(work, toy_dataset, capsys):
    """A finished run is not overwritten; `--continue` with the same settings has nothing to do."""
    words = ["train", toy_dataset, "--label", "blob", "--backbone", "sam-test", "--config", work / "run.toml"]
    words += ["--set", "method.tau=0.45", "--set", "compute.seed=4", "-o", work / "run"]
    before = (work / "run" / "weights.safetensors").read_bytes()
    assert steadysam(*words) == 8
    assert "FS_EXISTS" in capsys.readouterr().err
    assert steadysam(*words, "--continue") == 0
    assert steadysam(*words, "--continue", "--set", "method.tau=0.2") == 3
    assert "RESUME_CONFIG_DIFF" in capsys.readouterr().err
    assert (work / "run" / "weights.safetensors").read_bytes() == before


def test_predict_cuts_slices_as_training_did(toy_dataset, work, tmp_path):
    """The data set says across which axis; images alone do not, and their spacing says otherwise."""
    import shutil

    data = tmp_path / "Dataset002_Axis"
    shutil.copytree(toy_dataset, data)
    write_json(data / "dataset.json", {**read_json(data / "dataset.json"), "slice_axis": 0})
    words = ["train", data, "--label", "blob", "--backbone", "sam-test", "--size", 32, "-o", tmp_path / "run"]
    words += [w for n in (1, 2) for w in ("--set", f"method.stage{n}.epochs=0")]
    assert steadysam(*words, "--set", "compute.cache=off") == 0
    words = ["predict", "-i", data / "imagesTs", "--prompts", work / "promptsTs", "-m", tmp_path / "run"]
    for more, axis in (((), 0), (("--slice-axis", 2), 2)):
        assert steadysam(*words, "-o", tmp_path / "out", "--cache", "off", *more) == 0
        assert read_json(tmp_path / "out" / "run.json")["cases"][0]["slice_axis"] == axis


def test_inference_settings_are_recorded(work, toy_dataset, tmp_path):
    words = ["predict", "-i", toy_dataset / "imagesTs", "--prompts", work / "promptsTs", "-m", work / "run"]
    words += ["-o", tmp_path / "out", "--set", "tau=1.0", "--set", "empty=empty_mask", "--cache", "off"]
    assert steadysam(*words) == 0
    record = read_json(tmp_path / "out" / "run.json")
    assert record["overrides"] == {"tau": 1.0, "empty": "empty_mask"}
    assert record["cases"][0]["notes"]["foreground_voxels"] == 0


def test_the_threshold_and_the_picture(work, toy_dataset, tmp_path):
    words = ["predict", "-i", toy_dataset / "imagesTs", "--prompts", work / "promptsTs", "-m", work / "run"]
    voxels = []
    for name, more in (("low", ["--threshold", 0]), ("high", ["--threshold", 0.999, "--pictures", 0])):
        assert steadysam(*words, "-o", tmp_path / name, *more) == 0
        record = read_json(tmp_path / name / "run.json")
        assert record["threshold"] == more[1]
        voxels.append(record["cases"][0]["notes"]["foreground_voxels"])
    assert voxels[0] > voxels[1]
    assert (tmp_path / "low" / "pictures" / "masks.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "high" / "pictures").exists()
    assert steadysam(*words, "-o", tmp_path / "none", "--threshold", 1) == 2
    assert not (tmp_path / "none").exists()


def test_the_cache_is_used_and_changes_nothing(work, toy_dataset, tmp_path):
    words = ["predict", "-i", toy_dataset / "imagesTs", "--prompts", work / "promptsTs", "-m", work / "run"]
    for n in range(2):
        assert steadysam(*words, "-o", tmp_path / str(n), "--cache", tmp_path / "cache", "--threads", 1) == 0
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 1
    for name in ("toy_5.nii.gz", "toy_5.audit.json", "toy_5.audit.mrk.json"):
        contents = {(folder / name).read_bytes() for folder in (work / "out", tmp_path / "0", tmp_path / "1")}
        assert len(contents) == 1, name


@pytest.mark.parametrize(
    "words, code, hint",
    [
        (["train", "--no-such-flag"], 2, "no-such-flag"),
        (["predict"], 2, "--input"),
        (["nonsense"], 2, "nonsense"),
        (["train", "{data}", "-o", "{tmp}/run", "--set", "method.tua=1"], 3, "did you mean 'tau'?"),
        (["train", "{data}", "-o", "{tmp}/run", "--method", "nothing"], 3, "sam_tuning"),
        (["train", "{data}", "-o", "{tmp}/run", "--backbone", "resnet"], 3, "sam-tiny"),
        (["train", "-o", "{tmp}/run"], 3, "CONFIG_MISSING"),
        (["train", "{data}", "-o", "{tmp}/run", "--method", "unet", "--prompts", "{tmp}/no"], 4, "FILE_MISSING"),
        (["train", "{tmp}/nothing", "-o", "{tmp}/run"], 4, "DATA_NO_JSON"),
        (["train", "{data}", "-o", "{tmp}/run", "--config", "{tmp}/no.toml"], 4, "FILE_MISSING"),
        (["predict", "-i", "{image}", "--prompts", "{tmp}/no.json", "-m", "{run}", "-o", "{tmp}/out"], 4, "no.json"),
        (["predict", "-i", "{image}", "--prompts", "{tmp}", "-m", "{data}", "-o", "{tmp}/out"], 5, "RUN_MISSING"),
        (["predict", "-i", "{image}", "--prompts", "{tmp}", "-m", "{run}", "-o", "o", "-d", "cuda:77"], 7, "cuda:77"),
    ],
)
def test_exit_codes(work, toy_dataset, tmp_path, capsys, words, code, hint):
    places = {"data": toy_dataset, "run": work / "run", "tmp": tmp_path}
    places["image"] = toy_dataset / "imagesTs" / "toy_5_0000.nii.gz"
    assert steadysam(*(word.format(**places) for word in words)) == code
    said = capsys.readouterr()
    assert hint in said.err + said.out
    assert "Traceback" not in said.err + said.out
    assert leftovers(tmp_path) == []


def test_what_is_not_used_is_said(toy_dataset, tmp_path, caplog):
    words = ["train", toy_dataset, "--label", "blob", "--method", "unet", "--size", 32, "--prompts", tmp_path]
    words += ["--set", "method.tuning.epochs=1", "--set", "compute.cache=off", "-o", tmp_path / "run", "--continue"]
    assert steadysam(*words) == 0
    assert f"unet looks at no prompts: {tmp_path} is not used" in caplog.text
    assert "holds no run to go on with: a new one starts" in caplog.text


@pytest.mark.parametrize(("command", "hint"), [("train", "--continue goes on"), ("bench", "goes on"), ("info", "")])
def test_an_interruption_says_how_to_go_on(monkeypatch, capsys, command, hint):
    def interrupted(tokens):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "app", interrupted)
    monkeypatch.setattr(logging.Logger, "setLevel", lambda logger, level: None)  # it would outlive this test
    assert cli.launch(command) == 130
    said = capsys.readouterr().err
    assert said.startswith("interrupted; what was written is whole")
    assert hint in said
    assert ("same command" in said) == bool(hint)


def test_debug_shows_where_an_error_was_raised(tmp_path):
    from steadysam.errors import CheckpointError

    (tmp_path / "p.json").write_text("{}")
    words = ["predict", "-i", tmp_path, "--prompts", tmp_path, "-m", tmp_path, "-o", tmp_path / "o", "--debug"]
    with pytest.raises(CheckpointError, match="RUN_MISSING"):
        steadysam(*words)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_has_an_example(command, capsys):
    assert steadysam(*command.split(), "--help") == 0
    said = capsys.readouterr().out
    assert f"steadysam {command}" in said.split("For example:")[1]
    assert said.startswith("Usage: steadysam")


def test_the_examples_of_the_help_parse():
    """Every flag in an example of these commands' help is one that the command has."""
    from steadysam.cli.click import segment_click
    from steadysam.cli.predict import predict
    from steadysam.cli.pretrain import pretrain
    from steadysam.cli.train import train

    for function in (train, predict, segment_click, pretrain):
        text = (function.__doc__ or "").split("Parameters\n")[0]
        foreign = {"--continue", "--multi_gpu", "--backbone"} if function is pretrain else {"--continue"}
        flags = set(re.findall(r"(?<= )--[a-z_-]+", text)) - foreign
        known = {f"--{name.strip('_').replace('_', '-')}" for name in function.__annotations__} | {"--set"}
        assert flags <= known, flags - known


def test_info_json(capsys):
    assert steadysam("info", "--json") == 0
    content = json.loads(capsys.readouterr().out)
    assert set(content["methods"]) == set(METHODS)
    assert set(content) == {"versions", "methods", "backbones", "simulators", "corruptions", "metrics"}
    assert content["versions"]["steadysam"] == __version__
    for part in ("simulators", "corruptions"):
        assert all(text.endswith(".") for text in content[part].values()), "texts are whole sentences"


@pytest.mark.parametrize("words", [["--help"], ["prompts", "--help"], ["info", "--json"], ["models", "list"]])
def test_these_start_without_torch(words):
    """In a process of its own: torch, transformers and scipy stay unimported, and it takes about a second at most."""
    program = (
        "import sys\n"
        f"sys.argv = {['steadysam', *words]!r}\n"
        "from steadysam.cli import main\n"
        "try:\n    main()\n"
        "finally:\n"
        "    heavy = {'torch', 'transformers', 'scipy', 'matplotlib', 'SimpleITK'} & set(sys.modules)\n"
        "    print('heavy:', sorted(heavy), file=sys.stderr)\n"
    )
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip().endswith("heavy: []")
    assert time.monotonic() - started < 10, "generous, for a busy machine"


def test_an_error_in_a_real_process(tmp_path):
    """At most two lines on stderr, nothing on stdout, the exit code of the error."""
    clicks = tmp_path / "clicks.json"
    clicks.write_text('{"format": "steadysam-prompts"')
    done = shell("prompts", "convert", str(clicks), "-o", str(tmp_path / "out.json"))
    assert done.returncode == 4
    assert done.stdout == ""
    assert not (tmp_path / "out.json").exists()
    assert done.stderr.startswith("error[JSON_SYNTAX]")
    assert str(clicks) in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 2


def test_version(capsys):
    assert steadysam("--version") == 0
    assert capsys.readouterr().out.strip() == __version__


def test_quiet_and_verbose(work, toy_dataset, tmp_path, caplog, capsys):
    """`-q` says errors only; the default names what was written; `-v` says how each slice axis was chosen."""
    words = ["predict", "-i", toy_dataset / "imagesTs", "--prompts", work / "promptsTs", "-m", work / "run"]
    words += ["-o", tmp_path / "out", "--cache", "off"]
    said = {}
    for flag in ("-q", "-v"):
        caplog.clear()
        assert steadysam(*words, flag) == 0
        said[flag] = caplog.text + capsys.readouterr().err
    assert said["-q"] == ""
    assert "run.json" in said["-v"]
    assert "slices across axis 2" in said["-v"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_nothing_half_done_and_says_so(tmp_path, number, code):
    words = [sys.executable, "-m", "steadysam", "draw", "-o", "drawn", "--images", "100000"]
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background job ignores it, and hands that down
    try:
        process = subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, before)
    for _ in range(600):
        if list(tmp_path.glob(".tmp-*/*/*")):
            break
        time.sleep(0.1)
    process.send_signal(number)
    try:
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()  # one that did not listen would draw for hours
    assert process.returncode == code
    assert "interrupted; what was written is whole" in said
    assert list(tmp_path.iterdir()) == []


def test_labels_that_are_not_there(tmp_path, capsys):
    (tmp_path / "out").mkdir()
    assert steadysam("evaluate", tmp_path / "out", tmp_path / "nope", "-o", tmp_path / "report") == 4
    assert "FILE_MISSING" in capsys.readouterr().err


def test_images_of_other_cases_are_said_to_give_no_pictures(work, toy_dataset, tmp_path, caplog):
    words = ["evaluate", work / "out", toy_dataset / "labelsTs", "--images", toy_dataset / "imagesTr"]
    assert steadysam(*words, "-o", tmp_path / "report") == 0
    assert "has no image of these cases: no pictures are drawn" in caplog.text


@pytest.mark.parametrize("command", ["predict", "detect"])
def test_an_axis_that_no_volume_has(work, toy_dataset, tmp_path, command):
    words = [command, "-i", toy_dataset / "imagesTs", "-m", work / "run", "-o", tmp_path / "out"]
    assert steadysam(*words, "--slice-axis", 5) == 2
    assert not (tmp_path / "out").exists()

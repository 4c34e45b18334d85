"""`steadysam prompts` from a user's seat."""

import json
import subprocess
import sys

import numpy as np
import pytest

from steadysam.cli import app
from steadysam.data.volumes import read_grid, read_label_map, write_volume
from steadysam.errors import SteadyError
from steadysam.geometry import ras_to_voxel
from steadysam.prompts.files import read_prompts
from steadysam.prompts.sets import read_set
from steadysam.prompts.simulate import SIMULATORS, generator_for


def run(*words) -> int:
    """Exit code of `steadysam prompts WORDS`; typed errors come through."""
    try:
        app(["prompts", *map(str, words)])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.fixture
def image(toy_dataset):
    return toy_dataset / "imagesTr" / "toy_0_0000.nii.gz"


@pytest.fixture
def label(toy_dataset):
    return toy_dataset / "labelsTr" / "toy_0.nii.gz"


def test_simulate_a_data_set_is_a_frozen_set(toy_dataset, tmp_path, capsys):
    words = (
        "simulate",
        toy_dataset,
        "--label",
        "blob",
        "--seed",
        3,
        "--set",
        "k=1",
        "--set",
        "empty_rule=none",
    )
    assert run(*words, "-o", tmp_path / "s", "--part", "Tr") == 0
    assert "5 cases" in capsys.readouterr().out
    found = read_set(tmp_path / "s")
    assert sorted(found.files) == [f"toy_{n}" for n in range(5)]
    assert found.meta["options"] == {"k": 1, "empty_rule": "none"}
    labels, grid = read_label_map(toy_dataset / "labelsTr" / "toy_2.nii.gz")
    by_hand = SIMULATORS["paper"](labels > 0, grid, generator_for(3, "paper", "toy_2"), k=1, empty_rule="none")
    image_grid = read_grid(toy_dataset / "imagesTr" / "toy_2_0000.nii.gz")
    prompts = found.read("toy_2", image_grid)
    assert np.allclose(prompts.points_mm(), by_hand.points_mm(), atol=1e-4)
    assert prompts.history[0]["seed"] == 3
    assert prompts.image.name == "toy_2_0000.nii.gz"
    assert run(*words, "-o", tmp_path / "s", "--part", "Tr") == 0  # the same again is no error
    with pytest.raises(SteadyError, match="FS_EXISTS"):
        run(*words[:4], "-o", tmp_path / "s", "--seed", 4)


def test_simulate_one_label_file(label, image, tmp_path):
    out = tmp_path / "c.json"
    assert run("simulate", label, "-o", out, "--simulator", "clicks", "--set", "n=2", "--image", image) == 0
    labels, _ = read_label_map(label)
    grid = read_grid(image)
    prompts = read_prompts(out, grid)
    ijk = np.rint(ras_to_voxel(prompts.points_mm(), grid)).astype(int)
    assert labels[tuple(ijk.T)].all()
    assert run("simulate", label, "-o", tmp_path / "d.json", "--label", "7", "--simulator", "clicks") == 0
    assert len(read_prompts(tmp_path / "d.json")) == 0


@pytest.mark.parametrize(
    "words, code",
    [
        (["--simulator", "nobody"], "PROMPT_OPTION"),
        (["--set", "k"], "USAGE"),
        (["--set", "k=many"], "PROMPT_OPTION"),
        (["--label", "LV"], "USAGE"),
        (["--part", "Ts"], "USAGE"),
        (["-o", "x.txt"], "USAGE"),
    ],
)
def test_impossible_wishes(label, tmp_path, words, code):
    with pytest.raises(SteadyError, match=code):
        run("simulate", label, *([] if "-o" in words else ["-o", tmp_path / "c.json"]), *words)
    assert not (tmp_path / "c.json").exists()


def test_check_exit_codes_and_json(label, image, tmp_path, capsys):
    good = tmp_path / "c.json"
    run("simulate", label, "-o", good, "--image", image)
    capsys.readouterr()
    assert run("check", good, "--image", image) == 0
    assert "source simulated" in capsys.readouterr().out
    content = json.loads(good.read_text())
    content["prompts"][0]["coordinates"][2] += 500
    (tmp_path / "bad.json").write_text(json.dumps(content))
    assert run("check", tmp_path / "bad.json", "--image", image, "--json") == 4
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is False
    assert report["findings"][0]["code"] == "PROMPT_OUTSIDE"
    assert report["findings"][0]["data"]["distance_mm"] > 400


def test_check_tells_a_wrong_frame_and_a_wrong_image(label, image, toy_dataset, tmp_path, capsys):
    run("simulate", label, "-o", tmp_path / "c.json", "--simulator", "clicks", "--set", "n=5")
    content = json.loads((tmp_path / "c.json").read_text())
    (tmp_path / "lps.json").write_text(json.dumps({**content, "frame": "LPS"}))
    capsys.readouterr()
    assert run("check", tmp_path / "lps.json", "-i", image) == 4
    assert "PROMPT_SPACE_SUSPECT" in capsys.readouterr().out
    content["image"]["shape"] = [1, 2, 3]
    (tmp_path / "other.json").write_text(json.dumps(content))
    assert run("check", tmp_path / "other.json", "-i", image, "--header-only") == 4
    assert "PROMPT_WRONG_IMAGE" in capsys.readouterr().out


def test_check_a_folder_against_a_data_set(toy_dataset, tmp_path, capsys):
    run("simulate", toy_dataset, "-o", tmp_path / "s", "--label", "blob")
    capsys.readouterr()
    assert run("check", tmp_path / "s", "-i", toy_dataset, "--json") == 0
    assert len(json.loads(capsys.readouterr().out)) == 6
    assert run("check", tmp_path / "s", "-i", toy_dataset / "imagesTs") == 0
    with pytest.raises(SteadyError, match="PROMPT_CASE_MISSING"):
        run("check", toy_dataset, "-i", toy_dataset)


def test_convert_there_and_back(label, image, tmp_path):
    first = tmp_path / "c.json"
    run("simulate", label, "-o", first, "--image", image)
    assert run("convert", first, "-o", tmp_path / "c.mrk.json") == 0
    assert run("convert", tmp_path / "c.mrk.json", "-o", tmp_path / "ijk.json", "-i", image, "--frame", "ijk") == 0
    assert json.loads((tmp_path / "ijk.json").read_text())["frame"] == "ijk"
    grid = read_grid(image)
    before, after = read_prompts(first, grid), read_prompts(tmp_path / "ijk.json", grid)
    assert np.allclose(before.points_mm(), after.points_mm(), atol=1e-4)
    assert after.sources == ("simulated",)
    assert after.image == before.image


def test_convert_scribbles(label, image, tmp_path):
    labels, grid = read_label_map(label)
    strokes = np.full(labels.shape, 4, np.uint8)
    strokes[::3][labels[::3] > 0] = 1
    strokes[0] = 0
    write_volume(tmp_path / "s.nii.gz", strokes, grid)
    words = ("convert", tmp_path / "s.nii.gz", "-o", tmp_path / "s.json", "-i", image, "--ignore", 4)
    with pytest.raises(SteadyError, match="--value"):
        run(*words)
    assert run(*words, "--value", 1, "--per-slice", 2, "--negatives", 1) == 0
    prompts = read_prompts(tmp_path / "s.json", read_grid(image))
    assert prompts.sources == ("scribble",)
    assert [point.sign for point in prompts.points].count("negative") == grid.depth
    write_volume(tmp_path / "t.nii.gz", strokes[1:], grid.__class__((19, 26, 4), grid.affine, 2))
    with pytest.raises(SteadyError, match="PROMPT_GRID"):
        run("convert", tmp_path / "t.nii.gz", "-o", tmp_path / "t.json", "-i", image, "--value", 1)


def test_convert_never_replaces_its_input(label, tmp_path):
    run("simulate", label, "-o", tmp_path / "c.json")
    before = (tmp_path / "c.json").read_bytes()
    with pytest.raises(SteadyError, match="USAGE"):
        run("convert", tmp_path / "c.json", "-o", tmp_path / "c.json")
    with pytest.raises(SteadyError, match="always written in LPS"):
        run("convert", tmp_path / "c.json", "-o", tmp_path / "c.mrk.json", "--frame", "RAS")
    assert (tmp_path / "c.json").read_bytes() == before


def test_corrupt_a_file_and_a_set(toy_dataset, label, image, tmp_path):
    run("simulate", label, "-o", tmp_path / "c.json", "--image", image)
    words = ("corrupt", tmp_path / "c.json", "-i", image, "--corruption")
    assert run(*words, "jitter", "--severity", 0.5, "-o", tmp_path / "j.json", "--seed", 2) == 0
    assert run(*words, "jitter", "--severity", 0, "-o", tmp_path / "zero.json") == 0
    assert run(*words, "lookalike", "--severity", 1, "-o", tmp_path / "l.json") == 0
    before, jittered = read_prompts(tmp_path / "c.json"), read_prompts(tmp_path / "j.json")
    assert (tmp_path / "zero.json").read_bytes() == (tmp_path / "c.json").read_bytes()
    assert jittered.key() != before.key()
    assert [step["step"] for step in jittered.history] == ["simulate", "corrupt"]
    assert jittered.history[1]["seed"] == 2
    with pytest.raises(SteadyError, match="no such corruption"):
        run(*words, "melt", "--severity", 1, "-o", tmp_path / "m.json")
    run("simulate", toy_dataset, "-o", tmp_path / "s", "--label", "blob")
    words = ("corrupt", tmp_path / "s", "-i", toy_dataset, "--corruption", "drop", "--severity")
    assert run(*words, 0.5, "-o", tmp_path / "d") == 0
    assert run(*words, 0, "-o", tmp_path / "same") == 0
    first, dropped, same = (read_set(tmp_path / name) for name in ("s", "d", "same"))
    assert first.hash == same.hash != dropped.hash
    assert dropped.meta["from"] == first.hash
    assert dropped.meta["corruptions"] == [{"corruption": "drop", "severity": 0.5, "seed": 0}]


@pytest.mark.parametrize("words", [["--help"], ["check", "--help"], ["simulate", "--help"]])
def test_help_teaches(words, capsys):
    assert run(*words) == 0
    text = capsys.readouterr().out
    assert ("steadysam prompts " + words[0]) in text or words == ["--help"]


def test_commands_do_not_import_torch(label, image, tmp_path):
    code = (
        "import sys\n"
        "from steadysam.cli import app\n"
        "for words in {0!r}:\n"
        "    try: app(words)\n"
        "    except SystemExit as end: assert not end.code, end.code\n"
        "heavy = {{'torch', 'transformers', 'SimpleITK', 'matplotlib'}} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    out = str(tmp_path / "c.json")
    commands = [
        ["prompts", "simulate", str(label), "-o", out, "--image", str(image)],
        ["prompts", "check", out, "--image", str(image)],
        ["prompts", "convert", out, "-o", str(tmp_path / "c.mrk.json")],
        [
            "prompts",
            "corrupt",
            out,
            "-o",
            str(tmp_path / "d.json"),
            "-i",
            str(image),
            "--corruption",
            "shift",
            "--severity",
            "1",
        ],
    ]
    result = subprocess.run([sys.executable, "-c", code.format(commands)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.real_data
def test_scribbles_of_real_annotators_fit_their_images(real_data, tmp_path, capsys):
    folder = real_data / "Dataset901_ACDC"
    scribbles = sorted((folder / "prompts" / "scribblesTs").glob("*.nii.gz"))[:2]
    if not scribbles:
        pytest.skip("Dataset901_ACDC with scribbles is not in STEADYSAM_TEST_DATA")
    for path in scribbles:
        name = path.name.removesuffix(".nii.gz")
        image = folder / "imagesTs" / f"{name}_0000.nii.gz"
        out = tmp_path / f"{name}.json"
        assert run("convert", path, "-o", out, "--value", 3, "--ignore", 4, "--negatives", 2, "-i", image) == 0
        labels, grid = read_label_map(folder / "labelsTs" / f"{name}.nii.gz")
        prompts = read_prompts(out, read_grid(image))
        positive = [point.xyz_mm for point in prompts.points if point.sign == "positive"]
        ijk = np.rint(ras_to_voxel(np.array(positive), grid)).astype(int)
        assert (labels[tuple(ijk.T)] == 3).mean() > 0.9
        assert run("check", out, "-i", image) == 0

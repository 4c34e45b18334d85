"""The README does what it says: its commands and its Python run, on a small drawn data set."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from toys import steadysam

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
README = (ROOT / "README.md").read_text("utf-8")
# the commands as they stand, on a smaller network and for one epoch; `--set` wins over other flags
SHORT = {
    "train": "--set backbone.name=sam-test --set preprocess.size=32 --set method.stage1.epochs=1 "
    "--set method.stage2.epochs=1 --set compute.threads=1 --device cpu"
}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def commands() -> list[list[str]]:
    return [
        shlex.split(line)[1:] for block in blocks("sh") for line in block.splitlines() if line.startswith("steadysam ")
    ]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """A folder in which the files exist that the README names."""
    from steadysam.phantom import draw_dataset

    folder = tmp_path_factory.mktemp("readme")
    draw_dataset(folder / "Dataset001_Bowel", 2, 1, seed=0, shape=(48, 40, 6))
    return folder


@pytest.fixture(scope="module")
def finished(workplace) -> Path:
    """The same after the commands of the README, in their order."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workplace)
        patch.setenv("STEADYSAM_HOME", str(workplace / "home"))
        for words in commands():
            assert steadysam(*words, *shlex.split(SHORT.get(words[0], ""))) == 0, words
    return workplace


def test_the_commands_give_what_the_text_promises(finished):
    assert [words[0] for words in commands()] == ["segment-click", "prompts", "train", "predict", "evaluate"]
    names = {path.name for path in (finished / "out").iterdir()}
    case = "phantom_501"
    assert {f"{case}.nii.gz", f"{case}.audit.json", f"{case}.audit.mrk.json", "run.json"} <= names
    assert "<html" in (finished / "out" / "report" / "report.html").read_text("utf-8")


def test_the_python_runs(finished, monkeypatch, capsys):
    monkeypatch.chdir(finished)
    assert len(blocks("python")) == 2
    for block in blocks("python"):
        names: dict = {}
        # seconds, not minutes
        block = block.replace('"steadysam-tiny"', '"sam-test"').replace('"size": 128', '"size": 32')
        exec(compile(block, "README.md", "exec"), names)  # noqa: S102 (our own page, not input)
        if "result" in names:
            volume, result, n = names["volume"], names["result"], len(names["prompts"].points)
            assert volume.grid.affine.shape == (4, 4)
            assert names["prompts"].points_mm().shape == (n, 3)
            assert result.mask.array.shape == volume.array.shape == (48, 40, 6)
            assert result.mask.array.dtype == bool
            assert result.probability.shape == result.saliency.shape == (6, 32, 32)
            assert len(result.points) == 6
            assert all(points.xy.shape == (len(points), 2) for points in result.points)
            assert len(capsys.readouterr().out.splitlines()) == 3
    assert (finished / "mask.nii.gz").is_file()
    assert (finished / "phantom_501.audit.mrk.json").is_file()
    assert (finished / "runs" / "short" / "weights.safetensors").is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_paths_lead_somewhere(page):
    """Relative links of every page; and what stands in backticks as a path of this repository."""
    text = page.read_text("utf-8")
    for target in re.findall(r"\]\(([^)#]+)", text):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
    for path in re.findall(r"`((?:src|tests|benchmarks|docs|examples)/[\w./*-]+)`", text):
        assert list(ROOT.glob(path.rstrip("/"))), f"{page.name} names {path}"


def test_the_tree_names_what_is_there():
    """Every module directly below the package stands in the annotated tree, and nothing else does."""
    tree = README.split("## The tree")[1].split("```")[1]
    named = set(re.findall(r"\b(\w+)\.py", tree)) | set(re.findall(r"\b(\w+)/", tree))
    package = ROOT / "src" / "steadysam"
    there = {path.stem for path in package.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    there -= {"__init__", "__main__"}
    inner = {"spd", "sam_tuning", "zero_shot", "conv", "pretrained"}
    others = inner | {"src", "steadysam", "tests", "test_house", "benchmarks", "docs", "examples"}
    assert named - others <= there
    assert there - named == set(), "add it to the tree of README.md"

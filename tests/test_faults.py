"""Bad input through the command line: a stable code, an exit code, a message that helps, and nothing half-written.

One table per command; each row makes one fault in a copy of good input. Whatever lay in the output folder before
must lie there afterwards, byte for byte.
"""

import errno
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from steadysam.data.volumes import read_grid, read_label_map
from steadysam.files import read_json, write_json, write_text
from steadysam.prompts.files import write_prompts
from steadysam.types import ImageRef, Prompts
from toys import leftovers, some_prompts, steadysam


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, with its bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def flip_bit(path: Path, share: float) -> None:
    """Flip one bit of the file, `share` of the way to its end."""
    content = bytearray(path.read_bytes())
    content[int(len(content) * share)] ^= 0x10
    path.write_bytes(content)


def cut(path: Path, share: float = 0.5) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def rewrite(path: Path, change: Callable) -> None:
    """Change a NIfTI: `change(array, affine) -> (array, affine)`; written by nibabel, as others would."""
    image = nib.load(path)  # pyright: ignore
    array, affine = change(np.asarray(image.dataobj), image.affine)  # pyright: ignore
    nib.save(nib.Nifti1Image(array, affine), path)  # pyright: ignore


def with_nan(array, affine):
    array = array.astype(np.float32)
    array[3, 4, 1] = np.nan
    return array, affine


def moved(array, affine):
    affine = affine.copy()
    affine[:3, 3] += 3
    return array, affine


def edit_json(path: Path, change: Callable[[dict], object]) -> None:
    content = read_json(path)
    change(content)
    write_json(path, content)


class Canary:
    """Unpickled, it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


def pickled(path: Path, canary: Path) -> None:
    """A pickle in place of `path`."""
    import pickle

    path.write_bytes(pickle.dumps(Canary(canary)))


def zipped(path: Path, canary: Path) -> None:
    """What `torch.save` writes, a zip archive with a pickle inside, in place of `path`."""
    import torch

    torch.save({"weights": Canary(canary)}, path)


# ---------------------------------------------------------------------------------------------------- predict


@pytest.fixture
def case(toy_run, toy_dataset, tmp_path) -> dict[str, Path]:
    """A good prediction job in a folder of its own, with an older result in the output folder."""
    image, prompts, run, out = (tmp_path / name for name in ("toy_0000.nii.gz", "toy.json", "run", "out"))
    shutil.copy(toy_dataset / "imagesTs" / "toy_5_0000.nii.gz", image)
    shutil.copytree(toy_run, run)
    grid = read_grid(image)
    tied = Prompts(some_prompts(grid).points, image=ImageRef("toy", grid.shape, grid.key()))
    write_prompts(prompts, tied)
    out.mkdir()
    for name in ("toy.nii.gz", "toy.audit.json", "toy.audit.mrk.json", "run.json"):
        (out / name).write_text(f"an older {name}")
    return {"image": image, "prompts": prompts, "run": run, "out": out, "canary": tmp_path / "canary"}


def predict(case: dict[str, Path], *more) -> int:
    words = ["predict", "-i", case["image"], "--prompts", case["prompts"], "-m", case["run"], "-o", case["out"]]
    return steadysam(*words, "--cache", "off", *more)


def test_the_good_job_is_good(case):
    assert predict(case) == 0
    assert not any(content.startswith(b"an older") for content in snapshot(case["out"]).values())


def set_header(path: Path, offset: int, form: str, value) -> None:
    """Overwrite one field of an unpacked NIfTI-1 header and pack it again."""
    import gzip

    content = bytearray(gzip.decompress(path.read_bytes()))
    content[offset : offset + struct.calcsize(form)] = struct.pack(form, value)
    path.write_bytes(gzip.compress(bytes(content)))


def no_third_axis(path: Path) -> None:
    """No qform, and an sform whose third column is zero."""
    set_header(path, 252, "<h", 0)
    for row in (280, 296, 312):
        set_header(path, row + 8, "<f", 0.0)


IMAGE_FAULTS = {
    "empty": (lambda p: p.write_bytes(b""), 4, "IMG_EMPTY"),
    "header only": (lambda p: cut(p, 0.01), 4, "IMG_"),
    "cut in the stream": (lambda p: cut(p, 0.6), 4, "IMG_GZIP_TRUNCATED"),
    "cut in the checksum": (lambda p: p.write_bytes(p.read_bytes()[:-3]), 4, "IMG_GZIP_TRUNCATED"),
    "bit flipped in the stream": (lambda p: flip_bit(p, 0.7), 4, "IMG_GZIP_CRC"),
    "checksum flipped": (lambda p: flip_bit(p, 1 - 6 / p.stat().st_size), 4, "IMG_GZIP_CRC"),
    "a web page": (lambda p: p.write_text("<html>404 not found</html>" * 40), 4, "IMG_NOT_AN_IMAGE"),
    "NaN": (lambda p: rewrite(p, with_nan), 4, "IMG_NONFINITE"),
    "promises too much": (lambda p: set_header(p, 42, "<h", 32000), 4, "IMG_"),
    "no orientation": (lambda p: set_header(p, 252, "<i", 0), 4, "IMG_NO_ORIENTATION"),
    "singular affine": (no_third_axis, 4, "IMG_AFFINE_SINGULAR"),
    "four axes": (lambda p: rewrite(p, lambda a, m: (np.stack([a, a], -1), m)), 4, "IMG_"),
    "gone": (lambda p: p.unlink(), 4, "FILE_MISSING"),
}

PROMPT_FAULTS = {
    "no frame": (lambda c: c.pop("frame"), "PROMPT_SPACE_MISSING"),
    "unknown frame": (lambda c: c.update(frame="LAS"), "PROMPT_SCHEMA"),
    "no source": (lambda c: [p.pop("source") for p in c["prompts"]], "PROMPT_SOURCE_MISSING"),
    "other shape": (lambda c: c["image"].update(shape=[20, 26, 5]), "PROMPT_WRONG_IMAGE"),
    "other grid": (lambda c: c["image"].update(grid="0" * 64), "PROMPT_WRONG_IMAGE"),
    "no prompts": (lambda c: c.update(prompts=[]), "PROMPT_NONE"),
    "negative only": (lambda c: [p.update(sign="negative") for p in c["prompts"]], "PROMPT_NO_POSITIVE"),
    "outside": (lambda c: c["prompts"][0].update(coordinates=[900.0, 0.0, 0.0]), "PROMPT_OUTSIDE"),
    # LPS for RAS: the toy volume lies on one side of the origin, so all points leave it
    "frames swapped": (lambda c: c.update(frame="LPS"), "PROMPT_OUTSIDE"),
    "same name twice": (lambda c: c["prompts"].append(c["prompts"][0]), "PROMPT_SCHEMA"),
    "unknown field": (lambda c: c["prompts"][0].update(colour="red"), "PROMPT_SCHEMA"),
    "two numbers": (lambda c: c["prompts"][0].update(coordinates=[1.0, 2.0]), "PROMPT_SCHEMA"),
    "text for a number": (lambda c: c["prompts"][0].update(coordinates=["1", 2.0, 3.0]), "PROMPT_SCHEMA"),
    "another version": (lambda c: c.update(version=9), "PROMPT_SCHEMA"),
}

CHECKPOINT_FAULTS = {
    "gone": (lambda run, _: (run / "weights.safetensors").unlink(), "CKPT_MISSING"),
    "cut": (lambda run, _: cut(run / "weights.safetensors", 0.9), "CKPT_TRUNCATED"),
    "empty": (lambda run, _: (run / "weights.safetensors").write_bytes(b""), "CKPT_"),
    "bit flipped": (lambda run, _: flip_bit(run / "weights.safetensors", 0.9), "CKPT_"),
    "a pickle": (lambda run, canary: pickled(run / "weights.safetensors", canary), "CKPT_FORMAT"),
    "a torch zip": (lambda run, canary: zipped(run / "weights.safetensors", canary), "CKPT_FORMAT"),
    "other weights": (lambda run, _: foreign_weights(run / "weights.safetensors"), "CKPT_"),
    "another size": (lambda run, _: change_text(run / "config.toml", "size = 32", "size = 64"), "CKPT_SHAPE"),
    "no record": (lambda run, _: (run / "run.json").unlink(), "RUN_MISSING"),
    "broken record": (lambda run, _: cut(run / "run.json"), "RUN_MISSING"),
    "unfinished": (lambda run, _: edit_json(run / "run.json", lambda c: c.update(status="training")), "RUN_UNFINISHED"),
    "newer format": (lambda run, _: edit_json(run / "run.json", lambda c: c.update(format=99)), "RUN_VERSION"),
    "no config": (lambda run, _: (run / "config.toml").unlink(), "RUN_CONFIG"),
    "unknown key": (lambda run, _: change_text(run / "config.toml", "tau =", "tua ="), "RUN_CONFIG"),
}


def change_text(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    write_text(path, text.replace(old, new))


def foreign_weights(path: Path) -> None:
    """Sound weights of something else."""
    import torch
    from safetensors.torch import save_file

    save_file({"layer.weight": torch.zeros(3, 3)}, path)


def check_refused(case: dict[str, Path], before: dict[str, bytes], said: str, code: str) -> None:
    """What must hold after every refusal."""
    assert f"error[{code}" in said, said
    assert "Traceback" not in said
    assert snapshot(case["out"]) == before
    assert leftovers(case["out"]) == []
    assert not case["canary"].exists(), "a pickle was run"


@pytest.mark.parametrize("name", IMAGE_FAULTS)
def test_image_faults(case, capsys, name):
    make, exit_code, code = IMAGE_FAULTS[name]
    make(case["image"])
    before = snapshot(case["out"])
    assert predict(case) == exit_code
    said = capsys.readouterr().err
    check_refused(case, before, said, code)
    assert case["image"].name in said


@pytest.mark.parametrize("name", PROMPT_FAULTS)
def test_prompt_faults(case, capsys, name):
    change, code = PROMPT_FAULTS[name]
    edit_json(case["prompts"], change)
    before = snapshot(case["out"])
    assert predict(case) == 4
    check_refused(case, before, capsys.readouterr().err, code)


@pytest.mark.parametrize(
    "content, code",
    [
        ("", "JSON_SYNTAX"),
        ('{"format": "steadysam-prompts", ', "JSON_SYNTAX"),
        ('{"frame": "RAS", "frame": "LPS"}', "JSON_DUPLICATE_KEY"),
        ('{"frame": NaN}', "JSON_NONFINITE"),
        ("[" * 100_000, "JSON_SYNTAX"),
        ('{"markups": [{"type": "Fiducial", "controlPoints": []}]}', "PROMPT_SPACE_MISSING"),
        ("[1, 2, 3]", "PROMPT_SCHEMA"),
    ],
)
def test_prompt_files_that_are_none(case, capsys, content, code):
    write_text(case["prompts"], content)
    before = snapshot(case["out"])
    assert predict(case) == 4
    check_refused(case, before, capsys.readouterr().err, code)


@pytest.mark.parametrize("name", CHECKPOINT_FAULTS)
def test_checkpoint_faults(case, capsys, name):
    make, code = CHECKPOINT_FAULTS[name]
    make(case["run"], case["canary"])
    before = snapshot(case["out"])
    assert predict(case) == 5
    check_refused(case, before, capsys.readouterr().err, code)


def test_the_canary_is_one(tmp_path):
    """Had it been unpickled, it would have been seen."""
    import pickle

    pickled(tmp_path / "x", tmp_path / "canary")
    pickle.loads((tmp_path / "x").read_bytes()).close()  # noqa: S301
    assert (tmp_path / "canary").exists()


# ------------------------------------------------------------------------------------------------------ train


@pytest.fixture
def dataset(toy_dataset, tmp_path) -> Path:
    folder = tmp_path / "Dataset001_Toy"
    shutil.copytree(toy_dataset, folder)
    return folder


def train(dataset: Path, *more) -> int:
    words = ["train", dataset, "--label", "blob", "--backbone", "sam-test", "--size", 32, "-o", dataset.parent / "run"]
    settings = [f"method.stage{n}.epochs=1" for n in (1, 2)] + ["compute.cache=off", "compute.threads=1"]
    return steadysam(*words, *(word for setting in settings for word in ("--set", setting)), *more)


def label(folder: Path) -> Path:
    return folder / "labelsTr" / "toy_1.nii.gz"


def image(folder: Path) -> Path:
    return folder / "imagesTr" / "toy_1_0000.nii.gz"


DATA_FAULTS = {
    "label on another grid": (lambda d: rewrite(label(d), moved), "LABEL_GRID"),
    "label of another shape": (lambda d: rewrite(label(d), lambda a, m: (a[:, :-1], m)), "LABEL_GRID"),
    "labels of 0.999": (lambda d: rewrite(label(d), lambda a, m: (a * np.float32(0.999), m)), "LABEL_NONINTEGER"),
    "negative labels": (lambda d: rewrite(label(d), lambda a, m: (-a.astype(np.int16), m)), "LABEL_VALUES"),
    "NaN in a label": (lambda d: rewrite(label(d), with_nan), "LABEL_VALUES"),
    "NaN in an image": (lambda d: rewrite(image(d), with_nan), "IMG_NONFINITE"),
    "image cut": (lambda d: cut(image(d)), "IMG_GZIP_TRUNCATED"),
    "label bit flipped": (lambda d: flip_bit(label(d), 0.6), "IMG_GZIP_"),
    "no cases": (lambda d: [shutil.rmtree(d / f"{k}{p}") for k in ("images", "labels") for p in ("Tr", "Ts")], "DATA_"),
    "no dataset.json": (lambda d: (d / "dataset.json").unlink(), "DATA_NO_JSON"),
    "broken dataset.json": (lambda d: cut(d / "dataset.json"), "JSON_SYNTAX"),
    "no such label": (lambda d: change_text(d / "dataset.json", '"blob"', '"liver"'), "LABEL_UNKNOWN"),
    "a label file is missing": (lambda d: label(d).unlink(), "DATA_PAIRS"),
    "empty labels": (lambda d: [rewrite(p, empty) for p in (d / "labelsTr").iterdir()], "LABEL_EMPTY"),
    "prompts for one case": (lambda d: write_prompts(d / "promptsTr" / "toy_0.json", one(d)), "PROMPT_CASE_MISSING"),
}


def empty(array, affine):
    return np.zeros_like(array), affine


def one(folder: Path) -> Prompts:
    return some_prompts(read_grid(folder / "imagesTr" / "toy_0_0000.nii.gz"))


@pytest.mark.parametrize("name", DATA_FAULTS)
def test_data_faults(dataset, capsys, name):
    make, code = DATA_FAULTS[name]
    make(dataset)
    before = snapshot(dataset)
    assert train(dataset) == 4
    said = capsys.readouterr().err
    assert f"error[{code}" in said, said
    assert "Traceback" not in said
    assert snapshot(dataset) == before, "data sets are only read"
    assert not (dataset.parent / "run").exists(), "nothing is in the way of the next attempt"
    assert leftovers(dataset.parent) == []


def test_what_lay_in_the_run_folder_stays(dataset):
    write_text(dataset.parent / "run" / "notes.txt", "mine")
    rewrite(label(dataset), moved)
    assert train(dataset) == 4
    assert snapshot(dataset.parent / "run") == {"notes.txt": b"mine"}


@pytest.mark.parametrize(
    "text, code",
    [
        ("[method]\ntua = 0.4\n", "CONFIG_UNKNOWN_KEY"),
        ("[mehtod]\ntau = 0.4\n", "CONFIG_UNKNOWN_KEY"),
        ("[method]\ntau = 7\n", "CONFIG_VALUE"),
        ("[method]\ntau = nan\n", "CONFIG_VALUE"),
        ('[compute]\nseed = "many"\n', "CONFIG_VALUE"),
        ("[method\n", "CONFIG_SYNTAX"),
    ],
)
def test_configuration_faults(dataset, capsys, text, code):
    write_text(dataset.parent / "run.toml", text)
    assert train(dataset, "--config", dataset.parent / "run.toml") == 3
    assert f"error[{code}]" in capsys.readouterr().err
    assert not (dataset.parent / "run").exists()


def test_a_pickled_backbone_is_refused(dataset, tmp_path, capsys):
    for name, make in (("sam_vit_b.pth", zipped), ("model.safetensors", pickled)):
        make(tmp_path / name, tmp_path / "canary")
        assert train(dataset, "--set", f'backbone.name="{tmp_path / name}"') == 5
        assert "error[CKPT_" in capsys.readouterr().err
    assert not (tmp_path / "canary").exists()


# ------------------------------------------------------------------------------------------------------- disk


def full_disk(monkeypatch, allowed: int) -> list[str]:
    """After `allowed` files, every flush to the disk fails as on a full one; returns the names tried."""
    tried: list[str] = []
    original = os.fsync

    def fsync(handle: int) -> None:
        name = os.readlink(f"/proc/self/fd/{handle}")
        if Path(name).is_dir():
            return
        tried.append(Path(name).name)
        if len(tried) > allowed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    return tried


def check_whole(folder: Path) -> None:
    """Every file in an output folder can be read to its end, and a mask has its audit."""
    assert leftovers(folder) == []
    for path in folder.iterdir():
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.name.endswith(".nii.gz"):
            read_label_map(path)  # raises if it is not whole
            assert path.with_name(path.name.replace(".nii.gz", ".audit.json")).is_file()


@pytest.mark.parametrize("allowed", [0, 1, 2, 3])
def test_no_space_left_while_predicting(case, monkeypatch, capsys, allowed):
    """At the mask, at either audit file, at the record: what is there is whole, and older results stay."""
    shutil.rmtree(case["out"])
    with monkeypatch.context() as patch:
        tried = full_disk(patch, allowed)
        assert predict(case) == 7
    assert len(tried) == allowed + 1
    said = capsys.readouterr().err
    assert "error[FS_FULL]" in said
    assert "free some space" in said
    if case["out"].exists():
        check_whole(case["out"])
        assert not (case["out"] / "run.json").exists()
    assert predict(case) == 0, "with space again, the same command succeeds"
    check_whole(case["out"])


def test_no_space_left_keeps_older_results(case, monkeypatch):
    assert predict(case) == 0
    before = snapshot(case["out"])
    with monkeypatch.context() as patch:
        full_disk(patch, 1)
        assert predict(case, "--set", "tau=0.99", "--set", "empty=empty_mask") == 7
    assert snapshot(case["out"]) == before
    assert leftovers(case["out"]) == []


@pytest.mark.parametrize("allowed", [5, 12])
def test_no_space_left_while_training(dataset, monkeypatch, capsys, allowed):
    """In the record, in the prompt set, in a checkpoint: the run says why it stopped and can go on."""
    run = dataset.parent / "run"
    with monkeypatch.context() as patch:
        full_disk(patch, allowed)
        assert train(dataset) == 7
    assert "error[FS_FULL]" in capsys.readouterr().err
    assert not (run / "weights.safetensors").exists()
    assert leftovers(run) == []
    assert train(dataset, "--continue") == 0
    assert read_json(run / "run.json")["status"] == "finished"


def test_a_folder_that_may_not_be_written(case, monkeypatch, capsys):
    """Refused at the last moment, when the finished file should take its place."""

    def refuse(*_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    before = snapshot(case["out"])
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        assert predict(case) == 8
    check_refused(case, before, capsys.readouterr().err, "FS_WRITE")


def test_an_output_folder_that_is_a_file(case, capsys):
    shutil.rmtree(case["out"])
    case["out"].write_text("not a folder")
    assert predict(case) == 8
    assert "error[FS_WRITE]" in capsys.readouterr().err
    assert case["out"].read_text() == "not a folder"

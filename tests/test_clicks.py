"""Clicks without a run: `segment_clicks`, `steadysam segment-click`, and `predict` with a model instead of a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import make_affine
from steadysam.backbones import build_backbone
from steadysam.clicks import segment_clicks
from steadysam.data.volumes import read_label_map, write_mask, write_volume
from steadysam.errors import ConfigError, InputError
from steadysam.files import read_json, sha256_file, write_json
from steadysam.geometry import slice_to_ras
from steadysam.methods import METHODS
from steadysam.pretraining.export import export
from steadysam.runs import Run, zero_shot_run
from steadysam.types import Box, Grid, Mask, Prompts
from toys import click, leftovers, make_volume, steadysam

SIZE = 64
BIG = Grid((40, 56, 5), make_affine((0.8, 1.1, 4.0), degrees=14, flips=(-1, 1, 1)), 2)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A weights file as pretraining writes it, of random numbers whose masks are neither empty nor full."""
    backbone = build_backbone("steadysam-test", SIZE, seed=0)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    file = tmp_path_factory.mktemp("weights") / "model.safetensors"
    export(backbone, {}, file)
    return file


@pytest.fixture(scope="module")
def run(weights: Path) -> Run:
    return zero_shot_run(str(weights), "cpu", size=SIZE)


def middle(grid: Grid) -> tuple[float, float]:
    height, width = grid.slice_shape
    return width // 2, height // 3


def box_on(name: str, xyxy: tuple[float, float, float, float], index: int, grid: Grid) -> Box:
    """A box on one slice, by its corners in slice pixels."""
    x0, y0, x1, y1 = xyxy
    corners = slice_to_ras(np.array([[x0, y0], [x1, y0], [x0, y1]]), index, grid)
    centre = (corners[1] + corners[2]) / 2
    across, down = (corners[1] - corners[0]) / 2, (corners[2] - corners[0]) / 2
    return Box(name, tuple(centre), (tuple(across), tuple(down), (0.0, 0.0, 0.0)))


def by_slice(mask: Mask) -> list[int]:
    """Voxels of every slice."""
    return [int(mask.slice_image(t).sum()) for t in range(mask.grid.depth)]


def test_masks_come_on_the_grid_of_the_image_and_only_where_asked(run: Run, grid: Grid):
    """Non-square, oblique, flipped, sagittal, coronal, one slice."""
    asked = {0, grid.depth // 2}
    prompts = Prompts(tuple(click(f"p{t}", middle(grid), t, grid) for t in sorted(asked)))
    result = segment_clicks(run, make_volume(grid), prompts)
    assert len(result.masks) == 3
    assert set(result.iou) == asked
    for mask in result.masks:
        assert mask.grid is grid
        assert mask.array.shape == grid.shape
        assert mask.array.dtype == bool
        assert {t for t, count in enumerate(by_slice(mask)) if count} <= asked
    assert any(mask.array.any() for mask in result.masks)
    for t in range(grid.depth):
        assert len(result.points[t]) == (t in asked)
    for t in asked:
        assert result.points[t].xy[0] == pytest.approx(middle(grid), abs=1e-3)
        assert list(result.iou[t]) == sorted(result.iou[t], reverse=True)


def test_one_click_leaves_three_readings_and_a_clear_prompt_one(run: Run):
    volume = make_volume(BIG)
    one = click("a", (20, 25), 2, BIG)
    clear = [
        Prompts((one, click("b", (30, 30), 2, BIG))),
        Prompts((one, click("b", (30, 30), 2, BIG, sign="negative"))),
        Prompts(boxes=(box_on("x", (10, 12, 30, 40), 2, BIG),)),
        Prompts((one,), (box_on("x", (10, 12, 30, 40), 2, BIG),)),
    ]
    three = segment_clicks(run, volume, Prompts((one,)))
    assert len(three.masks) == len(three.iou[2]) == 3
    assert len({mask.array.tobytes() for mask in three.masks}) == 3
    seen = {three.masks[0].array.tobytes()}
    for prompts in clear:
        result = segment_clicks(run, volume, prompts)
        assert len(result.masks) == len(result.iou[2]) == 1
        assert result.masks[0].array.any()
        seen.add(result.masks[0].array.tobytes())
    assert len(seen) == 5, "each prompt has an answer of its own"


def test_a_slice_is_answered_by_itself(run: Run):
    """Prompts on other slices change nothing; a slice with one mask repeats it beside those with three."""
    volume = make_volume(BIG)
    one, two = click("a", (20, 25), 1, BIG), (click("b", (15, 30), 3, BIG), click("c", (25, 20), 3, BIG))
    together = segment_clicks(run, volume, Prompts((one, *two)))
    alone = segment_clicks(run, volume, Prompts((one,))), segment_clicks(run, volume, Prompts(two))
    assert len(together.masks) == 3
    for place in range(3):
        assert np.array_equal(together.masks[place].slice_image(1), alone[0].masks[place].slice_image(1))
        assert np.array_equal(together.masks[place].slice_image(3), alone[1].masks[0].slice_image(3))
    assert together.iou[3] == pytest.approx(alone[1].iou[3] * 3, abs=2e-4)


def test_a_rough_mask_is_a_prompt_on_its_own_slices_only(run: Run):
    volume = make_volume(BIG)
    rough = np.zeros(BIG.shape, bool)
    rough[10:25, 12:30, 1] = True
    points = Prompts((click("a", (20, 25), 1, BIG), click("b", (20, 25), 3, BIG)))
    without, with_mask = (
        segment_clicks(run, volume, points),
        segment_clicks(run, volume, points, prior=Mask(rough, BIG)),
    )
    assert not np.array_equal(with_mask.masks[0].slice_image(1), without.masks[0].slice_image(1))
    for a, b in zip(with_mask.masks, without.masks, strict=True):
        assert np.array_equal(a.slice_image(3), b.slice_image(3)), "no mask is no prompt"
    assert with_mask.iou[3] == without.iou[3]
    alone = segment_clicks(run, volume, Prompts(), prior=Mask(rough, BIG))
    assert (set(alone.iou), len(alone.masks)) == ({1}, 1)
    empty = segment_clicks(run, volume, points, prior=Mask(np.zeros_like(rough), BIG))
    assert empty.masks[0].array.tobytes() == without.masks[0].array.tobytes()


def code_of(call) -> str:  # noqa: ANN001
    with pytest.raises(InputError) as error:
        call()
    return error.value.code


def test_prompts_that_cannot_be_answered(run: Run):
    volume, rough = make_volume(BIG), np.ones(BIG.shape, bool)
    moved = replace(BIG, affine=make_affine((0.8, 1.1, 4.0), degrees=15, flips=(-1, 1, 1)))
    one = Prompts((click("a", (20, 25), 1, BIG),))
    negative = Prompts((click("a", (20, 25), 1, BIG, sign="negative"),))
    outside = Prompts((click("a", (20, 80), 1, BIG),))
    two_boxes = Prompts(boxes=(box_on("x", (1, 2, 30, 40), 2, BIG), box_on("y", (3, 4, 9, 9), 2, BIG)))
    far_boxes = [
        Prompts(boxes=(box_on("x", (1, 2, 30, 40), 9, BIG),)),
        Prompts(boxes=(box_on("x", (100, 2, 130, 40), 2, BIG),)),
    ]
    assert code_of(lambda: segment_clicks(run, volume, Prompts())) == "PROMPT_NONE"
    assert code_of(lambda: segment_clicks(run, volume, negative)) == "PROMPT_NO_POSITIVE"
    assert code_of(lambda: segment_clicks(run, volume, one, prior=Mask(rough, moved))) == "MASK_GRID"
    assert code_of(lambda: segment_clicks(run, volume, two_boxes)) == "PROMPT_BOXES"
    for prompts in (outside, *far_boxes):
        assert code_of(lambda p=prompts: segment_clicks(run, volume, p)) == "PROMPT_OUTSIDE"
        assert code_of(lambda p=prompts: segment_clicks(run, volume, p, outside="drop")) == "PROMPT_NONE"
        kept = replace(prompts, points=(*prompts.points, *one.points))
        assert set(segment_clicks(run, volume, kept, outside="drop").iou) == {1}


def test_models_that_were_never_trained_segment_nothing():
    for name in ("steadysam-tiny-scratch", "steadysam-test", "sam-tiny"):
        with pytest.raises(ConfigError) as error:
            zero_shot_run(name)
        assert error.value.code == "ZERO_SHOT_RANDOM"
        assert "steadysam-tiny" in str(error.value)
    with pytest.raises(ConfigError) as error:
        zero_shot_run("no-such-model")
    assert error.value.code == "BACKBONE_UNKNOWN"


def test_which_of_the_masks_the_method_takes(run: Run, weights: Path):
    """`auto`: the trusted one of three for a single click, the clear one else; `single` and `best` always."""
    from steadysam.segmenting import segment

    volume = make_volume(BIG)
    one = Prompts((click("a", (20, 25), 2, BIG),))
    two = Prompts((*one.points, click("b", (30, 30), 2, BIG)))
    found = {}
    for choice in ("auto", "single", "best"):
        made = zero_shot_run(str(weights), "cpu", size=SIZE, masks=choice)
        assert made.method is METHODS["zero_shot"]
        for name, prompts in (("one", one), ("two", two)):
            found[choice, name] = segment(made, volume, prompts).probability.tobytes()
    assert found["auto", "one"] == found["best", "one"] != found["single", "one"]
    assert found["auto", "two"] == found["single", "two"] != found["best", "two"]


def test_every_box_is_accounted_for_on_its_own_slice(run: Run, toy_run: Path):
    from steadysam.runs import load_run
    from steadysam.segmenting import segment

    prompts = Prompts(
        (click("a", (20, 25), 0, BIG),),
        (box_on("first", (1, 2, 30, 40), 1, BIG), box_on("second", (3, 4, 9, 30), 3, BIG)),
    )
    boxes = {d.prompt_id: d for d in segment(run, make_volume(BIG), prompts).decisions if d.prompt_id != "a"}
    assert {name: (d.slice, d.verdict) for name, d in boxes.items()} == {
        "first": (1, "accepted"),
        "second": (3, "accepted"),
    }
    trained = segment(load_run(toy_run, "cpu"), make_volume(BIG), prompts).decisions
    assert {(d.prompt_id, d.slice, d.verdict) for d in trained if d.prompt_id in boxes} == {
        ("first", 1, "ignored"),
        ("second", 3, "ignored"),
    }
    beyond = replace(prompts, boxes=(*prompts.boxes, box_on("far", (1, 2, 30, 40), 9, BIG)))
    assert code_of(lambda: segment(run, make_volume(BIG), beyond)) == "PROMPT_OUTSIDE"
    dropped = segment(run, make_volume(BIG), beyond, outside="drop").decisions[-1]
    assert (dropped.prompt_id, dropped.slice, dropped.verdict) == ("far", -1, "ignored")
    assert "outside" in dropped.reason


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A grey picture, 60 wide and 44 high."""
    rng = np.random.default_rng(0)
    pixels = rng.normal(90, 10, (44, 60))
    pixels[10:30, 20:45] += 90
    Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "lesion.png")
    return tmp_path / "lesion.png"


def write_clicks(path: Path, *places: list[int]) -> Path:
    """A prompt file in voxel indices."""
    points = [{"id": f"p{n}", "kind": "point", "coordinates": xyz, "source": "human"} for n, xyz in enumerate(places)]
    return write_json(path, {"format": "steadysam-prompts", "version": 1, "frame": "ijk", "prompts": points})


def segment_click(image: Path, weights: Path, output: Path, *words: object) -> int:
    """The command on the CPU at a small size."""
    return steadysam("segment-click", image, "-m", weights, "-d", "cpu", "--size", SIZE, "-o", output, *words)


def test_the_command_on_a_picture(picture: Path, weights: Path, tmp_path: Path, run: Run):
    out = tmp_path / "out"
    assert segment_click(picture, weights, out, "--point", "30,20") == 0
    masks = ["lesion.png", "lesion.mask2.png", "lesion.mask3.png"]
    assert {path.name for path in out.iterdir()} == {*masks, "lesion.click.json", "lesion.click.png"}
    record = read_json(out / "lesion.click.json")
    arrays = [read_label_map(out / name)[0] for name in masks]
    assert all(array.shape == (60, 44, 1) for array in arrays)
    assert record["masks"] == masks
    assert record["voxels"] == [int((array > 0).sum()) for array in arrays]
    assert record["image"] == {"name": "lesion", "sha256": sha256_file(picture)}
    assert record["weights_sha256"] == run.record["weights_sha256"]
    assert record["preprocess"]["size"] == SIZE
    assert list(record["predicted_iou"]) == ["0"]
    assert (out / "lesion.click.png").read_bytes().startswith(b"\x89PNG")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert segment_click(picture, weights, tmp_path / "again", "--point", "30,20,0") == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()} == before
    assert segment_click(picture, weights, tmp_path / "other", "--point", "5,40") == 0
    assert (tmp_path / "other" / masks[0]).read_bytes() != before[masks[0]]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--point", "30"], 2, "CLICK_SYNTAX"),
        (["--point", "30,20,0,1"], 2, "CLICK_SYNTAX"),
        (["--point", "30;20"], 2, "CLICK_SYNTAX"),
        (["--negative", "30"], 2, "--negative 30"),
        (["--box", "1,2,3"], 2, "CLICK_SYNTAX"),
        (["--point", "200,20"], 4, "PROMPT_OUTSIDE"),
        (["--box", "100,100,120,120"], 4, "PROMPT_OUTSIDE"),
        (["--negative", "30,20"], 4, "PROMPT_NO_POSITIVE"),
        ([], 4, "PROMPT_NONE"),
    ],
)
def test_the_command_refuses_and_writes_nothing(
    picture: Path,
    weights: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    code: int,
    said: str,
):
    assert segment_click(picture, weights, tmp_path / "out", *words) == code
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert leftovers(tmp_path) == []


def test_the_command_refuses_random_weights(picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["segment-click", picture, "--point", "30,20", "-o", tmp_path / "out", "-m", "steadysam-tiny-scratch"]
    assert steadysam(*words) == 3
    assert "ZERO_SHOT_RANDOM" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_two_numbers_are_not_enough_for_a_volume(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_volume(tmp_path / "case.nii.gz", make_volume(BIG).array, BIG)
    assert segment_click(tmp_path / "case.nii.gz", weights, tmp_path / "out", "--point", "20,25") == 2
    said = capsys.readouterr().err
    assert "CLICK_SYNTAX" in said
    assert "x,y" not in said
    assert segment_click(tmp_path / "case.nii.gz", weights, tmp_path / "out", "--box", "1,2,20,25") == 2


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_points_and_boxes_are_voxel_indices_whatever_the_slice_axis(axis: int, weights: Path, tmp_path: Path, run: Run):
    """The command line's i,j,k and i0,j0,i1,j1,k against prompts that were placed on the slice itself."""
    stored = Grid((24, 30, 20), make_affine((1.0, 1.2, 0.9), degrees=17, flips=(1, -1, 1)), axis)
    volume = make_volume(stored)
    write_volume(tmp_path / "case.nii.gz", volume.array, stored)
    ijk = [11, 17, 8]
    x_axis, y_axis = stored.plane_axes
    point = click("a", (ijk[x_axis], ijk[y_axis]), ijk[axis], stored)
    box = box_on("b", (3, 4, 15, 13), ijk[axis], stored)
    words = ["--slice-axis", axis, "--window", "range"]
    shown = {
        "point": (["--point", ",".join(map(str, ijk))], Prompts((point,))),
        "box": (["--box", f"3,4,15,13,{ijk[axis]}"], Prompts(boxes=(box,))),
    }
    plain = zero_shot_run(run.config.backbone.name, "cpu", size=SIZE, window="range")
    for name, (more, prompts) in shown.items():
        assert segment_click(tmp_path / "case.nii.gz", weights, tmp_path / name, *words, *more) == 0
        array, _ = read_label_map(tmp_path / name / "case.nii.gz", slice_axis=axis)
        expected = segment_clicks(plain, volume, prompts).masks[0]
        assert array.any()
        assert np.array_equal(array > 0, expected.array)
        elsewhere = [t for t in range(stored.depth) if t != ijk[axis]]
        assert not np.take(array, elsewhere, axis).any()


def test_the_command_takes_a_mask_and_a_prompt_file(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    image, rough = tmp_path / "case.nii.gz", np.zeros(BIG.shape, bool)
    rough[10:25, 12:30, 1] = True
    write_volume(image, make_volume(BIG).array, BIG)
    write_mask(tmp_path / "rough.nii.gz", Mask(rough, BIG))
    moved = replace(BIG, affine=make_affine((0.8, 1.1, 4.0), degrees=20, flips=(-1, 1, 1)))
    write_mask(tmp_path / "moved.nii.gz", Mask(rough, moved))
    write_clicks(tmp_path / "p.json", [20, 25, 3])
    assert segment_click(image, weights, tmp_path / "a", "--mask", tmp_path / "rough.nii.gz") == 0
    assert list(read_json(tmp_path / "a" / "case.click.json")["predicted_iou"]) == ["1"]
    both = ["--mask", tmp_path / "rough.nii.gz", "--prompts", tmp_path / "p.json", "--negative", "3,4,3"]
    assert segment_click(image, weights, tmp_path / "b", *both) == 0
    assert list(read_json(tmp_path / "b" / "case.click.json")["predicted_iou"]) == ["1", "3"]
    assert segment_click(image, weights, tmp_path / "c", "--mask", tmp_path / "moved.nii.gz") == 4
    assert "MASK_GRID" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()


def test_predict_takes_a_weights_file_in_place_of_a_run(weights: Path, tmp_path: Path):
    image = tmp_path / "case.nii.gz"
    write_volume(image, make_volume(BIG).array, BIG)
    write_clicks(tmp_path / "p.json", [20, 25, 3], [12, 30, 1])
    words = ["predict", "-i", image, "--prompts", tmp_path / "p.json", "-m", weights, "-d", "cpu"]
    words += ["--threads", 1, "--cache", "off", "--set", f"size={SIZE}"]
    for name in ("a", "b"):
        assert steadysam(*words, "-o", tmp_path / name) == 0
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["case.audit.json", "case.audit.mrk.json", "case.nii.gz", "pictures", "run.json"]
    assert sha256_file(tmp_path / "a" / "case.nii.gz") == sha256_file(tmp_path / "b" / "case.nii.gz")
    record = read_json(tmp_path / "a" / "run.json")
    assert record["method"] == "zero_shot"
    assert record["config"]["preprocess"]["size"] == SIZE
    assert set(record["cases"][0]["notes"]["predicted_iou"]) == {"1", "3"}
    array, _ = read_label_map(tmp_path / "a" / "case.nii.gz")
    assert not array[:, :, [0, 2, 4]].any()
    audit = read_json(tmp_path / "a" / "case.audit.json")
    assert {row["verdict"] for row in audit["prompts"]} == {"accepted"}
    assert steadysam(*words, "-o", tmp_path / "c", "--set", "masks=none") == 3


def test_predict_refuses_random_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_volume(tmp_path / "case.nii.gz", make_volume(BIG).array, BIG)
    write_clicks(tmp_path / "p.json", [20, 25, 3])
    words = ["predict", "-i", tmp_path / "case.nii.gz", "--prompts", tmp_path / "p.json", "-o", tmp_path / "out"]
    assert steadysam(*words, "-m", "steadysam-tiny-scratch") == 3
    assert "ZERO_SHOT_RANDOM" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

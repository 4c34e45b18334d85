"""SAMRefiner: every mined prompt against values by hand or a slow independent computation; the command line."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from conftest import GRIDS
from steadysam.backbones import build_backbone
from steadysam.data.slices import prepare_stack
from steadysam.data.volumes import read_label_map, write_mask
from steadysam.embeddings import EmbeddingCache
from steadysam.errors import InputError
from steadysam.files import read_json
from steadysam.methods import sam_refiner
from steadysam.methods.sam_refiner import Config, build, mine, segment
from steadysam.methods.sam_refiner.mining import (
    bounding_box,
    cell_index,
    elastic_box,
    inner_distance,
    likeness,
    mask_prompt,
    negative_point,
    positive_point,
    strips,
)
from steadysam.types import Mask, Preprocess, SlicePoints
from toys import make_volume, steadysam


def drawn(*rows: str) -> np.ndarray:
    """A mask from its picture."""
    return np.array([[c == "#" for c in row] for row in rows])


L_SHAPE = drawn(
    "........",
    ".##.....",
    ".##.....",
    ".##.....",
    ".######.",
    ".######.",
    ".######.",
    "........",
)
DOT = drawn("....", "..#.", "....", "....")
AT_BORDER = drawn("###..", "###..", "###..", ".....", ".....")


def slow_distance(inside: np.ndarray) -> np.ndarray:
    """Distance to the nearest pixel that is not inside, over all pairs of pixels."""
    other = np.argwhere(~inside)
    result = np.zeros(inside.shape)
    for place in np.argwhere(inside):
        result[tuple(place)] = np.sqrt(((other - place) ** 2).sum(1)).min()
    return result


@pytest.mark.parametrize("mask", [L_SHAPE, DOT, AT_BORDER, np.random.default_rng(4).random((9, 9)) < 0.6])
def test_distances_are_those_to_every_background_pixel(mask):
    assert np.allclose(inner_distance(mask), slow_distance(mask))


def test_points_of_an_l_shape():
    """The elbow is as deep as 2 px: row 5, first column with two pixels to every side; the free corner is up right."""
    assert bounding_box(L_SHAPE) == (1, 1, 6, 6)
    assert slow_distance(L_SHAPE).max() == inner_distance(L_SHAPE)[5, 2] == 2
    assert positive_point(L_SHAPE) == (2, 5)
    assert negative_point(L_SHAPE) == (5, 1)  # 3 rows above the foot and 3 columns from the leg; (6, 1) comes later
    assert slow_distance(~L_SHAPE)[1, 5] == slow_distance(~L_SHAPE)[1, 6] == 3


def test_a_negative_point_stays_in_the_box():
    """Outside the box of this mask there are farther pixels."""
    mask = np.zeros((30, 30), bool)
    mask[2:5, 2:5] = True
    mask[2, 2] = False
    assert negative_point(mask) == (2, 2)


def test_one_pixel():
    assert (positive_point(DOT), bounding_box(DOT), negative_point(DOT)) == ((2, 1), (2, 1, 2, 1), None)
    logits = mask_prompt(DOT, 4, 30)
    assert logits[1, 2] == 30
    assert (logits == -30).sum() == 15


def test_the_border_is_no_background():
    """The corner pixel is farthest from the background, as nothing beyond the image counts."""
    assert positive_point(AT_BORDER) == (0, 0)
    assert inner_distance(AT_BORDER)[0, 0] == 3
    assert negative_point(AT_BORDER) is None


def test_a_mask_without_background_has_its_middle():
    assert positive_point(np.ones((5, 5), bool)) == (2, 2)


def test_an_empty_mask_has_no_box():
    with pytest.raises(ValueError, match="empty"):
        bounding_box(np.zeros((4, 4), bool))


def test_cells_of_pixels():
    assert cell_index(8, 4).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert cell_index(4, 4).tolist() == [0, 1, 2, 3]


def test_likeness_is_that_of_an_enlarged_embedding(rng):
    features = rng.normal(size=(5, 4, 4)).astype(np.float32)
    mask = rng.random((16, 16)) < 0.3
    whole = features.repeat(4, axis=1).repeat(4, axis=2).astype(float)
    mean = whole[:, mask].mean(1)
    expected = np.array([[whole[:, y, x] @ mean for x in range(16)] for y in range(16)])
    expected /= np.linalg.norm(whole, axis=0) * np.linalg.norm(mean)
    found = likeness(features, mask)
    assert np.allclose(found.repeat(4, axis=0).repeat(4, axis=1), expected, atol=1e-6)


def test_strips_by_hand():
    """A box of 30 x 50 px: 3 px left and right, 5 px above and below; never more than 10."""
    assert strips((20, 10, 49, 59), 64) == ((17, 10, 19, 59), (20, 5, 49, 9), (50, 10, 52, 59), (20, 60, 49, 63))
    wide = strips((40, 40, 239, 239), 256)
    assert wide == ((30, 40, 39, 239), (40, 30, 239, 39), (240, 40, 249, 239), (40, 240, 239, 249))
    assert strips((0, 0, 4, 4), 8) == (None, None, (5, 0, 5, 4), (0, 5, 4, 5))  # at least one pixel
    assert strips((0, 0, 7, 7), 8) == (None,) * 4


@pytest.mark.parametrize(("share", "grows"), [(0.0, True), (0.24, True), (0.25, False), (0.9, False)])
def test_a_side_moves_where_enough_of_its_strip_is_alike(share, grows):
    """To the right of the box, 5 of 20 rows look like the object: a share of 0.25."""
    alike = np.zeros((40, 40))
    alike[10:15, 30:] = 0.6
    box, moved = elastic_box((10, 10, 29, 29), alike, 40, 0.5, share)
    assert moved == (False, False, grows, False)
    assert box == ((10, 10, 31, 29) if grows else (10, 10, 29, 29))


def test_every_side_moves_by_itself():
    for side, name in itertools.product(range(4), (0.6,)):
        alike = np.zeros((40, 40))
        x0, y0, x1, y1 = [s for s in strips((10, 10, 29, 29), 40) if s is not None][side]
        alike[y0 : y1 + 1, x0 : x1 + 1] = name
        expected = [10, 10, 29, 29]
        expected[side] += (-2, -2, 2, 2)[side]
        box, moved = elastic_box((10, 10, 29, 29), alike, 40, 0.5, 0.1)
        assert box == tuple(expected)
        assert [i for i, yes in enumerate(moved) if yes] == [side]


def test_mask_prompt_by_hand():
    """A square of 5 x 5: d is 1, 2, 3 from rim to middle, area / gamma is 25 / 4."""
    mask = np.zeros((9, 9), bool)
    mask[2:7, 2:7] = True
    logits = mask_prompt(mask, 4, 30)
    assert logits[4, 4] == 30
    assert logits[4, 3] == pytest.approx(30 * np.exp(-1 / 6.25))
    assert logits[2, 2] == pytest.approx(30 * np.exp(-4 / 6.25))
    assert set(logits[~mask].tolist()) == {-30}
    assert (mask_prompt(np.zeros((4, 4), bool), 4, 30) == -30).all()


def test_what_is_asked_with():
    features = np.zeros((2, 8, 8), np.float32)
    features[0] = 1  # everything looks like the object
    config = Config()
    found = mine(L_SHAPE, features, config)
    assert found.grown
    assert np.array(found.points.box).tolist() == [0, 0, 7, 7]
    assert found.points.xy.tolist() == [[2, 5], [5, 1]]
    assert found.points.positive.tolist() == [True, False]
    assert np.abs(found.mask).max() == 1  # type: ignore[type-var]
    for off in (Config(cebox=False), Config(lambda_=0.0)):
        still = mine(L_SHAPE, features, off)
        assert not still.grown
        assert np.array(still.points.box).tolist() == [1, 1, 6, 6]
        assert np.abs(still.mask).max() == 30  # type: ignore[type-var]
    only = mine(L_SHAPE, features, Config(points=False, box=False))
    assert (len(only.points), only.points.box) == (0, None)
    assert mine(L_SHAPE, features, Config(mask=False)).mask is None
    with pytest.raises(ValidationError, match="must be used"):
        Config(points=False, box=False, mask=False)


def test_junk_for_an_empty_mask():
    found = mine(np.zeros((8, 8), bool), np.ones((2, 4, 4), np.float32), Config(empty="as_is"))
    assert np.array(found.points.box).tolist() == [0, 0, 0, 0]
    assert found.points.xy.tolist() == [[0, 0]]
    assert (found.mask == -30).all()


@pytest.fixture
def stack():
    volume = make_volume(GRIDS["plain"])
    made = prepare_stack(volume, Preprocess(size=32, norm="spd"))
    coarse = np.zeros((made.depth, 32, 32), bool)
    coarse[1:3, 8:22, 6:20] = True
    return replace(made, coarse=coarse)


def run(stack, cache=None, **settings):
    model = build(Config(), build_backbone("steadysam-test", 32, seed=0)).eval()
    empty = tuple(SlicePoints.empty() for _ in range(stack.depth))
    return segment(model, Config(**settings), stack, empty, cache or EmbeddingCache())


def test_empty_slices_pass_or_give_junk(stack):
    passed = run(stack)
    assert passed.notes["empty_coarse_slices"] == [0, 3, 4]
    assert set(passed.notes["predicted_iou"]) == {"1", "2"}
    assert passed.probability[[0, 3, 4]].max() == 0
    assert passed.probability[1:3].max() > 0
    junk = run(stack, empty="as_is")
    assert set(junk.notes["predicted_iou"]) == {"0", "1", "2", "3", "4"}
    assert junk.probability[[0, 3, 4]].max() > 0


def test_a_wholly_empty_mask_asks_nothing(stack):
    cache = EmbeddingCache()
    found = run(replace(stack, coarse=np.zeros_like(stack.coarse)), cache)
    assert found.probability.max() == 0
    assert (cache.hits, cache.misses) == (0, 0)


def test_iterations_encode_once_and_mine_the_last_answer(stack, monkeypatch):
    """With the first answer as coarse mask, one iteration gives what two give from the start."""
    seen = []
    monkeypatch.setattr(sam_refiner, "ask", lambda *a, ask=sam_refiner.ask, **k: seen.append(a[2]) or ask(*a, **k))
    cache = EmbeddingCache()
    one, two = run(stack, cache, iterations=1), run(stack, cache, iterations=2)
    assert (cache.misses, cache.hits) == (1, 1)
    assert len(seen) == 3
    again = run(replace(stack, coarse=one.probability > 0.5), iterations=1)
    both = (one.probability > 0.5).any((1, 2))
    assert both.any()
    assert np.array_equal(again.probability[both], two.probability[both])


def test_the_best_of_three_masks_is_kept(stack, monkeypatch):
    """The answer with the highest predicted IoU, whichever of the three it is."""
    backbone = build_backbone("steadysam-test", 32, seed=0)
    real = backbone.decode_full

    def answer(embeddings, points, *, masks: torch.Tensor, multimask=True):
        logits, iou = real(embeddings, points, masks=masks, multimask=multimask)
        assert logits.shape[1] == 3
        assert masks.shape[1:] == (1, backbone.mask_size, backbone.mask_size)
        return torch.ones_like(logits) * torch.tensor([-5.0, 5.0, -5.0])[:, None, None], torch.tensor([[0.2, 0.9, 0.4]])

    monkeypatch.setattr(backbone, "decode_full", answer)
    coarse = stack.coarse.copy()
    coarse[2] = False
    empty = tuple(SlicePoints.empty() for _ in range(5))
    found = segment(
        build(Config(), backbone), Config(iterations=1), replace(stack, coarse=coarse), empty, EmbeddingCache()
    )
    assert found.notes["predicted_iou"] == {"1": 0.9}
    assert found.probability[1] == pytest.approx(1 / (1 + np.exp(-5)))


def test_no_mask_is_an_error(stack):
    with pytest.raises(InputError, match="COARSE_MISSING"):
        run(replace(stack, coarse=None))


def test_command_line_refines_masks(toy_dataset, tmp_path):
    """A mask that is too small comes back larger and nearer to the truth; the empty slice stays empty."""
    truth, grid = read_label_map(toy_dataset / "labelsTs" / "toy_5.nii.gz")
    coarse = np.zeros_like(truth, bool)
    i, j, k = np.nonzero(truth)
    for t in np.unique(k):
        a, b = i[k == t], j[k == t]
        coarse[a.min() + 2 : a.max() - 1, b.min() + 2 : b.max() - 1, t] = True
    write_mask(tmp_path / "coarse" / "toy_5.nii.gz", Mask(coarse, grid))
    command = ["predict", "-i", toy_dataset / "imagesTs", "--coarse", tmp_path / "coarse", "-m", "steadysam-tiny"]
    command += ["--method", "sam_refiner", "-o", tmp_path / "out", "--threads", 1, "--cache", "off"]
    assert steadysam(*command, "--set", "iterations=2") == 0
    refined, _ = read_label_map(tmp_path / "out" / "toy_5.nii.gz")
    record = read_json(tmp_path / "out" / "run.json")
    assert record["method"] == "sam_refiner"
    assert record["cases"][0]["notes"]["empty_coarse_slices"] == [0]
    assert record["cases"][0]["coarse"]["file"] == "toy_5.nii.gz"

    def dice(mask):
        return 2 * (mask & (truth > 0)).sum() / (mask.sum() + (truth > 0).sum())

    assert not refined[:, :, 0].any()
    assert dice(refined > 0) > dice(coarse) + 0.2
    assert steadysam(*command[:3], *command[5:]) == 4  # without masks

"""The zero-shot benchmark on drawn pictures: classical methods, shared clicks, means over sets, bars."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from steadysam.backbones import build_backbone
from steadysam.errors import InputError
from steadysam.types import Frame, SlicePoints

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SETS = {"ACDC": ("LV", "RV"), "ISIC": ("ISIC",)}
BARS = {"one_LV": 0.8, "one_RV": 0.65, "one_ISIC": 0.75, "one_mean": 0.6, "margin_mean": 0.15}


@pytest.fixture(scope="module")
def bench():
    """The scripts of benchmarks/, which is a folder of scripts and not a package."""
    names = (
        "zero_shot",
        "zero_shot_classical",
        "zero_shot_slices",
        "zero_shot_scores",
        "zero_shot_report",
        "zero_shot_curve",
        "pretrain_ablation",
    )
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    finally:
        sys.path.remove(str(BENCHMARKS))


def suite() -> dict[str, Any]:
    import tomllib

    return tomllib.loads((BENCHMARKS / "runs" / "zero_shot.toml").read_text("utf-8"))


def drawn(bench: Any, channels: int = 1, target: str = "toy", case: str = "a") -> Any:
    """Two slices of 80 x 112 px with a bright disc on dark ground, fitted to 128 px; a little noise."""
    rows, columns = np.indices((80, 112))
    truths = np.stack([np.hypot(rows - 36, columns - x) < 20 for x in (44, 68)])
    noise = np.random.default_rng(0).normal(0, 0.02, truths.shape)
    native = np.clip(np.where(truths, 0.8, 0.2) + noise, 0, 1).astype(np.float32)
    fitted = torch.nn.functional.interpolate(torch.from_numpy(native)[:, None], (128, 128), mode="bilinear").numpy()
    images = np.ascontiguousarray(np.repeat(fitted, channels, axis=1))
    return bench.zero_shot_slices.CaseSlices(target, case, "p1", (3, 5), images, truths, Frame(80, 112, 128))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "method, library",
    [("otsu", "skimage"), ("region-growing", "skimage"), ("grabcut", "cv2"), ("random-walker", "skimage")],
)
def test_classical_methods_find_a_bright_disc_from_one_click(bench: Any, method: str, library: str, channels: int):
    pytest.importorskip(library, reason=f"optional dependencies `bench`: no {library}")
    options = suite()["classical"][method]
    rows = bench.zero_shot.classical_method(method, options, bench.zero_shot_slices.Choice()).score(
        drawn(bench, channels)
    )
    assert len(rows) == 2 * len(options["seeds"])
    assert min(row["one"] for row in rows) > 0.9
    assert all(row["three"] is None and row["predicted_iou"] is None for row in rows)
    if method == "grabcut":
        assert min(row["box"] for row in rows) > 0.9


@pytest.mark.parametrize("method, library", [("otsu", "skimage"), ("random-walker", "skimage"), ("grabcut", "cv2")])
def test_an_image_without_contrast_is_survived(bench: Any, method: str, library: str):
    pytest.importorskip(library, reason=f"optional dependencies `bench`: no {library}")
    options, _ = bench.zero_shot_classical.options_of(method, suite()["classical"][method])
    mask = bench.zero_shot_classical.CLASSICAL[method](np.zeros((32, 32, 1), np.float32), (16, 16), **options)
    assert mask.shape == (32, 32)
    assert mask[16, 16]


def test_the_blind_row_looks_at_no_image(bench: Any):
    rows = bench.zero_shot.score_classical("blind", {"seeds": [0], "radius": 16}, drawn(bench))
    black = replace(drawn(bench), images=np.zeros((2, 1, 128, 128), np.float32))
    assert rows == bench.zero_shot.score_classical("blind", {"seeds": [0], "radius": 16}, black)
    assert min(row["box"] for row in rows) > 0.95  # the toy is an ellipse
    assert 0.1 < max(row["one"] for row in rows) < 0.9
    assert bench.zero_shot.classical_method("blind", {"seeds": [0]}, None).kind == "blind"


def test_a_missing_library_is_named(bench: Any):
    with pytest.raises(InputError, match=r"\.\[bench\]") as caught:
        bench.zero_shot_classical.optional("no_such_library.filters")
    assert caught.value.code == "BENCH_MISSING"


def test_all_methods_get_the_same_first_click(bench: Any, monkeypatch: pytest.MonkeyPatch):
    case = drawn(bench)
    given: list[list[SlicePoints]] = []
    from steadysam import interactive

    ask = interactive.ask

    def listening(backbone: Any, embeddings: Any, points: Any, *rest: Any) -> Any:
        given.append(list(points))
        return ask(backbone, embeddings, points, *rest)

    monkeypatch.setattr(interactive, "ask", listening)
    backbone = build_backbone("steadysam-test", 128, seed=0)
    rows = bench.zero_shot.score_model(backbone, "spd", case, [0, 7])
    seen: list[tuple[int, int]] = []

    def remember(image: Any, click: tuple[int, int]) -> Any:
        seen.append(click)
        return np.zeros(image.shape[:2], bool)

    monkeypatch.setitem(bench.zero_shot_classical.CLASSICAL, "remember", remember)
    other = bench.zero_shot.score_classical("remember", {"seeds": [0, 7]}, case)
    keys = ("case", "slice", "seed", "click_x", "click_y")
    assert [[row[k] for k in keys] for row in rows] == [[row[k] for k in keys] for row in other]
    firsts = [points for points in given if all(len(p) == 1 for p in points)]  # one call per seed
    xy = np.concatenate([p.xy for points in firsts for p in points])
    assert np.abs(xy - np.array(seen)).max() <= 0.5
    for row in rows:
        assert case.truths[case.indices.index(row["slice"])][row["click_y"], row["click_x"]]
    assert rows[0]["box"] == rows[2]["box"]  # the box knows no seed


def test_clicks_differ_by_seed_target_and_case(bench: Any):
    clicks = [
        tuple(drawn(bench, target=t, case=c).first_clicks(s))
        for t, c, s in (("toy", "a", 0), ("toy", "a", 1), ("other", "a", 0), ("toy", "b", 0))
    ]
    assert len(set(clicks)) == 4
    assert tuple(drawn(bench).first_clicks(0)) == clicks[0]


def test_evenly_chosen_slices_hold_both_ends(bench: Any):
    evenly = bench.zero_shot_slices.evenly
    assert evenly(list(range(88)), 16)[0] == 0
    assert evenly(list(range(88)), 16)[-1] == 87
    assert len(evenly(list(range(88)), 16)) == 16
    assert evenly([4, 5, 9], 16) == evenly([4, 5, 9], 0) == [4, 5, 9]


def cell(one: list[float], three: list[float | None] | None = None, *, kind: str = "model", seed: int = 0) -> Any:
    """A cell by hand: a slice each of patients p0, p1, ..."""
    rows = [
        {
            "case": f"c{i}",
            "patient": f"p{i}",
            "slice": 0,
            "seed": seed,
            "click_x": 1,
            "click_y": 2,
            "one": value,
            "three": three[i] if three else None,
            "box": None,
            "predicted_iou": 0.5,
            "best_of_three": value,
        }
        for i, value in enumerate(one)
    ]
    return {"kind": kind, "rows": rows, "data": {"dataset": "d"}}


def test_mean_over_sets_counts_acdc_once(bench: Any):
    scores = bench.zero_shot_scores
    cells = {"LV": cell([0.9, 0.7]), "RV": cell([0.4]), "ISIC": cell([0.2, 0.2, 0.5])}
    alone = scores.samples_of({"ISIC": cell([0.2])}, "one")
    assert scores.interval_over_sets(alone, {"ISIC": ("ISIC",)}, 50) is None  # one patient says nothing about others
    samples = scores.samples_of(cells, "one")
    assert scores.set_means(samples, SETS) == pytest.approx({"ACDC": 0.6, "ISIC": 0.3})
    assert scores.mean_over_sets(samples, SETS) == pytest.approx(0.45)
    low, high = scores.interval_over_sets(samples, SETS, 500)
    assert low <= 0.45 <= high
    assert scores.mean_over_sets({"LV": samples["LV"], "ISIC": samples["ISIC"]}, SETS) is None
    real = suite()
    assert len(scores.sets_of(real)) == 8
    assert scores.sets_of(real)["ACDC"] == ("LV", "RV")


def test_bars_are_reached_missed_or_not_measured(bench: Any):
    scores = bench.zero_shot_scores
    ours = {
        "LV": cell([0.85, 0.75], [0.9, 0.9]),
        "RV": cell([0.6, 0.6], [0.7, 0.7]),
        "ISIC": cell([0.8, 0.8], [0.7, 0.8]),
    }
    classical = {
        "otsu": {"LV": cell([0.7, 0.6]), "RV": cell([0.5, 0.5]), "ISIC": cell([0.6, 0.6])},
        "grabcut": {"LV": cell([0.9, 0.9]), "RV": cell([0.9, 0.9]), "ISIC": cell([0.1, 0.1])},
        "half": {"LV": cell([1.0, 1.0])},  # without all sets it is nobody's best
    }
    rows = scores.bar_rows(ours, classical, SETS, BARS)
    assert [row["verdict"] for row in rows] == ["reached", "missed", "reached", "reached", "reached", "missed"]
    assert [row["measured"] for row in rows] == pytest.approx([0.8, 0.6, 0.8, 0.75, 0.75 - 0.5875, 1])
    assert "otsu" in rows[4]["bar"]
    assert "ISIC" in rows[5]["bar"]
    few = scores.bar_rows({"LV": ours["LV"]}, {}, SETS, BARS)
    assert [row["verdict"] for row in few] == ["reached", *["not measured"] * 5]


def test_margins_compare_common_slices_and_seeds_only(bench: Any):
    ours = {"LV": {"rows": cell([0.9, 0.5])["rows"] + cell([0.1, 0.1], seed=1)["rows"]}}
    first, second, difference = bench.zero_shot_scores.paired_cells(ours, {"LV": cell([0.4, 0.2])})
    assert first["LV"] == [("p0", 0.9), ("p1", 0.5)]
    assert second["LV"] == [("p0", 0.4), ("p1", 0.2)]
    assert [value for _, value in difference["LV"]] == pytest.approx([0.5, 0.3])


def test_a_cell_is_made_once_and_again_when_its_weights_change(bench: Any, tmp_path: Path):
    zero_shot, facts = bench.zero_shot, {"set": "toy", "dataset": "d", "label": "x"}
    case, choice = drawn(bench), bench.zero_shot_slices.Choice()

    def run(seed: int) -> str:
        method = zero_shot.model_method(
            "tiny", "model", build_backbone("steadysam-test", 128, seed=seed), "spd", choice, [0]
        )
        return zero_shot.run_cell(tmp_path, "toy", facts, method, lambda: [case])

    assert "2 rows" in run(0)
    found = zero_shot.read_cell(tmp_path / "tiny-toy.json")
    assert [row["slice"] for row in found["rows"]] == [3, 5]
    assert json.loads((tmp_path / "tiny-toy.json").read_text("utf-8"))["columns"] == list(zero_shot.COLUMNS)
    assert "there already" in run(0)
    assert "2 rows" in run(1)
    tables = bench.zero_shot_report
    cells = {"tiny": {"toy": found}}
    real = {**suite(), "targets": {"toy": facts}, "bootstrap_draws": 50}
    row = tables.target_rows(cells, real)[0]
    assert (row["n_slices"], row["n_patients"], row["seed"], row["noise_model"]) == (2, 1, "0", "none")
    assert "| toy |" in tables.table([row], "target")
    assert tables.mean_rows(cells, real)[0]["one"] == pytest.approx(row["one"])
    predicted = np.mean([row["predicted_iou"] for row in found["rows"]])
    assert tables.calibration_rows(cells["tiny"], "tiny", real)[0]["predicted"] == pytest.approx(predicted)


def test_points_of_a_run_are_named_by_the_images_seen(bench: Any, tmp_path: Path):
    curve = bench.zero_shot_curve
    for name in ("snapshots/000003532.safetensors", "snapshots/000000200.safetensors", "model.safetensors"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [*curve.points_of(tmp_path)] == [200, 3532]  # without a log nobody knows what the last one saw
    (tmp_path / "logs").mkdir()
    log = "epoch,train_images,val_one\n1,3532.0,0.4\n2,6956.0,0.5\n"
    (tmp_path / "logs" / "pretrain-metrics.csv").write_text(log, "utf-8")
    assert [*curve.points_of(tmp_path)] == [200, 3532, 6956]
    row = {"one": 0.4, "three": 0.5, "box": 0.6}
    rows = [{"images": None, "method": "blind", **row}, *({"images": n, "method": "m", **row} for n in (200, 3532))]
    assert curve.picture(rows, curve.read_log(tmp_path), 8).startswith(b"\x89PNG")


def test_every_variant_of_the_ablation_is_one_change_to_the_base(bench: Any):
    ablation = bench.pretrain_ablation
    file = BENCHMARKS / "runs" / "pretrain_ablation.toml"
    variants = ablation.tomllib.loads(file.read_text("utf-8"))
    flags = SimpleNamespace(threads=0, steps=0)
    configs = {
        name: ablation.config_of(variants, file.parent, name, 0, flags).model_dump() for name in variants["variants"]
    }
    base = configs.pop("base")
    assert (base["optim"]["steps"], base["optim"]["sizes"]) == (500, (128,))
    for name, config in configs.items():
        changed = [(part, key) for part in base for key in base[part] if config[part][key] != base[part][key]]
        assert len(changed) == 1, name

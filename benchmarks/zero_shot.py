"""One-click, three-click and box Dice on real test images without any training on them; resumable by cell.

A cell is a file in `RESULTS/cells`: one method on one target, a row per slice and seed. Cells that were made with the
same weights and settings are kept. The settings are those of benchmarks/runs/zero_shot.toml.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from zero_shot_classical import BOXED, CLASSICAL, options_of
from zero_shot_slices import CaseSlices, Choice, Xy, choice_of, read_target

from steadysam.backbones import BACKBONES, build_backbone
from steadysam.backbones.backbone import Backbone
from steadysam.backbones.fingerprint import fingerprint
from steadysam.data.slices import normalise
from steadysam.files import content_key, read_json, write_text
from steadysam.interactive import dice, simulate_user, to_slice
from steadysam.prompts.clicks import tight_box
from steadysam.types import Frame

HERE = Path(__file__).parent
COLUMNS = (
    "case",
    "patient",
    "slice",
    "seed",
    "click_x",
    "click_y",
    "one",
    "three",
    "box",
    "predicted_iou",
    "best_of_three",
)
Row = dict[str, Any]
_ENCODE = 8  # slices per forward pass


@dataclass(frozen=True, eq=False)
class Method:
    """A row of the tables.

    Args:
        name: as the tables say it.
        kind: `model`, `scratch`, `blind` (looks at no image) or `classical`.
        score: all rows of one case.
        settings: what decides the numbers, beside the slices.
        choice: the slices and the size of the image.
    """

    name: str
    kind: str
    score: Callable[[CaseSlices], list[Row]]
    settings: dict[str, Any]
    choice: Choice


def model_method(
    name: str, kind: str, backbone: Backbone, norm: str, choice: Choice, seeds: Sequence[int], **settings: Any
) -> Method:
    """A promptable model as a row."""
    weights = fingerprint(backbone)  # pyright: ignore

    def score(case: CaseSlices) -> list[Row]:
        return score_model(backbone, norm, case, seeds)

    return Method(name, kind, score, {"weights": weights, "norm": norm, "seeds": list(seeds), **settings}, choice)


def classical_method(name: str, settings: dict[str, Any], choice: Choice) -> Method:
    """A classical method as a row, or `blind`; `settings` is its table in the suite."""

    def score(case: CaseSlices) -> list[Row]:
        return score_classical(name, settings, case)

    return Method(name, "blind" if name == "blind" else "classical", score, dict(settings), choice)


@torch.no_grad()
def score_model(backbone: Backbone, norm: str, case: CaseSlices, seeds: Iterable[int]) -> list[Row]:
    """Encode each slice once; simulate one user per seed."""
    parts = []
    for start in range(0, len(case.images), _ENCODE):
        images = torch.from_numpy(case.images[start : start + _ENCODE])
        parts.append(backbone.encode(normalise(images, norm)).to(torch.float16))  # pyright: ignore
    embeddings, truths = torch.cat(parts), list(case.truths)
    rows = []
    for seed in seeds:
        generator, twin = case.generator(seed), case.generator(seed)
        rounds = simulate_user(backbone, embeddings, truths, case.frame, generator)
        clicks = case.clicks_from(twin)
        if generator.bit_generator.state != twin.bit_generator.state:
            raise RuntimeError(f"{case.case}: the model's first clicks are not those of the classical methods")
        for i, (slice_, click) in enumerate(zip(case.indices, clicks, strict=True)):
            values = (rounds.one, rounds.three, rounds.box, rounds.predicted_iou, rounds.oracle)
            rows.append(row_of(case, slice_, seed, click, *(float(v[i]) for v in values)))
    return rows


def score_classical(name: str, settings: Mapping[str, Any], case: CaseSlices) -> list[Row]:
    """One click per seed; where the method takes a box, that besides, once.

    Args:
        settings: `seeds`, and the method's numbers.
    """
    on_click, on_box = options_of(name, settings)
    images = [np.ascontiguousarray(np.moveaxis(image, 0, -1)) for image in case.images]
    boxes: list[float | None] = [None] * len(images)
    if name in BOXED:
        for i, (image, truth) in enumerate(zip(images, case.truths, strict=True)):
            box = case.frame.to_model(tight_box(truth).reshape(2, 2)).reshape(4).tolist()
            boxes[i] = native_dice(BOXED[name](image, box, **on_box), truth, case.frame)
    rows = []
    for seed in settings["seeds"]:
        for i, click in enumerate(case.first_clicks(seed)):
            mask = CLASSICAL[name](images[i], to_image(click, case.frame), **on_click)
            one = native_dice(mask, case.truths[i], case.frame)
            rows.append(row_of(case, case.indices[i], seed, click, one, None, boxes[i], None, None))
    return rows


def to_image(click: Xy, frame: Frame) -> Xy:
    """A click in slice pixels -> the pixel of the fitted image that holds it."""
    x, y = frame.to_model(np.array([click], float))[0].round().astype(int).clip(0, frame.size - 1).tolist()
    return x, y


def native_dice(mask: NDArray[np.bool_], truth: NDArray[np.bool_], frame: Frame) -> float:
    """Dice of a mask (S, S) against a truth (H, W), on the slice's pixels; the way back is that of the model."""
    signed = torch.from_numpy(np.where(mask, 1.0, -1.0).astype(np.float32))[None, None]
    return dice((to_slice(signed, frame) > 0)[0, 0].numpy(), truth)


def row_of(case: CaseSlices, slice_: int, seed: int, click: Xy, *values: float | None) -> Row:
    """A row with the columns of `COLUMNS`; numbers are rounded to six places."""
    rounded = (None if value is None else round(value, 6) for value in values)
    return dict(zip(COLUMNS, (case.case, case.patient, slice_, seed, *click, *rounded), strict=True))


def run_cell(
    folder: Path, target: str, facts: dict[str, Any], method: Method, cases: Callable[[], Iterable[CaseSlices]]
) -> str:
    """Score a method on a target, unless its file is there with the same key; returns a line for the log."""
    path = folder / f"{slug(method.name)}-{target}.json"
    key = content_key([facts, method.name, method.kind, method.settings, asdict(method.choice)])
    if path.exists() and read_json(path)["key"] == key:
        return f"{target}, {method.name}: there already"
    started = time.monotonic()
    rows = [row for case in cases() for row in method.score(case)]
    record = {
        "method": method.name,
        "kind": method.kind,
        "target": target,
        "set": facts["set"],
        "key": key,
        "data": facts,
        "choice": asdict(method.choice),
        "settings": method.settings,
        "seconds": round(time.monotonic() - started, 1),
        "columns": list(COLUMNS),
    }
    head = json.dumps(record, indent=1, allow_nan=False)[:-2]
    body = ",\n".join(json.dumps(list(row.values()), separators=(",", ":"), allow_nan=False) for row in rows)
    write_text(path, f'{head},\n "rows": [\n{body}\n]\n}}\n')
    return f"{target}, {method.name}: {_mean(rows)}, {len(rows)} rows, {record['seconds']:.0f} s"


def read_cell(path: Path) -> dict[str, Any]:
    """A cell with its rows as dicts."""
    cell = read_json(path)
    cell["rows"] = [dict(zip(cell["columns"], row, strict=True)) for row in cell["rows"]]
    return cell


def slug(name: str) -> str:
    """A name as part of a file name."""
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name)


def _mean(rows: Sequence[Row]) -> str:
    said = []
    for name in ("one", "three", "box"):
        values = [row[name] for row in rows if row[name] is not None]
        said.append(f"{name} {np.mean(values):.3f}" if values else f"{name} -")
    return " ".join(said)


def methods_of(suite: dict[str, Any], flags: argparse.Namespace) -> list[Method]:
    """What was asked for; `model` and `scratch` stand for the network with its weights and with random ones."""
    limits = {"slices_per_case": flags.slices, "cases": flags.cases}
    overrides = {key: value for key, value in limits.items() if value is not None}
    plain = Choice(**{**asdict(choice_of(suite)), **overrides})
    chosen = []
    for name in flags.methods:
        if name in ("model", "scratch"):
            source = flags.model if name == "model" else suite["scratch"]["name"]
            spec, size = BACKBONES.get(source), flags.size or suite["size"]
            seed = suite["scratch"]["weights_seed"]
            backbone = build_backbone(source, size, seed=seed)
            title = (flags.name or title_of(source)) if name == "model" else source
            title += "" if size == suite["size"] else f" at {size} px"
            choice = Choice(**{**asdict(plain), "size": size})
            seeds = suite["seeds"] if name == "model" else suite["scratch"]["seeds"]
            norm = spec.norm if spec else "spd"
            chosen.append(model_method(title, name, backbone, norm, choice, seeds))
        else:
            chosen.append(classical_method(name, suite["classical"][name], plain))
    return chosen


def title_of(source: str) -> str:
    """The name of a row of `BACKBONES`, or of a weights file: `runs/tiny/model.safetensors` is `tiny`."""
    path = Path(source)
    return source if source in BACKBONES else path.parent.name if path.stem == "model" else path.stem


def main() -> None:
    """Parse flags and run the cells, target by target."""
    parser = argparse.ArgumentParser(description=__doc__)
    names = ["model", "scratch", *CLASSICAL]
    parser.add_argument("--data", type=Path, default=os.environ.get("STEADYSAM_TEST_DATA"), required=False)
    parser.add_argument("--model", default="steadysam-tiny", help="a name of `steadysam models list`, or a file")
    parser.add_argument("--name", help="of the model's row, where --model is a file")
    parser.add_argument("--size", type=int, default=0, help="pixels of the model's image; 0: as the suite says")
    parser.add_argument("--targets", nargs="*")
    parser.add_argument("--methods", nargs="*", default=names, choices=names)
    parser.add_argument("--results", type=Path, default=HERE / "results" / "zero_shot")
    parser.add_argument("--suite", type=Path, default=HERE / "runs" / "zero_shot.toml")
    parser.add_argument("--slices", type=int, help="per case, for a quick look; not the benchmark")
    parser.add_argument("--cases", type=int, help="per target, for a quick look; not the benchmark")
    parser.add_argument("--threads", type=int, default=1)
    flags = parser.parse_args()
    if flags.data is None:
        parser.error("--data FOLDER: the folder that holds the data sets of the suite")
    torch.set_num_threads(flags.threads)
    suite = tomllib.loads(flags.suite.read_text("utf-8"))
    methods = methods_of(suite, flags)
    for target in flags.targets or suite["targets"]:
        read: dict[Choice, list[CaseSlices]] = {}
        facts = suite["targets"][target]

        def cases(choice: Choice, target: str = target, facts: Any = facts, read: Any = read) -> list[CaseSlices]:
            if choice not in read:
                read[choice] = list(read_target(Path(flags.data), target, facts, choice))
            return read[choice]

        for method in methods:
            line = run_cell(flags.results / "cells", target, facts, method, lambda m=method: cases(m.choice))
            print(line, flush=True)


if __name__ == "__main__":
    main()

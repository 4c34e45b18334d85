"""The demonstration: drawn volumes, both stages, raw prompts against SPD, one page of pictures."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from steadysam.audit import write_audit
from steadysam.config import make_config
from steadysam.data.cases import Case, read_dataset
from steadysam.data.volumes import write_mask
from steadysam.embeddings import EmbeddingCache
from steadysam.evaluate import evaluate_case
from steadysam.files import write_json
from steadysam.phantom import draw_dataset
from steadysam.prompts.sets import PromptSet, read_set
from steadysam.report.demo import DemoCase, write_demo_page
from steadysam.runs import Run, load_run
from steadysam.segmenting import segment
from steadysam.summary import Summary, summarise
from steadysam.training import computing, train
from steadysam.training_data import read_case

# name of the row -> (run, settings of the method at test time, what it is)
ROWS: dict[str, tuple[str, dict[str, Any], str]] = {
    "raw prompts": ("raw", {"empty": "empty_mask"}, "decoder trained and used with every prompt as it came"),
    "saliency head alone": ("spd", {"output": "saliency"}, "stage 1 only; ignores all prompts"),
    "SPD, filter switched off": ("spd", {"prompts": "raw"}, "SPD's own decoder, but the filter switched off"),
    "SPD, own slice only": (
        "spd",
        {"n": 0, "empty": "empty_mask"},
        "prompts checked on their own slice, none taken from neighbours",
    ),
    "SPD, always a mask": ("spd", {"empty": "no_prompt"}, "prompts checked on their own and the neighbouring slices"),
    "SPD": ("spd", {"empty": "empty_mask"}, "the same; a slice whose prompts were all rejected stays empty"),
}


@dataclass(frozen=True)
class DemoOptions:
    """Size of the demonstration; the defaults take a few minutes on two CPU cores.

    Args:
        seed: of the drawn cases, the weights and the training.
        train_cases, test_cases: volumes to draw.
        size: side of the model's image in pixels.
        epochs: of stage 1 and stage 2.
        threads: CPU threads (0: as torch chooses).
    """

    seed: int = 2026
    train_cases: int = 48
    test_cases: int = 8
    size: int = 64
    epochs: tuple[int, int] = (18, 6)
    threads: int = 0


def run_demo(folder: str | Path, options: DemoOptions, say: Callable[[str], None]) -> tuple[Path, list[dict[str, Any]]]:
    """Draw, train, segment, score and report below `folder`; what is there already is used again.

    Args:
        say: is told what happens.

    Returns:
        The page `folder/report.html`, and the rows of its table.
    """
    folder = Path(folder)
    started = time.monotonic()
    data = folder / "data"
    if not data.exists():
        say(f"drawing {options.train_cases} + {options.test_cases} volumes: a bowel loop among look-alikes …")
        draw_dataset(data, options.train_cases, options.test_cases, options.seed)
    say("training SPD: stage 1 (encoder and saliency), stage 2 (decoder on distilled prompts) …")
    train(_config(data, options, {}), folder / "runs" / "spd", resume=True)
    say("training the same decoder on raw prompts, from the same stage 1 …")
    start = {"run": str(folder / "runs" / "spd"), "skip": ["saliency"]}
    train(_config(data, options, {"prompts": "raw"}, start), folder / "runs" / "raw", resume=True)
    say("segmenting the test volumes …")
    prompts = read_set(data / "promptsTs")
    cases = _segment_all(folder, data, prompts, options)
    summaries = {name: _summary(cases, name, prompts, options) for name in ROWS}
    seconds = time.monotonic() - started
    rows = table_rows(summaries)
    write_json(folder / "metrics.json", {name: summary.to_dict() for name, summary in summaries.items()})
    facts = {
        "prompt set": prompts.hash,
        "test prompts": "centreline with overshoot, slips onto look-alikes, gaps and strays (drawn, from the truth)",
        "training prompts": "the same from a steadier hand: hardly any overshoot, no slips; the same for all rows",
        "seed": options.seed,
        "training / test volumes": f"{options.train_cases} / {options.test_cases}",
        "test slices": summaries["SPD"].n_slices,
        "minutes": round(seconds / 60, 1),
    }
    order = sorted(cases, key=lambda case: case.scores["SPD"].volume.dice)
    slices = {case.volume.name: telling_slices(case) for case in cases}
    return write_demo_page(folder / "report.html", order, rows, facts, slices), rows


def table_rows(summaries: dict[str, Summary]) -> list[dict[str, Any]]:
    """One row per way of prompting, the all-empty predictor first."""
    shown = ("dsc", "dsc_positive", "volume_dice", "fp_rate_empty", "hd95_px")
    first = next(iter(summaries.values()))
    empty = {key: first.all_empty[key] for key in shown}
    rows: list[dict[str, Any]] = [{"row": "all-empty", "what": "marks nothing", **empty}]
    for name, summary in summaries.items():
        scores = {key: summary.scores[key].mean for key in shown}
        rows.append({"row": name, "what": ROWS[name][2], **scores, "dsc_95": summary.scores["dsc"].interval})
    return rows


def _config(data: Path, options: DemoOptions, method: dict[str, Any], start: dict[str, Any] | None = None) -> Any:
    stage = {"batch_size": 8, "learning_rate": 1e-3, "weight_decay": 0.0, "warmup_steps": 50, "patience": 1}
    values: dict[str, Any] = {
        "data": {"dataset": str(data), "label": "TI"},
        "preprocess": {"size": options.size},
        "backbone": {"name": "steadysam-tiny"},
        "method": {
            "name": "spd",
            "variants": 2,
            "augment": {"scale": 0.12, "shift": 0.06, "gamma": 0.25},
            "stage1": {**stage, "epochs": options.epochs[0]},
            "stage2": {**stage, "epochs": options.epochs[1]},
            **method,
        },
        "compute": {"device": "cpu", "threads": options.threads, "seed": options.seed, "cache": "off"},
    }
    return make_config({**values, "start": start} if start else values)


def _segment_all(folder: Path, data: Path, prompts: PromptSet, options: DemoOptions) -> list[DemoCase]:
    config = _config(data, options, {})
    cases: Iterable[Case] = read_dataset(data).part("Ts")
    with computing(config.compute):
        runs = {name: load_run(folder / "runs" / run, "cpu", **settings) for name, (run, settings, _) in ROWS.items()}
        return [_segment_case(folder, case, runs, prompts) for case in cases]


def _segment_case(folder: Path, case: Case, runs: dict[str, Run], prompts: PromptSet) -> DemoCase:
    volume, truth = read_case(case, (1,), None)
    given = prompts.read(case.name, volume.grid)
    cache = EmbeddingCache()
    results = {name: segment(run, volume, given, cache=cache) for name, run in runs.items()}
    for name, result in results.items():
        target = folder / "out" / name.replace(" ", "_").replace(",", "")
        write_mask(target / f"{case.name}.nii.gz", result.mask)
        if result.decisions:
            write_audit(target, case.name, given, result, {"method": name})
    scores = {
        name: evaluate_case(result.mask.array, truth.array, volume.grid, name=case.name)
        for name, result in results.items()
    }
    return DemoCase(volume, truth, results, scores)


def _summary(cases: list[DemoCase], name: str, prompts: PromptSet, options: DemoOptions) -> Summary:
    provenance = {
        "method": name,
        "prompt_source": ", ".join(prompts.sources),
        "prompt_set": prompts.hash,
        "seed": options.seed,
        "training_seed": options.seed,
        "noise_model": "shaky centreline",
    }
    return summarise([case.scores[name] for case in cases], provenance=provenance, draws=2000)


def telling_slices(case: DemoCase) -> list[int]:
    """Two slices with and one without target: where raw prompts and SPD differ most in DSC, either way round."""
    raw, spd = case.scores["raw prompts"].slices, case.scores["SPD"].slices
    order = np.argsort([-abs(a.dsc - b.dsc) for a, b in zip(raw, spd, strict=True)], kind="stable")
    positive = [int(t) for t in order if not raw[t].true_empty]
    empty = [int(t) for t in order if raw[t].true_empty]
    return sorted([*positive[:2], *empty[:1]])

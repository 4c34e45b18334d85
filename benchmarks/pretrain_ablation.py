"""Small pretraining runs that each leave one ingredient out, scored on real sets and on drawn images; resumable.

Every variant has a run folder of its own below --work. The real sets are the smaller subset of zero_shot.toml, the
drawn images are held out and come from the scenes of the base, whatever the variant was trained on.
"""

from __future__ import annotations

import argparse
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from zero_shot_curve import facts, subset_cells, subset_slices
from zero_shot_scores import METRICS, interval_over_sets, mean_over_sets, paired_cells, samples_of, sets_of

from steadysam.backbones import BACKBONES, build_backbone
from steadysam.backbones.fingerprint import fingerprint
from steadysam.bench.suite import merged
from steadysam.files import content_key, read_json, write_json, write_text
from steadysam.pretraining.config import PretrainConfig, make_pretrain_config
from steadysam.pretraining.run import pretrain
from steadysam.pretraining.score import held_out_score
from steadysam.report.table import LEADING, to_csv, to_markdown

HERE = Path(__file__).parent
Cells = dict[str, dict[str, Any]]


def config_of(
    suite: Mapping[str, Any], folder: Path, variant: str, seed: int, flags: argparse.Namespace
) -> PretrainConfig:
    """The configuration of a variant.

    Args:
        folder: of the suite's file; `base` is relative to it.
    """
    base = tomllib.loads((folder / suite["base"]).read_text("utf-8"))
    changes: dict[str, Any] = {"model": {"seed": seed}, "compute": {"seed": seed}}
    if flags.threads:
        changes["compute"]["threads"] = flags.threads
    if flags.steps:
        changes["optim"] = {"steps": flags.steps}
    values = merged(merged(merged(base, suite["budget"]), suite["variants"][variant]), changes)
    return make_pretrain_config(values)


def train_variant(config: PretrainConfig, folder: Path) -> Path:
    """Train, or go on, or leave it if it is finished; returns the weights file."""
    finished = (folder / "run.json").exists() and read_json(folder / "run.json").get("status") == "finished"
    if finished and (folder / "model.safetensors").exists():
        pretrain_config = make_pretrain_config(tomllib.loads((folder / "config.toml").read_text("utf-8")))
        if pretrain_config == config:
            return folder / "model.safetensors"
    return pretrain(config, folder, resume=True)


def drawn_score(path: Path, backbone: Any, base: PretrainConfig, images: int) -> dict[str, float]:
    """The score on held-out drawn images of the base's scenes; kept in `path`."""
    size = min(base.optim.sizes)
    key = content_key([fingerprint(backbone), base.scene.model_dump(mode="json"), size, images])
    if path.exists() and read_json(path)["key"] == key:
        return read_json(path)["score"]
    score = held_out_score(backbone, base.scene, size, BACKBONES[base.model.name].norm, images)
    write_json(path, {"key": key, "images": images, "size": size, "score": score})
    return score


def row_of(
    variant: str,
    seed: int,
    cells: Cells,
    base: Cells,
    drawn: Mapping[str, float],
    base_drawn: Mapping[str, float],
    zero_shot: Mapping[str, Any],
) -> dict[str, Any]:
    """Means and differences to the base of the same seed; intervals by patient say nothing about training's chance."""
    sets = {name: targets for name, targets in sets_of(zero_shot).items() if all(t in cells for t in targets)}
    row = {"variant": variant, **facts(cells, "steadysam-tiny, small budget", zero_shot), "training_seed": str(seed)}
    row["sets"] = len(sets)
    for metric in METRICS:
        row[metric] = mean_over_sets(samples_of(cells, metric), sets)
        if variant != "base":
            difference = paired_cells(cells, base, metric)[2]
            row[f"{metric} - base"] = mean_over_sets(difference, sets)
            row[f"{metric} 95 %"] = interval_over_sets(difference, sets, zero_shot["bootstrap_draws"])
    for metric in METRICS:
        row[f"drawn {metric}"] = drawn[metric]
        if variant != "base":
            row[f"drawn {metric} - base"] = drawn[metric] - base_drawn[metric]
    return row


def main() -> None:
    """Train and score the variants one after another, the base first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=os.environ.get("STEADYSAM_TEST_DATA"), required=False)
    parser.add_argument("--work", type=Path, default=HERE.parent / "work" / "pretrain_ablation", help="run folders")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "pretrain_ablation")
    parser.add_argument("--suite", type=Path, default=HERE / "runs" / "pretrain_ablation.toml")
    parser.add_argument("--zero-shot", type=Path, default=HERE / "runs" / "zero_shot.toml")
    parser.add_argument("--steps", type=int, default=0, help="another budget, for a quick look")
    parser.add_argument("--variants", nargs="*", help="base is always among them")
    parser.add_argument("--targets", nargs="*", help="for a quick look")
    parser.add_argument("--threads", type=int, default=0, help="0: as the base configuration says")
    flags = parser.parse_args()
    if flags.data is None:
        parser.error("--data FOLDER: the folder that holds the data sets of the suite")
    suite = tomllib.loads(flags.suite.read_text("utf-8"))
    zero_shot = tomllib.loads(flags.zero_shot.read_text("utf-8"))
    variants = [name for name in suite["variants"] if name == "base" or name in (flags.variants or suite["variants"])]
    rows, read = [], {}
    # all at once: a base that is edited while the runs go on must not make them differ
    configs = {(v, s): config_of(suite, flags.suite.parent, v, s, flags) for s in suite["seeds"] for v in variants}
    for seed in suite["seeds"]:
        base: tuple[Cells, dict[str, float]] | None = None
        for variant in variants:
            config = configs[variant, seed]
            name = f"{variant}-{config.optim.steps}-s{seed}"
            weights = train_variant(config, flags.work / name)
            if config.compute.threads:
                torch.set_num_threads(config.compute.threads)
            read = read or subset_slices(Path(flags.data), zero_shot, flags.targets)
            backbone = build_backbone(weights, zero_shot["size"])
            cells = subset_cells(flags.results / "cells", name, backbone, zero_shot, read)
            kept = flags.results / "drawn" / f"{name}.json"
            drawn = drawn_score(kept, backbone, configs["base", seed], suite["held_out_images"])
            base = base or (cells, drawn)
            rows.append(row_of(variant, seed, cells, base[0], drawn, base[1], zero_shot))
            write_tables(flags.results, rows)


def write_tables(folder: Path, rows: list[dict[str, Any]]) -> None:
    """CSV and Markdown of what is there so far."""
    keys = list(dict.fromkeys(["variant", *LEADING, *(key for row in rows for key in row)]))
    said = [key for key in keys if any(row.get(key) is not None for row in rows)]
    text = to_markdown(rows, said, headings={"one": "one click", "three": "three clicks"})
    intro = (
        "Real sets: mean Dice over the sets, on the smaller subset of zero_shot.toml. Drawn: held-out images of the "
        "base's scenes. Differences to `base` of the same training seed, with 95 % by patient; the interval does not "
        "hold the chance of training, which one seed per variant cannot show.\n\n"
    )
    write_text(folder / "pretrain_ablation.csv", to_csv(rows, keys))
    write_text(folder / "pretrain_ablation.md", intro + text)
    print(text, flush=True)


if __name__ == "__main__":
    main()

"""Tables from the cells of downstream.py: benchmarks/results/downstream.{csv,md}."""

from __future__ import annotations

import argparse
import tomllib
from pathlib import Path
from typing import Any

import numpy as np

from steadysam.comparison import compare
from steadysam.files import content_key, read_json, write_text
from steadysam.metrics import CaseScores, SliceScore, VolumeScore
from steadysam.report.table import to_markdown, write_table
from steadysam.summary import pool_trainings, summarise

HERE = Path(__file__).parent
SHOWN = ("target", "patients", "row", "pretrained", "95 %", "scratch", "scratch 95 %", "difference", "difference 95 %")


def load_cells(folder: Path) -> list[dict[str, Any]]:
    """All finished rows, with their scores as values of the package."""
    rows = []
    for path in sorted((folder / "cells").glob("*.json")):
        row = read_json(path)
        row["scores"] = [_case(case) for case in row["cases"]]
        rows.append(row)
    return rows


def _case(values: dict[str, Any]) -> CaseScores:
    slices = tuple(SliceScore(**row) for row in values["slices"])
    rest = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items() if key not in ("slices", "volume")}
    return CaseScores(**{**rest, "slices": slices, "volume": VolumeScore(**values["volume"])})


def table_rows(cells: list[dict[str, Any]], suite: dict[str, Any]) -> list[dict[str, Any]]:
    """Positive-slice DSC of both starts, and their paired difference, per target, row and number of patients."""
    result = []
    for target in suite["targets"]:
        for row in ("SPD", "stage-1 head alone"):
            for patients in suite["patients"]:
                pair = {
                    start: [
                        c for c in cells if c["target"] == target and c["row"] == f"{row}, {start}, {patients or 'all'}"
                    ]
                    for start in ("pretrained", "scratch")
                }
                if all(pair.values()) and len(pair["pretrained"]) == len(pair["scratch"]):
                    result.append(_row(target, row, patients, pair, suite["evaluation_size"]))
    return result


def _row(target: str, row: str, patients: int, pair: dict[str, list[dict[str, Any]]], size: int) -> dict[str, Any]:
    (cases, of), (others, _) = (
        pool_trainings((cell["seed"], cell["scores"], cell["patients"]) for cell in pair[start])
        for start in ("pretrained", "scratch")
    )
    ours, theirs = (summarise(found, of, size=size, draws=2000) for found in (cases, others))
    found = compare(cases, others, of, draws=2000).metrics["dsc_positive"]
    one = pair["pretrained"]
    return {
        "target": target,
        "patients": patients or "all",
        "row": row,
        "pretrained": ours.scores["dsc_positive"].mean,
        "95 %": ours.scores["dsc_positive"].interval,
        "scratch": theirs.scores["dsc_positive"].mean,
        "scratch 95 %": theirs.scores["dsc_positive"].interval,
        "difference": found.over_samples.mean_difference,
        "difference 95 %": found.difference_interval,
        "p (patients)": found.over_patients.p_wilcox,
        "pretrained all slices": ours.scores["dsc"].mean,
        "scratch all slices": theirs.scores["dsc"].mean,
        "all-empty": ours.all_empty["dsc"],
        "pretrained volume dice": ours.scores["volume_dice"].mean,
        "scratch volume dice": theirs.scores["volume_dice"].mean,
        "prompt_source": "simulated (one in-mask point from the truth)",
        "noise_model": "paper: 2-5 uniform points",
        "empty_slice_rule": "matched",
        "empty_consensus_policy": "no_prompt" if row == "SPD" else None,
        "seeds": ", ".join(str(c["seed"]) for c in one),
        "prompt_set": content_key([sorted(c["prompts"]["set"].items()) for c in one])[:12],
        "n_slices": ours.n_slices,
        "n_patients": ours.n_patients,
        "trained_parameters": one[0]["stages"]["saliency"]["trained_parameters"],
        "scratch_trained_parameters": pair["scratch"][0]["stages"]["saliency"]["trained_parameters"],
    }


def main() -> None:
    """Write the table and its Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=HERE / "results" / "downstream")
    parser.add_argument("--suite", type=Path, default=HERE / "runs" / "downstream.toml")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "downstream")
    flags = parser.parse_args()
    suite = tomllib.loads(flags.suite.read_text("utf-8"))
    rows = table_rows(load_cells(flags.results), suite)
    write_table(flags.out, rows, columns=SHOWN)
    first = rows[0]
    five = [r["difference"] for r in rows if r["patients"] == 5 and r["row"] == "SPD"]
    text = [
        "SPD from the pretrained network with LoRA against the same network from random numbers, trained in full: "
        "mean DSC over the test slices that hold the target (512 x 512), 95 % intervals by patient and seed.\n",
        f"Prompts: {first['prompt_source']}; noise: {first['noise_model']}; empty slices: {first['empty_slice_rule']}; "
        f"empty consensus: no_prompt; seeds {first['seeds']}; splits as given, by patient; trained in stage 1: "
        f"{first['trained_parameters']:,} against {first['scratch_trained_parameters']:,} parameters.\n",
        to_markdown(rows, (*SHOWN, "p (patients)", "n_slices", "n_patients")),
        f"\nSPD with 5 patients, mean difference over {len(five)} targets: {np.mean(five):+.3f} "
        f"(bar: at least +0.050: {'reached' if np.mean(five) >= 0.05 else 'missed'}).\n",
    ]
    write_text(flags.out.with_suffix(".md"), "\n".join(text))
    print("\n".join(text))


if __name__ == "__main__":
    main()

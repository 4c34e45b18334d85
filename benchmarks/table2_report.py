"""Tables and pictures from the cells of table2.py: benchmarks/results/table2.{csv,md} and docs/results.md."""

from __future__ import annotations

import argparse
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from steadysam.comparison import compare
from steadysam.files import content_key, read_json, write_text
from steadysam.metrics import CaseScores, SliceScore, VolumeScore
from steadysam.report.table import shown, to_markdown, write_table
from steadysam.summary import Summary, summarise

HERE = Path(__file__).parent
ORDER = (
    "stage-1 head alone",
    "SAM-Tuning",
    "stage 2 on raw prompts",
    "Local",
    "CPD",
    "CPD+PSC (SPD)",
    "SPD, empty consensus -> empty mask",
    "SPD, raw prompts at test",
)
METRICS = (
    "dsc",
    "iou",
    "dsc_positive",
    "volume_dice",
    "fp_rate_empty",
    "hd95_px",
    "asd_px",
    "assd_px",
    "hd95_mm",
    "asd_mm",
    "assd_mm",
)
SHOWN = ("dsc", "dsc_95", "iou", "dsc_positive", "positive_95", "volume_dice", "fp_rate_empty", "hd95_px", "assd_px")


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


def pooled(rows: Sequence[dict[str, Any]]) -> tuple[list[CaseScores], dict[str, str]]:
    """Cases of all seeds under names of their own, and the patient of each: patients are drawn, not seeds."""
    cases, patients = [], {}
    for row in rows:
        for score in row["scores"]:
            name = f"{score.name}#{row['seed']}"
            values = {f: getattr(score, f) for f in score.__dataclass_fields__}
            cases.append(CaseScores(**{**values, "name": name}))
            patients[name] = row["patients"][score.name]
    return cases, patients


def table_rows(cells: list[dict[str, Any]], target: str, kind: str, size: int) -> list[dict[str, Any]]:
    """The rows of one target and one kind of prompts, with the all-empty row first."""
    here = [cell for cell in cells if cell["target"] == target and cell["prompts"]["kind"] == kind]
    result: list[dict[str, Any]] = []
    for name in ORDER:
        rows = [cell for cell in here if cell["row"] == name]
        if not rows:
            continue
        cases, patients = pooled(rows)
        summary = summarise(cases, patients, size=size, draws=2000)
        facts = _facts(rows, kind, name)
        if not result:
            empty = {**facts, "method": "all-empty", "training_seed": None, "empty_consensus_policy": None}
            result.append({**empty, **_counts(summary), **{m: summary.all_empty[m] for m in METRICS}})
        result.append({**facts, **_counts(summary), **_numbers(summary)})
    return result


def _facts(rows: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    seeds = ", ".join(str(row["seed"]) for row in rows)
    noisy = kind == "noisy"
    policy = "empty_mask" if "empty mask" in name else "no_prompt"
    uses_policy = name not in ("SAM-Tuning", "stage-1 head alone", "stage 2 on raw prompts", "SPD, raw prompts at test")
    return {
        "method": name,
        "prompt_source": "simulated (one in-mask point from the truth)" if noisy else "annotators' scribbles",
        "prompt_set": content_key([sorted(row["prompts"]["set"].items()) for row in rows]),
        "seed": seeds,
        "training_seed": seeds,
        "noise_model": "paper: 2-5 uniform points" if noisy else "none added",
        "empty_slice_rule": "matched" if noisy else "as drawn",
        "empty_consensus_policy": policy if uses_policy else None,
        "split": "as given, by patient",
    }


def _counts(summary: Summary) -> dict[str, Any]:
    return {"n_slices": summary.n_slices, "n_patients": summary.n_patients, "empty_share": summary.empty_share}


def _numbers(summary: Summary) -> dict[str, Any]:
    row: dict[str, Any] = {name: summary.scores[name].mean for name in METRICS}
    row |= {f"{name}_n": summary.scores[name].n for name in METRICS}
    row |= {"dsc_95": summary.scores["dsc"].interval, "positive_95": summary.scores["dsc_positive"].interval}
    row |= {"patient_mean": summary.scores["dsc"].patient_mean, "violations": "; ".join(summary.violations)}
    return row


def comparisons(cells: list[dict[str, Any]], target: str) -> list[dict[str, Any]]:
    """Each step of the method against the one before it, paired over slices and over patients."""
    steps = [
        ("stage 2 on raw prompts", "Local"),
        ("Local", "CPD"),
        ("CPD", "CPD+PSC (SPD)"),
        ("SAM-Tuning", "CPD+PSC (SPD)"),
        ("stage-1 head alone", "CPD+PSC (SPD)"),
    ]
    here = [cell for cell in cells if cell["target"] == target and cell["prompts"]["kind"] == "noisy"]
    result = []
    for a, b in steps:
        before = [cell for cell in here if cell["row"] == a]
        after = [cell for cell in here if cell["row"] == b]
        if not before or not after:
            continue
        cases_a, patients = pooled(before)
        cases_b, _ = pooled(after)
        found = compare(cases_b, cases_a, patients, draws=2000).metrics["dsc"]
        result.append(
            {
                "step": f"{a} -> {b}",
                "DSC difference": found.over_samples.mean_difference,
                "95 % by patient": found.difference_interval,
                "p (slices)": found.over_samples.p_wilcox,
                "n without ties": found.over_samples.n_used,
                "p (patients)": found.over_patients.p_wilcox,
            }
        )
    return result


def probe_rows(folder: Path) -> list[dict[str, Any]]:
    """Checks 14 and 15, and the share of slices with an empty consensus."""
    result = []
    for path in sorted((folder / "probes").glob("*.json")):
        p = read_json(path)
        notes = read_json(folder / "cells" / f"{path.stem}-noisy-CPD-PSC--SPD-.json")["notes"]
        count = {key: sum(note[key] for note in notes) for key in notes[0] if key != "case"}
        result.append(
            {
                "target": p["target"],
                "seed": p["seed"],
                "in-mask points kept": p["in_mask_kept"] / max(1, p["in_mask"]),
                "raw precision": p["raw_in_mask"] / max(1, p["raw"]),
                "consensus precision": p["consensus_in_mask"] / max(1, p["consensus"]),
                "Jaccard tau 0.3 / 0.8": p["tau_shared"] / max(1, p["tau_union"]),
                "empty consensus on positive slices": _share(count, "positive"),
                "empty consensus on empty slices": _share(count, "empty"),
            }
        )
    return result


def _share(count: dict[str, int], kind: str) -> str:
    return f"{count[f'empty_consensus_on_{kind}']} of {count[f'slices_{kind}']}"


def main() -> None:
    """Write the tables and the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=HERE / "results" / "table2")
    parser.add_argument("--suite", type=Path, default=HERE / "runs" / "table2.toml")
    parser.add_argument("--page", type=Path, default=HERE.parent / "docs" / "results.md")
    flags = parser.parse_args()
    suite = tomllib.loads(flags.suite.read_text("utf-8"))
    cells = load_cells(flags.results)
    page = [(HERE / "runs" / "table2_intro.md").read_text("utf-8")]
    everything: list[dict[str, Any]] = []
    for kind, title in (("noisy", "simulated noisy prompts"), ("scribbles", "annotators' scribbles as points")):
        for target in suite["targets"]:
            rows = table_rows(cells, target, kind, suite["evaluation_size"])
            if not rows:
                continue
            everything += [{"target": target, **row} for row in rows]
            page += [f"\n## {target}: {title}\n", _caption(rows), _markdown(rows)]
            if kind == "noisy":
                steps = comparisons(cells, target)
                page += ["\nPaired differences (Wilcoxon, two-sided; ties dropped):\n", _plain(steps)]
    page += ["\n## What the filter does (test slices)\n", _plain(probe_rows(flags.results))]
    page += ["\n" + (HERE / "runs" / "table2_reading.md").read_text("utf-8")]
    speed = HERE / "results" / "speed.md"
    if speed.exists():
        page += ["\n## Speed and memory\n", speed.read_text("utf-8")]
    write_table(HERE / "results" / "table2", everything, columns=("target", *SHOWN))
    write_text(flags.page, "\n".join(page))
    for part in page:
        print(part)


def _caption(rows: list[dict[str, Any]]) -> str:
    r = rows[-1]
    return (
        f"Prompts: {r['prompt_source']}; noise: {r['noise_model']}; empty slices: {r['empty_slice_rule']}; seeds "
        f"{r['seed']}; prompt sets {r['prompt_set'][:12]}; split {r['split']}; n = {r['n_slices']} slices "
        f"(all seeds) of {r['n_patients']} patients, {shown(100 * r['empty_share'], 1)} % empty. Boundary distances "
        "in px of 512 x 512, over the valid slices counted in the CSV file.\n"
    )


def _markdown(rows: list[dict[str, Any]]) -> str:
    headings = {"dsc": "DSC", "dsc_95": "95 %", "iou": "IoU", "dsc_positive": "DSC positive", "positive_95": "95 %"}
    headings |= {"volume_dice": "volume Dice", "fp_rate_empty": "FP on empty", "hd95_px": "HD95", "assd_px": "ASSD"}
    columns = ("method", "empty_consensus_policy", *SHOWN)
    return to_markdown(rows, columns, headings=headings)


def _plain(rows: list[dict[str, Any]]) -> str:
    return to_markdown(rows, tuple(rows[0])) if rows else ""


if __name__ == "__main__":
    main()

"""The report of an evaluation: what stands on the page and in which order (worst cases first)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from steadysam import __version__
from steadysam.comparison import Comparison, holm_over
from steadysam.evaluate import Evaluation
from steadysam.files import write_json, write_text
from steadysam.metrics import METRICS, CaseScores
from steadysam.report.figures import dots
from steadysam.report.html import Picture, Section, Table, Text, write_page
from steadysam.report.table import LEADING, to_csv
from steadysam.statistics import group_means
from steadysam.summary import Summary

CASE_COLUMNS: dict[str, str] = {
    "case": "case",
    "patient": "patient",
    "volume_dice": "volume Dice",
    "dsc": "DSC, all slices",
    "dsc_positive": "DSC, positive slices",
    "iou": "IoU, all slices",
    "slices": "slices",
    "positive_slices": "positive",
    "missed_slices": "missed",
    "false_slices": "false",
    "valid_slices": "valid for px",
    "hd95_px": "HD95 px",
    "assd_px": "ASSD px",
    "hd95_mm": "HD95 mm",
    "volume_hd95_mm": "volume HD95 mm",
    "volume_assd_mm": "volume ASSD mm",
}


def worst_first(cases: Sequence[CaseScores]) -> list[CaseScores]:
    """Cases by volume Dice, then by mean slice Dice, then by name."""
    return sorted(cases, key=lambda case: (case.volume.dice, _mean([s.dsc for s in case.slices]) or 0.0, case.name))


def case_row(case: CaseScores, patients: Mapping[str, str]) -> dict[str, Any]:
    """One row of `cases.csv`; means over the slices where a value is defined, None where there is none."""
    slices = case.slices
    return {
        "case": case.name,
        "patient": patients.get(case.name, case.name),
        "volume_dice": case.volume.dice,
        "volume_iou": case.volume.iou,
        "dsc": _mean([row.dsc for row in slices]),
        "dsc_positive": _mean([row.dsc for row in slices if not row.true_empty]),
        "iou": _mean([row.iou for row in slices]),
        "iou_positive": _mean([row.iou for row in slices if not row.true_empty]),
        "slice_axis": case.slice_axis,
        "slices": len(slices),
        "positive_slices": sum(not row.true_empty for row in slices),
        "missed_slices": sum(row.pred_empty and not row.true_empty for row in slices),
        "false_slices": sum(row.true_empty and not row.pred_empty for row in slices),
        "valid_slices": sum(row.valid for row in slices),
        **{
            name: _mean([value for row in slices if (value := getattr(row, name)) is not None])
            for name in ("hd95_px", "asd_px", "assd_px", "hd95_penalised_px", "hd95_mm", "asd_mm", "assd_mm")
        },
        "volume_hd95_mm": case.volume.hd95_mm,
        "volume_asd_mm": case.volume.asd_mm,
        "volume_assd_mm": case.volume.assd_mm,
        "true_voxels": case.volume.true_voxels,
        "pred_voxels": case.volume.pred_voxels,
    }


def slice_rows(cases: Sequence[CaseScores], patients: Mapping[str, str]) -> list[dict[str, Any]]:
    """The rows of `slices.csv`, in the order of cases and slices."""
    return [
        {"case": case.name, "patient": patients.get(case.name, case.name), **asdict(row), "valid": row.valid}
        for case in cases
        for row in case.slices
    ]


def metric_rows(summary: Summary) -> list[dict[str, Any]]:
    """One row per metric: mean, interval, all-empty predictor, patient mean, valid samples, meaning."""
    return [
        {
            "metric": name,
            "mean": estimate.mean,
            "interval": estimate.interval,
            "all_empty": summary.all_empty[name],
            "patient_mean": estimate.patient_mean,
            "patient_interval": estimate.patient_interval,
            "valid": f"{estimate.n} of {estimate.n + estimate.n_undefined}",
            "meaning": f"{METRICS[name][0]}; {METRICS[name][1]}",
        }
        for name, estimate in summary.scores.items()
    ]


def comparison_rows(comparisons: Mapping[str, Comparison]) -> list[dict[str, Any]]:
    """One row per metric and other prediction; Holm adjusts over the others, metric by metric."""
    rows = []
    for name in next(iter(comparisons.values())).metrics if comparisons else ():
        adjusted = {unit: holm_over(comparisons, name, unit) for unit in ("samples", "patients")}
        for other, comparison in comparisons.items():
            test = comparison.metrics[name]
            rows.append(
                {
                    "metric": name,
                    "against": other,
                    "difference": test.over_samples.mean_difference,
                    "interval": test.difference_interval,
                    "pairs": test.over_samples.n_pairs,
                    "without_ties": test.over_samples.n_used,
                    "p_samples": test.over_samples.p_wilcox,
                    "p_samples_holm": adjusted["samples"][other],
                    "p_pratt": test.over_samples.p_pratt,
                    "patients": test.over_patients.n_pairs,
                    "p_patients": test.over_patients.p_wilcox,
                    "p_patients_holm": adjusted["patients"][other],
                }
            )
    return rows


def sections(
    evaluation: Evaluation,
    summary: Summary,
    patients: Mapping[str, str],
    *,
    comparisons: Mapping[str, Comparison] | None = None,
    pictures: Sequence[Picture] = (),
) -> list[Section]:
    """The page of one evaluation."""
    page = [_summary_section(summary)]
    if evaluation.problem() is not None:
        page.insert(0, _problem_section(evaluation))
    doubts = {
        "Masks that are not those described by run.json: ": evaluation.changed,
        "Masks that run.json does not list, of another run or tool: ": evaluation.foreign,
        "Images that trained or validated the run, whose scores say little of new images: ": evaluation.trained,
    }
    said = tuple(text + ", ".join(names) for text, names in doubts.items() if names)
    if said:
        page.insert(0, Section("Provenance", (Text(said, "warning"),)))
    if comparisons:
        page.append(_comparison_section(comparisons))
    page.append(_case_section(evaluation.cases, patients))
    if pictures:
        said = "Slices as stored in the file; truth solid blue, prediction dashed orange. Worst cases first."
        page.append(Section("Pictures", (Text((said,)), *pictures)))
    return page


def facts(summary: Summary) -> dict[str, Any]:
    """What stands on top of the page: provenance, counts, units."""
    recorded = {LEADING.get(key, key): value for key, value in summary.provenance.items()}
    grid = f"{summary.size} x {summary.size} px" if summary.size else "native pixels"
    return {
        **{name: "not recorded" if value is None else value for name, value in recorded.items()},
        "cases / patients": f"{summary.n_cases} / {summary.n_patients}",
        "slices (without target)": f"{summary.n_slices} ({summary.n_empty_slices})",
        "scored on": grid,
    }


def write_evaluation(
    folder: str | Path,
    evaluation: Evaluation,
    summary: Summary,
    patients: Mapping[str, str],
    *,
    comparisons: Mapping[str, Comparison] | None = None,
    pictures: Sequence[Picture] = (),
    settings: Mapping[str, Any] | None = None,
) -> Path:
    """Write `metrics.json`, `cases.csv` (worst first), `slices.csv` and `report.html` into `folder`.

    Args:
        settings: how it was evaluated (label, size, seed), for the record; `label` goes into the title.

    Returns:
        The path of the page.
    """
    folder = Path(folder)
    ordered = worst_first(evaluation.cases)
    cases = [case_row(case, patients) for case in ordered]
    slices = slice_rows(evaluation.cases, patients)
    content = {
        "steadysam": __version__,
        "settings": dict(settings or {}),
        "summary": summary.to_dict(),
        "comparisons": {name: comparison.to_dict() for name, comparison in (comparisons or {}).items()},
        "comparison_table": comparison_rows(comparisons or {}),
        "missing_predictions": evaluation.missing_predictions,
        "missing_labels": evaluation.missing_labels,
        "changed_masks": evaluation.changed,
        "foreign_masks": evaluation.foreign,
        "training_cases": evaluation.trained,
        "failures": {name: error.to_dict() for name, error in evaluation.failures.items()},
        "cases": [row | {"spacing_mm": case.spacing_mm} for row, case in zip(cases, ordered, strict=True)],
    }
    write_json(folder / "metrics.json", content)
    write_text(folder / "cases.csv", to_csv(cases, list(cases[0])))
    write_text(folder / "slices.csv", to_csv(slices, list(slices[0])))
    page = sections(evaluation, summary, patients, comparisons=comparisons, pictures=pictures)
    target = (settings or {}).get("label")
    title = f"Evaluation of {summary.provenance.get('method') or 'predictions'}"
    title += f", target {target}" if target else ""
    return write_page(folder / "report.html", title, page, facts(summary))


def _summary_section(summary: Summary) -> Section:
    columns = {
        "metric": "metric",
        "mean": "mean",
        "interval": "95 % interval",
        "all_empty": "all-empty predictor",
        "patient_mean": "mean of patients",
        "patient_interval": "95 % interval",
        "valid": "valid samples",
        "meaning": "meaning",
    }
    caption = "Intervals: bootstrap that draws patients. The all-empty predictor never marks anything."
    undefined = [name for name, estimate in summary.scores.items() if not estimate.n]
    if undefined:
        caption += f" Defined for no sample here, and left out: {', '.join(undefined)}."
    rows = [row for row in metric_rows(summary) if row["metric"] not in undefined]
    blocks: list[Text | Table | Picture] = [Text(summary.notes, "note"), Table(columns, rows, caption)]
    if summary.violations:
        broken = ("These numbers break a rule that every table must keep:", *summary.violations)
        blocks.insert(0, Text(broken, "warning"))
    return Section("Summary", tuple(blocks))


def _problem_section(evaluation: Evaluation) -> Section:
    lines = []
    if evaluation.missing_predictions:
        lines.append("Labels without a prediction: " + ", ".join(evaluation.missing_predictions))
    if evaluation.missing_labels:
        lines.append("Predictions without a label: " + ", ".join(evaluation.missing_labels))
    lines += [f"{name}: {error.message()}" for name, error in evaluation.failures.items()]
    return Section("Not evaluated", (Text(tuple(lines), "warning"),))


def _comparison_section(comparisons: Mapping[str, Comparison]) -> Section:
    columns = {
        "metric": "metric",
        "against": "against",
        "difference": "mean difference",
        "interval": "95 % interval",
        "pairs": "pairs",
        "without_ties": "without ties",
        "p_samples": "p, samples",
        "p_samples_holm": "Holm",
        "p_pratt": "p, ties ranked",
        "patients": "patients",
        "p_patients": "p, patients",
        "p_patients_holm": "Holm",
    }
    note = (
        "Difference = these predictions minus the others, over samples valid for both. Two-sided Wilcoxon "
        "signed-rank tests; samples of one patient are not independent: "
        "trust the test over patients."
    )
    return Section("Comparison", (Text((note,), "note"), Table(columns, comparison_rows(comparisons), digits=4)))


def _case_section(cases: Sequence[CaseScores], patients: Mapping[str, str]) -> Section:
    ordered = worst_first(cases)
    caption = "Worst first. Missed: target present, nothing predicted. False: predicted where there is no target."
    table = Table(CASE_COLUMNS, [case_row(case, patients) for case in ordered], caption)
    values = {case.name: case.volume.dice for case in ordered}
    caption = f"Volume Dice of {min(len(values), 60)} cases, worst first"
    return Section("Cases", (table, Picture(dots(values, xlabel="volume Dice"), caption)))


def _mean(values: Sequence[float]) -> float | None:
    return group_means(values, ["all"] * len(values))["all"] if values else None

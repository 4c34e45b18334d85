"""Write the report of a benchmark: CSV files of all numbers, tables, pictures, one page, and `report.json`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steadysam import __version__
from steadysam.bench.suite import Suite
from steadysam.errors import UsageError
from steadysam.files import slug, write_json, write_text
from steadysam.report.benchmark import (
    ablations,
    detection,
    distillation,
    filtering,
    grids,
    leads,
    learning,
    paired,
    robustness,
)
from steadysam.report.benchmark.cells import cell_rows
from steadysam.report.benchmark.claims import write_claims
from steadysam.report.benchmark.draft import Draft, Rows, flat
from steadysam.report.benchmark.pooling import Book, read_store
from steadysam.report.benchmark.tables import (
    OVERVIEW,
    SetTables,
    latex_of,
    markdown_of,
    set_latex,
    set_markdown,
    set_tables,
)
from steadysam.report.html import Picture, Section, Table, Text, write_page
from steadysam.report.latex import PREAMBLE
from steadysam.report.table import INTERVALS

Block = Text | Table | Picture


@dataclass(frozen=True)
class Wanted:
    """What a report compares and how it shows it.

    Args:
        reference: the row that all others are tested against; None is `SPD` where there is one.
        steps: `A -> B`, rows to compare; () takes the default steps whose rows are there.
        suite: says anew how rows are shown.
        draws, seed: of the bootstrap.
    """

    reference: str | None = None
    steps: tuple[str, ...] = ()
    suite: Suite | None = None
    draws: int = 2000
    seed: int = 0


def write_report(store: str | Path, folder: str | Path, wanted: Wanted | None = None) -> Path:
    """Write everything about a store into `folder`.

    Returns:
        The page, `report.html`.

    Raises:
        InputError: `BENCH_EMPTY`, `BENCH_CELL`.
        UsageError: `BENCH_ROW` for a reference that the store lacks, `BENCH_STEP` for a step that does.
    """
    wanted = wanted or Wanted()
    book = read_store(store, suite=wanted.suite, draws=wanted.draws, seed=wanted.seed)
    reference = _reference(wanted.reference, book.rows)
    steps = paired.parse_steps(wanted.steps, book.rows)
    report = Draft(book, Path(folder))
    report.csv("cells", cell_rows(book))
    write_claims(report)
    for prompts in book.main_sets:
        _set(report, prompts, reference, steps)
    _figures(report)
    _grids(report, reference)
    _detectors(report)
    _robustness(report)
    _filter(report)
    _training(report)
    content = {
        "steadysam": __version__,
        "settings": {"reference": reference, "steps": steps, "draws": wanted.draws, "seed": wanted.seed},
        "failures": list(book.failures),
        "violations": report.violations,
        **report.numbers,
    }
    write_json(report.folder / "report.json", content)
    return write_page(report.folder / "report.html", "Benchmark", [*_warnings(report), *report.sections], _facts(book))


def _reference(name: str | None, rows: Sequence[str]) -> str | None:
    if name is None:
        return paired.DEFAULT_REFERENCE if paired.DEFAULT_REFERENCE in rows else None
    if name not in rows:
        raise UsageError("BENCH_ROW", "the store has no such row", seen=name, expected=", ".join(rows))
    return name


def _set(report: Draft, prompts: str, reference: str | None, steps: Sequence[tuple[str, str]]) -> None:
    tables = set_tables(report.book, prompts)
    stem = f"tables/{slug(prompts)}"
    report.csv(stem, tables.rows)
    write_text(report.folder / f"{stem}.md", set_markdown(tables))
    write_text(report.folder / f"{stem}.tex", set_latex(tables, slug(prompts)))
    report.violations += [f"{prompts}: {line}" for line in tables.violations]
    blocks: list[Block] = []
    for metric, table in tables.overview.items():
        blocks += [Text((OVERVIEW[metric],)), table]
    report.sections.append(Section(f"Prompts: {prompts}", tuple(blocks)))
    for target, table in tables.details.items():
        report.sections.append(Section(f"{target}, prompts: {prompts}", (table,)))
    kept = report.numbers.setdefault("tables", {})
    kept[prompts] = [flat(row) for row in tables.rows]
    tests = paired.reference_rows(report.book, tables.lines, tables.targets, reference) if reference else []
    _pairs(report, tables, "paired", f"Every row against {reference}, prompts: {prompts}", tests)
    walked = paired.step_rows(report.book, tables.lines, tables.targets, steps)
    _pairs(report, tables, "steps", f"Steps, prompts: {prompts}", walked)


def _pairs(report: Draft, tables: SetTables, kind: str, title: str, rows: Rows) -> None:
    if not rows:
        return
    stem = f"{kind}/{slug(tables.prompts)}"
    report.csv(stem, rows)
    found = {target: paired.paired_table(rows, target) for target in dict.fromkeys(row["target"] for row in rows)}
    text = [f"# {title}\n"]
    tex = [PREAMBLE]
    blocks: list[Block] = []
    for number, (target, table) in enumerate(found.items(), 1):
        text += [f"## {target}\n", markdown_of(table)]
        tex.append(latex_of(table, f"tab:{kind}-{slug(tables.prompts)}-{number}", f"{target}: {title}"))
        blocks += [Text((target,)), table]
    write_text(report.folder / f"{stem}.md", "\n".join(text))
    write_text(report.folder / f"{stem}.tex", "\n".join(tex))
    report.sections.append(Section(title, tuple(blocks)))
    report.numbers.setdefault(kind, {})[tables.prompts] = [flat(row) for row in rows]


def _figures(report: Draft) -> None:
    blocks: list[Block] = []
    for found in ablations.ablations_of(report.book):
        rows = ablations.ablation_rows(report.book, found)
        png = ablations.draw_ablation(found, rows)
        caption = (
            f"{found.name}, prompts: {found.prompts}. Dice with {INTERVALS}; all points of a "
            "panel have the seeds in its title. Hollow and marked: oracle prompts."
        )
        stem = f"figures/{slug(found.name)}-{slug(found.prompts)}"
        blocks.append(report.picture(stem, png, rows, caption))
        report.numbers.setdefault("figures", {})[stem] = [flat(row) for row in rows]
    if blocks:
        report.sections.append(Section("Figures", tuple(blocks)))


def _grids(report: Draft, reference: str | None) -> None:
    blocks: list[Block] = []
    text, tex = ["# Tables of two things\n"], [PREAMBLE]
    for found in grids.grids_of(report.book):
        rows = grids.grid_rows(report.book, found)
        stem = f"figures/{slug(found.name)}-{slug(found.prompts)}"
        report.numbers.setdefault("figures", {})[stem] = [flat(row) for row in rows]
        if found.numeric:
            caption = f"{found.name}: DSC over all slices; bands: {INTERVALS}."
            blocks.append(report.picture(stem, grids.draw_grid(found, rows), rows, caption))
            ahead = leads.lead_rows(report.book, found, reference)
            report.csv(f"leads/{slug(found.name)}-{slug(found.prompts)}", ahead)
            tables = {f"{found.name}: what {ahead[0]['leader']} is ahead": leads.lead_table(ahead)} if ahead else {}
        else:
            report.csv(stem, rows)
            tables = {f"{found.name}: {target}": grids.grid_table(found, rows, target) for target in found.points}
        for title, table in tables.items():
            blocks += [Text((title,)), table]
            text += [f"## {title}\n", markdown_of(table)]
            tex.append(latex_of(table, f"tab:{slug(title)}", title))
    if len(tex) > 1:
        write_text(report.folder / "grids.md", "\n".join(text))
        write_text(report.folder / "grids.tex", "\n".join(tex))
    if blocks:
        report.sections.append(Section("Two things at a time", tuple(blocks)))


def _detectors(report: Draft) -> None:
    rows, weights = detection.detection_rows(report.book), distillation.distillation_rows(report.book)
    if not rows and not weights:
        return
    if rows:
        report.csv("detectors", rows)
        report.numbers["detectors"] = rows
    found = {target: detection.detection_table(rows, target) for target in dict.fromkeys(r["target"] for r in rows)}
    parts = [part for target, table in found.items() for part in (f"## {target}\n", markdown_of(table))]
    blocks: list[Block] = [block for target, table in found.items() for block in (Text((target,)), table)]
    if weights:
        report.csv("distillation", weights)
        report.numbers["distillation"] = weights
        table = distillation.distillation_table(weights)
        parts += ["## Weight of the teacher\n", markdown_of(table)]
        blocks += [Text(("Weight of the teacher",)), table]
    write_text(report.folder / "detectors.md", "\n".join(["# Detectors\n", *parts]))
    report.sections.append(Section("Detectors", tuple(blocks)))


def _robustness(report: Draft) -> None:
    curves = robustness.curves_of(report.book)
    if not curves:
        return
    points = robustness.curve_rows(report.book, curves)
    rows = robustness.robustness_rows(report.book, curves)
    report.csv("robustness", rows)
    report.numbers |= {"robustness": [flat(row) for row in rows], "curves": [flat(row) for row in points]}
    blocks: list[Block] = []
    text, tex = ["# Robustness\n"], [PREAMBLE]
    for number, (noise, target) in enumerate(dict.fromkeys((curve.noise, curve.target) for curve in curves), 1):
        here = [row for row in points if (row["noise"], row["target"]) == (noise, target)]
        title = f"{target}: {noise}"
        table = robustness.robustness_table(rows, noise, target)
        caption = f"{title}. Bands: {INTERVALS}."
        stem = f"figures/noise-{slug(noise)}-{slug(target)}"
        blocks += [report.picture(stem, robustness.draw_noise(here, title), here, caption), table]
        text += [f"## {title}\n", markdown_of(table)]
        tex.append(latex_of(table, f"tab:robustness-{number}", title))
    write_text(report.folder / "robustness.md", "\n".join(text))
    write_text(report.folder / "robustness.tex", "\n".join(tex))
    report.sections.append(Section("Robustness", tuple(blocks)))


def _filter(report: Draft) -> None:
    blocks: list[Block] = []
    if rows := filtering.filter_rows(report.book):
        report.csv("filter", rows)
        tables = {
            prompts: filtering.filter_table(rows, prompts) for prompts in dict.fromkeys(r["prompt_set"] for r in rows)
        }
        text = [part for prompts, table in tables.items() for part in (f"## {prompts}\n", markdown_of(table))]
        write_text(report.folder / "filter.md", "\n".join(["# What became of prompts\n", *text]))
        tex = [
            latex_of(table, f"tab:filter-{slug(prompts)}", f"Prompts: {prompts}") for prompts, table in tables.items()
        ]
        write_text(report.folder / "filter.tex", "\n".join([PREAMBLE, *tex]))
        for prompts, table in tables.items():
            blocks += [Text((f"Prompts: {prompts}",)), table]
        report.numbers["filter"] = rows
    if rows := filtering.saliency_rows(report.book):
        caption = "Saliency of the pixels of the target and of all others, as shares of each kind."
        blocks.append(report.picture("figures/saliency", filtering.draw_saliency(rows), rows, caption))
        report.numbers["saliency"] = rows
    if blocks:
        report.sections.append(Section("What became of prompts", tuple(blocks)))


def _training(report: Draft) -> None:
    rows = learning.run_rows(report.book)
    if not rows:
        return
    report.csv("runs", rows)
    report.numbers["runs"] = rows
    blocks: list[Block] = [learning.run_table(rows)]
    if tried := learning.sweep_rows(report.book):
        report.csv("sweep", tried)
        report.numbers["sweep"] = tried
        blocks += [Text(("Learning rates that were tried:",)), learning.sweep_table(tried)]
    curves = learning.curve_rows(report.book)
    for run, png in learning.draw_learning(curves).items():
        here = [row for row in curves if slug(row["run"]) == run]
        caption = f"Learning curves of {here[0]['run']}: a line per seed; validation solid, training dotted."
        blocks.append(report.picture(f"figures/learning-{run}", png, here, caption))
    report.sections.append(Section("Training", tuple(blocks)))


def _warnings(report: Draft) -> list[Section]:
    blocks = []
    if report.book.failures:
        lines = [f"{failure.get('cell', '?')}: {failure.get('what', failure)}" for failure in report.book.failures]
        blocks.append(Text((f"{len(lines)} cells could not be made and are missing here:", *lines), "warning"))
    if report.violations:
        blocks.append(Text(("These numbers break a rule that every table must keep:", *report.violations), "warning"))
    return [Section("Warnings", tuple(blocks))] if blocks else []


def _facts(book: Book) -> dict[str, Any]:
    seeds = sorted({cell.seed for cell in book.cells})
    return {
        "cells": len(book.cells),
        "targets": ", ".join(book.targets),
        "rows": len(book.rows),
        "prompt sets": len({cell.prompts for cell in book.cells}),
        "seeds": ", ".join(map(str, seeds)),
        "intervals": f"95 %, {book.draws} draws of patients",
        "oracle rows": "marked †: their prompts come from the truth",
    }

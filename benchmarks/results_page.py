"""Pages of results in docs/ from the stores of suites: the report's tables between our own words."""

from __future__ import annotations

import argparse
import io
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from figures_in_words import with_figures
from PIL import Image
from timing import records, trained_seconds

from steadysam.bench.run import rows_of_tables
from steadysam.bench.suite import Suite, read_suite
from steadysam.files import write_bytes, write_text
from steadysam.report.benchmark.pooling import read_store
from steadysam.report.benchmark.write import Wanted, write_report

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Page:
    """A page of docs/; its words are `runs/NAME_intro.md` and `runs/NAME_reading.md`, its store `results/NAME`.

    Args:
        suite: says how rows are shown.
        document: file in docs/; pictures are named after it.
        parts: files of the report, in order; those that a store has not are left out.
        pictures: file in the report's figures/ -> what it shows; one named as a part stands below it.
        reference, steps: of the paired tests; steps whose rows are not both there yet are left out.
        tables: whose hours of training are shown; each is made by `--tables`.
        appendix: heading -> file below results/.
    """

    suite: str
    document: str
    parts: tuple[str, ...]
    pictures: Mapping[str, str]
    tables: tuple[str, ...] = ()
    reference: str | None = None
    steps: tuple[str, ...] = ()
    appendix: Mapping[str, str] = field(default_factory=dict)


CLAIMS = {"claims": "Right of zero as claimed. Dots: means over targets with 95 % intervals; small marks: targets."}

LDFSAM = Page(
    suite="ldfsam_cpu.toml",
    document="results_ldfsam.md",
    parts=("claims.md", "grids.md", "tables/none.md", "steps/none.md", "detectors.md"),
    pictures={
        **CLAIMS,
        "annotation-budget-none": "Dice against the share of the training patients; bands: 95 % intervals.",
        "distillation-none": "Distillation of the detector whose features prompt.",
        "controls-none": "LDFSAM against a detector that nobody trained, another image's prompts, and none.",
        "learning-ldfsam": "Losses of LDFSAM's mask stage.",
    },
    tables=("prompt form", "distillation", "comparison", "annotation budget, %", "controls"),
    reference="LDFSAM",
    steps=(
        "boxes, student -> S+D, student",
        "S, student -> D, student",
        "D, student -> S+D, student",
        "S+D, student -> S+D with KD",
        "S+D, student -> S+D with LD (main)",
        "S+D, student -> LDFSAM",
        "S+D with KD -> LDFSAM",
        "S+D with LD (main) -> LDFSAM",
        "LDFSAM -> S+D, teacher",
        "S+D, student -> S+D, teacher",
        "D, student -> D, teacher",
        "LDFSAM, prompts removed -> LDFSAM",
        "LDFSAM, random detector -> LDFSAM",
        "LDFSAM, another image's prompts -> LDFSAM",
        "SAM-Med2D style, no prompts -> LDFSAM",
        "UNet -> LDFSAM",
    ),
    appendix={
        "Students against their teacher": "ldfsam_agreement.md",
        "Cost, as trained here": "ldfsam_cost.md",
        "Cost at the paper's size": "ldfsam_cost_full.md",
        "A training step at the paper's size": "ldfsam_step_full.md",
    },
)

PAGES = {
    "spd": Page(
        suite="spd_cpu.toml",
        document="results.md",
        parts=(
            "claims.md",
            "tables/noisy.md",
            "steps/noisy.md",
            "paired/noisy.md",
            "tables/scribbles.md",
            "steps/scribbles.md",
            "filter.md",
            "robustness.md",
        ),
        pictures={
            **CLAIMS,
            "noise-uniform-distractors-per-slice-LA": "LA with more and more stray points; one seed.",
            "prompt-source-noisy": "The frozen model with other points (Fig. 5); hollow: they say where the truth is.",
            "pairwise-slice-consistency-noisy": "Forms of the consistency term (Fig. 6).",
            "neighbouring-slices-n-noisy": "Neighbouring slices (Fig. 7); one seed.",
            "saliency": "Saliency on the target and elsewhere, test slices (Fig. 8).",
            "threshold-tau-noisy": "The threshold of the saliency (Fig. 8); one seed.",
            "learning-spd": "Losses of SPD's two stages.",
        },
        appendix={"Trained rows against their floors": "spd_floor.md", "Speed and memory": "speed.md"},
    ),
    "ldfsam": LDFSAM,
    "ldfsam_drawn": replace(
        LDFSAM,
        suite="ldfsam_drawn_cpu.toml",
        document="results_ldfsam_drawn.md",
        pictures={name: LDFSAM.pictures[name] for name in ("claims", "annotation-budget-none")},  # others when there
        steps=(
            *LDFSAM.steps,
            "UNet -> UNet, drawn pictures first",
            "UNet, drawn pictures first -> LDFSAM",
        ),
        appendix={"What drawn pictures and longer mask stages are worth": "ldfsam_starts.md"},
    ),
    "spd_features": Page(
        suite="spd_features.toml",
        document="results_features.md",
        parts=("claims.md", "tables/noisy.md", "steps/noisy.md", "tables/points-dropped.md", "steps/points-dropped.md"),
        pictures=CLAIMS,
        reference="consensus and features",
        steps=(
            "consensus of the clicks -> consensus and features",
            "features -> consensus and features",
            "stage-1 head alone -> features",
        ),
    ),
}


def main() -> None:
    """Write the report of every page whose store is there, then the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--page", nargs="+", choices=PAGES, default=list(PAGES), help="only these")
    parser.add_argument("--stores", type=Path, default=HERE / "results", help="holds a store per page")
    parser.add_argument("--reports", type=Path, default=HERE.parent / "work", help="NAME/report is the whole report")
    parser.add_argument("--docs", type=Path, default=HERE.parent / "docs")
    flags = parser.parse_args()
    for name in flags.page:
        if (flags.stores / name / "cells").is_dir():
            print(write_page(name, PAGES[name], flags.stores / name, flags.reports / name / "report", flags.docs))
        else:
            print(f"{name}: no store in {flags.stores / name}")


def write_page(name: str, page: Page, store: Path, report: Path, docs: Path) -> Path:
    """The report into `report`, the page and its pictures into `docs`; returns the page."""
    suite = read_suite(HERE / "suites" / page.suite)
    book = read_store(store, suite=suite)  # with the report's own draws, so that verdicts in words are its table's
    write_report(store, report, wanted(page, suite, set(book.rows)))
    parts = [(HERE / "runs" / f"{name}_intro.md").read_text("utf-8")]
    for part in page.parts:
        path = report / part
        if path.exists():
            parts.append("\n".join("#" + line if line.startswith("#") else line for line in lines(path)) + "\n")
            parts.append(picture(page, path.stem, report, docs))
    if page.tables:
        parts.append(hours(suite, store, page.tables))
    parts += [picture(page, name, report, docs) for name in page.pictures if f"{name}.md" not in page.parts]
    parts.append(with_figures((HERE / "runs" / f"{name}_reading.md").read_text("utf-8"), book))
    for heading, file in page.appendix.items():
        path = HERE / "results" / file
        if path.exists():
            parts += [f"## {heading}\n", path.read_text("utf-8")]
    return write_text(docs / page.document, "\n".join(part for part in parts if part))


def picture(page: Page, figure: str, report: Path, docs: Path) -> str:
    """Copies a picture of the report beside the page and returns the lines that show it; "" where there is none."""
    path = report / "figures" / f"{figure}.png"
    if figure not in page.pictures or not path.exists():
        return ""
    name = f"{Path(page.document).stem}-{figure}.png"
    write_bytes(docs / name, with_palette(path.read_bytes()))
    said = page.pictures[figure]
    return f"![{said}]({name})\n\n*{said}*\n"


def with_palette(png: bytes) -> bytes:
    """The picture in 256 colours: a third of the size, and every version stays in the repository."""
    small = io.BytesIO()
    flat = Image.open(io.BytesIO(png)).convert("RGB")
    # the other ways of choosing colours lose those of small marks
    few = flat.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    few.save(small, "PNG", optimize=True)
    return small.getvalue()


def hours(suite: Suite, store: Path, tables: tuple[str, ...]) -> str:
    """Hours of one core that the runs of each table were trained, those included that they start from."""
    lines_of = ["## Training by table\n", "| table | trained runs | of | hours of one core |", "|---|---:|---:|---:|"]
    for table in tables:
        cells = [cell for row in rows_of_tables(suite, [table]) for cell in records(suite, row, store)]
        needed = {record for cell in cells for record in cell}
        found = [trained_seconds(record) for record in sorted(needed) if record.exists()]
        lines_of.append(f"| {table} | {len(found)} | {len(needed)} | {sum(found) / 3600:.1f} |")
    said = (
        "Tables share detectors; one is made by `--tables NAME`. Times are of the machines that ran them, mostly"
        " with another run beside; the choice of learning rates is not in them."
    )
    return "\n".join([*lines_of, "", said, ""])


def wanted(page: Page, suite: Suite, rows: set[str]) -> Wanted:
    """What the report compares, as far as the store has the rows."""
    steps = tuple(step for step in page.steps if all(side.strip() in rows for side in step.split("->")))
    reference = page.reference if page.reference in rows else None
    return Wanted(suite=suite, reference=reference, steps=steps)


def lines(path: Path) -> list[str]:
    """The lines of a Markdown file."""
    return path.read_text("utf-8").splitlines()


if __name__ == "__main__":
    main()

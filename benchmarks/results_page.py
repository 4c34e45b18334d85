"""docs/results.md from the store of benchmarks/suites/spd_cpu.toml: the report's tables between our own words."""

from __future__ import annotations

import argparse
from pathlib import Path

from steadysam.bench.suite import read_suite
from steadysam.files import write_bytes, write_text
from steadysam.report.benchmark.write import Wanted, write_report

HERE = Path(__file__).parent
PARTS = (
    "tables/noisy.md",
    "steps/noisy.md",
    "paired/noisy.md",
    "tables/scribbles.md",
    "steps/scribbles.md",
    "filter.md",
    "robustness.md",
)
PICTURES = {
    "noise-uniform-distractors-per-slice-LA": "LA with more and more stray points; one seed.",
    "saliency": "Saliency on the target and elsewhere, test slices.",
    "learning-spd": "Losses of SPD's two stages.",
}


def main() -> None:
    """Write the report, then the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, default=HERE / "results" / "spd")
    parser.add_argument("--suite", type=Path, default=HERE / "suites" / "spd_cpu.toml")
    parser.add_argument("--report", type=Path, default=HERE.parent / "work" / "spd" / "report", help="the whole report")
    parser.add_argument("--docs", type=Path, default=HERE.parent / "docs")
    flags = parser.parse_args()
    write_report(flags.store, flags.report, Wanted(suite=read_suite(flags.suite)))
    page = [(HERE / "runs" / "spd_intro.md").read_text("utf-8")]
    for part in PARTS:
        path = flags.report / part
        if path.exists():
            page.append("\n".join("#" + line if line.startswith("#") else line for line in lines(path)))
    for name, said in PICTURES.items():
        path = flags.report / "figures" / f"{name}.png"
        if path.exists():
            write_bytes(flags.docs / f"results-{name}.png", path.read_bytes())
            page.append(f"![{said}](results-{name}.png)\n\n*{said}*\n")
    page.append((HERE / "runs" / "spd_reading.md").read_text("utf-8"))
    speed = HERE / "results" / "speed.md"
    if speed.exists():
        page += ["## Speed and memory\n", speed.read_text("utf-8")]
    print(write_text(flags.docs / "results.md", "\n".join(page)))


def lines(path: Path) -> list[str]:
    """The lines of a Markdown file."""
    return path.read_text("utf-8").splitlines()


if __name__ == "__main__":
    main()

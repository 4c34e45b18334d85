"""The page of the demonstration: one table, then strips of slices from the worst case to the best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steadysam.metrics import CaseScores
from steadysam.report.figures import Marks, Panel, strip
from steadysam.report.html import Picture, Section, Table, Text, write_page
from steadysam.segmenting import Result
from steadysam.types import Frame, Mask, Volume

COLUMNS = {
    "row": "prompts",
    "what": "what it is",
    "dsc": "DSC, all slices",
    "dsc_95": "95 %",
    "dsc_positive": "DSC, slices with target",
    "volume_dice": "volume Dice",
    "fp_rate_empty": "false positives on empty slices",
    "hd95_px": "HD95, px of 512",
}


@dataclass(frozen=True, eq=False)
class DemoCase:
    """One test case with everything that a picture of it needs."""

    volume: Volume
    truth: Mask
    results: dict[str, Result]
    scores: dict[str, CaseScores]


def write_demo_page(
    path: Path,
    cases: Sequence[DemoCase],
    rows: Sequence[Mapping[str, Any]],
    facts: Mapping[str, Any],
    slices: Mapping[str, Sequence[int]],
) -> Path:
    """Write the page.

    Args:
        cases: in the order in which they are shown.
        rows: of the table, the all-empty row first.
        facts: shown on top.
        slices: case name -> slices to show.
    """
    reading = Text(
        (
            "Every volume shows one target loop and several look-alikes. The prompts are a centreline drawn by a shaky "
            "hand: it runs on beyond both ends of the target, slips onto look-alikes for some slices, and leaves gaps.",
            "DSC counts a slice as 1 where truth and mask are both empty: compare it with the all-empty row. Intervals "
            "draw test volumes. The volumes are drawn by a program: this shows how the method behaves, not how well "
            "it does on patients.",
        )
    )
    table = Table(COLUMNS, rows, "Test volumes; one training seed.", emphasised=len(rows) - 1)
    sections = [Section("Result", (reading, table))]
    for case in cases:
        name = case.volume.name
        raw, spd = (case.scores[row].volume.dice for row in ("raw prompts", "SPD"))
        caption = f"{name}: volume Dice {raw:.2f} with raw prompts, {spd:.2f} with SPD"
        sections.append(Section(name, (Picture(case_strip(case, slices[name]), caption),)))
    return write_page(path, "SteadySAM: raw prompts against distilled prompts", sections, facts)


def case_strip(case: DemoCase, slices: Sequence[int]) -> bytes:
    """One row per slice: image and truth, raw prompts, saliency, consensus prompts, both masks."""
    rows = [_panels(case, t) for t in slices]
    titles = [f"slice {t}" + ("" if case.truth.slice_image(t).any() else ", no target") for t in slices]
    return strip(rows, titles, spacing=case.volume.grid.slice_spacing_mm)


def _panels(case: DemoCase, t: int) -> list[Panel]:
    image, truth = case.volume.slice_image(t), case.truth.slice_image(t)
    spd, raw = case.results["SPD"], case.results["raw prompts"]
    own = [d for d in spd.decisions if d.slice == d.from_slice == t]
    judged = [d for d in spd.decisions if d.slice == t]
    marks = Marks(np.array([d.xy for d in judged]).reshape(-1, 2), tuple(d.verdict for d in judged))
    heat = None if spd.saliency is None else heat_on_slice(spd.saliency[t], spd.frame)
    return [
        Panel(image, "truth", true=truth),
        Panel(image, "raw prompts", marks=Marks.raw(np.array([d.xy for d in own]).reshape(-1, 2))),
        Panel(image, "saliency", heat=heat),
        Panel(image, "judged prompts", marks=marks),
        Panel(image, "mask from raw prompts", true=truth, pred=raw.mask.slice_image(t)),
        Panel(image, "mask from SPD", true=truth, pred=spd.mask.slice_image(t)),
    ]


def heat_on_slice(saliency: NDArray[np.float32], frame: Frame) -> NDArray[np.float32]:
    """(S, S) in model pixels -> (H, W), the nearest model pixel of each slice pixel."""
    x = frame.to_model(np.stack([np.arange(frame.width), np.zeros(frame.width)], axis=1))[:, 0]
    y = frame.to_model(np.stack([np.zeros(frame.height), np.arange(frame.height)], axis=1))[:, 1]
    rows = np.clip(np.rint(y), 0, frame.size - 1).astype(int)
    columns = np.clip(np.rint(x), 0, frame.size - 1).astype(int)
    return saliency[np.ix_(rows, columns)]

"""A report while it is written: files go out at once, sections and numbers are kept for the page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from steadysam.files import write_bytes, write_text
from steadysam.report.benchmark.pooling import Book
from steadysam.report.html import Picture, Section
from steadysam.report.table import to_csv

Rows = Sequence[Mapping[str, Any]]


@dataclass
class Draft:
    """What has been made so far: files are written at once, sections and numbers are kept for the page."""

    book: Book
    folder: Path
    sections: list[Section] = field(default_factory=list)
    numbers: dict[str, Any] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)

    def csv(self, stem: str, rows: Rows) -> None:
        """Write `STEM.csv` with all columns that hold numbers or words."""
        columns = list(dict.fromkeys(key for row in rows for key, value in row.items() if not nested(value)))
        write_text(self.folder / f"{stem}.csv", to_csv(rows, columns))

    def picture(self, stem: str, png: bytes, rows: Rows, caption: str) -> Picture:
        """Write `STEM.png` and its numbers beside it; returns the block of the page."""
        write_bytes(self.folder / f"{stem}.png", png)
        self.csv(stem, rows)
        return Picture(png, caption)


def flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row as JSON knows it."""
    return json.loads(json.dumps(dict(row), default=str))


def nested(value: Any) -> bool:
    """Whether a value fits in no cell of a CSV file."""
    return isinstance(value, (tuple, list, dict))

"""Tables of results as CSV and Markdown: the columns that say what a row is stand first in every table.

A row is a flat dict such as `Summary.row()`; a missing or None value is an empty cell, never a zero.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from steadysam.files import write_text

Row = Mapping[str, Any]

# column -> heading; what spd.md 8 (check 21) wants beside every number
LEADING: dict[str, str] = {
    "method": "method",
    "prompt_source": "prompts",
    "prompt_set": "prompt set",
    "seed": "prompt seed",
    "training_seed": "training seed",
    "noise_model": "noise",
    "empty_slice_rule": "empty slices",
    "empty_consensus_policy": "empty consensus",
    "split": "split",
    "n_slices": "slices",
    "n_patients": "patients",
}
INTERVALS = "95 % intervals that draw patients and, where there are several, seeds"
ABSENT = "–"


def with_interval(value: float | None, interval: tuple[float, float] | None, to: str = "–") -> str | None:
    """`0.512 (0.401–0.623)`; the number alone without an interval, None without a number."""
    if value is None:
        return None
    return shown(value) if interval is None else f"{shown(value)} ({shown(interval[0])}{to}{shown(interval[1])})"


def interval_of(row: Row, name: str = "") -> tuple[float, float] | None:
    """The columns NAMElow and NAMEhigh of a row, if they hold an interval."""
    low, high = row[f"{name}low"], row[f"{name}high"]
    return None if low is None or high is None else (low, high)


def columns_of(rows: Sequence[Row], wanted: Sequence[str] | None = None) -> list[str]:
    """The columns of a table: all of `LEADING` first, then `wanted`, else what else rows hold."""
    rest = list(wanted) if wanted is not None else list(dict.fromkeys(key for row in rows for key in row))
    return [*LEADING, *(key for key in rest if key not in LEADING)]


def to_csv(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """CSV with full precision; None and missing values are empty."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow(["" if row.get(key) is None else row[key] for key in columns])
    return buffer.getvalue()


def to_markdown(
    rows: Sequence[Row],
    columns: Sequence[str],
    *,
    headings: Mapping[str, str] | None = None,
    digits: int = 3,
    blocks: Mapping[int, str] | None = None,
) -> str:
    """A Markdown table, numbers right-aligned and rounded to `digits` places.

    Args:
        headings: column -> heading where it is not the column's own name (or that of `LEADING`).
        blocks: index of a row -> heading of the block that begins with it.
    """
    names = {**LEADING, **(headings or {})}
    numeric = [is_numeric(rows, key) for key in columns]
    lines = [
        "| " + " | ".join(_escape(names.get(key, key)) for key in columns) + " |",
        "|" + "|".join("---:" if number else "---" for number in numeric) + "|",
    ]
    for index, row in enumerate(rows):
        if blocks and index in blocks:
            lines.append(f"| **{_escape(blocks[index])}** |" + " |" * (len(columns) - 1))
        lines.append("| " + " | ".join(_escape(shown(row.get(key), digits)) for key in columns) + " |")
    return "\n".join(lines) + "\n"


def write_table(
    stem: str | Path,
    rows: Sequence[Row],
    *,
    columns: Sequence[str] | None = None,
    headings: Mapping[str, str] | None = None,
    intro: str = "",
    digits: int = 3,
) -> tuple[Path, Path]:
    """Write `STEM.csv` (all columns, full precision) and `STEM.md` (leading columns and `columns`, rounded).

    Leading columns that are None in every row are left out of the Markdown, but not of the CSV.

    Returns:
        The two paths, CSV first.
    """
    stem = Path(stem)
    chosen = columns_of(rows, columns)
    said = [key for key in chosen if key not in LEADING or any(row.get(key) is not None for row in rows)]
    text = to_markdown(rows, said, headings=headings, digits=digits)
    markdown = write_text(stem.with_name(stem.name + ".md"), f"{intro.rstrip()}\n\n{text}" if intro else text)
    return write_text(stem.with_name(stem.name + ".csv"), to_csv(rows, columns_of(rows))), markdown


def shown(value: Any, digits: int = 3) -> str:
    """A cell for people: floats rounded, None as a dash, pairs as an interval, hashes cut to 12 digits."""
    if value is None:
        return ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.{digits}f}"
    if isinstance(value, (tuple, list)) and len(value) == 2:
        return f"{shown(value[0], digits)} to {shown(value[1], digits)}"
    text = str(value)
    is_hash = len(text) >= 40 and all(c in "0123456789abcdef" for c in text)
    return text[:12] if is_hash else text


def is_numeric(rows: Sequence[Row], key: str) -> bool:
    """Whether a column holds numbers only, as far as it is filled."""
    present = [row[key] for row in rows if row.get(key) is not None]
    return bool(present) and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in present)


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")

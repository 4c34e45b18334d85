"""Rows as a table on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def print_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    """A column per key of the first row, the first to the left; nothing without rows."""
    from rich.console import Console
    from rich.table import Table

    from steadysam.report.table import shown

    if not rows:
        return
    table = Table(box=None)
    for place, name in enumerate(rows[0]):
        table.add_column(name, justify="right" if place else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(value if isinstance(value, str) else shown(value) for value in row.values()))
    Console(highlight=False, markup=False).print(table)

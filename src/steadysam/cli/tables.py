"""Rows as a table on the terminal, and a progress bar."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


def print_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    """A column per key of the first row, the first to the left; nothing without rows."""
    from rich.console import Console
    from rich.table import Table

    from steadysam.report.table import shown

    if not rows:
        return
    table = Table(box=None)
    for place, name in enumerate(rows[0]):
        # in a narrow window the first column gives way, which holds names, and never a number
        table.add_column(name, justify="right" if place else "left", no_wrap=bool(place), overflow="fold")
    for row in rows:
        table.add_row(*(value if isinstance(value, str) else shown(value) for value in row.values()))
    Console(highlight=False, markup=False).print(table)


def progress(title: str) -> Callable[[Iterable[T]], Iterator[T]]:
    """Wraps things to go through; the bar is on a terminal only, and goes when it is done."""
    from rich.console import Console
    from rich.progress import track

    def over(things: Iterable[T]) -> Iterator[T]:
        console = Console(stderr=True)
        yield from track(list(things), title, console=console, transient=True, disable=not console.is_terminal)

    return over

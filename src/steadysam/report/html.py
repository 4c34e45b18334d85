"""One page as one file: text, tables and pictures, nothing loaded from elsewhere, everything escaped."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from steadysam import __version__
from steadysam.files import write_text
from steadysam.report.table import shown


@dataclass(frozen=True)
class Text:
    """Paragraphs; `kind` is `plain`, `note` or `warning`."""

    paragraphs: tuple[str, ...]
    kind: str = "plain"


@dataclass(frozen=True)
class Table:
    """A table: `columns` is key -> heading, rows are dicts; None cells become a dash.

    Args:
        emphasised: index of the row to set apart (such as the all-empty row), or None.
        digits: places after the point.
        blocks: index of a row -> heading of the block that begins with it.
    """

    columns: Mapping[str, str]
    rows: Sequence[Mapping[str, Any]]
    caption: str = ""
    emphasised: int | None = None
    digits: int = 3
    blocks: Mapping[int, str] = field(default_factory=dict)

    def cells(self) -> list[list[tuple[str, bool]]]:
        """Rows of `(text, is a number)`."""
        return [
            [(shown(row.get(key), self.digits), isinstance(row.get(key), (int, float))) for key in self.columns]
            for row in self.rows
        ]


@dataclass(frozen=True)
class Picture:
    """A PNG with its caption, which is also its text for readers who do not see it."""

    png: bytes
    caption: str

    @property
    def source(self) -> str:
        """The picture as a data address."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode("ascii")


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it, in order."""

    title: str
    blocks: tuple[Text | Table | Picture, ...]


def render(title: str, sections: Sequence[Section], facts: Mapping[str, Any] | None = None) -> str:
    """The page as text.

    Args:
        title: of the page.
        sections: in order.
        facts: name -> value, shown on top: where the numbers come from.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("steadysam.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2").render(
        title=title,
        facts={name: shown(value) for name, value in (facts or {}).items()},
        sections=[(section.title, [(type(block).__name__, block) for block in section.blocks]) for section in sections],
        version=__version__,
    )


def write_page(
    path: str | Path, title: str, sections: Sequence[Section], facts: Mapping[str, Any] | None = None
) -> Path:
    """Write the page of `render` to `path`, atomically."""
    return write_text(path, render(title, sections, facts))

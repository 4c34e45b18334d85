"""What a suite was written to find out: weighted sums of rows that are claimed to be above zero."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from pydantic import Field, field_validator, model_validator

from steadysam.detection.average_precision import PRECISIONS
from steadysam.files import read_json, write_json
from steadysam.methods.contract import FrozenConfig
from steadysam.metrics import METRICS

FILE = "claims.json"
_TERM = re.compile(r"(.+?)(?: \[(.+)\])?")


class Term(NamedTuple):
    """A row of a claim; `prompts` is None for the row's own first set."""

    row: str
    prompts: str | None
    weight: float


class Claim(FrozenConfig):
    """A sum over rows that is claimed to be above zero: "A before B" is `{ A = 1, B = -1 }`.

    A margin that grows is a difference of two differences; a share s of the gap between B and C that A wins back is
    `{ A = 1, B = s - 1, C = -s }`.

    Args:
        rows: row -> weight; `ROW [SET]` is the row with that prompt set, `ROW` with the first that it was scored with.
        measure: of `METRICS`, over slices or volumes; or `AP`, `AP50`, `AP75` of what finds boxes.
        than: `measure` gains more than this one does: its sum is taken off. Both of `AP`, `AP50`, `AP75`.
        margin: how far below zero the sum may be, for a claim that A is not worse than B; in units of the measure.
        given: another claim without which there is nothing to judge, such as the gap itself.
    """

    rows: dict[str, float]
    measure: str = "dsc"
    than: str | None = None
    margin: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    given: str | None = None

    @field_validator("rows")
    @classmethod
    def _weighs(cls, rows: dict[str, float]) -> dict[str, float]:
        if not all(rows) or not all(rows.values()) or not rows:
            raise ValueError("a claim needs rows, each with a weight that is not 0")
        return rows

    @field_validator("measure")
    @classmethod
    def _measured(cls, measure: str) -> str:
        if measure not in (*METRICS, *PRECISIONS):
            raise ValueError(f"no measure {measure!r}; there are: {', '.join((*METRICS, *PRECISIONS))}")
        return measure

    @model_validator(mode="after")
    def _compares(self) -> Claim:
        if self.than is not None and not {self.measure, self.than} <= set(PRECISIONS):
            raise ValueError(f"`than` and its `measure` are two of {', '.join(PRECISIONS)}")
        return self

    @property
    def terms(self) -> dict[str, Term]:
        """The keys of `rows`, taken apart."""
        return {name: Term(*_TERM.fullmatch(name).group(1, 2), weight) for name, weight in self.rows.items()}  # type: ignore[union-attr]

    @property
    def formula(self) -> str:
        """The sum in words: "A − B + 0.5 × C", and how far it may be below zero, if it may."""
        parts = []
        for row, weight in self.rows.items():
            sign = "−" if weight < 0 else "+"
            parts.append(f"{sign} {row}" if abs(weight) == 1 else f"{sign} {abs(weight):g} × {row}")
        least = f", not below −{self.margin:g}" if self.margin else ""
        return " ".join(parts).removeprefix("+ ") + least

    @property
    def measured(self) -> str:
        """`measure`, or the difference of two: "AP75 − AP50"."""
        return self.measure if self.than is None else f"{self.measure} − {self.than}"


def keep_claims(store: Path, claims: Mapping[str, Claim]) -> None:
    """Write what the suite claims beside the cells, for reports that do not have the suite."""
    if claims:
        write_json(store / FILE, {name: claim.model_dump(exclude_defaults=True) for name, claim in claims.items()})


def kept_claims(store: Path) -> dict[str, Claim]:
    """The inverse of `keep_claims`; none where none were written."""
    path = store / FILE
    return {name: Claim(**values) for name, values in read_json(path).items()} if path.is_file() else {}

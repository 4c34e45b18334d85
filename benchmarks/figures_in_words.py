"""Figures in the words of a page: `{...}` becomes the number of the store, so that no number is typed by hand.

{S+D, student @ Kvasir}              mean DSC over the slices of all seeds
{S+D, student @ mean}                the mean over all targets that have the row
{S+D, student @ Kvasir, seed 42}     of one seed
{LDFSAM − UNet @ ISIC, MMOTU}        a difference, paired, and the mean over some targets
{AP: detector, the teacher @ RV}     another measure, by its name in the store
{verdict: S+D before D}              what became of a claim of the suite
{sum: S+D before D}                  its sum in the mean over targets, with the interval
{sum: S+D before D @ RV}             on one of them
"""

from __future__ import annotations

import re
from dataclasses import replace
from textwrap import TextWrapper

import numpy as np

from steadysam.bench.claims import Claim
from steadysam.detection.average_precision import PRECISIONS
from steadysam.metrics import METRICS
from steadysam.report.benchmark.claims import claim_rows, weigh
from steadysam.report.benchmark.lines import MEAN
from steadysam.report.benchmark.pooling import Book
from steadysam.report.table import interval_of, with_interval

_FIGURE = re.compile(r"\{([^{}]+)\}")
_PLACE = re.compile(r"(?P<targets>.+?)(?:, seed (?P<seed>\d+))?")


def with_figures(text: str, book: Book) -> str:
    """The text with its figures.

    Raises:
        ValueError: a figure that the store does not have, or braces that ask for none.
    """
    means = replace(book, draws=1)  # words have no intervals
    claims = {(row["claim"], row["target"]): row for row in claim_rows(book)}

    def shown(match: re.Match[str]) -> str:
        asked = " ".join(match[1].split())  # words are wrapped
        head, _, name = asked.partition(": ")
        claim, _, target = name.partition(" @ ")
        if head == "verdict" and (name, MEAN) in claims:
            return claims[name, MEAN]["verdict"]
        if head == "sum" and "value" in (row := claims.get((claim, target or MEAN), {})):
            return str(with_interval(row["value"], interval_of(row), " to "))
        number = _number(asked, means)
        if number is None:
            raise ValueError(f"{{{asked}}}: the store has no such figure")
        return f"{number:.3f}"

    return wrapped(_FIGURE.sub(shown, text))


def wrapped(text: str, width: int = 126) -> str:
    """Paragraphs and items of a list with lines of at most `width`; headings stay."""
    found: list[str] = []
    for line in text.splitlines():
        own = not line or line.startswith(("- ", "#"))
        if own or not found or not found[-1] or found[-1].startswith("#"):
            found.append(line)
        else:
            found[-1] += " " + line.strip()
    wrapper = TextWrapper(width, break_long_words=False, break_on_hyphens=False)
    lines = []
    for one in found:
        wrapper.subsequent_indent = "  " if one.startswith("- ") else ""
        lines.append(wrapper.fill(one))
    return "\n".join(lines) + "\n"


def _number(asked: str, book: Book) -> float | None:
    head, _, rest = asked.partition(": ")
    measure, asked = (head, rest) if head in (*METRICS, *PRECISIONS) else ("dsc", asked)
    rows, _, place = asked.rpartition(" @ ")
    found = _PLACE.fullmatch(place)
    if not rows or found is None:
        return None
    left, _, right = rows.partition(" − ")
    claim = Claim(rows={left: 1.0, **({right: -1.0} if right else {})}, measure=measure)
    names = book.targets if found["targets"] == "mean" else found["targets"].split(", ")
    weighed = [weigh(book, "words", claim, name) for name in names]
    if found["targets"] == "mean":
        weighed = [one for one in weighed if one is not None]
    if not weighed or None in weighed:
        return None
    values = [one.by_seed.get(int(seed)) if (seed := found["seed"]) else one.value for one in weighed if one]
    return None if None in values else float(np.mean([value for value in values if value is not None]))

"""A forest plot: a line per statement, its mean with an interval, and what it is made of as small marks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import fill

from steadysam.report.style import MARKERS, plain_axes, png


@dataclass(frozen=True)
class Statement:
    """One line of the plot.

    Args:
        text: beside the axis.
        mean, low, high: the interval may be None.
        parts: name -> value, drawn as small marks, the same name with the same mark on every line.
        colour: of mean and interval; a mean without one is hollow.
    """

    text: str
    mean: float
    low: float | None
    high: float | None
    parts: Mapping[str, float]
    colour: str


def draw_forest(statements: Sequence[Statement], colours: Mapping[str, str], *, title: str, xlabel: str) -> bytes:
    """The statements from top to bottom, as PNG.

    Args:
        colours: word -> colour, for the legend.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(8.6, 1.5 + 0.4 * len(statements)), dpi=110, layout="constrained")
    axes = figure.subplots()
    names = list(dict.fromkeys(name for one in statements for name in one.parts))
    marks = {name: MARKERS[1 + n % (len(MARKERS) - 1)] for n, name in enumerate(names)}
    axes.axvline(0, color="#777777", linewidth=1)
    for n, one in enumerate(statements):
        for name, value in one.parts.items():
            axes.plot([value], [n + 0.22], marks[name], color="#999999", markersize=4)
        face = "white"
        if one.low is not None and one.high is not None:
            face = one.colour
            axes.plot([one.low, one.high], [n - 0.1] * 2, color=one.colour, linewidth=2.2, solid_capstyle="butt")
        axes.plot([one.mean], [n - 0.1], "o", color=one.colour, markerfacecolor=face, markersize=6.5)
    axes.set_yticks(range(len(statements)), [fill(one.text, 46) for one in statements], fontsize=8.5)
    axes.set_ylim(len(statements) - 0.4, -0.6)
    plain_axes(axes, xlabel, "", title)
    handles = [Line2D([], [], color=colour, marker="o", linewidth=2.2, label=word) for word, colour in colours.items()]
    handles += [Line2D([], [], color="#999999", marker=marks[name], linewidth=0, label=name) for name in names]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 8), fontsize=8, frameon=False)
    return png(figure)

"""Charts of several panels with one legend: curves with bands, dots with intervals, histograms; as PNG bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from steadysam.report.style import DASHES, MARKERS, SERIES, plain_axes, png

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Series:
    """Points of one line: `y` and its interval at `x`; a None is left out.

    Args:
        x: numbers, or words (then the panel's `words` give their order).
        low, high: ends of the intervals, or () without.
        style: index of colour, dash and marker; -1 takes the series' own place in the panel.
        dashed: thin and dotted, for what accompanies another line of the same colour.
        label: in the legend, instead of its name; lines with one label have one entry.
    """

    x: Sequence[float | str]
    y: Sequence[float | None]
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()
    style: int = -1
    dashed: bool = False
    label: str = ""

    @staticmethod
    def of_rows(x: Sequence[float | str], rows: Sequence[Mapping[str, Any]], metric: str) -> Series:
        """The columns METRIC, METRIC_low and METRIC_high of `rows` at `x`."""
        y, low, high = ([row[f"{metric}{end}"] for row in rows] for end in ("", "_low", "_high"))
        return Series(x, y, low, high)


@dataclass(frozen=True)
class Panel:
    """One panel.

    Args:
        series: name -> points; the same names have the same looks in all panels.
        words: the places of a word axis, in order; () for a numeric axis.
        reference: name and height of a grey horizontal line, or None.
        histogram: draw `y` as steps over the bins that begin at `x` (of equal width).
        hollow: words that are drawn hollow, because they are no rivals.
    """

    title: str
    xlabel: str
    ylabel: str
    series: Mapping[str, Series]
    words: Sequence[str] = ()
    reference: tuple[str, float] | None = None
    histogram: bool = False
    hollow: frozenset[str] = field(default_factory=frozenset)


def draw_panels(panels: Sequence[Panel], *, columns: int = 3, title: str = "") -> bytes:
    """The panels in rows of `columns`, with one legend below."""
    from matplotlib.figure import Figure

    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    names = list(dict.fromkeys(name for panel in panels for name in panel.series))
    labels = list(dict.fromkeys(series.label or name for panel in panels for name, series in panel.series.items()))
    most = max((len(panel.words) for panel in panels), default=0)
    width = max(3.6, 0.74 * most + 1.0)
    legend_rows = -(-len(labels) // _legend_columns(labels, width * columns))
    slanted = any(_crowded(panel.words, width) for panel in panels)
    height = rows * (3.0 + 0.5 * slanted) + 0.22 * legend_rows + (0.5 if title else 0.25)
    figure = Figure(figsize=(width * columns, height), dpi=110, layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    for axis, panel in zip(axes, panels, strict=False):
        _draw(axis, panel, names, width)
    if title:
        figure.suptitle(title, fontsize=11)
    _legend(figure, axes, labels, width * columns)
    return png(figure)


def _draw(axes: Axes, panel: Panel, names: Sequence[str], width: float) -> None:
    for place, (name, series) in enumerate(panel.series.items()):
        style = series.style if series.style >= 0 else names.index(name)
        kept = [n for n, y in enumerate(series.y) if y is not None]
        y = np.array([series.y[n] for n in kept], float)
        if panel.histogram:
            _steps(axes, series, SERIES[style % len(SERIES)], name)
        elif panel.words:
            _dots(axes, panel, series, kept, y, (style, place, name))
        else:
            _line(axes, series, kept, y, (style, series.label or name))
    if panel.reference is not None:
        axes.axhline(
            panel.reference[1], color="#777777", linestyle=(0, (4, 3)), linewidth=1.2, label=panel.reference[0]
        )
    if panel.words:
        turned = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if _crowded(panel.words, width) else {}
        axes.set_xticks(range(len(panel.words)), list(panel.words), fontsize=8.5, **turned)
        axes.set_xlim(-0.5, len(panel.words) - 0.5)
    elif all(float(x).is_integer() for series in panel.series.values() for x in series.x):
        from matplotlib.ticker import MaxNLocator

        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    plain_axes(axes, panel.xlabel, panel.ylabel, fill(panel.title, int(11 * width)))


def _line(axes: Axes, series: Series, kept: Sequence[int], y: NDArray[Any], look: tuple[int, str]) -> None:
    style, name = look
    x = np.array([series.x[n] for n in kept], float)
    colour, dash = SERIES[style % len(SERIES)], DASHES[(style // len(SERIES)) % len(DASHES)]
    if series.dashed:
        axes.plot(x, y, ":", color=colour, marker="." if len(x) < 3 else "", linewidth=1.1, label=name)
        return
    marker = MARKERS[style % len(MARKERS)] if len(x) < 12 else ""
    axes.plot(x, y, dash, color=colour, marker=marker, markersize=4.5, linewidth=1.4, label=name)
    if series.low:
        ends = [(series.low[n], series.high[n]) for n in kept]
        low = np.array([np.nan if end is None else end for end, _ in ends], float)
        high = np.array([np.nan if end is None else end for _, end in ends], float)
        axes.fill_between(x, low, high, color=colour, alpha=0.13, linewidth=0)


def _dots(
    axes: Axes, panel: Panel, series: Series, kept: Sequence[int], y: NDArray[Any], look: tuple[int, int, str]
) -> None:
    style, place, name = look
    shift = (place - (len(panel.series) - 1) / 2) * 0.2
    colour, marker = SERIES[style % len(SERIES)], MARKERS[style % len(MARKERS)]
    label = name
    for n, value in zip(kept, y, strict=True):
        word = str(series.x[n])
        at = panel.words.index(word) + shift
        low, high = (ends[n] if ends else None for ends in (series.low, series.high))
        if low is not None and high is not None:
            axes.plot([at, at], [low, high], "-", color=colour, linewidth=1.6, solid_capstyle="butt")
        face = "white" if word in panel.hollow else colour
        axes.plot([at], [value], marker, color=colour, markerfacecolor=face, markersize=6.5, label=label)
        label = "_"


def _steps(axes: Axes, series: Series, colour: str, name: str) -> None:
    starts = np.array(series.x, float)
    edges = np.append(starts, starts[-1] + (starts[1] - starts[0] if len(starts) > 1 else 1.0))
    heights = np.array([0.0 if y is None else y for y in series.y], float)
    axes.stairs(heights, edges, color=colour, fill=True, alpha=0.3)
    axes.stairs(heights, edges, color=colour, linewidth=1.6, label=name)


def _crowded(words: Sequence[str], width: float) -> bool:
    """Whether words below an axis would touch: about fourteen letters stand in an inch."""
    return bool(words) and max(map(len, words)) + 1 > 14 * (width - 0.8) / len(words)


def _legend_columns(names: Sequence[str], inches: float) -> int:
    widest = max((len(name) for name in names), default=1)
    return max(1, int(inches / (0.066 * widest + 0.55)))


def _legend(figure: Figure, axes: Sequence[Axes], names: Sequence[str], inches: float) -> None:
    handles: dict[str, Any] = {}
    for axis in axes:
        for handle, name in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(name, handle)
    ordered = [*(name for name in names if name in handles), *(name for name in handles if name not in names)]
    if ordered:
        figure.legend(
            [handles[name] for name in ordered],
            ordered,
            loc="outside lower center",
            ncols=_legend_columns(ordered, inches),
            frameon=False,
            fontsize=8.5,
        )

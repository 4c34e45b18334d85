"""Pictures as PNG bytes: slices with contours and prompts, strips of panels, curves.

Colours are from or near the Okabe-Ito palette, safe for colour-blind readers; prompts differ by shape too.
Slices are shown as stored (x to the right, y down), with true pixel proportions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from steadysam.report.style import DASHES, MARKERS, SERIES, plain_axes, png

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TRUTH, PREDICTION = "#56B4E9", "#E69F00"
STRUCTURES = ("#E69F00", "#56B4E9", "#F0E442", "#FF5FA8", "#00D59A", "#D55E00", "#CC79A7")  # bright: on grey slices
# kind of point -> (marker, colour, what the legend says)
MARKS: dict[str, tuple[str, str, str]] = {
    "raw": ("o", "#F0E442", "prompt"),
    "accepted": ("o", "#00D59A", "accepted prompt"),
    "added": ("^", "#00D59A", "added from a neighbour"),
    "rejected": ("X", "#FF5FA8", "rejected prompt"),
    "ignored": ("s", "#BBBBBB", "ignored prompt"),
}


@dataclass(frozen=True, eq=False)
class Marks:
    """Points to draw: `xy` (K, 2) in slice pixels and K kinds (keys of `MARKS`: a verdict, or `raw`)."""

    xy: NDArray[Any]
    kinds: tuple[str, ...]

    @staticmethod
    def raw(xy: NDArray[Any]) -> Marks:
        """Prompts as they came, without verdicts."""
        xy = np.asarray(xy, np.float64).reshape(-1, 2)
        return Marks(xy, ("raw",) * len(xy))


@dataclass(frozen=True, eq=False)
class Panel:
    """One picture of a strip.

    Args:
        image: (H, W) grey or (H, W, 3) colour.
        title: above the picture.
        true, pred: (H, W) masks drawn as contours, or None.
        marks: prompts, or None.
        heat: (H, W) in [0, 1] drawn over the image, such as a saliency map, or None.
        window: `(x0, y0, x1, y1)` in pixels to zoom to, or None for the whole slice.
        box: `(x0, y0, x1, y1)` in pixels, a prompt, or None.
        boxes: the same, boxes that a detector found.
        structures: name -> (H, W) mask, one colour each; the same names in all panels of a strip.
    """

    image: NDArray[Any]
    title: str = ""
    true: NDArray[Any] | None = None
    pred: NDArray[Any] | None = None
    marks: Marks | None = None
    heat: NDArray[Any] | None = None
    window: tuple[float, float, float, float] | None = None
    box: tuple[float, float, float, float] | None = None
    boxes: Sequence[tuple[float, float, float, float]] = ()
    structures: Mapping[str, NDArray[Any]] = field(default_factory=dict)


def overlay(panel: Panel, *, spacing: tuple[float, float] = (1.0, 1.0), legend: bool = True) -> bytes:
    """One panel with its legend as PNG. `spacing` is the `(row, column)` pixel size."""
    return strip([[panel]], spacing=spacing, panel_inches=3.4, legend=legend)


def strip(
    rows: Sequence[Sequence[Panel]],
    row_titles: Sequence[str] = (),
    *,
    spacing: tuple[float, float] = (1.0, 1.0),
    panel_inches: float = 2.3,
    legend: bool = True,
    dpi: int = 110,
) -> bytes:
    """Rows of panels as one PNG, with one legend below that names what is drawn.

    Args:
        rows: at least one panel; rows may differ in length.
        row_titles: left of each row.
        spacing: `(row, column)` pixel size in any unit, for true proportions.
        panel_inches: width of one panel.
    """
    from matplotlib.figure import Figure

    columns = max(len(row) for row in rows)
    ratios = [min(1.6, max(_proportion(panel, spacing) for panel in row)) for row in rows]
    lines = [max(panel.title.count("\n") for panel in row) for row in rows]  # beyond the first
    height = sum(panel_inches * ratio + 0.3 + 0.2 * more for ratio, more in zip(ratios, lines, strict=True))
    height += 0.35 if legend else 0.0
    figure = Figure(figsize=(panel_inches * columns, height), dpi=dpi, layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False, height_ratios=ratios)
    for r, row in enumerate(rows):
        for c in range(columns):
            axes[r, c].set_axis_off()
            if c < len(row):
                _draw(axes[r, c], row[c], spacing)
        if r < len(row_titles):
            axes[r, 0].text(
                -0.06,
                0.5,
                row_titles[r],
                rotation=90,
                ha="right",
                va="center",
                transform=axes[r, 0].transAxes,
            )
    if legend:
        _legend(figure, [panel for row in rows for panel in row])
    return png(figure)


def curves(
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    xlabel: str,
    ylabel: str,
    title: str = "",
    bands: Mapping[str, Sequence[tuple[float, float]]] | None = None,
    log_x: bool = False,
) -> bytes:
    """Lines through `(x, y)` points as PNG, for noise curves and training curves.

    Args:
        series: name -> points; lines differ by colour, dash and marker.
        bands: name -> `(low, high)` at the same x, drawn as a pale band.
        log_x: x grows by factors; every x must be above 0.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.0, 3.6), dpi=110, layout="constrained")
    axes = figure.subplots()
    for k, (name, points) in enumerate(series.items()):
        x, y = np.array(points, float).reshape(-1, 2).T
        colour, dash = SERIES[k % len(SERIES)], DASHES[(k // len(SERIES)) % len(DASHES)]
        axes.plot(x, y, dash, color=colour, marker=MARKERS[k % 7], markersize=5, label=name)
        if bands and name in bands:
            low, high = np.array(bands[name], float).reshape(-1, 2).T
            axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    if log_x:
        from matplotlib.ticker import LogLocator, NullFormatter

        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:,g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    plain_axes(axes, xlabel, ylabel, title)
    axes.legend(frameon=False, fontsize=8)
    return png(figure)


def dots(values: Mapping[str, float], *, xlabel: str, title: str = "", most: int = 60) -> bytes:
    """One dot per name on a horizontal scale from 0 to 1, in the given order from the top, as PNG."""
    from matplotlib.figure import Figure

    shown = list(values.items())[:most]
    figure = Figure(figsize=(6.0, 0.9 + 0.17 * len(shown)), dpi=110, layout="constrained")
    axes = figure.subplots()
    rows = np.arange(len(shown))
    axes.hlines(rows, 0, [value for _, value in shown], color="#CCCCCC", linewidth=1)
    axes.plot([value for _, value in shown], rows, "o", color=SERIES[0], markersize=5)
    axes.set_yticks(rows, [name for name, _ in shown], fontsize=7)
    axes.set_xlim(-0.02, 1.02)
    axes.invert_yaxis()
    plain_axes(axes, xlabel, "", title)
    return png(figure)


def zoom_window(
    shape: tuple[int, int], *masks: NDArray[Any] | None, margin: float = 0.4
) -> tuple[float, float, float, float] | None:
    """A window `(x0, y0, x1, y1)` around the foreground of `masks` (H, W); None if all are empty.

    The window is never smaller than a third of the slice, so that the surroundings stay recognisable.
    """
    union = np.zeros(shape, bool)
    for mask in masks:
        if mask is not None:
            union |= np.asarray(mask, bool)
    if not union.any():
        return None
    spans = []
    for axis, length in ((0, shape[1]), (1, shape[0])):
        hit = np.flatnonzero(union.any(axis=axis))
        half = max((hit[-1] - hit[0] + 1) * (0.5 + margin), length / 6)
        centre = (hit[0] + hit[-1]) / 2
        spans.append((max(-0.5, centre - half), min(length - 0.5, centre + half)))
    (x0, x1), (y0, y1) = spans
    return float(x0), float(y0), float(x1), float(y1)


def _draw(axes: Axes, panel: Panel, spacing: tuple[float, float]) -> None:
    axes.imshow(_displayable(panel.image), cmap="gray", interpolation="nearest", aspect=spacing[0] / spacing[1])
    if panel.heat is not None:
        axes.imshow(
            panel.heat,
            cmap="viridis",
            vmin=0,
            vmax=1,
            alpha=0.65,
            interpolation="nearest",
            aspect=spacing[0] / spacing[1],
        )
    for number, mask in enumerate(panel.structures.values()):
        if np.any(mask):
            _contour(axes, mask, *_look(number))
    for mask, colour, dash in ((panel.true, TRUTH, "solid"), (panel.pred, PREDICTION, "dashed")):
        if mask is not None and np.any(mask):
            _contour(axes, mask, colour, dash)
    drawn = [(box, PREDICTION) for box in panel.boxes]
    for (x0, y0, x1, y1), colour in [*drawn, *([] if panel.box is None else [(panel.box, MARKS["accepted"][1])])]:
        axes.plot([x0, x1, x1, x0, x0], [y0, y0, y1, y1, y0], color=colour, linewidth=1.2)
    if panel.marks is not None:
        _scatter(axes, panel.marks)
    height, width = panel.image.shape[:2]
    x0, y0, x1, y1 = panel.window or (-0.5, -0.5, width - 0.5, height - 0.5)
    axes.set_xlim(x0, x1)
    axes.set_ylim(y1, y0)
    if panel.title:
        axes.set_title(panel.title, fontsize=8.5).set_parse_math(False)


def _look(number: int) -> tuple[str, Any]:
    """Colour and dash of one structure of many."""
    return STRUCTURES[number % len(STRUCTURES)], DASHES[number // len(STRUCTURES) % len(DASHES)]


def _shown(name: str) -> str:
    """A legend leaves out what begins with an underscore."""
    return f"\u200b{name}" if name.startswith("_") else name


def _contour(axes: Axes, mask: NDArray[Any], colour: str, dash: str) -> None:
    # a rim of zeros closes contours at the edge of the slice
    padded = np.pad(np.asarray(mask, float), 1)
    y, x = (np.arange(-1, n + 1) for n in mask.shape)
    axes.contour(x, y, padded, levels=[0.5], colors=[colour], linewidths=1.5, linestyles=[dash])


def _scatter(axes: Axes, marks: Marks) -> None:
    kinds = np.array(marks.kinds, dtype=object)
    for kind, (marker, colour, _) in MARKS.items():
        xy = np.asarray(marks.xy).reshape(-1, 2)[kinds == kind]
        if len(xy):
            axes.scatter(xy[:, 0], xy[:, 1], s=34, marker=marker, c=colour, edgecolors="black", linewidths=0.7)


def _legend(figure: Figure, panels: Sequence[Panel]) -> None:
    from matplotlib.lines import Line2D

    handles = []
    if any(panel.true is not None for panel in panels):
        handles.append(Line2D([], [], color=TRUTH, linewidth=1.8, label="truth"))
    if any(panel.pred is not None for panel in panels):
        handles.append(Line2D([], [], color=PREDICTION, linewidth=1.8, linestyle="dashed", label="prediction"))
    if any(panel.boxes for panel in panels):
        handles.append(Line2D([], [], color=PREDICTION, linewidth=1.2, label="detected"))
    for number, name in enumerate(next((panel.structures for panel in panels if panel.structures), ())):
        colour, dash = _look(number)
        handles.append(Line2D([], [], color=colour, linewidth=1.8, linestyle=dash, label=_shown(name)))
    drawn = {kind for panel in panels if panel.marks is not None for kind in panel.marks.kinds}
    for kind, (marker, colour, text) in MARKS.items():
        if kind in drawn:
            handles.append(
                Line2D([], [], linestyle="", marker=marker, color=colour, markeredgecolor="black", label=text)
            )
    if handles:
        per_row = max(1, int(figure.get_figwidth() / 1.6))
        legend = figure.legend(handles=handles, loc="outside lower center", ncols=per_row, frameon=False, fontsize=8)
        for text in legend.get_texts():
            text.set_parse_math(False)  # a label may be called $


def _displayable(image: NDArray[Any]) -> NDArray[Any]:
    """Grey slices stretched from their 0.5 to their 99.5 percentile; colour as 0-1."""
    values = np.asarray(image, np.float64)
    if values.ndim == 3:
        return np.clip(values / (255.0 if values.max() > 1 else 1.0), 0, 1)
    low, high = np.percentile(values, [0.5, 99.5])
    return np.clip((values - low) / (high - low), 0, 1) if high > low else np.zeros_like(values)


def _proportion(panel: Panel, spacing: tuple[float, float]) -> float:
    height, width = panel.image.shape[:2]
    x0, y0, x1, y1 = panel.window or (0, 0, width, height)
    return (y1 - y0) * spacing[0] / ((x1 - x0) * spacing[1])

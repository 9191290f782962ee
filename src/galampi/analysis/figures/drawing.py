"""How figures look: one panel each, five colours that colour-blind eyes tell apart, labels beside the lines.

matplotlib is imported in this folder and nowhere else. Names in figures are shown as they are, never as markup.
"""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from galampi.analysis.statistics import duration_s
from galampi.results.reader import Run

Floats = NDArray[np.float64]

INK, FAINT, GRID, PAPER = "#1b1e22", "#6d747c", "#dfe2e6", "#fefefe"
SERIES = ("#0068a8", "#cf5200", "#00875a", "#b8588f", "#9a7400")
"""After Okabe and Ito, darkened until each reads on white."""
BAND_ALPHA = 0.18
_RANK_ALPHA = 0.35
NUM_POINTS = 300
MOST_LABELLED = 6
_SIZE_IN = (5.2, 3.3)
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.7,
    "lines.solid_capstyle": "round",
    "svg.fonttype": "path",
}


@dataclass(frozen=True)
class Figure:
    """A figure that can be drawn.

    Attributes:
        name: Of its files, without ending.
        title: Of its place in the page.
        caption: What is shown and what was computed.
        draw: Draws it.
    """

    name: str
    title: str
    caption: str
    draw: Callable[[Axes], None]

    def render(self) -> tuple[bytes, str]:
        """Return the picture as PNG and as SVG."""
        style: dict[Any, Any] = {**STYLE, "svg.hashsalt": self.name}
        with mpl.rc_context(style), warnings.catch_warnings():
            # A name in a script that the font lacks shows as boxes; the page itself has it right.
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            canvas = Canvas(figsize=_SIZE_IN, layout="constrained")
            self.draw(axes := canvas.add_subplot())
            for line in axes.lines:
                # Of one point there is no line.
                if np.isfinite(np.asarray(line.get_ydata(), np.float64)).sum() == 1:
                    line.set(marker="o", markersize=4)
            png, svg = io.BytesIO(), io.StringIO()
            canvas.savefig(png, format="png", dpi=200, metadata={"Software": None})
            canvas.savefig(svg, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        return png.getvalue(), svg.getvalue()


def updates_figure(
    name: str,
    title: str,
    run: Run,
    column: str,
    label: str,
    caption: str,
    finish: Callable[[Axes], None] | None,
    *,
    factor: float = 1.0,
    mean: bool = False,
) -> Figure:
    """One column of `/updates` of every rank over job time."""
    end_s = duration_s(run)
    scale, unit = time_unit(end_s)
    edges = np.linspace(0, end_s, NUM_POINTS // 2 + 1)
    middles = (edges[1:] + edges[:-1]) / 2
    values = np.full((run.num_ranks, len(middles)), np.nan)
    for rank in run.ranks:
        rows = rank.updates.read("time_s", column)
        known = np.isfinite(rows[column])
        bins = np.clip(np.searchsorted(edges, rows["time_s"][known], side="right") - 1, 0, len(middles) - 1)
        counts = np.bincount(bins, minlength=len(middles))
        sums = np.bincount(bins, weights=rows[column][known], minlength=len(middles))
        np.divide(sums * factor, counts, out=values[rank.rank], where=counts > 0)

    def draw(axes: Axes) -> None:
        handles = []
        if mean or run.num_ranks > MOST_LABELLED:
            handles = draw_ranks(axes, middles / scale, values)
            counts = np.isfinite(values).sum(axis=0)
            average = np.divide(np.nansum(values, axis=0), counts, out=np.full(len(counts), np.nan), where=counts > 0)
            axes.plot(*connected(middles / scale, average), color=SERIES[0])
            handles.insert(0, Line2D([], [], color=SERIES[0], label="mean of all ranks"))
        else:
            labels = []
            for rank, (row, color) in enumerate(zip(values, line_colors(len(values)), strict=True)):
                axes.plot(*connected(middles / scale, row), color=color, linewidth=1.3)
                handles.append(Line2D([], [], color=color, label=f"rank {rank}"))
                labels.append((last_known(row), f"rank {rank}", color))
        if finish is not None:
            finish(axes)
        axes.set_xlabel(f"job time ({unit})")
        axes.set_ylabel(label)
        draw_legend(axes, handles)

    return Figure(name, title, caption, draw)


def draw_ranks(axes: Axes, x: Floats, values: Floats) -> list[Any]:
    """Draw a thin line for each rank; return the handle for the legend."""
    for row in values:
        axes.plot(*connected(x, row), color=FAINT, alpha=_RANK_ALPHA, linewidth=0.9)
    return [Line2D([], [], color=FAINT, alpha=0.6, linewidth=0.9, label="each rank")]


def connected(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Leave out what is not known, so that the line goes on over it."""
    known = np.isfinite(y)
    return x[known], y[known]


def draw_legend(axes: Axes, handles: Sequence[Any], columns: int = 4) -> None:
    """Put the legend above the axes, where it hides nothing."""
    if handles:
        axes.legend(
            handles=list(handles),
            loc="lower left",
            bbox_to_anchor=(-0.02, 1.0),
            ncols=min(columns, len(handles)),
            borderaxespad=0.2,
            handlelength=1.8,
            handletextpad=0.5,
            columnspacing=1.1,
        )


def label_ends(axes: Axes, labels: Sequence[tuple[float, str, str]]) -> None:
    """Write each line's name beside its end, moved apart where they would touch."""
    low, high = axes.get_ylim()
    wanted = sorted(
        ((value - low) / (high - low), textwrap.wrap(text, 20, max_lines=3, placeholder=" \u2026"), color)
        for value, text, color in labels
        if np.isfinite(value)
    )
    places: list[float] = []
    before = -1.0
    for place, lines, _ in wanted:
        half = 0.035 * len(lines)
        places.append(max(place, before + half))
        before = places[-1] + half
    excess = max(0.0, before - 1.0)
    for (_, lines, color), place in zip(wanted, places, strict=True):
        axes.annotate(
            "\n".join(lines),
            (1.0, place - excess),
            xycoords="axes fraction",
            xytext=(5, 0),
            textcoords="offset points",
            color=color,
            va="center",
            fontsize=8.5,
        )


def line_colors(count: int) -> list[str]:
    """Colours for some lines; past the fifth they come again."""
    return [SERIES[index % len(SERIES)] for index in range(count)]


def make_logarithmic(axes: Axes) -> None:
    """Make the axis of the values logarithmic, unless there is none that it could show."""
    if not any((np.asarray(line.get_ydata(), float) > 0).any() for line in axes.lines):
        return
    axes.set_yscale("log")
    # Names are shown as they are, so powers of ten cannot be set as formulas.
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1e4 * low else (1,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def start_at_zero(axes: Axes) -> None:
    """Let the axis of the values begin at 0, if none is negative."""
    if axes.dataLim.ymin >= 0:
        axes.set_ylim(bottom=0)


def last_known(values: Floats) -> float:
    """Return the last value that is known; NaN if none is."""
    known = values[np.isfinite(values)]
    return float(known[-1]) if len(known) else float("nan")


def time_unit(end_s: float) -> tuple[float, str]:
    """Return the seconds of a fitting unit, and its name."""
    if end_s < 300:
        return 1.0, "s"
    return (60.0, "min") if end_s < 3 * 3600 else (3600.0, "h")


def steps_unit(end: float) -> tuple[float, str]:
    """Return the env steps of a fitting unit, and its name."""
    if end < 2e4:
        return 1.0, "1"
    return (1e3, "thousands") if end < 2e6 else (1e6, "millions")

"""The figures of a report: what each shows, and its caption.

Owns how things look: one panel a figure, five colours that colour-blind eyes tell apart, labels beside the lines.
matplotlib is imported here and by nothing else. Names in figures are shown as they are, never as markup.
"""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from galampi.results.ball import Bound
from galampi.results.published import Curve
from galampi.results.reader import ConsensusDistance, Run
from galampi.results.statistics import (
    PHASES,
    WINDOW_EPISODES,
    Episodes,
    Interval,
    binned,
    duration_s,
    since_start,
    throughput,
)

Floats = NDArray[np.float64]

INK, FAINT, GRID, PAPER = "#1b1e22", "#6d747c", "#dfe2e6", "#fefefe"
SERIES = ("#0068a8", "#cf5200", "#00875a", "#b8588f", "#9a7400")
"""After Okabe and Ito, darkened until each reads on white."""
_BAND_ALPHA = 0.18
_RANK_ALPHA = 0.35
_NUM_POINTS = 300
_MOST_LABELLED = 6
_SIZE_IN = (5.2, 3.3)
_STYLE = {
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
        style: dict[Any, Any] = {**_STYLE, "svg.hashsalt": self.name}
        with mpl.rc_context(style), warnings.catch_warnings():
            # A name in a script that the font lacks shows as boxes; the page itself has it right.
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            canvas = Canvas(figsize=_SIZE_IN, layout="constrained")
            self.draw(canvas.add_subplot())
            png, svg = io.BytesIO(), io.StringIO()
            canvas.savefig(png, format="png", dpi=200, metadata={"Software": None})
            canvas.savefig(svg, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        return png.getvalue(), svg.getvalue()


@dataclass(frozen=True, eq=False)
class JobCurve:
    """A learning curve of the runs of one job.

    Attributes:
        label: What stands beside the line.
        at: [M] moments.
        interval: Returns there, over the runs.
        num_runs: Runs.
        dots: Single episodes to show behind, if there is one run.
    """

    label: str
    at: Floats
    interval: Interval
    num_runs: int
    dots: tuple[Floats, Floats] | None


def learning_curves(curves: Sequence[JobCurve], *, along: str, published: Curve | None, name: str, note: str) -> Figure:
    """Return against env steps (`along` "env_steps") or job time ("time_s"), of one or several jobs."""
    several = any(curve.num_runs > 1 for curve in curves)
    end = max(float(curve.at[-1]) for curve in curves)
    scale, unit = _time_unit(end) if along == "time_s" else _steps_unit(end)

    def draw(axes: Axes) -> None:
        handles: list[Any] = []
        if published is not None:
            known = np.array(published.env_steps)
            # To the edge of the figure, but no further than it was published.
            x = np.append(known[known < end], min(end, known[-1]))
            y = np.interp(x, known, published.returns)
            axes.plot(x / scale, y, color=FAINT, linestyle=(0, (4, 2)), linewidth=1.4)
            handles.append(Line2D([], [], color=FAINT, linestyle=(0, (4, 2)), label="published A2C"))
        labels = []
        for curve, color in zip(curves, _colors(len(curves)), strict=True):
            x = curve.at / scale
            if curve.dots is not None and len(curves) == 1:
                axes.plot(curve.dots[0] / scale, curve.dots[1], ".", color=color, alpha=0.18, markersize=3, mew=0)
                handles.append(Line2D([], [], color=color, marker=".", linestyle="", alpha=0.5, label="one episode"))
            axes.fill_between(x, curve.interval.low, curve.interval.high, color=color, alpha=_BAND_ALPHA, linewidth=0)
            axes.plot(x, curve.interval.iqm, color=color)
            labels.append((_last(curve.interval.iqm), curve.label, color))
        main = "interquartile mean" if several else f"mean of {WINDOW_EPISODES} episodes"
        handles.insert(0, Line2D([], [], color=INK if len(curves) > 1 else SERIES[0], label=main))
        if several:
            handles.append(Patch(color=INK if len(curves) > 1 else SERIES[0], alpha=_BAND_ALPHA, label="95 % interval"))
        _legend(axes, handles)
        axes.set_xlim(0, end / scale)
        axes.set_xlabel(f"job time ({unit})" if along == "time_s" else f"env steps of all ranks ({unit})")
        axes.set_ylabel("episodic return")
        if len(curves) > 1:
            _label_ends(axes, labels)

    axis = "job time" if along == "time_s" else "env steps of all ranks together"
    caption = (
        f"Episodic return (raw score of full games) against {axis}. For each run, the mean of the last "
        f"{WINDOW_EPISODES} episodes of all its ranks that had ended by then (of at least 10). {note}"
    )
    title = "Return against wall time" if along == "time_s" else "Return against env steps"
    return Figure(name, title, caption, draw)


def distances(name: str, distance: ConsensusDistance, bound: Bound | str) -> Iterator[Figure]:
    """The epsilon-ball: distance of each rank to the mean, absolute with the bound, and relative."""
    scale, unit = _time_unit(float(distance.times_s[-1]))
    at, series = binned(distance.times_s, list(distance.to_mean.T), _NUM_POINTS)
    to_mean = np.stack(series)
    bound_at = distance.times_s[bound.moments] if isinstance(bound, Bound) else distance.times_s[:0]
    error = f"Estimated from parameter sketches, relative standard error {distance.relative_error:.1%} each."

    def lines(axes: Axes, values: Floats) -> list[Any]:
        if len(values) == 2:
            axes.plot(at / scale, values[0], color=SERIES[0], linewidth=1.3)
            return [Line2D([], [], color=SERIES[0], label="either rank")]
        handles = _ranks(axes, at / scale, values)
        for of_all, color, label in (
            (values.max(axis=0), SERIES[1], "farthest"),
            (values.mean(axis=0), SERIES[0], "mean"),
        ):
            axes.plot(at / scale, of_all, color=color, linewidth=1.3)
            handles.append(Line2D([], [], color=color, label=label))
        return handles

    def draw(axes: Axes) -> None:
        handles = lines(axes, to_mean)
        if isinstance(bound, Bound):
            for values, dashes, label in ((bound.values, (4, 2), "bound"), (bound.sharp, (1, 1.2), "sharper bound")):
                axes.plot(bound_at / scale, values, color=INK, linestyle=(0, dashes), linewidth=1.3)
                handles.append(Line2D([], [], color=INK, linestyle=(0, dashes), label=label))
        _logarithmic(axes)
        _legend(axes, handles, columns=3)
        axes.set_xlabel(f"job time ({unit})")
        axes.set_ylabel("distance to the mean of all ranks")

    zero = "" if to_mean.any() else " All distances are exactly 0, so the axis is linear."
    alike = " Two ranks are always equally far from their mean." if len(to_mean) == 2 else ""
    apart = f"The sketches compared lie {1e3 * np.median(distance.apart_s):.3g} ms apart (median)."
    yield Figure(
        f"{name}-distance",
        "Epsilon-ball: distance to the mean",
        f"Euclidean distance of every rank's parameters to the mean over the ranks.{alike}{zero} {error} {apart} "
        f"{_say(bound)}",
        draw,
    )
    relative = np.stack(binned(distance.times_s, list(distance.relative.T), _NUM_POINTS)[1])

    def draw_relative(axes: Axes) -> None:
        _legend(axes, lines(axes, 100 * relative))
        axes.set_ylim(bottom=0)
        axes.set_xlabel(f"job time ({unit})")
        axes.set_ylabel("distance / norm of parameters (%)")

    yield Figure(
        f"{name}-distance-relative",
        "Epsilon-ball, relative to the parameters",
        "The same distance in percent of the norm of a rank's parameters (mean over the ranks at that time).",
        draw_relative,
    )


def pairs(name: str, distance: ConsensusDistance) -> Figure:
    """Distances between every two ranks."""
    num_ranks = len(distance.between)
    values = np.where(np.eye(num_ranks, dtype=bool), np.nan, distance.between)

    def draw(axes: Axes) -> None:
        axes.grid(visible=False)
        edges = np.arange(num_ranks + 1) - 0.5
        mesh = axes.pcolormesh(
            edges, edges, values, cmap="cividis", vmin=0, edgecolors="face", rasterized=num_ranks > 32
        )
        axes.set_aspect("equal")
        axes.invert_yaxis()
        if num_ranks <= 8:
            for row, column in np.ndindex(num_ranks, num_ranks):
                if row != column:
                    bright = values[row, column] > 0.55 * np.nanmax(values)
                    color = "#000000" if bright else "#ffffff"
                    text = f"{values[row, column]:.3g}"
                    axes.text(column, row, text, ha="center", va="center", color=color, fontsize=8)
        ticks = np.arange(0, num_ranks, max(1, num_ranks // 8))
        axes.set_xticks(ticks)
        axes.set_yticks(ticks)
        axes.set_xlabel("rank")
        axes.set_ylabel("rank")
        assert axes.figure is not None
        bar = axes.figure.colorbar(mesh, ax=axes, shrink=0.9)
        bar.set_label("distance between two ranks")
        bar.outline.set_visible(False)

    caption = (
        "Euclidean distance between the parameters of every two ranks, mean over the second half of the run's job "
        f"time. From the same sketches, relative standard error {distance.relative_error:.1%} each."
    )
    return Figure(f"{name}-pairs", "Distance between every two ranks", caption, draw)


def weights(name: str, run: Run) -> Figure:
    """Push-sum weights over time."""
    caption = (
        "Push-sum weight w of each rank after the gossip of an update, mean over equal stretches of job time. Weights "
        "start at 1, and those of all ranks and of the messages under way sum to the number of ranks."
    )

    def finish(axes: Axes) -> None:
        axes.axhline(1, color=FAINT, linewidth=0.8, linestyle=(0, (2, 2)))
        axes.set_ylim(0, max(1.1, axes.get_ylim()[1]))

    return _updates_figure(f"{name}-weights", "Push-sum weights", run, "weight", "push-sum weight", caption, finish)


def message_age(name: str, run: Run) -> Figure:
    """Age of the messages averaged."""
    caption = (
        "Age of the messages that were averaged, from the moment they were sent, mean over equal stretches of job "
        "time. The clock starts on all ranks with the barrier at the start of the job."
    )
    return _updates_figure(
        f"{name}-message-age", "Message age", run, "message_age_s", "message age (ms)", caption, _from_zero, factor=1e3
    )


def messages(name: str, run: Run) -> Figure:
    """Messages sent, averaged and skipped, along each edge where the files tell."""
    # Nearly all that is sent is averaged: the wider line stays to be seen below the other.
    kinds = (("sent", SERIES[0], 3.0), ("received", SERIES[4], 1.2), ("skipped", SERIES[1], 1.2))
    lines: list[tuple[str, Floats, Floats]] = []
    for rank in run.all_ranks:
        rows = rank.edges.read("time_s", "hop", "sent", "received", "skipped")
        for hop in np.unique(rows["hop"]):
            of_hop = rows["hop"] == hop
            for kind, *_ in kinds:
                lines.append((kind, rows["time_s"][of_hop], since_start(rows[kind][of_hop]).astype(np.float64)))
    by_edge = bool(lines)
    if not by_edge:
        for rank in run.all_ranks:
            rows = rank.updates.read("time_s", "sent", "received", "skipped")
            for kind, *_ in kinds:
                lines.append((kind, rows["time_s"], rows[kind].astype(np.float64)))
    lines = [line for line in lines if len(line[1])]
    scale, unit = _time_unit(max((float(line[1][-1]) for line in lines), default=1.0))

    def draw(axes: Axes) -> None:
        handles = []
        for kind, color, line_width in kinds:
            of_kind = [line for line in lines if line[0] == kind]
            for _, time_s, counts in of_kind:
                x, (y,) = binned(time_s, [counts], _NUM_POINTS)
                axes.plot(
                    x / scale,
                    y,
                    color=color,
                    alpha=0.75 if len(of_kind) <= _MOST_LABELLED else 0.4,
                    linewidth=line_width,
                )
            total = sum(float(line[2][-1]) for line in of_kind)
            word = {"received": "averaged"}.get(kind, kind)
            handles.append(Line2D([], [], color=color, linewidth=line_width, label=f"{word} ({total:,.0f})"))
        _legend(axes, handles)
        axes.set_ylim(bottom=0)
        axes.set_xlabel(f"job time ({unit})")
        axes.set_ylabel("messages along one edge" if by_edge else "messages of one rank")

    what = (
        "one line for each directed edge of the graph and kind"
        if by_edge
        else "one line for each rank and kind (the files of this run do not count by edge)"
    )
    caption = (
        f"Messages since the start of the job, {what}; in brackets the totals. A push is skipped while the last "
        "message along that edge is unread, or the sender's weight is at its floor."
    )
    return Figure(f"{name}-messages", "Messages along the edges", caption, draw)


def phases(name: str, shares: Floats) -> Figure:
    """Where the time of each rank went; shares are [N, 6] of job time: the five phases and the rest."""
    num_ranks = len(shares)
    labels = [label for _, label in PHASES] + ["rest"]
    colors = [*SERIES, "#a9afb6"]

    def draw(axes: Axes) -> None:
        axes.grid(visible=False, axis="y")
        left = np.zeros(num_ranks)
        for column, color in enumerate(colors):
            widths = 100 * shares[:, column]
            axes.barh(np.arange(num_ranks), widths, left=left, color=color, height=0.78, linewidth=0)
            if num_ranks <= 8:
                for row in np.flatnonzero(widths > 7):
                    x = float(left[row] + widths[row] / 2)
                    axes.text(x, float(row), f"{widths[row]:.0f}", color=PAPER, ha="center", va="center", fontsize=8.5)
            left += widths
        axes.set_xlim(0, 100)
        axes.set_ylim(num_ranks - 0.4, -0.6)
        axes.set_yticks(np.arange(0, num_ranks, max(1, num_ranks // 8)))
        axes.set_xlabel("share of job time (%)")
        axes.set_ylabel("rank")
        _legend(axes, [Patch(color=color, label=label) for label, color in zip(labels, colors, strict=True)], columns=3)

    caption = (
        "Share of each rank's job time by what it did, summed over its updates: waiting for the emulator, choosing "
        "actions, gradient and optimizer step, sending and averaging messages, writing results and checkpoints. The "
        "rest is what lies between those clocks."
    )
    return Figure(f"{name}-phases", "Where the time went", caption, draw)


def speed(name: str, run: Run) -> Figure:
    """Env steps a second."""
    at_s, rates = throughput(run)
    scale, unit = _time_unit(float(at_s[-1]))
    total = np.nansum(rates, axis=0)

    def draw(axes: Axes) -> None:
        handles = _ranks(axes, at_s / scale, rates)
        axes.plot(at_s / scale, total, color=SERIES[0])
        handles.insert(0, Line2D([], [], color=SERIES[0], label="all ranks"))
        _legend(axes, handles)
        axes.set_ylim(bottom=0)
        axes.set_xlabel(f"job time ({unit})")
        axes.set_ylabel("env steps / s")

    caption = f"Env steps a second, of each rank and of all together, over {len(at_s)} equal stretches of job time."
    return Figure(f"{name}-throughput", "Throughput", caption, draw)


def training(name: str, run: Run) -> Iterator[Figure]:
    """Losses, entropy, norm of the gradient."""
    tail = "Mean over equal stretches of job time, of each rank and of all."
    for column, title, label, caption in (
        ("policy_loss", "Policy loss", "policy loss", "Policy loss -log pi(a) A, mean over a rollout."),
        (
            "value_loss",
            "Value loss",
            "value loss",
            "Value loss (R - V)\u00b2, mean over a rollout, before its coefficient.",
        ),
        ("entropy", "Entropy", "entropy (nat)", "Entropy of the policy, mean over a rollout."),
        ("grad_norm", "Gradient norm", "norm of the gradient", "Euclidean norm of the gradient before it is clipped."),
    ):
        file_name = f"{name}-{column.replace('_', '-')}"
        # The first updates' gradients and errors can be a thousand times those of the rest.
        finish = {"entropy": _from_zero, "grad_norm": _logarithmic, "value_loss": _logarithmic}.get(column)
        yield _updates_figure(file_name, title, run, column, label, f"{caption} {tail}", finish, mean=True)


def energy(name: str, series: Sequence[tuple[str, Floats, Floats]], scope: str) -> Figure:
    """Energy used: label, job times in s and kWh of each line."""
    scale, unit = _time_unit(max(float(times[-1]) for _, times, _ in series))

    def draw(axes: Axes) -> None:
        labels = []
        for (label, time_s, kwh), color in zip(series, _colors(len(series)), strict=True):
            axes.plot(np.append(0, time_s) / scale, np.append(0, kwh), color=color)
            labels.append((float(kwh[-1]), label, color))
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.set_xlabel(f"job time ({unit})")
        axes.set_ylabel("energy used (kWh)")
        _label_ends(axes, labels)

    caption = f"Energy since the start of the job, by the counters of the hardware. {scope}"
    return Figure(f"{name}-energy", "Energy", caption, draw)


def dots(finished: Episodes, along: str) -> tuple[Floats, Floats]:
    """Thin the episodes of a run to what a picture can show."""
    step = -(-len(finished.returns) // 1500) if len(finished.returns) else 1
    return getattr(finished, along)[::step], finished.returns[::step]


def _updates_figure(
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
    scale, unit = _time_unit(end_s)
    edges = np.linspace(0, end_s, _NUM_POINTS // 2 + 1)
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
        if mean or run.num_ranks > _MOST_LABELLED:
            handles = _ranks(axes, middles / scale, values)
            counts = np.isfinite(values).sum(axis=0)
            average = np.divide(np.nansum(values, axis=0), counts, out=np.full(len(counts), np.nan), where=counts > 0)
            axes.plot(*_connected(middles / scale, average), color=SERIES[0])
            handles.insert(0, Line2D([], [], color=SERIES[0], label="mean of all ranks"))
        else:
            labels = []
            for rank, (row, color) in enumerate(zip(values, _colors(len(values)), strict=True)):
                axes.plot(*_connected(middles / scale, row), color=color, linewidth=1.3)
                handles.append(Line2D([], [], color=color, label=f"rank {rank}"))
                labels.append((_last(row), f"rank {rank}", color))
        if finish is not None:
            finish(axes)
        axes.set_xlabel(f"job time ({unit})")
        axes.set_ylabel(label)
        _legend(axes, handles)

    return Figure(name, title, caption, draw)


def _say(bound: Bound | str) -> str:
    """Describe the bound, with what it rests on."""
    if isinstance(bound, str):
        return f"No bound is drawn: {bound}."
    estimated = (
        " Where the norm of a step was not recorded (of more than 100,000 parameters, 7 of 8 updates) it is estimated "
        "in proportion to learning rate times clipped gradient."
        if bound.has_estimates
        else ""
    )
    return (
        "Dashed: Proposition 1 of the GALA paper (arXiv 1906.04585), \u03b1 \u03a3 \u03b2^(k+1-s) \u2016G(s)\u2016, "
        "for the distances of all ranks stacked; k counts the updates of all ranks. Dotted: the same sum with what is "
        "left of each step in place of \u03b1 \u03b2^(k+1-s). Both hold for the exchange as it was, replayed from the "
        f"files, every share and delay. \u03b1 = {bound.alpha:.3g} and \u03b2 = {bound.beta:.3g} are the tightest pair "
        f"for the {len(bound.values)} moments shown.{estimated}"
    )


def _ranks(axes: Axes, x: Floats, values: Floats) -> list[Any]:
    """Draw a thin line for each rank; return the handle for the legend."""
    for row in values:
        axes.plot(*_connected(x, row), color=FAINT, alpha=_RANK_ALPHA, linewidth=0.9)
    return [Line2D([], [], color=FAINT, alpha=0.6, linewidth=0.9, label="each rank")]


def _connected(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Leave out what is not known, so that the line goes on over it."""
    known = np.isfinite(y)
    return x[known], y[known]


def _legend(axes: Axes, handles: Sequence[Any], columns: int = 4) -> None:
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


def _label_ends(axes: Axes, labels: Sequence[tuple[float, str, str]]) -> None:
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


def _colors(count: int) -> list[str]:
    """Colours for some lines; past the fifth they come again."""
    return [SERIES[index % len(SERIES)] for index in range(count)]


def _logarithmic(axes: Axes) -> None:
    """Make the axis of the values logarithmic, unless there is none that it could show."""
    if not any((np.asarray(line.get_ydata(), float) > 0).any() for line in axes.lines):
        return
    axes.set_yscale("log")
    # Names are shown as they are, so powers of ten cannot be set as formulas.
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1e4 * low else (1,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _from_zero(axes: Axes) -> None:
    axes.set_ylim(bottom=0)


def _last(values: Floats) -> float:
    known = values[np.isfinite(values)]
    return float(known[-1]) if len(known) else float("nan")


def _time_unit(end_s: float) -> tuple[float, str]:
    """Return the seconds of a fitting unit, and its name."""
    if end_s < 300:
        return 1.0, "s"
    return (60.0, "min") if end_s < 3 * 3600 else (3600.0, "h")


def _steps_unit(end: float) -> tuple[float, str]:
    if end < 2e4:
        return 1.0, "1"
    return (1e3, "thousands") if end < 2e6 else (1e6, "millions")

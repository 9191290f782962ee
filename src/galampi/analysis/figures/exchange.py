"""What gossip did: the epsilon-ball, weights, messages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from galampi.analysis.ball import Bound
from galampi.analysis.figures.drawing import (
    FAINT,
    INK,
    MOST_LABELLED,
    NUM_POINTS,
    SERIES,
    Figure,
    Floats,
    draw_legend,
    draw_ranks,
    make_logarithmic,
    start_at_zero,
    time_unit,
    updates_figure,
)
from galampi.analysis.statistics import binned, since_start
from galampi.results.distance import ConsensusDistance
from galampi.results.reader import Run


def distances(name: str, distance: ConsensusDistance, bound: Bound | str) -> Iterator[Figure]:
    """The epsilon-ball: distance of each rank to the mean, absolute with the bound, and relative."""
    scale, unit = time_unit(float(distance.times_s[-1]))
    at, series = binned(distance.times_s, list(distance.to_mean.T), NUM_POINTS)
    to_mean = np.stack(series)
    bound_at = distance.times_s[bound.moments] if isinstance(bound, Bound) else distance.times_s[:0]
    error = f"Estimated from parameter sketches, relative standard error {distance.relative_error:.1%} each."

    def lines(axes: Axes, values: Floats) -> list[Any]:
        if len(values) == 2:
            axes.plot(at / scale, values[0], color=SERIES[0], linewidth=1.3)
            return [Line2D([], [], color=SERIES[0], label="either rank")]
        handles = draw_ranks(axes, at / scale, values)
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
        make_logarithmic(axes)
        draw_legend(axes, handles, columns=3)
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
    relative = np.stack(binned(distance.times_s, list(distance.relative.T), NUM_POINTS)[1])

    def draw_relative(axes: Axes) -> None:
        draw_legend(axes, lines(axes, 100 * relative))
        axes.set_ylim(bottom=0)
        axes.set_xlabel(f"job time ({unit})")
        axes.set_ylabel("distance / norm of parameters (%)")

    yield Figure(
        f"{name}-distance-relative",
        "Epsilon-ball, relative to the parameters",
        "The same distance in percent of the norm of a rank's parameters (mean over the ranks at that time).",
        draw_relative,
    )


def _say(bound: Bound | str) -> str:
    """Describe the bound, with what it rests on."""
    if isinstance(bound, str):
        return f"No bound is drawn: {bound}."
    estimated = (
        " Where the norm of a step was not recorded (of more than 100,000 parameters, 7 of 8 after the first eight) it "
        "is estimated in proportion to learning rate times clipped gradient."
        if bound.has_estimates
        else ""
    )
    moments = "one moment" if len(bound.values) == 1 else f"{len(bound.values)} moments"
    return (
        "Dashed: Proposition 1 of the GALA paper (arXiv 1906.04585), \u03b1 \u03a3 \u03b2^(k+1-s) \u2016G(s)\u2016, "
        "for the distances of all ranks stacked; k counts the updates of all ranks. Dotted: the same sum with what is "
        "left of each step in place of \u03b1 \u03b2^(k+1-s). Both hold for the exchange as it was, replayed from the "
        f"files, every share and delay. \u03b1 = {bound.alpha:.3g} and \u03b2 = {bound.beta:.3g} are the tightest pair "
        f"for the {moments} shown.{estimated}"
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

    return updates_figure(f"{name}-weights", "Push-sum weights", run, "weight", "push-sum weight", caption, finish)


def message_age(name: str, run: Run) -> Figure:
    """Age of the messages averaged."""
    caption = (
        "Age of the messages that were averaged, from the moment they were sent, mean over equal stretches of job "
        "time. The clock starts on all ranks with the barrier at the start of the job."
    )
    return updates_figure(
        f"{name}-message-age",
        "Message age",
        run,
        "message_age_s",
        "message age (ms)",
        caption,
        start_at_zero,
        factor=1e3,
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
    # Edges are counted now and then: of the first seconds, and of the very last, updates tell more.
    by_edge = bool(lines) and all(len(line[1]) > 1 for line in lines)
    of_ranks = []
    for rank in run.all_ranks:
        rows = rank.updates.read("time_s", "sent", "received", "skipped")
        of_ranks += [
            (kind, rows["time_s"], rows[kind].astype(np.float64)) for kind, *_ in kinds if rank.updates.num_rows
        ]
    totals = {kind: sum(float(line[2][-1]) for line in of_ranks if line[0] == kind) for kind, *_ in kinds}
    if not by_edge:
        lines = of_ranks
    scale, unit = time_unit(max((float(line[1][-1]) for line in lines), default=1.0))

    def draw(axes: Axes) -> None:
        handles = []
        for kind, color, line_width in kinds:
            of_kind = [line for line in lines if line[0] == kind]
            for _, time_s, counts in of_kind:
                x, (y,) = binned(time_s, [counts], NUM_POINTS)
                axes.plot(
                    x / scale,
                    y,
                    color=color,
                    alpha=0.75 if len(of_kind) <= MOST_LABELLED else 0.4,
                    linewidth=line_width,
                )
            total = totals[kind]
            word = {"received": "averaged"}.get(kind, kind)
            handles.append(Line2D([], [], color=color, linewidth=line_width, label=f"{word} ({total:,.0f})"))
        draw_legend(axes, handles)
        axes.set_ylim(bottom=0)
        axes.set_xlabel(f"job time ({unit})")
        axes.set_ylabel("messages along one edge" if by_edge else "messages of one rank")

    what = (
        "one line for each directed edge of the graph and kind"
        if by_edge
        else "one line for each rank and kind (the files of this run do not count by edge, or too rarely)"
    )
    caption = (
        f"Messages since the start of the job, {what}; in brackets the totals. A push is skipped while the last "
        "message along that edge is unread, or the sender's weight is at its floor."
    )
    return Figure(f"{name}-messages", "Messages along the edges", caption, draw)

"""What a run cost: time, by phase and by env step, and energy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from galampi.analysis.figures.drawing import (
    PAPER,
    SERIES,
    Figure,
    Floats,
    draw_legend,
    draw_ranks,
    label_ends,
    line_colors,
    time_unit,
)
from galampi.analysis.statistics import PHASES, throughput
from galampi.results.reader import Run


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
        draw_legend(
            axes, [Patch(color=color, label=label) for label, color in zip(labels, colors, strict=True)], columns=3
        )

    caption = (
        "Share of each rank's job time by what it did, summed over its updates: waiting for the emulator, choosing "
        "actions, gradient and optimizer step, sending and averaging messages, writing results and checkpoints. The "
        "rest is what lies between those clocks."
    )
    return Figure(f"{name}-phases", "Where the time went", caption, draw)


def speed(name: str, run: Run) -> Figure:
    """Env steps a second."""
    at_s, rates = throughput(run)
    scale, unit = time_unit(float(at_s[-1]))
    total = np.nansum(rates, axis=0)

    def draw(axes: Axes) -> None:
        handles = draw_ranks(axes, at_s / scale, rates)
        axes.plot(at_s / scale, total, color=SERIES[0])
        handles.insert(0, Line2D([], [], color=SERIES[0], label="all ranks"))
        draw_legend(axes, handles)
        axes.set_ylim(bottom=0)
        axes.set_xlabel(f"job time ({unit})")
        axes.set_ylabel("env steps / s")

    caption = f"Env steps a second, of each rank and of all together, over {len(at_s)} equal stretches of job time."
    return Figure(f"{name}-throughput", "Throughput", caption, draw)


def energy(name: str, series: Sequence[tuple[str, Floats, Floats]], scope: str) -> Figure:
    """Energy used: label, job times in s and kWh of each line."""
    scale, unit = time_unit(max(float(times[-1]) for _, times, _ in series))

    def draw(axes: Axes) -> None:
        labels = []
        for (label, time_s, kwh), color in zip(series, line_colors(len(series)), strict=True):
            axes.plot(np.append(0, time_s) / scale, np.append(0, kwh), color=color)
            labels.append((float(kwh[-1]), label, color))
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.set_xlabel(f"job time ({unit})")
        axes.set_ylabel("energy used (kWh)")
        label_ends(axes, labels)

    caption = f"Energy since the start of the job, by the counters of the hardware. {scope}"
    return Figure(f"{name}-energy", "Energy", caption, draw)

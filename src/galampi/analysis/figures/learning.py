"""What the policy learned: returns, and the course of training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from galampi.analysis.figures.drawing import (
    BAND_ALPHA,
    FAINT,
    INK,
    SERIES,
    Figure,
    Floats,
    draw_legend,
    label_ends,
    last_known,
    line_colors,
    make_logarithmic,
    start_at_zero,
    steps_unit,
    time_unit,
    updates_figure,
)
from galampi.analysis.published import Curve
from galampi.analysis.statistics import WINDOW_EPISODES, Episodes, Interval
from galampi.results.reader import Run


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
    scale, unit = time_unit(end) if along == "time_s" else steps_unit(end)

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
        for curve, color in zip(curves, line_colors(len(curves)), strict=True):
            x = curve.at / scale
            if curve.dots is not None and len(curves) == 1:
                # Few are to be seen, and many not to hide the line.
                alpha = float(np.clip(12 / np.sqrt(len(curve.dots[0])), 0.12, 0.6))
                axes.plot(curve.dots[0] / scale, curve.dots[1], ".", color=color, alpha=alpha, markersize=4, mew=0)
                handles.append(Line2D([], [], color=color, marker=".", linestyle="", alpha=0.5, label="one episode"))
            axes.fill_between(x, curve.interval.low, curve.interval.high, color=color, alpha=BAND_ALPHA, linewidth=0)
            axes.plot(x, curve.interval.iqm, color=color)
            labels.append((last_known(curve.interval.iqm), curve.label, color))
        main = "interquartile mean" if several else f"mean of {WINDOW_EPISODES} episodes"
        handles.insert(0, Line2D([], [], color=INK if len(curves) > 1 else SERIES[0], label=main))
        if several:
            handles.append(Patch(color=INK if len(curves) > 1 else SERIES[0], alpha=BAND_ALPHA, label="95 % interval"))
        draw_legend(axes, handles)
        axes.set_xlim(0, end / scale)
        axes.set_xlabel(f"job time ({unit})" if along == "time_s" else f"env steps of all ranks ({unit})")
        axes.set_ylabel("episodic return")
        if len(curves) > 1:
            label_ends(axes, labels)

    axis = "job time" if along == "time_s" else "env steps of all ranks together"
    caption = (
        f"Episodic return (raw score of full games) against {axis}. For each run, the mean of the last "
        f"{WINDOW_EPISODES} episodes of all its ranks that had ended by then (of at least 10). {note}"
    )
    title = "Return against wall time" if along == "time_s" else "Return against env steps"
    return Figure(name, title, caption, draw)


def dots(finished: Episodes, along: str) -> tuple[Floats, Floats]:
    """Thin the episodes of a run to what a picture can show."""
    step = -(-len(finished.returns) // 1500) if len(finished.returns) else 1
    return getattr(finished, along)[::step], finished.returns[::step]


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
        finish = {"entropy": start_at_zero, "grad_norm": make_logarithmic, "value_loss": make_logarithmic}.get(column)
        yield updates_figure(file_name, title, run, column, label, f"{caption} {tail}", finish, mean=True)

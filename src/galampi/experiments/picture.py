"""The picture of an experiment: how many runs succeed or how they are spread, and the learning curves of each group."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from galampi.analysis.comparison import Estimate, interquartile_mean, performance_profile, share
from galampi.analysis.figures.drawing import BAND_ALPHA, STYLE, line_colors, steps_unit
from galampi.analysis.statistics import over_runs
from galampi.errors import UserError
from galampi.experiments.outcome import Arm, Outcome, relative, seeds_text

_PANEL_IN = (3.6, 3.2)
_PROFILE_POINTS = 60


def save_picture(outcome: Outcome, path: Path) -> None:
    """Draw an experiment as a PNG.

    Raises:
        UserError: The file cannot be written.
    """
    groups = outcome.groups
    with _panels(1 + len(groups), path) as (canvas, panels):
        if outcome.plan.statistic == "distance":
            _draw_distances(panels[0], outcome)
        elif len(groups) > 1:
            _draw_successes(panels[0], outcome)
        else:
            _draw_profiles(panels[0], *groups.values())
        for axes, (name, arms) in zip(panels[-len(groups) :], groups.items(), strict=True):
            _draw_curves(axes, name, [arm for arm in arms if arm.runs])
        handles, labels = panels[-1].get_legend_handles_labels()
        canvas.legend(handles, labels, loc="outside upper left", ncols=min(len(labels), 2 * len(panels)))


def save_ratios(found: Mapping[str, Mapping[str, Estimate]], baseline: str, path: Path) -> None:
    """Draw how many times the steps of a baseline methods make, by condition, as a PNG.

    Raises:
        UserError: The file cannot be written.
    """
    methods = list(dict.fromkeys(method for each in found.values() for method in each))
    with _panels(2, path, joined=True) as (canvas, (axes,)):
        for number, (method, color) in enumerate(zip(methods, line_colors(len(methods)), strict=True)):
            estimates = {place: each[method] for place, each in enumerate(found.values()) if method in each}
            places = [place + 0.16 * (number - (len(methods) - 1) / 2) for place in estimates]
            _draw_estimates(axes, places, list(estimates.values()), color, fmt="o", label=method)
        axes.axhline(1, color="0.6", linewidth=1, zorder=0)
        axes.set_ylim(bottom=0)
        axes.set_xlim(-0.5, len(found) - 0.5)
        axes.set_xticks(range(len(found)), [textwrap.fill(name, 16) for name in found])
        axes.set_ylabel(f"env steps/s over those of {baseline}")
        canvas.legend(loc="outside upper left", ncols=len(methods))


@contextmanager
def _panels(number: int, path: Path, *, joined: bool = False) -> Iterator[tuple[Canvas, list[Axes]]]:
    """Yield a canvas with panels beside each other, or one as wide as these; write it as a PNG at the end."""
    style: dict[Any, Any] = {**STYLE}
    with mpl.rc_context(style):
        canvas = Canvas(figsize=(_PANEL_IN[0] * number, _PANEL_IN[1]), layout="constrained")
        yield canvas, list(np.atleast_1d(canvas.subplots(1, 1 if joined else number)))
        picture = io.BytesIO()
        canvas.savefig(picture, format="png", dpi=160, metadata={"Software": None})
    try:
        path.write_bytes(picture.getvalue())
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None


def _draw_estimates(axes: Axes, places: list[float], estimates: list[Estimate], color: Any, **look: Any) -> None:
    """Draw numbers with their intervals."""
    middle = np.array([each.value for each in estimates])
    ends = np.abs(np.array([[each.low, each.high] for each in estimates]).T - middle)
    axes.errorbar(places, middle, yerr=ends, color=color, capsize=3, **look)


def _draw_profiles(axes: Axes, arms: list[Arm]) -> None:
    """Draw performance profiles: the share of runs whose final return is above a number, with its interval."""
    finals = np.concatenate([arm.finals for arm in arms])
    above = np.linspace(finals.min() - 0.02 * np.ptp(finals), finals.max() + 0.02 * np.ptp(finals), _PROFILE_POINTS)
    for arm, color in zip(arms, line_colors(len(arms)), strict=True):
        value, low, high = performance_profile(arm.finals, above)
        axes.fill_between(above, low, high, color=color, alpha=BAND_ALPHA, linewidth=0, step="mid")
        axes.step(above, value, color=color, where="mid")
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel("final return")
    axes.set_ylabel("share of runs above")


def _draw_successes(axes: Axes, outcome: Outcome) -> None:
    """Draw the share of runs that reach the threshold, with its interval, by group."""
    threshold, groups = outcome.plan.threshold, outcome.groups
    values = list(next(iter(outcome.plan.groups.values())))
    for number, (value, color) in enumerate(zip(values, line_colors(len(values)), strict=True)):
        places: list[float] = []
        estimates: list[Estimate] = []
        for place, arms in enumerate(groups.values()):
            arm = next(arm for arm in arms if arm.value == value)
            if arm.runs:
                # Beside each other, or their intervals hide one another.
                places.append(place + 0.1 * (number - (len(values) - 1) / 2))
                estimates.append(share(arm.num_successes(threshold), len(arm.runs)))
        _draw_estimates(axes, places, estimates, color, marker="o")
    key, shown = _axis(list(groups))
    axes.set_xticks(range(len(groups)), shown)
    axes.set_xlabel(key)
    axes.set_ylim(-0.03, 1.03)
    axes.set_ylabel(f"share of runs that reach {threshold:g}")


def _draw_distances(axes: Axes, outcome: Outcome) -> None:
    """Draw distance and bound by what is compared, a point for each run and a line for their interquartile means."""
    arms = [arm for group in outcome.groups.values() for arm in group if arm.runs]
    places = range(len(arms))
    for what, color in zip(("distance", "bound"), line_colors(2), strict=True):
        means = [interquartile_mean(relative(arm, what)).value for arm in arms]
        axes.plot(places, means, color=color, label=what if what == "distance" else "bound of Proposition 1")
        for place, arm in zip(places, arms, strict=True):
            axes.plot([place] * len(arm.runs), relative(arm, what), ".", color=color, alpha=0.5)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xticks(places, [arm.value for arm in arms])
    axes.set_xlabel(outcome.plan.compared)
    axes.set_ylabel("% of the norm of the parameters")
    axes.legend()


def _draw_curves(axes: Axes, name: str, arms: list[Arm]) -> None:
    """Draw learning curves over seeds."""
    for arm, color in zip(arms, line_colors(len(arms)), strict=True):
        runs = list(arm.runs.values())
        scale, unit = steps_unit(float(runs[0].curve_at[-1]))
        over = over_runs(np.stack([run.curve for run in runs]))
        x = runs[0].curve_at / scale
        axes.fill_between(x, over.low, over.high, color=color, alpha=BAND_ALPHA, linewidth=0)
        axes.plot(x, over.iqm, color=color, label=f"{arm.value}, {seeds_text(len(runs))}")
        axes.set_xlabel(f"env steps of all ranks ({unit})")
    axes.set_ylabel("return, IQM and 95 % interval")
    axes.set_title(name, fontsize=9.5, loc="left")


def _axis(groups: list[str]) -> tuple[str, list[str]]:
    """Return what is along an axis of groups: the key, if they differ in one, and its values."""
    keys = {group.partition(" = ")[0] for group in groups}
    if len(keys) == 1 and not any(", " in group for group in groups):
        return keys.pop(), [group.partition(" = ")[2] for group in groups]
    return "", groups

"""The picture of an experiment: how many runs succeed or how they are spread, and the learning curves of each group."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from numpy.typing import NDArray

from galampi.analysis.comparison import Estimate, interquartile_mean, performance_profile, share
from galampi.analysis.figures.drawing import BAND_ALPHA, STYLE, line_colors, steps_unit
from galampi.analysis.statistics import over_runs
from galampi.errors import UserError
from galampi.experiments.outcome import Arm, Outcome, relative
from galampi.experiments.speed import Ratios
from galampi.experiments.tables import seeds_text

Floats = NDArray[np.float64]

_PANEL_IN = (3.6, 3.2)
_PROFILE_POINTS = 60


def save_pictures(found: Mapping[Path, Outcome | Ratios], path: Path) -> None:
    """Draw an experiment, or what each of several is about, as a PNG.

    Args:
        found: What they come to, by their folders.
        path: The file.

    Raises:
        UserError: The file cannot be written, or its name is no picture's.
    """
    if path.suffix.lower() != ".png":
        raise UserError(f"{path}: must end with .png, for that is what it will be")
    first = next(iter(found.values()))
    if len(found) > 1:
        save_overview(found, path)
    elif isinstance(first, Ratios):
        save_ratios(first, path)
    else:
        save_picture(first, path)


def save_picture(outcome: Outcome, path: Path) -> None:
    """Draw an experiment as a PNG.

    Raises:
        UserError: The file cannot be written.
    """
    groups = outcome.groups
    with _panels(1, 1 + len(groups), path) as (canvas, panels):
        if not _draw_gist(panels[0], outcome):
            _draw_profiles(panels[0], outcome, *groups.values())
        curves = panels[-len(groups) :]
        for axes, (name, arms) in zip(curves, groups.items(), strict=True):
            _draw_curves(axes, name, outcome, arms)
        # The same wherever it is drawn; but an arm may be in some groups alone.
        shown = [axes.get_legend_handles_labels() for axes in curves]
        named = {label: handle for each in shown for handle, label in zip(*each, strict=True)}
        if named:
            ncols = min(len(named), 2 * len(panels))
            canvas.legend(named.values(), named.keys(), loc="outside upper left", ncols=ncols)


def save_ratios(ratios: Ratios, path: Path) -> None:
    """Draw how many times the steps of a baseline methods make, as a PNG.

    Raises:
        UserError: The file cannot be written.
    """
    with _panels(1, 1, path, width=2) as (_, (axes,)):
        _draw_ratios(axes, ratios)


def save_overview(found: Mapping[Path, Outcome | Ratios], path: Path) -> None:
    """Draw the gist of experiments, by their folders, two beside each other, as a PNG.

    Raises:
        UserError: The file cannot be written.
    """
    with _panels(math.ceil(len(found) / 2), 2, path) as (_, panels):
        for axes in panels[len(found) :]:
            axes.remove()
        for axes, (folder, each) in zip(panels, found.items(), strict=False):
            axes.set_title(folder.resolve().name, fontsize=9.5, loc="left")
            if isinstance(each, Ratios):
                _draw_ratios(axes, each)
                continue
            if not _draw_gist(axes, each):
                ((_, arms),) = each.groups.items()
                _draw_curves(axes, folder.resolve().name, each, arms)
            if axes.get_legend_handles_labels()[1]:
                axes.legend()


@contextmanager
def _panels(rows: int, columns: int, path: Path, *, width: float = 1) -> Iterator[tuple[Canvas, list[Axes]]]:
    """Yield a canvas with panels of so many widths in rows and columns; write it as a PNG at the end."""
    style: dict[Any, Any] = {**STYLE}
    with mpl.rc_context(style):
        canvas = Canvas(figsize=(width * _PANEL_IN[0] * columns, _PANEL_IN[1] * rows), layout="constrained")
        yield canvas, list(canvas.subplots(rows, columns, squeeze=False).flat)
        picture = io.BytesIO()
        canvas.savefig(picture, format="png", dpi=160, metadata={"Software": None})
    try:
        path.write_bytes(picture.getvalue())
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None


def _draw_gist(axes: Axes, outcome: Outcome) -> bool:
    """Draw what an experiment is about, and return True; or return False if that is its learning curves."""
    if outcome.plan.statistic == "distance":
        _draw_distances(axes, outcome)
    elif outcome.plan.statistic == "sketch":
        _draw_sketch_errors(axes, outcome)
    elif len(outcome.groups) > 1:
        _draw_successes(axes, outcome)
    else:
        return False
    return True


def _draw_ratios(axes: Axes, ratios: Ratios) -> None:
    """Draw how many times the steps of a baseline methods make, a line for each condition."""
    conditions = ratios.estimates
    methods = list(dict.fromkeys(method for each in conditions.values() for method in each))
    for number, (method, color) in enumerate(zip(methods, line_colors(len(methods)), strict=True)):
        estimates = {place: each[method] for place, each in enumerate(conditions.values()) if method in each}
        places = [place + 0.2 * (number - (len(methods) - 1) / 2) for place in estimates]
        middle, ends = _with_ends(list(estimates.values()))
        axes.errorbar(middle, places, xerr=ends, color=color, capsize=3, fmt="o", markersize=4, label=method)
    axes.axvline(1, color="0.6", linewidth=1, zorder=0)
    axes.set_xlim(left=0)
    axes.set_yticks(range(len(conditions)), [textwrap.fill(name, 20) for name in conditions])
    axes.set_ylim(len(conditions) - 0.5, -0.5)
    axes.set_xlabel(f"env steps/s over those of {ratios.baseline}")
    axes.legend()


def _with_ends(estimates: list[Estimate]) -> tuple[Floats, Floats]:
    """Return numbers, and how far their intervals reach below and above them."""
    middle = np.array([each.value for each in estimates])
    return middle, np.abs(np.array([[each.low, each.high] for each in estimates]).T - middle)


def _colors(outcome: Outcome) -> dict[str, Any]:
    """Return the color of each value of what is compared, the same in all panels."""
    values = list(dict.fromkeys(arm.value for arms in outcome.groups.values() for arm in arms))
    return dict(zip(values, line_colors(len(values)), strict=True))


def _draw_profiles(axes: Axes, outcome: Outcome, arms: list[Arm]) -> None:
    """Draw performance profiles: the share of runs whose final return is above a number, with its interval."""
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel("final return")
    axes.set_ylabel("share of runs above")
    arms = [arm for arm in arms if len(arm.finals)]
    if not arms:
        return
    finals = np.concatenate([arm.finals for arm in arms])
    above = np.linspace(finals.min() - 0.02 * np.ptp(finals), finals.max() + 0.02 * np.ptp(finals), _PROFILE_POINTS)
    for arm in arms:
        color = _colors(outcome)[arm.value]
        value, low, high = performance_profile(arm.finals, above)
        axes.fill_between(above, low, high, color=color, alpha=BAND_ALPHA, linewidth=0, step="mid")
        axes.step(above, value, color=color, where="mid")


def _draw_successes(axes: Axes, outcome: Outcome) -> None:
    """Draw the share of runs that reach the threshold, with its interval, by group."""
    threshold, groups = outcome.plan.threshold, outcome.groups
    values = _colors(outcome)
    for number, (value, color) in enumerate(values.items()):
        places: list[float] = []
        estimates: list[Estimate] = []
        for place, arms in enumerate(groups.values()):
            arm = next((arm for arm in arms if arm.value == value), None)
            if arm is not None and arm.runs:
                # Beside each other, or their intervals hide one another.
                places.append(place + 0.1 * (number - (len(values) - 1) / 2))
                estimates.append(share(arm.num_successes(threshold), len(arm.runs)))
        if not estimates:
            continue
        middle, ends = _with_ends(estimates)
        axes.errorbar(places, middle, yerr=ends, color=color, capsize=3, marker="o", label=value)
    key, shown = _axis(list(groups))
    axes.set_xticks(range(len(groups)), shown)
    axes.set_xlabel(key)
    axes.set_ylim(-0.03, 1.03)
    axes.set_ylabel(f"share of runs that reach {threshold:g}")


def _draw_distances(axes: Axes, outcome: Outcome) -> None:
    """Draw distance and bound by what is compared, a point for each run, and their interquartile means."""
    groups = {name: there for name, arms in outcome.groups.items() if (there := [arm for arm in arms if arm.runs])}
    arms = [arm for group in groups.values() for arm in group]
    # Between names there is nothing to be read off a line.
    are_numbers = all(arm.number is not None for arm in arms)
    if not are_numbers:
        axes.set_xlim(-0.5, len(arms) - 0.5)
    for what, color in zip(("distance", "bound"), line_colors(2), strict=True):
        first = 0
        for group in groups.values():
            places = range(first, first + len(group))
            axes.plot(
                places,
                [interquartile_mean(relative(arm, what)).value for arm in group],
                "-" if are_numbers else "_",
                markersize=30,
                color=color,
                label=None if first else what if what == "distance" else "bound of Proposition 1",
            )
            for place, arm in zip(places, group, strict=True):
                axes.plot([place] * len(arm.runs), relative(arm, what), ".", color=color, alpha=0.5)
            first += len(group)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    labels = [
        arm.value if len(groups) == 1 else f"{arm.value}\n{textwrap.fill(name, 16)}"
        for name, group in groups.items()
        for arm in group
    ]
    axes.set_xticks(range(len(arms)), labels)
    axes.set_xlabel(outcome.plan.compared)
    axes.set_ylabel("% of the norm of the parameters")
    axes.legend()


def _draw_sketch_errors(axes: Axes, outcome: Outcome) -> None:
    """Draw the errors of sketched distances by what is compared, beside the root of their mean square."""
    arms = [arm for group in outcome.groups.values() for arm in group if arm.runs]
    for place, (arm, color) in enumerate(zip(arms, line_colors(len(arms)), strict=True)):
        errors = 100 * np.concatenate([run.sketch_errors for run in arm.runs.values()])
        if not len(errors):
            continue
        axes.plot(place + np.linspace(-0.25, 0.25, len(errors)), errors, ".", color=color, alpha=0.5)
        size = float(np.sqrt(np.mean(errors**2)))
        axes.hlines([-size, size], place - 0.4, place + 0.4, color=color)
    axes.axhline(0, color="0.6", linewidth=1, zorder=0)
    axes.set_xticks(range(len(arms)), [arm.value for arm in arms])
    axes.set_xlabel(outcome.plan.compared)
    axes.set_ylabel("error of a distance, %; lines: RMS")


def _draw_curves(axes: Axes, name: str, outcome: Outcome, arms: list[Arm]) -> None:
    """Draw learning curves over seeds, of the runs that have one."""
    for arm in arms:
        color, runs = _colors(outcome)[arm.value], list(arm.with_returns.values())
        if not runs:
            continue
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

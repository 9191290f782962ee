"""Numbers computed from runs: learning curves, means over seeds with intervals, thinned series.

Pure functions of arrays and of `Run`. Knows no figures. scipy, which takes half a second to import, is imported where
it is needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from galampi.errors import UserError
from galampi.results.reader import RankFile, Run, Table
from galampi.results.schema import EPISODES, LEFT_JOB

Floats = NDArray[np.float64]

WINDOW_EPISODES = 100
"""Episodes over which a return is averaged."""
FEWEST_EPISODES = 10
PHASES = (
    ("env_s", "emulator"),
    ("act_s", "acting"),
    ("learn_s", "learning"),
    ("gossip_s", "gossip"),
    ("record_s", "recording"),
)
"""Columns of `/updates` that tell where the time went, and what they are called."""
_NUM_RESAMPLES = 5000
_NOT_OF_LEARNING = (
    "name ",
    "modules_folder ",
    "total_env_steps ",
    "max_time_s ",
    "device ",
    "gossip.silent_after_s ",
    "checkpoint.",
    "record.",
)
"""Settings that say how long a run goes on and what is kept of it."""


@dataclass(frozen=True, eq=False)
class Episodes:
    """The episodes of all ranks of a run, in the order they ended.

    Attributes:
        time_s: [E] job time at which each ended.
        env_steps: [E] env steps all ranks together had taken by then.
        returns: [E] episodic returns.
    """

    time_s: Floats
    env_steps: Floats
    returns: Floats


def episodes(run: Run) -> Episodes:
    """Collect the episodes of all ranks, those that have left the job included.

    A rank's file tells that rank's env steps alone; those of all at the moment an episode ended are the sum of what
    every rank's `/updates` say, interpolated linearly in time.
    """
    tables = [rank.episodes.read("time_s", "return") for rank in run.all_ranks]
    time_s = np.concatenate([table["time_s"] for table in tables])
    returns = np.concatenate([table["return"] for table in tables])
    order = np.argsort(time_s, kind="stable")
    return Episodes(time_s[order], total_env_steps(run, time_s[order]), returns[order])


def total_env_steps(run: Run, at_s: Floats) -> Floats:
    """Return the env steps of all ranks together at some job times, [M]; of one that has left, what it had taken."""
    total = np.zeros(len(at_s))
    for rank in run.all_ranks:
        rows = rank.updates.read("time_s", "env_steps")
        if len(rows["time_s"]):
            time_s, env_steps = np.append(0.0, rows["time_s"]), np.append(0, rows["env_steps"])
            total += np.interp(at_s, time_s, env_steps)
    return total


def learning_curve(finished: Episodes, along: Literal["env_steps", "time_s"], at: Floats) -> Floats:
    """Return the mean return of the last 100 episodes that had ended at each moment.

    Args:
        finished: The episodes of a run.
        along: What `at` counts.
        at: [M] moments, in env steps or in s.

    Returns:
        [M]; the mean of all episodes where fewer than 100 had ended, NaN where fewer than 10 had.
    """
    ended = np.searchsorted(getattr(finished, along), at, side="right")
    return np.where(ended >= FEWEST_EPISODES, mean_of_last(finished.returns, ended), np.nan)


def mean_of_last(returns: Floats, ended: NDArray[np.int64]) -> Floats:
    """Return the mean of the last 100 of the first `ended` [M] returns, of all where there are fewer; [M], NaN of none.

    Each by itself: a difference of sums over all is lost in one of them that is huge.
    """
    means = np.full(len(ended), np.nan)
    few, many = np.flatnonzero((ended > 0) & (ended < WINDOW_EPISODES)), np.flatnonzero(ended >= WINDOW_EPISODES)
    means[few] = np.cumsum(returns[:WINDOW_EPISODES])[ended[few] - 1] / ended[few]
    if len(many):
        windows = np.lib.stride_tricks.sliding_window_view(returns, WINDOW_EPISODES)
        means[many] = windows[ended[many] - WINDOW_EPISODES].mean(axis=1)
    return means


def final_return(finished: Episodes) -> float | None:
    """Return the mean return of the last 100 episodes of a run; None if fewer than 10 ended."""
    last = finished.returns[-WINDOW_EPISODES:]
    return float(last.mean()) if len(last) >= FEWEST_EPISODES else None


def last_numbers(run: Run) -> dict[str, float]:
    """Return the means over the last 100 episodes of all ranks of what the environment itself told of each.

    An episode that told nothing of a name has no part in its mean; one of which none did is left out.
    """
    known = {column.name for column in EPISODES}
    names = sorted({name for rank in run.all_ranks for name in rank.episodes if name not in known})
    tables = [rank.episodes.read(start=-WINDOW_EPISODES) for rank in run.all_ranks]
    means: dict[str, float] = {}
    if not names:
        return means
    last = np.argsort(np.concatenate([table["time_s"] for table in tables]), kind="stable")[-WINDOW_EPISODES:]
    for name in names:
        values = np.concatenate([table.get(name, np.full(len(table["time_s"]), np.nan)) for table in tables])[last]
        if np.isfinite(values).any():
            means[name] = float(values[np.isfinite(values)].mean())
    return means


@dataclass(frozen=True, eq=False)
class Interval:
    """Interquartile mean over runs and the interval around it.

    Attributes:
        iqm: [M] interquartile means.
        low: [M] lower end of the 95 % interval, NaN for a single run.
        high: [M] upper end.
    """

    iqm: Floats
    low: Floats
    high: Floats


@contextmanager
def _with_scipy() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError:
        raise UserError("means over runs need scipy: pip install 'galampi[report]'") from None


def interquartile_mean(values: Floats, axis: int = 0) -> Any:
    """Return the mean without the floor(n/4) least and greatest of n values (Agarwal et al., arXiv 2108.13264)."""
    with _with_scipy():
        from scipy.stats import trim_mean

    # Of NaN some versions of scipy make the greatest number, which is left out.
    has_none = np.isnan(values).any(axis=axis)
    return np.where(has_none, np.nan, trim_mean(values, 0.25, axis=axis))[()]


def over_runs(values: Floats) -> Interval:
    """Return interquartile means over runs with 95 % percentile bootstrap intervals.

    Runs are resampled whole with replacement, the same for all M moments, 5000 times with a fixed seed, as rliable
    does for one task (Agarwal et al., "Deep RL at the Edge of the Statistical Precipice", arXiv 2108.13264).

    Args:
        values: [S, M] of S runs.
    """
    if len(values) < 2:
        nothing = np.full(values.shape[1], np.nan)
        return Interval(values[0], nothing, nothing)
    with _with_scipy():
        from scipy.stats import bootstrap

    # NaN, where a run has no value yet, makes NaN; scipy would warn of it.
    known = np.isfinite(values).all(axis=0)
    low, high = np.full((2, values.shape[1]), np.nan)
    if known.any():
        interval = bootstrap(
            (values[:, known],),
            interquartile_mean,
            axis=0,
            n_resamples=_NUM_RESAMPLES,
            batch=500,
            confidence_level=0.95,
            method="percentile",
            vectorized=True,
            rng=np.random.default_rng(0),
        ).confidence_interval
        low[known], high[known] = interval.low, interval.high
    return Interval(interquartile_mean(values), low, high)


def binned(x: Floats, columns: Sequence[Floats], num_bins: int) -> tuple[Floats, list[Floats]]:
    """Average columns over equal ranges of x, so that a long series can be drawn.

    Args:
        x: [R], ascending.
        columns: Each [R]; NaN are left out of the means.
        num_bins: Most points to return.

    Returns:
        Mean x and means of each column in the bins that hold any row, [K].
    """
    if len(x) <= num_bins:
        return x.astype(np.float64), [column.astype(np.float64) for column in columns]
    edges = np.linspace(x[0], x[-1], num_bins + 1)
    bins = np.clip(np.searchsorted(edges, x, side="right") - 1, 0, num_bins - 1)

    def mean(column: Floats) -> Floats:
        known = np.isfinite(column)
        counts = np.bincount(bins[known], minlength=num_bins)
        sums = np.bincount(bins[known], weights=column[known], minlength=num_bins)
        return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)

    filled = np.bincount(bins, minlength=num_bins) > 0
    return mean(x)[filled], [mean(column)[filled] for column in columns]


def throughput(run: Run, num_points: int = 120) -> tuple[Floats, Floats]:
    """Return env steps a second of each rank over equal stretches of job time.

    Returns:
        Ends of the stretches in s, [K]; env steps a second, [N, K], NaN beyond a rank's last row. N counts the ranks
        that have left the job too.
    """
    end_s = duration_s(run)
    at_s = np.linspace(0, end_s, num_points + 1)
    rates = np.full((len(run.all_ranks), num_points), np.nan)
    for own, rank in zip(rates, run.all_ranks, strict=True):
        rows = rank.updates.read("time_s", "env_steps")
        if not len(rows["time_s"]):
            continue
        steps = np.interp(at_s, np.append(0.0, rows["time_s"]), np.append(0, rows["env_steps"]))
        own[:] = np.diff(steps) / np.diff(at_s)
        own[at_s[:-1] > rows["time_s"][-1]] = np.nan
    return at_s[1:], rates


def duration_s(run: Run) -> float:
    """Return the job time of the last row of any rank, in s; 0 before there is one."""
    return max((float(last(rank.updates, "time_s")) for rank in run.all_ranks if rank.updates.num_rows), default=0.0)


def last(table: Table, name: str) -> Any:
    """Return the last value of a column that has rows."""
    return table.read(name, start=-1)[name][0]


def total(run: Run, column: str) -> int:
    """Return the sum of what every rank has counted, those that have left the job included."""
    return sum(int(last(rank.updates, column)) for rank in run.all_ranks if rank.updates.num_rows)


def since_start(counts: NDArray[Any]) -> NDArray[Any]:
    """Turn counts that began again at every restart into counts since the start of the job, [R]."""
    steps = np.diff(counts, prepend=0)
    restarted = steps < 0
    steps[restarted] = counts[restarted]
    return np.cumsum(steps)


def num_updates(rank: RankFile) -> int:
    """Return how many updates a rank has made itself, but for those after its last row."""
    updates = rank.updates.read("update")["update"]
    return sum(int(updates[of_start][-1] - first) for first, of_start in _starts(rank, updates))


def _starts(rank: RankFile, updates: NDArray[Any]) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    """Yield for each start of a rank that has rows the update after which it began, and which rows are its.

    A rank that joins a run on the way, or comes back to it, goes on counting where the others are.
    """
    begins = [int(rank.attributes.get("joined_after_update", 0)), *map(int, rank.restarts["update"])]
    for first, last_of_all in pairwise([*begins, np.iinfo(np.int64).max]):
        of_start = (updates > first) & (updates <= last_of_all)
        if of_start.any():
            yield first, of_start


def absent_s(rank: RankFile) -> float:
    """Return the job time, before the last row of a rank that has rows, at which it was no part of the job, s."""
    joined_s = 0.0
    if rank.attributes.get("joined_after_update", 0):
        first = rank.updates.read("time_s", *(column for column, _ in PHASES), stop=1)
        took_s = sum(float(first[column][0]) for column, _ in PHASES if np.isfinite(first[column][0]))
        joined_s = float(first["time_s"][0]) - took_s * int(rank.attributes.get("thinning", 1))
    # One that leaves says so in a row of its own, and comes back with the next.
    restarts = rank.restarts.read("time_s", "reason")
    has_left = [str(reason).startswith(LEFT_JOB) for reason in restarts["reason"]]
    spans_s = np.diff(restarts["time_s"])[has_left[:-1]]
    return max(0.0, joined_s) + float(spans_s.clip(min=0).sum())


def effective_step(run: Run) -> float | None:
    """Return how far the ensemble has moved over what the optimizer steps of its ranks ask for; None if not recorded.

        sum over the starts of mean_i moved_i / sum over the starts of mean_i K_i

    with K_i the updates of rank i in a start and moved_i, at its end, how far a parameter would have moved that every
    optimizer step moves by its scale (`schema.UpdateRow.moved`). 1 with allreduce; below 1 learning rate is lost.
    """
    moved, asked = 0.0, 0.0
    for rank in run.ranks:
        rows = rank.updates.read("update", "moved")
        if not len(rows["update"]) or np.isnan(rows["moved"]).any():
            return None
        for first, of_start in _starts(rank, rows["update"]):
            moved += float(rows["moved"][of_start][-1])
            asked += float(rows["update"][of_start][-1] - first)
    return moved / asked if asked else None


def settings_changed(run: Run) -> list[tuple[int, str]]:
    """Return what restarts have changed of how a run learns: rank 0's update after which it holds, and what it is."""
    restarts = run.ranks[0].restarts
    changed = []
    for update, text in zip(restarts["update"], restarts["changes"], strict=True):
        told = [each for each in str(text).split("; ") if each and not each.startswith(_NOT_OF_LEARNING)]
        if told:
            changed.append((int(update), "; ".join(told)))
    return changed

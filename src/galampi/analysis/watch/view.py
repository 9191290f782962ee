"""What is known of a run that is watched. Knows nothing of terminals."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from galampi.analysis.shown import shown, span
from galampi.analysis.statistics import mean_of_last
from galampi.digits import returned
from galampi.errors import ResultsError
from galampi.job import parse_job
from galampi.results.reader import RankFile, Run, open_run
from galampi.results.schema import flush_period_s

_GIVE_UP_AFTER_S = 60.0
_RECENT_S = 60.0
# Beside the time between two flushes; far more than an update of any sensible job takes.
_SILENT_AFTER_S = 28.0
_WINDOW_EPISODES = 100


@dataclass
class RankView:
    """What is known of one rank.

    Attributes:
        rank: Its number.
        hostname: Where it runs.
        time_s: Job time of its last row; None before the first.
        env_steps: Env steps it has taken.
        env_steps_per_s: Over its last minute.
        weight: Push-sum weight.
        effective_step: How far the ensemble moved in its last minute over what its optimizer steps asked for; NaN where
            not known.
        message_age_s: Mean age of the messages it averaged in its last minute; NaN if there were none.
        distance: Distance to the mean of all ranks over the norm of the parameters; NaN where not known.
        seen_s: Moment of this machine's clock at which its file last had something new.
        time_ended_s: Job times at which its episodes ended.
        returns: Their returns.
    """

    rank: int
    hostname: str = "-"
    time_s: float | None = None
    env_steps: int = 0
    env_steps_per_s: float = float("nan")
    weight: float = float("nan")
    effective_step: float = float("nan")
    message_age_s: float = float("nan")
    distance: float = float("nan")
    seen_s: float = 0.0
    time_ended_s: list[float] = field(default_factory=list)
    returns: list[float] = field(default_factory=list)
    _num_updates: int = 0
    _place: tuple[int, int] | None = None

    @property
    def mean_return(self) -> float:
        """Mean return of its last 100 episodes; NaN before the first."""
        return _mean(self.returns[-_WINDOW_EPISODES:])

    def look(self, file: RankFile, now_s: float) -> None:
        """Take in what is new in its file."""
        # A resume, or a run that begins anew, writes another file, which may have as many rows already; one that was
        # removed first may lie in the same place.
        place = _place_of(file.path)
        num_rows = file.updates.num_rows, file.episodes.num_rows
        if place != self._place or num_rows[0] < self._num_updates or num_rows[1] < len(self.returns):
            self.time_ended_s, self.returns = [], []
        if (place, file.updates.num_rows) != (self._place, self._num_updates):
            self.seen_s = now_s
        self._place, self._num_updates = place, file.updates.num_rows
        self.hostname = str(file.attributes.get("hostname", "-"))
        new = file.episodes.read("time_s", "return", start=len(self.returns))
        self.time_ended_s.extend(new["time_s"].tolist())
        self.returns.extend(new["return"].tolist())
        if not file.updates.num_rows:
            return
        rows = file.updates.read("time_s", "update", "env_steps", "weight", "moved", "message_age_s", start=-2000)
        recent = rows["time_s"] >= rows["time_s"][-1] - _RECENT_S
        time_s, env_steps = rows["time_s"][recent], rows["env_steps"][recent]
        self.time_s, self.env_steps = float(time_s[-1]), int(env_steps[-1])
        if len(time_s) > 1 and time_s[-1] > time_s[0]:
            self.env_steps_per_s = float((env_steps[-1] - env_steps[0]) / (time_s[-1] - time_s[0]))
        self.weight = float(rows["weight"][-1])
        moved, updates = rows["moved"][recent], rows["update"][recent]
        # The count of what has moved begins again at a restart.
        if len(moved) > 1 and moved[-1] > moved[0]:
            self.effective_step = float((moved[-1] - moved[0]) / (updates[-1] - updates[0]))
        ages = rows["message_age_s"][recent]
        self.message_age_s = _mean(ages[np.isfinite(ages)].tolist())


class RunView:
    """A run as it looks from its files."""

    def __init__(self, folder: Path) -> None:
        """Look for the first time.

        Raises:
            ResultsError: There is no run, or a file of it is damaged.
        """
        self.folder = folder
        self.ranks: list[RankView] = []
        """Those that are part of the job."""
        self.retired: list[RankView] = []
        """Those that left when the run was resumed on fewer ranks."""
        self._failing_since_s: float | None = None
        self.look()

    def look(self) -> None:
        """Take in what is new.

        Raises:
            ResultsError: There is no run, or a file of it is damaged.
        """
        run = open_run(self.folder)
        now_s = time.monotonic()
        job = parse_job(run.job_toml, f"{run.path}/job.h5")
        known = {view.rank: view for view in (*self.ranks, *self.retired)}
        views = [known.get(file.rank) or RankView(file.rank) for file in run.all_ranks]
        for view, file in zip(views, run.all_ranks, strict=True):
            first = view.seen_s == 0.0
            view.look(file, now_s)
            if first:
                # How long ago the file changed before this command began to look; clocks of machines may differ.
                view.seen_s = now_s
                with suppress(OSError):
                    view.seen_s -= max(0.0, time.time() - file.path.stat().st_mtime)
        self.ranks, self.retired = views[: run.num_ranks], views[run.num_ranks :]
        self.status, self.job = run.status, job
        self._look_at_distances(run)

    def look_again(self) -> None:
        """Take in what is new, but keep the view as it is while files cannot be read: a resume replaces them.

        Raises:
            ResultsError: They could not be read for a minute.
        """
        try:
            self.look()
        except ResultsError:
            now_s = time.monotonic()
            if self._failing_since_s is None:
                self._failing_since_s = now_s
            if now_s - self._failing_since_s >= _GIVE_UP_AFTER_S:
                raise
        else:
            self._failing_since_s = None

    @property
    def env_steps(self) -> int:
        """Env steps of all ranks, those that have left the job included."""
        return sum(view.env_steps for view in (*self.ranks, *self.retired))

    @property
    def env_steps_per_s(self) -> float:
        """Env steps a second of all ranks that are not silent."""
        silent = self.silent
        rates = [view.env_steps_per_s for view in self.ranks if view.rank not in silent]
        return sum(rate for rate in rates if rate == rate)

    @property
    def effective_step(self) -> float:
        """How far the ensemble moved in the last minute over what the optimizer steps asked for; NaN if not known."""
        known = [view.effective_step for view in self.ranks if view.effective_step == view.effective_step]
        return _mean(known)

    @property
    def left_s(self) -> float | None:
        """Seconds until the budget is spent at the present rate, or the job's time; None if nothing moves."""
        rate = self.env_steps_per_s
        if rate <= 0:
            return None
        left_s = max(0.0, self.job.total_env_steps - self.env_steps) / rate
        newest_s = max((view.time_s for view in self.ranks if view.time_s is not None), default=0.0)
        return min(left_s, max(0.0, self.job.max_time_s - newest_s)) if self.job.max_time_s else left_s

    @property
    def silent(self) -> dict[int, str]:
        """Ranks that write nothing any more while the job runs, each with what to say of it.

        A rank is silent if its last row is half a minute older than that of another rank, by the job's own clock, or
        if its file has not changed for as long.
        """
        if self.status != "running":
            return {}
        now_s = time.monotonic()
        newest_s = max((view.time_s for view in self.ranks if view.time_s is not None), default=None)
        silent = {}
        for view in self.ranks:
            quiet_s = now_s - view.seen_s
            if newest_s is not None and view.time_s is not None:
                quiet_s = max(quiet_s, newest_s - view.time_s)
            if quiet_s > _SILENT_AFTER_S + flush_period_s(len(self.ranks)):
                never = " (no update yet)" if view.time_s is None else ""
                silent[view.rank] = f"rank {view.rank} on {shown(view.hostname)} silent for {span(quiet_s)}{never}"
        return silent

    def mean_return(self) -> float:
        """Mean return of the last 100 episodes of all ranks."""
        return _mean(self._episodes()[1][-_WINDOW_EPISODES:].tolist())

    def curve(self, num_points: int) -> list[float]:
        """Return the mean return of 100 episodes at equal stretches of job time, NaN before the first episode."""
        time_s, returns = self._episodes()
        if not len(returns):
            return []
        ended = np.searchsorted(time_s, np.linspace(0, time_s[-1], num_points + 1)[1:], side="right")
        return [float(mean) for mean in mean_of_last(returns, ended)]

    def line(self) -> str:
        """Say all in one line."""
        weights = [view.weight for view in self.ranks if view.weight == view.weight]
        distances = [view.distance for view in self.ranks if view.distance == view.distance]
        parts = [
            shown(self.status),
            f"{self.env_steps:,} / {self.job.total_env_steps:,} steps",
            f"{self.env_steps_per_s:,.0f} steps/s" if self.status == "running" else "",
            f"return {returned(self.mean_return(), 1)}",
            f"weights {min(weights):.2f}-{max(weights):.2f}" if weights else "",
            f"distance {max(distances):.2%}" if distances else "",
            f"step {self.effective_step:.2f}" if self.effective_step == self.effective_step else "",
            f"left {span(self.left_s)}" if self.status == "running" and self.left_s is not None else "",
            *self.silent.values(),
        ]
        return "  ".join(part for part in parts if part)

    def _episodes(self) -> tuple[np.ndarray, np.ndarray]:
        views = (*self.ranks, *self.retired)
        time_s = np.array([at for view in views for at in view.time_ended_s])
        returns = np.array([value for view in views for value in view.returns])
        order = np.argsort(time_s, kind="stable")
        return time_s[order], returns[order]

    def _look_at_distances(self, run: Run) -> None:
        for view in self.ranks:
            # One of before would look like one of now.
            view.distance = float("nan")
        if len(self.ranks) < 2:
            return
        # Not yet, or by this job never, if some rank has no sketch.
        with suppress(ResultsError):
            distance = run.consensus_distance(last=8, pairs=False)
            if len(distance.at):
                relative = distance.relative[-1]
                for view, value in zip(self.ranks, relative, strict=True):
                    view.distance = float(value)


def _place_of(path: Path) -> tuple[int, int] | None:
    """Return where a file lies on its disk; None of one that has just gone."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_dev, stat.st_ino


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else float("nan")

"""`watch`: a running job in the terminal, from the files it writes.

Reads only what is new at each look, from any machine that sees the folder. Touches nothing of the job, which does not
know that it is watched.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import NoReturn

import numpy as np
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from galampi.analysis.shown import shown
from galampi.errors import ResultsError
from galampi.job import parse_job
from galampi.results.reader import RankFile, Run, open_run

_LOOK_PERIOD_S = 2.0
_LINE_PERIOD_S = 10.0
_RESUME_PERIOD_S = 10.0
"""Between two looks at a run that is stopped or failed, and may be resumed."""
_GIVE_UP_AFTER_S = 60.0
_RECENT_S = 60.0
# Ranks flush every two seconds, so this is far more than an update of any sensible job takes.
_SILENT_AFTER_S = 30.0
_WINDOW_EPISODES = 100
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Bits of a braille character's dots, by row from the top and column."""


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
    message_age_s: float = float("nan")
    distance: float = float("nan")
    seen_s: float = 0.0
    time_ended_s: list[float] = field(default_factory=list)
    returns: list[float] = field(default_factory=list)
    _num_updates: int = 0
    _num_restarts: int = 0

    @property
    def mean_return(self) -> float:
        """Mean return of its last 100 episodes; NaN before the first."""
        return _mean(self.returns[-_WINDOW_EPISODES:])

    def look(self, file: RankFile, now_s: float) -> None:
        """Take in what is new in its file."""
        if file.updates.num_rows < self._num_updates or file.episodes.num_rows < len(self.returns):
            # The run was resumed from an earlier checkpoint.
            self.time_ended_s, self.returns = [], []
        # A resume writes the file anew, with no more rows than before.
        if (file.updates.num_rows, file.restarts.num_rows) != (self._num_updates, self._num_restarts):
            self.seen_s = now_s
        self._num_updates, self._num_restarts = file.updates.num_rows, file.restarts.num_rows
        self.hostname = str(file.attributes.get("hostname", "-"))
        new = file.episodes.read("time_s", "return", start=len(self.returns))
        self.time_ended_s.extend(new["time_s"].tolist())
        self.returns.extend(new["return"].tolist())
        if not file.updates.num_rows:
            return
        rows = file.updates.read("time_s", "env_steps", "weight", "message_age_s", start=-2000)
        recent = rows["time_s"] >= rows["time_s"][-1] - _RECENT_S
        time_s, env_steps = rows["time_s"][recent], rows["env_steps"][recent]
        self.time_s, self.env_steps = float(time_s[-1]), int(env_steps[-1])
        if len(time_s) > 1 and time_s[-1] > time_s[0]:
            self.env_steps_per_s = float((env_steps[-1] - env_steps[0]) / (time_s[-1] - time_s[0]))
        self.weight = float(rows["weight"][-1])
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
                view.seen_s = now_s - (max(0.0, time.time() - file.path.stat().st_mtime) if file.exists else 0.0)
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
    def left_s(self) -> float | None:
        """Seconds until the budget is spent at the present rate; None if nothing moves."""
        rate = self.env_steps_per_s
        return max(0.0, self.job.total_env_steps - self.env_steps) / rate if rate > 0 else None

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
            if quiet_s > _SILENT_AFTER_S:
                never = " (no update yet)" if view.time_s is None else ""
                silent[view.rank] = f"rank {view.rank} on {shown(view.hostname)} silent for {_span(quiet_s)}{never}"
        return silent

    def mean_return(self) -> float:
        """Mean return of the last 100 episodes of all ranks."""
        return _mean(self._episodes()[1][-_WINDOW_EPISODES:].tolist())

    def curve(self, num_points: int) -> list[float]:
        """Return the mean return of 100 episodes at equal stretches of job time, NaN before the first episode."""
        time_s, returns = self._episodes()
        if not len(returns):
            return []
        sums = np.append(0.0, np.cumsum(returns))
        ended = np.searchsorted(time_s, np.linspace(0, time_s[-1], num_points + 1)[1:], side="right")
        window = np.minimum(ended, _WINDOW_EPISODES)
        means = np.divide(sums[ended] - sums[ended - window], window, out=np.full(num_points, np.nan), where=window > 0)
        return [float(mean) for mean in means]

    def line(self) -> str:
        """Say all in one line."""
        weights = [view.weight for view in self.ranks if view.weight == view.weight]
        distances = [view.distance for view in self.ranks if view.distance == view.distance]
        parts = [
            shown(self.status),
            f"{self.env_steps:,} / {self.job.total_env_steps:,} steps",
            f"{self.env_steps_per_s:,.0f} steps/s" if self.status == "running" else "",
            f"return {_number(self.mean_return(), '.1f')}",
            f"weights {min(weights):.2f}-{max(weights):.2f}" if weights else "",
            f"distance {max(distances):.2%}" if distances else "",
            f"left {_span(self.left_s)}" if self.status == "running" and self.left_s is not None else "",
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
            distance = run.consensus_distance(last=8)
            if len(distance.at):
                relative = distance.relative[-1]
                for view, value in zip(self.ranks, relative, strict=True):
                    view.distance = float(value)


def watch(folder: Path) -> None:
    """Show a run until it is finished or the user leaves; lines where the output is no terminal.

    A run that is stopped or failed may be resumed, by the queue or by hand, so neither is an end.

    Raises:
        ResultsError: There is no run, or a file of it is damaged, and still is after a minute.
    """
    view = RunView(folder)
    with suppress(KeyboardInterrupt), _terminated_as_interrupted():
        if not sys.stdout.isatty() or os.environ.get("TERM") == "dumb":
            _print_lines(view)
        else:
            _show(view)


def _print_lines(view: RunView) -> None:
    before = ""
    while True:
        line = view.line()
        # Of a run that rests there is one line.
        if line != before:
            print(line, flush=True)
        before = line
        if view.status == "finished":
            return
        time.sleep(_LINE_PERIOD_S)
        view.look_again()


def _show(view: RunView) -> None:
    console = Console()
    with Live(console=console, screen=True, auto_refresh=False) as live, _keys() as pressed:
        while True:
            live.update(picture(view, console.width, console.height), refresh=True)
            # Once the run is finished there is nothing new to look for.
            periods_s = {"running": _LOOK_PERIOD_S, "finished": 3600.0}
            if pressed(periods_s.get(view.status, _RESUME_PERIOD_S)):
                break
            view.look_again()
    console.print(Text(view.line()))


def picture(view: RunView, width: int, height: int) -> Group:
    """Lay out the view for a terminal of some size."""
    job, silent = view.job, view.silent
    num_ranks = len(view.ranks)
    head = Text(overflow="ellipsis", no_wrap=True)
    head.append(shown(job.name), style="bold")
    about = f"  {job.environment.id}  {job.gossip.method}  {num_ranks} rank{'s' * (num_ranks > 1)}  "
    head.append(shown(about), style="dim")
    style = {"running": "green", "finished": "bold green"}.get(view.status, "bold yellow")
    head.append(shown(view.status), style=style)

    done = min(1.0, view.env_steps / job.total_env_steps)
    left = f"left {_span(view.left_s)}" if view.status == "running" and view.left_s is not None else ""
    progress = Table.grid(expand=True, padding=(0, 1))
    progress.add_column(no_wrap=True)
    progress.add_column(ratio=1)
    progress.add_column(no_wrap=True, justify="right")
    steps = f"{view.env_steps:,} / {job.total_env_steps:,} steps {done:.0%}"
    rate = f"{view.env_steps_per_s:,.0f} steps/s  " if view.status == "running" else ""
    progress.add_row(Text(steps), ProgressBar(total=1.0, completed=done), Text(rate + left))

    warnings = [Text(line, style="bold red", overflow="ellipsis", no_wrap=True) for line in list(silent.values())[:2]]
    if len(silent) > 2:
        warnings.append(Text(f"and {len(silent) - 2} more silent ranks", style="bold red"))
    leave = "q leaves; the job goes on" if view.status == "running" else "q leaves"
    # Above and below the table: head, progress, two gaps, the table's head, the title of the curve, the way out.
    room = height - 7 - len(warnings)
    num_shown = min(num_ranks, max(1, room - 5))
    ranks = sorted(view.ranks, key=lambda each: (each.rank not in silent, each.rank))[:num_shown]
    table = _rank_table(ranks, silent, with_host=width >= 60)
    if num_shown < num_ranks:
        table.add_row(f"+{num_ranks - num_shown}", style="dim")
    rows = max(2, room - num_shown - (num_shown < num_ranks))
    curve = _curve(view, width, rows)
    return Group(head, progress, *warnings, Text(""), table, Text(""), *curve, Text(leave, style="dim"))


def _rank_table(ranks: list[RankView], silent: dict[int, str], *, with_host: bool) -> Table:
    table = Table(box=None, expand=with_host, padding=(0, 1), pad_edge=False, header_style="dim")
    table.add_column("rank", justify="right", no_wrap=True)
    if with_host:
        table.add_column("host", ratio=1, no_wrap=True, overflow="ellipsis")
    for name in ("steps/s", "return", "weight", "msg age", "distance"):
        table.add_column(name, justify="right", no_wrap=True)
    for view in ranks:
        is_silent = view.rank in silent
        table.add_row(
            str(view.rank),
            *([Text(shown(view.hostname))] if with_host else []),
            "silent" if is_silent else _number(view.env_steps_per_s, ",.0f"),
            _number(view.mean_return, ".1f"),
            _number(view.weight, ".3f"),
            "-" if view.message_age_s != view.message_age_s else f"{view.message_age_s * 1e3:,.0f} ms",
            _number(view.distance, ".2%"),
            style="bold red" if is_silent else None,
        )
    return table


def _curve(view: RunView, width: int, rows: int) -> list[Text]:
    """Draw the return over job time: a line that says what it is, and rows of braille."""
    end_s = max((each.time_ended_s[-1] for each in (*view.ranks, *view.retired) if each.time_ended_s), default=0.0)
    words = f"return, mean of 100 episodes of all ranks, over {_span(end_s)} of job time"
    title = Text(words, style="dim", overflow="ellipsis", no_wrap=True)
    columns = width - 10
    values = view.curve(2 * columns)
    known = [value for value in values if value == value]
    if not known:
        return [title, Text("no episode has ended yet", style="dim"), *(Text("") for _ in range(rows - 1))]
    low, high = min(known), max(known)
    lines = braille(values, rows)
    labels = {0: f"{high:.4g}", rows - 1: f"{low:.4g}"}
    return [title, *(Text(f"{labels.get(row, ''):>8} ") + Text(line, style="cyan") for row, line in enumerate(lines))]


def braille(values: list[float], rows: int) -> list[str]:
    """Draw values as a line of braille dots, two values and four levels a character; NaN leave a gap."""
    known = [value for value in values if value == value]
    low, span = min(known), max(known) - min(known)
    levels = 4 * rows - 1
    cells = [[0] * (len(values) // 2) for _ in range(rows)]
    before: int | None = None
    for index, value in enumerate(values[: 2 * (len(values) // 2)]):
        if value != value:
            before = None
            continue
        level = round((value - low) / span * levels) if span else levels // 2
        # Join it to its neighbour by filling the levels between.
        start = level if before is None else before + (level > before) - (level < before)
        for each in range(min(start, level), max(start, level) + 1):
            row, dot = divmod(levels - each, 4)
            cells[row][index // 2] |= _DOTS[dot][index % 2]
        before = level
    return ["".join(chr(0x2800 + cell) for cell in row) for row in cells]


@contextmanager
def _keys() -> Iterator[Callable[[float], bool]]:
    """Yield a function that waits some seconds and says whether the user has asked to leave."""
    if not sys.stdin.isatty():

        def sleep(timeout_s: float) -> bool:
            time.sleep(timeout_s)
            return False

        yield sleep
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)

    def pressed(timeout_s: float) -> bool:
        if not select.select([descriptor], [], [], timeout_s)[0]:
            return False
        key = os.read(descriptor, 1)
        return key in (b"q", b"Q", b"\x03", b"\x04", b"")

    try:
        tty.setcbreak(descriptor)
        yield pressed
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Let SIGTERM leave as Ctrl-C does, so that the terminal is put right again."""

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def _number(value: float, form: str) -> str:
    return "-" if value != value else format(value, form)


def _span(seconds: float) -> str:
    """Write a span of time as 42 s, 3:05 or 26:03:05."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes}:{rest:02}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02}:{rest:02}"

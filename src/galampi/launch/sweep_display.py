"""The one progress display of a sweep that this machine trains: live on a terminal, plain lines elsewhere."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, Self, TextIO, cast

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.text import Text

from galampi.analysis.watch.view import RunView
from galampi.digits import returned
from galampi.errors import ResultsError
from galampi.job import load_job
from galampi.launch.sweep import SweptRun
from galampi.streams import lead_nowhere

_LIVE_PERIOD_S = 2.0
_LINE_PERIOD_S = 60.0


class _Lasting:
    """A stream whose end ends nothing: what is shown goes nowhere once its terminal or reader has gone."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._to_nowhere_on_error():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._to_nowhere_on_error():
            self._stream.flush()

    @contextmanager
    def _to_nowhere_on_error(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in (errno.EPIPE, errno.EIO, errno.EBADF):
                lead_nowhere(self._stream)


class SweepDisplay:
    """Shows how far a sweep is, and its runs that are on their way. Read from the files of the runs."""

    def __init__(self, runs: Sequence[SweptRun]) -> None:
        """Show nothing yet.

        Args:
            runs: All of the sweep.
        """
        self._budgets = {run.index: load_job(run.job_file).total_env_steps for run in runs}
        self._env_steps = {run.index: self._budgets[run.index] for run in runs if run.state == "done"}
        self._num_done = len(self._env_steps)
        self._shown: dict[int, tuple[SweptRun, TaskID]] = {}
        self._views: dict[int, RunView] = {}
        self._console = Console(file=cast(TextIO, _Lasting(sys.stdout)) if sys.stdout else None, soft_wrap=True)
        self._is_live = self._console.is_terminal and os.environ.get("TERM") != "dumb"
        self._due_s = time.monotonic() + (0.0 if self._is_live else _LINE_PERIOD_S)
        self._live = Progress(
            TextColumn("{task.fields[name]}"),
            TextColumn("{task.completed:,.0f} / {task.total:,.0f} steps"),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TextColumn("{task.description}"),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=self._console,
            refresh_per_second=2,
            disable=not self._is_live,
        )
        self._total = self._live.add_task("", name="all", total=sum(self._budgets.values()))

    def __enter__(self) -> Self:
        """Begin."""
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the terminal as it was."""
        self._live.stop()

    def say(self, text: str) -> None:
        """Print a line above the display."""
        self._console.print(Text(f"{time.strftime('%F %T')}  {text}"), highlight=False)

    def begin(self, run: SweptRun, how: str) -> None:
        """Show a run that is on its way from now on."""
        self.say(f"{run.name}: {how}")
        if run.index not in self._budgets:  # The sweep has gained it meanwhile.
            self._budgets[run.index] = load_job(run.job_file).total_env_steps
        task = self._live.add_task("", name=Text(run.name), total=self._budgets[run.index])
        self._shown[run.index] = run, task

    def end(self, run: SweptRun) -> None:
        """Show a run no longer, and say what became of it."""
        self._look_at(run)
        view = self._views.pop(run.index, None)
        result = f"; mean return {returned(view.mean_return())}" if view is not None else ""
        where = f"; its log: {run.log}" if run.state == "failed" else ""
        self._num_done += run.state == "done"
        self._live.remove_task(self._shown.pop(run.index)[1])
        self.say(f"{run.name}: {run.state}{result}{where}; {self._num_done} of {len(self._budgets)} runs done")

    def look(self) -> None:
        """Show what is new, if it is time."""
        if time.monotonic() < self._due_s:
            return
        self._due_s = time.monotonic() + (_LIVE_PERIOD_S if self._is_live else _LINE_PERIOD_S)
        for run, _ in self._shown.values():
            self._look_at(run)
        env_steps, budget = sum(self._env_steps.values()), sum(self._budgets.values())
        done = f"{self._num_done} of {len(self._budgets)} runs done"
        self._live.update(self._total, completed=env_steps, description=done)
        if not self._is_live and self._views:
            self.say(f"{env_steps:,} / {budget:,} steps  {env_steps / budget:.0%}  {done}")

    def _look_at(self, run: SweptRun) -> None:
        # There is no run yet, or a resume replaces its files.
        with suppress(ResultsError):
            if run.index in self._views:
                self._views[run.index].look()
            else:
                self._views[run.index] = RunView(run.out)
            view = self._views[run.index]
            self._env_steps[run.index] = min(view.env_steps, self._budgets[run.index])
            text = f"{view.env_steps_per_s:,.0f} steps/s  return {returned(view.mean_return(), 1)}"
            self._live.update(self._shown[run.index][1], completed=self._env_steps[run.index], description=text)

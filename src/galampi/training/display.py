"""The one progress display of a job, on rank 0: live on a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import math
import os
import stat
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from galampi.digits import returned
from galampi.environments import time_limit
from galampi.job import Environment, Job
from galampi.streams import lead_nowhere

log = logging.getLogger(__name__)

_LINE_PERIOD_S = 10.0
_LIVE_PERIOD_S = 0.5
_USUAL_COLUMNS = 80
"""Of a terminal that does not know how wide it is."""


def no_return(environment: Environment) -> str:
    """Say why there is no mean return."""
    limit = time_limit(environment)
    bound = "has no time limit" if limit is None else f"ends each after {limit:,} env steps at the latest"
    return f"no episode has ended; {environment.id} {bound}"


class Display:
    """Shows how far a job is."""

    def __init__(self, job: Job, env_steps: int, time_s: float) -> None:
        """Show nothing yet.

        Args:
            job: What is trained.
            env_steps: Steps that were taken before this start.
            time_s: Job time before this start.
        """
        terminal = _launcher_terminal()
        self._live: Progress | None = None
        self._due_s = 0.0
        self._no_return = no_return(job.environment)
        self._total = job.total_env_steps
        self._before = env_steps
        self._started_s = time.monotonic()
        self._ends_s = self._started_s + job.max_time_s - time_s if job.max_time_s else math.inf
        if terminal is not None:
            console = Console(force_terminal=True, width=terminal.columns or _USUAL_COLUMNS)
            self._live = Progress(
                TextColumn("{task.completed:,.0f} / {task.total:,.0f} steps"),
                BarColumn(bar_width=None),
                TaskProgressColumn(),
                TextColumn("{task.description}"),
                console=console,
                refresh_per_second=2,
                # The ranks' output passes through the launcher, which a redirection here would bypass.
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._task = self._live.add_task("", total=self._total, completed=env_steps)

    def __enter__(self) -> Self:
        """Begin."""
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the terminal as it was."""
        if self._live is not None:
            with suppress(OSError):
                self._live.stop()

    @property
    def due(self) -> bool:
        """Whether it is time to show something new."""
        return time.monotonic() >= self._due_s

    def update(self, env_steps: int, mean_return: float) -> None:
        """Show the steps of all ranks known here, and the mean return of this rank's last episodes."""
        now = time.monotonic()
        first = self._due_s == 0.0
        self._due_s = now + (_LIVE_PERIOD_S if self._live is not None else _LINE_PERIOD_S)
        if first:
            return
        rate = (env_steps - self._before) / (now - self._started_s)
        left_s = min(max(0.0, self._total - env_steps) / max(rate, 1e-9), max(0.0, self._ends_s - now))
        has_return = not math.isnan(mean_return)
        if self._live is not None:
            result = f"return {returned(mean_return, 1)}" if has_return else "no episode yet"
            text = f"{rate:,.0f} steps/s  {result}  left {_duration(left_s)}"
            self._live.update(self._task, completed=min(env_steps, self._total), description=text)
            return
        text = (
            f"{env_steps:,} / {self._total:,} steps  {env_steps / self._total:.0%}  {rate:,.0f} steps/s  "
            f"return {returned(mean_return, 1) if has_return else f'- ({self._no_return})'}  left {_duration(left_s)}"
        )
        try:
            print(text, flush=True)
        except OSError as error:
            # Nobody reads it any more, or its disk is full: no reason to end what is trained.
            self._due_s = math.inf
            if sys.stdout is sys.__stdout__ and sys.__stdout__ is not None:
                lead_nowhere(sys.__stdout__)
            log.warning("the progress cannot be printed (%s), and is no more", error.strerror)


def _launcher_terminal() -> os.terminal_size | None:
    """Return the size of the terminal this job's output ends on, or None if it is no terminal.

    Under mpirun rank 0 writes to a pipe or a pseudo-terminal of the launcher's, so what counts is where the output
    of the topmost launcher above it goes.
    """
    if os.environ.get("TERM") == "dumb":
        return None
    try:
        output = sys.stdout.fileno()
    except (AttributeError, OSError, ValueError):
        output = -1  # A stream in memory, as of a notebook, or one that was closed.
    under_launcher = any(name in os.environ for name in ("PMI_RANK", "OMPI_COMM_WORLD_RANK"))
    if not under_launcher:
        return os.get_terminal_size(output) if os.isatty(output) else None
    pid = os.getppid()
    while pid > 1:
        try:
            status = Path(f"/proc/{pid}/stat").read_text()
            name = status[status.index("(") + 1 : status.rindex(")")]
            if name in ("mpirun", "mpiexec", "mpiexec.hydra", "prterun", "orterun"):
                return _terminal_size(f"/proc/{pid}/fd/1")
            pid = int(status[status.rindex(")") + 2 :].split()[1])
        except OSError:
            return None
    return None


def _terminal_size(path: str) -> os.terminal_size | None:
    """Return the size of the terminal at a path, or None if it is something else: that is not even opened."""
    if not stat.S_ISCHR(os.stat(path).st_mode):
        return None
    descriptor = os.open(path, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK)
    try:
        return os.get_terminal_size(descriptor) if os.isatty(descriptor) else None
    finally:
        os.close(descriptor)


def _duration(seconds: float) -> str:
    """Write a duration as hours, however many, minutes and seconds."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours:02}:{minute:02}:{second:02}"

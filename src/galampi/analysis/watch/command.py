"""The command: look, draw, wait, until the run is finished or the user leaves."""

from __future__ import annotations

import os
import select
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.text import Text

from galampi.analysis.interrupts import terminated_as_interrupted
from galampi.analysis.watch.picture import picture, runs_picture
from galampi.analysis.watch.several import SeveralRuns
from galampi.analysis.watch.view import RunView
from galampi.errors import ResultsError

_LOOK_PERIOD_S = 2.0
_LINE_PERIOD_S = 10.0
_RESUME_PERIOD_S = 10.0
"""Between two looks at a run that is stopped or failed, and may be resumed."""


def watch(folders: Sequence[Path]) -> None:
    """Show runs until they are finished or the user leaves; lines where the output is no terminal.

    A run that is stopped or failed may be resumed, by the queue or by hand, so neither is an end.

    Args:
        folders: Of one run, which is shown rank by rank; or of several, each in a row.

    Raises:
        ResultsError: There is no run, or a file of the one run is damaged, and still is after a minute.
    """
    view = RunView(folders[0]) if len(folders) == 1 else SeveralRuns(folders)
    if isinstance(view, SeveralRuns) and not any(view.views.values()):
        raise ResultsError(f"{folders[0]}: no run here yet, nor in the {len(folders) - 1} others")
    with suppress(KeyboardInterrupt), terminated_as_interrupted():
        if not sys.stdout.isatty() or os.environ.get("TERM") == "dumb":
            _print_lines(view)
        else:
            _show(view)


def _print_lines(view: RunView | SeveralRuns) -> None:
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


def _show(view: RunView | SeveralRuns) -> None:
    console = Console()
    with Live(console=console, screen=True, auto_refresh=False) as live, _keys() as pressed:
        while True:
            draw = picture if isinstance(view, RunView) else runs_picture
            live.update(draw(view, console.width, console.height), refresh=True)  # type: ignore[arg-type]
            # Once the run is finished there is nothing new to look for.
            periods_s = {"running": _LOOK_PERIOD_S, "finished": 3600.0}
            if pressed(periods_s.get(view.status, _RESUME_PERIOD_S)):
                break
            view.look_again()
    console.print(Text(view.line()))


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

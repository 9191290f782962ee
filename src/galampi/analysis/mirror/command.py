"""The command: look at every run, wait, until all are finished or the user leaves."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from galampi.analysis.interrupts import terminated_as_interrupted
from galampi.analysis.mirror.following import RunMirror
from galampi.analysis.mirror.place import OpenPlace
from galampi.results.reader import open_run

PERIOD_S = 5.0


def mirror(
    paths: Sequence[Path],
    places: Sequence[OpenPlace],
    num_ranks: int | None = None,
    tell: Callable[[str], None] = print,
) -> None:
    """Follow runs until all are finished, or the user leaves.

    Args:
        paths: Their folders.
        places: Where to.
        num_ranks: Only so many of the first ranks of each; None for all.
        tell: Called with a line when a run's status is first seen or has changed, and with what a place has to say.

    Raises:
        UserError: A place cannot be written, or another mirror writes there.
        ResultsError: There is no run, or a file of it is damaged, and still is after a minute.
    """
    with suppress(KeyboardInterrupt), terminated_as_interrupted(), ExitStack() as stack:
        mirrors = [stack.enter_context(RunMirror(open_run(path), places, num_ranks)) for path in paths]
        statuses = [""] * len(mirrors)
        while True:
            for i, each in enumerate(mirrors):
                if statuses[i] == "finished":
                    continue
                status = each.look()
                for line in each.news():
                    tell(line)
                if status != statuses[i]:
                    statuses[i] = status
                    tell(f"{each.path}: {status}, {each.num_events:,} events so far")
            if all(status == "finished" for status in statuses):
                return
            time.sleep(PERIOD_S)

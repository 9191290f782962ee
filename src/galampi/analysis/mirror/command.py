"""The command: look at every run, wait, until all are finished or the user leaves."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from galampi.analysis.interrupts import terminated_as_interrupted
from galampi.analysis.mirror.following import GIVE_UP_AFTER_S, RunMirror
from galampi.analysis.mirror.place import OpenPlace
from galampi.analysis.summary import has_begun
from galampi.errors import ResultsError, UserError
from galampi.results.reader import open_run

PERIOD_S = 5.0
_ENDED = ("finished", "unreadable")
"""What is said of a run that is looked at no more."""


def mirror(
    paths: Collection[Path],
    places: Sequence[OpenPlace],
    num_ranks: int | None = None,
    tell: Callable[[str], None] = print,
    *,
    to_come: Collection[Path] = (),
) -> None:
    """Follow runs until all are finished, or the user leaves.

    Args:
        paths: Their folders.
        places: Where to.
        num_ranks: Only so many of the first ranks of each; None for all.
        tell: Called with a line when a run's status is first seen or has changed, and with what a place has to say.
        to_come: Folders of runs that are followed as soon as they have begun.

    Raises:
        UserError: A place cannot be written, or another mirror writes there.
        ResultsError: There is no run, or a file of it is damaged, and still is after a minute; of several runs the
            others are followed then.
    """
    with suppress(KeyboardInterrupt), terminated_as_interrupted(), ExitStack() as stack, _interrupts_told(tell):
        waiting = [*paths, *to_come]
        # By where a folder truly is: one that is given more than once, as by a link beside it, is one.
        mirrors: dict[Path, RunMirror] = {}
        statuses: dict[Path, str] = {}
        failing_since_s: dict[Path, float] = {}
        failure: UserError | None = None
        while True:
            begun = [path for path in waiting if path not in to_come or has_begun(path)]
            waiting = [path for path in waiting if path not in begun]
            for path in begun:
                if path.resolve() not in mirrors:
                    try:
                        mirrors[path.resolve()] = stack.enter_context(RunMirror(open_run(path), places, num_ranks))
                    except UserError as error:
                        if path not in to_come:
                            raise
                        # It has begun a moment ago, or a server is away: the others are followed meanwhile.
                        if path not in failing_since_s:
                            tell(f"{error}; tries again")
                        since_s = failing_since_s.setdefault(path, time.monotonic())
                        if time.monotonic() - since_s < GIVE_UP_AFTER_S:
                            waiting.append(path)
                        else:
                            failure = error
                            tell(f"{path}: is not followed")
            for path, each in mirrors.items():
                if statuses.get(path) in _ENDED:
                    continue
                try:
                    status = each.look()
                except ResultsError as error:
                    if len(mirrors) + len(waiting) == 1:
                        raise
                    status, failure = "unreadable", error
                    tell(f"{error}; it is followed no more")
                for line in each.news():
                    tell(line)
                if status in _ENDED:
                    # Many runs of many ranks are more files than a process may hold open.
                    try:
                        each.close()
                    except UserError as error:
                        if len(mirrors) + len(waiting) == 1:
                            raise
                        failure = error
                        tell(str(error))
                if status != statuses.get(path):
                    statuses[path] = status
                    tell(f"{each.path}: {status}, {each.num_events:,} events so far")
            if not waiting and all(status in _ENDED for status in statuses.values()):
                if failure is not None:
                    raise failure
                return
            time.sleep(PERIOD_S)


@contextmanager
def _interrupts_told(tell: Callable[[str], None]) -> Iterator[None]:
    """Tell what an interrupt leads to: a place may have much to send yet, or nobody who takes it."""
    try:
        yield
    except KeyboardInterrupt:
        tell("stops: writes what is left; once more leaves at once")
        raise

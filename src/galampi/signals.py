"""Signals that ask a job to save and stop.

Owns their handlers, from the first moment of a job to its last. Knows nothing of what is stopped.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Self

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)


class StopNow(BaseException):
    """A signal has ended what may be cut short; no Exception, so that no simulator takes it for one of its own."""


class StopSignals:
    """Notes the signals that ask a job to stop, and cuts short what may be.

    They stay caught until they are released, so that a second one cannot cut the saving short. A hangup that is ignored
    when the job starts, as under nohup, stays ignored.

    As a context it marks its body as what may be cut short: a signal that comes within, or has come before, raises
    `StopNow` there.

    Attributes:
        caught: The first signal that came; None so far.
        caught_at_s: Monotonic time at which it came; None so far.
    """

    def __init__(self) -> None:
        """Catch them from now on, if this thread may. Local."""
        self.caught: signal.Signals | None = None
        self.caught_at_s: float | None = None
        self._cuts_short = False
        self._process = os.getpid()
        self._before = {
            number: signal.signal(number, self._catch)
            for number in (STOP_SIGNALS if may_catch() else ())
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN
        }

    def hold(self) -> list[str]:
        """Catch them again where the user's code has taken some since, and return their names. Local."""
        if not may_catch():
            return []
        taken = [number for number in self._before if signal.getsignal(number) != self._catch]
        for number in self._before:
            # Also where nothing is to be seen of it, as of `faulthandler`.
            signal.signal(number, self._catch)
        return [signal.Signals(number).name for number in taken]

    def release(self) -> None:
        """Let whoever took them before have them again. Local; from the thread that caught them."""
        for number, handler in self._before.items():
            # None: it was not set from Python, and cannot be.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def __enter__(self) -> Self:
        """Begin what may be cut short."""
        self._cuts_short = True
        if self.caught is not None:
            self._cuts_short = False
            raise StopNow
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End it."""
        self._cuts_short = False

    def _catch(self, number: int, frame: FrameType | None) -> None:
        if end_if_forked(number, self._process):
            return
        if self.caught is None:
            self.caught = signal.Signals(number)
            self.caught_at_s = time.monotonic()
        if self._cuts_short:
            self._cuts_short = False
            raise StopNow


def may_catch() -> bool:
    """Whether this thread may set handlers of signals: the main one alone may."""
    return threading.current_thread() is threading.main_thread()


def end_if_forked(number: int, process: int) -> bool:
    """Tell in a handler of a signal whether this is a fork of the process that has set it, and end it if that is asked.

    Environments have processes forked, for which it is not meant what a rank does with a signal. A notice that a rank
    is to save goes to all processes of a job, and ends none of these.

    Args:
        number: The signal.
        process: The process that has set the handler.
    """
    if os.getpid() == process:
        return False
    if number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)
    return True

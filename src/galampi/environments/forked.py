"""Processes that environments fork: what the process they come from does with a signal is not for them."""

from __future__ import annotations

import os
import signal


def end_if_forked(number: int, process: int) -> bool:
    """Tell in a handler of a signal whether this is a fork of the process that has set it, and end it if that is asked.

    A notice that a rank is to save goes to all processes of a job, and ends none of these.

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

"""The start of MPI, and the end of ranks that would wait for ever."""

from __future__ import annotations

import signal
import sys
import time
from typing import NoReturn

from galampi.ranks.launched import launched_rank
from galampi.signals import STOP_SIGNALS, StopSignals, may_catch

_PATIENCE_S = 2.0


def start_mpi() -> None:
    """Import MPI, which starts it, and leave signals to whom they belong.

    Libraries take some for themselves: MPICH those of a terminal and SIGUSR1, which then do nothing at all. So they
    wait until their handlers are back.
    """
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS} if may_catch() else {}
    signal.pthread_sigmask(signal.SIG_BLOCK, handlers)
    try:
        import mpi4py.MPI  # noqa: F401

        for number, handler in handlers.items():
            # None: it was not set from Python, and cannot be.
            if handler is not None:
                signal.signal(number, handler)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, handlers)


def end_ranks(code: int) -> None:
    """End the ranks that would wait for this one for ever; does nothing before MPI has started."""
    if "mpi4py.MPI" in sys.modules:
        from galampi.ranks.placement import end_job

        end_job(code)


def stop_before_training(signals: StopSignals) -> NoReturn:
    """End the job during its set-up: nothing has been trained, so nothing is to be saved."""
    if launched_rank() > 0:
        # What all ranks are told at once one says; it ends the others.
        time.sleep(_PATIENCE_S)
    name = signals.caught.name if signals.caught is not None else "signal"
    print(f"galampi: {name} before training had begun: nothing to save", file=sys.stderr, flush=True)
    # The others may wait for this rank, where no signal reaches them.
    end_ranks(3)
    raise SystemExit(3)

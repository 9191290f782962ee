"""The folder of a run: found, claimed for one job, and told from what does not matter.

Knows which files are a run's, not what they hold.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
from pathlib import Path

from galampi.errors import UserError
from galampi.results import RankFile

log = logging.getLogger(__name__)

_LOCK = "lock"


def claim(out: Path, *, resume: bool) -> int:
    """Make sure the folder is this job's alone, and return the descriptor that holds the claim. Local.

    Files that are no run's do not matter.

    Raises:
        UserError: The folder holds a run, or holds nothing to resume, cannot be written, or is in use.
    """
    try:
        if resume:
            if not (out / "job.h5").exists():
                raise UserError(f"{out}: no run to resume there: job.h5 is missing")
        else:
            out.mkdir(parents=True, exist_ok=True)
            if (out / "job.h5").exists():
                raise UserError(f"{out}: holds a run; add --resume to go on with it, or choose another --out")
            _refuse_rows(out)
        # As the umask says: who may write the folder may go on with its run.
        descriptor = os.open(out / _LOCK, os.O_CREAT | os.O_RDWR, 0o666)
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"{out}: in use by a job that is still running") from None
    except OSError:
        # Some file systems know no locks; the job can run there all the same.
        log.warning("%s: its file system has no locks: nothing keeps two jobs from writing there", out)
    if not resume:
        _clear(out)
    return descriptor


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
        for path in [out / "job.h5", *_rank_files(out), out / "checkpoint", out / "checkpoint.new", out / "kept"]:
            if path.exists():
                path.rename(aside / path.name)
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror}") from error
    return aside


def _refuse_rows(out: Path) -> None:
    """Raise unless what lies there without a job.h5 is what a start that was cut short leaves: files without rows."""
    for path in out.glob("rank-[0-9]*.h5"):
        if path.stat().st_size and RankFile(path, 0).updates.num_rows:
            raise UserError(f"{out}: holds results of a run whose job.h5 is missing; choose another --out")


def _clear(out: Path) -> None:
    for path in [*_rank_files(out), out / "job.h5.part"]:
        path.unlink(missing_ok=True)
    shutil.rmtree(out / "checkpoint", ignore_errors=True)


def _rank_files(out: Path) -> list[Path]:
    return list(out.glob("rank-[0-9]*.h5*"))

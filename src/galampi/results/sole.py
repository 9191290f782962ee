"""One writer at a time of what is written as a whole: of a file, or of what lies in a folder."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from galampi.errors import UserError


@contextmanager
def sole_writer(path: Path) -> Iterator[None]:
    """Let no other process that asks for this write the file, or to the folder, `path` until the body ends.

    Raises:
        UserError: Another process is writing there, or nobody can.
    """
    lock = path / ".lock" if path.is_dir() else path.with_name(f".{path.name}.lock")
    try:
        descriptor = _locked(lock)
    except BlockingIOError:
        raise UserError(f"{path}: is being written by another process; wait for it, or choose another name") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(descriptor)


def _locked(lock: Path) -> int:
    """Return a descriptor that holds the lock file, created if missing."""
    while True:
        descriptor = os.open(lock, os.O_CREAT | os.O_RDWR, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The one before may have removed the file since it was opened here; the lock of that one guards nothing.
            if os.path.samestat(os.fstat(descriptor), os.stat(lock)):
                return descriptor
        except FileNotFoundError:
            pass
        except BlockingIOError:
            os.close(descriptor)
            raise
        except OSError:
            # Some file systems know no locks.
            return descriptor
        os.close(descriptor)

"""The file system of the run's folder: HDF5, locks, and whether all ranks see the same."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np

from galampi.errors import ResultsError
from galampi.launch.doctor.finding import Finding
from galampi.results.files import create, open_for_reading

if TYPE_CHECKING:
    from mpi4py import MPI

_SLOW_FLUSH_S = 1.0
_TRIAL_FORMAT = "galampi-doctor"


def check_files(out: Path, comm: MPI.Intracomm) -> Iterator[Finding]:
    """Try on the run's file system what a run does there: HDF5 with SWMR, locks, renames, reading from another rank."""
    folder = out.absolute()
    # Of what lies in a folder that may not be entered, Path.exists raises.
    while not os.path.exists(folder):
        folder = folder.parent
    where = f"{folder} ({_file_system(folder)})"
    elsewhere = "choose a folder on a file system that all nodes share"
    if len(set(comm.allgather(str(folder)))) > 1:
        text = f"{out.absolute()} is not on a file system that every rank sees; rank 0 would write in {where}"
        yield Finding("files", "failed", text, elsewhere)
        return
    trial = _try_files(folder / f".galampi-doctor-{comm.bcast(os.getpid())}.h5", comm)
    if trial.unwritten is not None:
        advice = "choose another folder with --out"
        yield Finding("files", "failed", f"{where}: HDF5 cannot write: {trial.unwritten}", advice)
        return
    if trial.blind:
        text = f"{where}: what rank 0 writes there is not there for {trial.blind[0]}"
        more = f" and {len(trial.blind) - 1} more" if len(trial.blind) > 1 else ""
        yield Finding("files", "failed", text + more, elsewhere)
        return
    troubles = [
        (
            trial.unread,
            "a file in use cannot be read by the last rank",
            "runs can be read once they end",
        ),
        (trial.unlocked, "no locks", "nothing will keep two jobs from one folder (Lustre: mount with -o flock)"),
        (
            trial.unlocked_hdf5,
            "HDF5's own locks, which runs do without, fail",
            "for other programs that read the files: export HDF5_USE_FILE_LOCKING=BEST_EFFORT",
        ),
        (
            f"{trial.flush_s:.1f} s" if trial.flush_s > _SLOW_FLUSH_S else None,
            "an HDF5 flush is slow",
            "choose a scratch file system with --out",
        ),
    ]
    found = [Finding("files", "warning", f"{where}: {what}: {why}", advice) for why, what, advice in troubles if why]
    text = f"{where}: HDF5 flush {trial.flush_s * 1e3:.1f} ms; locks and reading while writing work"
    yield from found or [Finding("files", "ok", text, figures={"flush_s": trial.flush_s})]


@dataclass(frozen=True)
class _FileTrial:
    """What came of a file that rank 0 wrote; a reason is None if there was no trouble.

    Attributes:
        unwritten: Why HDF5 could not write it.
        blind: Ranks for which it was not there.
        unread: Why the last rank could not read it.
        unlocked: Why files could not be locked or renamed.
        unlocked_hdf5: Why HDF5 could not open a file with the locks it takes by itself.
        flush_s: Time its flush took.
    """

    unwritten: str | None
    blind: Sequence[str] = ()
    unread: str | None = None
    unlocked: str | None = None
    unlocked_hdf5: str | None = None
    flush_s: float = 0.0


def _try_files(path: Path, comm: MPI.Intracomm) -> _FileTrial:
    """Write a file on rank 0, look at it from all, and remove it. Collective over comm; rank 0's word counts."""
    from mpi4py import MPI

    file = None
    try:
        file, flush_s, unwritten = _write_hdf5(path) if comm.rank == 0 else (None, 0.0, None)
        unwritten = comm.bcast(unwritten)
        if unwritten is not None:
            return _FileTrial(unwritten)
        views = comm.allgather((path.exists(), MPI.Get_processor_name()))
        blind = [f"rank {rank} on {name}" for rank, (sees, name) in enumerate(views) if not sees]
        last = comm.size - 1
        unread = comm.bcast(_read_hdf5(path) if comm.rank == last else None, root=last)
        unlocked, unlocked_hdf5 = (_lock_and_rename(path), _lock_hdf5(path)) if comm.rank == 0 else (None, None)
        return _FileTrial(None, blind, unread, unlocked, unlocked_hdf5, flush_s)
    finally:
        if comm.rank == 0:
            _discard(file, path)


def _discard(file: h5py.File | None, path: Path) -> None:
    # On a full disk closing fails too.
    with suppress(OSError, RuntimeError):
        if file is not None:
            file.close()
    with suppress(OSError):
        path.unlink()


def _write_hdf5(path: Path) -> tuple[h5py.File | None, float, str | None]:
    """Return a file in use, how long its flush took, and why there is none. Local."""
    file = None
    try:
        file = create(path, _TRIAL_FORMAT)
        values = file.create_dataset("values", data=np.arange(8), maxshape=(None,))
        file.swmr_mode = True
        began_s = time.perf_counter()
        values.resize((16,))
        values[8:] = 1
        values.flush()
    except (OSError, RuntimeError) as error:
        _discard(file, path)
        number = error.errno if isinstance(error, OSError) else None
        return None, 0.0, os.strerror(number) if number else str(error).splitlines()[0]
    return file, time.perf_counter() - began_s, None


def _read_hdf5(path: Path) -> str | None:
    """Return why a file in use cannot be read, if so. Local."""
    try:
        with open_for_reading(path, _TRIAL_FORMAT) as reader:
            return None if reader["values"].shape[0] >= 8 else "stale data"
    except (OSError, ResultsError) as error:
        return str(error).splitlines()[0]


def _lock_hdf5(path: Path) -> str | None:
    """Return why HDF5 cannot open a file with its own locks, if so. Local."""
    # A file of its own: no process can open one with and without locks at a time.
    locked = Path(f"{path}.locked")
    try:
        h5py.File(locked, "w").close()
    except OSError as error:
        return str(error).splitlines()[0]
    finally:
        locked.unlink(missing_ok=True)
    return None


def _lock_and_rename(path: Path) -> str | None:
    """Return why a file cannot be locked or renamed, if so. Local."""
    lock_path, renamed = Path(f"{path}.lock"), Path(f"{path}.renamed")
    try:
        with lock_path.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        lock_path.replace(renamed)
    except OSError as error:
        return os.strerror(error.errno or 0)
    finally:
        lock_path.unlink(missing_ok=True)
        renamed.unlink(missing_ok=True)
    return None


def _file_system(folder: Path) -> str:
    """Return the type of the file system that holds a folder, from the longest mount point above it."""
    best, kind = "", "unknown"
    try:
        lines = Path("/proc/mounts").read_text().splitlines()
    except OSError:
        return kind
    for line in lines:
        _, point, name, *_ = line.split()
        if folder.is_relative_to(point) and len(point) >= len(best):
            best, kind = point, name
    return kind

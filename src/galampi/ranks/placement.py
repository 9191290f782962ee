"""Where this rank runs: the ranks it was started with, the node they share, its cores and so its threads.

Also what they are to each other: a launcher that started strangers is refused, an error on one rank is raised on all
before training, and a rank whose launcher has died ends.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from mpi4py import MPI

from galampi.errors import UserError
from galampi.ranks.launched import LAUNCHER_PID, launched_size, num_cores, own_cpus

log = logging.getLogger(__name__)

_LAST_WORDS_S = 1.0

_LAUNCHER_PERIOD_S = 1.0
_SAVING_S = 20.0
"""What a rank is given to save in when its launcher has died."""


def library_name() -> str:
    """Return name and version of the MPI library in use. Local."""
    first_line = MPI.Get_library_version().split(",")[0].splitlines()[0]
    return " ".join(first_line.replace("Version:", "").split())


def refuse_singletons(comm: MPI.Intracomm) -> None:
    """Refuse to be one of several processes that do not know of each other. Local.

    Raises:
        UserError: The launcher started several processes, and MPI sees one.
    """
    name, size = launched_size()
    if comm.size == 1 and size > 1:
        raise UserError(
            f"{name} is {size}, yet MPI sees 1 rank: the launcher does not belong to the MPI library in use "
            f"({library_name()}); use that library's own mpirun, or srun with the --mpi type it speaks"
        )


def end_with_launcher(comm: MPI.Intracomm) -> None:
    """End this process soon after the one that started it, should that die before it. Local.

    A rank of several waits for nobody while it trains, so it would not miss those that died with a launcher until its
    own end, and then wait for them for ever; and without a launcher nobody would come to end it.
    """
    if comm.size == 1:
        return

    def watch() -> None:
        while os.getppid() == LAUNCHER_PID:
            time.sleep(_LAUNCHER_PERIOD_S)
        try:
            log.critical("the launcher has died; this rank ends")
            # A rank that trains saves; any other process ends by it.
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(_SAVING_S)
        finally:
            os._exit(1)

    threading.Thread(target=watch, name="galampi-launcher", daemon=True).start()


def end_job(code: int) -> None:
    """End every rank at once, those that no longer answer too. Does not return where there are several.

    What the library says of it would stand below the line that the user needs, so this rank says nothing more.
    """
    if MPI.Is_initialized() and not MPI.Is_finalized() and MPI.COMM_WORLD.size > 1:
        sys.stderr.flush()
        # A launcher that is told to end all drops what it has not read yet of what they said.
        time.sleep(_LAST_WORDS_S)
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), 2)
        MPI.COMM_WORLD.Abort(code)
        # Where srun is to end the others, as with pmi2, the call may return.
        os._exit(code)


@contextmanager
def together(comm: MPI.Intracomm) -> Iterator[None]:
    """Raise on every rank the first UserError that any rank raises inside. Collective over comm.

    What a file system answers to one rank alone (a stale handle, a missing mount) counts as one. Nothing inside may be
    collective, but for what cannot raise either.
    """
    mistake: str | None = None
    try:
        yield
    except UserError as error:
        mistake = str(error)
    except OSError as error:
        mistake = f"{error.filename or 'a file'} on {MPI.Get_processor_name()}: {error.strerror or error}"
    for line in comm.allgather(mistake):
        if line is not None:
            raise UserError(line) from None


@dataclass(frozen=True)
class Placement:
    """Where a rank runs.

    Attributes:
        hostname: Name of the node.
        rank_on_node: Number of this rank among those there.
        num_ranks_on_node: Ranks there.
        cpus: Cores this rank may use.
        num_cores: As many, or fewer where a container's quota grants less time than all of them have.
        num_sharing: Ranks on the node whose cores overlap with this rank's, itself among them.
        num_threads: Threads for the emulators, and for torch, unless OMP_NUM_THREADS says how many that gets; they take
            turns, so each gets all of them.
        num_torch_threads: Threads for torch.
    """

    hostname: str
    rank_on_node: int
    num_ranks_on_node: int
    cpus: frozenset[int]
    num_cores: int
    num_sharing: int
    num_threads: int
    num_torch_threads: int

    def __str__(self) -> str:
        """Say it in a line."""
        cores = f"{self.num_cores} core{'s' * (self.num_cores > 1)}"
        if self.num_cores < len(self.cpus):
            cores += f" (by quota, of {len(self.cpus)})"
        shared = f" shared by {self.num_sharing} ranks" if self.num_sharing > 1 else ""
        if self.num_torch_threads == self.num_threads:
            return f"{self.hostname}: {cores}{shared}, {_threads(self.num_threads)} for torch and for the emulators"
        torch_threads = f"{_threads(self.num_torch_threads)} for torch (OMP_NUM_THREADS)"
        return f"{self.hostname}: {cores}{shared}, {torch_threads}, {_threads(self.num_threads)} for the emulators"


def _threads(number: int) -> str:
    return f"{number} thread{'s' * (number > 1)}"


def _threads_wanted() -> int:
    """Return how many threads the user wants torch to have; 0 if that is not said."""
    text = os.environ.get("OMP_NUM_THREADS", "")
    return int(text) if text.isdecimal() else 0


def place(comm: MPI.Intracomm) -> Placement:
    """Find where this rank runs and how many threads it may use. Collective over comm."""
    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    cpus = own_cpus()
    all_cpus = node.allgather(cpus)
    num_sharing = sum(not cpus.isdisjoint(other) for other in all_cpus)
    cores = num_cores()
    num_threads = max(1, cores // num_sharing)
    placement = Placement(
        hostname=MPI.Get_processor_name(),
        rank_on_node=node.rank,
        num_ranks_on_node=node.size,
        cpus=cpus,
        num_cores=cores,
        num_sharing=num_sharing,
        num_threads=num_threads,
        num_torch_threads=_threads_wanted() or num_threads,
    )
    node.Free()
    return placement

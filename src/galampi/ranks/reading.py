"""Reading of what every rank needs before a job begins."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

from galampi.ranks.launched import launched_size
from galampi.ranks.starting import start_mpi

T = TypeVar("T")


def read_for_all(read: Callable[[], T]) -> T:
    """Read files before a job begins, by the first rank for all; its UserError or OSError is raised on every rank.

    What another node has at the same place may be another file, and a pipe is read but once. Collective over the ranks
    that a launcher has started: one that left alone would keep the others waiting for MPI.
    """
    if launched_size()[1] == 1:
        return read()
    start_mpi()
    from mpi4py import MPI

    from galampi.ranks.placement import together

    comm = MPI.COMM_WORLD
    found: T | None = None
    with together(comm):
        if comm.rank == 0:
            found = read()
    return cast("T", comm.bcast(found))

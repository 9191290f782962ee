"""Reading of what every rank needs before a job begins."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from galampi.ranks.launched import launched_size

T = TypeVar("T")


def read_by_all(read: Callable[[], T]) -> T:
    """Read files before a job begins; a UserError or OSError of one rank is raised on every rank.

    Collective over the ranks that a launcher has started: one that left alone would keep the others waiting for MPI.
    """
    if launched_size()[1] == 1:
        return read()
    from mpi4py import MPI

    from galampi.ranks.placement import together

    with together(MPI.COMM_WORLD):
        found = read()
    return found

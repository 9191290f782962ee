"""The fully synchronous counterpart of gossip: gradients averaged over all ranks at every update."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable
from statistics import median

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from galampi.errors import BrokenRunError, LostRankError
from galampi.gossip.mixing import Int64s
from galampi.gossip.patience import TYPICAL_OF

_LONGEST_LOOK_S = 1.0


class AllReduce:
    """Averages gradients over all ranks, so that N ranks are one learner with the N-fold batch.

    Attributes:
        progress: Every rank's progress, [n] int64.
        stop: Whether some rank has asked to stop.
    """

    def __init__(
        self, comm: MPI.Intracomm, gives_up: Callable[[float, float], bool] = lambda waited_s, own_s: False
    ) -> None:
        """Take part in the averaging. Local.

        Args:
            comm: The ranks.
            gives_up: Whether to wait no longer for the slowest rank, asked with the seconds waited so far, and those
                that this one takes for an update.
        """
        self._comm = comm
        self._gives_up = gives_up
        self._took_s: deque[float] = deque(maxlen=TYPICAL_OF)
        self._left_s = time.monotonic()
        self.progress: Int64s = np.zeros(comm.size, dtype=np.int64)
        self.stop = False

    def average(
        self, gradient: NDArray[np.float32], num_samples: int, progress: int, *, stop: bool, checksum: int = 0
    ) -> None:
        """Replace `gradient` by the mean over the samples of all ranks.

        g <- sum_i num_samples_i g_i / sum_i num_samples_i. Collective over comm; waits for the slowest rank.

        Args:
            gradient: Mean gradient over this rank's samples, [P] float32, changed.
            num_samples: Samples behind it; with 0 the gradient does not count.
            progress: Progress of this rank.
            stop: Whether this rank asks to stop; all ranks learn of it in this same call.
            checksum: Of what must be the same on every rank.

        Raises:
            LostRankError: The slowest rank was waited for for too long.
            BrokenRunError: On every rank: the checksums differ.
        """
        self._took_s.append(time.monotonic() - self._left_s)
        facts = np.empty((self._comm.size, 4), dtype=np.int64)
        own = np.array([num_samples, progress, stop, checksum], dtype=np.int64)
        # Kept: where it is waited for no longer, MPI still reads and writes there.
        self._exchanged = own, facts
        self._wait(self._comm.Iallgather(own, facts))
        self.progress[:] = facts[:, 1]
        self.stop = bool(facts[:, 2].any())
        if (facts[:, 3] != checksum).any():
            others = np.flatnonzero(facts[:, 3] != checksum).tolist()
            raise BrokenRunError(
                f"rank {self._comm.rank} and ranks {others} no longer have the same parameters, as allreduce wants; "
                "processors of two kinds round differently: give the job nodes of one kind, and resume it"
            )
        gradient *= np.float32(num_samples / max(1, facts[:, 0].sum()))
        self._wait(self._comm.Iallreduce(MPI.IN_PLACE, gradient))
        self._left_s = time.monotonic()

    def _wait(self, request: MPI.Request) -> None:
        waited_s, looked_s = 0.0, time.monotonic()
        while not request.Test():
            # What lies between two looks is no waiting: this rank itself was stopped, as others may have been.
            waited_s += min(time.monotonic() - looked_s, _LONGEST_LOOK_S)
            looked_s = time.monotonic()
            if self._gives_up(waited_s, median(self._took_s)):
                raise LostRankError(f"a rank has not answered for {waited_s:.0f} s")
            os.sched_yield()

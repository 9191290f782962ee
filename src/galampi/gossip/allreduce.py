"""The fully synchronous counterpart of gossip: gradients averaged over all ranks at every update."""

from __future__ import annotations

import numpy as np
from mpi4py import MPI

from galampi.gossip.mixing import Float32s, Int64s


class AllReduce:
    """Averages gradients over all ranks, so that N ranks are one learner with the N-fold batch.

    Attributes:
        progress: Every rank's progress, [n] int64.
        stop: Whether some rank has asked to stop.
    """

    def __init__(self, comm: MPI.Intracomm) -> None:
        """Take part in the averaging. Local."""
        self._comm = comm
        self.progress: Int64s = np.zeros(comm.size, dtype=np.int64)
        self.stop = False

    def average(self, gradient: Float32s, num_samples: int, progress: int, *, stop: bool) -> None:
        """Replace `gradient` by the mean over the samples of all ranks.

        g <- sum_i num_samples_i g_i / sum_i num_samples_i. Collective over comm; waits for the slowest rank.

        Args:
            gradient: Mean gradient over this rank's samples, [P] float32, changed.
            num_samples: Samples behind it.
            progress: Progress of this rank.
            stop: Whether this rank asks to stop; all ranks learn of it in this same call.
        """
        facts = np.empty((self._comm.size, 3), dtype=np.int64)
        self._comm.Allgather(np.array([num_samples, progress, stop], dtype=np.int64), facts)
        self.progress[:] = facts[:, 1]
        self.stop = bool(facts[:, 2].any())
        gradient *= np.float32(num_samples / max(1, facts[:, 0].sum()))
        self._comm.Allreduce(MPI.IN_PLACE, gradient)

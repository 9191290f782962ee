"""What a process knows of its launcher and of where it runs before MPI starts.

Imports nothing that takes time, so that the entry can import it first.
"""

from __future__ import annotations

import os

LAUNCHER_PID = os.getppid()
"""The process that started this one, as of the import. It is not asked for later: a launcher may have died by then."""

# Set by Hydra (MPICH), by Open MPI's mpirun, by PMIx, and by srun.
_RANKS = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK", "SLURM_PROCID")


def launched_rank() -> int:
    """Return the rank the launcher gave this process; 0 without a launcher. Local."""
    return next((int(os.environ[name]) for name in _RANKS if os.environ.get(name, "").isdigit()), 0)


def own_cpus() -> frozenset[int]:
    """Return the cores this process may use; all there are where the system does not tell (macOS). Local."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))

"""What a process knows of its launcher and of where it runs before MPI starts.

Imports nothing that takes time, so that the entry can import it first.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile

LAUNCHER_PID = os.getppid()
"""The process that started this one, as of the import. It is not asked for later: a launcher may have died by then."""

# Set by Hydra (MPICH), by Open MPI's mpirun, by PMIx, and by srun.
_RANKS = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK", "SLURM_PROCID")
# Set by Hydra (MPICH, and Slurm's pmi2), by Open MPI's mpirun, and by srun. The first that is there counts: a launcher
# within a step of srun. Slurm's SLURM_NTASKS would tell the size of the allocation, to a shell in it too.
_SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")

_OPENMPI_SEGMENT_BYTES = 16 * 2**20
"""What a rank of Open MPI takes of its node's shared memory for messages."""


def launched_rank() -> int:
    """Return the rank the launcher gave this process; 0 without a launcher. Local."""
    return next((int(os.environ[name]) for name in _RANKS if os.environ.get(name, "").isdigit()), 0)


def launched_size() -> tuple[str, int]:
    """Return how many processes the launcher says it started, and the variable that says so; 1 without one. Local."""
    name = next((name for name in _SIZES if os.environ.get(name, "").isdigit()), "")
    return name, int(os.environ[name]) if name else 1


def prepare_libraries() -> None:
    """Set what MPI and OpenMP are to find in this process's environment; what is set there already stays. Local."""
    # Threads of torch that wait for one another look again and again for a millisecond. Where they have no core to
    # themselves, a small network is twenty times slower for it.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    # MPICH's network layer warns of what a rank leaves behind that ends by an error, below the line that says which.
    os.environ.setdefault("UCX_LOG_LEVEL", "error")
    # In a container with little of it Open MPI would not start for want of shared memory.
    ranks = os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE", "")
    try:
        lacks_memory = ranks.isdigit() and shutil.disk_usage("/dev/shm").free < int(ranks) * _OPENMPI_SEGMENT_BYTES
    except OSError:
        lacks_memory = True
    if lacks_memory:
        os.environ.setdefault("OMPI_MCA_btl_sm_backing_directory", tempfile.gettempdir())


def own_cpus() -> frozenset[int]:
    """Return the cores this process may use; all there are where the system does not tell (macOS). Local."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def num_cores() -> int:
    """Return how many cores this process may keep busy: those it may use, or fewer by a container's quota. Local."""
    quota = _quota()
    return len(own_cpus()) if quota is None else max(1, min(len(own_cpus()), math.floor(quota + 0.5)))


def _quota(root: str = "/") -> float | None:
    """Return the cores that control groups grant this process, by either version of them; None without a limit."""
    grants = []
    for line in _text(os.path.join(root, "proc/self/cgroup")).splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        mounts = ["", "unified"] if not controllers else [controllers, "cpu"] if "cpu" in controllers.split(",") else []
        for mount in mounts:
            top = os.path.join(root, "sys/fs/cgroup", mount)
            folder = os.path.normpath(top if path.startswith("/..") else top + path)
            # A group has no more than those it lies in; in a container its own may be the root, whatever its path.
            while folder.startswith(os.path.normpath(top)):
                words = _text(os.path.join(folder, "cpu.max")).split() or [
                    *_text(os.path.join(folder, "cpu.cfs_quota_us")).split(),
                    *_text(os.path.join(folder, "cpu.cfs_period_us")).split(),
                ]
                if len(words) == 2 and all(word.isdigit() for word in words) and int(words[1]):
                    grants.append(int(words[0]) / int(words[1]))
                folder = os.path.dirname(folder)
    return min(grants, default=None)


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""

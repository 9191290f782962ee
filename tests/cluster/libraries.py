"""What the MPI library beside this python speaks, and needs to be told, on a Slurm."""

import subprocess
from functools import cache
from glob import glob


def library_launchers() -> list[str]:
    """Return what starts ranks of the MPI library whose mpirun lies beside this python."""
    # Slurm's pmix opens PMIx's library by a name that is there only with PMIx's package for developers.
    has_pmix = bool(glob("/usr/lib/*/pmix*/lib/libpmix.so") or glob("/usr/lib*/libpmix.so"))
    return ["srun", "mpirun"] if srun_type() == "pmi2" or has_pmix else ["mpirun"]


def srun_type() -> str:
    """Return what the MPI library speaks under srun."""
    return "pmix" if "Open MPI" in _mpirun_says() else "pmi2"


def windows_between_nodes() -> dict[str, str]:
    """Return what an MPI library needs to be told so that windows reach other nodes over TCP."""
    if "(Open MPI) 4." not in _mpirun_says():
        return {}
    # Nodes of one machine would take each other's shared memory for their own, which is named after machine and job.
    return {"OMPI_MCA_osc": "ucx,sm", "OMPI_MCA_btl": "tcp,self"}


@cache
def _mpirun_says() -> str:
    return subprocess.run(["mpirun", "--version"], capture_output=True, text=True, check=True).stdout


LAUNCHER = f"srun --mpi={srun_type()}" if "srun" in library_launchers() else "mpirun"
"""What the tests of this folder start ranks with, in the words of a record."""

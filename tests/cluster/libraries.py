"""What the MPI library beside this python speaks, and needs to be told, on a Slurm."""

import re
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
    return "pmix" if _of_open_mpi() else "pmi2"


def windows_between_nodes() -> dict[str, str]:
    """Return what an MPI library needs to be told so that windows reach other nodes over TCP."""
    if _of_open_mpi() != "4":
        return {}
    # Nodes of one machine would take each other's shared memory for their own, which is named after machine and job.
    return {"MPI4PY_RC_THREAD_LEVEL": "serialized", "OMPI_MCA_osc": "pt2pt,sm", "OMPI_MCA_btl": "tcp,self"}


@cache
def _of_open_mpi() -> str:
    """Return the first number of Open MPI's version; '' of another library."""
    said = subprocess.run(["mpirun", "--version"], capture_output=True, text=True, check=True).stdout
    # Its mpirun was that of OpenRTE up to 4.
    found = re.search(r"\((?:Open MPI|OpenRTE)\) (\d+)", said)
    return found[1] if found else ""


LAUNCHER = f"srun --mpi={srun_type()}" if "srun" in library_launchers() else "mpirun"
"""What the tests of this folder start ranks with, in the words of a record."""

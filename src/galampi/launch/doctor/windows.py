"""Which part of the MPI library carries one-sided windows, for its faults are that part's.

MPICH names it with its version. Open MPI chooses a component for each window, and says which only in its log.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys

_VERBOSE = "OMPI_MCA_osc_base_verbose"
_LEVEL_THAT_NAMES_COMPONENTS = "10"
_END = "galampi: end of what was said so far"
# A process of its own: what MPI writes before it aborts gets through too.
_FILTER = f"""
import re, sys
for line in sys.stdin:
    if chosen := re.search(r"select: component (\\w+) selected", line):
        print(chosen[1], flush=True)
    elif line.startswith({_END!r}):
        print(flush=True)
    elif not re.match(r"\\[[^]]*\\] (mca: base: |select: |\\w+ component destroying window)", line):
        sys.stderr.write(line)
        sys.stderr.flush()
"""


class WindowLog:
    """Listens to what Open MPI says of windows, and passes on to standard error all else that is written there."""

    def __init__(self) -> None:
        """Begin to listen. Before MPI is imported; the rest of the process's life."""
        os.environ.setdefault(_VERBOSE, _LEVEL_THAT_NAMES_COMPONENTS)
        self._filter = subprocess.Popen(
            [sys.executable, "-S", "-c", _FILTER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self._filter.stdin is not None
        os.dup2(self._filter.stdin.fileno(), sys.stderr.fileno())

    def components(self) -> list[str]:
        """Return the components of the windows made since the last call, in their order."""
        os.write(sys.stderr.fileno(), f"{_END}\n".encode())
        assert self._filter.stdout is not None
        return [line.strip() for line in iter(self._filter.stdout.readline, "\n") if line]


def components(log: WindowLog | None) -> str:
    """Say what has carried the windows made since the last call; '' where the library does not tell. Local."""
    from mpi4py import MPI

    device = re.search(r"MPICH Device:\s*(.*)", MPI.Get_library_version())
    if device:
        return device[1].strip()
    return ", ".join(f"osc/{name}" for name in dict.fromkeys(log.components())) if log else ""

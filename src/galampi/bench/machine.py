"""The facts of the machine that a benchmark's numbers belong to."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import version
from typing import Any

import psutil

from galampi.errors import UserError
from galampi.launch.submit import slug
from galampi.ranks.launched import num_cores
from galampi.ranks.processor import processor, processor_facts

_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def facts() -> dict[str, Any]:
    """Describe processor, memory, libraries and how busy the machine was at the start.

    Raises:
        UserError: MPI cannot be started.
    """
    facts = processor_facts()
    return {
        "processor": processor(),
        "processor_family_model": f"{facts.get('cpu family', '?')}-{facts.get('model', '?')}",
        "processor_flags": [flag for flag in _FLAGS if flag in facts.get("flags", "").split()],
        "cache": facts.get("cache size", "?"),
        "cores": num_cores(),
        "memory_bytes": psutil.virtual_memory().total,
        "load_average": os.getloadavg()[0],
        "system": platform.platform(),
        "python": platform.python_version(),
        "mpi": _mpi_library(),
        **{name.replace("-", "_"): version(name) for name in ("galampi", "torch", "numpy", "mpi4py", "ale-py")},
    }


def file_name(machine: dict[str, Any], part: str) -> str:
    """Name the file of a machine's results with an MPI library; a part alone has a file of its own."""
    library = machine["mpi"].rpartition(" ")[0].replace(" ", "")
    words = f"{machine['processor']} {machine['processor_family_model']} {machine['cores']} cores {library}"
    if part != "all":
        words += f" {part}"
    return f"{slug(words).lower()}.json"


def _mpi_library() -> str:
    # A program of its own: MPI must not be started in the one that starts ranks.
    code = "from galampi.ranks.placement import library_name; print(library_name())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise UserError(f"MPI cannot be started: {(done.stderr.strip() or 'it said nothing').splitlines()[-1]}")
    return done.stdout.strip()

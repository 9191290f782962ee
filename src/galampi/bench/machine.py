"""The facts of the machine that a benchmark's numbers belong to."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def facts() -> dict[str, Any]:
    """Describe processor, memory, libraries and how busy the machine was at the start."""
    processor = _processor()
    return {
        "processor": processor.get("model name", platform.processor()),
        "processor_family_model": f"{processor.get('cpu family', '?')}-{processor.get('model', '?')}",
        "processor_flags": [flag for flag in _FLAGS if flag in processor.get("flags", "").split()],
        "cache": processor.get("cache size", "?"),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": psutil.virtual_memory().total,
        "load_average": os.getloadavg()[0],
        "system": platform.platform(),
        "python": platform.python_version(),
        "mpi": _mpi_library(),
        **{name.replace("-", "_"): version(name) for name in ("galampi", "torch", "numpy", "mpi4py", "ale-py")},
    }


def slug(machine: dict[str, Any]) -> str:
    """Name the machine and its MPI library in a file's name."""
    library = "openmpi" if "Open MPI" in machine["mpi"] else "mpich"
    words = f"{machine['processor']} {machine['processor_family_model']} {machine['cores']} cores {library}"
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


def _mpi_library() -> str:
    # A program of its own: MPI must not be started in the one that starts ranks.
    code = "from mpi4py import MPI; print(MPI.Get_library_version())"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    first = said.splitlines()[0]
    return " ".join(first.split(",")[0].split())


def _processor() -> dict[str, str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in lines if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}

"""Which part of the MPI library carries one-sided windows, for its faults are that part's."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mpi4py import MPI


def carrier_of(windows: Iterable[MPI.Win]) -> str:
    """Say what carries windows; '' where the library does not tell. Local.

    MPICH names it with its version, and Intel MPI, which descends from it, has libfabric alone, whose provider can be
    chosen in the environment. Open MPI chooses a component for each window, and names the window after it; that of
    shared memory leaves it without a name.
    """
    from mpi4py import MPI

    version = MPI.Get_library_version()
    if device := re.search(r"MPICH Device:\s*(.*)", version):
        return device[1].strip()
    if version.startswith("Intel"):
        provider = os.environ.get("I_MPI_OFI_PROVIDER", os.environ.get("FI_PROVIDER"))
        return f"ch4:ofi, provider {provider}" if provider else "ch4:ofi"
    if not version.startswith("Open MPI"):
        return ""
    named = (re.match(r"(\w+) window ", window.Get_name()) for window in windows)
    return ", ".join(dict.fromkeys(f"osc/{name[1] if name else 'sm'}" for name in named))


def what_to_set(carrier: str) -> str:
    """Advise on windows that do not work.

    Args:
        carrier: What carries them, as `carrier_of` names it.
    """
    if "osc/ucx" in carrier:
        return "osc/ucx is known to hang (open-mpi/ompi#10559): export OMPI_MCA_osc=^ucx"
    if "osc/" in carrier:
        advice = "choose the network by OMPI_MCA_btl_tcp_if_include, or its driver by OMPI_MCA_btl and UCX_NET_DEVICES"
        return f"{advice}; OMPI_MCA_osc takes another component (`ompi_info` lists them)"
    if "ch4:" in carrier:
        return "choose the network by UCX_NET_DEVICES and UCX_TLS (ch4:ucx) or FI_PROVIDER (ch4:ofi)"
    return "choose the network by FI_PROVIDER or UCX_NET_DEVICES, or use another MPI library"


def what_makes_windows() -> str:
    """Advise where the library has made no window between nodes. Local."""
    from mpi4py import MPI

    if MPI.Get_library_version().startswith("Open MPI v4"):
        return (
            "over TCP Open MPI 4 has such windows only without threads: export MPI4PY_RC_THREAD_LEVEL=serialized "
            "OMPI_MCA_osc=pt2pt,sm; or by UCX, where they may hang: export OMPI_MCA_osc=ucx,sm; or take Open MPI 5"
        )
    return what_to_set(carrier_of([]))

"""galampi: deep reinforcement learning by gossip between MPI ranks.

For scripts and notebooks; each name is imported when it is asked for, so that reading runs needs neither torch nor MPI.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from galampi.ranks.launched import prepare_libraries

if TYPE_CHECKING:
    from galampi.analysis.curves import curve, final_return
    from galampi.job import load_job
    from galampi.results import open_run
    from galampi.training import train

__all__ = ["curve", "final_return", "load_job", "open_run", "train"]
__version__ = version("galampi")

_HOMES = {
    "curve": "galampi.analysis.curves",
    "final_return": "galampi.analysis.curves",
    "load_job": "galampi.job",
    "open_run": "galampi.results",
    "train": "galampi.training",
}


def __getattr__(name: str) -> Any:
    """Import a name from the room where it lives."""
    if name in _HOMES:
        if name == "train":
            # Before torch is imported.
            prepare_libraries()
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'galampi' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Name what there is for scripts and notebooks."""
    return [*__all__, "__version__"]

"""galampi: deep reinforcement learning by gossip between MPI ranks."""

from importlib.metadata import version

__version__ = version("galampi")

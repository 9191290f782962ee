"""Paths as users write them, where no shell has seen them."""

from __future__ import annotations

from pathlib import Path


def expanded(path: Path | str) -> Path:
    """Return a path whose `~` at its start is the home folder; what is no user of this system stays as it is."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)

"""Streams that lead nowhere from now on."""

import os
from contextlib import suppress
from typing import Protocol


class _HasFile(Protocol):
    def fileno(self) -> int: ...


def lead_nowhere(stream: _HasFile) -> None:
    """Let what is written to a stream be lost, and what it still holds; one without a file stays as it is."""
    with suppress(AttributeError, OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)

"""Imports of what is heavy."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def heavy_imports() -> Iterator[None]:
    """Let the imports inside be undisturbed by the garbage collector, which also leaves what they made alone later.

    The import of torch makes hundreds of thousands of objects, all of which stay: looking for garbage among them took a
    quarter of its time.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()

"""Memory of a rank: what it may ask for, and that it keeps what it has.

Owns the check against what this machine has free, and how the C library's allocator is set. Knows no tensors.
"""

from __future__ import annotations

import ctypes

import psutil

from galampi.errors import UserError

# From malloc.h of the GNU C library, whose allocator maps blocks above the second limit, at most 32 MiB.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_MOST_KEPT_BYTES = 32 << 20
_NEVER_TRIM = 2**31 - 1


def require_memory(needed_bytes: int, keys: str) -> None:
    """Refuse what this machine's free memory cannot hold; `keys` names the settings that ask for it.

    Raises:
        UserError: It does not fit.
    """
    free_bytes = psutil.virtual_memory().available
    if needed_bytes > free_bytes:
        raise UserError(f"{keys}: needs about {needed_bytes >> 20} MiB of memory; {free_bytes >> 20} MiB are free")


def keep_freed_memory() -> bool:
    """Keep freed memory for the next use, instead of handing it back to the system.

    The gradients of every update are freed and asked for anew. Each time the system must clear the pages: that was
    3,600 page faults, a tenth of an update. Only the GNU C library's allocator is told; others are left alone.

    Returns:
        Whether the allocator was told.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _MOST_KEPT_BYTES)) and bool(mallopt(_M_TRIM_THRESHOLD, _NEVER_TRIM))

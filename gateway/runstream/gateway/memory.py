"""Memory that a service has freed goes back to the system: glibc is told so once, at its start."""

from __future__ import annotations

import ctypes

__all__ = ["keep_memory_whole"]

M_MMAP_THRESHOLD, M_MMAP_MAX = -3, -4
"""glibc's names for what `mallopt` sets."""
LARGE_BYTES = 128 * 2**10
"""A piece of memory that is given back to the system by itself: glibc's own size, before it raises that."""
MOST_LARGE = 2**15
"""How many of them there may be: half of what Linux allows a process to map; the others lie among the small ones."""


def keep_memory_whole() -> None:
    """Have every large piece of memory given back to the system when it is freed; where glibc is, else nothing.

    By itself glibc does so only until the first one is freed: from then on pieces as large as that lie among all
    others. Large chunks that come, and wait for readers who are slow, then leave holes that the next do not fit into:
    twice what is held, and never given back.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)
        mallopt(M_MMAP_MAX, MOST_LARGE)

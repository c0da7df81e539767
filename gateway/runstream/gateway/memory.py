"""What Python and glibc are told of a service's memory, once: what is freed goes back, and what stays is let be."""

from __future__ import annotations

import ctypes
import gc

__all__ = ["keep_memory_whole", "keep_what_is_there"]

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


def keep_what_is_there() -> None:
    """Have the garbage collector pass over all that a service is made of: call it once the service is ready.

    Modules, schemas and settings are a hundred thousand objects and more, which stay as they are until the process
    ends. A full collection looks at each of them, and nobody is served meanwhile: without this it is what the slowest
    of many readers wait for. What is made from now on is collected as ever.
    """
    gc.collect()
    gc.freeze()

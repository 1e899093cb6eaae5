"""Memory that results leave behind when they are freed."""

from __future__ import annotations

import ctypes
import os

# options of glibc's mallopt(3)
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_MOST_KEPT = (1 << 31) - 1  # the largest that it takes
_LARGEST = 1 << 30


def keep_freed_memory() -> bool:
    """Lets the C library keep the memory of freed tensors for later ones, in this whole process.

    By default glibc returns large freed blocks to the system. The next result is then made of fresh
    pages, each of which costs a page fault and its clearing: about a tenth of the time of a
    detector on the CPU. The commands that run models call this function first. A library should
    leave the choice to the program.

    Blocks of up to 1 GiB are kept, up to 2 GiB at the end of the heap, for allocations of the main
    thread. ``ctypes.CDLL(None).malloc_trim(0)`` returns them.

    Returns:
        Whether the C library can; it is False without glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is None:
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST) and mallopt(_TRIM_THRESHOLD, _MOST_KEPT))

"""Memory that a tensor gives back is kept for the next one.

glibc returns large blocks to the system, so that computing takes its memory anew, page by page, and the system zeroes it.
Here blocks up to 32 MiB are kept (the most that glibc allows), and larger ones come in huge pages, which torch asks for when
its environment says so before it is imported. The first updates of a finetuning gain most, later ones about a tenth
(`benchmarks/allocator.py`).

    keep_freed_memory()                  # before torch is imported; once a process
"""

from __future__ import annotations

import ctypes
import os
import sys

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # names in glibc's malloc.h
KEPT, LARGE = 2**30, 2**25  # bytes: free memory that is held at most; blocks that go back one by one


def keep_freed_memory() -> bool:
    """Whether it was done: on Linux with glibc. What the environment says already stays."""
    if not sys.platform.startswith("linux") or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    try:
        change = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library
        return False
    return bool(change(MMAP_THRESHOLD, LARGE) and change(TRIM_THRESHOLD, KEPT))

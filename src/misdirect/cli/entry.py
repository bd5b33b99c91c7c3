"""The program's entry point. It imports next to nothing, so that a signal is one line from the first moment on."""

from __future__ import annotations

import ctypes
import io
import os
import signal
import sys
from collections.abc import Sequence

from misdirect.interrupts import SIGNALS, interruptible

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # names in glibc's malloc.h
KEPT, LARGE = 2**30, 2**25  # bytes: free memory that is held at most; blocks that go back one by one


def keep_freed_memory() -> bool:
    """Memory that a tensor gives back is kept for the next one; to be called before torch is imported, once a process.

    Returns whether it was done: on Linux with glibc. What the environment says already stays. glibc returns large blocks to
    the system, so that computing takes its memory anew, page by page, and the system zeroes it. Here blocks up to 32 MiB are
    kept (the most that glibc allows), and larger ones come in huge pages, which torch asks for when its environment says so.
    The first updates of a finetuning gain most, later ones about a tenth (`benchmarks/allocator.py`).
    """
    if not sys.platform.startswith("linux") or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    try:
        change = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library
        return False
    return bool(change(MMAP_THRESHOLD, LARGE) and change(TRIM_THRESHOLD, KEPT))


def entry(argv: Sequence[str] | None = None) -> None:
    """The program: from here on no signal is a traceback, not even while modules are imported."""

    def verb() -> int:
        keep_freed_memory()
        from misdirect.cli.main import main

        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # what it cannot spell, such as an odd byte of a path, is escaped
                stream.reconfigure(errors="backslashreplace")
        return main(argv)

    code = interruptible(verb)
    for number in SIGNALS:  # while Python cleans up, a signal ends it silently
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    sys.exit(code)

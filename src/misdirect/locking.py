"""One writer a folder: an advisory lock on a file in it, which names its holder and ends with its process.

The kernel lets the lock go when the process ends, however it ends, so a killed run never blocks the next one. Readers
take no lock: every file is complete from the moment it has its name.

In use:

    with held(Path("runs/mine")):
        ...                                # a second process gets a ValueError that says who is at work

Where there are no such locks (Windows, some network file systems) nothing is guarded.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
LONGEST = 120  # characters of the holder's command that are shown

_held: dict[tuple[int, int, str], int] = {}  # (process, thread, folder) -> how often it is held


@contextmanager
def held(folder: Path, wait: Callable[[str], None] | None = None) -> Iterator[bool]:
    """Holds the lock of a folder, made if need be; yields whether this is the outermost hold of this thread.

    Nested holds of one thread count as one. Raises ValueError where the folder may not be written to, and where another
    process or thread holds it; with `wait` that one is waited for, once `wait` was told who it is.
    """
    key = (os.getpid(), threading.get_ident(), os.path.realpath(folder))
    handle = None if key in _held else take(folder, wait)
    _held[key] = _held.get(key, 0) + 1
    try:
        yield handle is not None
    finally:
        _held[key] -= 1
        if not _held[key]:
            del _held[key]
        if handle is not None:
            with suppress(OSError):  # removed while it is held, so that nobody removes another's
                (folder / LOCK).unlink()
            os.close(handle)


def take(folder: Path, wait: Callable[[str], None] | None = None) -> int:
    """The handle that holds the lock. Its file says who has it."""
    path = folder / LOCK
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0), 0o644)
        except OSError as error:
            raise ValueError(
                f"{folder} cannot be written to: {error.strerror}; expected a folder that takes files"
            ) from None
        try:
            if locked(handle, folder, wait) and not is_file(handle, path):
                os.close(handle)  # its holder removed it between our opening and locking it
                continue
            with suppress(OSError):  # a full disk: held all the same
                os.ftruncate(handle, 0)
                os.pwrite(handle, json.dumps(myself()).encode(), 0)
        except BaseException:
            with suppress(OSError):
                os.close(handle)
            raise
        return handle


def locked(handle: int, folder: Path, wait: Callable[[str], None] | None) -> bool:
    """Whether the file system took the lock. Raises ValueError where another holds it and is not waited for."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        busy = f"{folder} is being written to by {holder(handle)}"
        if wait is None:
            raise ValueError(f"{busy}; expected that to end first, or another folder") from None
        wait(f"{busy}; waiting for it")
        fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError:  # a file system without locks
        return False
    return True


def is_file(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.lstat())
    except FileNotFoundError:
        return False


def myself() -> dict[str, Any]:
    """Who holds a lock, for the one who waits for it."""
    return {
        "pid": os.getpid(),
        "host": platform.node(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "command": shlex.join(["misdirect", *sys.argv[1:]]),
    }


def holder(handle: int) -> str:
    """Who holds the lock of this file, in words."""
    try:
        found = json.loads(os.pread(handle, 65536, 0))
        command = found["command"] if len(found["command"]) <= LONGEST else found["command"][:LONGEST] + "..."
        return f"process {found['pid']} on {found['host']} since {found['since']} ({command})"
    except (OSError, ValueError, TypeError, LookupError):  # it has only just begun
        return "another process"

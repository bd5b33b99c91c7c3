"""Files that are complete or absent, one writer a folder, and room on the disk.

    with held(Path("runs/mine")):                     # a second process gets a ValueError that says who is at work
        require_room(Path("runs/mine"), 2_000_000_000, "the run's checkpoints")
        write_json(Path("runs/mine/summary.json"), rows)

A file has its name from the moment it is complete. The lock is an advisory one on a file in the folder, which names its
holder; the kernel lets it go when the process ends, however it ends, so a killed run never blocks the next one. Readers
take no lock. Where there are no such locks (some network file systems) nothing is guarded.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from misdirect.text import shown, size

if TYPE_CHECKING:
    from filelock import FileLock

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # of a file system: some network ones
LOCK = ".lock"
LONGEST = 120  # characters of the holder's command that are shown


@contextmanager
def held(folder: Path, wait: Callable[[str], None] | None = None) -> Iterator[bool]:
    """Holds the lock of a folder, made if need be; yields whether this is the outermost hold of this thread.

    Nested holds of one thread count as one. Raises ValueError where the folder may not be written to, and where another
    process or thread holds it; with `wait` that one is waited for, once `wait` was told who it is.
    """
    lock = lock_of(folder)
    outermost = not lock.is_locked
    take(lock, folder, wait)
    try:
        yield outermost
    finally:
        if outermost:
            with suppress(OSError):  # removed while it is held, so that nobody removes another's
                os.unlink(lock.lock_file)
        lock.release()


def lock_of(folder: Path) -> FileLock:
    """One object a path, which counts the holds of each thread."""
    from filelock import FileLock

    path = Path(os.path.realpath(folder), LOCK)
    return FileLock(path, timeout=0, is_singleton=True, fallback_to_soft=False, on_acquired=sign)


def take(lock: FileLock, folder: Path, wait: Callable[[str], None] | None) -> None:
    from filelock import Timeout

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        busy = f"{folder} is being written to by {holder(Path(lock.lock_file))}"
        if wait is None:
            raise ValueError(f"{busy}; expected that to end first, or another folder") from None
        wait(f"{busy}; waiting for it")
        lock.acquire(timeout=-1)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise ValueError(
                f"{folder} cannot be written to: {error.strerror}; expected a folder that takes files"
            ) from None


def sign(handle: int) -> None:
    """Writes into the lock's file who holds it, for the one who waits."""
    who = {
        "pid": os.getpid(),
        "host": platform.node(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "command": shlex.join(["misdirect", *sys.argv[1:]]),
    }
    with suppress(OSError):  # a full disk: held all the same
        os.truncate(handle, 0)
        os.write(handle, json.dumps(who).encode())


def holder(path: Path) -> str:
    """Who holds the lock with this file, in words."""
    try:
        found = json.loads(path.read_bytes())
        command = found["command"] if len(found["command"]) <= LONGEST else found["command"][:LONGEST] + "..."
        return f"process {found['pid']} on {found['host']} since {found['since']} ({command})"
    except (OSError, ValueError, TypeError, LookupError):  # it has only just begun
        return "another process"


def is_full(error: BaseException) -> bool:
    """Whether a disk or a quota is full; safetensors says so in words alone."""
    if isinstance(error, OSError):
        return error.errno in FULL
    return any(f"(os error {number})" in str(error) for number in FULL)


def require_room(folder: Path, num_bytes: int, what: str) -> None:
    """Raises ValueError where the disk of `folder`, or of the nearest folder above that exists, has too little space."""
    place = next((path for path in (folder, *folder.absolute().parents) if path.exists()), folder)
    with suppress(OSError):  # a file system that does not say
        free = shutil.disk_usage(place).free
        if free < num_bytes:
            raise ValueError(
                f"{folder} has {size(free)} of space and {what} takes {size(num_bytes)}; expected that much, or another folder"
            )


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that becomes `path` when the block ends well and vanishes when it does not.

    Raises ValueError where the disk is full, the folder may not be written to, or `path` is a device; what was at `path`
    stays.
    """
    if path.exists() and not (
        path.is_symlink() or path.is_file() or path.is_dir()
    ):  # root may put a file in the place of /dev/null
        raise ValueError(f"{path} is not a file; expected a file or nothing there")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name[:200]}.", suffix=".part", dir=path.parent)
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror}; expected a folder that takes files") from None
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except Exception as error:
        if is_full(error):
            raise ValueError(
                f"{path} does not fit on the disk; expected space there and the same command again"
            ) from None
        if path.is_dir():
            raise ValueError(f"{path} is a folder; expected a file or nothing there") from None
        raise
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_text(path: Path, text: str) -> None:
    """A file that holds this text already is left alone, so that its time says when it came to be."""
    data = text.encode("utf-8", "backslashreplace")  # a lone surrogate, of a path or a text, as JSON writes it
    if path.is_file() and path.read_bytes() == data:
        return
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, data: Any) -> None:
    """Indented JSON; NaN and infinity have no JSON form and become null."""
    write_text(path, json.dumps(finite(data), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def finite(data: Any) -> Any:
    if isinstance(data, float):
        return data if data - data == 0 else None
    if isinstance(data, Mapping):
        return {str(key): finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [finite(value) for value in data]
    return data


def json_form(data: Mapping[str, Any]) -> dict[str, Any]:
    """What comes back when `data` is written and read."""
    return json.loads(json.dumps(finite(dict(data))))


def read_json(path: Path) -> Any:
    """Raises ValueError with the path where the file is missing or not JSON."""
    require_file(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError(f"{path} cannot be read: it is nested too deeply") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None


def require_file(path: Path) -> None:
    """Raises ValueError for a device, a pipe, a folder: who reads those may wait, or read, for ever."""
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} cannot be read: it is not a file")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def fingerprint(texts: Iterable[str]) -> str:
    """SHA-256 over texts and their borders: two data sets are the same when this is."""
    digest = hashlib.sha256()
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def writable(out: str | Path) -> Path:
    """The output folder, made if need be. Raises ValueError where it cannot be one."""
    try:
        path = Path(out).expanduser()
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError, RuntimeError) as error:  # not allowed, a null character, no such home folder
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"--out {shown(out)} cannot be a folder: {reason}; expected a folder to write to") from None
    return path


def require_new(path: Path, flag: str = "--out") -> None:
    """Raises ValueError where there is something at `path`."""
    if path.is_symlink() or (path.exists() and not (path.is_dir() and not any(path.iterdir()))):
        raise ValueError(f"{path} is there already; expected a new folder for {flag}")

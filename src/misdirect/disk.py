"""Space on a disk: whether there is enough before something slow begins, and which errors say that there was not.

require_room(Path("runs/mine"), 2_000_000_000, "the run's checkpoints")
"""

from __future__ import annotations

import errno
import shutil
from contextlib import suppress
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


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


def size(num_bytes: int | float) -> str:
    """`1.5 GB`; decimal units, as disks are sold."""
    for unit in ("bytes", "kB", "MB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} GB"

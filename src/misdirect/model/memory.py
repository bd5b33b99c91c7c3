"""Free memory of the device, the machine or the container."""

from __future__ import annotations

import torch


def free_bytes(device: torch.device) -> int:
    """Free memory where the model goes: of the GPU, else of this machine (or of the container that this is)."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    import psutil  # type: ignore[import-untyped]

    return min(int(psutil.virtual_memory().available), container_bytes())


def container_bytes() -> int:
    """What a control group leaves of its memory limit; without one, more than any machine has."""
    from pathlib import Path

    folder = Path("/sys/fs/cgroup")
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            return max(0, int((folder / limit).read_text()) - int((folder / used).read_text()))
        except (OSError, ValueError):  # none, or "max"
            continue
    return 2**62

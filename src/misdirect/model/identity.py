"""Hashes that tell models apart: is this the model that a run was made from?"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch

from misdirect import runs, storage
from misdirect.model.lm import LM
from misdirect.model.load import resolve_source


def check_same_base(lm: LM, run: Path) -> None:
    """Raises ValueError where the weights behind the run's MODEL are no longer those that it was made from."""
    config = storage.read_json(run / runs.CONFIG)
    if str(next(lm.model.parameters()).dtype) != config["data"].get("dtype"):
        return  # other bits, the same model: the hash says nothing
    if model_hash(lm, config["chosen"]["block"]) != config["data"]["model_sha256"]:
        raise ValueError(f"{lm.source} has other weights than {run} was made from; expected the same model")


def weights_hash(lm: LM) -> str:
    """SHA-256 over every parameter's name, dtype and bits."""
    digest = hashlib.sha256()
    for name, p in lm.model.named_parameters():
        digest.update(f"{name} {p.dtype}".encode())
        digest.update(p.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def model_hash(lm: LM, last: int) -> str:
    """SHA-256 over the names, shapes and bits of blocks 0..last, all that RMU reads: the model that was really used."""
    digest = hashlib.sha256()
    for index, block in enumerate(lm.blocks[: last + 1]):
        for name, value in block.named_parameters():
            digest.update(f"{index}.{name} {tuple(value.shape)} {value.dtype}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def files_of(model: str | Path) -> dict[str, Any]:
    """Sizes and times of a model folder's own files; empty for what is not a folder."""
    folder = Path(resolve_source(str(model))).expanduser()
    stats = {path.name: path.stat() for path in sorted(folder.iterdir()) if path.is_file()} if folder.is_dir() else {}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}


def changed_files(then: Any, model: str) -> list[str]:
    """Files of a model's folder that numbers depend on and that have another size or time than `then`, as it was stored."""
    now = files_of(model) if isinstance(then, dict) and model != "demo" else {}
    read = (".safetensors", ".bin", ".json", ".model", ".jinja", ".txt", ".py")
    return sorted(
        n for n in (then.keys() | now.keys() if now else ()) if n.endswith(read) and then.get(n) != now.get(n)
    )

"""A checkpoint with some tensors changed, file by file: what holds none of them is linked, the others are copied and patched.

safetensors keeps every tensor's bytes at an offset that the file's head names. A tensor of the same dtype and shape has as many
bytes, so that a copy needs nothing but new bytes at that place: no shard is ever in memory, and its layout, metadata and
other tensors stay bit for bit.

    placed = place(values, stored, prefix)             # tensors under the checkpoint's own names
    patch(stored, placed, Path("new"))                 # the files that hold them are rewritten, all others are hard links
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from misdirect.model.stored import INDEX, SINGLE, Stored, header

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
SIZES = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
# Files beside the weights that make a checkpoint; other weights, adapters, notes and pictures are left where they are.
BESIDE = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "*.py", "vocab*", "LICENSE*", "NOTICE*", "USE_POLICY*")
NOT_BESIDE = re.compile(
    r"adapter_.*|.*\.index\.json|trainer_state\.json|training_args.*|source\.json|env\.json|summary\.json|audit\.json"
)


class Placed(NamedTuple):
    """A tensor of a checkpoint that changes: where it lies, and its new values in the dtype that is stored there."""

    file: Path
    value: Tensor


def place(
    values: Mapping[str, Tensor], stored: Stored, prefix: str, dtype: torch.dtype | None = None
) -> dict[str, Placed] | None:
    """Every tensor under its name in the files, with or without the class's own prefix, in `dtype` or that of the files.

    None where one is not there.
    """
    held = {name: (file, dtype, shape) for file in stored.files for name, (dtype, shape) in header(file).items()}
    found = {}
    for name, value in values.items():
        names = (name, name.removeprefix(f"{prefix}."), f"{prefix}.{name}")
        own = next((n for n in names if n in held and held[n][2] == tuple(value.shape)), None)
        if own is None or held[own][1] not in DTYPES:
            return None
        found[own] = Placed(held[own][0], value.to(dtype or DTYPES[held[own][1]]).contiguous())
    return found


def offsets(file: Path) -> tuple[int, Mapping[str, Any]]:
    """(where the tensors' bytes begin, the head)."""
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        return 8 + length, json.loads(opened.read(length))


def as_bytes(value: Tensor) -> bytes:
    return value.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def link(file: Path, to: Path) -> bool:
    """A hard link to what the path leads to; a copy where the file system has none, or it is another one. Whether it is one."""
    try:
        os.link(file.resolve(), to)
    except OSError:
        shutil.copyfile(file, to)
        return False
    return True


class Patched(NamedTuple):
    tensors: int  # that changed
    files: int  # that were rewritten
    linked: int


def differing(file: Path, placed: Mapping[str, Placed]) -> dict[str, bytes]:
    """The tensors of a file that change, with their new bytes."""
    start, head = offsets(file)
    found = {}
    with file.open("rb") as opened:
        for name, each in placed.items():
            if each.file == file:
                begin, end = head[name]["data_offsets"]
                data = as_bytes(each.value)
                assert len(data) == end - begin
                opened.seek(start + begin)
                if opened.read(end - begin) != data:
                    found[name] = data
    return found


def patch(stored: Stored, placed: Mapping[str, Placed], folder: Path) -> Patched:
    """The weights with the placed tensors in them, under the files' own names."""
    count = Patched(0, 0, 0)
    for file in stored.files:
        own = differing(file, placed)
        if not own:
            count = count._replace(linked=count.linked + link(file, folder / file.name))
            continue
        count = count._replace(tensors=count.tensors + len(own), files=count.files + 1)
        shutil.copyfile(file, folder / file.name)
        start, head = offsets(file)
        with (folder / file.name).open("r+b") as opened:
            for name, data in own.items():
                opened.seek(start + head[name]["data_offsets"][0])
                opened.write(data)
            opened.flush()
            os.fsync(opened.fileno())
    if stored.index_file:
        shutil.copyfile(stored.index_file, folder / stored.index_file.name)
    return count


def repack(
    stored: Stored,
    placed: Mapping[str, Placed],
    folder: Path,
    dtype: torch.dtype | None,
    most: int | None,
    advance: Callable[[int], object] = lambda n: None,
) -> None:
    """The same in files of at most `most` bytes, numbers in `dtype` where one is named; a shard at a time is in memory."""
    from safetensors.torch import save_file

    shards: list[list[tuple[Path, str]]] = [[]]
    sizes = [0]
    for file, name, size in entries(stored, dtype):
        if most and shards[-1] and sizes[-1] + size > most:
            shards.append([])
            sizes.append(0)
        shards[-1].append((file, name))
        sizes[-1] += size
    names = (
        [SINGLE]
        if len(shards) == 1
        else [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    )
    for shard, name in zip(shards, names, strict=True):
        save_file(dict(tensors(shard, placed, dtype)), folder / name, {"format": "pt"})
        advance(len(shard))
    if len(shards) > 1:
        places = {tensor: name for shard, name in zip(shards, names, strict=True) for _, tensor in shard}
        content = {"metadata": {"total_size": sum(sizes)}, "weight_map": places}
        (folder / INDEX).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def entries(stored: Stored, dtype: torch.dtype | None) -> Iterator[tuple[Path, str, int]]:
    """Every tensor of a checkpoint once, with the bytes that it will take."""
    seen: set[str] = set()
    for file in stored.files:
        _, head = offsets(file)
        for name, about in head.items():
            if name != "__metadata__" and name not in seen:
                seen.add(name)
                size = about["data_offsets"][1] - about["data_offsets"][0]
                own = DTYPES.get(about["dtype"])
                yield file, name, size * dtype.itemsize // own.itemsize if dtype and own else size


def tensors(
    shard: list[tuple[Path, str]], placed: Mapping[str, Placed], dtype: torch.dtype | None
) -> Iterator[tuple[str, Tensor]]:
    from safetensors import safe_open

    for file, name in shard:
        if name in placed:
            value = placed[name].value
        else:
            with safe_open(file, "pt") as opened:
                value = opened.get_tensor(name)
        yield name, value.to(dtype) if dtype and value.dtype in DTYPES.values() else value


def num_tensors(stored: Stored) -> int:
    return sum(1 for _ in entries(stored, None))


def copy_beside(source: Path, folder: Path) -> None:
    """Config, tokenizer, templates, license and code of a model folder; nothing that is there already."""
    for pattern in BESIDE:
        for file in sorted(source.glob(pattern)):
            if file.is_file() and not NOT_BESIDE.fullmatch(file.name) and not (folder / file.name).exists():
                shutil.copyfile(file, folder / file.name)
    for templates in (
        path for path in (source / "chat_templates", source / "additional_chat_templates") if path.is_dir()
    ):
        shutil.copytree(templates, folder / templates.name, dirs_exist_ok=True)


def parse_size(text: str) -> int:
    """Bytes of `5GB`, `500MB`. Raises ValueError for anything else."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?B?)\s*", text.upper())
    unit = found[2] if found else ""
    size = int(float(found[1]) * SIZES.get(unit, SIZES.get(unit + "B", 0))) if found else 0
    if size < 1:
        raise ValueError(f"--max-shard-size {text!r} is not a size; expected one such as 5GB or 500MB")
    return size

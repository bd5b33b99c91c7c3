"""What a model folder holds, read from the headers of its files: which are read, under which names, and what is odd.

transformers picks one of several checkpoints in a folder without a word, drops an adapter's matrices, and casts quantized
codes to numbers where the config has lost its mark. `check_weights` says or refuses it before anything is loaded:

    stored = check_weights(folder, allow_pickle=False)
    with readable(folder, stored) as path:
        model = AutoModelForCausalLM.from_pretrained(path, key_mapping=stored.renames)
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from misdirect.model import sources
from misdirect.model.delta import file_problem, shown
from misdirect.progress import note_once
from misdirect.text import first_line

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLE, PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", PICKLE_INDEX, "consolidated*.pth")
QUANTIZED = {"quantization_config", "compression_config"}  # where a config says that its weights are
FLOATS = ("F64", "F32", "F16", "BF16")

# Put into a name by torch's wrappers, at any depth: the tensor is the same.
WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_forward_module.")
# Put before every name: by DataParallel and DistributedDataParallel, and by PEFT.
LEADING = ("module.", "base_model.model.")
ADAPTER = re.compile(
    r"\.(lora_[A-Za-z_]+|base_layer|modules_to_save|ia3_l|vera_lambda_\w|hada_w\d_\w|oft_R|boft_\w+)(\.|$)"
)


class Stored(NamedTuple):
    """What a folder holds, from headers alone. `tensors`: name without wrapping prefixes -> (dtype, shape)."""

    files: tuple[Path, ...] = ()
    tensors: Mapping[str, tuple[str, tuple[int, ...]]] = {}
    renames: Mapping[str, str] = {}  # for from_pretrained's key_mapping
    index_file: Path | None = None
    bare: bool = False  # the index has no metadata, which transformers asks for


def read_config(folder: Path) -> dict[str, Any]:
    """config.json as it is written. Raises ValueError where it is not JSON."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{folder / 'config.json'} is not JSON: {first_line(error)}") from None
    return config if isinstance(config, dict) else {}


def refuse_remote_code(folder: Path) -> None:
    config = read_config(folder)
    if problem := sources.foreign_config(str(folder), config):
        raise ValueError(problem)
    if config.get("auto_map"):
        raise ValueError(
            f"{folder} wants to run its own code (auto_map in config.json), which is refused; "
            "expected an architecture of transformers, or --trust-remote-code if you have read that code"
        )


def check_weights(folder: Path, allow_pickle: bool) -> Stored:
    """The files that transformers reads out of a local folder, and the names in them.

    Raises ValueError where there are none, where one is damaged, or where they cannot mean what the config says.
    """
    files, index, bare = weight_files(folder, allow_pickle)
    for file in files:
        problem = file_problem(file) if file.suffix == ".safetensors" else None
        if problem:
            raise ValueError(f"{file} is damaged or cut short ({problem}); fetch it again")
    say_unread(folder, files, index)
    held = {file: header(file) for file in files}
    refuse_repeated(held)
    raw = {name: value for tensors in held.values() for name, value in tensors.items()}
    refuse_adapter(folder, raw)
    refuse_unmarked(folder, raw)
    renames, tensors = unwrapped(folder, raw)
    return Stored(files, tensors, renames, index, bare)


def weight_files(folder: Path, allow_pickle: bool) -> tuple[tuple[Path, ...], Path | None, bool]:
    """(files that transformers reads, their index, whether it lacks metadata), in transformers' own order of preference."""
    named = read_config(folder).get("transformers_weights")
    names = [named] if isinstance(named, str) else [SINGLE, INDEX, *([PICKLE, PICKLE_INDEX] if allow_pickle else [])]
    chosen = next((folder / name for name in names if (folder / name).is_file()), None)
    if chosen is None:
        raise ValueError(no_weights(folder, allow_pickle))
    if chosen.suffix != ".json":
        for unread in (i for i in (INDEX, PICKLE_INDEX) if (folder / i).is_file() and chosen.name in (SINGLE, PICKLE)):
            read_index(folder / unread)
        return (chosen,), None, False
    shards, bare = read_index(chosen)
    return tuple(folder / name for name in shards), chosen, bare


def no_weights(folder: Path, allow_pickle: bool) -> str:
    """What to say of a folder in which transformers finds nothing to read."""
    odd = sorted(p.name for p in folder.glob("*.safetensors") if not p.name.startswith("adapter_"))
    if len(odd) > 1 and any(re.search(r"-of-\d+", name) for name in odd):
        return f"{folder} holds {odd[0]} and {len(odd) - 1} more without the list of them; expected {INDEX} beside them"
    if odd:
        return f"{folder} holds {odd[0]} but no {SINGLE}, the name that is read; rename the file that is meant"
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".ckpt"))
    if pickles and allow_pickle:
        return f"{folder} holds {pickles[0]} but no {PICKLE}, the name that is read; rename the file that is meant"
    if pickles:
        return (
            f"{folder} holds only pickle checkpoints ({pickles[0]}), which can run code when loaded; "
            "expected safetensors, or --allow-pickle if you trust its author"
        )
    other = sources.other_weights(folder)
    return f"{folder}: {other}" if other else f"{folder} holds no weights; expected *.safetensors"


def read_index(index: Path) -> tuple[list[str], bool]:
    """(the files that an index names, whether it lacks metadata).

    Raises ValueError for what is not a list of weight files, or names a file outside the folder or one that is not there.
    """
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        names = sorted({str(name) for name in content["weight_map"].values()})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
        raise ValueError(
            f"{index} is not a list of weight files ({shown(first_line(error))}); fetch it again"
        ) from None
    if not names:
        raise ValueError(f"{index} names no file; fetch it again")
    for name in names:
        if name != Path(name).name or not (index.parent / name).is_file():
            raise ValueError(f"{index} names {shown(name)}, which is no file in that folder; fetch it again")
    return names, not isinstance(content.get("metadata"), dict)


def say_unread(folder: Path, files: Sequence[Path], index: Path | None) -> None:
    """Says which weights are read where the folder holds others too: an old file beside a newer one is easily taken for it."""
    there = {path for pattern in WEIGHTS for path in folder.glob(pattern) if not path.name.startswith("adapter_")}
    unread = sorted(path.name for path in there - {*files, *([index] if index else [])})
    if unread:
        read = index.name if index else files[0].name
        more = f" and {len(unread) - 1} more" if len(unread) > 1 else ""
        note_once(f"{folder}: {read} is read; {unread[0]}{more} beside it is not. Remove what is not meant")


def header(file: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """name -> (dtype, shape), without the numbers."""
    if file.suffix == ".safetensors":
        with file.open("rb") as opened:
            content = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
        return {n: (v["dtype"], tuple(v["shape"])) for n, v in content.items() if n != "__metadata__"}
    try:
        content = torch.load(file, map_location="meta", weights_only=True)
        found = {n: (dtype_name(v.dtype), tuple(v.shape)) for n, v in content.items() if isinstance(v, Tensor)}
    except Exception as error:  # whatever pickle raises for a file that is none
        raise ValueError(f"{file} is not a checkpoint that can be read: {shown(first_line(error))}") from None
    inner = next((key for key, value in content.items() if isinstance(value, dict)), None)
    if not found and inner is not None:
        raise ValueError(
            f"{file} keeps its tensors under {shown(repr(inner))}; expected them at the top: "
            f"torch.save(torch.load(file)[{shown(repr(inner))}], file)"
        )
    return found


def dtype_name(dtype: torch.dtype) -> str:
    """safetensors' name of a dtype, as far as it matters here."""
    name = str(dtype).removeprefix("torch.").upper()
    return name.replace("BFLOAT", "BF").replace("FLOAT", "F").replace("UINT", "U").replace("INT", "I")


def refuse_repeated(held: Mapping[Path, Mapping[str, Any]]) -> None:
    """Raises ValueError where two files that are read hold a tensor of one name and different numbers: which is meant?"""
    owner: dict[str, Path] = {}
    for file, tensors in held.items():
        for name in tensors:
            first = owner.setdefault(name, file)
            if first != file and not same_tensor(first, file, name):
                raise ValueError(
                    f"{shown(name)} is in {first.name} and, with other numbers, in {file.name} of {file.parent}; "
                    "expected shards of one checkpoint: fetch it again"
                )


def same_tensor(a: Path, b: Path, name: str) -> bool:
    from safetensors import safe_open

    if ".safetensors" not in (a.suffix, b.suffix):
        return torch.equal(*(torch.load(file, map_location="cpu", weights_only=True)[name] for file in (a, b)))
    with safe_open(a, "pt") as one, safe_open(b, "pt") as other:
        return torch.equal(one.get_tensor(name), other.get_tensor(name))


def refuse_adapter(folder: Path, names: Collection[str]) -> None:
    """Raises ValueError for weights with an adapter's matrices still beside them."""
    found = sorted(name for name in names if ADAPTER.search(name))
    if found:
        raise ValueError(
            f"{folder} holds {len(found)} tensors of an adapter that is not merged, such as {shown(found[0])}; "
            "merge it (PEFT's merge_and_unload) and save again"
        )


def refuse_unmarked(folder: Path, tensors: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
    """Raises ValueError for quantized matrices where the config does not say so: they would be read without their scales."""
    config = read_config(folder)
    if any(isinstance(c, dict) and QUANTIZED & c.keys() for c in (config, *config.values())):
        return
    found = sorted(n for n, (dtype, shape) in tensors.items() if is_codes(n, dtype, shape))
    if found:
        raise ValueError(
            f"{folder} holds {shown(found[0])} as {tensors[found[0]][0]}, quantized, and config.json has no "
            "quantization_config; fetch config.json again"
        )


def is_codes(name: str, dtype: str, shape: Sequence[int]) -> bool:
    return name.endswith("weight") and len(shape) > 1 and dtype not in (*FLOATS, "BOOL", "I64")


def uneven(names: Collection[str]) -> str:
    """A matrix that one expert lacks and others of its block have, or nothing: transformers stacks them and then fails."""
    experts: dict[str, dict[str, set[int]]] = {}  # block -> matrix -> experts that have it
    for name in names:
        found = re.fullmatch(r"(.*\.experts)\.(\d+)\.(.*)", name)
        if found:
            experts.setdefault(found[1], {}).setdefault(found[3], set()).add(int(found[2]))
    gaps = (
        f"{block}.{number}.{matrix}"
        for block, matrices in experts.items()
        for matrix, held in matrices.items()
        for number in sorted(set().union(*matrices.values()) - held)
    )
    return next(gaps, "")


def unwrapped(
    folder: Path, raw: Mapping[str, tuple[str, tuple[int, ...]]]
) -> tuple[dict[str, str], dict[str, tuple[str, tuple[int, ...]]]]:
    """(renames for transformers, tensors under their plain names), with what wrappers put before names taken off.

    Raises ValueError where two tensors would have one name.
    """
    times = {w: max((f".{n}".count(f".{w}") for n in raw), default=0) for w in WRAPPERS}
    # transformers replaces a pattern once a name; a comment makes several patterns of one
    renames = {f"{re.escape(w)}(?#{i})": "" for w in WRAPPERS for i in range(times[w])}
    plain = {n: functools.reduce(lambda name, w: name.replace(w, ""), WRAPPERS, n) for n in raw}
    taken = [w for w in WRAPPERS if times[w]]
    while leading := next((p for p in LEADING if plain and all(n.startswith(p) for n in plain.values())), None):
        plain = {n: value.removeprefix(leading) for n, value in plain.items()}
        taken.append(leading)
    start = "".join(p for p in taken if p in LEADING)
    if start:
        renames["^" + re.escape(start)] = ""
    tensors = {plain[n]: value for n, value in raw.items()}
    if len(tensors) < len(raw):
        raise ValueError(f"{folder} holds some tensors twice, with {' and '.join(taken)} in the name and without")
    if taken:
        note_once(f"{folder}: {' and '.join(taken)} in the tensors' names is taken off")
    return renames, tensors


@contextlib.contextmanager
def readable(folder: str, stored: Stored) -> Iterator[str]:
    """What to give to from_pretrained: the folder, or for an index without metadata a copy of its small files with one."""
    if not stored.bare or stored.index_file is None:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="misdirect-") as name:
        for file in (*Path(folder).glob("*.json"), *Path(folder).glob("*.py")):
            shutil.copyfile(file, Path(name) / file.name)
        content = json.loads(stored.index_file.read_text(encoding="utf-8"))
        places = {key: str((Path(folder) / value).resolve()) for key, value in content["weight_map"].items()}
        (Path(name) / stored.index_file.name).write_text(json.dumps({"metadata": {}, "weight_map": places}))
        yield name

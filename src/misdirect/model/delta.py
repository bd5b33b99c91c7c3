"""`Delta`: the trained matrices' new values, under their names in the full model. The artifact of an unlearning run.

In use:

    delta = load_delta("runs/demo/delta.safetensors")
    with swapped_in(delta, model):
        ...                                # the unlearned model; outside, the base, bit for bit
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from misdirect.data.files import POINTERS
from misdirect.model import parameters as parts
from misdirect.storage import replacing

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
TOO_LARGE = (
    1e18  # a norm squares: such a value becomes infinity there, every state zero, and every answer as likely as any
)
MAX_NAME = 1000  # the longest tensor names of transformers have about 120 characters


@dataclass(frozen=True)
class Delta:
    """`tensors`: full parameter name, or a part's (`misdirect.model.parameters`) -> new value.

    `metadata`: what made it (flat strings, as safetensors keeps them).
    """

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)


@contextmanager
def swapped_in(delta: Delta, model: nn.Module) -> Iterator[None]:
    """Puts the change into a full model and takes it out again, whatever happens; the bits before and after are equal.

    Raises ValueError where the model has no such parameter or one of another shape.
    """
    parameters = dict(model.named_parameters())
    check_fits(delta, parameters)
    own = {name: parameter.data for name, parameter in parameters.items()}
    # copies: who trains the model inside must not train the delta
    values = {name: value.to(own[parts.base_name(name)], copy=True) for name, value in delta.tensors.items()}
    changed = parts.assign_slices(own, values)
    before = {name: parameters[name].data for name in changed}
    try:
        for name, value in changed.items():
            parameters[name].data = value
        yield
    finally:
        for name, value in before.items():
            parameters[name].data = value


def check_fits(delta: Delta, parameters: Mapping[str, Tensor]) -> None:
    """Raises ValueError where a model with these parameters has none of that name, or one of another shape."""
    for name, value in delta.tensors.items():
        shape = parts.shape_of(parameters, name)
        if shape != tuple(value.shape):
            raise ValueError(
                f"the delta changes {shown(name)} of shape {tuple(value.shape)}, the model has "
                f"{'no such parameter' if shape is None else shape}; expected the model that it was made from"
            )


def shown(text: str) -> str:
    """A name or message out of a file for an error message: one line, of a readable length, whatever the file holds."""
    line = text if len(text) <= 120 else text[:120] + "..."
    return line if line.isprintable() else ascii(line)


def save_delta(delta: Delta, path: Path) -> None:
    save_tensors({name: value.detach().cpu() for name, value in delta.tensors.items()}, path, delta.metadata)


def load_delta(path: Path) -> Delta:
    """Raises ValueError where the file is not a delta: damaged, empty, not of floating point, or not finite."""
    tensors, metadata = load_tensors(path)
    if not tensors:
        raise ValueError(f"{path} holds no tensors; expected the delta of a run")
    for name, value in tensors.items():
        if value.dtype not in FLOATS or value.numel() == 0:
            what = f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
            raise ValueError(f"{path} holds {shown(name)} as {what[:120]}; expected numbers of a floating point dtype")
        if not (value.abs() < TOO_LARGE).all():
            raise ValueError(
                f"{path} holds values of {shown(name)} that are not finite numbers, or too large to compute with; expected "
                "a sound delta"
            )
        parts.parse_index(name)
    return Delta(tensors, metadata)


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """A safetensors file, written beside `path` and renamed: existing means complete."""
    from safetensors.torch import save_file

    with replacing(path) as temporary:
        save_file({n: t.contiguous() for n, t in tensors.items()}, temporary, dict(metadata or {}))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, metadata) of a safetensors file. Raises ValueError where it is missing, damaged or cut short."""
    from safetensors import SafetensorError, safe_open

    problem = file_problem(path)
    if problem:
        raise ValueError(f"{path} is missing, damaged or cut short: {problem}")
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError, RuntimeError) as error:  # torch raises the last for a dtype that it lacks
        raise ValueError(f"{path} is missing, damaged or cut short: {shown(str(error))}") from None


def file_problem(path: Path) -> str | None:
    """What is wrong with a safetensors file, or None.

    safetensors itself checks lengths, offsets, dtypes and shapes; a name given twice or one that cannot be printed is left
    to us. No tensor is read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt"):
            pass
        with Path(path).open("rb") as file:
            pairs = json.loads(file.read(int.from_bytes(file.read(8), "little")), object_pairs_hook=list)
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        return pointer(path) or shown(str(error))
    names = [name for name, _ in pairs]
    odd = next((name for name in names if not name.isprintable() or not 0 < len(name) <= MAX_NAME), None)
    if odd is not None:
        return f"{shown(odd)} is no name of a tensor"
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    return None if twice is None else f"it holds {shown(twice)} twice"


def pointer(path: Path) -> str:
    """That a file only says where its bytes are, as a clone without them holds it, and what fetches them; or nothing."""
    try:
        with Path(path).open("rb") as file:
            head = file.read(64)
    except OSError:
        return ""
    command = next((command for start, command in POINTERS if head.startswith(start)), "")
    return f"it is a pointer to the file, which `{command}` in the folder's clone brings" if command else ""


def largest_change(delta: Delta, model: nn.Module) -> float:
    """The largest absolute difference between the delta's values and the model's own."""
    parameters = dict(model.named_parameters())
    check_fits(delta, parameters)
    own = {name: parts.read(parameters[parts.base_name(name)], name) for name in delta.tensors}
    return max((v.to(own[n]) - own[n]).abs().max().item() for n, v in delta.tensors.items())


def norms(tensors: Mapping[str, Tensor]) -> dict[str, float]:
    return {name: torch.linalg.vector_norm(value.float()).item() for name, value in tensors.items()}

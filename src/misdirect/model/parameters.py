"""Names of parameters and of parts of them, as Python would index them: `mlp.experts.gate_up_proj[0,14336:28672]`.

transformers 5 keeps the experts of a mixture in one 3-D parameter (expert, out, in), so that one expert's matrix, or the
up half of its fused gate and up projection, has no parameter of its own. A part names it. It is trained alone: the replay
gets the whole parameter with that part replaced, and gradients exist for the part only.

    read(block.get_parameter("mlp.experts.down_proj"), "mlp.experts.down_proj[3]")     # expert 3: (D, F)
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor, nn

PART = re.compile(r"(?P<name>[^\[\]]+)\[(?P<index>[^\[\]]*)\]")
Index = tuple[int | slice, ...]


def base_name(name: str) -> str:
    """The parameter behind a name: itself, or what stands before the bracket."""
    return name.split("[", 1)[0]


def parse_index(name: str) -> Index | None:
    """The index of a part's name, or None for a whole parameter. Raises ValueError where it is not an index."""
    if "[" not in name and "]" not in name:
        return None
    found = PART.fullmatch(name)
    items = found["index"].split(",") if found else []
    whole = re.compile(r"\s*(-?\d{1,12})\s*")
    span = re.compile(r"\s*(-?\d{1,12})?\s*:\s*(-?\d{1,12})?\s*")
    index: list[int | slice] = []
    for item in items:
        if one := whole.fullmatch(item):
            index.append(int(one[1]))
        elif some := span.fullmatch(item):
            index.append(slice(*(int(bound) if bound is not None else None for bound in some.groups())))
        else:
            items = []
            break
    if not items:
        raise ValueError(f"{name!r} is no part of a parameter; expected an index such as NAME[0] or NAME[0,80:160]")
    return tuple(index)


def canonical(name: str, shape: tuple[int, ...]) -> str:
    """The one spelling of a part: every bound written out, no sign. Raises ValueError where the part is not inside."""
    index = parse_index(name)
    if index is None:
        return name
    size = "x".join(map(str, shape))
    if len(index) > len(shape):
        raise ValueError(f"{name!r} has {len(index)} indices, the parameter is {size}")
    items = []
    for item, length in zip(index, shape, strict=False):
        if isinstance(item, int):
            if not -length <= item < length:
                raise ValueError(f"{name!r} is outside the parameter, which is {size}")
            items.append(str(item % length))
        else:
            start, stop, _ = item.indices(length)
            if start >= stop:
                raise ValueError(f"{name!r} is an empty part of the parameter, which is {size}")
            items.append(f"{start}:{stop}")
    return f"{base_name(name)}[{','.join(items)}]"


def read(whole: Tensor, name: str) -> Tensor:
    """What `name` stands for: the parameter `whole`, or a view of its part."""
    index = parse_index(name)
    return whole if index is None else whole[index]


def read_from(module: nn.Module, name: str) -> Tensor:
    """The same, the parameter looked up in a module."""
    return read(module.get_parameter(base_name(name)), name)


def assign_slice(whole: Tensor, name: str, value: Tensor) -> Tensor:
    """`whole` with `name` replaced by `value`, as a new tensor, differentiable in `value`; `whole` stays as it is."""
    index = parse_index(name)
    if index is None:
        return value
    changed = whole.clone()  # of a frozen parameter, or of one that holds other parts already
    changed[index] = value
    return changed


def assign_slices(parameters: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole parameters, each with all its parts of `values` put in: parameter name -> new value."""
    result: dict[str, Tensor] = {}
    for name, value in values.items():
        base = base_name(name)
        result[base] = assign_slice(result.get(base, parameters[base]), name, value)
    return result


def shape_of(parameters: Mapping[str, Tensor], name: str) -> tuple[int, ...] | None:
    """The shape of what `name` stands for, or None where there is no such parameter or part."""
    whole = parameters.get(base_name(name))
    if whole is None:
        return None
    try:
        canonical(name, tuple(whole.shape))
    except ValueError:
        return None
    return tuple(read(whole, name).shape)

"""The matrices that write into the residual stream, found by structure, and a direction folded out of them.

A writer's output is added to the residual stream of width D: token and position embeddings, each attention's and each
MLP's output matrix. Width alone does not say it, for a query projection is often D -> D too. One short forward pass does:
a linear map with output width D is a writer where it is the last such map called in the module around it and no other map
reads the very tensor that it reads (queries, keys and values share theirs). Of a layer of fused experts it is the tensor
with D output features and the fewer others (`down_proj`, beside a `gate_up_proj` of twice as many).

    with folded(lm, writers(lm), basis):     # basis (K, D), orthonormal rows: W <- W - Q^T Q W, biases too
        ...                                  # every writer's output is orthogonal to the basis

The model's own tensors are not written to: others stand in their places, and an LM head that shares the embedding's matrix
keeps its own. Where a norm with weights follows a writer (Gemma 2, OLMo 2) what reaches the stream is no longer exactly
orthogonal.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from misdirect.model.activations import block_name
from misdirect.model.blocks import fused_experts, residual_width
from misdirect.model.hooks import hooked
from misdirect.model.lm import LM
from misdirect.model.score import forward


class Writer(NamedTuple):
    """One parameter: its module's name in the model, its own name there, and the axis along which the D outputs lie.

    `block`: the block around it, None outside the blocks.
    """

    module: str
    parameter: str
    axis: int
    block: int | None


class Call(NamedTuple):
    """A linear map or an embedding as the probing pass called it."""

    name: str
    source: int  # identity of the tensor that it read
    done: bool  # whether the last block had run before


def writers(lm: LM) -> list[Writer]:
    """Every writer, in the model's order. Raises ValueError where fused experts do not say which tensor writes."""
    width, around = residual_width(lm.model), block_name(lm.model, lm.blocks)
    modules = dict(lm.model.named_modules())
    calls = called(lm)
    shared = {c.source for c in calls if sum(d.source == c.source and d.name != c.name for d in calls)}
    last = {}  # the module around -> the last map with D outputs called in it
    for call in calls:
        if outputs(modules[call.name]) == width and not call.done:
            last[call.name.rpartition(".")[0]] = call
    found = {c.name for c in last.values() if c.source not in shared or isinstance(modules[c.name], nn.Embedding)}
    # several embeddings side by side (tokens, positions) each write
    found |= {c.name for c in calls if isinstance(modules[c.name], nn.Embedding) and outputs(modules[c.name]) == width}
    kinds = {anonymous(name) for name in found}
    names = [
        n for n, m in modules.items() if anonymous(n) in kinds and outputs(m) == width
    ]  # experts that no token met
    out = []
    for name in names:
        axis = 0 if isinstance(modules[name], nn.Linear) else 1
        out.append(Writer(name, "weight", axis, block_of(name, around)))
        if getattr(modules[name], "bias", None) is not None:
            out.append(Writer(name, "bias", 0, block_of(name, around)))
    for index, block in enumerate(lm.blocks):
        out += [w._replace(module=f"{around}.{index}.{w.module}") for w in expert_writers(block, width, index)]
    return out


def outputs(module: nn.Module) -> int | None:
    """The width of what a linear map or an embedding gives; None for any other module."""
    if isinstance(module, nn.Linear):
        return int(module.out_features)
    if isinstance(module, Conv1D | nn.Embedding):
        return int(module.weight.shape[1])
    return None


def called(lm: LM) -> list[Call]:
    """The linear maps and embeddings of one short forward pass, in order, repeated calls left out."""
    calls: dict[str, Call] = {}
    kept: list[Tensor] = []  # alive, so that no two tensors have one identity
    finished: list[bool] = []

    def note(name: str) -> Any:
        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            read = args[0] if args else next(iter(kwargs.values()))
            kept.append(read)
            calls.setdefault(name, Call(name, id(read), bool(finished)))

        return before

    places: list[Any] = [
        lambda n=n, m=m: m.register_forward_pre_hook(note(n), with_kwargs=True)
        for n, m in lm.model.named_modules()
        if outputs(m) is not None
    ]
    places.append(lambda: lm.blocks[-1].register_forward_hook(lambda *_: finished.append(True)))
    ids = torch.arange(8, device=lm.device).unsqueeze(0) % lm.model.get_input_embeddings().weight.shape[0]
    with hooked(places), torch.no_grad():
        forward(lm, ids, torch.ones_like(ids), keep=1)
    return list(calls.values())


def anonymous(name: str) -> str:
    return re.sub(r"\d+", "*", name)


def block_of(name: str, around: str) -> int | None:
    found = re.match(rf"{re.escape(around)}\.(\d+)\.", name)
    return int(found[1]) if found else None


def expert_writers(block: nn.Module, width: int, index: int) -> list[Writer]:
    """The writing tensors of a block's fused experts, by module name inside the block, with their biases."""
    out = []
    for module in dict.fromkeys(name.rpartition(".")[0] for name in fused_experts(block)):
        own = dict(block.get_submodule(module).named_parameters(recurse=False))
        matrices = {n: p for n, p in own.items() if p.dim() == 3 and "bias" not in n}
        inner = {n: other_axis(p, width) for n, p in matrices.items()}
        fewest = [n for n, size in inner.items() if size is not None and size == min(s or 0 for s in inner.values())]
        if len(matrices) != 2 or None in inner.values() or len(fewest) != 1:
            raise ValueError(
                f"the experts of {type(block).__name__} hold {', '.join(own) or 'no matrices of their own'}; expected one "
                f"tensor (expert, in, out) with {width} outputs beside a larger one: leave this attack out with --skip"
            )
        name = fewest[0]
        out.append(Writer(module, name, list(matrices[name].shape).index(width, 1), index))
        if f"{name}_bias" in own:
            out.append(Writer(module, f"{name}_bias", 1, index))
    return out


def other_axis(parameter: Tensor, width: int) -> int | None:
    """Of (expert, a, b): the one of a and b that is not D; None where that cannot be told."""
    sizes = list(parameter.shape[1:])
    return next(s for s in sizes if s != width) if sizes.count(width) == 1 else None


def without(values: Tensor, basis: Float[Tensor, "K D"], axis: int) -> Tensor:
    """`values` with the span of `basis` taken out along `axis`, computed in fp32 at least."""
    work = values.movedim(axis, -1).to(torch.promote_types(values.dtype, torch.float32))
    rows = basis.to(work.device, work.dtype)
    return (work - (work @ rows.T) @ rows).movedim(-1, axis).to(values.dtype).contiguous()


@contextmanager
def folded(lm: LM, chosen: Sequence[Writer], basis: Float[Tensor, "K D"]) -> Iterator[None]:
    """Inside, these writers write nothing along `basis`; outside, the model's own parameters are back, the same objects."""
    modules = dict(lm.model.named_modules())
    own = [(modules[w.module], w.parameter, getattr(modules[w.module], w.parameter)) for w in chosen]
    try:
        for (module, name, value), writer in zip(own, chosen, strict=True):
            changed = without(value.detach(), basis, writer.axis)
            setattr(module, name, nn.Parameter(changed, requires_grad=value.requires_grad))
        yield
    finally:
        for module, name, value in own:
            setattr(module, name, value)

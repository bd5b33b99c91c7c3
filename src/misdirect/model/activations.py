"""Capture and replay: the engine.

Nothing above block `last` matters to RMU and nothing below block `first` changes. `capture` runs the frozen model once
without gradients, writes down how Hugging Face calls each of the blocks first..last (hidden state, masks, rotary tables,
every keyword), and stops. `replay` runs just those blocks again on the recorded arguments, with the trained matrices put
in by `torch.func.functional_call`. So one model serves as the frozen one and as the updated one, and gradients exist for
the trained matrices alone.

    seen = capture(model, blocks, first=5, last=7, input_ids=ids, attention_mask=mask)
    h = replay(blocks, seen, {5: {"mlp.down_proj.weight": w5}, ...})     # (B, T, D), differentiable in w5
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from misdirect.model import parameters as parts
from misdirect.model.hooks import first_output, hooked, split_hidden

# block index -> parameter path in the block, or a part of one such as `mlp.experts.down_proj[3]` -> value
Weights = Mapping[int, Mapping[str, Tensor]]


class Captured(NamedTuple):
    """What one frozen forward pass leaves: the state that enters block `first`, the calls, the state after `last`."""

    hidden: Float[Tensor, "B T D"]
    calls: tuple[Call, ...]
    output: Float[Tensor, "B T D"] | None


class _Stop(Exception):
    """Ends a forward pass once everything wanted has been seen."""


def capture(
    model: nn.Module,
    blocks: nn.ModuleList,
    first: int,
    last: int,
    input_ids: Int[Tensor, "B T"],
    attention_mask: Int[Tensor, "B T"],
    want_output: bool = True,
    parameters: Mapping[str, Tensor] | None = None,
) -> Captured:
    """One forward pass of the frozen model up to block `last`, recorded.

    Without `want_output` the pass stops as soon as block `last` has been called and before it computes: forget text
    needs no frozen target. `parameters` stand in for the model's own of these names during the pass.
    """
    calls: list[Call] = []
    state: dict[str, Tensor] = {}

    def before(index: int) -> Callable[..., None]:
        def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden, rest_args, rest_kwargs = split_hidden(args, kwargs)
            if hidden.dim() != 3:  # Gemma 3n keeps four
                raise ValueError(
                    f"{type(module).__name__} takes a state of shape {tuple(hidden.shape)}; expected one residual stream "
                    "(batch, token, width): this architecture is not supported"
                )
            if index == first:
                state["hidden"] = hidden
            calls.append(Call(index, rest_args, rest_kwargs))
            if index == last and not want_output:
                raise _Stop

        return record

    def after(module: nn.Module, args: Any, output: Any) -> None:
        state["output"] = first_output(output)
        raise _Stop

    places: list[Callable[[], Any]] = [
        lambda i=i: blocks[i].register_forward_pre_hook(before(i), with_kwargs=True)  # type: ignore[misc]
        for i in range(first, last + 1)
    ]
    places.append(lambda: blocks[last].register_forward_hook(after))
    with hooked(places), torch.no_grad():
        try:
            inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": False}
            torch.func.functional_call(model, dict(parameters), (), inputs) if parameters else model(**inputs)
        except _Stop:
            pass
        else:
            raise AssertionError(f"the forward pass never reached block {last}")
    return Captured(state["hidden"], tuple(calls), state.get("output"))


def replay(blocks: nn.ModuleList, seen: Captured, weights: Weights) -> Float[Tensor, "B T D"]:
    """The state after block `last`, computed again from `seen` with `weights` in place of the blocks' own."""
    hidden = seen.hidden
    for call in seen.calls:
        block = blocks[call.block]
        given = weights.get(call.block)
        args = (hidden, *call.args)
        if given:
            values = parts.assign_slices(dict(block.named_parameters()), given)
            output = torch.func.functional_call(block, values, args, call.kwargs)
        else:
            output = block(*args, **call.kwargs)
        hidden = first_output(output)
    return hidden


def check_replay(
    model: nn.Module,
    blocks: nn.ModuleList,
    first: int,
    last: int,
    input_ids: Tensor,
    attention_mask: Tensor,
    matrices: Mapping[int, str] | None = None,
) -> None:
    """Refuses a model whose replay is not its own forward pass, with its own weights and with others in `matrices`.

    On a CPU the two must agree bit for bit; on an accelerator within the difference of two captures. It catches blocks
    that talk to each other past the residual stream, matrices that blocks share, blocks that run several times a pass,
    and dropout left on. Raises ValueError.
    """
    runs = num_runs(model, list(blocks[first : last + 1]), input_ids, attention_mask)
    if set(runs) != {1}:
        raise ValueError(
            f"blocks {first} to {last} run {', '.join(map(str, runs))} times in one forward pass; expected once each: "
            "this architecture is not supported"
        )
    refuse_shared(model, blocks, matrices or {})
    inputs = (model, blocks, first, last, input_ids, attention_mask)
    one = capture(*inputs)
    assert one.output is not None
    allowed = 0.0
    if input_ids.device.type != "cpu":
        two = capture(*inputs)
        assert two.output is not None
        allowed = (one.output - two.output).abs().max().item()
    for weights in [{}, perturbed(blocks, matrices or {})]:
        named = {f"{block_name(model, blocks)}.{i}.{n}": v for i, given in weights.items() for n, v in given.items()}
        whole = capture(*inputs, parameters=named).output if named else one.output
        with torch.no_grad():
            again = replay(blocks, one, weights)
        assert whole is not None
        difference = (again - whole).abs().max().item()
        if not difference <= allowed:
            raise ValueError(
                f"replaying blocks {first} to {last} differs from the model's own forward pass by {difference:.3g} "
                f"(expected at most {allowed:.3g}): this architecture passes something beside the residual stream, "
                "or dropout is on"
            )


def refuse_shared(model: nn.Module, blocks: nn.ModuleList, matrices: Mapping[int, str]) -> None:
    """Raises ValueError where a trained parameter is used in a second place: `functional_call` would mix the two up."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    for index, path in matrices.items():
        used = names[id(blocks[index].get_parameter(parts.base_name(path)))]
        if len(used) > 1:
            raise ValueError(
                f"{used[0]} and {used[1]} are one matrix; expected one of its own in every block: "
                "name another with --matrix, or choose another --block"
            )


def block_name(model: nn.Module, blocks: nn.ModuleList) -> str:
    return next(name for name, module in model.named_modules() if module is blocks)


def num_runs(model: nn.Module, blocks: Sequence[nn.Module], input_ids: Tensor, attention_mask: Tensor) -> list[int]:
    """How often one forward pass runs each of these blocks."""
    runs = [0] * len(blocks)

    def count(index: int) -> Callable[..., None]:
        def add(*_: Any) -> None:
            runs[index] += 1

        return add

    places = [lambda i=i, b=b: b.register_forward_pre_hook(count(i)) for i, b in enumerate(blocks)]
    with hooked(places), torch.no_grad():
        model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
    return runs


def perturbed(blocks: nn.ModuleList, matrices: Mapping[int, str]) -> Weights:
    """Whole parameters in which the named matrices are changed, each block's by another factor."""
    with torch.no_grad():
        return {
            index: parts.assign_slices(
                dict(blocks[index].named_parameters()), {path: parts.read_from(blocks[index], path) * (1 + 1 / (2 + i))}
            )
            for i, (index, path) in enumerate(matrices.items())
        }


def states_after(
    model: nn.Module, blocks: nn.ModuleList, index: int, input_ids: Tensor, attention_mask: Tensor
) -> Float[Tensor, "B T D"]:
    """The residual stream after one block, the model otherwise untouched."""
    output = capture(model, blocks, index, index, input_ids, attention_mask).output
    assert output is not None
    return output


class Call(NamedTuple):
    """How the model called one block; the hidden state is taken out of `args` or `kwargs` and given anew at replay."""

    block: int
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

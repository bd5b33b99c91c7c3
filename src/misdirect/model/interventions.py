"""Changes to what flows through a model while it runs, or to its matrices for a while.

    with blocks_changed(lm, {7: lambda h: h - (h @ r).unsqueeze(-1) * r}):    # ablate the unit direction r after block 7
        ...                                                                   # score, generate, anything

    with weights_changed(lm, lambda matrix, weight: round_to_nearest(weight, bits=4)):
        ...

Inside the block the model is another one; afterwards it is itself again, its parameters the very tensors they were,
whatever happened. Matrices are the linear maps of the decoder blocks, fused experts among them; embeddings, the LM head,
norms and biases stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from misdirect.model.blocks import fused_experts
from misdirect.model.hooks import first_output, hooked
from misdirect.model.lm import LM

Change = Callable[[Tensor], Tensor]  # (B, T, D) -> (B, T, D)


def replaced(output: Any, hidden: Tensor) -> Any:
    """A block's output with another hidden state."""
    return type(output)((hidden, *output[1:])) if isinstance(output, tuple | list) else hidden


@contextmanager
def blocks_changed(lm: LM, changes: Mapping[int, Change]) -> Iterator[None]:
    """`changes`: zero-based block -> what becomes of the residual stream after it."""
    blocks = lm.blocks

    def hook(change: Change) -> Callable[..., Any]:
        return lambda module, args, output: replaced(output, change(first_output(output)))

    with hooked([lambda i=i, c=c: blocks[i].register_forward_hook(hook(c)) for i, c in changes.items()]):  # type: ignore[misc]
        yield


@contextmanager
def embeddings_changed(
    lm: LM, change: Callable[[Int[Tensor, "B T"], Float[Tensor, "B T D"]], Tensor]
) -> Iterator[None]:
    """`change(ids, embeddings)` stands in for what the embedding table gives."""
    table = lm.model.get_input_embeddings()

    def hook(module: Any, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return change(args[0], output)

    with hooked([lambda: table.register_forward_hook(hook)]):
        yield


class Matrix(NamedTuple):
    """One parameter that holds a matrix, or one matrix an expert. `name`: in the full model. `turned`: kept as (in, out)."""

    name: str
    parameter: nn.Parameter
    owner: nn.Module
    turned: bool


Rewrite = Callable[[Matrix, Float[Tensor, "E O I"]], Tensor]  # -> (E, O, I): what stands in for a matrix' weight


def matrices(lm: LM) -> list[Matrix]:
    """Every linear map of the decoder blocks, in the model's order; a parameter used twice comes once.

    `Linear` and `Conv1D` weights, and fused experts, which transformers keeps as (expert, out, in), in some classes as
    (expert, in, out) or flattened. Raises ValueError where there is none.
    """
    found: dict[int, Matrix] = {}
    for i, block in enumerate(lm.blocks):
        fused = {name.rpartition(".")[::2] for name in fused_experts(block)}
        for path, module in block.named_modules():
            for key, parameter in module.named_parameters(recurse=False):
                linear = key == "weight" and isinstance(module, nn.Linear | Conv1D)
                if linear or (path, key) in fused:
                    turned = isinstance(module, Conv1D) or (not linear and getattr(module, "is_transposed", False))
                    name = ".".join(part for part in (lm.block_prefix, str(i), path, key) if part)
                    found.setdefault(id(parameter), Matrix(name, parameter, module, turned))
    if not found:
        raise ValueError(f"{lm.source} has no linear maps in its blocks; expected another model, or --skip its attack")
    return list(found.values())


def read(matrix: Matrix) -> Float[Tensor, "E O I"]:
    """The weight in fp32, as (experts, output width, input width); one expert where there are none."""
    weight = matrix.parameter.detach().float()
    weight = weight.mT if matrix.turned else weight
    return weight if weight.dim() == 3 else weight.unsqueeze(0)


def shaped(matrix: Matrix, weight: Float[Tensor, "E O I"]) -> Tensor:
    """The inverse of `read`: in the parameter's own layout and dtype."""
    weight = weight.mT if matrix.turned else weight
    return weight.reshape(matrix.parameter.shape).to(matrix.parameter.dtype)


@contextmanager
def weights_changed(lm: LM, rewrite: Rewrite) -> Iterator[None]:
    """Every matrix is what `rewrite` makes of it; the originals stay where they are and come back."""
    kept: list[tuple[nn.Parameter, Tensor]] = []
    try:
        for matrix in matrices(lm):
            with torch.no_grad():
                made = shaped(matrix, rewrite(matrix, read(matrix)))
            kept.append((matrix.parameter, matrix.parameter.data))
            matrix.parameter.data = made.contiguous()
        yield
    finally:
        for parameter, original in kept:
            parameter.data = original

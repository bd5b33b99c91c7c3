"""Changing a model's matrices for a while: every linear map inside the decoder blocks, fused experts among them.

Embeddings, the LM head, norms, biases and everything outside the blocks stay as they are. Inside the block the model is
another one; afterwards its parameters are the very tensors they were, whatever happened.

    with weights_changed(lm, lambda matrix, weight: round_to_nearest(weight, bits=4)):
        ...                                                                   # score, generate, anything
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from misdirect.attacks import measure
from misdirect.attacks.case import Advance, Attack, Case, Cost
from misdirect.attacks.measure import Point
from misdirect.model.blocks import fused_experts
from misdirect.model.load import LM
from misdirect.runs import Result


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


def run_levels(
    lm: LM,
    case: Case,
    attack: Attack,
    advance: Advance,
    levels: Sequence[tuple[Point, Rewrite]],
    tokens: int = 0,
) -> list[Result]:
    """Everything is asked at each level of the change, and the model speaks at the one where most came back.

    `tokens`: that were read to find out what to change.
    """
    seconds, points = 0.0, []
    for point, rewrite in levels:
        started = time.perf_counter()
        with weights_changed(lm, rewrite):
            seconds += time.perf_counter() - started
            points.append((point, measure.sit(lm, case)))
        advance(1)
    with weights_changed(lm, levels[measure.strongest(case, points)][1]):
        spoken = measure.language(lm, case, attack)
    advance(1)
    return [*measure.results(case, attack, points, seconds, float(tokens)), spoken]


# Weights rewritten a second: a careful guess for one core, for estimates alone.
WEIGHTS_PER_SECOND = 3e7


def cost(case: Case, num_levels: int) -> Cost:
    """Of `run_levels`: the changed matrices stand beside the originals, one level at a time."""
    shape = case.shape
    return Cost(
        forward_tokens=num_levels * measure.sitting_tokens(case) + measure.LANGUAGE_TOKENS,
        seconds=(num_levels + 1) * shape.num_parameters / WEIGHTS_PER_SECOND,
        memory=shape.num_parameters * shape.bytes_per_parameter,
    )

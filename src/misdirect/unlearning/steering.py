"""Control vectors, and steering coefficients from measured activation norms.

Per topic one fixed direction u; forget activations are moved to c*u. Source: arXiv 2403.03218 (uniform draw, absolute c);
c as a multiple of the mean token norm is Adaptive RMU, arXiv 2408.06223; of the median, which few huge norms cannot move,
our own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from misdirect.config import parse_steering
from misdirect.data.batches import Batch, pad
from misdirect.model.activations import states_after
from misdirect.model.lm import LM
from misdirect.model.rows import fill_id

NORM_BATCHES = 8  # forget batches over which token norms are measured


def control_vectors(num_topics: int, width: int, seed: int) -> list[Float[Tensor, " D"]]:
    """A unit vector per topic, fp32, from a CPU generator. Uniform on [0, 1) as published, so every entry is positive."""
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.rand(width, generator=generator) for _ in range(num_topics)]
    return [v / torch.linalg.vector_norm(v) for v in drawn]


def targets(
    coefficients: Sequence[float], width: int, seed: int, dtype: torch.dtype, device: torch.device
) -> list[tuple[Float[Tensor, " D"], Float[Tensor, " D"]]]:
    """(u, c*u) a topic, in fp32 whatever the model's `dtype`."""
    directions = [u.to(device) for u in control_vectors(len(coefficients), width, seed)]
    return [(u, c * u) for c, u in zip(coefficients, directions, strict=True)]


def token_norms(states: Float[Tensor, "B T D"], loss_mask: Bool[Tensor, "B T"]) -> Float[Tensor, " N"]:
    """||h|| of every counted token."""
    return torch.linalg.vector_norm(states.float(), dim=-1)[loss_mask]


def median_norm(lm: LM, block: int, batches: Sequence[Batch]) -> float:
    """Median token norm of the residual stream after `block`. First tokens, whose norm is often a hundred times larger,
    do not count. NaN where one of them is not finite."""
    norms = torch.cat([
        token_norms(states_after(lm.model, lm.blocks, block, b.input_ids, b.attention_mask), b.loss_mask)
        for b in (batch.to(lm.device) for batch in batches)
    ])  # fmt: skip
    return norms.median().item() if norms.isfinite().all() else math.nan


def mean_norm(lm: LM, block: int, batches: Sequence[Batch], every_position: bool = False) -> float:
    """Mean token norm of the residual stream after `block`, over the tokens that count or over every position.

    The published code of Adaptive RMU takes every position of a topic's first batch, padding and first tokens too.
    """
    norms = [
        token_norms(
            states_after(lm.model, lm.blocks, block, b.input_ids, b.attention_mask),
            torch.ones_like(b.loss_mask) if every_position else b.loss_mask,
        )
        for b in (batch.to(lm.device) for batch in batches)
    ]
    return torch.cat(norms).mean().item()


def norm_batches(lm: LM, samples: Sequence[Sequence[int]], batch_size: int) -> list[Batch]:
    """The first `NORM_BATCHES` batches of a topic, over which its norms are measured."""
    some = samples[: NORM_BATCHES * batch_size]
    return [pad(some[i : i + batch_size], fill_id(lm)) for i in range(0, len(some), batch_size)]


def mean_norm_of(lm: LM, block: int, samples: Sequence[Sequence[int]], batch_size: int) -> float:
    return mean_norm(lm, block, norm_batches(lm, samples, batch_size))


def coefficient(steering: str, median: float, mean: float = math.nan) -> float:
    """`6.5` -> 6.5; `5x` -> 5 times the measured median norm; `5xmean` -> 5 times the measured mean norm."""
    value, unit = parse_steering(steering)
    if unit == "mean":
        return value * mean
    return value * median if unit else value

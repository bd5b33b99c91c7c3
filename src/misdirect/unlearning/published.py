"""The arithmetic of the published RMU code, bit for bit: every choice in which it differs from the clean form.

Source: the code of arXiv 2403.03218. Texts are cut off and padded on the left with the end token, retain lines come in file
order, the loss is the plain mean over every position, everything is in the model's dtype, the model is in train mode, and
AdamW adds its epsilon before bias correction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from misdirect.config import UnlearnConfig
from misdirect.data import batches
from misdirect.data.batches import Batch
from misdirect.model.lm import LM
from misdirect.model.rows import check_rows, fill_id
from misdirect.unlearning import optimizer, steering
from misdirect.unlearning.schedule import Ids, Samples, Update

MAX_TOKENS = (512, 768)  # of the first topic and all retain text, of every other topic
EPS = 1e-6


def as_samples(lm: LM, texts: Sequence[str], config: UnlearnConfig, index: int) -> Ids:
    """Cut off, not cut up; with the end token that some tokenizers append."""
    end, side = lm.tokenizer.eos_token_id, lm.tokenizer.truncation_side
    check_rows(lm, [[end]] if end is not None else [], "the padding of the published arithmetic")
    try:
        lm.tokenizer.truncation_side = "right"
        encoded = lm.tokenizer(list(texts), truncation=True, max_length=MAX_TOKENS[min(index, 1)])["input_ids"]
    finally:
        lm.tokenizer.truncation_side = side
    return [list(ids) for ids in encoded if len(ids)]


def num_updates(samples: Samples, config: UnlearnConfig) -> int:
    """At most as many as the shortest corpus has batches, whatever the number of topics: with two topics the published
    code stops half way through the shorter one."""
    assert config.batch_size is not None
    corpora = [*samples.forget.values(), list(chain(*samples.retain.values()))]
    most = min(-(-len(ids) // config.batch_size) for ids in corpora)
    return min(config.updates or most, most)


def updates(samples: Samples, config: UnlearnConfig) -> list[Update]:
    """In file order; every topic of a round sees the same retain lines."""
    assert config.batch_size is not None
    count, size = num_updates(samples, config), config.batch_size
    retain = list(chain(*samples.retain.values()))
    picks = (slice(i * size, (i + 1) * size) for i in range(-(-count // len(samples.forget))))
    return [Update(t, ids[pick], retain[pick]) for pick in picks for t, ids in samples.forget.items()][:count]


def pad(lm: LM, samples: Sequence[Sequence[int]]) -> Batch:
    """On the left with the end token."""
    end = lm.tokenizer.eos_token_id
    return batches.pad(samples, fill_id(lm) if end is None else end, left=True).to(lm.device)


def targets(
    coefficients: Sequence[float], width: int, seed: int, dtype: torch.dtype, device: torch.device
) -> list[tuple[Float[Tensor, " D"], Float[Tensor, "1 1 D"]]]:
    """(u, c*u) a topic, drawn in the model's dtype on its device."""
    generator = torch.Generator(device=device).manual_seed(seed)
    out = []
    for coefficient in coefficients:
        drawn = torch.rand(1, 1, width, generator=generator, dtype=dtype, device=device)
        target = drawn / torch.norm(drawn) * coefficient
        out.append((target.flatten().float() / target.float().norm(), target))
    return out


def mean_norm(lm: LM, block: int, samples: Ids, batch_size: int) -> float:
    """Over every position of a topic's first batch, padding and first tokens too (the code of arXiv 2408.06223)."""
    return steering.mean_norm(lm, block, [pad(lm, samples[:batch_size])], every_position=True)


def distance(
    states: Float[Tensor, "B T D"],
    target: Float[Tensor, "B T D"] | Float[Tensor, "1 1 D"],
    loss_mask: Bool[Tensor, "B T"] | None = None,
) -> Float[Tensor, ""]:
    """`mse_loss` over all positions, whatever `loss_mask` says, in the model's dtype."""
    return F.mse_loss(states, target.expand_as(states))


def adamw_step(weight: Tensor, gradient: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, step: int, lr: float) -> None:
    """`optimizer.adamw_step`, but for eps, which is added to the root of the second moment BEFORE bias correction: the
    effective eps is eps / sqrt(1 - 0.999^step), a hidden warm-up."""
    correction1, correction2 = optimizer.update_moments(gradient, exp_avg, exp_avg_sq, step)
    weight.addcdiv_(exp_avg, exp_avg_sq.sqrt().add_(EPS), value=-lr * math.sqrt(correction2) / correction1)

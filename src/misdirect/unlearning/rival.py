"""Rivals to compare RMU with: NPO and gradient difference, on the samples, the order and the number of updates of a run.

    log pi(x) = sum over the tokens of x but the first; forget samples x, retain samples y
    NPO                   (2/beta) * mean log(1 + (pi(x) / pi_base(x))^beta)   + w * retain      arXiv 2404.05868
    gradient difference   mean over tokens of log pi(x)                        + w * retain      arXiv 2203.12817
    retain                mean over tokens of y: KL(base || model), or the NLL

NPO is gradient ascent whose weight on a sample falls once the sample has become unlikely; with beta -> 0 its gradient is
that of plain ascent. Both lower the likelihood of the text itself, so they need the whole model where RMU needs eight
blocks of thirty. There is no second model: the frozen one is `lm.model` itself, the trained matrices are fp32 leaves that
`torch.func.functional_call` puts in their places, and the base's likelihood of every forget sample is taken once,
beforehand. What may differ from the RMU run are the trained matrices (every block's MLP output, not three) and the rate.

    budget = resolve(UnlearnConfig(recipe="demo"), 30)
    delta, log = rival(load_lm("demo"), {"biology": texts}, [("general", retain_texts, 1.0)], budget, RivalConfig())
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from misdirect.config import UnlearnConfig, flag, knob
from misdirect.data.batches import Batch
from misdirect.model import parts
from misdirect.model.activations import refuse_shared
from misdirect.model.blocks import find_matrix, residual_width
from misdirect.model.delta import Delta
from misdirect.model.load import LM, check_length
from misdirect.model.score import at_least_fp32, text_logprobs, token_logprobs
from misdirect.unlearning import rmu
from misdirect.unlearning.optimizer import adamw_step, clip, learning_rate

Method = Literal["npo", "gradient-difference"]
RetainTerm = Literal["kl", "nll"]
Trained = Literal["mlp", "all"]


@dataclass(frozen=True)
class RivalConfig:
    """What a rival does its own way; everything else is the budget of the RMU run that it is compared with."""

    method: Method = knob("npo", "npo (arXiv 2404.05868), or gradient-difference: ascent on the forget text.")
    beta: float = knob(0.1, "NPO: how soon a sample that has become unlikely stops being pushed; 0 would be never.")
    retain_term: RetainTerm = knob("kl", "What holds the retain text: kl to the base's predictions, or its nll.")
    retain_weight: float = knob(1.0, "Factor of the retain term.")
    trained: Trained = knob("mlp", "Which matrices are trained: mlp is every block's MLP output, all is every matrix.")
    lr: float = knob(1e-4, "Peak learning rate of AdamW.")

    def __post_init__(self) -> None:
        for name in ("beta", "retain_weight", "lr"):
            value = getattr(self, name)
            if not 0 < value < 1e30:
                raise ValueError(f"{flag(name)} {value} is out of range; expected a number above 0 and below 1e30")


class Job(NamedTuple):
    """All that does not change during a run."""

    plan: rmu.Job  # samples, mixture and number of updates, as RMU has them
    config: RivalConfig
    names: list[str]  # trained parameters of the full model
    reference: dict[tuple[int, ...], float]  # forget sample -> log pi_base, for NPO alone


def prepare(
    lm: LM,
    forget: Mapping[str, Sequence[str]],
    retain: Sequence[tuple[str, Sequence[str], float]],
    budget: UnlearnConfig,
    config: RivalConfig,
) -> Job:
    """Tokenises, plans every update, finds the matrices, and measures the base on the forget samples.

    `lm` is the full model; `budget` the resolved settings of the RMU run. Raises ValueError for a model or data that
    cannot be worked with.
    """
    raise NotImplementedError


def rival(
    lm: LM,
    forget: Mapping[str, Sequence[str]],
    retain: Sequence[tuple[str, Sequence[str], float]],
    budget: UnlearnConfig,
    config: RivalConfig = RivalConfig(),  # noqa: B008 - frozen
) -> tuple[Delta, list[dict[str, Any]]]:
    """One run in memory: (the changed matrices, a log line per update). The model is left as it was, bit for bit."""
    raise NotImplementedError

"""What an audit will take here, and what of it fits into the time and memory that there is."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from misdirect.attacks import finetune
from misdirect.attacks.interface import Attack, AttackInputs, Cost, Shape, Trains
from misdirect.attacks.scoring import LANGUAGE_TOKENS, question_tokens
from misdirect.model.lm import LM
from misdirect.model.score import tokens_per_second
from misdirect.text import duration, size

MEMORY_FRACTION = 0.9  # of the free memory, that an attack may take
WARMUP_UPDATES = 3  # that make the optimizer's state and take memory for the first time, and are slower
# Careful guesses for one core: matrix entries rewritten, and operations in float64, a second.
WEIGHTS_PER_SECOND, FLOPS = 3e7, 1e10
# The time of an update's tokens in that of full finetuning's
UPDATE_SHARE: dict[Trains | None, float] = {"weights": 1.0, "lora": 0.8, "inputs": 0.75, None: 0.0}

LESS_MEMORY = {  # what is trained, or the family -> what makes an attack need less
    "weights": "LoRA, --dtype bfloat16, or a smaller --batch-size or --max-tokens",
    "lora": "a smaller --batch-size or --max-tokens",
    "lens": "a smaller --batch-tokens",
    "probe": "a smaller --limit",
    "gcg": "a smaller --suffix-tokens, or --dtype bfloat16",
    "soft-prompt": "a smaller --soft-tokens, or --dtype bfloat16",
}


class Speed(NamedTuple):
    """Tokens a second through a forward pass, and through an update of the whole model (forward, backward, optimizer)."""

    forward: float
    train: float


def measured(lm: LM, training: tuple[int, int] | None) -> Speed:
    """On this machine, in a few seconds. `training`: samples and tokens of an update; without it none is tried."""
    forward = tokens_per_second(lm, rows=8, length=64)
    if training is None:
        return Speed(forward, forward / 4)
    rows, length = training
    samples = [[(7 * i) % 100 + 1 for i in range(length)]] * rows
    with finetune.trained(lm, "full") as parameters:
        steps = finetune.train(lm, parameters, samples, WARMUP_UPDATES + 1, 1e-9, rows, 0)
        for _ in range(WARMUP_UPDATES):
            next(steps)
        started = time.perf_counter()
        next(steps)
        seconds = time.perf_counter() - started
        steps.close()
    return Speed(forward, rows * length / seconds)


class Work(NamedTuple):
    """What an attack takes: tokens through forward passes, tokens through full updates, and the rest."""

    forward_tokens: float
    train_tokens: float
    seconds: float
    memory: float  # bytes beyond the model itself


def work_of(inputs: AttackInputs, cost: Cost) -> Work:
    shape = inputs.shape
    tested = question_tokens(q for halves in inputs.forgotten.values() for q in halves.test)
    retained = question_tokens(q for questions in inputs.retained.values() for q in questions)
    head = shape.vocabulary * shape.width / shape.num_parameters  # the LM head's part of a token's pass
    return Work(
        cost.scorings * tested + cost.retained_scorings * retained + cost.answers * LANGUAGE_TOKENS
        + cost.tokens + cost.read_outs * head,
        UPDATE_SHARE[cost.trains] * cost.updates * cost.update_tokens,
        cost.rewrites * shape.num_parameters / WEIGHTS_PER_SECOND + cost.flops / FLOPS,
        cost.memory + cost.copies * shape.num_parameters * shape.bytes_per_parameter + update_bytes(shape, cost),
    )  # fmt: skip


def update_bytes(shape: Shape, cost: Cost) -> float:
    """Of an update: what is trained, the logits three times in fp32, and some 17 of the width in every block for each token,
    attention scores left out (Korthikanti et al. 2022, arXiv 2205.05198)."""
    own = shape.bytes_per_parameter
    trained: dict[Trains | None, float] = {
        "weights": 2 * own + 8 + (8 if own < 4 else 0),  # a copy, its gradient, two moments; masters of low precision
        "lora": 1,
    }
    longest = 3 if cost.trains == "inputs" else 1  # questions are padded to the longest, thrice the mean
    tokens = longest * cost.update_tokens
    kept = 17.0 * shape.num_blocks * shape.width * own + 3 * 4 * shape.vocabulary
    return trained.get(cost.trains, 0) * shape.num_parameters + tokens * kept


def seconds_of(work: Work, speed: Speed) -> float:
    return work.forward_tokens / speed.forward + work.train_tokens / speed.train + work.seconds


def too_large(attack: Attack, needed: float, free: float) -> str:
    """Why an attack that needs so many bytes does not fit into memory, with what would; empty where it does."""
    if needed <= MEMORY_FRACTION * free:
        return ""
    instead = LESS_MEMORY.get(attack.cost.trains or "", LESS_MEMORY.get(attack.family))
    instead = instead or "--dtype bfloat16 where the weights are float32"
    return f"needs {size(needed)} of memory, {size(free)} are free; less is needed with {instead}"


class Clock:
    """What is left of the time, and how far off the estimates have been so far."""

    def __init__(self, minutes: float, started: float) -> None:
        self.started, self.end = started, started + 60 * minutes
        self.earlier = 0.0  # seconds of the calls before this one
        self.estimated = self.taken = 0.0

    @property
    def spent(self) -> float:
        """Seconds, with those of earlier calls."""
        return self.earlier + time.perf_counter() - self.started

    @property
    def left(self) -> float:
        """Seconds."""
        return max(0.0, self.end - time.perf_counter())

    @property
    def factor(self) -> float:
        """Measured over estimated, of the attacks that were run."""
        return self.taken / self.estimated if self.estimated else 1.0

    def ran(self, estimated: float, taken: float) -> None:
        self.estimated += estimated
        self.taken += taken

    def why_not(self, seconds: float) -> str:
        """Why an attack of so many estimated seconds does not fit; empty where it does."""
        needed = self.factor * seconds
        return "" if needed <= self.left else f"needs about {duration(needed)}, {duration(self.left)} are left"


def fitting_first(todo: Sequence[Any], fits: Sequence[bool]) -> list[Any]:
    """What was announced as fitting comes before what waits for time that is left; else the order stays."""
    return [one for wanted in (True, False) for one, fit in zip(todo, fits, strict=True) if fit is wanted]


def first_fit(seconds: Sequence[float], left: float) -> list[bool]:
    """Which fit, one after the other, in the given order: whatever still does is taken."""
    taken = []
    for one in seconds:
        taken.append(one <= left)
        left -= one if taken[-1] else 0.0
    return taken

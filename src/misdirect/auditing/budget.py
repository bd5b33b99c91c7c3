"""What an audit will take here, and what of it fits into the time and memory that there is."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from misdirect.attacks import finetune
from misdirect.attacks.interface import Attack, Cost
from misdirect.model.load import LM
from misdirect.model.score import tokens_per_second
from misdirect.text import duration, size

ROOM = 0.9  # of the free memory, that an attack may take
WARM = 3  # updates that make the optimizer's state and take memory for the first time, and are slower


LESS = {  # family -> what makes an attack need less memory
    "relearn-full": "LoRA, --dtype bfloat16, or a smaller --batch-size or --max-tokens",
    "relearn-lora": "a smaller --batch-size or --max-tokens",
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
        steps = finetune.train(lm, parameters, samples, WARM + 1, 1e-9, rows, 0)
        for _ in range(WARM):
            next(steps)
        started = time.perf_counter()
        next(steps)
        seconds = time.perf_counter() - started
        steps.close()
    return Speed(forward, rows * length / seconds)


def seconds_of(cost: Cost, speed: Speed) -> float:
    return cost.forward_tokens / speed.forward + cost.train_tokens / speed.train + cost.seconds


def too_large(attack: Attack, free: float) -> str:
    """Why an attack does not fit into memory, with what would; empty where it does."""
    if attack.cost.memory <= ROOM * free:
        return ""
    family = f"{attack.family}-{attack.settings['method']}" if "method" in attack.settings else attack.family
    instead = LESS.get(family, "--dtype bfloat16 where the weights are float32")
    return f"needs {size(attack.cost.memory)} of memory, {size(free)} are free; less is needed with {instead}"


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

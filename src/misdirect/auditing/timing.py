"""What an audit will take here, and what of it fits into the time and memory that there is."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

from misdirect.attacks import finetune
from misdirect.attacks.case import Attack, Cost
from misdirect.model.load import LM
from misdirect.model.score import tokens_per_second
from misdirect.planning.form import duration, size

ROOM = 0.9  # of the free memory, that an attack may take
TRAINED = (2, 64)  # samples and tokens of the update by which speed is measured


class Speed(NamedTuple):
    """Tokens a second through a forward pass, and through forward and backward of the whole model."""

    forward: float
    train: float


def measured(lm: LM, training: bool) -> Speed:
    """On this machine, in a few seconds. Without `training` no update is tried."""
    forward = tokens_per_second(lm, rows=8, length=64)
    if not training:
        return Speed(forward, forward / 4)
    samples = [[(7 * i) % 100 + 1 for i in range(TRAINED[1])]] * TRAINED[0]
    with finetune.trained(lm, "full") as parameters:
        steps = finetune.train(lm, parameters, samples, 3, 1e-9, TRAINED[0], 0)
        next(steps)  # the first one makes the optimizer's state
        started = time.perf_counter()
        next(steps)
        seconds = time.perf_counter() - started
        steps.close()
    return Speed(forward, TRAINED[0] * TRAINED[1] / seconds)


def seconds_of(cost: Cost, speed: Speed) -> float:
    return cost.forward_tokens / speed.forward + cost.train_tokens / speed.train + cost.seconds


def too_large(attack: Attack, free: float) -> str:
    """Why an attack does not fit into memory, with what would; empty where it does."""
    if attack.cost.memory <= ROOM * free:
        return ""
    instead = "a smaller --batch-size or --max-tokens" if attack.family == "relearn" else "a smaller --batch-tokens"
    return f"needs {size(attack.cost.memory)} of memory, {size(free)} are free; try {instead}"


class Fit(NamedTuple):
    attack: Attack
    seconds: float  # for what is still to do of it, on one model or both
    why: str  # it cannot be run now; empty where it can


def fitting(todo: Sequence[tuple[Attack, int]], speed: Speed, left: float, free: float) -> list[Fit]:
    """In the given order, whatever fits into the `left` seconds and `free` bytes.

    `todo`: (attack, on how many models it is still to be run).
    """
    found = []
    for attack, models in todo:
        seconds = models * seconds_of(attack.cost, speed)
        why = attack.missing or too_large(attack, free)
        if not why and seconds > left:
            why = f"needs about {duration(seconds)}, {duration(max(0.0, left))} are left"
        if not why:
            left -= seconds
        found.append(Fit(attack, seconds, why))
    return found

"""Perturbation: one vector added to the residual stream after a block, of bounded norm, trained on the attacker's half.

    h <- h + v   at every token of every question,   ||v|| <= epsilon * (median token norm of the base at that block)

Trained by projected gradient descent, tested on the other half; the budget axis is epsilon, each trained from where the
smaller one ended (its ball lies inside). It reaches past everything that a prompt could change before that block at one
place: an upper bound of another kind than the soft prompt, and the cheapest, for blocks below take no gradient.

    for attack in attacks(inputs, AuditConfig(soft_steps=60)): attack.run(lm, inputs, attack, lambda done: None)
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from misdirect.attacks import optimize
from misdirect.attacks.direction import steered_block
from misdirect.attacks.interface import Advance, Attack, AttackInputs, Cost
from misdirect.attacks.scoring import Point, example_tokens, language, results, score_sets
from misdirect.config import AuditConfig
from misdirect.data.batches import sample_schedule
from misdirect.model.interventions import blocks_changed
from misdirect.model.lm import LM
from misdirect.runs import Result

Site = Literal["block", "late"]
EPSILONS = (0.1, 0.5, 1.0)
BATCH = 8
RATE = 0.2  # learning rate in radii over the root of the width
MIN_STEPS = 15
SITES: dict[Site, str] = {"block": "after the steered block", "late": "half-way above the steered block"}


@dataclass(frozen=True)
class Settings:
    trained_on: str
    loss: str
    place: Site
    block: int | None  # of the run that unlearned, where it is known
    epsilons: tuple[float, ...]
    soft_steps: int
    batch_size: int
    rate: float


def attacks(inputs: AttackInputs, config: AuditConfig) -> list[Attack]:
    """`perturbation-block` at the steered block (or where the models' means part), `perturbation-late` half-way from there
    to the last."""
    steps = config.soft_steps
    cost = Cost(
        scorings=len(EPSILONS) + 1,
        retained_scorings=1,
        answers=1,
        updates=steps,
        update_tokens=BATCH * example_tokens(inputs),
        trains="inputs",
    )
    return [
        Attack(
            name=f"perturbation-{site}",
            family="perturbation",
            title=f"Vector added {words}, at most {EPSILONS[-1]:g} median norms long, {steps} updates",
            attacker_access="weights",
            settings=Settings(optimize.TRAINED_ON, optimize.LOSS, site, inputs.block, EPSILONS, steps, BATCH, RATE),
            cost=cost,
            num_steps=steps,
            run=run,
            needs_mean_states=True,
            attacker_knowledge="answered questions",
            base_independent=False,
            unavailable=optimize.unavailable(inputs, steps, MIN_STEPS, "--soft-steps"),
        )
        for site, words in SITES.items()
    ]


def run(lm: LM, inputs: AttackInputs, attack: Attack, advance: Advance) -> list[Result]:
    """Trains one vector per epsilon and asks with each; other sets and answers in words with the longest.

    Raises ValueError where the loss is not finite.
    """
    settings: Settings = attack.settings
    steps, block = settings.soft_steps, block_of(inputs, settings.place)
    assert inputs.medians is not None, "needs_mean_states"
    vector = torch.zeros(inputs.shape.width, device=lm.device, requires_grad=True)

    def applied() -> AbstractContextManager[None]:
        return added(lm, block, vector)

    items = optimize.examples(lm, inputs)
    before = optimize.watched(lm, items, BATCH)
    points = [(Point(block=block, budget=0.0), score_sets(lm, inputs, general=False))]
    plan = sample_schedule(len(items), steps, BATCH, inputs.seed)
    ends, spent = [0, *optimize.checkpoints(steps, len(EPSILONS))], 0.0
    for start, stop, epsilon in zip(ends, ends[1:], EPSILONS, strict=False):
        since, radius = time.perf_counter(), epsilon * inputs.medians[block].item()
        rate = RATE * radius / math.sqrt(inputs.shape.width)
        for _ in optimize.updates(lm, items, vector, applied, plan[start:stop], rate, into_ball(radius)):
            advance(1)
        spent += time.perf_counter() - since
        with applied():
            points.append((Point(block=block, budget=epsilon), score_sets(lm, inputs, general=stop == steps)))
    end = optimize.watched(lm, items, BATCH, applied)
    seen = float(sum(optimize.num_tokens(items[row]) for rows in plan for row in rows))
    with applied():
        answers = language(lm, inputs, attack)
    return [*results(inputs, attack, points, spent, seen, optimize.control_metrics(before, before, end)), answers]


def block_of(inputs: AttackInputs, site: Site) -> int:
    block = steered_block(inputs)
    return block if site == "block" else (block + inputs.shape.num_blocks) // 2


def added(lm: LM, block: int, vector: Float[Tensor, " D"]) -> AbstractContextManager[None]:
    """Inside, `vector` is added to the residual stream of every token after `block`; differentiable in it."""
    return blocks_changed(lm, {block: lambda hidden: hidden + vector.to(hidden.device, hidden.dtype)})


def into_ball(radius: float) -> Callable[[Float[Tensor, " D"]], Float[Tensor, " D"]]:
    """The nearest vector of norm at most `radius`."""

    def project(vector: Float[Tensor, " D"]) -> Float[Tensor, " D"]:
        norm = torch.linalg.vector_norm(vector)
        return vector * (radius / norm) if norm > radius else vector

    return project

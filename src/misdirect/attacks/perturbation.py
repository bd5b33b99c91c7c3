"""Perturbation: one vector added to the residual stream after a block, of bounded norm, trained on the attacker's half.

    h <- h + v   at every token of every question,   ||v|| <= epsilon * (median token norm of the base at that block)

Trained by projected gradient descent, tested on the other half; the budget axis is epsilon, each trained from where the
smaller one ended (its ball lies inside). It reaches past everything that a prompt could change before that block at one
place: an upper bound of another kind than the soft prompt, and the cheapest, for blocks below take no gradient.

    for attack in attacks(case, AuditConfig(soft_steps=60)): attack.run(lm, case, attack, lambda done: None)
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from jaxtyping import Float
from torch import Tensor

from misdirect.attacks import optimize
from misdirect.attacks.direction import steered_block
from misdirect.attacks.interface import Advance, Attack, Case, Cost
from misdirect.attacks.scoring import LANGUAGE_TOKENS, Point, language, results, sit, sitting_tokens
from misdirect.config import AuditConfig
from misdirect.data.batches import plan_single
from misdirect.model.interventions import blocks_changed
from misdirect.model.load import LM
from misdirect.runs import Result

EPSILONS = (0.1, 0.5, 1.0)
BATCH = 8
RATE = 0.2  # learning rate in radii over the root of the width
LEAST_STEPS = 15


def attacks(case: Case, config: AuditConfig) -> list[Attack]:
    """`perturbation-block` at the steered block (or where the models' means part), `perturbation-late` half-way from there
    to the last."""
    steps = config.soft_steps
    sits = (len(EPSILONS) + 1) * sitting_tokens(case, general=False)
    general = sitting_tokens(case) - sitting_tokens(case, general=False)
    cost = Cost(
        forward_tokens=sits + general + LANGUAGE_TOKENS,
        train_tokens=optimize.FROZEN * steps * BATCH * optimize.example_tokens(case),
        memory=optimize.update_bytes(case, BATCH),
    )
    return [
        Attack(
            name=f"perturbation-{place}",
            family="perturbation",
            title=f"Vector added {words}, at most {EPSILONS[-1]:g} median norms long, {steps} updates",
            access="weights",
            settings=optimize.settings_of(
                place=place, block=case.block, epsilons=list(EPSILONS), soft_steps=steps, batch_size=BATCH, rate=RATE
            ),
            cost=cost,
            num_steps=steps,
            run=run,
            needs_means=True,
            holds="answered questions",
            base_alone=False,
            missing=optimize.lacking(case) if steps >= LEAST_STEPS else f"needs --soft-steps {LEAST_STEPS} or more",
        )
        for place, words in [("block", "after the steered block"), ("late", "half-way above the steered block")]
    ]


def run(lm: LM, case: Case, attack: Attack, advance: Advance) -> list[Result]:
    """Trains one vector per epsilon and asks with each; other sets and answers in words with the longest.

    Raises ValueError where the loss is not finite.
    """
    steps, block = attack.settings["soft_steps"], place_of(case, attack.settings["place"])
    assert case.medians is not None, "needs_means"
    vector = torch.zeros(case.shape.width, device=lm.device, requires_grad=True)

    def applied() -> AbstractContextManager[None]:
        return added(lm, block, vector)

    items = optimize.examples(lm, case)
    before = optimize.watched(lm, items, BATCH)
    points = [(Point(block=block, budget=0.0), sit(lm, case, general=False))]
    plan = plan_single(len(items), steps, BATCH, case.seed)
    ends, spent = [0, *optimize.checkpoints(steps, len(EPSILONS))], 0.0
    for start, stop, epsilon in zip(ends, ends[1:], EPSILONS, strict=False):
        since, radius = time.perf_counter(), epsilon * case.medians[block].item()
        rate = RATE * radius / math.sqrt(case.shape.width)
        for _ in optimize.updates(lm, items, vector, applied, plan[start:stop], rate, into_ball(radius)):
            advance(1)
        spent += time.perf_counter() - since
        with applied():
            points.append((Point(block=block, budget=epsilon), sit(lm, case, general=stop == steps)))
    end = optimize.watched(lm, items, BATCH, applied)
    seen = float(sum(optimize.num_tokens(items[row]) for rows in plan for row in rows))
    with applied():
        answers = language(lm, case, attack)
    return [*results(case, attack, points, spent, seen, optimize.evidence(before, before, end)), answers]


def place_of(case: Case, place: str) -> int:
    block = steered_block(case)
    return block if place == "block" else (block + case.shape.num_blocks) // 2


def added(lm: LM, block: int, vector: Float[Tensor, " D"]) -> AbstractContextManager[None]:
    """Inside, `vector` is added to the residual stream of every token after `block`; differentiable in it."""
    return blocks_changed(lm, {block: lambda hidden: hidden + vector.to(hidden.device, hidden.dtype)})


def into_ball(radius: float) -> Callable[[Float[Tensor, " D"]], Float[Tensor, " D"]]:
    """The nearest vector of norm at most `radius`."""

    def project(vector: Float[Tensor, " D"]) -> Float[Tensor, " D"]:
        norm = torch.linalg.vector_norm(vector)
        return vector * (radius / norm) if norm > radius else vector

    return project

"""Perturbation: one vector added to the residual stream after a block, of bounded norm, trained on the attacker's half.

    h <- h + v   at every token of every question,   ||v|| <= epsilon * (median token norm of the base at that block)

Trained by projected gradient descent, tested on the other half; the budget axis is epsilon, each trained from where the
smaller one ended (its ball lies inside). It reaches past everything that a prompt could change before that block at one
place: an upper bound of another kind than the soft prompt, and the cheapest, for blocks below take no gradient.

    for attack in attacks(case, AuditConfig(soft_steps=60)): attack.run(lm, case, attack, lambda done: None)
"""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from misdirect.attacks import optimise
from misdirect.attacks.case import Advance, Attack, Case, Cost
from misdirect.attacks.measure import LANGUAGE_TOKENS, sitting_tokens
from misdirect.config import AuditConfig
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
    cost = Cost(sits + general + LANGUAGE_TOKENS, steps * BATCH * optimise.example_tokens(case))
    return [
        Attack(
            name=f"perturbation-{place}",
            family="perturbation",
            title=f"Vector added {words}, at most {EPSILONS[-1]:g} median norms long, {steps} updates",
            access="weights",
            settings=optimise.settings_of(
                place=place, block=case.block, epsilons=list(EPSILONS), soft_steps=steps, batch_size=BATCH, rate=RATE
            ),
            cost=cost,
            num_steps=steps,
            run=run,
            needs_means=True,
            missing="" if steps >= LEAST_STEPS else f"needs --soft-steps {LEAST_STEPS} or more",
        )
        for place, words in [("block", "after the steered block"), ("late", "half-way above the steered block")]
    ]


def run(lm: LM, case: Case, attack: Attack, advance: Advance) -> list[Result]:
    """Trains one vector per epsilon and asks with each; other sets and answers in words with the longest."""
    raise NotImplementedError


def into_ball(radius: float) -> Callable[[Float[Tensor, " D"]], Float[Tensor, " D"]]:
    """The nearest vector of norm at most `radius`."""
    raise NotImplementedError

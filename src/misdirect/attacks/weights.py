"""Attacks that change every matrix by a level: the questions are asked at each, and the matrices put back."""

from __future__ import annotations

import time
from collections.abc import Sequence

from misdirect.attacks import scoring
from misdirect.attacks.interface import Advance, Attack, AttackInputs, Cost
from misdirect.attacks.scoring import Point
from misdirect.model.interventions import Rewrite, weights_changed
from misdirect.model.lm import LM
from misdirect.runs import Result


def run_levels(
    lm: LM,
    inputs: AttackInputs,
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
            points.append((point, scoring.score_sets(lm, inputs)))
        advance(1)
    with weights_changed(lm, levels[scoring.strongest(inputs, points)][1]):
        spoken = scoring.language(lm, inputs, attack)
    advance(1)
    return [*scoring.results(inputs, attack, points, seconds, float(tokens)), spoken]


def cost(num_levels: int, tokens: float = 0.0) -> Cost:
    """Of `run_levels`: the changed matrices stand beside the originals, one level at a time."""
    return Cost(
        scorings=num_levels,
        retained_scorings=num_levels,
        answers=1,
        tokens=tokens,
        rewrites=num_levels + 1,
        copies=1.0,
    )

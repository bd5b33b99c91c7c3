"""Attacks that change every matrix by a level: the questions are asked at each, and the matrices put back."""

from __future__ import annotations

import time
from collections.abc import Sequence

from misdirect.attacks import scoring
from misdirect.attacks.interface import Advance, Attack, Case, Cost
from misdirect.attacks.scoring import Point
from misdirect.model.interventions import Rewrite, weights_changed
from misdirect.model.load import LM
from misdirect.runs import Result


def run_levels(
    lm: LM,
    case: Case,
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
            points.append((point, scoring.sit(lm, case)))
        advance(1)
    with weights_changed(lm, levels[scoring.strongest(case, points)][1]):
        spoken = scoring.language(lm, case, attack)
    advance(1)
    return [*scoring.results(case, attack, points, seconds, float(tokens)), spoken]


# Weights rewritten a second: a careful guess for one core, for estimates alone.
WEIGHTS_PER_SECOND = 3e7


def cost(case: Case, num_levels: int) -> Cost:
    """Of `run_levels`: the changed matrices stand beside the originals, one level at a time."""
    shape = case.shape
    return Cost(
        forward_tokens=num_levels * scoring.sitting_tokens(case) + scoring.LANGUAGE_TOKENS,
        seconds=(num_levels + 1) * shape.num_parameters / WEIGHTS_PER_SECOND,
        memory=shape.num_parameters * shape.bytes_per_parameter,
    )

"""Every attack, in the order in which an audit spends its time: the clean relearning first, the rest by what it costs."""

from __future__ import annotations

import difflib
import time
from collections.abc import Sequence
from dataclasses import dataclass

from misdirect.attacks import (
    brittleness,
    direction,
    lens,
    noise,
    perturbation,
    probes,
    prompts,
    prune,
    quantize,
    relearn,
    soft_prompt,
)
from misdirect.attacks.gcg import attack as gcg
from misdirect.attacks.interface import Advance, Attack, AttackInputs, Cost
from misdirect.attacks.scoring import Point, results, score_sets
from misdirect.config import AuditConfig
from misdirect.model.lm import LM
from misdirect.runs import Result
from misdirect.runs.audit import BASELINE


@dataclass(frozen=True)
class Settings:
    attack: str


def baseline_attack() -> Attack:
    """No attack: what both models answer as they are, on the very questions that are measured after every attack."""
    return Attack(
        name=BASELINE,
        family=BASELINE,
        title="No attack",
        attacker_access="prompt",
        settings=Settings(BASELINE),
        cost=Cost(scorings=1, retained_scorings=1),
        num_steps=1,
        run=run_baseline,
        recovers=False,
    )


def run_baseline(lm: LM, inputs: AttackInputs, attack: Attack, advance: Advance) -> list[Result]:
    started = time.perf_counter()
    logprobs = score_sets(lm, inputs)
    advance(1)
    return results(inputs, attack, [(Point(), logprobs)], time.perf_counter() - started)


# The rest: what is cheap before what is dear.
ORDER = (direction, lens, probes, soft_prompt, gcg, quantize, prompts, brittleness, perturbation, prune, noise)


def attacks(inputs: AttackInputs, config: AuditConfig) -> list[Attack]:
    """All of them, whether or not they can be run here, in the order in which time is spent."""
    others = [attack for module in ORDER for attack in module.attacks(inputs, config)] + relearn.rest(inputs, config)
    made = [*relearn.first(inputs, config), *sorted(others, key=lambda attack: attack.low_priority)]
    assert len({attack.name for attack in made}) == len(made)
    return made


def selected(made: Sequence[Attack], only: Sequence[str], skip: Sequence[str]) -> list[Attack]:
    """By family or by name (or its beginning). Raises ValueError for what names no attack."""
    for given in (*only, *skip):
        if not any(matches(attack, given) for attack in made):
            known = list(dict.fromkeys([a.family for a in made] + [a.name for a in made]))
            near = difflib.get_close_matches(given, known, n=1)
            families = ", ".join(dict.fromkeys(a.family for a in made))
            raise ValueError(
                f"no attack is called {given!r}; "
                + (f"did you mean {near[0]}?" if near else f"expected one of {families}")
            )
    kept = [a for a in made if not only or any(matches(a, given) for given in only)]
    return [a for a in kept if not any(matches(a, given) for given in skip)]


def matches(attack: Attack, given: str) -> bool:
    return given == attack.family or attack.name == given or attack.name.startswith(f"{given}-")

"""GCG: text of a few tokens, searched by gradient, that makes a model say the right answer.

Two universal attacks look for one text that serves many questions: it is found on questions of the attacker's half and
measured on the other half, so what comes back was inside the model. `gcg-suffix-single` looks for a text for one tested
question, towards its right answer and, as the control, towards a wrong one: enough search makes any model say anything,
so what counts is how much easier the right answer is.

Zou et al. 2023 (arXiv 2307.15043); against unlearned models Lucki et al. 2024 (arXiv 2409.18025). The search itself stands
in `misdirect.attacks.gcg_search`.

    for attack in attacks(case, AuditConfig(gcg_steps=50)):
        found = attack.run(lm, case, attack, lambda done: None)
"""

from __future__ import annotations

from misdirect.attacks.case import Attack, Case
from misdirect.config import AuditConfig

LEAST_STEPS = 20


def attacks(case: Case, config: AuditConfig) -> list[Attack]:
    """`gcg-suffix-universal`, `gcg-prefix-universal`, `gcg-suffix-single`. Under 20 steps each says what it misses."""
    raise NotImplementedError

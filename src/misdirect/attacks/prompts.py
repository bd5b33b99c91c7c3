"""Prompts that need no optimisation: answered examples, other wordings, roles, typos, spacing, another answer format.

for attack in attacks(case, config): attack.run(lm, case, attack, advance)
"""

from __future__ import annotations

from misdirect.attacks.case import Attack, Case
from misdirect.config import AuditConfig


def attacks(case: Case, config: AuditConfig) -> list[Attack]:
    """The attacks of this module, weakest access first."""
    return []

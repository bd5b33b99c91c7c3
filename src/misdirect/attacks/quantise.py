"""Rounding every matrix to 8, 4 or 3 bits, and to NF4 through bitsandbytes.

    for attack in attacks(case, config): attack.run(lm, case, attack, advance)
"""

from __future__ import annotations

from misdirect.attacks.case import Attack, Case
from misdirect.config import AuditConfig


def attacks(case: Case, config: AuditConfig) -> list[Attack]:
    """The attacks of this module, weakest access first."""
    return []

"""Linear probes: is the answer still in the residual stream, for a reader with labels?

`probe-true-false`: the state at the last token of question + choice, before block 0 (block -1 in the results) and after
every block; a probe learns from the attacker's half which choices are right, and answers a tested question with the choice
that it scores highest. `probe-letters`: the WMDP paper's probe (Li et al. 2024, arXiv 2403.03218), the state at the last
token of the lettered question, one class a letter. Controls: the same probe on labels shuffled within each question (across
questions for letters), whose accuracy taken off gives the selectivity (Hewitt and Liang 2019, arXiv 1909.03368); other
sets, split in halves the same way; the base, which the caller probes too.

A probe says what is inside, not what an attacker without labels could get out: it does not count as recovery.
"""

from __future__ import annotations

from misdirect.attacks.case import Advance, Attack, Case
from misdirect.config import AuditConfig
from misdirect.model.load import LM
from misdirect.runs import Result

MEASUREMENT = "probe"
SHUFFLES = 5  # label shuffles of the control


def attacks(case: Case, config: AuditConfig) -> list[Attack]:
    """`probe-true-false` and `probe-letters`."""
    raise NotImplementedError


def run_true_false(lm: LM, case: Case, attack: Attack, advance: Advance) -> list[Result]:
    """A `Result` a set: `probe_accuracy`, `probe_shuffled_accuracy` and `selectivity` of every block."""
    raise NotImplementedError


def run_letters(lm: LM, case: Case, attack: Attack, advance: Advance) -> list[Result]:
    """The same for the lettered question."""
    raise NotImplementedError

"""The logit lens: what every block's residual state says when the model's own last step reads it (nostalgebraist 2020).

The state after block i takes the place of the last block's output, and the model does the rest itself: final norm,
unembedding, and whatever scaling or capping of logits its architecture has. So nothing of that is known here by name, and
the lens at the last block is the model. A choice's score is the summed log-probability of its tokens, as everywhere, each
read from the state of the same block; one forward pass a question gives the states of all blocks.

    points = lens(lm, items)                                      # [block][item][choice] log-probabilities
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from jaxtyping import Float
from torch import Tensor

from misdirect.attacks.case import Advance, Attack, Case
from misdirect.config import AuditConfig
from misdirect.model.load import LM
from misdirect.model.packed import Encoded
from misdirect.runs import Result


def attacks(case: Case, config: AuditConfig) -> list[Attack]:
    """One attack, `lens`: a point a block."""
    raise NotImplementedError


def run(lm: LM, case: Case, attack: Attack, advance: Advance) -> list[Result]:
    """Accuracy read out of every block, on the tested half of each forgotten set and on the other sets."""
    raise NotImplementedError


def lens(
    lm: LM, items: Sequence[Encoded], batch_tokens: int = 4096, advance: Callable[[int], None] | None = None
) -> list[list[list[float]]]:
    """[block][item][choice]: summed log-probabilities. Raises ValueError where the last block's are not the model's own."""
    raise NotImplementedError


def read_out(lm: LM, states: Float[Tensor, "N D"]) -> Float[Tensor, "N V"]:
    """Logits of the model whose last block gave these states."""
    raise NotImplementedError

"""Direction ablation: take out of the residual stream what unlearning may have put in, and ask again. No training.

    ablate:    h <- h - Q^T Q h        Q (K, D): orthonormal rows
    fold:      W <- W - Q^T Q W        for every matrix W that writes into the residual stream, embeddings included
    subtract:  h <- h - d              d = mean forget state of the unlearned model - the base's

Source: Arditi et al. 2024, arXiv 2406.11717; on RMU: Lucki et al. 2024, arXiv 2409.18025. RMU pushes forget text along a
control vector, so where that vector is known (`control.safetensors`) an attacker takes it out directly; without it he has
differences of means, the principal component, or the guess that a vector drawn from [0, 1)^D is near the all-ones one. All
directions come from forget and retain text, never from measured questions.

    for attack in attacks(case, AuditConfig()): attack.run(lm, case, attack, lambda done: None)
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from jaxtyping import Float
from torch import Tensor

from misdirect.attacks.case import Advance, Attack, Case, Cost
from misdirect.attacks.measure import LANGUAGE_TOKENS, sitting_tokens
from misdirect.config import AuditConfig
from misdirect.model.load import LM
from misdirect.runs import Result

Source = Literal["control", "ones", "forget-retain", "unlearned-base", "pc1"]
Place = Literal["block", "all", "folded", "written", "subtract"]


class Kind(NamedTuple):
    """One attack: which direction, what is done with it, and how a table names that."""

    source: Source
    place: Place


KINDS = (
    Kind("control", "block"), Kind("control", "all"), Kind("control", "written"), Kind("control", "folded"),
    Kind("unlearned-base", "subtract"), Kind("unlearned-base", "block"), Kind("unlearned-base", "all"),
    Kind("forget-retain", "block"), Kind("forget-retain", "all"), Kind("pc1", "block"), Kind("pc1", "all"), Kind("ones", "all"),
)  # fmt: skip
SOURCES = {
    "control": "stored control vector", "ones": "all-ones direction", "forget-retain": "mean forget - mean retain",
    "unlearned-base": "mean unlearned - mean base", "pc1": "first principal component",
}  # fmt: skip
PLACES = {
    "block": "ablated after the steered block", "all": "ablated after every block",
    "folded": "taken out of every writing matrix", "written": "taken out of what the trained blocks write",
    "subtract": "subtracted after the steered block",
}  # fmt: skip


def attacks(case: Case, config: AuditConfig) -> list[Attack]:
    """Twelve attacks of one point each, named `direction-SOURCE-PLACE`; cheap, and none needs more than forward passes."""
    cost = Cost(forward_tokens=sitting_tokens(case) + LANGUAGE_TOKENS)
    shape = case.shape
    copied = shape.num_parameters * shape.bytes_per_parameter / 2  # the matrices that write: under half of a model
    return [
        Attack(
            name=f"direction-{kind.source}-{kind.place}",
            family="direction",
            title=f"{SOURCES[kind.source].capitalize()} {PLACES[kind.place]}",
            access="weights",
            settings={"source": kind.source, "place": kind.place, "block": case.block},
            cost=cost._replace(memory=copied) if kind.place in ("folded", "written") else cost,
            num_steps=1,
            run=run,
            needs_means=kind.source in ("forget-retain", "unlearned-base") or (case.block is None),
            missing="needs a run's control.safetensors"
            if kind.source == "control" and not case.control_vectors
            else "",
        )
        for kind in KINDS
    ]


def run(lm: LM, case: Case, attack: Attack, advance: Advance) -> list[Result]:
    """Asks every set, and for a few answers in words, with the direction taken out."""
    raise NotImplementedError


def steered_block(case: Case) -> int:
    """The run's block, else the block at which the two models' mean states on forget text part."""
    raise NotImplementedError


def orthonormal(vectors: Float[Tensor, "N D"]) -> Float[Tensor, "K D"]:
    """An orthonormal basis of the rows' span; rows of zeros span nothing."""
    raise NotImplementedError

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

import time
from contextlib import AbstractContextManager
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from misdirect.attacks.interface import Advance, Attack, Case, Cost
from misdirect.attacks.scoring import LANGUAGE_TOKENS, Point, language, results, sit, sitting_tokens
from misdirect.config import AuditConfig
from misdirect.data.batches import beginnings
from misdirect.model import rope
from misdirect.model.activations import states_after
from misdirect.model.finite import not_finite
from misdirect.model.hooks import first_output, hooked
from misdirect.model.interventions import blocks_changed
from misdirect.model.load import LM
from misdirect.model.rows import padded
from misdirect.model.score import forward
from misdirect.model.writers import folded, without, writers
from misdirect.runs import Metric, Result

Source = Literal["control", "ones", "forget-retain", "unlearned-base", "pc1"]
Place = Literal["block", "all", "folded", "written", "subtract"]


TRAINED = 3  # blocks that RMU trains: the steered one and two before it
TEXTS, TEXT_TOKENS, STATES = 32, 128, 1024  # forget text behind the principal component


class Kind(NamedTuple):
    """One attack: which direction, what is done with it, and how a table names that."""

    source: Source
    place: Place


FIRST = (  # each direction at one place, and the one that only its maker knows folded as well
    Kind("control", "block"), Kind("control", "folded"), Kind("forget-retain", "block"), Kind("unlearned-base", "block"),
    Kind("pc1", "block"), Kind("ones", "all"),
)  # fmt: skip
LATE = (
    Kind("control", "all"), Kind("control", "written"), Kind("forget-retain", "all"), Kind("forget-retain", "folded"),
    Kind("unlearned-base", "all"), Kind("unlearned-base", "folded"), Kind("unlearned-base", "subtract"),
    Kind("pc1", "all"), Kind("pc1", "folded"), Kind("ones", "block"), Kind("ones", "folded"),
)  # fmt: skip
SOURCES = {
    "control": "stored control vector", "ones": "all-ones direction", "forget-retain": "mean forget - mean retain",
    "unlearned-base": "mean unlearned - mean base", "pc1": "first principal component",
}  # fmt: skip
HOLDS = {
    "control": "the control vectors", "ones": "", "forget-retain": "text on the topic", "unlearned-base": "the base model",
    "pc1": "text on the topic",
}  # fmt: skip
PLACES = {
    "block": "ablated after the steered block", "all": "ablated after every block",
    "folded": "taken out of every writing matrix", "written": "taken out of what the trained blocks write",
    "subtract": "subtracted after the steered block",
}  # fmt: skip


def attacks(case: Case, config: AuditConfig) -> list[Attack]:
    """An attack of one point for every kind, named `direction-SOURCE-PLACE`; cheap, and none needs more than forward passes."""
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
            holds=HOLDS[kind.source] if case.block is not None or kind.place in ("all", "folded") else "the base model",
            late=kind in LATE,
            base_alone=False,
            missing=missing(case, kind.source),
        )
        for kind in (*FIRST, *LATE)
    ]


def missing(case: Case, source: Source) -> str:
    if source == "control" and not case.control_vectors:
        return "needs a run's control.safetensors"
    if source == "forget-retain" and not (case.retain_texts or case.benign_texts):
        return "needs --retain or --text"
    return ""


def run(lm: LM, case: Case, attack: Attack, advance: Advance) -> list[Result]:
    """Asks every set, and for a few answers in words, with the direction taken out."""
    source, place = attack.settings["source"], attack.settings["place"]
    block, since = steered_block(case), time.perf_counter()
    basis = directions(lm, case, source, block)
    with taken_out(lm, case, place, block, basis):
        extra = [Metric("component_left", component_left(lm, case, block, basis))]
        prepared = time.perf_counter() - since
        sat = sit(lm, case)
        answers = language(lm, case, attack)
    advance(1)
    point = Point() if place in ("all", "folded") else Point(block=block)
    return [*results(case, attack, [(point, sat)], prepared, 0.0, extra), answers]


# ---------------------------------------------------------------------------------------------------- which direction


def directions(lm: LM, case: Case, source: Source, block: int) -> Float[Tensor, "K D"]:
    """The span to take out, as orthonormal rows; no row where two means are equal. fp32, on the CPU."""
    if source == "control":
        return orthonormal(torch.stack([v.detach().cpu().float() for v in case.control_vectors.values()]))
    if source == "ones":
        return orthonormal(torch.ones(1, case.shape.width))
    if source == "pc1":
        return orthonormal(principal(forget_states(lm, case, block)).unsqueeze(0))
    unlearned = case.means["unlearned"]
    minus = unlearned.retain if source == "forget-retain" else case.means["base"].forget
    return orthonormal((unlearned.forget - minus)[block].detach().cpu().float().unsqueeze(0))


def steered_block(case: Case) -> int:
    """The run's block, else the block at which the two models' mean states on forget text part: where the distance of the
    means, in norms of the base's, grows most over the block before."""
    if case.block is not None:
        return case.block
    base, unlearned = case.means["base"].forget.float(), case.means["unlearned"].forget.float()
    apart = (unlearned - base).norm(dim=-1) / base.norm(dim=-1).clamp(min=1e-12)  # (L,)
    return int(apart.diff(prepend=apart.new_zeros(1)).argmax())


def orthonormal(vectors: Float[Tensor, "N D"]) -> Float[Tensor, "K D"]:
    """An orthonormal basis of the rows' span; rows of zeros span nothing."""
    _, values, rows = torch.linalg.svd(vectors.double(), full_matrices=False)
    return rows[values > 1e-6 * max(values[0].item(), 1e-30)].float()


def forget_samples(lm: LM, case: Case) -> list[list[int]]:
    """The beginnings of some texts on the topic."""
    return beginnings(lm.tokenizer, case.topic_texts, TEXTS, TEXT_TOKENS, case.seed)


def forget_states(lm: LM, case: Case, block: int) -> Float[Tensor, "N D"]:
    """States of at most `STATES` forget tokens of the model under attack after `block`, first tokens left out."""
    samples, parts = forget_samples(lm, case), []
    eights = ([*range(i, min(i + 8, len(samples)))] for i in range(0, len(samples), 8))
    for rows in rope.split(lm.model, eights, list(map(len, samples))):
        batch = padded(lm, [samples[row] for row in rows])
        states = states_after(lm.model, lm.blocks, block, batch.input_ids, batch.attention_mask)
        parts.append(states[batch.counts].float().cpu())
    found = torch.cat(parts)
    if not found.isfinite().all():
        raise not_finite(lm, f"the states of {int((~found.isfinite().all(-1)).sum())} of {len(found)} tokens of text")
    return found[torch.linspace(0, len(found) - 1, min(STATES, len(found))).long()]


def principal(states: Float[Tensor, "N D"]) -> Float[Tensor, " D"]:
    """The direction along which the states vary most."""
    return torch.linalg.svd((states - states.mean(0)).double(), full_matrices=False).Vh[0].float()


# ---------------------------------------------------------------------------------------------------- what is done


def taken_out(
    lm: LM, case: Case, place: Place, block: int, basis: Float[Tensor, "K D"]
) -> AbstractContextManager[None]:
    """Inside, the model is without the direction at that place."""
    if place == "subtract":
        shift = (case.means["unlearned"].forget - case.means["base"].forget)[block]
        return blocks_changed(lm, {block: lambda h: h - shift.to(h.device, h.dtype)})
    if place == "folded":
        return folded(lm, writers(lm), basis)
    if place == "written":
        return folded(lm, [w for w in writers(lm) if w.block in range(block - TRAINED + 1, block + 1)], basis)
    where = range(len(lm.blocks)) if place == "all" else [block]
    return blocks_changed(lm, dict.fromkeys(where, lambda h: without(h, basis, -1)))


@torch.no_grad()
def component_left(lm: LM, case: Case, block: int, basis: Float[Tensor, "K D"]) -> float:
    """The largest share of a token's norm that lies along the direction after `block`, on one forget text."""
    ids = torch.tensor(forget_samples(lm, case)[:1], device=lm.device)
    states: list[Tensor] = []
    with hooked([lambda: lm.blocks[block].register_forward_hook(lambda m, a, out: states.append(first_output(out)))]):
        forward(lm, ids, torch.ones_like(ids), keep=1)
    hidden = states[0][0].float()  # (T, D)
    along = (hidden @ basis.to(hidden.device).T).norm(dim=-1) / hidden.norm(dim=-1)
    return along.max().item()

"""Direction ablation: take out of the residual stream what unlearning may have put in, and ask again. No training.

    ablate:    h <- h - Q^T Q h        Q (K, D): orthonormal rows
    fold:      W <- W - Q^T Q W        for every matrix W that writes into the residual stream, embeddings included
    subtract:  h <- h - d              d = mean forget state of the unlearned model - the base's

Source: Arditi et al. 2024, arXiv 2406.11717; on RMU: Lucki et al. 2024, arXiv 2409.18025. RMU pushes forget text along a
control vector, so where that vector is known (`control.safetensors`) an attacker takes it out directly; without it he has
differences of means, the principal component, or the guess that a vector drawn from [0, 1)^D is near the all-ones one. All
directions come from forget and retain text, never from measured questions.

    for attack in attacks(inputs, AuditConfig()): attack.run(lm, inputs, attack, lambda done: None)
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from misdirect.attacks.interface import Advance, Attack, AttackInputs, Cost
from misdirect.attacks.scoring import Point, language, results, score_sets
from misdirect.config import AuditConfig
from misdirect.data.batches import first_chunks
from misdirect.model import rope
from misdirect.model.activations import states_after
from misdirect.model.finite import not_finite
from misdirect.model.hooks import first_output, hooked
from misdirect.model.interventions import blocks_changed
from misdirect.model.lm import LM
from misdirect.model.rows import padded
from misdirect.model.score import forward
from misdirect.model.writers import folded, without, writers
from misdirect.runs import Metric, Result

Source = Literal["control", "ones", "forget-retain", "unlearned-base", "pc1"]
Site = Literal["block", "all", "folded", "written", "subtract"]

TRAINED = 3  # blocks that RMU trains: the steered one and two before it
TEXTS, TEXT_TOKENS, STATES = 32, 128, 1024  # forget text behind the principal component


class Kind(NamedTuple):
    """One attack: which direction, and where it is taken out."""

    source: Source
    site: Site


@dataclass(frozen=True)
class Settings:
    source: Source
    place: Site
    block: int | None


FIRST = (  # each direction at one place, and the one that only its maker knows folded as well
    Kind("control", "block"), Kind("control", "folded"), Kind("forget-retain", "block"), Kind("unlearned-base", "block"),
    Kind("pc1", "block"), Kind("ones", "all"),
)  # fmt: skip
LOW_PRIORITY = (
    Kind("control", "all"), Kind("control", "written"), Kind("forget-retain", "all"), Kind("forget-retain", "folded"),
    Kind("unlearned-base", "all"), Kind("unlearned-base", "folded"), Kind("unlearned-base", "subtract"),
    Kind("pc1", "all"), Kind("pc1", "folded"), Kind("ones", "block"), Kind("ones", "folded"),
)  # fmt: skip
SOURCES = {
    "control": "stored control vector", "ones": "all-ones direction", "forget-retain": "mean forget - mean retain",
    "unlearned-base": "mean unlearned - mean base", "pc1": "first principal component",
}  # fmt: skip
KNOWLEDGE = {
    "control": "the control vectors", "ones": "", "forget-retain": "text on the topic", "unlearned-base": "the base model",
    "pc1": "text on the topic",
}  # fmt: skip
SITES = {
    "block": "ablated after the steered block", "all": "ablated after every block",
    "folded": "taken out of every writing matrix", "written": "taken out of what the trained blocks write",
    "subtract": "subtracted after the steered block",
}  # fmt: skip


def attacks(inputs: AttackInputs, config: AuditConfig) -> list[Attack]:
    """An attack of one point for every kind, named `direction-SOURCE-PLACE`; cheap, and none needs more than forward passes."""
    copies = {"folded": 0.5, "written": 0.5}  # the matrices that write: under half of a model
    return [
        Attack(
            name=f"direction-{kind.source}-{kind.site}",
            family="direction",
            title=f"{SOURCES[kind.source].capitalize()} {SITES[kind.site]}",
            attacker_access="weights",
            settings=Settings(kind.source, kind.site, inputs.block),
            cost=Cost(scorings=1, retained_scorings=1, answers=1, copies=copies.get(kind.site, 0.0)),
            num_steps=1,
            run=run,
            needs_mean_states=kind.source in ("forget-retain", "unlearned-base") or (inputs.block is None),
            attacker_knowledge=KNOWLEDGE[kind.source]
            if inputs.block is not None or kind.site in ("all", "folded")
            else "the base model",
            low_priority=kind in LOW_PRIORITY,
            base_independent=False,
            unavailable=unavailable(inputs, kind.source),
        )
        for kind in (*FIRST, *LOW_PRIORITY)
    ]


def unavailable(inputs: AttackInputs, source: Source) -> str:
    if source == "control" and not inputs.control_vectors:
        return "needs a run's control.safetensors"
    if source == "forget-retain" and not (inputs.retain_texts or inputs.benign_texts):
        return "needs --retain or --text"
    return ""


def run(lm: LM, inputs: AttackInputs, attack: Attack, advance: Advance) -> list[Result]:
    """Asks every set, and for a few answers in words, with the direction taken out."""
    settings: Settings = attack.settings
    block, since = steered_block(inputs), time.perf_counter()
    basis = directions(lm, inputs, settings.source, block)
    with taken_out(lm, inputs, settings.place, block, basis):
        extra = [Metric("component_left", component_left(lm, inputs, block, basis))]
        prepared = time.perf_counter() - since
        logprobs = score_sets(lm, inputs)
        answers = language(lm, inputs, attack)
    advance(1)
    point = Point() if settings.place in ("all", "folded") else Point(block=block)
    return [*results(inputs, attack, [(point, logprobs)], prepared, 0.0, extra), answers]


# ---------------------------------------------------------------------------------------------------- which direction


def directions(lm: LM, inputs: AttackInputs, source: Source, block: int) -> Float[Tensor, "K D"]:
    """The span to take out, as orthonormal rows; no row where two means are equal. fp32, on the CPU."""
    if source == "control":
        return orthonormal(torch.stack([v.detach().cpu().float() for v in inputs.control_vectors.values()]))
    if source == "ones":
        return orthonormal(torch.ones(1, inputs.shape.width))
    if source == "pc1":
        return orthonormal(principal(forget_states(lm, inputs, block)).unsqueeze(0))
    unlearned = inputs.means["unlearned"]
    minus = unlearned.retain if source == "forget-retain" else inputs.means["base"].forget
    return orthonormal((unlearned.forget - minus)[block].detach().cpu().float().unsqueeze(0))


def steered_block(inputs: AttackInputs) -> int:
    """The run's block, else the block at which the two models' mean states on forget text part: where the distance of the
    means, in norms of the base's, grows most over the block before."""
    if inputs.block is not None:
        return inputs.block
    base, unlearned = inputs.means["base"].forget.float(), inputs.means["unlearned"].forget.float()
    apart = (unlearned - base).norm(dim=-1) / base.norm(dim=-1).clamp(min=1e-12)  # (L,)
    return int(apart.diff(prepend=apart.new_zeros(1)).argmax())


def orthonormal(vectors: Float[Tensor, "N D"]) -> Float[Tensor, "K D"]:
    """An orthonormal basis of the rows' span; rows of zeros span nothing."""
    _, values, rows = torch.linalg.svd(vectors.double(), full_matrices=False)
    return rows[values > 1e-6 * max(values[0].item(), 1e-30)].float()


def forget_samples(lm: LM, inputs: AttackInputs) -> list[list[int]]:
    """The beginnings of some texts on the topic."""
    return first_chunks(lm.tokenizer, inputs.topic_texts, TEXTS, TEXT_TOKENS, inputs.seed)


def forget_states(lm: LM, inputs: AttackInputs, block: int) -> Float[Tensor, "N D"]:
    """States of at most `STATES` forget tokens of the model under attack after `block`, first tokens left out."""
    samples, parts = forget_samples(lm, inputs), []
    eights = ([*range(i, min(i + 8, len(samples)))] for i in range(0, len(samples), 8))
    for rows in rope.split(lm.model, eights, list(map(len, samples))):
        batch = padded(lm, [samples[row] for row in rows])
        states = states_after(lm.model, lm.blocks, block, batch.input_ids, batch.attention_mask)
        parts.append(states[batch.loss_mask].float().cpu())
    found = torch.cat(parts)
    if not found.isfinite().all():
        raise not_finite(lm, f"the states of {int((~found.isfinite().all(-1)).sum())} of {len(found)} tokens of text")
    return found[torch.linspace(0, len(found) - 1, min(STATES, len(found))).long()]


def principal(states: Float[Tensor, "N D"]) -> Float[Tensor, " D"]:
    """The direction along which the states vary most."""
    return torch.linalg.svd((states - states.mean(0)).double(), full_matrices=False).Vh[0].float()


# ---------------------------------------------------------------------------------------------------- what is done


def taken_out(
    lm: LM, inputs: AttackInputs, site: Site, block: int, basis: Float[Tensor, "K D"]
) -> AbstractContextManager[None]:
    """Inside, the model is without the direction at that site."""
    if site == "subtract":
        shift = (inputs.means["unlearned"].forget - inputs.means["base"].forget)[block]
        return blocks_changed(lm, {block: lambda h: h - shift.to(h.device, h.dtype)})
    if site == "folded":
        return folded(lm, writers(lm), basis)
    if site == "written":
        return folded(lm, [w for w in writers(lm) if w.block in range(block - TRAINED + 1, block + 1)], basis)
    where = range(len(lm.blocks)) if site == "all" else [block]
    return blocks_changed(lm, dict.fromkeys(where, lambda h: without(h, basis, -1)))


@torch.no_grad()
def component_left(lm: LM, inputs: AttackInputs, block: int, basis: Float[Tensor, "K D"]) -> float:
    """The largest share of a token's norm that lies along the direction after `block`, on one forget text."""
    ids = torch.tensor(forget_samples(lm, inputs)[:1], device=lm.device)
    states: list[Tensor] = []
    with hooked([lambda: lm.blocks[block].register_forward_hook(lambda m, a, out: states.append(first_output(out)))]):
        forward(lm, ids, torch.ones_like(ids), keep=1)
    hidden = states[0][0].float()  # (T, D)
    along = (hidden @ basis.to(hidden.device).T).norm(dim=-1) / hidden.norm(dim=-1)
    return along.max().item()

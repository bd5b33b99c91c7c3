"""Setting weights to zero: the smallest, those that ordinary text uses least, those that forgotten text alone uses.

- `prune-magnitude`: the smallest |w| of each matrix.
- `prune-wanda`: in each output row the smallest |w_ij| * ||x_j||, x_j the j-th input over retained text (Sun et al. 2023,
  arXiv 2306.11695). What other text does not need goes first, and the edit that only forgotten text meets may be in it.
- `prune-forget`: what forgotten text uses and other text does not, which is the attack on the edit itself (Wei et al. 2024,
  arXiv 2402.05162; on RMU: Lucki et al. 2024, arXiv 2409.18025). In each matrix the weights that are in the top share by
  |w_ij| * ||x_j|| over forgotten text and not in the same top share over retained text. The order by the ratio of the two
  was tried instead; it takes a matrix' largest weights, and 0.1 % of them ruins the base.

The first token of a text is left out of the norms: its state is large on any text. The second matrix of fused experts has
no input that could be seen from outside; its inputs count alike.

    with weights_changed(lm, partial(by_magnitude, share=0.3)): ...
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from misdirect.attacks import weights
from misdirect.attacks.interface import Advance, Attack, AttackInputs
from misdirect.attacks.scoring import Point
from misdirect.config import AuditConfig
from misdirect.data.batches import tokenize
from misdirect.model import interventions
from misdirect.model.finite import not_finite
from misdirect.model.hooks import hooked
from misdirect.model.interventions import Matrix, Rewrite
from misdirect.model.lm import LM
from misdirect.model.score import forward
from misdirect.runs import Result

NUM_TEXTS, MAX_TOKENS = 48, 128  # read for the norms
Norms = Mapping[str, Tensor]  # matrix -> the norm of each of its inputs, (I)


@dataclass(frozen=True)
class Settings:
    """Of a rule that goes by the weights alone."""

    shares: tuple[float, ...]


@dataclass(frozen=True)
class TextSettings:
    """Of a rule that goes by what the model reads, too."""

    shares: tuple[float, ...]
    texts: int
    max_tokens: int
    seed: int


def lowest(scores: Float[Tensor, "R N"], share: float) -> Bool[Tensor, "R N"]:
    """Exactly round(share * N) of each row: the lowest, of equals the first."""
    count = round(share * scores.shape[1])
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    last = scores.kthvalue(count, dim=1, keepdim=True).values
    below, equal = scores < last, scores == last
    return below | (equal & (equal.cumsum(1) <= count - below.sum(1, keepdim=True)))


def by_magnitude(matrix: Matrix, weight: Float[Tensor, "E O I"], share: float) -> Float[Tensor, "E O I"]:
    gone = lowest(weight.abs().flatten(1), share)
    return weight.masked_fill(gone.view_as(weight), 0.0)


def by_use(matrix: Matrix, weight: Float[Tensor, "E O I"], share: float, retain: Norms) -> Float[Tensor, "E O I"]:
    scores = weight.abs() * norm_of(matrix, retain, weight)
    gone = lowest(scores.flatten(0, 1), share)
    return weight.masked_fill(gone.view_as(weight), 0.0)


def by_forget_use(
    matrix: Matrix, weight: Float[Tensor, "E O I"], share: float, forget: Norms, retain: Norms
) -> Float[Tensor, "E O I"]:
    forgotten, kept = (
        lowest(-(weight.abs() * norm_of(matrix, norms, weight)).flatten(1), share) for norms in (forget, retain)
    )
    return weight.masked_fill((forgotten & ~kept).view_as(weight), 0.0)


def norm_of(matrix: Matrix, norms: Norms, weight: Tensor) -> Tensor:
    return norms[matrix.name] if matrix.name in norms else torch.ones(weight.shape[-1], device=weight.device)


@torch.inference_mode()
def input_norms(lm: LM, samples: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """Root mean square of every input of every matrix over the samples' tokens, first tokens left out."""
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def hook(held: Sequence[Matrix]) -> Callable[..., None]:
        def see(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            state = args[0] if args else next(iter(kwargs.values()))
            rows = state.reshape(-1, state.shape[-1])[1:].float()
            for matrix in held:
                if interventions.read(matrix).shape[-1] == rows.shape[1]:
                    sums[matrix.name] = sums.get(matrix.name, 0) + rows.square().sum(0)
                    counts[matrix.name] = counts.get(matrix.name, 0) + len(rows)

        return see

    owners: dict[int, list[Matrix]] = {}
    for matrix in interventions.matrices(lm):
        owners.setdefault(id(matrix.owner), []).append(matrix)
    places = [
        lambda held=held: held[0].owner.register_forward_pre_hook(hook(held), with_kwargs=True)
        for held in owners.values()
    ]
    with hooked(places):
        for sample in samples:
            ids = torch.tensor([list(sample)], device=lm.device)
            forward(lm, ids, torch.ones_like(ids), keep=1)
    norms = {name: (total / max(1, counts[name])).sqrt() for name, total in sums.items()}
    bad = sum(not norm.isfinite().all() for norm in norms.values())
    if bad:
        raise not_finite(lm, f"the inputs of {bad} of {len(norms)} matrices")
    return norms


def tokenized_texts(lm: LM, inputs: AttackInputs, texts: Sequence[str], what: str) -> list[list[int]]:
    """The beginnings of `NUM_TEXTS` texts, drawn with the seed."""
    chosen = random.Random(f"prune:{what}:{inputs.seed}").sample(list(texts), min(NUM_TEXTS, len(texts)))
    return [sample for text in chosen for sample in tokenize(lm.tokenizer, [text], MAX_TOKENS)[:1]]


class Kind(NamedTuple):
    """One attack: its rule, the texts whose norms the rule goes by, the shares pruned."""

    rule: Callable[..., Tensor]
    reads: tuple[Literal["forget", "retain"], ...]
    shares: tuple[float, ...]
    title: str
    attacker_knowledge: str


MANY = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
KINDS = {
    "prune-magnitude": Kind(by_magnitude, (), MANY, "The smallest weights pruned", ""),
    "prune-wanda": Kind(by_use, ("retain",), MANY, "The weights that retained text uses least pruned", "other text"),
    "prune-forget": Kind(
        by_forget_use,
        ("forget", "retain"),
        (0.003, 0.01, 0.03, 0.1),
        "Weights that forgotten text uses and retained text does not pruned",
        "text on the topic",
    ),
}


def attacks(inputs: AttackInputs, config: AuditConfig) -> list[Attack]:
    return [attack_of(inputs, name, kind) for name, kind in KINDS.items()]


def attack_of(inputs: AttackInputs, name: str, kind: Kind) -> Attack:
    read = TextSettings(kind.shares, NUM_TEXTS, MAX_TOKENS, inputs.seed)
    texts = texts_of(inputs)
    lacks = " and ".join(f"--{what}" for what in kind.reads)
    return Attack(
        name=name,
        family="prune",
        title=kind.title,
        attacker_access="weights",
        settings=read if kind.reads else Settings(kind.shares),
        cost=weights.cost(len(kind.shares), tokens=float(len(kind.reads) * NUM_TEXTS * MAX_TOKENS)),
        num_steps=len(kind.shares) + 1,
        run=run,
        attacker_knowledge=kind.attacker_knowledge,
        unavailable="" if all(texts[what] for what in kind.reads) else f"needs {lacks} text",
    )


def texts_of(inputs: AttackInputs) -> dict[str, Sequence[str]]:
    return {"forget": inputs.forget_texts, "retain": inputs.retain_texts}


def run(lm: LM, inputs: AttackInputs, attack: Attack, advance: Advance) -> list[Result]:
    kind, texts = KINDS[attack.name], texts_of(inputs)
    samples = {what: tokenized_texts(lm, inputs, texts[what], what) for what in kind.reads}
    norms = {what: input_norms(lm, found) for what, found in samples.items()}
    levels: list[tuple[Point, Rewrite]] = [
        (Point(budget=share), partial(kind.rule, share=share, **norms)) for share in attack.settings.shares
    ]
    tokens = sum(len(sample) for found in samples.values() for sample in found)
    return weights.run_levels(lm, inputs, attack, advance, levels, tokens)

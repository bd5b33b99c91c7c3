"""Soft prompt: vectors in embedding space before the question, trained on the attacker's half, tested on the other.

Source: Lester et al. 2021, arXiv 2104.08691; as an attack on unlearning: Schwinn et al. 2024, arXiv 2402.09063. No prompt
of as many tokens does better on the training questions than the best vectors; what a short training finds is less than these.
The vectors take the places of token ids that no question uses; a hook on the embedding table's output puts them in, after
whatever scaling the table itself does, so that every scorer works unchanged. They start as the embeddings of a plain
sentence.

    attack = attacks(inputs, AuditConfig(soft_tokens=10, soft_steps=60))[0]
    results = attack.run(lm, inputs, attack, lambda done: None)
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from misdirect.attacks import optimize
from misdirect.attacks.interface import Advance, Attack, AttackInputs, Cost
from misdirect.attacks.scoring import Point, example_tokens, language, rendering, results, score_sets
from misdirect.config import AuditConfig
from misdirect.data.batches import sample_schedule
from misdirect.data.tokens import token_ids
from misdirect.model.blocks import text_config
from misdirect.model.interventions import embeddings_changed
from misdirect.model.lm import LM
from misdirect.model.rows import fill_id
from misdirect.model.score import Encoded, encode
from misdirect.runs import Result

BATCH = 8  # questions an update
RATE = 0.3  # learning rate in root mean squares of an embedding's entries
MIN_STEPS = 10
POINTS = 3  # of the budget axis, beside the model without a prompt
START = "Here is a science question. The answer that follows is correct, short and complete, as in a textbook."


@dataclass(frozen=True)
class Settings:
    trained_on: str
    loss: str
    soft_tokens: int
    soft_steps: int
    batch_size: int
    rate: float
    start: str


def attacks(inputs: AttackInputs, config: AuditConfig) -> list[Attack]:
    """One attack: `soft-prompt`."""
    tokens, steps = config.soft_tokens, config.soft_steps
    return [
        Attack(
            name="soft-prompt",
            family="soft-prompt",
            title=f"Soft prompt of {tokens} vectors, {steps} updates",
            attacker_access="gradients",
            settings=Settings(optimize.TRAINED_ON, optimize.LOSS, tokens, steps, BATCH, RATE, START),
            cost=Cost(
                scorings=POINTS,
                retained_scorings=1,
                answers=1,
                updates=steps,
                update_tokens=BATCH * (example_tokens(inputs) + tokens),
                trains="inputs",
            ),
            num_steps=steps,
            attacker_knowledge="answered questions",
            run=run,
            unavailable=optimize.unavailable(inputs, steps, MIN_STEPS, "--soft-steps"),
        )
    ]


def run(lm: LM, inputs: AttackInputs, attack: Attack, advance: Advance) -> list[Result]:
    """Trains the vectors and asks at `POINTS` points of the way, and before; other sets with the final vectors alone.

    Raises ValueError where the loss is not finite.
    """
    settings: Settings = attack.settings
    tokens, steps = settings.soft_tokens, settings.soft_steps
    ids = placeholders(lm, inputs, tokens)
    plain = optimize.examples(lm, inputs)
    items = [inserted(lm, ids, item) for item in plain]
    vectors = starting(lm, tokens).requires_grad_()

    def applied() -> AbstractContextManager[None]:
        return placed(lm, ids, vectors)

    before, start = optimize.watched(lm, plain, BATCH), optimize.watched(lm, items, BATCH, applied)
    plan = sample_schedule(len(items), steps, BATCH, inputs.seed)
    points = [(Point(step=0), inputs.plain or score_sets(lm, inputs))]
    asked = optimize.checkpoints(steps, POINTS)
    spent, since = 0.0, time.perf_counter()
    for step in optimize.updates(lm, items, vectors, applied, plan, RATE * size(lm)):
        advance(1)
        if step in asked:
            spent += time.perf_counter() - since
            with applied():
                found = score_sets(lm, inputs, general=step == steps, edit=lambda item: inserted(lm, ids, item))
            points.append((Point(step=step), found))
            since = time.perf_counter()
    with applied():
        spoken = language(lm, inputs, attack, lambda prompt: inserted(lm, ids, Encoded(prompt, [])).context)
    end = optimize.watched(lm, items, BATCH, applied)
    seen = float(sum(optimize.num_tokens(items[row]) for rows in plan for row in rows))
    return [*results(inputs, attack, points, spent, seen, optimize.control_metrics(before, start, end)), spoken]


def placeholders(lm: LM, inputs: AttackInputs, count: int) -> list[int]:
    """`count` token ids that no question asked here uses, none of them special. Raises ValueError where there are fewer."""
    table = lm.model.get_input_embeddings()
    size = min(len(lm.tokenizer), table.weight.shape[0])
    named = [v for key, v in text_config(lm.model).to_dict().items() if key.endswith("token_id")]
    named += [v for key, v in lm.model.config.to_dict().items() if key.endswith("token_id")]
    taken = {fill_id(lm), *lm.tokenizer.all_special_ids, *(v for v in named if isinstance(v, int))}
    for item in everything(lm, inputs):
        taken.update(item.context, *item.continuations)
    free = [i for i in range(size - 1, -1, -1) if i not in taken]
    if len(free) < count:
        raise ValueError(
            f"--soft-tokens {count} needs as many tokens that no question uses, and the vocabulary of {size} has "
            f"{len(free)} left; expected at most that"
        )
    return free[:count]


def everything(lm: LM, inputs: AttackInputs) -> list[Encoded]:
    """Every question that is trained on or measured, encoded as it is asked."""
    groups = [(name, [*halves.train, *halves.test]) for name, halves in inputs.forgotten.items()]
    groups += [(name, list(questions)) for name, questions in inputs.retained.items()]
    return [
        encode(lm.tokenizer, *rendering(inputs.forms[name], inputs.seed)(question))
        for name, questions in groups
        for question in questions
    ]


def inserted(lm: LM, ids: list[int], item: Encoded) -> Encoded:
    """`item` with these tokens before its context, after a BOS where it begins with one."""
    bos = lm.tokenizer.bos_token_id
    at = int(bos is not None and item.context[0] == bos)
    return Encoded([*item.context[:at], *ids, *item.context[at:]], item.continuations)


def placed(lm: LM, ids: list[int], vectors: Float[Tensor, "P D"]) -> AbstractContextManager[None]:
    """Inside, the embedding of token `ids[i]` is `vectors[i]`; differentiable in `vectors`."""

    def change(input_ids: Int[Tensor, "B T"], embeddings: Float[Tensor, "B T D"]) -> Tensor:
        match = input_ids.unsqueeze(-1) == torch.tensor(ids, device=input_ids.device)  # (B, T, P)
        mine = vectors.to(embeddings.device, embeddings.dtype)[match.int().argmax(-1)]
        return torch.where(match.any(-1, keepdim=True), mine, embeddings)

    return embeddings_changed(lm, change)


@torch.no_grad()
def starting(lm: LM, count: int) -> Float[Tensor, "P D"]:
    """The embeddings of a plain sentence's tokens, over and over, in fp32: as the table gives them, scaling included."""
    ids = token_ids(lm.tokenizer, [START], start=False)[0]
    repeated = torch.tensor([(ids * count)[:count]], device=lm.device)
    found: Tensor = lm.model.get_input_embeddings()(repeated)[0].detach().float().clone()
    return found


@torch.no_grad()
def size(lm: LM) -> float:
    """Root mean square of the entries of ordinary embeddings, as the table gives them."""
    ids = token_ids(lm.tokenizer, [START], start=False)[0]
    found: Tensor = lm.model.get_input_embeddings()(torch.tensor([ids], device=lm.device)).float()
    return found.square().mean().sqrt().item()

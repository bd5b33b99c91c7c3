"""Soft prompt: vectors in embedding space before the question, trained on the attacker's half, tested on the other.

Source: Lester et al. 2021, arXiv 2104.08691; as an attack on unlearning: Schwinn et al. 2024, arXiv 2402.09063. No prompt
of as many tokens does better on the training questions than the best vectors; what a short training finds is less than these.
The vectors take the places of token ids that no question uses; a hook on the embedding table's output puts them in, after
whatever scaling the table itself does, so that every scorer works unchanged. They start as the embeddings of a plain
sentence.

    attack = attacks(case, AuditConfig(soft_tokens=10, soft_steps=60))[0]
    results = attack.run(lm, case, attack, lambda done: None)
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager

import torch
from jaxtyping import Float, Int
from torch import Tensor

from misdirect.attacks import optimize
from misdirect.attacks.interface import Advance, Attack, Case, Cost
from misdirect.attacks.scoring import LANGUAGE_TOKENS, Point, language, rendering, results, sit, sitting_tokens
from misdirect.config import AuditConfig
from misdirect.data.batches import plan_single
from misdirect.data.tokens import token_ids
from misdirect.model.blocks import text_config
from misdirect.model.interventions import embeddings_changed
from misdirect.model.load import LM
from misdirect.model.rows import fill_id
from misdirect.model.score import Encoded, encode
from misdirect.runs import Result

BATCH = 8  # questions an update
RATE = 0.3  # learning rate in root mean squares of an embedding's entries
LEAST_STEPS = 10
POINTS = 3  # of the budget axis, beside the model without a prompt
START = "Here is a science question. The answer that follows is correct, short and complete, as in a textbook."


def attacks(case: Case, config: AuditConfig) -> list[Attack]:
    """One attack: `soft-prompt`."""
    tokens, steps = config.soft_tokens, config.soft_steps
    train = optimize.FROZEN * steps * BATCH * (optimize.example_tokens(case) + tokens)
    measured = (POINTS - 1) * sitting_tokens(case, general=False) + sitting_tokens(case) + LANGUAGE_TOKENS
    return [
        Attack(
            name="soft-prompt",
            family="soft-prompt",
            title=f"Soft prompt of {tokens} vectors, {steps} updates",
            access="gradients",
            settings=optimize.settings_of(
                soft_tokens=tokens, soft_steps=steps, batch_size=BATCH, rate=RATE, start=START
            ),
            cost=Cost(forward_tokens=measured, train_tokens=train, memory=optimize.update_bytes(case, BATCH, tokens)),
            num_steps=steps,
            holds="answered questions",
            run=run,
            missing=optimize.lacking(case) if steps >= LEAST_STEPS else f"needs --soft-steps {LEAST_STEPS} or more",
        )
    ]


def run(lm: LM, case: Case, attack: Attack, advance: Advance) -> list[Result]:
    """Trains the vectors and asks at `POINTS` points of the way, and before; other sets with the final vectors alone.

    Raises ValueError where the loss is not finite.
    """
    tokens, steps = attack.settings["soft_tokens"], attack.settings["soft_steps"]
    ids = placeholders(lm, case, tokens)
    plain = optimize.examples(lm, case)
    items = [inserted(lm, ids, item) for item in plain]
    vectors = starting(lm, tokens).requires_grad_()

    def applied() -> AbstractContextManager[None]:
        return placed(lm, ids, vectors)

    before, start = optimize.watched(lm, plain, BATCH), optimize.watched(lm, items, BATCH, applied)
    plan = plan_single(len(items), steps, BATCH, case.seed)
    points = [(Point(step=0), case.plain or sit(lm, case))]
    asked = optimize.checkpoints(steps, POINTS)
    spent, since = 0.0, time.perf_counter()
    for step in optimize.updates(lm, items, vectors, applied, plan, RATE * size(lm)):
        advance(1)
        if step in asked:
            spent += time.perf_counter() - since
            with applied():
                found = sit(lm, case, general=step == steps, edit=lambda item: inserted(lm, ids, item))
            points.append((Point(step=step), found))
            since = time.perf_counter()
    with applied():
        spoken = language(lm, case, attack, lambda prompt: inserted(lm, ids, Encoded(prompt, [])).context)
    end = optimize.watched(lm, items, BATCH, applied)
    seen = float(sum(optimize.num_tokens(items[row]) for rows in plan for row in rows))
    return [*results(case, attack, points, spent, seen, optimize.evidence(before, start, end)), spoken]


def placeholders(lm: LM, case: Case, count: int) -> list[int]:
    """`count` token ids that no question of the case uses, none of them special. Raises ValueError where there are fewer."""
    table = lm.model.get_input_embeddings()
    size = min(len(lm.tokenizer), table.weight.shape[0])
    named = [v for key, v in text_config(lm.model).to_dict().items() if key.endswith("token_id")]
    named += [v for key, v in lm.model.config.to_dict().items() if key.endswith("token_id")]
    taken = {fill_id(lm), *lm.tokenizer.all_special_ids, *(v for v in named if isinstance(v, int))}
    for item in everything(lm, case):
        taken.update(item.context, *item.continuations)
    free = [i for i in range(size - 1, -1, -1) if i not in taken]
    if len(free) < count:
        raise ValueError(
            f"--soft-tokens {count} needs as many tokens that no question uses, and the vocabulary of {size} has "
            f"{len(free)} left; expected at most that"
        )
    return free[:count]


def everything(lm: LM, case: Case) -> list[Encoded]:
    """Every question that is trained on or measured, encoded as it is asked."""
    groups = [(name, [*halves.train, *halves.test]) for name, halves in case.forgotten.items()]
    groups += [(name, list(questions)) for name, questions in case.retained.items()]
    return [
        encode(lm.tokenizer, *rendering(case.forms[name], case.seed)(question))
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

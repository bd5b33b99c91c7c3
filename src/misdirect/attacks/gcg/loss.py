"""The loss of many candidate texts in some prompts, and its gradient, with everything before the text computed once.

The loss of a text in a prompt (a `PromptSlot`) is - sum_i log p(target_i | before, text, after, target_<i), natural logarithm,
in fp32 at least. Three forms, from the fastest:

- "tree": see `misdirect.attacks.gcg.tree`; for models that take a mask of our own.
- "cached": the key-value cache of what is before the text is shared by a batch of candidates.
- "plain": every candidate as a full forward pass; for models without such a cache.

`job_of` takes the fastest that gives the plain form's losses on these very prompts.

    job = job_of(lm, slots, ids)                        # slots and ids of `gcg_search.framed`
    losses(job, [0], [(5, 6, 7), (5, 9, 7)], (5, 6, 7))  # (1, 2)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from misdirect.attacks.gcg.tree import (
    Ids,
    PromptSlot,
    rows_at_once,
    shared_by,
    tree_gradient,
    tree_losses,
    with_leaf,
)
from misdirect.model import packed, rope
from misdirect.model.lm import LM
from misdirect.model.load import check_length
from misdirect.model.score import at_least_fp32, forward, has_plain_cache, score_batch, token_logprobs

Form = Literal["tree", "cached", "plain"]
AGREE, AGREE_HALF = (
    2e-3,
    0.3,
)  # nats by which a form's loss may differ from the plain one's, in fp32 and in half precision


@dataclass(frozen=True)
class Job:
    """Prompts and a model, with the cache of what stands before the text in each."""

    lm: LM
    slots: Sequence[PromptSlot]
    caches: Sequence[Any]  # None where nothing is cached
    form: Form
    batch_tokens: int = 4096


def job_of(lm: LM, slots: Sequence[PromptSlot], ids: Ids, batch_tokens: int = 4096, form: Form | None = None) -> Job:
    """A job in `form`, or in the fastest form whose loss of `ids` (the start) and of its neighbours is the plain one's."""
    check_length(lm, max(slot.length(len(ids)) for slot in slots), "a question with its adversarial text")
    plain = Job(lm, slots, [None] * len(slots), "plain", batch_tokens)
    for candidate in [form] if form else possible_forms(lm, slots, len(ids)):
        if candidate == "plain":
            break
        job = Job(lm, slots, [prefix_cache(lm, slot) for slot in slots], candidate, batch_tokens)
        if form or agrees(job, plain, ids):
            return job
    return plain


def possible_forms(lm: LM, slots: Sequence[PromptSlot], num_tokens: int) -> list[Form]:
    """From the fastest. In the tree a sliding window that ends within the prompt would be lost."""
    if not has_plain_cache(lm) or any(slot.length(num_tokens) > rope.reach(lm.model) for slot in slots):
        return ["plain"]
    short = all(slot.length(num_tokens) <= packed.window(lm) for slot in slots)
    tree: list[Form] = ["tree"] if short and packed.fits(lm, score_batch) else []
    return [*tree, "cached", "plain"]


def agrees(job: Job, plain: Job, ids: Ids) -> bool:
    """Whether the job gives the plain losses of the start and of two texts that differ from it early and late."""
    last = len(ids) - 1
    texts = [ids, (*ids[: last // 2], ids[last], *ids[last // 2 + 1 :]), (*ids[:-1], job.slots[0].target[0])]
    every = range(min(2, len(job.slots)))
    try:
        mine = losses(job, every, texts, ids)
    except packed.UNTAKEN:
        return False
    exact = next(job.lm.model.parameters()).dtype in (torch.float32, torch.float64)
    known = losses(plain, every, texts, ids)
    return torch.allclose(mine, known, rtol=1e-4, atol=AGREE if exact else AGREE_HALF)


@torch.no_grad()  # not inference_mode: the gradient pass reads the cache
def prefix_cache(lm: LM, slot: PromptSlot) -> Any:
    """The key-value cache of the tokens before the text; None where there are none."""
    if not slot.before:
        return None
    ids = torch.tensor([slot.before], device=lm.device)
    return forward(lm, ids, torch.ones_like(ids), keep=1, use_cache=True).past_key_values


def losses(job: Job, slots: Sequence[int], candidates: Sequence[Ids], incumbent: Ids) -> Float[Tensor, "F K"]:
    """The loss of every candidate in some frames, on the CPU. `incumbent`: the text that they are changes of."""
    if job.form != "tree":
        return torch.stack([batch_losses(job, slot, candidates) for slot in slots])
    chosen, caches = [job.slots[f] for f in slots], [job.caches[f] for f in slots]
    return tree_losses(job.lm, chosen, caches, candidates, incumbent, job.batch_tokens)


@torch.no_grad()
def batch_losses(job: Job, slot: int, candidates: Sequence[Ids]) -> Float[Tensor, " K"]:
    """Candidates of one frame in batches; all are equally long, so nothing is padded."""
    at, cache = job.slots[slot], job.caches[slot]
    before = at.before if cache is None else ()
    keep, context = len(at.target), len(at.before) - len(before)
    rows = [[*before, *ids, *at.after, *at.target[:-1]] for ids in candidates]
    targets = torch.tensor(at.target, device=job.lm.device)
    found = []
    size = rows_at_once(job.lm, len(rows[0]), context, keep, job.batch_tokens)
    for first in range(0, len(rows), size):
        ids = torch.tensor(rows[first : first + size], device=job.lm.device)
        mask = ids.new_ones(len(ids), context + ids.shape[1])
        cached = shared_by(cache, len(ids))
        logits = forward(job.lm, ids, mask, keep, cached, use_cache=cached is not None).logits[:, -keep:]
        found.append(-token_logprobs(logits, targets.expand(len(ids), -1)).sum(-1).double().cpu())
    return torch.cat(found)


def gradient(job: Job, slots: Sequence[int], ids: Ids) -> tuple[Float[Tensor, " F"], Float[Tensor, "S D"]]:
    """(each frame's loss, the gradient of their sum with respect to what the embedding table gives for the text)."""
    if job.form == "tree":
        chosen, caches = [job.slots[f] for f in slots], [job.caches[f] for f in slots]
        return tree_gradient(job.lm, chosen, caches, ids, job.batch_tokens)
    pairs = [batch_gradient(job, slot, ids) for slot in slots]
    return torch.tensor([loss for loss, _ in pairs], dtype=torch.float64), torch.stack([g for _, g in pairs]).sum(0)


@torch.enable_grad()
def batch_gradient(job: Job, slot: int, ids: Ids) -> tuple[float, Float[Tensor, "S D"]]:
    at, lm = job.slots[slot], job.lm
    cache = shared_by(job.caches[slot], 1)
    before = at.before if cache is None else ()
    inputs = torch.tensor([[*before, *ids, *at.after, *at.target[:-1]]], device=lm.device)
    mask = inputs.new_ones(1, len(at.before) - len(before) + inputs.shape[1])
    keep, targets = len(at.target), torch.tensor([at.target], device=lm.device)

    def compute() -> Tensor:
        logits = forward(lm, inputs, mask, keep, cache, use_cache=cache is not None).logits[:, -keep:]
        return -token_logprobs(logits, targets).sum(-1)

    loss, slope = with_leaf(lm, inputs, compute)
    return loss.item(), at_least_fp32(slope[0, len(before) : len(before) + len(ids)])


@torch.no_grad()
def slopes(lm: LM, found: Float[Tensor, "S D"], chunk: int = 8192) -> Float[Tensor, "S V"]:
    """The gradient with respect to each position's one-hot vector: the table's output for every token, times `found`."""
    table = lm.model.get_input_embeddings()
    count = table.weight.shape[0]
    parts = []
    for first in range(0, count, chunk):
        tokens = torch.arange(first, min(count, first + chunk), device=lm.device).unsqueeze(0)
        parts.append(found @ table(tokens)[0].to(found.dtype).T)
    return torch.cat(parts, dim=1)

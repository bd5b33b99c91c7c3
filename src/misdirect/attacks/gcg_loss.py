"""The loss of many candidate texts in one prompt, and its gradient, with everything before the text computed once.

A `Frame` is a prompt with room for S tokens: before + text + after + target. The loss of a text is
- sum_i log p(target_i | before, text, after, target_<i), natural logarithm, in fp32 at least. Three forms, from the fastest:

- "tree": the candidates stand one behind the other in rows, each from its first changed token on; a mask lets it see the
  cached tokens before the text, the unchanged tokens before its change, and itself. The cache is not repeated for each.
- "cached": the key-value cache of what is before the text is shared by a batch of candidates.
- "plain": every candidate as a full forward pass; for models without such a cache.

`job_of` takes the fastest that gives the plain form's losses on these very prompts.

    job = job_of(lm, frames, ids)                      # frames and ids of `gcg_search.framed`
    losses(job, 0, [(5, 6, 7), (5, 9, 7)], (5, 6, 7))  # one number a candidate
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from misdirect.data.batches import pad_id
from misdirect.model import packed
from misdirect.model.activations import hooked
from misdirect.model.interventions import embeddings_changed
from misdirect.model.load import LM, check_length
from misdirect.model.score import at_least_fp32, forward, has_plain_cache, score_batch, token_logprobs

Ids = tuple[int, ...]
Form = Literal["tree", "cached", "plain"]
ROW = 256  # tokens of candidates in a row of the tree: longer rows cost attention, shorter ones repeat unchanged tokens
AGREE, AGREE_HALF = (
    2e-3,
    0.3,
)  # nats by which a form's loss may differ from the plain one's, in fp32 and in half precision


@dataclass(frozen=True)
class Frame:
    """A prompt with room for S adversarial tokens, as text and as tokens. `target` is what the model is to say."""

    before: Ids
    after: Ids
    target: Ids
    before_text: str
    rest_text: str  # of after and target

    def length(self, num_tokens: int) -> int:
        return len(self.before) + num_tokens + len(self.after) + len(self.target)


@dataclass(frozen=True)
class Job:
    """Prompts and a model, with the cache of what stands before the text in each."""

    lm: LM
    frames: Sequence[Frame]
    caches: Sequence[Any]  # None where nothing is cached
    form: Form
    batch_tokens: int = 4096


def job_of(lm: LM, frames: Sequence[Frame], ids: Ids, batch_tokens: int = 4096, form: Form | None = None) -> Job:
    """A job in `form`, or in the fastest form whose loss of `ids` (the start) and of its neighbours is the plain one's."""
    check_length(lm, max(frame.length(len(ids)) for frame in frames), "a question with its adversarial text")
    plain = Job(lm, frames, [None] * len(frames), "plain", batch_tokens)
    for candidate in [form] if form else possible_forms(lm, frames, len(ids)):
        if candidate == "plain":
            break
        job = Job(lm, frames, [prefix_cache(lm, frame) for frame in frames], candidate, batch_tokens)
        if form or agrees(job, plain, ids):
            return job
    return plain


def possible_forms(lm: LM, frames: Sequence[Frame], num_tokens: int) -> list[Form]:
    """From the fastest. In the tree a sliding window that ends within the prompt would be lost."""
    if not has_plain_cache(lm):
        return ["plain"]
    short = all(frame.length(num_tokens) <= packed.window(lm) for frame in frames)
    tree: list[Form] = ["tree"] if short and packed.fits(lm, score_batch) else []
    return [*tree, "cached", "plain"]


def agrees(job: Job, plain: Job, ids: Ids) -> bool:
    """Whether the job gives the plain losses of the start and of two texts that differ from it early and late."""
    last = len(ids) - 1
    texts = [ids, (*ids[: last // 2], ids[last], *ids[last // 2 + 1 :]), (*ids[:-1], job.frames[0].target[0])]
    try:
        mine = losses(job, 0, texts, ids)
    except (
        TypeError,
        ValueError,
        RuntimeError,
        IndexError,
        AttributeError,
        KeyError,
    ):  # arguments that it does not take
        return False
    exact = next(job.lm.model.parameters()).dtype in (torch.float32, torch.float64)
    return torch.allclose(
        mine, losses(plain, 0, texts, ids), rtol=0, atol=AGREE if exact else AGREE_HALF, equal_nan=True
    )


@torch.no_grad()  # not inference_mode: the gradient pass reads the cache
def prefix_cache(lm: LM, frame: Frame) -> Any:
    """The key-value cache of the tokens before the text; None where there are none."""
    if not frame.before:
        return None
    ids = torch.tensor([frame.before], device=lm.device)
    return forward(lm, ids, torch.ones_like(ids), keep=1, use_cache=True).past_key_values


def shared_by(cache: Any, rows: int) -> Any:
    """The cache for `rows` continuations: a view, and what is appended to it does not reach the original."""
    if cache is None:
        return None
    fork = copy.copy(cache)
    fork.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in fork.layers:
        if layer.get_seq_length() > 0:
            layer.keys = layer.keys.expand(rows, -1, -1, -1)
            layer.values = layer.values.expand(rows, -1, -1, -1)
    return fork


@torch.no_grad()
def losses(job: Job, frame: int, candidates: Sequence[Ids], incumbent: Ids) -> Float[Tensor, " K"]:
    """The loss of every candidate in one frame, on the CPU. `incumbent`: the text that they are changes of."""
    if not candidates:
        return torch.zeros(0)
    if job.form == "tree":
        return tree_losses(job, frame, candidates, incumbent)
    at, cache = job.frames[frame], job.caches[frame]
    before: Ids = () if job.form == "cached" else at.before
    keep, context = len(at.target), len(at.before) - len(before)
    rows = [[*before, *ids, *at.after, *at.target[:-1]] for ids in candidates]
    targets = torch.tensor(at.target, device=job.lm.device)
    found = []
    size = rows_at_once(job, len(rows[0]), context, keep)
    for first in range(0, len(rows), size):
        ids = torch.tensor(rows[first : first + size], device=job.lm.device)
        mask = ids.new_ones(len(ids), context + ids.shape[1])
        cached = shared_by(cache, len(ids))
        logits = forward(job.lm, ids, mask, keep, cached, use_cache=cached is not None).logits[:, -keep:]
        found.append(-token_logprobs(logits, targets.expand(len(ids), -1)).sum(-1).cpu())
    return torch.cat(found)


def rows_at_once(job: Job, width: int, context: int, wanted: int) -> int:
    """Rows in one pass: within `batch_tokens`, within half of the free memory, and within `packed.MAX_LOGITS`."""
    from misdirect.planning.speed import free_bytes

    config = job.lm.model.config.get_text_config(decoder=True)
    vocabulary = job.lm.model.get_output_embeddings().weight.shape[0]
    itemsize = next(job.lm.model.parameters()).element_size()
    # keys and values of every block, about 16 widths of activations in the block that runs, logits in fp32 twice
    row = itemsize * config.hidden_size * (2 * config.num_hidden_layers * (width + context) + 16 * width)
    row += 8 * wanted * vocabulary + 4 * width * (width + context)
    limits = (
        job.batch_tokens // width,
        free_bytes(job.lm.device) // 2 // row,
        packed.MAX_LOGITS // (wanted * vocabulary),
    )
    return max(1, min(limits))


class Branch(NamedTuple):
    """A candidate in the tree: its tokens from the first changed one on, with what follows the text."""

    number: int
    first: int
    tokens: Ids


class Rows(NamedTuple):
    """One pass of the tree form; `wanted` are flat positions whose logits count, candidate by candidate."""

    input_ids: Int[Tensor, "R W"]
    places: Int[Tensor, "R W"]  # position in the text that starts where the cache ends
    allowed: Bool[Tensor, "R W W"]
    wanted: Int[Tensor, "K T"]


def branches(frame: Frame, candidates: Sequence[Ids], incumbent: Ids) -> list[Branch]:
    """Candidates by their first changed position."""
    rest = (*frame.after, *frame.target[:-1])
    last = len(incumbent) - 1
    out = []
    for index, ids in enumerate(candidates):
        first = next((p for p in range(last) if ids[p] != incumbent[p]), last)
        out.append(Branch(index, first, (*ids[first:], *rest)))
    return sorted(out, key=lambda branch: branch.first)


def filled(found: Sequence[Branch], size: int = ROW) -> list[list[Branch]]:
    """Branches put into rows of `size` tokens, in order."""
    rows: list[list[Branch]] = [[]]
    used = 0
    for branch in found:
        if rows[-1] and used + len(branch.tokens) > size:
            rows.append([])
            used = 0
        rows[-1].append(branch)
        used += len(branch.tokens)
    return rows


def tree_rows(group: Sequence[Sequence[Branch]], incumbent: Ids, num_targets: int, fill: int) -> Rows:
    """Every row: the unchanged tokens that its branches share, then the branches."""
    trunks = [max(branch.first for branch in row) for row in group]
    width = max(trunk + sum(len(b.tokens) for b in row) for trunk, row in zip(trunks, group, strict=True))
    ids = torch.full((len(group), width), fill)
    places = torch.zeros_like(ids)
    branch_of = torch.full_like(ids, -1)  # 0 is the trunk, 1 .. the branches
    start = torch.zeros_like(ids)  # how much of the trunk a token sees
    wanted = []
    for r, (trunk, row) in enumerate(zip(trunks, group, strict=True)):
        at = 0
        for number, (first, tokens) in enumerate([(0, incumbent[:trunk]), *((b.first, b.tokens) for b in row)]):
            end = at + len(tokens)
            ids[r, at:end] = torch.tensor(tokens, dtype=torch.long)
            places[r, at:end] = torch.arange(first, first + len(tokens))
            branch_of[r, at:end] = number
            start[r, at:end] = first
            if number:
                wanted.append(range(r * width + end - num_targets, r * width + end))
            at = end
    same = branch_of[:, :, None] == branch_of[:, None, :]
    trunk_seen = (branch_of == 0)[:, None, :] & (places[:, None, :] < start[:, :, None])
    causal = torch.ones(width, width, dtype=torch.bool).tril()
    return Rows(ids, places, (same & causal) | trunk_seen, torch.tensor([list(w) for w in wanted]))


def tree_losses(job: Job, frame: int, candidates: Sequence[Ids], incumbent: Ids) -> Float[Tensor, " K"]:
    at = job.frames[frame]
    rows = filled(branches(at, candidates, incumbent))
    targets = torch.tensor(at.target, device=job.lm.device)
    width = max(sum(len(b.tokens) for b in row) for row in rows) + len(incumbent)
    most = max(map(len, rows)) * len(at.target)
    size = rows_at_once(job, width, len(at.before), most)
    out = torch.empty(len(candidates), dtype=torch.float64)
    for first in range(0, len(rows), size):
        group = rows[first : first + size]
        made = tree_rows(group, incumbent, len(at.target), pad_id(job.lm.tokenizer))
        logits = tree_logits(job, frame, made)
        found = -token_logprobs(logits, targets.expand(len(made.wanted), -1)).sum(-1)
        out[[branch.number for row in group for branch in row]] = found.double().cpu()
    return out.to(found.dtype)


def tree_logits(job: Job, frame: int, rows: Rows) -> Float[Tensor, "K T V"]:
    """Logits of the wanted positions alone: the hidden state is cut down on its way into the LM head."""
    lm, cache, context = job.lm, shared_by(job.caches[frame], len(rows.input_ids)), len(job.frames[frame].before)
    dtype = next(lm.model.parameters()).dtype
    allowed = nn.functional.pad(rows.allowed, (context, 0), value=True).unsqueeze(1).to(lm.device)
    shut = torch.zeros(allowed.shape, dtype=dtype, device=lm.device).masked_fill_(~allowed, torch.finfo(dtype).min)

    def only_wanted(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return args[0].flatten(0, 1)[rows.wanted.flatten().to(args[0].device)].unsqueeze(0), *args[1:]

    arguments: dict[str, Any] = {} if cache is None else {"past_key_values": cache}
    with hooked([lambda: lm.model.get_output_embeddings().register_forward_pre_hook(only_wanted)]):
        logits = lm.model(
            input_ids=rows.input_ids.to(lm.device),
            attention_mask=shut,
            position_ids=(rows.places + context).to(lm.device),
            use_cache=cache is not None,
            **arguments,
        ).logits
    return logits[0].unflatten(0, rows.wanted.shape)


@torch.enable_grad()
def gradient(job: Job, frame: int, ids: Ids) -> tuple[float, Float[Tensor, "S D"]]:
    """(the loss, its gradient with respect to what the embedding table gives for the text's tokens)."""
    at = job.frames[frame]
    cache = shared_by(job.caches[frame], 1)
    before: Ids = at.before if cache is None else ()
    inputs = torch.tensor([[*before, *ids, *at.after, *at.target[:-1]]], device=job.lm.device)
    room = slice(len(before), len(before) + len(ids))
    leaves: list[Tensor] = []

    def change(tokens: Tensor, embedded: Tensor) -> Tensor:
        if tokens.shape[-1] != inputs.shape[1]:
            return embedded
        leaves.append(embedded[:, room].detach().clone().requires_grad_())
        return torch.cat([embedded[:, : room.start], leaves[-1], embedded[:, room.stop :]], dim=1)

    keep = len(at.target)
    mask = inputs.new_ones(1, len(at.before) - len(before) + inputs.shape[1])
    with embeddings_changed(job.lm, change):
        logits = forward(job.lm, inputs, mask, keep, cache, use_cache=cache is not None).logits[:, -keep:]
    loss = -token_logprobs(logits, torch.tensor([at.target], device=job.lm.device)).sum()
    (found,) = torch.autograd.grad(loss, leaves[-1])
    return loss.item(), at_least_fp32(found[0])


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

"""Scoring without padding: several questions in one row, each with all its continuations, kept apart by the mask.

A row holds contexts and continuations one behind the other. A token sees its own question's context and the part of its
own continuation before it, nothing else, and its position counts from its own question's first token: a tree of
continuations on each context. So every token of every question runs through the blocks exactly once, and rows are filled
to about the same length. Only the positions that predict a continuation's token go through the LM head.

Not every architecture takes a mask of this form (positions counted by index, state across tokens, masks rebuilt inside),
so `fits` tries it on random tokens against the scorer's other form and remembers the outcome per model.
"""

from __future__ import annotations

import random
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from misdirect.model import rope
from misdirect.model.hooks import hooked
from misdirect.model.lm import LM
from misdirect.model.rows import fill_id

ROW = 256  # tokens in a row: long enough to fill, short enough that attention over the row costs little
MAX_LOGITS = 2**27  # numbers in one pass' logits: half a gigabyte in fp32
OPEN_ROWS = 64  # rows that a question may still be put into
KINDS = {"full_attention", "sliding_attention", "chunked_attention"}

_fits: weakref.WeakKeyDictionary[nn.Module, bool] = weakref.WeakKeyDictionary()


class Encoded(NamedTuple):
    """Token ids of one context and of its continuations."""

    context: list[int]
    continuations: list[list[int]]


class Scored(NamedTuple):
    """Summed log-probability and token count of each continuation of one context."""

    logprobs: list[float]
    num_tokens: list[int]


class Packed(NamedTuple):
    """One forward pass: the rows, the mask, and where each continuation's tokens are predicted."""

    input_ids: Int[Tensor, "R W"]
    position_ids: Int[Tensor, "R W"]
    allowed: Bool[Tensor, "R 1 W W"]
    predicting: Int[Tensor, " N"]  # flat positions whose logits are wanted
    targets: Int[Tensor, " N"]  # the token that each of them predicts
    owner: Int[Tensor, " N"]  # the continuation (counted over the pass) that it belongs to
    num_continuations: int


# What a forward pass raises that does not take a mask or cache of our own
UNTAKEN = (TypeError, ValueError, RuntimeError, IndexError, AttributeError, KeyError)


def length(item: Encoded) -> int:
    """Tokens that an item runs through the blocks: its context, and every continuation less its last token."""
    return len(item.context) + sum(len(tail) - 1 for tail in item.continuations)


def span(item: Encoded) -> int:
    """The longest text of an item: its context and one continuation."""
    return len(item.context) + max(map(len, item.continuations))


def rows_of(items: Sequence[Encoded]) -> list[list[int]]:
    """Items put into rows of about `ROW` tokens, longest first, each into the first open row that has room."""
    rows: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(items)), key=lambda i: -length(items[i])):
        size = length(items[index])
        at = next((r for r in range(max(0, len(rows) - OPEN_ROWS), len(rows)) if room[r] >= size), None)
        if at is None:
            rows.append([])
            room.append(max(ROW, size))
            at = len(rows) - 1
        rows[at].append(index)
        room[at] -= size
    return rows


def passes(items: Sequence[Encoded], batch_tokens: int, vocabulary: int) -> Iterator[list[list[int]]]:
    """Rows grouped into forward passes of at most `batch_tokens` tokens and `MAX_LOGITS` logits (one row at least)."""
    group: list[list[int]] = []
    width = wanted = 0
    for row in rows_of(items):
        new_width = max(width, sum(length(items[i]) for i in row))
        predicted = sum(len(tail) for i in row for tail in items[i].continuations)
        if group and ((len(group) + 1) * new_width > batch_tokens or (wanted + predicted) * vocabulary > MAX_LOGITS):
            yield group
            group, width, wanted = [], 0, 0
            new_width = sum(length(items[i]) for i in row)
        group.append(row)
        width, wanted = new_width, wanted + predicted
    if group:
        yield group


def pack(items: Sequence[Encoded], rows: Sequence[Sequence[int]], fill: int) -> Packed:
    """The tensors of one pass. Continuations are counted row by row, item by item."""
    width = max(sum(length(items[i]) for i in row) for row in rows)
    ids = torch.full((len(rows), width), fill)
    position = torch.zeros_like(ids)
    item_of = torch.full_like(ids, -1)
    branch_of = torch.zeros_like(ids)  # 0 is the context, 1 .. the item's continuations
    predicting: list[int] = []
    targets: list[int] = []
    owner: list[int] = []
    count = 0
    for r, row in enumerate(rows):
        at = 0
        for index in row:
            context = items[index].context
            last = r * width + at + len(context) - 1
            branches = [(0, context, 0)]
            branches += [(b, tail[:-1], len(context)) for b, tail in enumerate(items[index].continuations, 1)]
            for branch, tokens, start in branches:
                end = at + len(tokens)
                if branch:
                    tail = items[index].continuations[branch - 1]
                    predicting += [last, *range(r * width + at, r * width + end)]
                    targets += tail
                    owner += [count] * len(tail)
                    count += 1
                ids[r, at:end] = torch.tensor(tokens, dtype=torch.long)
                position[r, at:end] = torch.arange(start, start + len(tokens))
                item_of[r, at:end] = index
                branch_of[r, at:end] = branch
                at = end
    found = [torch.tensor(x) for x in (predicting, targets, owner)]
    return Packed(ids, position, allowed_pairs(item_of, branch_of), found[0], found[1], found[2], count)


def allowed_pairs(item_of: Int[Tensor, "R W"], branch_of: Int[Tensor, "R W"]) -> Bool[Tensor, "R 1 W W"]:
    """Whether a token (row) sees another (column); padding sees itself alone, so that no row of the mask is empty."""
    width = item_of.shape[1]
    causal = torch.ones(width, width, dtype=torch.bool).tril()
    same = item_of[:, :, None] == item_of[:, None, :]
    above = (branch_of[:, None, :] == 0) | (branch_of[:, :, None] == branch_of[:, None, :])
    seen = causal & same & above & (item_of >= 0)[:, None, :]
    return (seen | torch.eye(width, dtype=torch.bool)).unsqueeze(1)


def logits_at(lm: LM, packed: Packed) -> Float[Tensor, "N V"]:
    """Logits of the predicting positions alone: the hidden state is cut down on its way into the LM head."""
    head = lm.model.get_output_embeddings()
    dtype = next(lm.model.parameters()).dtype
    attention_bias = torch.zeros(packed.allowed.shape, dtype=dtype, device=lm.device)
    attention_bias.masked_fill_(~packed.allowed.to(lm.device), torch.finfo(dtype).min)
    unique, inverse = packed.predicting.unique(return_inverse=True)

    def only_wanted(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = args[0].flatten(0, 1)[unique.to(args[0].device)]
        return hidden.unsqueeze(0), *args[1:]

    with hooked([lambda: head.register_forward_pre_hook(only_wanted)]):
        logits = lm.model(
            input_ids=packed.input_ids.to(lm.device),
            attention_mask=attention_bias,
            position_ids=packed.position_ids.to(lm.device),
            use_cache=False,
        ).logits
    return logits[0][inverse.to(logits.device)]


@torch.inference_mode()
def score_packed(
    lm: LM, items: Sequence[Encoded], batch_tokens: int, advance: Callable[[int], None] | None = None
) -> list[list[float]]:
    """Summed log-probability of every continuation of every item, in the items' order."""
    out: list[list[float]] = [[] for _ in items]
    fill = fill_id(lm)
    for rows in passes(items, batch_tokens, lm.model.get_output_embeddings().weight.shape[0]):
        packed = pack(items, rows, fill)
        logits = logits_at(lm, packed)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        chosen = logits.gather(-1, packed.targets.to(logits.device).unsqueeze(-1)).squeeze(-1)
        values = chosen - logits.logsumexp(-1)
        owner = packed.owner.to(logits.device)
        sums = iter(values.new_zeros(packed.num_continuations).index_add_(0, owner, values).tolist())
        for index in (i for row in rows for i in row):
            out[index] = [next(sums) for _ in items[index].continuations]
        if advance:
            advance(sum(map(len, rows)))
    return out


def window(lm: LM) -> int:
    """Tokens beyond which a block's attention no longer reaches; the mask of a packed row knows of no such limit."""
    config = lm.model.config.get_text_config(decoder=True)
    limits = (getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size"))
    return min((limit for limit in limits if isinstance(limit, int) and limit > 0), default=sys.maxsize)


def fits(lm: LM, other: Callable[[LM, Sequence[Encoded]], list[Scored]]) -> bool:
    """Whether packed rows give this model's scores: asked once per model, on random tokens, against the form `other`."""
    if lm.model not in _fits:
        found = takes_mask(lm.model) and agrees(lm, other)
        if found is None:  # of a model that gives no numbers now, and with other weights in it may
            return False
        _fits[lm.model] = found
    return _fits[lm.model]


def takes_mask(model: Any) -> bool:
    kinds = set(getattr(model.config.get_text_config(decoder=True), "layer_types", None) or ["full_attention"])
    implementation = getattr(model.config, "_attn_implementation", None)
    stateful = bool(getattr(model, "_is_stateful", False))
    return kinds <= KINDS and implementation in ("sdpa", "eager") and not stateful


def agrees(lm: LM, other: Callable[[LM, Sequence[Encoded]], list[Scored]]) -> bool | None:
    """None where both forms give NaN, which proves nothing."""
    draw = random.Random(0)
    vocabulary = min(1000, lm.model.get_output_embeddings().weight.shape[0])
    longest = max(1, min(12, min(window(lm), rope.reach(lm.model)) - 4))

    def tokens(count: int) -> list[int]:
        return [draw.randrange(vocabulary) for _ in range(count)]

    items = [Encoded(tokens(n), [tokens(1), tokens(4), tokens(3)]) for n in (longest, max(1, longest // 2))]
    try:
        mine = score_packed(lm, items, ROW)
    except UNTAKEN:
        return False
    theirs = [scored.logprobs for scored in other(lm, items)]
    flat = [torch.tensor([x for row in rows for x in row]) for rows in (mine, theirs)]
    if (flat[0].isnan() & flat[1].isnan()).any():
        return None
    exact = next(lm.model.parameters()).dtype in (torch.float32, torch.float64)
    return torch.allclose(flat[0], flat[1], rtol=0, atol=2e-3 if exact else 0.3)

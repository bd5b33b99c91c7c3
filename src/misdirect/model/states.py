"""Residual states at the tokens of interest of many questions, before block 0 and after every block, from one pass each.

A question is an `Encoded`: its context, and its continuations behind it. Wanted are the states at the positions that
predict the continuations' tokens: the context's last token and the continuation's tokens but the last. Where the model
takes it, questions are packed into rows without padding, the context shared by its continuations
(`misdirect.model.packed`); elsewhere every continuation is a padded row of its own. The pass ends after the last block.

    for seen in read(lm, items):
        seen.states[8][seen.at]               # (M, D): after block 7, where each token is predicted
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from misdirect.model import packed, rope
from misdirect.model.finite import not_finite
from misdirect.model.hooks import first_output, hooked, split_hidden
from misdirect.model.lm import LM
from misdirect.model.load import check_length
from misdirect.model.packed import Encoded
from misdirect.model.rows import check_rows, fill_id, padded
from misdirect.model.score import (
    by_length,
    forward_arguments,
    has_plain_cache,
    positions,
    score_batch,
    score_plainly,
    watch,
)


class _Enough(Exception):
    """Ends a forward pass after the last block: what follows it is not wanted."""


class Seen(NamedTuple):
    """One pass: N states at each of L + 1 places, and the M predictions made from them."""

    states: list[Float[Tensor, "N D"]]
    at: Int[Tensor, " M"]  # which state predicts
    targets: Int[Tensor, " M"]  # which token
    owner: Int[Tensor, " M"]  # of which continuation, counted over the items of this pass
    items: list[int]  # the items of this pass, each wholly in it, in the order of `owner`


class Layout(NamedTuple):
    """A pass before it runs: what the model is called with, and the flat positions that predict."""

    inputs: dict[str, Tensor]
    predicting: list[int]
    targets: list[int]
    owner: list[int]


def read(
    lm: LM,
    items: Sequence[Encoded],
    batch_tokens: int = 4096,
    advance: Callable[[int], None] | None = None,
    whole: bool = True,
) -> Iterator[Seen]:
    """Raises ValueError for an architecture that has no single residual stream through all of its blocks.

    Not `whole`: a continuation's last token only marks its end and is no part of the text.
    """
    check_length(lm, max((packed.span(item) for item in items), default=0), "a question")
    check_rows(lm, (ids for item in items for ids in (item.context, *item.continuations)), "a question")
    watch(lm, [item.context + item.continuations[0] for item in items])
    spans = [packed.span(item) - (not whole) for item in items]
    far = [i for i, span in enumerate(spans) if span > rope.reach(lm.model)]
    if far:
        near = [i for i in range(len(items)) if i not in set(far)]
        for seen in read(lm, [items[i] for i in near], batch_tokens, advance, whole):
            yield seen._replace(items=[near[i] for i in seen.items])
        for i in far:
            yield alone(lm, items[i], whole)._replace(items=[i])
            if advance:
                advance(1)
        return
    for rows in groups(lm, items, batch_tokens):
        flat = [index for row in rows for index in row]
        layout = as_packed(lm, items, rows) if takes_packed(lm, items) else as_padded(lm, [items[i] for i in flat])
        predicting, at = torch.tensor(layout.predicting).unique(return_inverse=True)
        states = states_at(lm, layout.inputs, predicting)
        rest = [torch.tensor(x, device=lm.device) for x in (layout.targets, layout.owner)]
        yield Seen(states, at.to(lm.device), rest[0], rest[1], flat)
        if advance:
            advance(len(flat))


def alone(lm: LM, item: Encoded, whole: bool) -> Seen:
    """An item whose values depend on the length of their pass: every continuation in one of its own."""
    parts: list[list[Tensor]] = []
    targets: list[int] = []
    owner: list[int] = []
    for number, tail in enumerate(item.continuations):
        text = torch.tensor([item.context + (tail if whole else tail[:-1])])
        inputs = {"input_ids": text, "attention_mask": torch.ones_like(text)}
        wanted = torch.arange(len(item.context) - 1, len(item.context) + len(tail) - 1)
        parts.append(states_at(lm, inputs, wanted))
        targets += tail
        owner += [number] * len(tail)
    states = [torch.cat(place) for place in zip(*parts, strict=True)]
    at, *rest = (torch.tensor(x, device=lm.device) for x in ([*range(len(owner))], targets, owner))
    return Seen(states, at, rest[0], rest[1], [0])


def takes_packed(lm: LM, items: Sequence[Encoded]) -> bool:
    other = score_batch if has_plain_cache(lm) else score_plainly
    return bool(items) and packed.fits(lm, other) and all(packed.span(item) <= packed.window(lm) for item in items)


def groups(lm: LM, items: Sequence[Encoded], batch_tokens: int) -> Iterator[list[list[int]]]:
    """Items of each pass, by rows. A padded row holds one continuation, so an item weighs as many rows."""
    if takes_packed(lm, items):
        yield from packed.passes(items, batch_tokens, 1)
        return
    weights = [Encoded([], [[0] * packed.span(item)] * len(item.continuations)) for item in items]
    for rows in by_length(weights, batch_tokens):
        yield [rows]


def as_packed(lm: LM, items: Sequence[Encoded], rows: list[list[int]]) -> Layout:
    made = packed.pack(items, rows, fill_id(lm))
    dtype = next(lm.model.parameters()).dtype
    attention_bias = torch.zeros(made.allowed.shape, dtype=dtype).masked_fill_(~made.allowed, torch.finfo(dtype).min)
    inputs = {"input_ids": made.input_ids, "attention_mask": attention_bias, "position_ids": made.position_ids}
    return Layout(inputs, made.predicting.tolist(), made.targets.tolist(), made.owner.tolist())


def as_padded(lm: LM, items: Sequence[Encoded]) -> Layout:
    """Padding stands behind the text, where no token of it looks."""
    tails = [(item.context, tail) for item in items for tail in item.continuations]
    batch = padded(lm, [context + tail[:-1] for context, tail in tails])
    width = batch.input_ids.shape[1]
    starts = [row * width + len(context) - 1 for row, (context, _) in enumerate(tails)]
    predicting = [start + i for start, (_, tail) in zip(starts, tails, strict=True) for i in range(len(tail))]
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    if "position_ids" in forward_arguments(type(lm.model)):
        inputs["position_ids"] = positions(batch.attention_mask)
    owner = [row for row, (_, tail) in enumerate(tails) for _ in tail]
    return Layout(inputs, predicting, [token for _, tail in tails for token in tail], owner)


@torch.inference_mode()
def states_at(lm: LM, inputs: Mapping[str, Tensor], wanted: Int[Tensor, " N"]) -> list[Float[Tensor, "N D"]]:
    """The residual stream at flat positions `wanted`, before block 0 and after every block; the pass ends there."""
    found: dict[int, Tensor] = {}
    blocks = lm.blocks

    def keep(place: int, hidden: Tensor) -> None:
        if place in found or hidden.dim() != 3:
            raise ValueError(
                f"{type(lm.model).__name__} has no single residual stream that passes each block once; "
                "expected another architecture, or --skip lens --skip probe"
            )
        found[place] = hidden.flatten(0, 1)[wanted.to(hidden.device)].to(lm.device)

    def before(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        keep(-1, split_hidden(args, kwargs)[0])

    def after(place: int, output: Any) -> None:
        keep(place, first_output(output))
        if place == len(blocks) - 1:
            raise _Enough

    places: list[Callable[[], Any]] = [lambda: blocks[0].register_forward_pre_hook(before, with_kwargs=True)]
    places += [
        lambda i=i, b=b: b.register_forward_hook(lambda module, args, output: after(i, output))  # type: ignore[misc]
        for i, b in enumerate(blocks)
    ]
    with hooked(places), contextlib.suppress(_Enough):
        lm.model(**{name: value.to(lm.device) for name, value in inputs.items()}, use_cache=False)
    missing = [place for place in range(-1, len(blocks)) if place not in found]
    if missing:
        raise ValueError(f"block {missing[0]} does not run on text alone; expected a model that uses all of its blocks")
    return [found[place] for place in range(-1, len(blocks))]


def last_states(
    lm: LM, items: Sequence[Encoded], batch_tokens: int = 4096, advance: Callable[[int], None] | None = None
) -> Float[Tensor, "P N D"]:
    """The states at the LAST token of every continuation, item by item: P = L + 1 places, in fp32 on the CPU.

    An empty continuation gives the context's last token. Raises NotFinite where a state is none.
    """
    fill = fill_id(lm)
    longer = [Encoded(item.context, [[*tail, fill] for tail in item.continuations]) for item in items]
    starts = [0, *itertools.accumulate(len(item.continuations) for item in items)]
    out: Tensor | None = None
    for seen in read(lm, longer, batch_tokens, advance, whole=False):
        rows = torch.tensor([row for i in seen.items for row in range(starts[i], starts[i + 1])])
        ends = seen.owner.diff(append=seen.owner.new_tensor([-1])) != 0  # a continuation's last prediction
        found = torch.stack([states[seen.at[ends]].float().cpu() for states in seen.states])
        out = torch.empty(len(found), starts[-1], found.shape[-1]) if out is None else out
        out[:, rows] = found
    assert out is not None, "no items"
    sound = out.isfinite().all(-1).all(0)  # (N,)
    if not sound.all():
        raise not_finite(lm, f"the states of {int((~sound).sum())} of {len(sound)} texts")
    return out

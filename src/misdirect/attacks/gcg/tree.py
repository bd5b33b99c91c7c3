"""Candidate texts in prompts as a tree: the prompts' beginnings out of a cache, each candidate from its first change on.

A `PromptSlot` is a prompt with room for S tokens: before + text + after + target. The cache holds the keys and values of every
frame's `before`, one behind the other. Rows hold, for each frame, the unchanged tokens (the trunk) that its candidates
share, then the candidates (the branches). A mask lets a token see its own frame's part of the cache, the trunk up to its
branch's first change, and its own branch; its position counts from its own frame's first token. So no token is computed
twice in a row, nothing of the cache is repeated for a candidate, and all frames and candidates run in the same passes.

    tree_losses(lm, slots, caches, [(5, 6, 7), (5, 9, 7)], (5, 6, 7))      # (F, K)
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from misdirect.model import packed
from misdirect.model.hooks import hooked
from misdirect.model.interventions import embeddings_changed
from misdirect.model.lm import LM
from misdirect.model.rows import fill_id
from misdirect.model.score import at_least_fp32

Ids = tuple[int, ...]
ROW = 256  # tokens of candidates in a row: longer rows cost attention, shorter ones repeat trunks
CACHED = 512  # tokens of the cache in a pass: frames beyond that go into a pass of their own


@dataclass(frozen=True)
class PromptSlot:
    """A prompt with room for S adversarial tokens, as text and as tokens. `target` is what the model is to say."""

    before: Ids
    after: Ids
    target: Ids
    before_text: str
    rest_text: str  # of after and target

    def length(self, num_tokens: int) -> int:
        return len(self.before) + num_tokens + len(self.after) + len(self.target)


class Branch(NamedTuple):
    """A candidate in a frame: its tokens from the first changed one on, with what follows the text."""

    slot: int
    number: int  # of the candidate
    first: int
    tokens: Ids


class Rows(NamedTuple):
    """The rows of one pass; N positions predict a target's token, of the branch that `owner` counts."""

    input_ids: Int[Tensor, "R W"]
    position_ids: Int[Tensor, "R W"]
    frame_of: Int[Tensor, "R W"]
    allowed: Bool[Tensor, "R W W"]
    wanted: Int[Tensor, " N"]  # flat positions
    targets: Int[Tensor, " N"]
    owner: Int[Tensor, " N"]
    begins: Int[Tensor, " K"]  # each branch's first flat position


class Pass(NamedTuple):
    rows: Rows
    branches: list[Branch]
    cache: Any  # for as many rows; None where nothing is cached
    cache_frames: Int[Tensor, " C"]  # whose frame each cached token is


def shared_by(cache: Any, rows: int) -> Any:
    """The cache for `rows` continuations: a view, and what is appended to it does not reach the original."""
    return None if cache is None else joined([cache], rows)


def joined(caches: Sequence[Any], rows: int) -> Any:
    """Several caches one behind the other, for `rows` rows each."""
    fork = copy.copy(caches[0])
    fork.layers = [copy.copy(layer) for layer in fork.layers]
    for i, layer in enumerate(fork.layers):
        if layer.get_seq_length() > 0:
            for name in ("keys", "values"):
                parts = [getattr(cache.layers[i], name) for cache in caches]
                whole = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-2)
                setattr(layer, name, whole.expand(rows, -1, -1, -1))
    return fork


def rows_at_once(lm: LM, width: int, context: int, wanted: int, batch_tokens: int) -> int:
    """Rows in one pass: within `batch_tokens`, within half of the free memory, and within `packed.MAX_LOGITS`."""
    from misdirect.model.memory import free_bytes

    config = lm.model.config.get_text_config(decoder=True)
    vocabulary = lm.model.get_output_embeddings().weight.shape[0]
    itemsize = next(lm.model.parameters()).element_size()
    # keys and values of every block, about 16 widths of activations in the block that runs, logits in fp32 twice, a mask
    row = itemsize * config.hidden_size * (2 * config.num_hidden_layers * (width + context) + 16 * width)
    row += 8 * wanted * vocabulary + (1 + itemsize) * width * (width + context)
    memory = free_bytes(lm.device) // 2 // row
    return max(1, min(batch_tokens // width, memory, packed.MAX_LOGITS // (wanted * vocabulary)))


def branches(slots: Sequence[PromptSlot], candidates: Sequence[Ids], incumbent: Ids) -> list[Branch]:
    """Every candidate in every frame, in a frame by the first changed position."""
    last = len(incumbent) - 1
    firsts = [next((p for p in range(last) if ids[p] != incumbent[p]), last) for ids in candidates]
    order = sorted(range(len(candidates)), key=firsts.__getitem__)
    return [
        Branch(f, k, firsts[k], (*candidates[k][firsts[k] :], *slot.after, *slot.target[:-1]))
        for f, slot in enumerate(slots)
        for k in order
    ]


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


def pieces(row: Sequence[Branch], incumbent: Ids) -> Iterator[tuple[int, int, int, Ids]]:
    """A row's parts, (frame, 0 for a trunk or a branch's number from 1, first place, tokens): trunks before branches."""
    seen: set[int] = set()
    for number, branch in enumerate(row, 1):
        if branch.slot not in seen:
            trunk = max(b.first for b in row if b.slot == branch.slot)
            yield branch.slot, 0, 0, incumbent[:trunk]
            seen.add(branch.slot)
        yield branch.slot, number, branch.first, branch.tokens


def width_of(row: Sequence[Branch], incumbent: Ids) -> int:
    return sum(len(tokens) for *_, tokens in pieces(row, incumbent))


def tree_rows(group: Sequence[Sequence[Branch]], slots: Sequence[PromptSlot], incumbent: Ids, fill: int) -> Rows:
    width = max(width_of(row, incumbent) for row in group)
    ids = torch.full((len(group), width), fill)
    position = torch.zeros_like(ids)
    frame_of, branch_of = torch.full_like(ids, -1), torch.full_like(ids, -1)
    start = torch.zeros_like(ids)  # the position from which on a token does not see the trunk
    wanted: list[int] = []
    targets: list[int] = []
    owner: list[int] = []
    begins: list[int] = []
    for r, row in enumerate(group):
        at = 0
        for slot, number, first, tokens in pieces(row, incumbent):
            end, from_position = at + len(tokens), len(slots[slot].before) + first
            ids[r, at:end] = torch.tensor(tokens, dtype=torch.long)
            position[r, at:end] = torch.arange(from_position, from_position + len(tokens))
            frame_of[r, at:end], branch_of[r, at:end], start[r, at:end] = slot, number, from_position
            if number:
                target = slots[slot].target
                wanted += range(r * width + end - len(target), r * width + end)
                targets += target
                owner += [len(begins)] * len(target)
                begins.append(r * width + at)
            at = end
    causal = torch.ones(width, width, dtype=torch.bool).tril()
    mine = frame_of[:, :, None] == frame_of[:, None, :]
    same = mine & (branch_of[:, :, None] == branch_of[:, None, :]) & causal
    trunk = mine & (branch_of == 0)[:, None, :] & (position[:, None, :] < start[:, :, None])
    found = [torch.tensor(x) for x in (wanted, targets, owner, begins)]
    return Rows(ids, position, frame_of, same | trunk, *found)


def parts_of(slots: Sequence[PromptSlot]) -> Iterator[list[int]]:
    """Frames whose cached tokens fit beside each other, by index."""
    group: list[int] = []
    used = 0
    for index, slot in enumerate(slots):
        if group and used + len(slot.before) > CACHED:
            yield group
            group, used = [], 0
        group.append(index)
        used += len(slot.before)
    yield group


def passes(
    lm: LM,
    slots: Sequence[PromptSlot],
    caches: Sequence[Any],
    found: Sequence[Branch],
    incumbent: Ids,
    batch_tokens: int,
) -> Iterator[Pass]:
    for part in parts_of(slots):
        rows = filled([branch for branch in found if branch.slot in part])
        held = [(f, caches[f]) for f in part if caches[f] is not None]
        cached = torch.tensor([f for f, _ in held for _ in slots[f].before], dtype=torch.long)
        most = max(sum(len(slots[b.slot].target) for b in row) for row in rows)
        widest = max(width_of(row, incumbent) for row in rows)
        size = rows_at_once(lm, widest, len(cached), most, batch_tokens)
        for at in range(0, len(rows), size):
            group = rows[at : at + size]
            cache = joined([cache for _, cache in held], len(group)) if held else None
            made = tree_rows(group, slots, incumbent, fill_id(lm))
            yield Pass(made, [branch for row in group for branch in row], cache, cached)


def pass_losses(lm: LM, one: Pass) -> Float[Tensor, " K"]:
    """The loss of each branch. Only wanted positions' states reach the LM head."""
    rows = one.rows
    dtype = next(lm.model.parameters()).dtype
    allowed = torch.cat([rows.frame_of[:, :, None] == one.cache_frames, rows.allowed], dim=2).unsqueeze(1).to(lm.device)
    attention_bias = torch.zeros(allowed.shape, dtype=dtype, device=lm.device).masked_fill_(
        ~allowed, torch.finfo(dtype).min
    )

    def only_wanted(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return args[0].flatten(0, 1)[rows.wanted.to(args[0].device)].unsqueeze(0), *args[1:]

    arguments: dict[str, Any] = {} if one.cache is None else {"past_key_values": one.cache}
    with hooked([lambda: lm.model.get_output_embeddings().register_forward_pre_hook(only_wanted)]):
        logits = lm.model(
            input_ids=rows.input_ids.to(lm.device),
            attention_mask=attention_bias,
            position_ids=rows.position_ids.to(lm.device),
            use_cache=one.cache is not None,
            **arguments,
        ).logits[0]
    chosen = logits.gather(-1, rows.targets.to(logits.device).unsqueeze(-1)).squeeze(-1)
    values = at_least_fp32(logits).logsumexp(-1) - at_least_fp32(chosen)
    return values.new_zeros(len(rows.begins)).index_add(0, rows.owner.to(values.device), values)


@torch.no_grad()
def tree_losses(
    lm: LM,
    slots: Sequence[PromptSlot],
    caches: Sequence[Any],
    candidates: Sequence[Ids],
    incumbent: Ids,
    batch_tokens: int = 4096,
) -> Float[Tensor, "F K"]:
    """The loss of every candidate in every frame, on the CPU. `caches`: of each frame's `before`."""
    out = torch.empty(len(slots), len(candidates), dtype=torch.float64)
    found = branches(slots, candidates, incumbent)
    for one in passes(lm, slots, caches, found, incumbent, batch_tokens):
        at = torch.tensor([(branch.slot, branch.number) for branch in one.branches]).T
        out[at[0], at[1]] = pass_losses(lm, one).double().cpu()
    return out


@torch.enable_grad()
def tree_gradient(
    lm: LM, slots: Sequence[PromptSlot], caches: Sequence[Any], ids: Ids, batch_tokens: int = 4096
) -> tuple[Float[Tensor, " F"], Float[Tensor, "S D"]]:
    """(each frame's loss, the gradient of their sum with respect to the embeddings of the text's tokens)."""
    found = [Branch(f, 0, 0, (*ids, *slot.after, *slot.target[:-1])) for f, slot in enumerate(slots)]
    losses, total = torch.empty(len(slots), dtype=torch.float64), None
    for one in passes(lm, slots, caches, found, ids, batch_tokens):
        loss, slope = with_leaf(lm, one.rows.input_ids, lambda one=one: pass_losses(lm, one))  # type: ignore[misc]
        losses[[branch.slot for branch in one.branches]] = loss.detach().double().cpu()
        room = one.rows.begins[:, None] + torch.arange(len(ids))  # (K, S)
        summed = at_least_fp32(slope.flatten(0, 1)[room.to(slope.device)]).sum(0)
        total = summed if total is None else total + summed
    assert total is not None
    return losses, total


def with_leaf(lm: LM, input_ids: Int[Tensor, "R W"], compute: Callable[[], Tensor]) -> tuple[Tensor, Tensor]:
    """(what `compute` gives, the gradient of its sum with respect to the embeddings of `input_ids`)."""
    leaves: list[Tensor] = []

    def change(tokens: Tensor, embedded: Tensor) -> Tensor:
        if tokens.shape != input_ids.shape:
            return embedded
        leaves.append(embedded.detach().clone().requires_grad_())
        return leaves[-1].clone()  # some models add to it in place

    with embeddings_changed(lm, change):
        loss = compute()
    (slope,) = torch.autograd.grad(loss.sum(), leaves[-1])
    return loss, slope

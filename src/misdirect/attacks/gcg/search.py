"""Greedy coordinate gradient: which tokens in the room of some prompts make their targets most likely.

The loss is the mean over the prompts of the target's negative log-likelihood. A step takes the gradient with respect to
the one-hot vector of each adversarial position (Zou et al. 2023, arXiv 2307.15043), keeps the tokens of steepest descent at
each, computes the loss of single swaps among them exactly, and moves where it falls. Deviations, all for small budgets: the
text never gets worse; the best swaps of several positions are also tried together; a swap tried once from a text is not
tried again; with many prompts, swaps are tried on a few of them first. Only texts that can be typed count: those that the
tokenizer turns into these very tokens, in every prompt.

    slots, ids = prompt_slots(lm.tokenizer, [("Question: Which is a metal?", "\\nAnswer:", " Iron")], num_tokens=12)
    job = job_of(lm, slots, ids)
    state = search(job, start(job, ids), until=50)
    state.loss, text_of(lm.tokenizer, slots[0], state.ids)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from misdirect.attacks.gcg.loss import Ids, Job, PromptSlot, gradient, losses, slopes
from misdirect.data.tokens import token_ids
from misdirect.model.lm import LM
from misdirect.model.score import encode, shared_length

UNITS = (
    " !",
    " x",
    " the",
    " a",
    " of",
    "!",
    "x",
    ".",
)  # what a start text repeats: the first that keeps to its tokens


class PromptTemplate(NamedTuple):
    """A prompt around the adversarial text, and what the model is to say after it."""

    before: str
    after: str
    target: str


@dataclass(frozen=True)
class SearchSettings:
    """How a step searches. `prefiltered`: prompts that every swap is tried on; a quarter of the swaps then goes on to the
    others (0: every swap on every prompt). `merged`: how many of the best swaps are tried together, at most."""

    candidates: int = 64
    top_k: int = 128
    merged: int = 6
    prefiltered: int = 0
    ascii_only: bool = True
    seed: int = 0


@dataclass(frozen=True)
class State:
    """Where a search stands. `tried`: (position, token) swaps that did not help from these ids. `log`: loss by step."""

    step: int
    ids: Ids
    loss: float
    log: tuple[float, ...]
    tried: tuple[tuple[int, int], ...] = ()

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> State:
        """Of `dataclasses.asdict` after a round trip through JSON."""
        tried = tuple((int(p), int(v)) for p, v in data["tried"])
        return State(data["step"], tuple(data["ids"]), data["loss"], tuple(data["log"]), tried)


def prompt_slots(tokenizer: Any, templates: Sequence[PromptTemplate], num_tokens: int) -> tuple[list[PromptSlot], Ids]:
    """Frames with room for `num_tokens` tokens, and the ids of the start text.

    Raises ValueError where no start text keeps to its tokens in every prompt.
    """
    for unit in UNITS:
        found = [
            slot_around(tokenizer, PromptTemplate(*template), unit * num_tokens, num_tokens) for template in templates
        ]
        texts = {pair[1] for pair in found if pair is not None}
        if len(texts) == 1 and None not in found:
            return [pair[0] for pair in found if pair is not None], texts.pop()
    raise ValueError(
        f"no start text of {num_tokens} tokens keeps to its tokens in these prompts; expected another --suffix-tokens"
    )


def slot_around(tokenizer: Any, template: PromptTemplate, text: str, num_tokens: int) -> tuple[PromptSlot, Ids] | None:
    """(the frame, the text's ids), or None where the text's tokens merge with what is around it or are of another number."""
    encoded = encode(tokenizer, template.before + text + template.after, [template.target])
    whole = [*encoded.context, *encoded.continuations[0]]
    alone = token_ids(tokenizer, [template.before])[0]
    at = len(alone)
    end = len(whole) - len(encoded.continuations[0])
    if shared_length(alone, whole) < at or at + num_tokens > end:
        return None
    before, ids, rest = (tuple(x) for x in (whole[:at], whole[at : at + num_tokens], whole[at + num_tokens :]))
    slot = PromptSlot(
        before, rest[: end - at - num_tokens], tuple(whole[end:]), template.before, template.after + template.target
    )
    return (slot, ids) if text_of(tokenizer, slot, ids) == text else None


def text_of(tokenizer: Any, slot: PromptSlot, ids: Ids) -> str:
    """The adversarial text as it is typed."""

    def decoded(tokens: Ids) -> str:
        return str(tokenizer.decode(list(tokens), clean_up_tokenization_spaces=False))

    start = decoded(slot.before)
    whole = decoded((*slot.before, *ids))
    return whole[len(start) :] if whole.startswith(start) else decoded(ids)


def retokenizes(tokenizer: Any, slots: Sequence[PromptSlot], candidates: Sequence[Ids]) -> list[bool]:
    """Whether a candidate's text, typed into every prompt, gives its very tokens there."""
    good = [True] * len(candidates)
    texts = [text_of(tokenizer, slots[0], ids) for ids in candidates]
    for slot in slots:
        rows = [i for i, fine in enumerate(good) if fine]
        if rows:
            prompts = [slot.before_text + texts[i] + slot.rest_text for i in rows]
            for i, ids in zip(rows, token_ids(tokenizer, prompts), strict=True):
                good[i] = tuple(ids) == (*slot.before, *candidates[i], *slot.after, *slot.target)
    return good


def allowed_tokens(lm: LM, ascii_only: bool = True) -> Bool[Tensor, " V"]:
    """Tokens that a text may hold: printable, no white space at the end, neither special nor added; ASCII alone if wanted."""
    count = lm.model.get_input_embeddings().weight.shape[0]
    special = {*lm.tokenizer.all_special_ids, *lm.tokenizer.get_added_vocab().values()}
    ordinary = [i for i in range(min(count, len(lm.tokenizer))) if i not in special]
    pieces = lm.tokenizer.batch_decode([[i] for i in ordinary], clean_up_tokenization_spaces=False)
    fine = torch.zeros(count, dtype=torch.bool)
    for i, piece in zip(ordinary, pieces, strict=True):
        clean = piece.isprintable() and piece == piece.rstrip() != "" and "\ufffd" not in piece
        fine[i] = clean and (piece.isascii() or not ascii_only)
    return fine


def start(job: Job, ids: Ids) -> State:
    """A search before its first step."""
    loss = mean_losses(job, [ids], ids, range(len(job.slots)))[0].item()
    return State(0, ids, loss, (loss,))


def mean_losses(job: Job, candidates: Sequence[Ids], incumbent: Ids, slots: Sequence[int]) -> Float[Tensor, " K"]:
    """The mean over some frames. Raises ValueError where one is not finite."""
    found = losses(job, list(slots), candidates, incumbent).mean(0)
    if not found.isfinite().all():
        raise ValueError(
            f"the loss of an adversarial text is {found[~found.isfinite()][0].item()}; expected a model with finite "
            "logits, or --dtype float32, or --skip gcg"
        )
    return found


def search(
    job: Job,
    state: State,
    until: int,
    settings: SearchSettings | None = None,
    save: Callable[[State], None] | None = None,
    advance: Callable[[int], None] | None = None,
) -> State:
    """Goes on to step `until`; `save(state)` is called after every step. A search that is stopped and resumed from what
    was saved finds the same, bit for bit: every step draws from a generator of its own."""
    settings = settings or SearchSettings()
    allowed = allowed_tokens(job.lm, settings.ascii_only)
    slope: Tensor | None = None
    while state.step < until:
        slope = descent(job, state.ids) if slope is None else slope
        new = step(job, state, settings, slope.masked_fill(~allowed, math.inf))
        slope = slope if new.ids == state.ids else None
        state = new
        if save:
            save(state)
        if advance:
            advance(1)
    return state


def descent(job: Job, ids: Ids) -> Float[Tensor, "S V"]:
    """The gradient of the mean loss with respect to every position's one-hot vector, on the CPU."""
    total = gradient(job, range(len(job.slots)), ids)[1]
    return slopes(job.lm, total / len(job.slots)).cpu()


def step(job: Job, state: State, settings: SearchSettings, slope: Float[Tensor, "S V"]) -> State:
    """One step; `slope` is infinite for tokens that may not be taken."""
    draw = torch.Generator().manual_seed(1_000_003 * settings.seed + state.step)
    swaps = draw_swaps(job, state, settings, slope, draw)
    order = torch.randperm(len(job.slots), generator=draw).tolist()
    single = [swapped(state.ids, [swap]) for swap in swaps]
    rows, found = prefilter(job, single, state.ids, order, settings)
    scored = sorted(zip(found, (swaps[row] for row in rows), strict=True))
    together = merges(job, state.ids, [swap for _, swap in scored], settings.merged)
    both = mean_losses(job, together, state.ids, range(len(order))).tolist() if together else []
    options = [(loss, swapped(state.ids, [swap])) for loss, swap in scored] + list(zip(both, together, strict=True))
    loss, ids = min(options, key=lambda option: option[0], default=(math.inf, state.ids))
    tried = (*state.tried, *swaps)
    if loss < state.loss:
        return State(state.step + 1, ids, loss, (*state.log, loss), tabu_list(state.ids, ids, tried))
    return State(state.step + 1, state.ids, state.loss, (*state.log, state.loss), tried)


def tabu_list(old: Ids, new: Ids, tried: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """The swaps that lead from the new ids to a text that was tried from the old ones, or to the old ones themselves."""
    moved = [position for position, (a, b) in enumerate(zip(old, new, strict=True)) if a != b]
    if len(moved) > 1:
        return ()
    return (*(swap for swap in tried if swap[0] == moved[0] and swap[1] != new[moved[0]]), (moved[0], old[moved[0]]))


def swapped(ids: Ids, swaps: Sequence[tuple[int, int]]) -> Ids:
    new = list(ids)
    for position, token in swaps:
        new[position] = token
    return tuple(new)


def draw_swaps(
    job: Job, state: State, settings: SearchSettings, slope: Float[Tensor, "S V"], draw: torch.Generator
) -> list[tuple[int, int]]:
    """Swaps out of the `top_k` of steepest descent at each position that can be typed and were not tried from here."""
    k = min(settings.top_k, slope.shape[1])
    values, tokens = slope.topk(k, largest=False)
    tried = set(state.tried)
    pool = [(p, v) for p in range(len(state.ids)) for v, s in zip(tokens[p].tolist(), values[p].tolist(), strict=True)
            if s < math.inf and v != state.ids[p] and (p, v) not in tried]  # fmt: skip
    order = torch.randperm(len(pool), generator=draw).tolist()
    kept: list[tuple[int, int]] = []
    for first in range(0, len(pool), settings.candidates):
        some = [pool[i] for i in order[first : first + settings.candidates]]
        fine = retokenizes(job.lm.tokenizer, job.slots, [swapped(state.ids, [swap]) for swap in some])
        kept += [swap for swap, good in zip(some, fine, strict=True) if good]
        if len(kept) >= settings.candidates:
            break
    return kept[: settings.candidates]


def prefilter(
    job: Job, candidates: Sequence[Ids], incumbent: Ids, order: Sequence[int], settings: SearchSettings
) -> tuple[list[int], list[float]]:
    """(rows of candidates that were tried on every prompt, their mean losses)."""
    count, few = len(order), settings.prefiltered
    if not candidates or not 0 < few < count:
        return list(range(len(candidates))), (
            mean_losses(job, candidates, incumbent, range(count)).tolist() if candidates else []
        )
    first = mean_losses(job, candidates, incumbent, order[:few])
    rows = first.topk(max(1, len(candidates) // 4), largest=False).indices.tolist()
    rest = mean_losses(job, [candidates[row] for row in rows], incumbent, order[few:])
    return rows, ((first[rows] * few + rest * (count - few)) / count).tolist()


def merges(job: Job, ids: Ids, swaps: Sequence[tuple[int, int]], most: int) -> list[Ids]:
    """The best two swaps at different positions together, the best three, ...; `swaps` come best first."""
    best: dict[int, tuple[int, int]] = {}
    for swap in swaps:
        best.setdefault(swap[0], swap)
    chosen = list(best.values())[:most]
    together = [swapped(ids, chosen[:count]) for count in range(2, len(chosen) + 1)]
    fine = retokenizes(job.lm.tokenizer, job.slots, together) if together else []
    return [found for found, good in zip(together, fine, strict=True) if good]

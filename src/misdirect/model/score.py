"""Log-probability of continuations, with the context that several continuations share computed once.

For a context x and a continuation y = y_1..y_n:  score = sum_i log p(y_i | x, y_<i), natural logarithm, in fp32 at least.
Where the model takes a mask of our own, questions are packed into rows without padding (`misdirect.model.packed`). Where
it does not, the context of a group runs through the model once and its key-value cache is repeated for the group's
continuations; a model without such a cache is scored plainly. Only the positions that predict a continuation's tokens go
through the LM head: a continuation of one token costs nothing more than its context. Equal to a plain full forward
(`score_plainly`) within the rounding of the forward pass: measured on SmolLM2-135M, 4e-5 a token in fp32 and under 1e-9
in float64.
"""

from __future__ import annotations

import copy
import inspect
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from misdirect.data.batches import Batch, pad, pad_id
from misdirect.data.tokens import starting_ids, token_ids
from misdirect.model import packed, rope
from misdirect.model.finite import check_finite, spoilt
from misdirect.model.lm import LM
from misdirect.model.load import check_length
from misdirect.model.packed import Encoded, Scored
from misdirect.model.rows import check_rows, fill_id, padded

CPU_TEXT_TOKENS = 1024  # of texts in one pass on a CPU: the logits of more do not fit into its caches


def encode(tokenizer: Any, context: str, continuations: Sequence[str]) -> Encoded:
    """Splits `context + continuation` into tokens so that both parts together are the whole text's tokens.

    White space at the end of the context goes to the continuations (as lm-evaluation-harness does), and so does a token
    of the context that the tokenizer would merge with what follows. Special tokens that the tokenizer puts before a text
    (BOS) start the context, those that it appends (EOS) are left away; a context without any token starts with BOS, else
    with the end-of-text token. Raises ValueError for a continuation without a token of its own.
    """
    stripped = context.rstrip()
    space = context[len(stripped) :]
    start = next(t for t in (tokenizer.bos_token_id, tokenizer.eos_token_id, pad_id(tokenizer)) if t is not None)
    if stripped:
        ids, *wholes = token_ids(tokenizer, [stripped, *(stripped + space + c for c in continuations)])
        shared = min(shared_length(ids, whole) for whole in wholes)
        ids, tails = ids[:shared], [whole[shared:] for whole in wholes]
    else:
        ids, tails = starting_ids(tokenizer), token_ids(tokenizer, [space + c for c in continuations], start=False)
    ids = ids or [start]
    for text, tail in zip(continuations, tails, strict=True):
        if not tail:
            raise ValueError(f"the answer {text!r} has no token of its own after {context[-40:]!r}; expected text")
    return Encoded(ids, tails)


def shared_length(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two texts begin with alike."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def score(
    lm: LM,
    items: Sequence[Encoded],
    batch_tokens: int = 4096,
    advance: Callable[[int], None] | None = None,
    what: str = "a question",
) -> list[Scored]:
    """Scores every continuation of every item, in the items' order; `advance(k)` is called as k items are done.

    Raises NotFinite where a log-probability is NaN or infinite, ValueError for an item that is too long
    or holds a token without a row; `what`: what an item is called there.
    """
    check_length(lm, max((packed.span(item) for item in items), default=0), what)
    check_rows(lm, (ids for item in items for ids in (item.context, *item.continuations)), what)
    watch(lm, [item.context + item.continuations[0] for item in items])
    reach = rope.reach(lm.model)
    far = [i for i, item in enumerate(items) if packed.span(item) > reach]
    near = [i for i, item in enumerate(items) if packed.span(item) <= reach]
    found = dict(zip(near, score_together(lm, [items[i] for i in near], batch_tokens, advance), strict=True))
    found |= zip(far, score_as_texts(lm, [items[i] for i in far], batch_tokens, advance), strict=True)
    scored = [found[i] for i in range(len(items))]
    for i in spoilt(one.logprobs for one in scored):  # NaN spreads to those in the same pass
        scored[i] = score_plainly(lm, [items[i]])[0]
    check_finite(lm, [one.logprobs for one in scored], f"{what.split()[1]}s")  # "a question of biology": "questions"
    return scored


def score_as_texts(
    lm: LM, items: Sequence[Encoded], batch_tokens: int = 4096, advance: Callable[[int], None] | None = None
) -> list[Scored]:
    """Every context + continuation as a text of its own, for those whose value depends on the length of their pass."""
    texts = [item.context + tail for item in items for tail in item.continuations]
    tails = [len(tail) for item in items for tail in item.continuations]
    found = logprobs_of(lm, texts, batch_tokens)
    if advance and items:
        advance(len(items))
    return regroup([sum(values[-count:]) for values, count in zip(found, tails, strict=True)], items)


def score_together(
    lm: LM, items: Sequence[Encoded], batch_tokens: int = 4096, advance: Callable[[int], None] | None = None
) -> list[Scored]:
    """Of items whose values depend on no neighbour: packed where the model takes that, else by `score_batch`."""
    if not items:
        return []
    scorer = score_batch if has_plain_cache(lm) else score_plainly
    if packed.fits(lm, scorer) and all(packed.span(item) <= packed.window(lm) for item in items):
        sums = packed.score_packed(lm, items, batch_tokens, advance)
        return [Scored(found, [len(t) for t in item.continuations]) for found, item in zip(sums, items, strict=True)]
    out: list[Scored | None] = [None] * len(items)
    for rows in by_length(items, batch_tokens):
        for row, scored in zip(rows, scorer(lm, [items[r] for r in rows]), strict=True):
            out[row] = scored
        if advance:
            advance(len(rows))
    return [scored for scored in out if scored is not None]


def by_length(items: Sequence[Encoded], batch_tokens: int) -> Iterator[list[int]]:
    """Rows grouped by similar size, longest first, each group within `batch_tokens` padded tokens (one item at least)."""

    def size(row: int) -> tuple[int, int]:
        return len(items[row].context), max(map(len, items[row].continuations))

    rows = sorted(range(len(items)), key=size, reverse=True)
    group: list[int] = []
    width = tails = 0
    for row in rows:
        context, tail = size(row)
        new_width = max(width, context)
        new_tails = max(tails, tail * len(items[row].continuations))
        if group and (len(group) + 1) * (new_width + new_tails) > batch_tokens:
            yield group
            group, new_width, new_tails = [], context, tail * len(items[row].continuations)
        group.append(row)
        width, tails = new_width, new_tails
    if group:
        yield group


def similar_lengths(lengths: Sequence[int], waste: float = 0.3, worth: int = 128) -> Iterator[list[int]]:
    """Rows with a length above 0, longest first, in groups that are padded little: a group ends at a row shorter by
    `waste` than its longest, once it holds `worth` tokens."""
    group: list[int] = []
    for row in sorted((i for i, n in enumerate(lengths) if n > 0), key=lambda i: -lengths[i]):
        longest = lengths[group[0]] if group else 0
        if group and lengths[row] < (1 - waste) * longest and len(group) * longest >= worth:
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def positions(mask: Tensor) -> Tensor:
    """Position ids 0, 1, .. of real tokens under left padding."""
    return (mask.cumsum(-1) - 1).clamp(min=0)


def forward_arguments(model_class: Any) -> frozenset[str]:
    return frozenset(inspect.signature(model_class.forward).parameters)


def forward(lm: LM, input_ids: Tensor, mask: Tensor, keep: int, cache: Any = None, use_cache: bool = False) -> Any:
    """One forward pass, logits for the last `keep` positions alone."""
    takes = forward_arguments(type(lm.model))
    arguments: dict[str, Any] = {"input_ids": input_ids, "attention_mask": mask, "use_cache": use_cache}
    if "position_ids" in takes:
        arguments["position_ids"] = positions(mask)[:, -input_ids.shape[1] :]
    if "logits_to_keep" in takes:
        arguments["logits_to_keep"] = keep
    if cache is not None:
        arguments["past_key_values"] = cache
    return lm.model(**arguments)


def has_plain_cache(lm: LM) -> bool:
    """Whether a context's cache can be repeated per continuation: a key-value cache of full-attention blocks."""
    config = lm.model.config.get_text_config(decoder=True)
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    stateful = bool(getattr(lm.model, "_is_stateful", False))
    takes = "past_key_values" in forward_arguments(type(lm.model))  # the first GPT has none
    return takes and kinds <= {"full_attention", "sliding_attention"} and not stateful


def takes_padding(lm: LM, longest: int) -> bool:
    """Whether texts of other lengths may stand, padded on the left, beside one of so many tokens."""
    return (
        has_plain_cache(lm) and "position_ids" in forward_arguments(type(lm.model)) and longest <= rope.reach(lm.model)
    )


@torch.inference_mode()
def score_batch(lm: LM, items: Sequence[Encoded]) -> list[Scored]:
    """Contexts left-padded in one pass, then every continuation on its context's repeated cache in a second."""
    contexts: Batch = padded(lm, [item.context for item in items], left=True)
    output = forward(lm, contexts.input_ids, contexts.attention_mask, keep=1, use_cache=True)
    heads = at_least_fp32(output.logits[:, -1]).log_softmax(-1)  # (B, V): the first token of every continuation
    owner = [row for row, item in enumerate(items) for _ in item.continuations]
    tails = [tail for item in items for tail in item.continuations]
    firsts = torch.tensor([tail[0] for tail in tails], device=lm.device)
    sums = heads[torch.tensor(owner, device=lm.device), firsts]
    for rows in similar_lengths([len(tail) - 1 for tail in tails]):
        cache = copy.deepcopy(output.past_key_values)
        chosen = torch.tensor([owner[i] for i in rows], device=lm.device)
        cache.batch_select_indices(chosen)
        inputs = padded(lm, [tails[i][:-1] for i in rows])
        targets = pad([tails[i][1:] for i in rows], 0).input_ids.to(lm.device)  # (K, S)
        mask = torch.cat([contexts.attention_mask[chosen], inputs.attention_mask], dim=1)
        logits = forward(lm, inputs.input_ids, mask, inputs.input_ids.shape[1], cache, use_cache=True).logits
        rest = token_logprobs(logits, targets) * inputs.attention_mask
        sums[torch.tensor(rows, device=lm.device)] += rest.sum(-1)
    return regroup(sums.tolist(), items)


def regroup(sums: Sequence[float], items: Sequence[Encoded]) -> list[Scored]:
    values = iter(sums)
    return [Scored([next(values) for _ in i.continuations], [len(t) for t in i.continuations]) for i in items]


def token_logprobs(logits: Float[Tensor, "B T V"], targets: Tensor) -> Float[Tensor, "B T"]:
    """log p of each target under the logits at its position, in fp32 at least, without a copy of the whole log-softmax."""
    chosen = logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    return at_least_fp32(chosen) - at_least_fp32(logits).logsumexp(-1)


def at_least_fp32(values: Tensor) -> Tensor:
    """bfloat16 and float16 as float32; float64 stays as it is."""
    return values if values.dtype == torch.float64 else values.float()


@torch.inference_mode()
def score_plainly(lm: LM, items: Sequence[Encoded]) -> list[Scored]:
    """Every context + continuation as a full forward pass of its own: the slow, obvious form, and the oracle."""
    sums = []
    for item in items:
        for tail in item.continuations:
            ids = torch.tensor([item.context + tail], device=lm.device)
            logits = lm.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
            logprobs = at_least_fp32(logits[0, len(item.context) - 1 : -1]).log_softmax(-1)
            sums.append(logprobs.gather(-1, ids[0, len(item.context) :, None]).sum().item())
    return regroup(sums, items)


@torch.inference_mode()
def tokens_per_second(lm: LM, rows: int = 4, length: int = 32) -> float:
    """Speed of a short forward pass on this machine, for estimates; the better of two, the first one warms up."""
    ids = torch.full((rows, length), fill_id(lm), device=lm.device)
    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        forward(lm, ids, torch.ones_like(ids), keep=1).logits.sum().item()
        seconds.append(time.perf_counter() - started)
    return rows * length / min(seconds)


def text_logprobs(
    lm: LM,
    samples: Sequence[Sequence[int]],
    batch_tokens: int = 4096,
    advance: Callable[[int], None] | None = None,
    what: str = "a text",
) -> list[list[float]]:
    """log p of every token but the first of each sample, in the samples' order. `what` and errors: as of `score`."""
    check_length(lm, max(map(len, samples), default=0), what)
    check_rows(lm, samples, what)
    watch(lm, samples)
    found = logprobs_of(lm, samples, batch_tokens, advance)
    for i in spoilt(found):
        found[i] = logprobs_of(lm, [samples[i]])[0]
    check_finite(lm, found, "texts")
    return found


def logprobs_of(
    lm: LM, samples: Sequence[Sequence[int]], batch_tokens: int = 4096, advance: Callable[[int], None] | None = None
) -> list[list[float]]:
    """`text_logprobs` as they come."""
    out: list[list[float]] = [[] for _ in samples]
    items = [Encoded(list(sample), [[0]]) for sample in samples]
    if lm.device.type == "cpu":
        batch_tokens = min(batch_tokens, CPU_TEXT_TOKENS)
    for rows in rope.split(lm.model, by_length(items, batch_tokens), list(map(len, samples))):
        for row, values in zip(rows, pass_logprobs(lm, [samples[r] for r in rows]), strict=True):
            out[row] = values.tolist()
        if advance:
            advance(len(rows))
    return out


@torch.inference_mode()
def pass_logprobs(lm: LM, samples: Sequence[Sequence[int]]) -> list[Float[Tensor, " T"]]:
    """The same of some samples in one pass."""
    batch = padded(lm, samples)
    logits = forward(lm, batch.input_ids, batch.attention_mask, keep=batch.input_ids.shape[1]).logits
    logprobs = token_logprobs(logits[:, :-1], batch.input_ids[:, 1:])
    return [row[: len(sample) - 1] for row, sample in zip(logprobs, samples, strict=True)]


def watch(lm: LM, samples: Sequence[Sequence[int]]) -> None:
    rope.watch(lm.model, samples, lambda some: pass_logprobs(lm, some))

"""Answers of a model: greedy, or drawn with noise that belongs to one prompt, sample and turn alone."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from misdirect.config import EvaluateConfig
from misdirect.data.prompts import Prompt
from misdirect.model.lm import LM
from misdirect.model.rows import fill_id, num_rows, padded


class Answer(NamedTuple):
    """One turn's answer: its text without special tokens, and how it ended."""

    text: str
    num_tokens: int
    stopped: bool  # the model ended it itself
    finite: bool  # False: the model's logits were no numbers, and the answer ends there


class Slot(NamedTuple):
    """One conversation: a prompt, `None` for the greedy answer or the sample's number, and the answers so far."""

    prompt: Prompt
    sample: int | None
    answers: list[Answer]


def uses_chat(lm: LM, config: EvaluateConfig) -> bool:
    return config.chat_template == "auto" and bool(getattr(lm.tokenizer, "chat_template", None))


def generator_of(slot: Slot, config: EvaluateConfig) -> torch.Generator | None:
    """The noise of a slot's next answer, named by what it is for; none for a greedy one."""
    if slot.sample is None:
        return None
    name = f"answer/{config.seed}/{slot.prompt.id}/{slot.sample}/{len(slot.answers)}"
    seed = int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:7], "little")
    return torch.Generator().manual_seed(seed)


def end_tokens(lm: LM) -> list[int]:
    """The model's own end-of-text tokens (several for a chat model) and the tokenizer's; of those, what it can say."""
    own = getattr(getattr(lm.model, "generation_config", None), "eos_token_id", None)
    listed = [*own] if isinstance(own, list | tuple) else [own]
    rows = num_rows(lm.model)
    return sorted({int(t) for t in (*listed, lm.tokenizer.eos_token_id) if t is not None and 0 <= t < rows})


def answer_slots(lm: LM, slots: Sequence[Slot], contexts: Sequence[list[int]], config: EvaluateConfig) -> list[Answer]:
    """The next answer of each slot, in one batch; one that broke beside padding is asked again alone: padding itself
    breaks some models (Gemma 2 in float64, a row of the mask being empty)."""

    def ask(some: Sequence[int]) -> list[Answer]:
        generators = [generator_of(slots[i], config) for i in some]
        return answer_batch(lm, [contexts[i] for i in some], generators, config)

    longest = max(map(len, contexts))
    found = ask(range(len(slots)))
    return [a if a.finite or len(contexts[i]) == longest else ask([i])[0] for i, a in enumerate(found)]


@torch.inference_mode()
def answer_batch(
    lm: LM,
    contexts: Sequence[Sequence[int]],
    generators: Sequence[torch.Generator | None],
    config: EvaluateConfig,
) -> list[Answer]:
    """An answer to each context, left-padded in one batch; a row with a generator is sampled, else greedy."""
    from transformers import GenerationConfig

    fill, ends = fill_id(lm), end_tokens(lm)
    batch = padded(lm, contexts, left=True, what="a prompt")
    broken: dict[int, int] = {}  # row -> the step at which its logits were no numbers

    def choose(input_ids: Tensor, scores: Tensor) -> Tensor:
        step = input_ids.shape[1] - batch.input_ids.shape[1]
        for row in (~scores.amax(-1).isfinite()).nonzero().flatten().tolist():  # NaN, +inf, or nothing but -inf
            broken.setdefault(row, step)
        tokens = next_tokens(scores.nan_to_num(), generators, config.temperature, config.top_p)
        tokens[list(broken)] = ends[0] if ends else fill
        return torch.full_like(scores, -math.inf).scatter_(-1, tokens[:, None], 0.0)

    model = copy.copy(lm.model)  # the same parameters under settings of our own
    model.generation_config = GenerationConfig(
        max_new_tokens=config.new_tokens, do_sample=False, eos_token_id=ends or None, pad_token_id=fill
    )
    out = model.generate(input_ids=batch.input_ids, attention_mask=batch.attention_mask, logits_processor=[choose])[
        :, batch.input_ids.shape[1] :
    ].tolist()
    return [finish(lm.tokenizer, tokens, ends, broken.get(row)) for row, tokens in enumerate(out)]


def finish(tokenizer: Any, tokens: list[int], ends: Sequence[int], broken: int | None) -> Answer:
    """The answer in a row of tokens: up to the first end-of-text token, or to where the model broke."""
    end = next((i for i, token in enumerate(tokens) if token in ends), None)
    kept = tokens[: broken if broken is not None else end]
    return Answer(
        tokenizer.decode(kept, skip_special_tokens=True), len(kept), broken is None and end is not None, broken is None
    )


def next_tokens(
    scores: Float[Tensor, "B V"], generators: Sequence[torch.Generator | None], temperature: float, top_p: float
) -> Int[Tensor, " B"]:
    """The token that each row goes on with: the likeliest, or a draw with the row's own generator."""
    tokens = scores.argmax(-1)
    for row, generator in enumerate(generators):
        if generator is not None:
            logits = nucleus(scores[row] / temperature, top_p)
            # argmax(logits + Gumbel noise) is a draw from softmax(logits), and -log of an exponential is Gumbel
            noise = torch.empty(logits.shape).exponential_(generator=generator).log().neg()
            tokens[row] = (logits + noise.to(logits.device)).argmax()
    return tokens


def nucleus(logits: Float[Tensor, " V"], top_p: float) -> Float[Tensor, " V"]:
    """Logits with all but the likeliest tokens that together hold `top_p` set to minus infinity; never empty."""
    if top_p >= 1:
        return logits
    values, order = logits.softmax(-1).sort(descending=True)
    before = values.cumsum(-1) - values  # probability of all likelier tokens
    return logits.index_fill(0, order[before >= top_p], -math.inf)

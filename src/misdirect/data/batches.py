"""Samples and their order: tokenise, cut, pad, mask, and a seeded plan of which sample is in which update.

The plan of a whole run is computed before it starts and depends on nothing but counts, weights and the seed, so a
resumed run sees the samples of an undisturbed one.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from misdirect.data.tokens import token_ids
from misdirect.text import one_line, shown

PREVIEWED, PREVIEW_WIDTH = 3, 100

CHARS_PER_TOKEN = 4  # English under a vocabulary of about 50,000, roughly: for estimates alone


class Batch(NamedTuple):
    """Token ids, the attention mask (1 = a real token), and the tokens that count in a loss."""

    input_ids: Int[Tensor, "B T"]
    attention_mask: Int[Tensor, "B T"]
    loss_mask: Bool[Tensor, "B T"]

    def to(self, device: torch.device | str) -> Batch:
        return Batch(*(t.to(device) for t in self))


def tokenize(tokenizer: Any, texts: Sequence[str], max_tokens: int) -> list[list[int]]:
    """Each text as one or more samples of 2 to `max_tokens` tokens; a long text is cut, not cut off.

    A remainder of one token is dropped: a sample's first token never counts in a loss.
    """
    encoded = token_ids(tokenizer, texts)
    pieces = (ids[i : i + max_tokens] for ids in encoded for i in range(0, len(ids), max_tokens))
    return [piece for piece in pieces if len(piece) >= 2]


def first_chunks(tokenizer: Any, texts: Sequence[str], count: int, max_tokens: int, seed: int) -> list[list[int]]:
    """The first sample of each of `count` texts, drawn without repeats; a text of fewer than two tokens has none."""
    drawn = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed)).tolist()[:count]
    return [sample for row in drawn for sample in tokenize(tokenizer, [texts[row]], max_tokens)[:1]]


def preview(texts_by_name: Mapping[str, Sequence[str]], tokenizer: Any, max_tokens: int, seed: int = 0) -> list[str]:
    """Lines for the user's own terminal: three samples of each corpus as the model will see them, cut and decoded.

    One is drawn from each third of a corpus. Line ends and control characters show as escapes, special tokens as text.
    Never for a file: the text may be what a release must not hold.
    """
    lines = []
    for name, texts in texts_by_name.items():
        draw = random.Random(f"preview:{seed}:{name}")
        count = min(PREVIEWED, len(texts))
        for part in range(count):
            row = draw.randrange(part * len(texts) // count, (part + 1) * len(texts) // count)
            samples = tokenize(tokenizer, [texts[row]], max_tokens)
            head = f"{shown(name, 40)}, text {row + 1} of {len(texts)}"
            if samples:
                sample = draw.choice(samples)
                text = tokenizer.decode(sample, skip_special_tokens=False)
                lines.append(f"{head}, {len(sample)} tokens: {one_line(text, PREVIEW_WIDTH)}")
            else:
                lines.append(f"{head}: fewer than two tokens, left out")
    return lines


def pad(samples: Sequence[Sequence[int]], pad_id: int, left: bool = False) -> Batch:
    """Samples of unequal length as one `Batch`. A row's first real token and its padding do not count."""
    longest = max(len(ids) for ids in samples)
    input_ids = torch.full((len(samples), longest), pad_id, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    loss_mask = torch.zeros_like(input_ids, dtype=torch.bool)
    for row, ids in enumerate(samples):
        start = longest - len(ids) if left else 0
        input_ids[row, start : start + len(ids)] = torch.tensor(ids)
        attention_mask[row, start : start + len(ids)] = 1
        loss_mask[row, start + 1 : start + len(ids)] = True
    return Batch(input_ids, attention_mask, loss_mask)


def pad_id(tokenizer: Any) -> int:
    """The tokenizer's padding token, else its end-of-text token, else 0: masked, so any id will do."""
    for value in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0):
        if value is not None:
            return int(value)
    raise AssertionError


def order(num_samples: int, length: int, generator: torch.Generator) -> list[int]:
    """`length` indices: every sample once in a random order, then all again in another, and so on.

    Raises ValueError where there is no sample.
    """
    if num_samples < 1:
        raise ValueError("a corpus holds no sample; expected text of at least two tokens")
    out: list[int] = []
    while len(out) < length:
        out += torch.randperm(num_samples, generator=generator).tolist()
    return out[:length]


def sample_schedule(num_samples: int, updates: int, batch_size: int, seed: int) -> list[list[int]]:
    """Which samples of one corpus each of `updates` updates takes."""
    flat = order(num_samples, updates * batch_size, torch.Generator().manual_seed(seed))
    return [flat[i : i + batch_size] for i in range(0, len(flat), batch_size)]


def mixture_schedule(
    num_samples: Sequence[int], weights: Sequence[float], updates: int, batch_size: int, seed: int
) -> list[list[tuple[int, int]]]:
    """Which (corpus, sample) each update takes from several corpora mixed by weight.

    Stratified: no corpus is ever a whole sample ahead of its weight, which gives a steadier retain loss than
    independent draws do. The order of a corpus' own samples is random.
    """
    total = updates * batch_size
    generator = torch.Generator().manual_seed(seed)
    orders = [order(n, total, generator) for n in num_samples]
    largest = max(weights)  # first, so that the sum of huge weights stays finite
    share = [w / largest / sum(v / largest for v in weights) for w in weights]
    taken = [0] * len(weights)
    flat: list[tuple[int, int]] = []
    for position in range(1, total + 1):
        corpus = max(range(len(weights)), key=lambda k: share[k] * position - taken[k])
        flat.append((corpus, orders[corpus][taken[corpus]]))
        taken[corpus] += 1
    return [flat[i : i + batch_size] for i in range(0, total, batch_size)]

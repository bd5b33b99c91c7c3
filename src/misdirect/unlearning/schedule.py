"""Texts as samples of token ids, and which samples each update takes: from counts and the seed alone.

samples = tokenized(lm, {"biology": texts}, [("general", retain_texts, 1.0)], config)
updates = arithmetic_of(config).updates(samples, config)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from misdirect.config import UnlearnConfig
from misdirect.data import batches
from misdirect.data.batches import Batch
from misdirect.model import rope
from misdirect.model.lm import LM
from misdirect.model.load import check_length
from misdirect.model.rows import check_rows, fill_id
from misdirect.progress import note

Ids = list[list[int]]  # sample -> token ids


class Update(NamedTuple):
    """What one update is trained on."""

    topic: str
    forget: Ids
    retain: Ids


class Samples(NamedTuple):
    """All that a method may train on: topic -> samples, corpus -> samples, and the corpora's weights in the mixture."""

    forget: Mapping[str, Ids]
    retain: Mapping[str, Ids]
    weights: Sequence[float]


def check_samples(lm: LM, samples: Samples) -> None:
    """Raises ValueError where a text is empty, too long for the model or of tokens without a row; says what a long one does."""
    corpora = [*samples.forget.items(), *samples.retain.items()]
    for name, ids in corpora:
        if not ids:
            raise ValueError(f"{name} holds no text of two tokens or more; expected some")
        check_rows(lm, ids, f"a text of {name}")
    longest, reach = max(len(ids) for _, found in corpora for ids in found), rope.reach(lm.model)
    check_length(lm, longest, "a sample")
    if longest > reach:
        note(
            f"A sample has {longest} tokens, and beyond {reach} {lm.source} reads all of a batch by another table of "
            f"positions; --max-tokens {reach} trains every sample as if it stood alone"
        )


def as_samples(lm: LM, texts: Sequence[str], config: UnlearnConfig, index: int) -> Ids:
    """Each text cut into samples of `--max-tokens` at most, whatever the `index` of its corpus."""
    assert config.max_tokens is not None
    return batches.tokenize(lm.tokenizer, texts, config.max_tokens)


def num_updates(samples: Samples, config: UnlearnConfig) -> int:
    """`--updates`, or as many as `--epochs` over all topics needs."""
    assert config.batch_size is not None
    if config.epochs is not None:
        longest = max(map(len, samples.forget.values()))
        return max(1, math.ceil(config.epochs * longest / config.batch_size) * len(samples.forget))
    assert config.updates is not None
    return config.updates


def updates(samples: Samples, config: UnlearnConfig) -> list[Update]:
    """Topics alternate, each in its own random order; retain samples are mixed by weight."""
    assert config.batch_size is not None
    count, topics, corpora = num_updates(samples, config), list(samples.forget), list(samples.retain.values())
    rounds = -(-count // len(topics))
    plans = [
        batches.sample_schedule(len(samples.forget[topic]), rounds, config.batch_size, config.seed + 1 + i)
        for i, topic in enumerate(topics)
    ]
    size = config.retain_batch_size or config.batch_size
    mixed = batches.mixture_schedule(list(map(len, corpora)), samples.weights, count, size, config.seed)
    return [
        Update(
            topic := topics[step % len(topics)],
            [samples.forget[topic][i] for i in plans[step % len(topics)][step // len(topics)]],
            [corpora[corpus][i] for corpus, i in mixed[step]],
        )
        for step in range(count)
    ]


def pad(lm: LM, samples: Sequence[Sequence[int]]) -> Batch:
    """Samples of unequal length as one batch on the model's device, padded on the right."""
    return batches.pad(samples, fill_id(lm)).to(lm.device)

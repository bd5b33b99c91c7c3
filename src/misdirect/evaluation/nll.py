"""Negative log-likelihood per token of a text set: -sum log p / number of predicted tokens, natural logarithm.

A document is cut off after `max_tokens`. Whole text files, and a single document, are cut into samples of that length
instead: of a book that is one file the first page alone would be measured, with no interval. The interval takes documents,
or samples, as the independent units, which the samples of one document are not quite. The comparison with the base is
paired by document or sample.
"""

from __future__ import annotations

import dataclasses
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from misdirect import stats
from misdirect.config import EvaluateConfig
from misdirect.data import batches
from misdirect.evaluation import paired
from misdirect.model.lm import LM
from misdirect.model.score import text_logprobs
from misdirect.runs import Metric, Result
from misdirect.storage import fingerprint

MEASUREMENT = "nll"
MARKS = 4  # bytes: room for marks at both ends and for the space that some tokenizers put before a text


def is_cut(texts: Sequence[str], config: EvaluateConfig, whole: bool) -> bool:
    """Whether documents are cut into samples: whole files and single documents are, where one is longer than a sample.

    A token holds at least one byte, so what has no more bytes than `max_tokens` allows is one sample whatever the tokenizer.
    """
    return whole and any(len(text.encode()) + MARKS > config.max_tokens for text in texts)


def config_of(config: EvaluateConfig, texts: Sequence[str], whole: bool = False) -> dict[str, Any]:
    keys = ("text_limit", "max_tokens", "seed", "dtype")
    made = {k: dataclasses.asdict(config)[k] for k in keys} | {"texts": len(texts), "sha256": fingerprint(texts)}
    return made | ({"cut_into_samples": True} if is_cut(texts, config, whole) else {})


def num_items(texts: Sequence[str], config: EvaluateConfig, whole: bool = False) -> int:
    """Documents; where they are cut into samples an estimate, since only the tokenizer knows."""
    longest = batches.CHARS_PER_TOKEN * config.max_tokens
    count = sum(-(-len(text) // longest) for text in texts) if is_cut(texts, config, whole) else len(texts)
    return min(count, config.text_limit or count)


def num_chars(texts: Sequence[str], config: EvaluateConfig, whole: bool = False) -> int:
    """Characters that the model reads in all, for an estimate of the time."""
    longest = batches.CHARS_PER_TOKEN * config.max_tokens
    if is_cut(texts, config, whole):
        return min(sum(map(len, texts)), longest * num_items(texts, config, whole))
    read = sum(min(len(text), longest) for text in texts)
    return read * num_items(texts, config) // len(texts)


def drawn(tokenizer: Any, texts: Sequence[str], config: EvaluateConfig, whole: bool = False) -> dict[str, list[int]]:
    """The samples to measure, by name: documents cut off, `"3"`; or the samples that they are cut into, `"3.0"`, `"3.1"`."""
    if is_cut(texts, config, whole):
        samples = {
            f"{row}.{part}": piece
            for row, text in enumerate(texts)
            for part, piece in enumerate(batches.tokenize(tokenizer, [text], config.max_tokens))
        }
        names = list(samples)
        return {names[i]: samples[names[i]] for i in rows(len(names), config)}
    pieces = {row: batches.tokenize(tokenizer, [texts[row]], config.max_tokens) for row in rows(len(texts), config)}
    return {str(row): found[0] for row, found in pieces.items() if found}


def rows(count: int, config: EvaluateConfig) -> list[int]:
    """`text_limit` of `count`, drawn with the seed, in order."""
    if config.text_limit is None or config.text_limit >= count:
        return list(range(count))
    return sorted(random.Random(config.seed).sample(range(count), config.text_limit))


def nll(
    lm: LM,
    name: str,
    texts: Sequence[str],
    config: EvaluateConfig,
    advance: Callable[[int], None] | None = None,
    whole: bool = False,
) -> Result:
    """NLL per token of up to `text_limit` documents, each cut off after `max_tokens`; of `whole` files and single
    documents of up to as many samples. Raises ValueError where no document has two tokens."""
    started = time.perf_counter()
    samples = drawn(lm.tokenizer, texts, config, whole)
    if not samples:
        raise ValueError(f"{name} holds no text of two tokens or more; expected some")
    step = advance and promised(advance, len(samples), num_items(texts, config, whole))
    scored = text_logprobs(lm, list(samples.values()), config.batch_tokens, step, f"a text of {name}")
    records = [
        {"id": row, "logprob": sum(values), "num_tokens": len(values)}
        for row, values in zip(samples, scored, strict=True)
    ]
    seconds = time.perf_counter() - started
    return Result(MEASUREMENT, name, config_of(config, texts, whole), metrics(records), tuple(records), seconds)


def promised(advance: Callable[[int], None], there: int, said: int) -> Callable[[int], None]:
    """`advance` over `said` items as `there` are done."""
    done = 0

    def step(count: int) -> None:
        nonlocal done
        advance((done + count) * said // there - done * said // there)
        done += count

    return step


def metrics(records: Sequence[Mapping[str, Any]]) -> tuple[Metric, ...]:
    mean = stats.ratio_of_sums([-logprob(r) for r in records], [float(r["num_tokens"]) for r in records])
    return (Metric("nll_per_token", mean.value, mean.stderr, len(records), mean.low, mean.high, headline=True),)


def logprob(record: Mapping[str, Any]) -> float:
    """NaN, which no mean is taken of, where an older version stored null for a model without numbers."""
    return math.nan if record["logprob"] is None else record["logprob"]


def beside_base(result: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """A stored result with the paired difference to the base: nats per token, with interval."""
    return paired.with_changes(result, base, lambda metric: NLL_PER_TOKEN)


NLL_PER_TOKEN = paired.Reading(lambda record: (-logprob(record), float(record["num_tokens"])), paired.ratio_of_sums)

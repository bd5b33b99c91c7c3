"""Negative log-likelihood per token of a text set: -sum log p / number of predicted tokens, natural logarithm.

The interval takes documents as the independent units. The comparison with the base is paired by document.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from misdirect import stats
from misdirect.config import EvaluateConfig, as_dict
from misdirect.data import batches
from misdirect.model.load import LM
from misdirect.model.score import text_logprobs
from misdirect.runs import Metric, Result, fingerprint

MEASUREMENT = "nll"


def config_of(config: EvaluateConfig, texts: Sequence[str]) -> dict[str, Any]:
    keys = ("text_limit", "max_tokens", "seed", "dtype")
    return {k: as_dict(config)[k] for k in keys} | {"texts": len(texts), "sha256": fingerprint(texts)}


def num_items(texts: Sequence[str], config: EvaluateConfig) -> int:
    return min(len(texts), config.text_limit or len(texts))


def num_chars(texts: Sequence[str], config: EvaluateConfig) -> int:
    """Characters that the model reads in all, for an estimate of the time."""
    read = sum(min(len(text), batches.CHARS_PER_TOKEN * config.max_tokens) for text in texts)
    return read * num_items(texts, config) // len(texts)


def nll(
    lm: LM, name: str, texts: Sequence[str], config: EvaluateConfig, advance: Callable[[int], None] | None = None
) -> Result:
    """NLL per token of up to `text_limit` documents, each cut off after `max_tokens`. Raises ValueError where no
    document has two tokens."""
    started = time.perf_counter()
    rows = list(range(len(texts)))
    if config.text_limit is not None and config.text_limit < len(rows):
        rows = sorted(random.Random(config.seed).sample(rows, config.text_limit))
    samples = {}
    for row in rows:
        pieces = batches.tokenise(lm.tokenizer, [texts[row]], config.max_tokens)
        if pieces:
            samples[row] = pieces[0]
    if not samples:
        raise ValueError(f"{name} holds no text of two tokens or more; expected some")
    scored = text_logprobs(lm, list(samples.values()), config.batch_tokens, advance, f"a text of {name}")
    records = [
        {"id": str(row), "logprob": sum(values), "num_tokens": len(values)}
        for row, values in zip(samples, scored, strict=True)
    ]
    seconds = time.perf_counter() - started
    return Result(MEASUREMENT, name, config_of(config, texts), metrics(records), tuple(records), seconds)


def metrics(records: Sequence[Mapping[str, Any]]) -> tuple[Metric, ...]:
    mean = stats.ratio_of_sums([-logprob(r) for r in records], [float(r["num_tokens"]) for r in records])
    return (Metric("nll_per_token", mean.value, mean.stderr, len(records), mean.low, mean.high, headline=True),)


def logprob(record: Mapping[str, Any]) -> float:
    """NaN where the model gave no number: JSON keeps that as null."""
    return math.nan if record["logprob"] is None else record["logprob"]


def judged(result: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """A stored result with the paired difference to the base: nats per token, with interval."""
    if result["model"] == "base":
        return dict(result)
    pairs = list(zip(base["records"], result["records"], strict=True))
    change = stats.ratio_of_sums(
        [logprob(a) - logprob(b) for a, b in pairs], [float(a["num_tokens"]) for a, _ in pairs]
    )
    paired = {"difference": change.value, "stderr": change.stderr, "low": change.low, "high": change.high}
    paired["p_value"] = stats.two_sided_p(change.value, change.stderr, len(pairs))
    return {**result, "metrics": [{**row, "paired": {**paired, "n": len(pairs)}} for row in result["metrics"]]}

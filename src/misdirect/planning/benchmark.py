"""How fast this machine is at a model's own shapes: an update and a scored batch of a model of random numbers.

The model has as many of the real blocks, and as much of the vocabulary, as a share of the free memory holds. The run's own
code prepares it, makes its updates and scores with it. What an update takes is counted in a token's passes through a block:

    passes = t_forget (l + R N) + t_retain (l + 1 + R N)       t: padded tokens, l: steered block, N: trained blocks
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, NamedTuple

import torch

from misdirect.config import UnlearnConfig
from misdirect.model.blocks import count_parameters, find_blocks
from misdirect.model.lm import LM, pick_device, pick_dtype
from misdirect.model.load import whole_class
from misdirect.model.memory import free_bytes
from misdirect.model.packed import length
from misdirect.model.score import Encoded, score, text_logprobs
from misdirect.planning.shape import Shape, shortened
from misdirect.planning.workload import ROUGH, Asked, padded_tokens
from misdirect.progress import quiet
from misdirect.text import first_line
from misdirect.unlearning import rmu
from misdirect.unlearning.schedule import Ids, Samples
from misdirect.unlearning.train import Prepared, first_updates, initial_state

REPLAY = 2.5  # R: forward passes that replaying a trained block takes, with its gradient
BUDGET = 1.5  # seconds that the measured update may take, and the scored batch
LARGEST = 3e9  # bytes of the measured model, or a quarter of the free memory where that is less

# What an architecture may raise when it is cut to fewer blocks, or is fed numbers that mean nothing.
UNRUNNABLE = (ValueError, RuntimeError, IndexError, KeyError, TypeError, AttributeError)


class Speed(NamedTuple):
    """Seconds on this machine."""

    block: float  # a padded token through a block, no gradient
    step: float  # the optimizer, a trained number
    scored: float  # a token of a question or text through the whole model
    saved: float  # bytes kept for the backward pass, a token of a trained block
    num_blocks: int  # measured; 0 where none was, and all of this is from one matrix product
    vocabulary: int


def measure(
    config: Any, shape: Shape, samples: Samples, asked: Asked, settings: UnlearnConfig, batch_tokens: int
) -> tuple[Speed, list[str]]:
    """(everything in `Speed`, what had to be assumed for it), in about ten seconds at most."""
    assert settings.block is not None and settings.num_blocks is not None
    device = pick_device(settings.device)
    dtype = pick_dtype(settings.dtype, device)
    rate = operations_per_second(shape, device, dtype)
    guess = Speed(
        4 * shape.block / rate, 4e-9, 4 * shape.num_parameters / rate, 24.0 * shape.width * dtype.itemsize, 0, 0
    )
    depth, vocabulary = depth_to_measure(shape, settings.block, dtype.itemsize, free_bytes(device))
    if not depth:
        return guess, []
    try:
        lm = random_lm(config, depth, vocabulary, device, dtype)
        tokens = BUDGET / (guess.block * passes(0.5, 0.5, min(settings.block, depth - 1), settings.num_blocks))
        prepared = prepared_of(lm, *smaller(samples, settings, tokens))
        block, saved = measured_update(prepared)
        share = count_parameters(lm.model) / shape.num_parameters
        scored = measured_scoring(lm, asked, batch_tokens, BUDGET / (guess.scored * share)) / share
        return Speed(block, step_seconds(prepared), scored, saved, depth, vocabulary), []
    except UNRUNNABLE as error:
        return guess, [f"{shape.architecture} does not run on random numbers ({first_line(error)})"]


def passes(forget: float | int, retain: float | int, last: int, num_blocks: int) -> float:
    """Passes of a token through a block, in an update or many."""
    return forget * last + retain * (last + 1) + REPLAY * num_blocks * (forget + retain)


def depth_to_measure(shape: Shape, last: int, itemsize: int, free: int) -> tuple[int, int]:
    """(blocks, vocabulary) of the model to measure: all, or up to the steered block, or what fits; 0 blocks where not
    even one does."""
    allowed = min(LARGEST, free / 4) / itemsize
    if shape.num_parameters <= allowed:
        return shape.num_blocks, shape.vocabulary
    rows = min(shape.vocabulary, max(1024, int(allowed / 4 / max(1, shape.outside / shape.vocabulary))))
    outside = shape.outside * rows / shape.vocabulary
    depth = min(last + 1, int((allowed - outside) // shape.block))
    if depth < 1:
        return int(shape.block + outside <= free / 4 / itemsize), rows  # as much again goes to the optimizer
    return depth, rows


def random_lm(config: Any, num_blocks: int, vocabulary: int, device: torch.device, dtype: torch.dtype) -> LM:
    """A causal model of `config`'s blocks with random numbers in it, and no tokenizer of its own."""
    from transformers.initialization import no_init_weights

    with quiet(), no_init_weights():
        model = whole_class(config).from_config(shortened(config, num_blocks, vocabulary), dtype=dtype)
    model.tie_weights()
    chunk = 0.02 * torch.randn(2**16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in model.parameters():
            count = parameter.numel()
            filled = chunk.repeat(-(-count // len(chunk)))[:count].view_as(parameter)
            parameter.copy_(filled if parameter.dim() > 1 else torch.ones_like(parameter))  # norms are ones
    model.eval().requires_grad_(False).to(device)
    return LM(model, ROUGH, "random", num_blocks, find_blocks(model)[0])


def prepared_of(lm: LM, samples: Samples, settings: UnlearnConfig) -> Prepared:
    """RMU on a model of random numbers: the run's settings, as far as the model has the blocks, on two batches of a topic."""
    assert settings.block is not None and settings.num_blocks is not None and settings.batch_size is not None
    vocabulary = lm.model.get_output_embeddings().weight.shape[0]
    last = min(settings.block, lm.num_hidden_layers - 1)
    name, ids = next(iter(samples.forget.items()))
    forget = {name: within(vocabulary, ids[: 2 * settings.batch_size])}
    settings = dataclasses.replace(settings, block=last, num_blocks=min(settings.num_blocks, last + 1))
    retain = {name: within(vocabulary, ids) for name, ids in samples.retain.items()}
    return rmu.prepare(lm, Samples(forget, retain, samples.weights), settings)


def within(vocabulary: int, samples: Ids) -> Ids:
    return [[token % vocabulary for token in ids] for ids in samples]


def smaller(samples: Samples, settings: UnlearnConfig, tokens: float | int) -> tuple[Samples, UnlearnConfig]:
    """The same with fewer and shorter samples an update, so that one has about `tokens` tokens: a batch that a large
    model can be timed on."""
    assert settings.batch_size is not None
    batch, retain = settings.batch_size, settings.retain_batch_size or settings.batch_size
    longest = max(len(ids) for found in (*samples.forget.values(), *samples.retain.values()) for ids in found)
    share = tokens / (longest * (batch + retain))
    if share >= 1:
        return samples, settings
    few = [max(1, int(size * share)) for size in (batch, retain)]
    cut = max(8, int(tokens / sum(few)))
    short = lambda corpora: {name: [ids[:cut] for ids in found] for name, found in corpora.items()}  # noqa: E731
    own_size = settings.numerics != "published"  # there the two are one
    settings = dataclasses.replace(settings, batch_size=few[0], retain_batch_size=few[1] if own_size else None)
    return Samples(short(samples.forget), short(samples.retain), samples.weights), settings


def measured_update(prepared: Prepared) -> tuple[float, float]:
    """(seconds of a token's pass through a block, bytes that the backward pass keeps a token of a trained block)."""
    last, num_blocks = prepared.config.block, prepared.config.num_blocks
    assert last is not None and num_blocks is not None
    counts = padded_tokens(prepared.updates[:2])[-1]
    seconds, kept = first_updates(prepared)
    return seconds / passes(*counts, last, num_blocks), kept / (sum(counts) * num_blocks)


def step_seconds(prepared: Prepared) -> float:
    """One step of the optimizer on one matrix, a number."""
    state = initial_state(prepared)
    name, weight = next(iter(state.weights.items()))
    tensors = weight, torch.zeros_like(weight), state.exp_avg[name], state.exp_avg_sq[name]
    with torch.no_grad():
        return timed(prepared.lm.device, lambda: prepared.arithmetic.adamw_step(*tensors, 1, 0.0)) / weight.numel()


def measured_scoring(lm: LM, asked: Asked, batch_tokens: int, tokens: float | int) -> float:
    """Seconds a token of what is asked, over a share of it that has about `tokens` tokens; 0 where nothing is asked."""
    vocabulary = lm.model.get_output_embeddings().weight.shape[0]
    items, texts = list(chain(*asked.items)), [ids for ids in chain(*asked.texts, asked.prompts) if len(ids) > 1]
    sizes = [*map(length, items), *map(len, texts)]
    rows = sampled(sizes, tokens)
    if not rows:
        return 0.0
    few = [items[row] for row in rows if row < len(items)]
    few = [Encoded(within(vocabulary, [i.context])[0], within(vocabulary, i.continuations)) for i in few]
    short = within(vocabulary, [texts[row - len(items)][: max(2, int(tokens))] for row in rows if row >= len(items)])

    def scoring() -> None:
        score(lm, few, batch_tokens)
        text_logprobs(lm, short, batch_tokens)

    score(lm, few[:1], batch_tokens)  # asks once whether the model takes packed rows
    text_logprobs(lm, [[0, 0]], batch_tokens)
    return timed(lm.device, scoring) / (sum(map(length, few)) + sum(map(len, short)))


def sampled(lengths: Sequence[int], tokens: float | int) -> list[int]:
    """Rows spread over all, of about `tokens` tokens together: at least one, where there is one."""
    share = min(1.0, tokens / max(1, sum(lengths)))
    count = max(1, round(share * len(lengths))) if lengths else 0
    return [int((i + 0.5) * len(lengths) / count) for i in range(count)]


def operations_per_second(shape: Shape, device: torch.device, dtype: torch.dtype) -> float:
    """Of one matrix product of the model's width, the best of three."""
    width = min(shape.width, 4096)
    a, b = (torch.full((n, width), 0.01, dtype=dtype, device=device) for n in (256, width))
    best = min(timed(device, lambda: a @ b.T) for _ in range(3))
    return 2 * 256 * width * width / best


def timed(device: torch.device, work: Callable[[], Any]) -> float:
    """Seconds of one call, the device's queue emptied before and after."""
    synchronize(device)
    started = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - started


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()

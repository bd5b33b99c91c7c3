"""How fast this machine is at a model's own shapes: a model of random numbers, run for a few seconds by a run's code.

The model has as many of the real blocks, and as much of the vocabulary, as a share of the free memory holds. What it
takes is scaled by tokens and by blocks:

    update = t_forget (l) b + t_retain (l + 1) b + t N r + step       t: padded tokens, l: steered block, N: trained blocks

where b is a block's forward pass a token, r a trained block's replay forward and backward a token. b and the step are
timed alone, r is what is left of the measured updates; so with all blocks up to l measured, the errors of b cancel.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import torch

from misdirect.config import UnlearnConfig
from misdirect.model import packed
from misdirect.model.activations import capture
from misdirect.model.blocks import find_blocks, find_matrix, residual_width
from misdirect.model.load import LM, first_line, pick_device, pick_dtype, whole_class
from misdirect.model.memory import free_bytes
from misdirect.model.score import Encoded, score, text_logprobs
from misdirect.planning.shape import Shape, shortened
from misdirect.planning.workload import Asked, padded_tokens
from misdirect.progress import quiet
from misdirect.unlearning import rmu
from misdirect.unlearning.arithmetic import arithmetic_of
from misdirect.unlearning.optimizer import clip
from misdirect.unlearning.schedule import Samples
from misdirect.unlearning.train import Prepared, State, first_updates, initial_state, train

UPDATES = 6  # measured at most, after one that warms up
BUDGET = 3.0  # seconds that the measured updates may take, and each of the two kinds of scoring half of it
LARGEST = 3e9  # bytes of the measured model, or a quarter of the free memory where that is less
ROWS = 16  # answers made together, at most: more cost in proportion
NEW_TOKENS = 6  # generated to time one


# What an architecture may raise when it is cut to fewer blocks, or is fed numbers that mean nothing.
UNRUNNABLE = (ValueError, RuntimeError, IndexError, KeyError, TypeError, AttributeError)


class Stand(NamedTuple):
    """What stands in for a tokenizer where only its padding is asked for."""

    pad_token_id: int = 0
    eos_token_id: int = 0
    bos_token_id: int = 0


class Speed(NamedTuple):
    """Seconds on this machine; a token's are a padded token's."""

    block: float  # a token through a block, no gradient
    replayed: float  # a token through a trained block, forward and backward
    step: float  # optimizer and the rest of an update, a trained number
    question: float  # a token of a question through the whole model
    text: float  # a token of a measured text through the whole model
    generated: float  # a generated token
    hashed: float  # a byte of SHA-256
    saved: float  # bytes kept for the backward pass, a token of a trained block
    num_blocks: int  # measured; 0 where none was, and all of this is from one matrix product
    vocabulary: int


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
    """A causal model of `config`'s blocks with random numbers in it, and no tokenizer."""
    from transformers.initialization import no_init_weights

    with quiet(), no_init_weights():
        model = whole_class(config).from_config(shortened(config, num_blocks, vocabulary), dtype=dtype)
    model.tie_weights()
    chunk = 0.02 * torch.randn(2**16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in model.parameters():
            flat = parameter.view(-1)
            if parameter.dim() < 2:
                flat.fill_(1.0)  # norms
            for start in range(0, flat.numel() if parameter.dim() >= 2 else 0, chunk.numel()):
                piece = flat[start : start + chunk.numel()]
                piece.copy_(chunk[: piece.numel()])
    model.eval().requires_grad_(False).to(device)
    return LM(model, Stand(), "random", num_blocks, find_blocks(model)[0])


def timed(device: torch.device, work: Callable[[], Any]) -> float:
    """Seconds of one call, the device's queue emptied before and after."""
    synchronise(device)
    started = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - started


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def operations_per_second(shape: Shape, device: torch.device, dtype: torch.dtype) -> float:
    """Of one matrix product of the model's width, the best of three."""
    width = min(shape.width, 4096)
    a, b = (torch.full((n, width), 0.01, dtype=dtype, device=device) for n in (256, width))
    best = min(timed(device, lambda: a @ b.T) for _ in range(3))
    return 2 * 256 * width * width / best


def prepared_of(lm: LM, samples: Samples, settings: UnlearnConfig) -> Prepared:
    """RMU on a model of random numbers: the run's samples and settings, as far as the model has the blocks."""
    vocabulary = lm.model.get_output_embeddings().weight.shape[0]
    assert settings.block is not None and settings.num_blocks is not None
    last = min(settings.block, lm.num_hidden_layers - 1)
    first = max(0, last - settings.num_blocks + 1)
    arithmetic, width = arithmetic_of(settings), residual_width(lm.model)
    trained = rmu.Trained(lm, {i: find_matrix(lm.blocks[i], width, settings.matrix) for i in range(first, last + 1)})
    (drawn,) = arithmetic.targets([1.0], width, 0, next(lm.model.parameters()).dtype, lm.device)
    targets = {name: rmu.Target(*drawn, 1.0, 1.0, 1.0) for name in samples.forget}
    cut = lambda corpora: {n: [[t % vocabulary for t in s] for s in found] for n, found in corpora.items()}  # noqa: E731
    updates = arithmetic.updates(Samples(cut(samples.forget), cut(samples.retain), samples.weights), settings)
    losses = partial(rmu.losses, trained, targets, arithmetic)
    return Prepared(
        lm, settings, updates, trained.names, losses, {"blocks": list(trained.matrices)}, arithmetic=arithmetic
    )


class Enough(Exception):
    """Ends a measured training."""


def smaller(training: Samples, settings: UnlearnConfig, tokens: float | int) -> tuple[Samples, UnlearnConfig]:
    """The same with fewer and shorter samples an update, so that one has about `tokens` tokens: a batch that a large
    model can be timed on."""
    assert settings.batch_size is not None and settings.max_tokens is not None
    longest = max(len(ids) for group in (*training.forget.values(), *training.retain.values()) for ids in group)
    retain = settings.retain_batch_size or settings.batch_size
    share = tokens / (longest * (settings.batch_size + retain))
    if share >= 1:
        return training, settings
    sizes = [max(1, int(size * share)) for size in (settings.batch_size, retain)]
    cut = max(8, int(tokens / sum(sizes)))
    short = lambda samples: [ids[:cut] for ids in samples]  # noqa: E731
    few: dict[str, Any] = {"batch_size": sizes[0], "retain_batch_size": sizes[1]}
    if settings.numerics == "published":
        few = {"batch_size": min(sizes)}
    return (
        Samples(
            {n: short(s) for n, s in training.forget.items()},
            {n: short(s) for n, s in training.retain.items()},
            training.weights,
        ),
        dataclasses.replace(settings, **few),
    )


class Measured(NamedTuple):
    """What the measured updates say: `Speed`'s fields of the same names."""

    block: float
    replayed: float
    step: float
    saved: float


def measure_updates(prepared: Prepared) -> Measured:
    """Times the run's own loop on its first updates, and a block's forward pass and the optimizer alone."""
    device, blocks = prepared.lm.device, prepared.chosen["blocks"]
    prepared = dataclasses.replace(prepared, updates=prepared.updates[: UPDATES + 1])
    counts = padded_tokens(prepared.updates)
    seconds: list[float] = []

    def after(state: State, line: dict[str, Any]) -> None:
        synchronise(device)
        seconds.append(line["seconds"])
        if sum(seconds[1:]) > BUDGET:
            raise Enough

    state = initial_state(prepared)
    with contextlib.suppress(Enough):
        train(prepared, state, after)  # which updates `state`'s tensors in place
    kept = slice(1, len(seconds)) if len(seconds) > 1 else slice(0, 1)
    forget, retain = (sum(c[k] for c in counts[kept]) for k in (0, 1))
    block = forward_seconds(prepared, blocks[-1])
    step = step_seconds(prepared, state)
    numbers = sum(value.numel() for value in state.weights.values())
    rest = sum(seconds[kept]) - block * (forget * blocks[-1] + retain * (blocks[-1] + 1)) - step * len(seconds[kept])
    replayed = max(rest, 0.3 * sum(seconds[kept])) / ((forget + retain) * len(blocks))
    _, saved = first_updates(prepared)
    return Measured(block, replayed, step / numbers, saved / (sum(counts[min(1, len(counts) - 1)]) * len(blocks)))


def forward_seconds(prepared: Prepared, last: int) -> float:
    """A block's forward pass, a token: a captured pass over a retain batch, the better of two."""
    lm, batch = prepared.lm, prepared.arithmetic.pad(prepared.lm, prepared.updates[0].retain)
    pass_ = lambda: capture(lm.model, lm.blocks, last, last, batch.input_ids, batch.attention_mask)  # noqa: E731
    return min(timed(lm.device, pass_) for _ in range(2)) / (batch.input_ids.numel() * (last + 1))


def step_seconds(prepared: Prepared, state: State) -> float:
    """What an update takes however many tokens it has: the gradient's norm and the optimizer."""

    def step() -> None:
        with torch.no_grad():
            grads = {name: torch.zeros_like(weight) for name, weight in state.weights.items()}
            clip(grads, 0.0)
            for name, weight in state.weights.items():
                moments = state.exp_avg[name], state.exp_avg_sq[name]
                prepared.arithmetic.adamw_step(weight, grads[name], *moments, 1, 0.0)

    return timed(prepared.lm.device, step)


def sampled(lengths: Sequence[int], tokens: float | int) -> list[int]:
    """Rows spread over all, of about `tokens` tokens together: at least one, where there is one."""
    share = min(1.0, tokens / max(1, sum(lengths)))
    count = max(1, round(share * len(lengths))) if lengths else 0
    return [int((i + 0.5) * len(lengths) / count) for i in range(count)]


def measure_evaluation(
    lm: LM, asked: Asked, shape: Shape, batch_tokens: int, rate: float
) -> tuple[float, float, float]:
    """(seconds a token of a question, of a text, of an answer) of the whole model, scaled from the measured one."""
    vocabulary = lm.model.get_output_embeddings().weight.shape[0]
    own = sum(p.numel() for p in lm.model.parameters())
    tokens = BUDGET / 2 * rate / (4 * own)  # at half of the speed of a matrix product
    cut = lambda ids: [token % vocabulary for token in ids]  # noqa: E731
    items = [Encoded(cut(i.context), [cut(t) for t in i.continuations]) for i in chain(*asked.items)]
    items = [items[row] for row in sampled([packed.length(i) for i in items], tokens)]
    texts = [cut(ids[: max(2, int(tokens))]) for ids in chain(*asked.texts)]
    texts = [texts[row] for row in sampled([len(ids) for ids in texts], tokens)]
    question = text = 0.0
    if items:
        score(lm, items[:1], batch_tokens)  # asks once whether the model takes packed rows
        seconds = timed(lm.device, lambda: score(lm, items, batch_tokens))
        question = whole(lm, shape, seconds, sum(map(packed.length, items)))
    if texts:
        text_logprobs(lm, [[0, 0]], batch_tokens)
        seconds = timed(lm.device, lambda: text_logprobs(lm, texts, batch_tokens))
        text = whole(lm, shape, seconds, sum(map(len, texts)))
    rows = min(ROWS, len(asked.prompts))
    answer = generated_seconds(lm, rows) * shape.num_parameters / own if asked.prompts else 0.0
    return question, text, answer


def whole(lm: LM, shape: Shape, seconds: float, tokens: int) -> float:
    """Seconds a token of the whole model, from those of a model of fewer blocks and a smaller vocabulary: what the
    blocks took is timed alone, the rest goes with the vocabulary."""
    vocabulary = lm.model.get_output_embeddings().weight.shape[0]
    if lm.num_hidden_layers == shape.num_blocks and vocabulary == shape.vocabulary:
        return seconds / tokens
    ids = torch.zeros(max(1, tokens // packed.ROW), min(tokens, packed.ROW), dtype=torch.long, device=lm.device)
    last = lm.num_hidden_layers - 1
    pass_ = lambda: capture(lm.model, lm.blocks, last, last, ids, torch.ones_like(ids))  # noqa: E731
    blocks = min(timed(lm.device, pass_) * tokens / ids.numel(), seconds)
    return (
        blocks * shape.num_blocks / lm.num_hidden_layers + (seconds - blocks) * shape.vocabulary / vocabulary
    ) / tokens


def generated_seconds(lm: LM, rows: int) -> float:
    """One further token of one of `rows` answers that are made together: longer answers less shorter ones, which hold
    all that every answer takes."""
    ids = torch.zeros(rows, 16, dtype=torch.long, device=lm.device)

    def answer(tokens: int) -> None:
        with torch.inference_mode():
            lm.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                do_sample=False,
                pad_token_id=0,
            )

    answer(2)  # warms up
    short, long = (timed(lm.device, lambda n=n: answer(n)) for n in (2, 2 + NEW_TOKENS))  # type: ignore[misc]
    return max(long - short, 0.1 * long) / (NEW_TOKENS * rows)


def hash_seconds(num_bytes: int = 2**25) -> float:
    """SHA-256, a byte."""
    data = bytes(num_bytes)
    return timed(torch.device("cpu"), lambda: hashlib.sha256(data).digest()) / num_bytes


def from_rate(shape: Shape, rate: float, hashed: float, itemsize: int) -> Speed:
    """Where no block fits: the count of operations, two a parameter and token, at half of a matrix product's speed."""
    block = 4 * shape.block / rate
    whole_model = 4 * shape.num_parameters / rate
    return Speed(
        block, 2.5 * block, 4e-9, whole_model, whole_model, 4 * whole_model, hashed, 24.0 * shape.width * itemsize, 0, 0
    )


def measure(
    config: Any, shape: Shape, training: Samples, asked: Asked, settings: UnlearnConfig, batch_tokens: int
) -> tuple[Speed, list[str]]:
    """(everything in `Speed`, what had to be assumed for it), in about ten seconds at most."""
    assert settings.block is not None
    device = pick_device(settings.device)
    dtype = pick_dtype(settings.dtype, device)
    rate, hashed = operations_per_second(shape, device, dtype), hash_seconds()
    depth, vocabulary = depth_to_measure(shape, settings.block, dtype.itemsize, free_bytes(device))
    guess = from_rate(shape, rate, hashed, dtype.itemsize)
    if not depth:
        return guess, []
    try:
        lm = random_lm(config, depth, vocabulary, device, dtype)
        last = min(settings.block, depth - 1)
        operations = (
            4 * shape.block * (last + 1 + 3 * min(settings.num_blocks or 1, last + 1))
        )  # a token, at half speed
        small, fewer = smaller(training, settings, BUDGET / 2 * rate / operations)
        update = measure_updates(prepared_of(lm, small, fewer))
        question, text, answer = measure_evaluation(lm, asked, shape, batch_tokens, rate)
    except UNRUNNABLE as error:
        return guess, [f"{shape.architecture} does not run on random numbers ({first_line(error)})"]
    return Speed(
        update.block, update.replayed, update.step, question, text, answer, hashed, update.saved, depth, vocabulary
    ), []

"""Counts and speeds -> seconds and bytes. Plain arithmetic: no model, no clock.

Memory is the peak of the process: what it takes before a model is loaded, plus weights, plus the most that a stage needs
at once. Weights in the dtype of their file are mapped, not copied, so they count once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

from misdirect.config import EvaluateConfig, UnlearnConfig
from misdirect.model.packed import length
from misdirect.planning.benchmark import Speed, passes
from misdirect.planning.shape import Shape
from misdirect.planning.workload import Asked, Tokens

FP32 = 4
RECORD_BYTES = 450  # of a result's record, a format of a question: indented JSON, four choices
LOG_LINE = 290
REPORT_BYTES = 250_000
STORED = {"float32": ("F32", 4), "bfloat16": ("BF16", 2), "float16": ("F16", 2)}  # as safetensors names them
DISK_SPEED = 5e8  # bytes a second: reading, writing and hashing
TOGETHER = 16  # answers that are made together
STEP = 12  # scored tokens that a step of such answers takes longer than its rows: measured on a CPU


TRIALS = 18  # updates that measure a learning rate: two rounds, as a rule


def unlearn_seconds(shape: Shape, settings: UnlearnConfig, tokens: Tokens, speed: Speed) -> float:
    """All updates: each batch runs through the blocks below, then through the trained ones forward and backward."""
    assert settings.block is not None and settings.num_blocks is not None
    computed = speed.block * passes(tokens.forget, tokens.retain, settings.block, settings.num_blocks)
    saved = checkpoints(settings, tokens.updates) * checkpoint_bytes(shape, settings) / DISK_SPEED
    return computed + tokens.updates * speed.step * shape.num_trained + saved


def prepare_seconds(shape: Shape, settings: UnlearnConfig, tokens: Tokens, speed: Speed, itemsize: int) -> float:
    """Norms, two updates as a rehearsal, those by which the rate is measured, and the hash of the blocks."""
    assert settings.block is not None
    norms = speed.block * tokens.normed * (settings.block + 1)
    rehearsed = 2 if settings.lr else 2 + TRIALS  # and those by which the learning rate is measured
    rehearsal = rehearsed * unlearn_seconds(shape, settings, tokens, speed) / tokens.updates
    return norms + rehearsal + hash_seconds(shape, settings, itemsize)


def hash_seconds(shape: Shape, settings: UnlearnConfig, itemsize: int) -> float:
    assert settings.block is not None
    return disk_seconds(shape.block * (settings.block + 1) * itemsize)


def disk_seconds(num_bytes: int) -> float:
    return num_bytes / DISK_SPEED


def evaluate_seconds(asked: Asked, config: EvaluateConfig, speed: Speed) -> float:
    """One model asked everything once."""
    in_questions, in_texts = asked_tokens(asked)
    answers = (1 + config.samples) * len(asked.prompts)
    begun = (1 + config.samples) * sum(map(len, asked.prompts))
    generated = config.new_tokens * (answers + STEP * math.ceil(answers / TOGETHER))
    return speed.scored * (in_questions + in_texts + begun + generated)


def asked_tokens(asked: Asked) -> tuple[int, int]:
    """(of questions, of texts)"""
    return sum(length(i) for items in asked.items for i in items), sum(
        len(ids) for found in asked.texts for ids in found
    )


def master_size(settings: UnlearnConfig, itemsize: int) -> int:
    """Bytes of a trained number: fp32, or the model's dtype under the published arithmetic."""
    return itemsize if settings.numerics == "published" else FP32


def unlearn_memory(base: int, shape: Shape, settings: UnlearnConfig, largest: int, itemsize: int, saved: float) -> int:
    """Weights of blocks 0..l; the trained matrices with two moments and a gradient; and what the backward pass needs of
    the `largest` update, in tokens, or a checkpoint's copy where that is more."""
    assert settings.num_blocks is not None
    state = 3 * shape.num_trained * master_size(settings, itemsize)
    cast = (
        0 if master_size(settings, itemsize) == itemsize else 2 * shape.num_trained * itemsize
    )  # one a batch is replayed
    backward = int(saved * largest * settings.num_blocks) + state // 3 + cast
    return base + shape.num_prefix * itemsize + state + max(backward, state)


def evaluate_memory(base: int, shape: Shape, itemsize: int, positions: int) -> int:
    """The whole model, the delta and its copy in the model, and the logits of the largest pass: of `positions` tokens at
    once, which stand there twice, in fp32, while the sum over the vocabulary is taken."""
    logits = positions * shape.vocabulary * (2 * FP32 + (itemsize if itemsize < FP32 else 0))
    return base + shape.num_parameters * itemsize + shape.num_trained * (FP32 + itemsize) + logits


def checkpoints(settings: UnlearnConfig, updates: int) -> int:
    """How many are written: none after the last update."""
    return (updates - 1) // settings.checkpoint_every


def checkpoint_bytes(shape: Shape, settings: UnlearnConfig, itemsize: int = FP32) -> int:
    return 3 * shape.num_trained * master_size(settings, itemsize)


def delta_bytes(shape: Shape, settings: UnlearnConfig, dtype: str, metadata: Mapping[str, str]) -> int:
    """`delta.safetensors` to the byte: 8, a header of JSON padded to a multiple of 8, and the numbers."""
    name, each = STORED[dtype] if settings.numerics == "published" else STORED["float32"]
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    at = 0
    for key, dims in sorted(shape.sizes.items()):
        end = at + math.prod(dims) * each
        header[key] = {"dtype": name, "shape": list(dims), "data_offsets": [at, end]}
        at = end
    header_bytes = len(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode())
    return 8 + -(-header_bytes // 8) * 8 + at

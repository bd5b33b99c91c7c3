"""Counts and speeds -> seconds and bytes. Plain arithmetic: no model, no clock.

Memory is the peak of the process: what it takes before a model is loaded, plus weights, plus the most that a stage needs
at once. Weights in the dtype of their file are mapped, not copied, so they count once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence

from misdirect.config import EvaluateConfig, UnlearnConfig
from misdirect.planning.benchmark import Speed
from misdirect.planning.shape import Shape
from misdirect.planning.workload import Tokens

FP32 = 4
RECORD_BYTES = 450  # of a result's record, a format of a question: indented JSON, four choices
LOG_LINE = 290
REPORT_BYTES = 250_000
STORED = {"float32": ("F32", 4), "bfloat16": ("BF16", 2), "float16": ("F16", 2)}  # as safetensors names them
DISK_SPEED = 5e8  # bytes a second, reading and writing


def unlearn_seconds(shape: Shape, settings: UnlearnConfig, tokens: Tokens, speed: Speed) -> float:
    """All updates: each batch runs through the blocks below, then through the trained ones forward and backward."""
    assert settings.block is not None and settings.num_blocks is not None
    last = settings.block
    captured = speed.block * (tokens.forget * last + tokens.retain * (last + 1))
    replayed = speed.replayed * (tokens.forget + tokens.retain) * settings.num_blocks
    saved = checkpoints(settings, tokens.updates) * checkpoint_bytes(shape, settings) / DISK_SPEED
    return captured + replayed + tokens.updates * speed.step * shape.num_trained + saved


def prepare_seconds(shape: Shape, settings: UnlearnConfig, tokens: Tokens, speed: Speed, itemsize: int) -> float:
    """Norms, the check that replay is exact, the first two updates as a rehearsal, and the hash of the blocks."""
    assert settings.block is not None and settings.num_blocks is not None
    last, trained = settings.block, settings.num_blocks
    norms = speed.block * tokens.prepare * (last + 1)
    rehearsal = tokens.first * (speed.block * (last + 1) + speed.replayed * trained)
    return norms + rehearsal + hash_seconds(shape, settings, speed, itemsize)


def hash_seconds(shape: Shape, settings: UnlearnConfig, speed: Speed, itemsize: int) -> float:
    assert settings.block is not None
    return speed.hashed * shape.block * (settings.block + 1) * itemsize


def evaluate_seconds(
    question_tokens: int, text_tokens: int, prompts: Sequence[int], depth: int, config: EvaluateConfig, speed: Speed
) -> float:
    """One model of `depth` blocks asked everything once; `prompts`: the length of each."""
    begun = (1 + config.samples) * sum(prompts)
    answered = (1 + config.samples) * len(prompts) * config.new_tokens
    asked = question_tokens * speed.question + text_tokens * speed.text
    return asked + begun * depth * speed.block + answered * speed.generated


def load_seconds(numbers: int, itemsize: int) -> float:
    return numbers * itemsize / DISK_SPEED


def master_size(settings: UnlearnConfig, itemsize: int) -> int:
    """Bytes of a trained number: fp32, or the model's dtype under the published arithmetic."""
    return itemsize if settings.numerics == "published" else FP32


def unlearn_memory(
    base: int, shape: Shape, settings: UnlearnConfig, tokens: Tokens, itemsize: int, saved: float
) -> int:
    """Weights of blocks 0..l; the trained matrices with two moments, a gradient and the optimizer's own copies; and what
    the backward pass needs of the largest update, or a checkpoint's copy where that is more."""
    assert settings.num_blocks is not None
    each = master_size(settings, itemsize)
    largest = max(math.prod(s) for s in shape.sizes.values())
    cast = 0 if each == itemsize else 2 * shape.num_trained * itemsize  # one a batch goes into the replay
    backward = int(saved * tokens.largest * settings.num_blocks) + shape.num_trained * each + cast
    writing = 3 * shape.num_trained * each
    state = 3 * shape.num_trained * each
    return base + shape.num_prefix * itemsize + state + max(backward, 3 * largest * each, writing)


def evaluate_memory(base: int, shape: Shape, itemsize: int, positions: int, with_delta: bool) -> int:
    """The whole model, the delta and its copy in the model, and the logits of the largest pass: of `positions` tokens at
    once, which stand there twice, in fp32, while the sum over the vocabulary is taken."""
    logits = positions * shape.vocabulary * (2 * FP32 + (itemsize if itemsize < FP32 else 0))
    delta = shape.num_trained * (FP32 + itemsize) if with_delta else 0
    return base + shape.num_parameters * itemsize + delta + logits


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
    length = len(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode())
    return 8 + -(-length // 8) * 8 + at

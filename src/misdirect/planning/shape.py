"""The shape of a model from its config alone: parameters, blocks, trained matrices. Built on `meta`, without memory."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from misdirect.config import UnlearnConfig
from misdirect.model import parameters
from misdirect.model.blocks import count_parameters, find_blocks, find_matrix, residual_width
from misdirect.model.load import prefix_class, prefix_config, truncated, whole_class
from misdirect.progress import quiet


@dataclass(frozen=True)
class Shape:
    """Counts of numbers, not bytes. A matrix shared by embedding and head counts once."""

    architecture: str
    num_blocks: int
    num_parameters: int  # of the full model
    num_prefix: int  # of what unlearning loads
    loads_whole: bool  # unlearning loads the whole model: a truncated one would compute something else
    block: int  # the largest block
    outside: int  # of the full model, all blocks left out
    sizes: dict[str, tuple[int, ...]]  # trained parameter's name in the full model -> its shape
    width: int
    vocabulary: int

    @property
    def num_trained(self) -> int:
        return sum(math.prod(shape) for shape in self.sizes.values())


def shape_of(config: Any, settings: UnlearnConfig, trust_remote_code: bool = False) -> Shape:
    """Raises ValueError where the trained matrix is not unique or not there, as `unlearn` would."""
    assert settings.block is not None and settings.num_blocks is not None
    wanted, prefix = prefix_config(config, settings.block, trust_remote_code)
    with torch.device("meta"), quiet():
        full = whole_class(config).from_config(config, trust_remote_code=trust_remote_code)
        loaded = prefix_class(config).from_config(wanted, trust_remote_code=trust_remote_code)
    blocks = find_blocks(full)[1]
    width = residual_width(full)
    trained = range(settings.block - settings.num_blocks + 1, settings.block + 1)
    matrices = {i: find_matrix(blocks[i], width, settings.matrix) for i in trained}
    sizes = {f"{prefix}.{i}.{path}": tuple(parameters.read_from(blocks[i], path).shape) for i, path in matrices.items()}
    counts = [count_parameters(block) for block in blocks]
    return Shape(
        type(full).__name__,
        len(blocks),
        count_parameters(full),
        count_parameters(loaded),
        wanted is config and settings.block + 1 < len(blocks),
        max(counts),
        count_parameters(full) - sum(counts),
        sizes,
        width,
        int(full.get_output_embeddings().weight.shape[0]),
    )


def shortened(config: Any, num_blocks: int, vocabulary: int) -> Any:
    """`config` for a model of the same blocks but fewer, over a smaller vocabulary: one to measure."""
    short = truncated(config, num_blocks)
    text = short.get_text_config(decoder=True)
    text.vocab_size = vocabulary
    for part in (short, text):
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            setattr(part, name, None)
    return short

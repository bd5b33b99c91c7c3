"""`LM`: a model in memory with its tokenizer, and where it is put.

Every verb takes one in place of a name: `md.evaluate(md.LM.of(model, tokenizer), ...)`.
"""

from __future__ import annotations

import dataclasses
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from misdirect.config import AuditConfig, EvaluateConfig
from misdirect.data.tokens import steadied
from misdirect.model import blocks as structure
from misdirect.model import rope, sources
from misdirect.model.checks import check_causal

C = TypeVar("C", EvaluateConfig, AuditConfig)
_in_memory: weakref.WeakValueDictionary[str, LM] = weakref.WeakValueDictionary()  # source -> what a caller holds


def source_of(model: str | Path | LM) -> str:
    """MODEL as the name that `load_lm` takes; a model in memory is found again by it for as long as its owner holds it."""
    if not isinstance(model, LM):
        return str(model)
    _in_memory[model.source] = model
    return model.source


def find_in_memory(source: str) -> LM | None:
    """Raises ValueError where a model was in memory once and is gone."""
    found = _in_memory.get(source)
    if found is None and source.startswith(sources.IN_MEMORY):
        raise ValueError(
            f"{source} was a model in memory, which is gone; expected it given again: misdirect.LM.of(...)"
        )
    return found


@dataclass(frozen=True)
class LM:
    """A model in eval mode with gradients off, its tokenizer, and where they came from."""

    model: Any
    tokenizer: Any
    source: str
    num_hidden_layers: int  # of the full model, also where `model` is truncated
    block_prefix: str  # the block list's name in the full causal model, such as `model.layers`
    dequantized: str = ""  # how the matrices were quantized that were made plain in loading, such as `bitsandbytes nf4`

    @classmethod
    def of(cls, model: Any, tokenizer: Any, name: str = "") -> LM:
        """A causal model that is in memory already, for every verb: `md.evaluate(md.LM.of(model, tokenizer), ...)`.

        It is put into eval mode with gradients off, and stays where it is and in its dtype; `--device` and `--dtype` do not
        hold for it. `name`: what results call it. Quantized or spread over several devices it can be measured, not
        trained. Raises ValueError for what is not a decoder.
        """
        name = name or str(getattr(model.config, "name_or_path", "") or "") or type(model).__name__
        model.eval().requires_grad_(False)
        rope.reach(model)
        steadied(tokenizer, name)
        check_causal(name, model, None)
        depth = model.config.get_text_config(decoder=True).num_hidden_layers
        return cls(model, tokenizer, f"{sources.IN_MEMORY}{name}", depth, structure.find_blocks(model)[0])

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def blocks(self) -> nn.ModuleList:
        return structure.find_blocks(self.model)[1]


def pick_device(device: str) -> torch.device:
    """`auto` is a GPU where there is one. Raises ValueError for a device that this machine lacks."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(device.split(":")[0], False):
        raise ValueError(f"--device {device} is not available on this machine; expected auto or cpu")
    return torch.device(device)


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """`auto` is float32 on a CPU, where bfloat16 is several times slower, and bfloat16 elsewhere."""
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    return getattr(torch, dtype)


def with_dtype(config: C) -> C:
    """Settings whose dtype is named: `auto` is not the same everywhere, and a result says which it was."""
    dtype: Any = str(pick_dtype(config.dtype, pick_device(config.device))).removeprefix("torch.")
    return dataclasses.replace(config, dtype=dtype)

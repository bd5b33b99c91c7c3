"""The change as a PEFT LoRA adapter, which vLLM, TGI and llama.cpp switch on and off.

Of a matrix that changed by D (out, in) the best approximation of rank r is U U^T D, U the r leading eigenvectors of D D^T
(Eckart and Young 1936): lora_B = U, lora_A = U^T D, scaled by 1. The rank is the smallest by which the stated share of the
squared change is kept; where D has no more than that rank the adapter is exact.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from misdirect.model import parameters as parts
from misdirect.model.delta import Delta, save_tensors
from misdirect.model.lm import LM

NEGLIGIBLE = 1e-10  # share of the squared change that arithmetic in the model's own dtype cannot tell from nothing


class Factors(NamedTuple):
    """One matrix's change, cut to a rank."""

    b: Float[Tensor, "out r"]
    a: Float[Tensor, "r in"]
    kept: float  # share of the squared change
    full: int  # the rank that would keep all of it


def factors(change: Float[Tensor, "out in"], keep: float) -> Factors:
    """The smallest rank that keeps `keep` of the squared change, in double precision."""
    change = change.double()
    small = change if change.shape[0] <= change.shape[1] else change.T
    values, vectors = torch.linalg.eigh(small @ small.T)
    values, vectors = values.flip(0).clamp_min(0.0), vectors.flip(1)
    total = values.sum()
    if total == 0:
        return Factors(change.new_zeros(change.shape[0], 1), change.new_zeros(1, change.shape[1]), 1.0, 0)
    share = values.cumsum(0) / total
    rank = min(len(values), int((share < keep - NEGLIGIBLE).sum()) + 1)
    full = min(len(values), int((share < 1 - NEGLIGIBLE).sum()) + 1)
    u = vectors[:, :rank]
    b, a = (u, u.T @ small) if small is change else (small.T @ u, u.T)
    return Factors(b, a, share[rank - 1].item(), full)


def of_delta(lm: LM, delta: Delta, keep: float, advance: Callable[[int], object]) -> dict[str, Factors]:
    """Every changed matrix by its parameter's name. Raises ValueError where one is not the weight of a linear layer."""
    found = {}
    for name, value in delta.tensors.items():
        own = lm.model.get_parameter(parts.base_name(name))
        if own.dim() != 2 or parts.parse_index(name) is not None or not name.endswith(".weight"):
            raise ValueError(
                f"{name} is not the whole weight of a linear layer, which LoRA changes; expected --format full"
            )
        change = value.double() - own.double()
        found[name] = factors(change.T if transposed(lm, name) else change, keep)
        advance(1)
    return found


def transposed(lm: LM, name: str) -> bool:
    """Whether a layer keeps its weight as (in, out), as GPT-2's do."""
    return type(lm.model.get_submodule(name.removesuffix(".weight"))).__name__ == "Conv1D"


def put_back(lm: LM, made: Mapping[str, Factors]) -> Delta:
    """The base with the adapter merged into it, as a change."""
    values = {}
    for name, each in made.items():
        own = lm.model.get_parameter(name)
        product = each.b.float() @ each.a.float()
        values[name] = (own.float() + (product.T if transposed(lm, name) else product)).to(own.dtype)
    return Delta(values)


def save(lm: LM, made: Mapping[str, Factors], base: str, folder: Path, dtype: torch.dtype) -> None:
    """`adapter_config.json` and `adapter_model.safetensors`, as PEFT reads them."""
    ranks = {name.removesuffix(".weight"): each.a.shape[0] for name, each in made.items()}
    rank = max(ranks.values())
    config: dict[str, Any] = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "inference_mode": True,
        "r": rank, "lora_alpha": rank, "lora_dropout": 0.0, "bias": "none", "target_modules": list(ranks),
        "rank_pattern": ranks, "alpha_pattern": ranks, "fan_in_fan_out": any(transposed(lm, name) for name in made),
    }  # fmt: skip
    tensors: dict[str, Tensor] = {}
    for name, each in made.items():
        place = f"base_model.model.{name.removesuffix('.weight')}"
        tensors |= {f"{place}.lora_A.weight": each.a.to(dtype), f"{place}.lora_B.weight": each.b.to(dtype)}
    save_tensors(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

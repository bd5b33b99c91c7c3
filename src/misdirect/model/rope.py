"""Position tables that depend on the longest row: a text's value must not depend on its neighbours.

Rotary models of the types `dynamic` (NTK) and `longrope` take another table of rotations once a pass holds a position
beyond the length that they were first trained on: for every row of that pass, and, for `dynamic`, for passes after it.
Here each text counts as if it stood alone in a model that was just loaded. Each call to such a table begins with the
first one (`steady`); texts within `reach` share passes as in any model, longer ones only with those of their own length
(`apart`). Other models are left alone.

A model whose code is not transformers' own may depend on neighbours in ways that cannot be read off its config, so one
text of a call is also run alone and beside a longer one (`watch`); where that differs, every text runs alone. Code that
keeps what a longer text made of its tables is refused.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

KNOWN = ("transformers.", "torch.", "peft.", "bitsandbytes.")
AGREE, AGREE_HALF = 2e-3, 0.3  # nats a token by which a text alone and the same beside others may differ

_reach: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()
_watched: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()  # longest text that was watched


def kinds(module: nn.Module) -> dict[str, tuple[str, Mapping[str, Any]]]:
    """Prefix of its buffers' names -> (type, parameters) of each of a rotary module's tables that change with the length."""
    kind, config = getattr(module, "rope_type", None), getattr(module, "config", None)
    given = getattr(config, "rope_parameters", None) or {}
    if isinstance(kind, str):
        found = {"": (kind, given)}
    elif isinstance(kind, dict):  # one for each type of layer
        found = {f"{layer}_": (str(each), given.get(layer) or {}) for layer, each in kind.items()}
    else:
        return {}
    return {prefix: pair for prefix, pair in found.items() if changes(*pair)}


def changes(kind: str, given: Mapping[str, Any]) -> bool:
    """`long_mscale`: Phi-3.5-MoE scales by the longest row, whatever the type."""
    return "dynamic" in kind or kind == "longrope" or "long_mscale" in given


def limit(module: Any, kind: str, given: Mapping[str, Any]) -> int:
    """Tokens up to which a table is its first one."""
    own = module.original_max_seq_len if "dynamic" in kind else given.get("original_max_position_embeddings")
    return int(own or module.config.max_position_embeddings)


def reach(model: nn.Module) -> int:
    """Tokens up to which a text may share a pass with others; 0 where it never may. Steadies the tables the first time."""
    if model not in _reach:
        _reach[model] = min((steady(module) for module in model.modules()), default=sys.maxsize)
    return _reach[model]


def steady(module: nn.Module) -> int:
    """Lets every call to a rotary module begin with its first tables, as in a model just loaded; its reach."""
    found = kinds(module)
    if any("dynamic" in kind for kind, _ in found.values()):
        module.register_forward_pre_hook(first_tables)
    return 0 if shares_outliers(module) else min((limit(module, *pair) for pair in found.values()), default=sys.maxsize)


def shares_outliers(module: Any) -> bool:
    """LLM.int8() (Dettmers et al. 2022, arXiv 2208.07339) computes a column in half precision for all rows of a pass once one
    of them has a large value there."""
    threshold = getattr(getattr(module, "state", None), "threshold", 0.0)
    return type(module).__name__ == "Linear8bitLt" and bool(threshold)


def first_tables(module: Any, _args: Any) -> None:
    for prefix, (kind, _) in kinds(module).items():
        original = getattr(module, f"{prefix}original_inv_freq", None)
        if "dynamic" in kind and original is not None:
            own = getattr(module, f"{prefix}inv_freq")
            module.register_buffer(f"{prefix}inv_freq", original.to(own.device), persistent=False)
            setattr(module, f"{prefix}max_seq_len_cached", module.original_max_seq_len)


def apart(model: nn.Module, lengths: Sequence[int]) -> list[list[int]]:
    """Rows that may share a pass, by their number: those within reach, then the others by length, or each alone."""
    within = reach(model)
    groups: dict[int, list[int]] = {}
    for row, length in enumerate(lengths):
        groups.setdefault(0 if length <= within else length if within else -row - 1, []).append(row)
    return list(groups.values())


def watch(
    model: nn.Module, samples: Sequence[Sequence[int]], logprobs: Callable[[list[list[int]]], list[Tensor]]
) -> None:
    """Finds out once for each longest length whether foreign code lets neighbours matter: then no text shares a pass.

    `logprobs`: log p of each sample's tokens, all in one pass.
    """
    lengths = sorted(len(sample) for sample in samples)
    if not lengths or lengths[0] == lengths[-1] or not reach(model) or lengths[-1] <= _watched.get(model, 0):
        return
    if not foreign(model):
        return
    _watched[model] = lengths[-1]
    short, long = (list(next(s for s in samples if len(s) == n)) for n in (lengths[0], lengths[-1]))
    alone, beside, again = (logprobs(some)[0] for some in ([short], [short, long], [short]))
    exact = next(model.parameters()).dtype in (torch.float32, torch.float64)
    same = lambda other: torch.allclose(alone, other, rtol=0, atol=AGREE if exact else AGREE_HALF, equal_nan=True)  # noqa: E731
    if not same(again):
        raise ValueError(
            f"{type(model).__name__}, which is not transformers' own code, gives a text other values after a longer one; "
            "expected a class whose values do not depend on the texts before: convert the model, or ask its author"
        )
    if not same(beside):
        _reach[model] = 0


def foreign(model: nn.Module) -> bool:
    """Whether some part of a model is code of neither torch nor transformers."""
    return any(not type(module).__module__.startswith(KNOWN) for module in model.modules())


def split(model: nn.Module, groups: Iterator[list[int]], lengths: Sequence[int]) -> Iterator[list[int]]:
    """Groups of rows cut so that each may share a pass."""
    for rows in groups:
        for part in apart(model, [lengths[row] for row in rows]):
            yield [rows[i] for i in part]

"""The block list and the MLP output matrix of any Hugging Face decoder, found by structure.

- The block list is the one outermost `ModuleList` with `num_hidden_layers` entries.
- The trained matrix is the only linear map F -> D (F > D, D the residual width) of a block outside its attention and
  state-space parts: `mlp.down_proj` on Llama, `mlp.c_proj` on GPT-2, `mlp.dense_4h_to_h` on GPT-NeoX.
- A block with routed experts is refused by name even where one matrix would fit: that one would be the shared expert
  (Qwen2-MoE, Llama 4) or not an MLP at all (Jamba). `--matrix` names the tensor to train instead.

Published code selects by parameter index, which is another tensor on another architecture.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

# Modules whose output projection also has the shape F -> D on some models (wide heads, state-space mixers).
NOT_FEED_FORWARD = re.compile(r"attn|attention|mamba|ssm|mixer|deltanet|recurrent|rglru|conv(?!1d)", re.IGNORECASE)
EXPERTS = re.compile(r"expert|moe|router", re.IGNORECASE)


def text_config(model: nn.Module) -> Any:
    """The config that counts the decoder's blocks: `text_config` of a multimodal wrapper, else the config itself."""
    return model.config.get_text_config(decoder=True)


def find_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The name and the list of `model`'s decoder blocks. Raises ValueError when there is not exactly one candidate."""
    count = text_config(model).num_hidden_layers
    found = {n: m for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == count}
    outermost = {n: m for n, m in found.items() if not any(n.startswith(other + ".") for other in found)}
    if len(outermost) != 1:
        raise ValueError(
            f"{type(model).__name__} has {len(outermost)} module lists of {count} entries "
            f"({', '.join(outermost) or 'none'}); expected exactly one: this architecture is not supported"
        )
    return next(iter(outermost.items()))


def residual_width(model: nn.Module) -> int:
    """D, the width of the residual stream."""
    return int(text_config(model).hidden_size)


def linear_maps(block: nn.Module) -> dict[str, tuple[int, int]]:
    """Every `Linear` and `Conv1D` of a block: name -> (input width, output width)."""
    maps = {}
    for name, module in block.named_modules():
        if isinstance(module, nn.Linear):
            maps[name] = (module.in_features, module.out_features)
        elif isinstance(module, Conv1D):
            maps[name] = (module.weight.shape[0], module.weight.shape[1])
    return maps


def has_routed_experts(block: nn.Module) -> bool:
    """Whether a token of this block passes only some of several expert MLPs (fused 3-D tensors, or a list of MLPs)."""
    fused = any(p.dim() == 3 for n, p in block.named_parameters() if not NOT_FEED_FORWARD.search(n))
    listed = any(
        isinstance(m, nn.ModuleList) and len(m) > 1 and EXPERTS.search(n + type(m).__name__)
        for n, m in block.named_modules()
    )
    return fused or listed


def inside_mixer(block: nn.Module, name: str) -> bool:
    """Whether a module of this block, or a module around it, is an attention or state-space part."""
    parts = name.split(".")
    around = [".".join(parts[: i + 1]) for i in range(len(parts) - 1)]
    return any(
        NOT_FEED_FORWARD.search(prefix.rsplit(".", 1)[-1])
        or NOT_FEED_FORWARD.search(type(block.get_submodule(prefix)).__name__)
        for prefix in around
    )


def find_matrix(block: nn.Module, width: int, matrix: str | None = None) -> str:
    """The trained parameter's path inside `block`, such as `mlp.down_proj.weight`.

    `matrix` names it instead of the search: a linear module or a parameter (fused experts are one 3-D parameter).
    Raises ValueError, with the candidates and the flag to type, where the search does not end at exactly one.
    """
    if matrix is not None:
        return named_matrix(block, matrix)
    maps = linear_maps(block)
    fits = [n for n, (inner, outer) in maps.items() if outer == width and inner > width]
    candidates = [n for n in fits if not inside_mixer(block, n)]
    if has_routed_experts(block):
        fused = [n for n, p in block.named_parameters() if p.dim() == 3 and not NOT_FEED_FORWARD.search(n)]
        names = ", ".join(fused + fits)
        raise ValueError(
            f"{type(block).__name__} has routed experts, so the MLP output matrix is not one tensor; "
            f"name the tensor to train with --matrix, out of: {names}"
        )
    if len(candidates) != 1:
        names = ", ".join(candidates or fits or maps) or "none"
        raise ValueError(
            f"{type(block).__name__} has {len(candidates)} matrices that could be its MLP output; "
            f"name the one to train with --matrix, out of: {names}"
        )
    return candidates[0] + ".weight"


def named_matrix(block: nn.Module, matrix: str) -> str:
    parameters = dict(block.named_parameters())
    for name in (matrix, matrix + ".weight"):
        if name in parameters and parameters[name].dim() >= 2:
            return name
    known = ", ".join(n.removesuffix(".weight") for n, p in parameters.items() if p.dim() >= 2)
    raise ValueError(f"--matrix {matrix!r} is no matrix of {type(block).__name__}; expected one of: {known}")


def scalar_attributes(module: nn.Module) -> dict[str, Any]:
    """Every plain number, string or flag that a module and its children keep, by dotted name."""
    return {
        f"{name}.{key}": value
        for name, child in module.named_modules()
        for key, value in vars(child).items()
        if isinstance(value, int | float | str | bool) and not key.startswith("_")
    }


def prefix_differs(full: nn.Module, prefix: nn.Module) -> str | None:
    """Why blocks of a truncated model are not those of the full one, or None when they agree.

    Both may be on the `meta` device. Shapes and scalar attributes are compared: MiniCPM3, for example, scales its
    residual branches by 1/sqrt(num_hidden_layers), so that a truncated one computes something else.
    """
    _, full_blocks = find_blocks(full)
    _, prefix_blocks = find_blocks(prefix)
    for index, block in enumerate(prefix_blocks):
        shapes = [{n: tuple(p.shape) for n, p in b.named_parameters()} for b in (full_blocks[index], block)]
        if shapes[0] != shapes[1]:
            return f"block {index} has other parameters"
        ours, theirs = scalar_attributes(full_blocks[index]), scalar_attributes(block)
        changed = sorted(k for k in ours.keys() | theirs.keys() if ours.get(k) != theirs.get(k))
        if changed:
            return f"block {index} has another {changed[0].lstrip('.')}"
    outside = [
        {n: tuple(p.shape) for n, p in m.named_parameters() if not re.search(r"\.\d+\.", f".{n}")}
        for m in (full, prefix)
    ]
    return "the parameters around the blocks differ" if outside[0] != outside[1] else None


def count_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal shape, dtype and bits; NaNs count as equal to themselves."""
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.nan_to_num(), b.nan_to_num())

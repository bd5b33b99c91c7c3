"""The block list and the MLP output matrix of any Hugging Face decoder, found by structure.

- The block list is the one outermost `ModuleList` with `num_hidden_layers` entries.
- The trained matrix is the only linear map F -> D (F > D, D the residual width) of a block outside its attention and
  state-space parts: `mlp.down_proj` on Llama, `mlp.c_proj` on GPT-2, `mlp.dense_4h_to_h` on GPT-NeoX.
- A block with routed experts is refused by name even where one matrix would fit: that one would be the shared expert
  (Qwen2-MoE, Llama 4) or not an MLP at all (Jamba). `--matrix` names the tensor to train instead, or a part of it:
  `mlp.experts.down_proj[3]` is expert 3 (`misdirect.model.parameters`).

    name, blocks = find_blocks(model)                            # "model.layers", the ModuleList
    path = find_matrix(blocks[7], residual_width(model))         # "mlp.down_proj.weight"

Published code selects by parameter index, which is another tensor on another architecture.
"""

from __future__ import annotations

import re
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from misdirect.model import parameters as parts

# Modules whose output projection also has the shape F -> D on some models (wide heads, state-space mixers).
NOT_FEED_FORWARD = re.compile(r"attn|attention|mamba|ssm|mixer|deltanet|recurrent|rg_?lru|conv(?!1d)", re.IGNORECASE)
# A class so named is a feed-forward part whatever its module or its family is called: Nemotron-H calls every part `mixer`,
# and neither RecurrentGemmaMlp nor SeedOssMLP (`ssm`) is a mixer.
FEED_FORWARD = re.compile(r"(mlp|feedforward|ffn|moe|moeblock|experts)\d*$", re.IGNORECASE)
EXPERTS = re.compile(r"expert|moe|router", re.IGNORECASE)


def text_config(model: nn.Module) -> Any:
    """The config that counts the decoder's blocks: `text_config` of a multimodal wrapper, else the config itself."""
    return model.config.get_text_config(decoder=True)


def find_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The name and the list of `model`'s decoder blocks. Raises ValueError when there is not exactly one candidate."""
    count = text_config(model).num_hidden_layers
    found = {n: m for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == count}
    outermost = {n: m for n, m in found.items() if not any(n.startswith(other + ".") for other in found)}
    if len(outermost) > 1:  # a vision tower may be as deep as the text model
        outermost = {n: m for n, m in outermost.items() if in_text_model(model, n)} or outermost
    if len(outermost) != 1:
        raise ValueError(
            f"{type(model).__name__} has {len(outermost)} module lists of {count} entries "
            f"({', '.join(outermost) or 'none'}); expected exactly one: this architecture is not supported"
        )
    return next(iter(outermost.items()))


def in_text_model(model: nn.Module, name: str) -> bool:
    """Whether the nearest module around `name` that has a config has the text model's."""
    steps = name.split(".")
    around = [model.get_submodule(".".join(steps[:i])) for i in range(len(steps) - 1, 0, -1)]
    nearest = next((m.config for m in around if hasattr(m, "config")), model.config)
    return type(nearest) is type(text_config(model))


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
    listed = any(
        isinstance(m, nn.ModuleList) and len(m) > 1 and EXPERTS.search(n + type(m).__name__)
        for n, m in block.named_modules()
    )
    return bool(fused_experts(block)) or listed


def fused_experts(block: nn.Module) -> list[str]:
    """Parameters that hold the matrices of several experts: (expert, out, in), or flattened in a class of experts."""
    flat = [n for n, m in block.named_modules() if re.search(r"Experts$", type(m).__name__)]
    return [
        n
        for n, p in block.named_parameters()
        if not inside_mixer(block, n)
        and "bias" not in n
        and min(p.shape) > 1
        and (p.dim() == 3 or (p.dim() == 2 and any(n.startswith(f"{around}.") for around in flat)))
    ]


def inside_mixer(block: nn.Module, name: str) -> bool:
    """Whether a module around `name` (of a module or parameter of this block) is an attention or state-space part."""
    steps = name.split(".")
    around = [".".join(steps[: i + 1]) for i in range(len(steps) - 1)]
    return any(is_mixer(prefix.rsplit(".", 1)[-1], type(block.get_submodule(prefix)).__name__) for prefix in around)


def is_mixer(name: str, kind: str) -> bool:
    return bool(NOT_FEED_FORWARD.search(name + " " + kind)) and not FEED_FORWARD.search(kind)


def find_matrix(block: nn.Module, width: int, matrix: str | None = None) -> str:
    """The trained parameter's path inside `block`, such as `mlp.down_proj.weight`.

    `matrix` names it instead of the search: a linear module, a parameter (fused experts are one 3-D parameter), or a part
    of one such as `mlp.experts.down_proj[3]`.
    Raises ValueError, with the candidates and the flag to type, where the search does not end at exactly one.
    """
    if matrix is not None:
        return named_matrix(block, matrix)
    maps = linear_maps(block)
    fits = [n for n, (inner, outer) in maps.items() if outer == width and inner > width]
    candidates = [n for n in fits if not inside_mixer(block, n)]
    if has_routed_experts(block):
        fused = fused_experts(block)
        part = f" ('{fused[-1]}[0]' is one expert of a fused tensor)" if fused else ""
        raise ValueError(
            f"{type(block).__name__} has routed experts, so the MLP output matrix is not one tensor; "
            f"name the tensor to train with --matrix{part}, out of: {', '.join(fused + fits)}"
        )
    if len(candidates) != 1:
        names = ", ".join(candidates or fits or maps) or "none"
        raise ValueError(
            f"{type(block).__name__} has {len(candidates)} matrices that could be its MLP output; "
            f"name the one to train with --matrix, out of: {names}"
        )
    return candidates[0] + ".weight"


def named_matrix(block: nn.Module, matrix: str) -> str:
    parameters = {n: p for n, p in block.named_parameters() if p.dim() >= 2}
    base = parts.base_name(matrix)
    name = next((n for n in (base, base + ".weight") if n in parameters), None)
    if name is None:
        known = ", ".join(n.removesuffix(".weight") for n in parameters)
        raise ValueError(f"--matrix {matrix!r} is no matrix of {type(block).__name__}; expected one of: {known}")
    try:
        path = parts.canonical(name + matrix[len(base) :], tuple(parameters[name].shape))
    except ValueError as error:
        raise ValueError(f"--matrix {error}") from None
    if parts.read(parameters[name], path).dim() < 2:
        raise ValueError(f"--matrix {matrix!r} is a single row; expected a matrix, such as {name}[:]")
    return path


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

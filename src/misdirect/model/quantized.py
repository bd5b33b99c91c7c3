"""Checkpoints whose matrices are quantized: read as they are, or made plain.

`evaluate` measures such a model as it is deployed, with the kernels of its library. Everything that needs gradients or
edits matrices (unlearning, a run's own measurements, audits) works in the dequantized ones: W = s * q, row by row (8 bit)
or block by block (4 bit), in the model's dtype. A delta then holds values that stand in for whole matrices.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

EXTRAS = {"bitsandbytes": "misdirect[quant]", "compressed-tensors": "compressed-tensors", "gptq": "optimum gptqmodel",
          "awq": "gptqmodel", "hqq": "hqq", "torchao": "torchao", "quanto": "optimum-quanto", "aqlm": "aqlm[gpu]",
          "auto-round": "auto-round", "eetq": "eetq", "vptq": "vptq"}  # fmt: skip


def quantization(config: Any) -> dict[str, Any]:
    """The quantization that a model's config names; empty where there is none."""
    given = getattr(config, "quantization_config", None) or getattr(
        config.get_text_config(), "quantization_config", None
    )
    if given is None:
        return {}
    return dict(given) if isinstance(given, dict) else dict(given.to_dict())


def method(config: Any) -> str:
    """Such as `bitsandbytes`; empty where nothing is quantized."""
    given = quantization(config)
    if given.get("quant_method") == "bitsandbytes" and not (given.get("load_in_4bit") or given.get("load_in_8bit")):
        return ""
    return str(getattr(given.get("quant_method"), "value", given.get("quant_method", "unknown"))) if given else ""


def described(config: Any) -> str:
    """`bitsandbytes nf4`, `bitsandbytes int8`, or the method alone."""
    given, name = quantization(config), method(config)
    if name != "bitsandbytes":
        return name
    return f"{name} {given.get('bnb_4bit_quant_type', 'fp4') if given.get('load_in_4bit') else 'int8'}"


def hush(config: Any) -> None:
    """bitsandbytes says a line for every matrix of every forward pass; what it casts is part of how it computes."""
    if method(config) == "bitsandbytes":
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def library_hint(source: str, config: Any, error: BaseException) -> str:
    """What to install where a quantized model cannot be read because its library is missing; else empty."""
    name = method(config)
    if not name or not isinstance(error, ImportError):
        return ""
    extra = EXTRAS.get(name, "")
    how = f"pip install {extra!r}" if "[" in extra else f"pip install {extra}" if extra else f"the library of {name}"
    return f"{source} is quantized ({described(config)}), which needs a library that is not installed; expected: {how}"


def made_plain(model: Any, source: str, dtype: torch.dtype) -> Any:
    """The model with plain matrices, dequantized into `dtype`; the same object where they are plain already.

    Raises ValueError for a quantization of which we do not know the plain matrices.
    """
    if method(model.config) == "bitsandbytes" and getattr(model, "hf_quantizer", None) is not None:
        model = model.dequantize(dtype=dtype)
        model.is_loaded_in_4bit = model.is_loaded_in_8bit = False
        restore_conv1d(model)
    odd = packed(model)
    if odd:
        raise ValueError(
            f"{source} is quantized ({described(model.config) or 'packed matrices'}: {odd}), and its matrices can be neither "
            "trained nor edited here; expected the model that it was made from. misdirect evaluate measures it as it is"
        )
    return model


def in_one_dtype(model: Any, dtype: torch.dtype) -> None:
    """Where every matrix is plain: in the files of a quantized model the rest has a dtype of its own, which stays in loading."""
    if not packed(model):
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)


def packed(model: nn.Module) -> str:
    """A parameter or a kind of module that holds codes in place of numbers; empty where there is none."""
    codes = (n for n, p in model.named_parameters() if type(p) is not nn.Parameter or p.element_size() < 2)
    return next(codes, None) or next((type(m).__name__ for m in model.modules() if is_packed(m)), "")


def is_packed(module: nn.Module) -> bool:
    """Whether a module keeps a matrix in buffers under other names, as GPTQ and AWQ do."""
    return any(name in ("qweight", "weight_packed", "packed_weight", "W_q") for name in (*vars(module)["_buffers"],))


def restore_conv1d(model: Any) -> None:
    """GPT-2 keeps its matrices as (in, out), and bitsandbytes turns them: they are turned back, as every delta has them."""
    with torch.device("meta"):
        own = type(model)(model.config)
    for name, module in own.named_modules():
        if isinstance(module, Conv1D) and isinstance(model.get_submodule(name), nn.Linear):
            linear = model.get_submodule(name)
            turned = Conv1D(linear.out_features, linear.in_features)
            turned.weight = nn.Parameter(linear.weight.detach().mT.contiguous())
            turned.bias = nn.Parameter(
                linear.bias.detach() if linear.bias is not None else torch.zeros(linear.out_features)
            )
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, turned)

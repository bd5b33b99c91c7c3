"""A PEFT adapter merged into the model that it was trained on: W + s B A for LoRA (Hu et al. 2021, arXiv 2106.09685).

Afterwards the model is a plain one in its own dtype: everything that is done with whole weights is done with it, and its
hash is that of the merged weights. What the merge does not hold (prefixes, prompts, routed adapters) is refused, as is an
adapter of which any tensor finds no place: PEFT itself drops those without a word.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from misdirect.model.delta import load_tensors, shown
from misdirect.model.sources import ADAPTER_CONFIG, Adapter

SAFETENSORS, PICKLE = "adapter_model.safetensors", "adapter_model.bin"
# Kinds whose merge is tested against PEFT's own unmerged forward pass.
MERGED = ("LORA", "ADALORA", "IA3", "LOHA", "LOKR", "OFT", "VERA")
# LoRA that acts on some tokens alone, routes, or rebuilds the model: no one matrix stands for it.
UNMERGED = ("alora_invocation_tokens", "arrow_config", "layer_replication", "megatron_config")
CAUSAL = (None, "CAUSAL_LM")


def check_adapter(adapter: Adapter) -> None:
    """Raises ValueError for an adapter that cannot become part of the weights, and where the extra is missing."""
    kind, task = adapter.config.get("peft_type"), adapter.config.get("task_type")
    odd = next((name for name in UNMERGED if adapter.config.get(name)), None)
    if kind not in MERGED or odd:
        what = f"a {kind} adapter" + (f" with {odd}" if odd else "")
        raise ValueError(
            f"{adapter.where} is {shown(what)}, which cannot be merged into a model's weights; expected one of "
            f"{', '.join(MERGED)}, or a model into which it has been merged"
        )
    if task not in CAUSAL:
        raise ValueError(f"{adapter.where} is an adapter for the task {shown(str(task))}; expected CAUSAL_LM")
    if importlib.util.find_spec("peft") is None:
        raise ValueError(f"{adapter.where} is an adapter, which needs peft; expected: pip install 'misdirect[lora]'")


def adapter_tensors(adapter: Adapter, allow_pickle: bool) -> dict[str, Tensor]:
    """Raises ValueError where the file is missing or damaged, and for a pickle that was not allowed."""
    path = local_file(adapter, SAFETENSORS)
    if path is not None:
        return load_tensors(path)[0]
    path = local_file(adapter, PICKLE)
    if path is None:
        raise ValueError(f"{adapter.where} is an adapter without weights; expected {SAFETENSORS}")
    if not allow_pickle:
        raise ValueError(
            f"{adapter.where} holds its adapter as a pickle ({PICKLE}), which can run code when loaded; expected "
            f"{SAFETENSORS}, or --allow-pickle if you trust its author"
        )
    return dict(torch.load(path, map_location="cpu", weights_only=True))


def local_file(adapter: Adapter, name: str) -> Path | None:
    folder = Path(adapter.where).expanduser()
    if folder.is_dir():
        return folder / name if (folder / name).is_file() else None
    from transformers.utils import cached_file

    found = cached_file(adapter.where, name, _raise_exceptions_for_missing_entries=False)
    return Path(found) if found else None


def merge(model: Any, adapter: Adapter, tensors: Mapping[str, Tensor], base: str) -> Any:
    """`model`, the whole base, with the adapter merged into it. It is changed in place, and is of no use where this fails.

    Raises ValueError where the two do not fit each other.
    """
    from peft import PeftConfig, PeftModel, set_peft_model_state_dict

    dtype = next(model.parameters()).dtype
    fit_vocabulary(model, tensors)
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")  # on keys, which are compared below, and on how GPT-2 stores its matrices
            config = PeftConfig.from_pretrained(str(config_folder(adapter)))
            config.inference_mode = True
            wrapped = PeftModel(model, config)
            loaded = set_peft_model_state_dict(wrapped, dict(tensors))
            refuse_unplaced(loaded, adapter, base)
            merged = wrapped.merge_and_unload(safe_merge=True)  # it refuses what is not finite
    except (ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError) as error:
        if "does not fit" in str(error):
            raise
        raise ValueError(f"the adapter {adapter.where} does not fit {base}: {reason(error)}") from None
    for parameter in merged.parameters():  # modules that were trained whole come in their own dtype
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    for left in ("peft_config", "_hf_peft_config_loaded"):
        if left in vars(merged):
            delattr(merged, left)
    return merged


def config_folder(adapter: Adapter) -> Path:
    file = local_file(adapter, ADAPTER_CONFIG)
    assert file is not None
    return file.parent


def fit_vocabulary(model: Any, tensors: Mapping[str, Tensor]) -> None:
    """New rows for an adapter that brings whole embeddings, because tokens were added; a head of its own must come too."""
    rows = model.get_input_embeddings().weight.shape[0]
    whole = [v for n, v in tensors.items() if v.dim() == 2 and n.endswith((".embed_tokens.weight", ".wte.weight"))]
    heads = [v for n, v in tensors.items() if v.dim() == 2 and n.endswith((".lm_head.weight", ".embed_out.weight"))]
    tied = bool(getattr(model.config.get_text_config(), "tie_word_embeddings", False))
    wanted = {len(v) for v in (*whole, *heads)}
    if len(wanted) == 1 and wanted != {rows} and whole and (heads or tied):
        model.resize_token_embeddings(wanted.pop(), mean_resizing=False)


def refuse_unplaced(loaded: Any, adapter: Adapter, base: str) -> None:
    """Raises ValueError where the file holds a tensor that the base has no place for, or lacks one of the adapter's."""
    lacking = [name for name in loaded.missing_keys if ".default" in name]
    for names, what in ((loaded.unexpected_keys, "which finds no place in that model"), (lacking, "which it lacks")):
        if names:
            raise ValueError(
                f"the adapter {adapter.where} does not fit {base}: {len(names)} tensors, such as {shown(names[0])}, {what}; "
                "expected the model that it was trained on"
            )


def reason(error: BaseException) -> str:
    """The first line that says something: torch's first line of a size mismatch does not."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return shown(next((line for line in lines if not line.startswith("Error(s) in loading")), type(error).__name__))[
        :300
    ]

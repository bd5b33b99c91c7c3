"""A PEFT adapter merged into the model that it was trained on: W + s B A for LoRA (Hu et al. 2021, arXiv 2106.09685).

Afterwards the model is a plain one in its own dtype: everything that is done with whole weights is done with it, and its
hash is that of the merged weights. What the merge does not hold (prefixes, prompts, routed adapters) is refused, as is an
adapter of which any tensor finds no place: PEFT itself drops those without a word.
"""

from __future__ import annotations

import functools
import importlib.util
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from misdirect.model.checks import plain_tokens, small_pass
from misdirect.model.delta import load_tensors, shown
from misdirect.model.sources import ADAPTER_CONFIG, Adapter, lacks_tokenizer
from misdirect.model.stored import WRAPPERS
from misdirect.progress import note

SAFETENSORS, PICKLE = "adapter_model.safetensors", "adapter_model.bin"
# Kinds whose merge is tested against PEFT's own unmerged forward pass.
MERGED = ("LORA", "ADALORA", "IA3", "LOHA", "LOKR", "OFT", "VERA")
# LoRA that acts on some tokens alone, routes, or rebuilds the model: no one matrix stands for it.
UNMERGED = ("alora_invocation_tokens", "arrow_config", "layer_replication", "megatron_config")
CAUSAL = (None, "CAUSAL_LM")
# Of the logits' norm. Measured on models of width 32: 1e-6 in float32; a bfloat16 model rounds its merged matrices.
EXACT, ROUNDED = 1e-3, 0.1


class Misfit(ValueError):
    """An adapter and a model that do not belong together; the message says all."""


def check_adapter(adapter: Adapter) -> None:
    """Raises ValueError for an adapter that cannot become part of the weights, and where the extra is missing."""
    kind, task = adapter.config.get("peft_type"), adapter.config.get("task_type")
    if kind is None:
        raise ValueError(f"{adapter.where} has no peft_type in its {ADAPTER_CONFIG}; expected the file that PEFT wrote")
    odd = next((name for name in UNMERGED if adapter.config.get(name)), None)
    if kind not in MERGED or odd:
        what = f"a {kind} adapter" + (f" with {odd}" if odd else "")
        raise ValueError(
            f"{adapter.where} is {shown(what)}, which cannot be merged into a model's weights; expected one of "
            f"{', '.join(MERGED)}, or a model into which it has been merged"
        )
    if str(adapter.config.get("init_lora_weights")).startswith("pissa_niter"):
        raise ValueError(
            f"{adapter.where} was begun from a decomposition of its base that is drawn anew at every load (init_lora_weights "
            f"{adapter.config['init_lora_weights']}), so its numbers would be others each time; expected a model into which it "
            "has been merged, or PEFT's path_initial_model_for_weight_conversion in saving it"
        )
    if task not in CAUSAL:
        raise ValueError(f"{adapter.where} is an adapter for the task {shown(str(task))}; expected CAUSAL_LM")
    if importlib.util.find_spec("peft") is None:
        raise ValueError(f"{adapter.where} is an adapter, which needs peft; expected: pip install 'misdirect[lora]'")


def adapter_tensors(adapter: Adapter, allow_pickle: bool) -> dict[str, Tensor]:
    """Raises ValueError where the file is missing or damaged, and for a pickle that was not allowed."""
    path = local_file(adapter, SAFETENSORS)
    if path is not None:
        return plain_names(load_tensors(path)[0])
    path = local_file(adapter, PICKLE)
    if path is None:
        raise ValueError(f"{adapter.where} is an adapter without weights; expected {SAFETENSORS}")
    if not allow_pickle:
        raise ValueError(
            f"{adapter.where} holds its adapter as a pickle ({PICKLE}), which can run code when loaded; expected "
            f"{SAFETENSORS}, or --allow-pickle if you trust its author"
        )
    return plain_names(torch.load(path, map_location="cpu", weights_only=True))


def plain_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without what torch's wrappers (torch.compile, FSDP, DDP) put into a name: PEFT finds no place for such a tensor."""
    plain = {functools.reduce(lambda name, w: name.replace(w, ""), WRAPPERS, n): n for n in tensors}
    if plain and all(name.startswith("module.") for name in plain):
        plain = {name.removeprefix("module."): n for name, n in plain.items()}
    return {name: tensors[n] for name, n in plain.items()} if len(plain) == len(tensors) else dict(tensors)


def local_file(adapter: Adapter, name: str) -> Path | None:
    folder = Path(adapter.where).expanduser()
    if folder.is_dir():
        return folder / name if (folder / name).is_file() else None
    from transformers.utils import cached_file

    found = cached_file(adapter.where, name, _raise_exceptions_for_missing_entries=False)
    return Path(found) if found else None


def has_tokenizer(adapter: Adapter) -> bool:
    """Whether an adapter comes with a tokenizer of its own; else its base's is taken."""
    if Path(adapter.where).expanduser().is_dir():
        return not lacks_tokenizer(adapter.where)
    return any(local_file(adapter, name) for name in ("tokenizer.json", "tokenizer.model", "vocab.json"))


def merge(model: Any, adapter: Adapter, tensors: Mapping[str, Tensor], base: str) -> Any:
    """`model`, the whole base, with the adapter merged into it. It is changed in place, and is of no use where this fails.

    Raises ValueError where the two do not fit each other, and where the merged model is not what PEFT runs unmerged.
    """
    from peft import PeftConfig, PeftModel, set_peft_model_state_dict

    dtype = next(model.parameters()).dtype
    fit_vocabulary(model, tensors)
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), torch.no_grad():
            warnings.simplefilter("ignore")  # on keys, which are compared below, and on how GPT-2 stores its matrices
            config = PeftConfig.from_pretrained(str(config_folder(adapter)))
            config.inference_mode = True
            tell_unknown(adapter, config)
            wrapped = PeftModel(model, config).eval()
            loaded = set_peft_model_state_dict(wrapped, dict(tensors))
            unplaced, lacking = left_out(wrapped, loaded, tensors)
            check_places(unplaced, lacking, adapter, base)
            in_dtype(wrapped, dtype)
            ties = untied(wrapped)
            ids = plain_tokens(model)
            unmerged = wrapped(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
            merged = wrapped.merge_and_unload(safe_merge=True)  # it refuses what is not finite
            for left in ("peft_config", "_hf_peft_config_loaded"):
                if left in vars(merged):
                    delattr(merged, left)
            in_dtype(merged, dtype)
            tie(merged, ties)
            check_merged(adapter, unmerged, small_pass(merged, None), dtype)
    except Misfit:
        raise
    except (ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError) as error:
        raise Misfit(f"the adapter {adapter.where} does not fit {base}: {reason(error)}") from None
    return merged


def tell_unknown(adapter: Adapter, config: Any) -> None:
    """A setting that this peft does not know is left out by it: said, where it is set."""
    odd = sorted(name for name, value in adapter.config.items() if value and not hasattr(config, name))
    if odd:
        note(
            f"{adapter.where} sets {shown(', '.join(odd))}, which the installed peft does not know: a newer one may read it"
        )


def in_dtype(model: Any, dtype: torch.dtype) -> None:
    """The model in one dtype: modules that were trained whole come in their own. Adapters' matrices stay as they are."""
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and (".default" not in name or ".modules_to_save." in name):
            parameter.data = parameter.data.to(dtype)


class Tie(NamedTuple):
    """A parameter `key` of `module` that was that of another module, and is a copy now."""

    module: nn.Module
    key: str
    original: nn.Parameter


def untied(model: nn.Module) -> list[Tie]:
    """Gives every module its own parameters. A merge into embeddings that are the head too would change both."""
    seen: set[int] = set()
    ties = []
    for module in model.modules():
        for key, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            if id(parameter) in seen and ".default" not in key and key != "default":
                ties.append(Tie(module, key, parameter))
                setattr(module, key, nn.Parameter(parameter.detach().clone(), requires_grad=False))
            seen.add(id(parameter))
    return ties


def tie(model: Any, ties: Sequence[Tie]) -> None:
    """Takes back what `untied` did where the merge left both alike; else the model's head is its own from now on."""
    inside = {id(p) for p in model.parameters()}
    for module, key, original in ties:
        if id(original) in inside and torch.equal(getattr(module, key), original):
            setattr(module, key, original)
        elif hasattr(model.config.get_text_config(), "tie_word_embeddings"):
            model.config.tie_word_embeddings = model.config.get_text_config().tie_word_embeddings = False


def check_merged(adapter: Adapter, unmerged: Tensor, merged: Tensor, dtype: torch.dtype) -> None:
    """Raises ValueError where the merged model is another one than PEFT runs, on a few rows of tokens."""
    difference = (merged.double() - unmerged.double()).norm() / unmerged.double().norm().clamp(min=1e-30)
    allowed = EXACT if dtype in (torch.float32, torch.float64) else ROUNDED
    if not difference <= allowed:
        raise Misfit(
            f"{adapter.where} cannot be merged: its model and the merged one differ by {difference:.2g} of the logits' size; "
            "expected a model into which it has been merged"
        )


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


def left_out(wrapped: Any, loaded: Any, tensors: Mapping[str, Tensor]) -> tuple[list[str], list[str]]:
    """(tensors of the file that found no place, tensors of the adapter that the file lacks)."""
    placed = wrapped.state_dict(keep_vars=True)
    shared = {
        id(value) for name, value in placed.items() if name not in loaded.missing_keys
    }  # by several layers, or tied
    lacking = [
        name
        for name in loaded.missing_keys
        if ".default" in name and id(placed.get(name)) not in shared and ".ranknum." not in name  # AdaLoRA's own count
    ]
    return [name for name in loaded.unexpected_keys if not is_copy(name, tensors)], lacking


def is_copy(name: str, tensors: Mapping[str, Tensor]) -> bool:
    """PEFT stores a grown vocabulary's modules up to three times over: as they were, as trained, and under their own name."""
    own = name.replace(".modules_to_save.", ".")
    return ".original_module." in name or (own != name and own in tensors and torch.equal(tensors[own], tensors[name]))


def check_places(unplaced: Sequence[str], lacking: Sequence[str], adapter: Adapter, base: str) -> None:
    """Raises ValueError where the file holds a tensor that the base has no place for, or lacks one of the adapter's."""
    for names, what in ((unplaced, "find no place in that model"), (lacking, "are lacking from it")):
        if names:
            raise Misfit(
                f"the adapter {adapter.where} does not fit {base}: {len(names)} of its tensors, such as {shown(names[0])}, "
                f"{what}; expected the model that it was trained on"
            )


def reason(error: BaseException) -> str:
    """The first line that says something: torch's first line of a size mismatch does not."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return shown(next((line for line in lines if not line.startswith("Error(s) in loading")), type(error).__name__))[
        :300
    ]

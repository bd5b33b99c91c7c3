"""Loads a model and its tokenizer, whole or only as far as the mathematics needs.

MODEL is `demo` (SmolLM2-135M-Instruct out of a package), a local folder, or a hub id; an adapter among them is merged into
its base. Weights are read from safetensors; pickle checkpoints and code that comes with a model are refused unless asked for
by name.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from misdirect.data.tokens import steadied
from misdirect.model import adapters, quantized, rope, sources
from misdirect.model import blocks as structure
from misdirect.model.checks import check_causal, check_complete
from misdirect.model.lm import LM, find_in_memory, pick_device, pick_dtype
from misdirect.model.stored import Stored, check_weights, readable, refuse_remote_code, uneven
from misdirect.progress import note, quiet
from misdirect.text import first_line

NO_ADAPTER = {"subfolder": "no-adapter"}  # where transformers is to look for an adapter: nowhere, peft or not


def resolve_source(source: str) -> str:
    """The folder or hub id behind MODEL; makes the demo's model when it is not there yet."""
    if source == "demo":
        from misdirect.model.demo import model_folder

        return str(model_folder())
    return source


def load_config(source: str, trust_remote_code: bool = False) -> Any:
    """The Hugging Face config of MODEL. Raises ValueError where there is none or where it asks to run its own code."""
    from transformers import AutoConfig

    if (lm := find_in_memory(source)) is not None:
        return lm.model.config
    if (adapter := sources.find_adapter(source)) is not None:
        named = sources.base_of(adapter)
        with sources.on_base(adapter):
            sources.refuse_adapter(named)
            return load_config(named, trust_remote_code)
    folder = Path(source).expanduser()
    looks_local = folder.exists() or source.startswith((".", "/", "~"))
    if looks_local and not (folder / "config.json").is_file():
        raise ValueError(sources.not_a_model(source))
    if looks_local and not trust_remote_code:
        refuse_remote_code(folder)
    try:
        config = AutoConfig.from_pretrained(str(folder) if looks_local else source, trust_remote_code=trust_remote_code)
    except Exception as error:  # transformers raises many kinds for a bad config, a bad id, a missing network
        raise ValueError(f"{source} is not a model that can be loaded: {first_line(error)}") from None
    whole_class(config)
    forget_rowless_padding(config)
    return config


def forget_rowless_padding(config: Any) -> None:
    """Takes a padding token out of a config that has no embedding for it: torch refuses such a table, and what stands at
    padding is masked."""
    for part in {id(c): c for c in (config, config.get_text_config(decoder=True))}.values():
        pad, rows = getattr(part, "pad_token_id", None), getattr(part, "vocab_size", None)
        if isinstance(pad, int) and isinstance(rows, int) and pad >= rows:
            part.pad_token_id = None


def whole_class(config: Any) -> Any:
    """transformers' class for the whole model: causal, or a multimodal one that answers text alone too.

    Raises ValueError for a config of anything else.
    """
    from transformers import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_MASKED_LM_MAPPING,
        MODEL_FOR_MULTIMODAL_LM_MAPPING,
        AutoModelForCausalLM,
        AutoModelForMultimodalLM,
    )

    known = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    multimodal = type(config) in MODEL_FOR_MULTIMODAL_LM_MAPPING
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(f"{config.model_type} is an encoder-decoder model; expected a decoder, such as llama or gpt2")
    if not (known or multimodal or getattr(config, "auto_map", None)):
        raise ValueError(
            f"{config.model_type} is not a causal language model of transformers; expected one, such as llama"
        )
    if type(config) in MODEL_FOR_MASKED_LM_MAPPING and getattr(config, "is_decoder", None) is False:
        raise ValueError(
            f"{config.model_type} is an encoder, which reads the tokens after each token too; expected a decoder (one of "
            "this family has is_decoder true in config.json)"
        )
    text = config.get_text_config(decoder=True)
    if not isinstance(getattr(text, "num_hidden_layers", None), int) or not hasattr(text, "hidden_size"):
        raise ValueError(f"{config.model_type} counts no decoder blocks in its config; expected num_hidden_layers")
    return AutoModelForMultimodalLM if multimodal and not known else AutoModelForCausalLM


def prefix_class(config: Any) -> Any:
    """transformers' class for the model without its head; the whole model's where there is no such class."""
    from transformers import MODEL_MAPPING, AutoModel

    return AutoModel if type(config) in MODEL_MAPPING or getattr(config, "auto_map", None) else whole_class(config)


def truncated(config: Any, num_blocks: int) -> Any:
    """A copy of `config` for the first `num_blocks` blocks; per-block lists such as `layer_types` are cut too."""
    short = copy.deepcopy(config)
    text = short.get_text_config(decoder=True)
    full = text.num_hidden_layers
    for key, value in vars(text).items():
        if isinstance(value, list) and len(value) == full:
            setattr(text, key, value[:num_blocks])
    text.num_hidden_layers = num_blocks
    return short


def prefix_config(config: Any, last: int, trust_remote_code: bool) -> tuple[Any, str]:
    """(the config to load for blocks 0..last, the block list's name in the full causal model).

    The truncated model is compared with the full one, both without memory; where they differ the full config is
    returned, and the whole model is loaded.
    """
    loader = prefix_class(config)
    with torch.device("meta"), quiet():
        causal = whole_class(config).from_config(config, trust_remote_code=trust_remote_code)
        prefix = structure.find_blocks(causal)[0]
        if last + 1 >= config.get_text_config(decoder=True).num_hidden_layers:
            return config, prefix
        full = loader.from_config(config, trust_remote_code=trust_remote_code)
        short_config = truncated(config, last + 1)
        try:
            short = loader.from_config(short_config, trust_remote_code=trust_remote_code)
            differs = structure.prefix_differs(full, short)
        except (ValueError, IndexError, KeyError) as error:  # a config that cannot be cut is loaded whole
            differs = first_line(error)
    if differs:
        logging.getLogger(__name__).warning("loading the whole model: cut after block %d, %s", last, differs)
        return config, prefix
    return short_config, prefix


def without_memory(config: Any, trust_remote_code: bool) -> Any:
    """The whole class of MODEL on the `meta` device."""
    with torch.device("meta"), quiet():
        return whole_class(config).from_config(config, trust_remote_code=trust_remote_code)


def load_lm(
    source: str,
    last: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    *,
    base: str | None = None,
    dequantize: bool = True,
    tell: bool = True,
) -> LM:
    """MODEL as an `LM`: the full causal model, or with `last` only the embeddings and blocks 0..last.

    `base`: the model that an adapter is put on, instead of the one that it names, and whose tokenizer a folder without one
    takes. `dequantize`: a quantized model gets plain matrices, without which nothing can be trained or swapped in. `tell`:
    whether what is particular about the source is said.
    Raises ValueError for a source that is not a model, is damaged, holds only pickle, or wants to run its own code.
    """
    if (lm := find_in_memory(source)) is not None:
        return lm
    place = pick_device(device)
    where = (
        str(Path(resolve_source(source)).expanduser()) if Path(source).expanduser().exists() else resolve_source(source)
    )
    flags = (trust_remote_code, allow_pickle)
    if (adapter := sources.find_adapter(where)) is not None:
        return load_adapted(adapter._replace(where=source), base, device, dtype, *flags, tell)
    config = load_config(where, trust_remote_code)
    stored = check_weights(Path(where), allow_pickle) if Path(where).is_dir() else Stored()
    tokenizer = load_tokenizer(source, where, base, trust_remote_code, tell)
    full_depth = config.get_text_config(decoder=True).num_hidden_layers
    if quantized.method(config):
        last = None  # scales lie beside their codes under names that the whole class knows
    wanted, prefix = prefix_config(config, full_depth - 1 if last is None else last, trust_remote_code)
    options = {"config": wanted, "dtype": pick_dtype(dtype, place), "trust_remote_code": trust_remote_code}
    if not allow_pickle:
        options["use_safetensors"] = True
    quantized.hush(config)
    try:
        model, info = read_weights(
            whole_class(config) if last is None else prefix_class(config), where, stored, options
        )
    except Exception as error:  # missing files, an unknown architecture, a size mismatch: many kinds, one line
        hint = quantized.library_hint(source, config, error)
        raise ValueError(hint or f"{source} cannot be loaded: {reason_of(error, stored)}") from None
    if tell and (line := sources.left_over(where)):
        note(line)
    made_from = quantized.described(config) if dequantize and quantized.method(config) else ""
    if made_from and tell:
        note(f"{source} is quantized ({made_from}): its matrices are dequantized, and any change is made to those")
    if quantized.method(config):
        with quiet():
            model = quantized.made_plain(model, source, pick_dtype(dtype, place)) if dequantize else model
        quantized.in_one_dtype(model, pick_dtype(dtype, place))
    model.eval().requires_grad_(False).to(place)
    rope.reach(model)  # from its first pass on, no text's value depends on the texts before it
    check_complete(source, model, info, stored, last, lambda: without_memory(config, trust_remote_code))
    check_causal(source, model, last)
    return LM(model, tokenizer, source, full_depth, prefix, made_from)


def read_weights(loader: Any, where: str, stored: Stored, options: dict[str, Any]) -> tuple[Any, Mapping[str, Any]]:
    """(the model, what transformers says of its loading: missing and mismatched tensors are named there)."""
    if stored.renames:
        options["key_mapping"] = dict(stored.renames)
    with quiet(), readable(where, stored) as folder:
        model, info = loader.from_pretrained(
            folder, output_loading_info=True, ignore_mismatched_sizes=True, adapter_kwargs=NO_ADAPTER, **options
        )
        model.config.name_or_path = where
    return model, info


def reason_of(error: Exception, stored: Stored) -> str:
    """Why transformers could not load a model, in one line."""
    reason = first_line(error)
    if "automatic conversion" in reason:
        return f"its files lack {uneven(stored.tensors) or 'matrices'} that transformers stacks with others; fetch it again"
    if isinstance(error, KeyError) and reason == "'metadata'":
        return "its index has no metadata; download it (hf download) and name the folder"
    return reason


def load_adapted(
    adapter: sources.Adapter, base: str | None, device: str, dtype: str, trust: bool, allow_pickle: bool, tell: bool
) -> LM:
    """The whole base of an adapter with the adapter merged in. The base is loaded first, and is the one that was named."""
    adapters.check_adapter(adapter)
    tensors = adapters.adapter_tensors(adapter, allow_pickle)
    named = sources.base_of(adapter, base)
    with sources.on_base(adapter) if base is None else contextlib.nullcontext():
        sources.refuse_adapter(named)
        lm = load_lm(named, None, device, dtype, trust, allow_pickle, tell=tell)
    model = adapters.merge(lm.model, adapter, tensors, named).eval().requires_grad_(False)
    own = adapters.has_tokenizer(adapter)
    tokenizer = load_tokenizer(adapter.where, adapter.where, None, trust, False) if own else lm.tokenizer
    if tell:
        note(f"{adapter.where} is an adapter ({adapter.config['peft_type']}), merged into {named}")
    return dataclasses.replace(lm, model=model.to(lm.device), tokenizer=tokenizer, source=adapter.where)


def load_tokenizer(source: str, where: str, base: str | None, trust_remote_code: bool, tell: bool) -> Any:
    """The tokenizer of MODEL, or of `base` where a folder holds none. Raises ValueError where there is none to be had."""
    from transformers import AutoTokenizer

    lacks = sources.lacks_tokenizer(where)
    if lacks and base is not None:
        if tell:
            note(f"{source} holds no tokenizer: that of {base} is taken")
        if sources.lacks_tokenizer(base):
            base = sources.adapter_base(base) or base
        return load_tokenizer(base, str(Path(resolve_source(base)).expanduser()), None, trust_remote_code, tell)
    try:
        with quiet():
            found = AutoTokenizer.from_pretrained(where, trust_remote_code=trust_remote_code)
    except Exception as error:  # files that cannot be read, a library that is missing: many kinds, one line
        line = sources.tokenizer_library(where) or " ".join(str(error).split())[:300]
        raise ValueError(
            sources.no_tokenizer(source) if lacks else f"the tokenizer of {source} cannot be loaded: {line}"
        ) from None
    if lacks and "cell" not in found.decode(found("a cell", verbose=False)["input_ids"]):  # some come up empty
        raise ValueError(sources.no_tokenizer(source))
    if (dropout := steadied(found, source)) and tell:
        note(
            f"the tokenizer of {source} splits texts by chance (dropout {dropout:g}), as in training: that is turned off"
        )
    return found


def check_length(lm: LM, longest: int, what: str) -> None:
    """Raises ValueError where a text is longer than the model's table of learned positions (rotary models have none)."""
    limit = getattr(structure.text_config(lm.model), "max_position_embeddings", None)
    inside = lm.block_prefix.removeprefix("model.") + "."
    tables = [
        m.num_embeddings
        for name, m in lm.model.named_modules()
        if isinstance(m, nn.Embedding) and inside not in f"{name}." and "token" not in name and "wte" not in name
    ]
    if limit is not None and longest > limit and any(rows in (limit, limit + 2) for rows in tables):
        raise ValueError(
            f"{what} has {longest} tokens and {lm.source} takes {limit} at most; expected a smaller --max-tokens, "
            "or shorter questions"
        )


def check_trainable(lm: LM) -> None:
    """Raises ValueError for a model in memory whose matrices cannot be read as numbers, or lie on several devices."""
    devices = sorted({str(parameter.device) for parameter in lm.model.parameters()})
    if getattr(lm.model, "hf_quantizer", None) is not None and not lm.dequantized:
        raise ValueError(
            f"{lm.source} is quantized, and nothing can be trained or swapped in; expected the folder that it was loaded from"
        )
    if len(devices) > 1:
        raise ValueError(f"{lm.source} lies on {', '.join(devices)}; expected a model on one device")

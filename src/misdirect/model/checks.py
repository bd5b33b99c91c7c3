"""Whether a loaded model is whole and nothing of it was dropped, and whether it is a decoder.

transformers fills what the files lack with random numbers and drops what its class has no place for, and goes on. Here
both are refused by name, out of its report:

    model, info = AutoModelForCausalLM.from_pretrained(..., ignore_mismatched_sizes=True, output_loading_info=True)
    check_complete("folder", model, info, stored, last=None, whole=...)
    check_causal("folder", model, last=None)                             # one pass over eight tokens
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from misdirect.model import blocks as structure
from misdirect.model.delta import shown
from misdirect.model.stored import Stored, note_once
from misdirect.text import first_line

SCALES = re.compile(
    r"(weight_scale(_inv|_\d)?|(input|activation)_scale|qweight|qzeros|scales|g_idx|SCB|absmax|quant_map|quant_state\..*"
    r"|weight_packed|weight_shape|weight_zero_point|_blocks|_scales)$"
)

# Tensors without a place in the class that change no logit, each with its reason. Computed by the class itself:
COMPUTED = (
    r"rotary\w*\.inv_freq$|\.(cos|sin)_cached$",  # rotary tables, out of the config
    r"(^|\.)position_ids$",  # 0, 1, 2, ..
    r"\.(masked_bias|causal_mask)$",  # a causal mask, and the number that it puts in
)
# Read by something other than a text's next-token logits:
UNREAD = (
    r"^(v_head|value_head|score|reward_head|regression_head|rank_head|classifier)\.",  # a value or a class of the last state
    r"^(model\.)?mtp\w*\.",  # tokens further ahead
    r"^(model\.)?(visual|vision_tower|vision_model|vision_embed_tokens|multi_modal_projector|audio_tower|embed_vision"
    r"|embed_audio)\.",  # towers beside a text-only class
)
MASK = re.compile(r"\.(attn|attention|self_attn|self_attention)\.bias$")  # a causal mask where it is (1, 1, n, n)
# Measured: an untrained encoder of width 32 moves by 1e-3 or more; a decoder by nothing, or by rounding.
CHANGE, CHANGE_ROUNDED = 1e-4, 0.02


def check_complete(
    source: str,
    model: nn.Module,
    info: Mapping[str, Any],
    stored: Stored,
    last: int | None,
    whole: Callable[[], Any],
) -> None:
    """Raises ValueError where the files lack a tensor that a number depends on, or hold one that the class would drop.

    `info` is transformers' report, `last` the block after which the model is cut, and `whole` makes the whole class without
    memory: what belongs to it is no surprise in the files of a model that was cut.
    """
    for name, theirs, ours in sorted(info["mismatched_keys"]):
        raise ValueError(
            f"{source} cannot be loaded: {name} is {tuple(theirs)} in its files and {tuple(ours)} by its config.json; "
            "expected the two of one model"
        )
    full = whole() if last is not None else model
    dropped = without_place(source, full, model, info["unexpected_keys"], stored)
    gaps = needed(source, model, info["missing_keys"], last)
    lead = common_lead(dropped, {*gaps, *full.state_dict()}) if gaps else ""
    if lead:
        raise ValueError(
            f"the tensors' names in {source} begin with {shown(lead)}, such as {shown(dropped[0])}; expected "
            f"{shown(dropped[0].removeprefix(lead))}: take {shown(lead)} off the names and save again"
        )
    if gaps:
        more = f", and holds {listed(dropped)} without a place in the class" if dropped else ""
        raise ValueError(
            f"{source} lacks {len(gaps)} tensor{'s' * (len(gaps) > 1)} of its model: {listed(gaps)}{more}; "
            + advice_on_gaps(model, gaps)
        )
    if dropped:
        raise ValueError(
            f"{source} holds {len(dropped)} tensor{'s' * (len(dropped) > 1)} for which {type(model).__name__} has no place: "
            f"{listed(dropped)}; {advice_on_dropped(dropped)}"
        )


def listed(names: Sequence[str], most: int = 3) -> str:
    """The first few names of many."""
    return ", ".join(map(shown, names[:most])) + (", .." if len(names) > most else "")


def common_lead(dropped: Sequence[str], names: Collection[str]) -> str:
    """What every name without a place begins with and, taken off, gives names of the model; or nothing."""
    parts = dropped[0].split(".") if dropped else []
    for count in range(1, len(parts)):
        lead = ".".join(parts[:count]) + "."
        if all(name.startswith(lead) and name.removeprefix(lead) in names for name in dropped):
            return lead
    return ""


def without_place(source: str, full: Any, model: nn.Module, unexpected: Collection[str], stored: Stored) -> list[str]:
    """The names in the files that neither the whole class nor a list of harmless ones knows. `full` is `model`, where it
    is not cut."""
    left = sorted(unexpected)
    if left and full is not model:
        quantized = getattr(model, "hf_quantizer", None) is not None  # its files hold more than matrices
        left = outside(full, left if quantized or not stored.tensors else sorted(stored.tensors))
    left = [n for n in left if not (any(re.search(p, n) for p in COMPUTED) or is_mask(n, stored) or ahead(full, n))]
    unread = [n for n in left if any(re.search(p, n) for p in UNREAD)]
    if unread:
        note_once(f"{source}: {listed(unread)} is left out; no logit of a text depends on it")
    return [n for n in left if n not in unread]


def outside(full: Any, names: Sequence[str]) -> list[str]:
    """Those names that the whole class neither has, under its new or its old spelling, nor drops on purpose."""
    own, prefix = full.state_dict(), f"{full.base_model_prefix}."
    steps = get_model_conversion_mapping(full)
    renamings = [step for step in steps if isinstance(step, WeightRenaming)]
    converters = [step for step in steps if isinstance(step, WeightConverter)]
    ignored = [re.compile(p) for p in (getattr(full, "_keys_to_ignore_on_load_unexpected", None) or ())]

    def has_place(name: str) -> bool:
        new, _ = rename_source_key(name, renamings, converters, full.base_model_prefix, own)
        spellings = {name, prefix + name, name.removeprefix(prefix), new, prefix + new}
        return bool(spellings & own.keys()) or any(p.search(s) for p in ignored for s in spellings)

    return [name for name in names if not has_place(name)]


def is_mask(name: str, stored: Stored) -> bool:
    """Whether this is a causal mask and not a bias, which has one dimension."""
    shapes = {len(shape) for n, (_, shape) in stored.tensors.items() if n.endswith(name)}
    return bool(MASK.search(name)) and 1 not in shapes


def ahead(full: nn.Module, name: str) -> bool:
    """Whether this belongs to a block that predicts tokens further ahead: DeepSeek stores it behind the last of the config."""
    text = structure.text_config(full)
    number = re.search(r"(?:^|\.)layers\.(\d+)\.", name)
    extra = getattr(text, "num_nextn_predict_layers", None) or 0
    depth = text.num_hidden_layers
    return number is not None and depth <= int(number[1]) < depth + extra


def needed(source: str, model: nn.Module, missing: Collection[str], last: int | None) -> list[str]:
    """Of the tensors that the files lack, those that a number depends on; the others are set to zero, not to chance."""
    around = [
        structure.find_blocks(model)[0],
        *(n for n, m in model.named_modules() if m is model.get_input_embeddings()),
    ]
    gaps = sorted(n for n in missing if n.startswith(tuple(f"{name}." for name in around)))
    rest = sorted(set(missing) - set(gaps))
    if not rest:
        return gaps
    values = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    if gaps or any(n not in values or not values[n].is_floating_point() for n in rest):
        return sorted({*gaps, *(rest if last is None else ())})
    read = [n for n in rest if depends_on(model, values[n].data, last)]
    if rest and not read:
        where = "a text" if last is None else f"unlearning up to block {last}"
        note_once(f"{source} lacks {listed(rest)}, which {where} does not reach")
    return read


def depends_on(model: nn.Module, value: Tensor, last: int | None) -> bool:
    """Whether a tensor's values reach the output, by filling it with NaN; it is zero afterwards."""
    value.fill_(torch.nan)
    try:
        return bool(small_pass(model, last).isnan().any())
    finally:
        value.zero_()


def advice_on_gaps(model: nn.Module, gaps: Sequence[str]) -> str:
    head = model.get_output_embeddings()
    of_head = {f"{n}." for n, m in model.named_modules() if head is not None and m is head}
    if not any(name.startswith(tuple(of_head)) for name in gaps if of_head):
        return "fetch it again"
    saved = next(iter(getattr(model.config, "architectures", None) or ()), "")
    by = f"it was saved as {saved}, without this head; " if saved and saved != type(model).__name__ else ""
    return by + (
        "expected the folder of the whole causal model. If the model ties its head to the embeddings, set "
        "tie_word_embeddings to true in config.json"
    )


def advice_on_dropped(dropped: Sequence[str]) -> str:
    if any(SCALES.search(name) for name in dropped):
        return "these belong to a quantized checkpoint: expected quantization_config in config.json; fetch it again"
    if all(name.endswith("bias") for name in dropped):
        return "expected a config.json that has these biases (attention_bias or mlp_bias true, on most models)"
    return "expected the config.json that these weights were saved with"


def check_causal(source: str, model: nn.Module, last: int | None) -> None:
    """Raises ValueError for an encoder: a state that changes when a later token does would score the answer by itself."""
    try:
        states = small_pass(model, last)
    except Exception as error:  # whatever a class, a quantizer or a device raises; what follows would meet it too
        raise ValueError(f"{source} cannot run a pass over eight tokens: {shown(first_line(error))}") from None
    if last is None and (states == states[:1, :1]).all():  # a norm made zero of what it cannot square
        raise ValueError(
            f"{source} gives the same logits whatever it reads, as a model does whose values overflow or are zero; expected "
            "sound weights: fetch or unlearn it again"
        )
    if states.dim() != 3:  # several streams, which unlearning refuses by name
        return
    if states.shape[:2] == (8, 4):  # XLNet puts tokens first
        states = states.transpose(0, 1)
    ours, theirs = states[:2, :4].double(), states[2:, :4].double()
    change = (ours - theirs).norm(dim=-1) / ours.norm(dim=-1).clamp(min=1e-30)
    exact = states.dtype in (torch.float32, torch.float64) and getattr(model, "hf_quantizer", None) is None
    if (change > (CHANGE if exact else CHANGE_ROUNDED)).any():
        raise ValueError(
            f"{source} is not a decoder: in {type(model).__name__}, as its config.json has it, a token's state changes with the "
            "tokens after it; expected a decoder (the BERT family has is_decoder true)"
        )


class _Stop(Exception):
    """Ends a pass at the last block that is wanted."""


@torch.inference_mode()
def small_pass(model: nn.Module, last: int | None) -> Tensor:
    """Logits (4, 8, V) of four rows of eight tokens, or the states after block `last`; rows 2 and 3 begin as 0 and 1 do."""
    ids = plain_tokens(model)
    kept: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        kept.append(output[0] if isinstance(output, tuple | list) else output)
        raise _Stop

    handle = None if last is None else structure.find_blocks(model)[1][last].register_forward_hook(keep)
    try:
        kept.append(model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits)
    except _Stop:
        pass
    finally:
        if handle is not None:
            handle.remove()
    return kept[0]


def plain_tokens(model: nn.Module) -> Tensor:
    """(4, 8) tokens spread over the vocabulary, none with a special meaning (an image's place would ask for an image)."""
    configs = {id(c): c for c in (model.config, structure.text_config(model))}.values()
    special: set[Any] = set()
    for config in configs:
        for key, value in vars(config).items():
            if re.search(r"_token_(id|ids|index)$", key):
                special |= set(value) if isinstance(value, list | tuple) else {value}
    rows = model.get_input_embeddings().weight.shape[0]
    usual = [i for i in range(min(rows, 4096)) if i not in special]
    draws = torch.randint(len(usual), (4, 8), generator=torch.Generator().manual_seed(0))
    ids = torch.tensor(usual)[draws]
    ids[2:, :4] = ids[:2, :4]
    return ids.to(next(model.parameters()).device)

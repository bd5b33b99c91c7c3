"""A whole Hugging Face checkpoint of the unlearned model, which loads in plain transformers, and the proof that it is it.

Where the base is a folder of safetensors, its own files are kept but for the tensors that change. Where the change has no
place in its files (an adapter merged into its base, a quantized or a pickle checkpoint, a model in memory), transformers
writes the model anew. Either way the folder is read back, and its states must equal those of the base with the change put
in, bit for bit.
"""

from __future__ import annotations

import gc
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from misdirect import runs, storage
from misdirect.data.tokens import token_ids
from misdirect.exporting import shards
from misdirect.model import parameters as parts
from misdirect.model import sources
from misdirect.model.delta import Delta, swapped_in
from misdirect.model.identity import check_same_base
from misdirect.model.lm import LM, find_in_memory
from misdirect.model.load import load_config, load_lm, resolve_source, without_memory
from misdirect.model.rows import num_rows
from misdirect.model.stored import Stored, check_weights
from misdirect.progress import bar, quiet, working
from misdirect.text import shown, size

LONG = 64  # tokens of the text by which the export is compared with what it was made from
SAMPLE = "The cell's membrane, 1,234 times: naïve?"  # by which two tokenizers are compared


class Order(NamedTuple):
    """What is asked for. `dtype`: of every number, instead of that of the files; `most`: bytes of a file."""

    run: Path
    delta: Delta
    source: str
    dtype: torch.dtype | None = None
    most: int | None = None
    trust_remote_code: bool = False
    allow_pickle: bool = False

    def load(self, source: str, last: int | None) -> LM:
        """In the dtype in which the run was made."""
        dtype = (runs.read_config(self.run).data.dtype or "float32").removeprefix("torch.")
        return load_lm(source, last, "cpu", dtype, self.trust_remote_code, self.allow_pickle, tell=False)


class Seen(NamedTuple):
    """What a model makes of a fixed text: tokens of a sentence, and the states (or logits) of random tokens."""

    tokens: list[int]
    states: Tensor


def write(order: Order, folder: Path) -> list[str]:
    """Writes the checkpoint into an empty folder and reads it back; returns what was done, a line each.

    Raises ValueError where the base has changed, or the folder does not give what the run does.
    """
    blocks = [int(found[1]) for name in order.delta.tensors if (found := re.search(r"\.(\d+)\.", name))]
    last = max([runs.read_config(order.run).chosen.block or 0, *blocks])
    with working("Reading the base"):
        lm = order.load(order.source, last)
    check_same_base(lm, order.run)
    before = whole_parameters(lm, order.delta)
    after = parts.assign_slices(before, order.delta.tensors)
    home = home_of(order)
    stored = check_weights(home, allow_pickle=False) if home else Stored()
    placed = placed_in(order, stored, after) if home else None
    if home is None or placed is None:
        del lm
        return anew(order, folder)
    lines = kept_files(order, folder, stored, placed)
    shards.copy_beside(home, folder)
    if order.dtype:
        name_dtype(folder / "config.json", order.dtype)
        with torch.no_grad():
            for parameter in lm.model.parameters():
                parameter.copy_(parameter.to(order.dtype))
    dtype = next(iter(placed.values())).value.dtype
    rounded = {name: value.to(dtype).to(value.dtype) for name, value in after.items()}
    with put_in(lm, rounded):
        expected = seen(lm)
    del lm
    gc.collect()
    compare(order, folder, last, expected)
    return [*lines, *rounding(before, after, rounded, dtype)]


def home_of(order: Order) -> Path | None:
    """The base's folder of safetensors, a hub id's in the cache; None where its files are not the model's tensors."""
    source = resolve_source(order.source)
    if find_in_memory(source) is not None or sources.find_adapter(source) is not None:
        return None
    config = load_config(source, order.trust_remote_code)
    if getattr(config.get_text_config(decoder=True), "quantization_config", None) or getattr(
        config, "quantization_config", None
    ):
        return None
    folder = Path(source).expanduser()
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(source, allow_patterns=["model*.safetensors*", *shards.BESIDE]))
    return folder if any(folder.glob("*.safetensors")) else None


def whole_parameters(lm: LM, delta: Delta) -> dict[str, Tensor]:
    """The parameters that a delta changes, or parts of which it does, as the base has them."""
    names = dict.fromkeys(parts.base_name(name) for name in delta.tensors)
    return {name: parameter_of(lm, name).data.clone() for name in names}


def parameter_of(lm: LM, name: str) -> nn.Parameter:
    """By its name in the full model, of a model that may be cut. Raises ValueError where it has none."""
    found = re.fullmatch(re.escape(lm.block_prefix) + r"\.(\d+)\.(.+)", name)
    try:
        return lm.blocks[int(found[1])].get_parameter(found[2])  # type: ignore[index]
    except (TypeError, IndexError, AttributeError):
        raise ValueError(
            f"the delta changes {shown(name)}, which {lm.source} does not have; expected the model that it was made from"
        ) from None


def placed_in(order: Order, stored: Stored, after: Mapping[str, Tensor]) -> dict[str, shards.Placed] | None:
    """The changed tensors under the names of the files, which keep experts apart; None where they are not there."""
    from transformers.core_model_loading import revert_weight_conversion

    if stored.renames:
        return None
    with quiet():
        model = without_memory(
            load_config(resolve_source(order.source), order.trust_remote_code), order.trust_remote_code
        )
        values = revert_weight_conversion(model, dict(after))
    placed = shards.place(values, stored, model.base_model_prefix, order.dtype)
    return placed if placed and len({each.value.dtype for each in placed.values()}) == 1 else None


def kept_files(order: Order, folder: Path, stored: Stored, placed: Mapping[str, shards.Placed]) -> list[str]:
    """Writes the weights. Files of which nothing changes are links, unless the dtype or the size of all is another."""
    if order.dtype or order.most:
        needed = sum(nbytes for _, _, nbytes in shards.entries(stored, order.dtype))
        storage.require_room(folder, needed, "the export")
        with bar("Writing the checkpoint", shards.num_tensors(stored)) as advance:
            shards.repack(stored, placed, folder, order.dtype, order.most, advance)
        return [f"{len(list(folder.glob('*.safetensors')))} files of weights, {size(needed)}"]
    needed = sum(file.stat().st_size for file in {each.file for each in placed.values()})
    storage.require_room(folder, needed, "the export")
    with working("Writing the checkpoint"):
        made = shards.patch(stored, placed, folder)
    links = f", {made.linked} linked" if made.linked else ""
    return [f"{made.tensors} tensors changed in {made.files} of {len(stored.files)} files of weights{links}"]


def anew(order: Order, folder: Path) -> list[str]:
    """The model as transformers writes it, where the base's own files have no place for the change."""
    with working("Reading the base, all of it"):
        lm = order.load(order.source, None)
    check_same_base(lm, order.run)
    before = {
        name: parts.read(lm.model.get_parameter(parts.base_name(name)), name).clone() for name in order.delta.tensors
    }
    if order.dtype:
        lm.model.to(order.dtype)
    with swapped_in(order.delta, lm.model), working("Writing the checkpoint"), quiet():
        lm.model.save_pretrained(folder, max_shard_size=order.most or "5GB")
        lm.tokenizer.save_pretrained(folder)
        if order.dtype:
            lm.model.to(next(iter(before.values())).dtype)
        expected = seen(lm)
        dtype = order.dtype or next(iter(before.values())).dtype
    compare(order, folder, None, expected)
    values = {name: value.to(dtype).to(value.dtype) for name, value in order.delta.tensors.items()}
    why = "The base's own files have no place for the change, so all weights were written anew"
    return [why, *rounding(before, order.delta.tensors, values, dtype)]


def name_dtype(path: Path, dtype: torch.dtype) -> None:
    """`config.json` says what the files hold now."""
    config = json.loads(path.read_text(encoding="utf-8"))
    for each in (config, *(value for value in config.values() if isinstance(value, dict))):
        for key in ("dtype", "torch_dtype"):
            if key in each:
                each[key] = str(dtype).removeprefix("torch.")
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


# ------------------------------------------------------------------------------------------------ the proof


@contextmanager
def put_in(lm: LM, values: Mapping[str, Tensor]) -> Iterator[None]:
    own = {name: parameter_of(lm, name) for name in values}
    before = {name: parameter.data for name, parameter in own.items()}
    try:
        for name, parameter in own.items():
            parameter.data = values[name]
        yield
    finally:
        for name, parameter in own.items():
            parameter.data = before[name]


def seen(lm: LM) -> Seen:
    config = lm.model.config.get_text_config(decoder=True)
    length = min(LONG, getattr(config, "max_position_embeddings", LONG) or LONG)
    ids = torch.randint(num_rows(lm.model), (1, length), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        states = lm.model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)[0]
    return Seen(token_ids(lm.tokenizer, [SAMPLE])[0], states.clone())


def compare(order: Order, folder: Path, last: int | None, expected: Seen) -> None:
    """Raises ValueError where what was written is not the unlearned model."""
    with working("Reading the export back"):
        found = seen(order.load(str(folder), last))
    if found.tokens != expected.tokens:
        raise ValueError(
            f"the export's tokenizer is not that of {order.source}; nothing was kept. This is a fault of misdirect"
        )
    if not torch.equal(found.states, expected.states):
        off = (found.states - expected.states).abs().max().item()
        raise ValueError(
            f"the export's states are off by up to {off:.3g}; nothing was kept. This is a fault of misdirect"
        )


def rounding(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], rounded: Mapping[str, Tensor], dtype: torch.dtype
) -> list[str]:
    """What part of the change the files' dtype takes away."""
    lost = sum((rounded[name].double() - after[name].double()).square().sum().item() for name in after)
    whole = sum((after[name].double() - before[name].double()).square().sum().item() for name in after)
    if not lost:
        return ["Logits equal those of the run bit for bit"]
    share = (lost / whole) ** 0.5 if whole else 0.0
    name = str(dtype).removeprefix("torch.")
    return [f"Rounding to {name} takes {100 * share:.2g} % of the change's norm; --dtype float32 keeps all of it"]

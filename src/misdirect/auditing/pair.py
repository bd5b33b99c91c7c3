"""The two checkpoints of an audit, whoever made them: loaded in turn, never both at once.

A checkpoint is `demo`, a model folder, a hub id, a run directory (its unlearned model) or a delta file. Where the unlearned
model is a delta on the base, one model is loaded and the delta swapped in and out.
"""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from misdirect import runs, storage
from misdirect.data.tokens import token_ids
from misdirect.model import sources
from misdirect.model.delta import Delta, load_delta, swapped_in
from misdirect.model.finite import about, not_finite
from misdirect.model.identity import check_same_base, model_hash
from misdirect.model.lm import LM
from misdirect.model.load import load_lm
from misdirect.model.rows import num_rows, padded
from misdirect.model.score import forward
from misdirect.progress import note

Model = Literal["base", "unlearned"]
MODELS: tuple[Model, Model] = ("base", "unlearned")
Side = Callable[[Model], AbstractContextManager[LM]]
PROBE = "Question: What does the nucleus of a cell do?\nAnswer: 3.14 \u00e9 \u6f22\u5b57 \U0001f600\t(A) B."


@dataclass(frozen=True)
class Checkpoint:
    """A model's source, and the delta that makes it another one.

    `base`: what an adapter is put on, and whose tokenizer a folder without one takes.
    """

    source: str
    delta: Path | None = None
    base: str | None = None


@dataclass(frozen=True)
class Loading:
    device: str = "auto"
    dtype: str = "auto"
    trust_remote_code: bool = False
    allow_pickle: bool = False


def checkpoint(target: str, base: str | None = None) -> Checkpoint:
    """What TARGET names. A delta file needs `base`, the model that it changes. Raises ValueError for an unfinished run."""
    path = Path(target).expanduser()
    if target == "demo":  # the model, also where a folder has that name
        return Checkpoint(target)
    if path.suffix == ".safetensors" and path.is_file():
        if sources.is_adapter_file(path):
            raise ValueError(f"{target} {sources.file_kind(path)}")
        if base is None:
            raise ValueError(f"{target} is a delta, not a model; expected it as the second of BASE UNLEARNED")
        return Checkpoint(base, path)
    if runs.is_run(path):
        runs.require_run(path)
        return Checkpoint(storage.read_json(path / runs.CONFIG)["model"], path / runs.DELTA)
    two_adapters = base is not None and sources.find_adapter(target) and sources.find_adapter(base)
    return Checkpoint(target, base=None if two_adapters else base)  # of two adapters each is put on what it names


def refuse_changed_base(base: str, first: Checkpoint, unlearned: str) -> None:
    """Raises ValueError for an adapter on a run's unlearned model, of which there is no whole checkpoint to load it on."""
    if first.delta is not None and sources.find_adapter(unlearned) is not None:
        raise ValueError(
            f"{unlearned} is an adapter, and {base} is a run; expected the whole model that it was trained on as BASE"
        )


def opened(base: Checkpoint, unlearned: Checkpoint, loading: Loading) -> Side:
    """A function that gives the one model or the other: `with side("base") as lm: ...`. Loading is left to the first use.

    Raises ValueError, at that moment, where the two do not fit each other (other tokenizers, other shapes), or where one
    gives no numbers.
    """
    held: dict[str, LM] = {}  # one at most
    deltas: dict[Path, Delta] = {}
    seen: dict[str, Likeness] = {}
    sound: set[Model] = set()

    def model_of(point: Checkpoint) -> LM:
        source = point.source
        if source not in held:
            held.clear()
            gc.collect()
            options = (loading.device, loading.dtype, loading.trust_remote_code, loading.allow_pickle)
            held[source] = load_lm(source, None, *options, base=point.base, tell=source not in seen)
            seen[source] = likeness(held[source])
            refuse_unlike(seen)
        return held[source]

    @contextmanager
    def side(model: Model) -> Iterator[LM]:
        point = base if model == "base" else unlearned
        lm = model_of(point)
        if point.delta is not None and point.delta not in deltas:
            deltas[point.delta] = load_delta(point.delta)
            refuse_other_origin(lm, point.delta, deltas[point.delta])
        with swapped_in(deltas[point.delta], lm.model) if point.delta is not None else nullcontext():
            if model not in sound:
                refuse_unsound(lm, model)
                sound.add(model)
            yield lm

    return side


def refuse_other_origin(lm: LM, path: Path, delta: Delta) -> None:
    """Raises ValueError where a run's delta is to be put on other weights than it was made from. Of one that has left its
    run the dtype is not known, in which it was made: there it is said."""
    if runs.is_run(path.parent):
        check_same_base(lm, path.parent)
        return
    made_from, method = (delta.metadata.get(key) for key in ("model_sha256", "method"))
    inside = (name.removeprefix(f"{lm.block_prefix}.").partition(".")[0] for name in delta.tensors)
    blocks = [int(index) for index in inside if index.isdecimal()] if method == "rmu" else [lm.num_hidden_layers - 1]
    if made_from and blocks and model_hash(lm, max(blocks)) != made_from:
        dtype = str(lm.model.dtype).removeprefix("torch.")
        note(
            f"{path} was made from other weights than {lm.source} has here, or in another dtype than {dtype}; where not by the "
            "dtype, expected the model that it was made from"
        )


@torch.inference_mode()
def refuse_unsound(lm: LM, model: Model) -> None:
    """Raises ValueError where a line of text gives logits that are not finite: everything that follows would be for nothing.

    A line that is fine does not prove others fine: those are looked at as they are asked. A vocabulary's padding may be -inf.
    """
    batch = padded(lm, token_ids(lm.tokenizer, [PROBE]), what="a line of text")
    logits = forward(lm, batch.input_ids, batch.attention_mask, keep=batch.input_ids.shape[1]).logits
    if not logits.amax(-1).isfinite().all():
        with about(f"the {model} model"):
            raise not_finite(lm, "a line of text")


class Likeness(NamedTuple):
    """What two checkpoints must have alike to be a pair."""

    tokens: list[int]
    shapes: dict[str, tuple[int, ...]]


def likeness(lm: LM) -> Likeness:
    known = min(len(lm.tokenizer), num_rows(lm.model))  # a token without a row is never read
    probe = [known, *token_ids(lm.tokenizer, [PROBE])[0]]
    return Likeness(probe, {name: tuple(p.shape) for name, p in lm.model.named_parameters()})


def refuse_unlike(seen: Mapping[str, Likeness]) -> None:
    """Raises ValueError where two models cannot be audited as a pair."""
    for (first, mine), (second, theirs) in itertools.pairwise(seen.items()):
        if mine.tokens != theirs.tokens:
            raise ValueError(
                f"{first} and {second} have different tokenizers; expected one model and a changed copy of it"
            )
        for name in mine.shapes.keys() | theirs.shapes.keys():
            if mine.shapes.get(name) != theirs.shapes.get(name):
                raise ValueError(
                    f"{name} is {mine.shapes.get(name, 'missing')} in {first} and {theirs.shapes.get(name, 'missing')} in "
                    f"{second}; expected one model and a changed copy of it"
                )

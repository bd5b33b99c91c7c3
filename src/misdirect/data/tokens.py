"""A text as token ids: with what the tokenizer puts before it (BOS, [CLS]), without what it appends (EOS, [SEP]).

What is appended would be scored as part of every answer and would end every prompt. It is found by structure: a few short
texts are encoded with and without special tokens. Every text of the project comes through here, the published arithmetic
aside (`misdirect.unlearning.published.as_samples`), which calls the tokenizer as the published code does. An end-of-text token
that a text itself spells out stays.

    token_ids(tokenizer, ["A cell has a wall."])    # of a tokenizer that appends nothing: its own ids
"""

from __future__ import annotations

import copy
import itertools
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

PROBES = ("a", "b", "The house is old.", "7", "\u6f22")


class Framing(NamedTuple):
    """What a tokenizer puts before and behind every text."""

    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()  # left away by `add_special_tokens=False`
    fixed: tuple[int, ...] = ()  # behind every text even then


# With the ids of one probe, by which a tokenizer that was changed since is told
_known: weakref.WeakKeyDictionary[Any, tuple[list[int], Framing]] = weakref.WeakKeyDictionary()


def token_ids(tokenizer: Any, texts: Sequence[str], start: bool = True) -> list[list[int]]:
    """Each text's tokens, nothing appended; with `start`, after what the tokenizer puts before a text."""
    if not texts:  # a tokenizer takes no empty list
        return []
    found = framing(tokenizer)
    ids = encoded(tokenizer, texts, special=start and not found.after)
    if found.fixed:
        ids = [x[: -len(found.fixed)] if tuple(x[-len(found.fixed) :]) == found.fixed else x for x in ids]
    return [[*found.before, *x] for x in ids] if start and found.after else ids


def starting_ids(tokenizer: Any) -> list[int]:
    """What the tokenizer puts before a text."""
    return list(framing(tokenizer).before)


def encoded(tokenizer: Any, texts: Sequence[str], special: bool) -> list[list[int]]:
    """The tokenizer's own ids. `verbose=False`: a text longer than the model's context is cut by us, or refused."""
    arguments = {} if special else {"add_special_tokens": False}
    return [list(ids) for ids in tokenizer(list(texts), verbose=False, **arguments)["input_ids"]]


def framing(tokenizer: Any) -> Framing:
    probe = encoded(tokenizer, PROBES[:1], special=True)[0]
    if tokenizer not in _known or _known[tokenizer][0] != probe:
        _known[tokenizer] = (probe, measured(tokenizer))
    return _known[tokenizer][1]


def measured(tokenizer: Any) -> Framing:
    """Where the probes disagree (their own ids depend on special tokens), all that can be told is a common special end."""
    full, bare = (encoded(tokenizer, PROBES, special) for special in (True, False))
    cuts = {around(whole, ids) for whole, ids in zip(full, bare, strict=True) if ids}
    if len(cuts) == 1 and (cut := cuts.pop()) is not None:
        return Framing(*cut, fixed=special_end(tokenizer, bare))
    return Framing(fixed=special_end(tokenizer, full))


def around(whole: Sequence[int], ids: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """(what stands before `ids` in `whole`, what stands behind); None where `whole` does not hold `ids`."""
    starts = range(len(whole) - len(ids), -1, -1)
    at = next((at for at in starts if whole[at : at + len(ids)] == ids), None)
    return None if at is None else (tuple(whole[:at]), tuple(whole[at + len(ids) :]))


def special_end(tokenizer: Any, found: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """The special tokens that all of these end with. The unknown token is none: it may be all that there is."""
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    columns = zip(*(reversed(ids) for ids in found), strict=False)
    alike = itertools.takewhile(lambda column: len({*column}) == 1 and column[0] in special, columns)
    end = tuple(column[0] for column in alike)[::-1]
    return end if len({tuple(ids) for ids in found}) > 1 else ()


def steadied(tokenizer: Any, source: str) -> float:
    """Turns off what splits a text by chance (BPE dropout, Provilkov et al. 2020, arXiv 1910.13267); how strong it was.

    Raises ValueError where a line's ids still differ from call to call.
    """
    model = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    was = float(getattr(model, "dropout", None) or 0.0)
    if model is not None and was:
        model.dropout = None
    line = " ".join(PROBES * 4)
    if len({tuple(encoded(tokenizer, [line], special=False)[0]) for _ in range(3)}) > 1:
        raise ValueError(
            f"the tokenizer of {source} splits a text by chance, so no value would be the same twice; expected one that does "
            "not (enable_sampling false)"
        )
    return was


def appending_nothing(tokenizer: Any) -> Any:
    """A copy that appends nothing, for code of others that calls it. Raises ValueError where that cannot be had."""
    made, found = copy.deepcopy(tokenizer), framing(tokenizer)
    if not (found.after or found.fixed):
        return made
    if hasattr(made, "backend_tokenizer"):
        from tokenizers.processors import TemplateProcessing

        names = [f"<{number}>" for number in range(len(found.before))]  # of ours: a token's own may hold what is syntax
        special = list(zip(names, found.before, strict=True))
        made.backend_tokenizer.post_processor = TemplateProcessing([*names, "$A"], special_tokens=special)
    else:
        made.build_inputs_with_special_tokens = lambda ids, pair=None: [*found.before, *ids]
    left = measured(made)
    if left.after or left.fixed:
        raise ValueError(
            f"{type(tokenizer).__name__} appends a token to every text, and lm-evaluation-harness would score it; "
            "expected a tokenizer that appends nothing"
        )
    return made

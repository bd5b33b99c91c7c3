"""Token ids and the rows of the embedding table: batches on the model's device, every id in them with a row.

A tokenizer may know tokens that the model has no embedding for: `[PAD]` or chat tokens that were added without resizing.
As padding such a token does no harm, since what stands there is masked: another id stands in for it. In a text it is
refused by name; a GPU would stop with an assertion of the device, and everything after it would fail too.

    batch = padded(lm, [[5, 6, 7], [8, 9]])
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from misdirect.data.batches import Batch, pad, pad_id
from misdirect.model.lm import LM
from misdirect.text import shown

RESIZED = "text without it, or a checkpoint whose embeddings were resized to its tokenizer"


def num_rows(model: Any) -> int:
    """Ids that the model both reads and predicts: Mllama's head has no row for its image token. Without a model, as in a
    plan, no id is refused here."""
    if model is None:
        return sys.maxsize
    embedded = int(model.get_input_embeddings().weight.shape[0])
    return min(embedded, getattr(model.get_output_embeddings(), "out_features", embedded))


def fill_id(lm: LM) -> int:
    """The id that stands where there is no text: the tokenizer's padding, else its end of text, else 0; with a row."""
    rows = num_rows(lm.model)
    wanted = (pad_id(lm.tokenizer), lm.tokenizer.eos_token_id, 0)
    return next(int(token) for token in wanted if token is not None and 0 <= token < rows)


def padded(lm: LM, samples: Sequence[Sequence[int]], left: bool = False, what: str = "a text") -> Batch:
    """Samples of unequal length as one `Batch` on the model's device. Raises ValueError for an id without a row."""
    check_rows(lm, samples, what)
    return pad(samples, fill_id(lm), left=left).to(lm.device)


def check_rows(lm: LM, samples: Iterable[Sequence[int]], what: str, expected: str = RESIZED) -> None:
    """Raises ValueError, naming the token, where an id has no row in the model's embedding table."""
    refuse_rowless(lm.tokenizer, num_rows(lm.model), lm.source, samples, what, expected)


def refuse_rowless(
    tokenizer: Any, rows: int, source: str, samples: Iterable[Sequence[int]], what: str, expected: str = RESIZED
) -> None:
    """As `check_rows`, of a model that is not loaded."""
    for ids in samples:
        if ids and (max(ids) >= rows or min(ids) < 0):
            odd = next(token for token in ids if not 0 <= token < rows)
            raise ValueError(
                f"{what} holds {named(tokenizer, odd)}, and {source} has embeddings for {rows} tokens, 0 to {rows - 1}; "
                f"expected {expected}"
            )


def named(tokenizer: Any, token: int) -> str:
    """A token as it is written, and its id."""
    text = tokenizer.convert_ids_to_tokens(token) if token >= 0 else None
    return f"the token {shown(str(text), 40)!r} (id {token})" if text is not None else f"the token id {token}"


def rowless(tokenizer: Any, rows: int) -> Mapping[int, str]:
    """The tokenizer's tokens that have no row, by id."""
    return {i: token for token, i in sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1]) if i >= rows}

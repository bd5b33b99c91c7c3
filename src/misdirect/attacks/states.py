"""Residual states at the tokens of interest of many questions, before block 0 and after every block, from one pass each.

A question is an `Encoded`: its context, and its continuations behind it. Wanted are the states at the positions that
predict the continuations' tokens: the context's last token and the continuation's tokens but the last. Where the model
takes it, questions are packed into rows without padding, the context shared by its continuations
(`misdirect.model.packed`); elsewhere every continuation is a padded row of its own. The pass ends after the last block.

    for seen in read(lm, items):
        seen.states[8][seen.at]               # (M, D): after block 7, where each token is predicted
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from misdirect.model.load import LM
from misdirect.model.packed import Encoded


class Seen(NamedTuple):
    """One pass: N states at each of L + 1 places, and the M predictions made from them."""

    states: list[Float[Tensor, "N D"]]
    at: Int[Tensor, " M"]  # which state predicts
    targets: Int[Tensor, " M"]  # which token
    owner: list[tuple[int, int]]  # of which item and continuation, M of them in the tokens' order
    items: list[int]  # the items of this pass, each wholly in it


def read(
    lm: LM, items: Sequence[Encoded], batch_tokens: int = 4096, advance: Callable[[int], None] | None = None
) -> Iterator[Seen]:
    """Raises ValueError for an architecture that has no single residual stream through all of its blocks."""
    raise NotImplementedError


def last_states(
    lm: LM, items: Sequence[Encoded], batch_tokens: int = 4096, advance: Callable[[int], None] | None = None
) -> Float[Tensor, "P N D"]:
    """The states at the LAST token of every continuation, item by item: P = L + 1 places, in fp32 on the CPU."""
    raise NotImplementedError

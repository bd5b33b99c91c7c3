"""Numbers that are not finite: nothing is computed from a log-probability that is NaN or infinite.

A model with NaN in one matrix, an overflow in half precision or a change with huge values gives such log-probabilities on
some texts or on all of them. Whoever counts them as wrong answers finds a model that has unlearned everything.

    with about("unlearned, biology"):
        score(lm, items)        # NotFinite: unlearned, biology: demo gives NaN or infinity for 3 of 300 questions, ...
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch


class NotFinite(ValueError):
    """A model's numbers are NaN or infinite. A ValueError, so that the command line prints its line and exits with 2."""


@contextmanager
def about(what: str) -> Iterator[None]:
    """Around a measurement: what is measured (the side, the set) stands before the message."""
    try:
        yield
    except NotFinite as error:
        raise NotFinite(f"{what}: {error}") from None


def spoilt(rows: Iterable[Iterable[float]]) -> list[int]:
    """The rows that hold NaN or infinity, by number."""
    return [number for number, row in enumerate(rows) if not all(map(math.isfinite, row))]


def check_finite(lm: Any, rows: Sequence[Iterable[float]], what: str) -> None:
    """Raises NotFinite where a row holds NaN or infinity: how many rows of how many, and what to type."""
    if bad := len(spoilt(rows)):
        raise not_finite(lm, f"{bad} of {len(rows)} {what}")


def not_finite(lm: Any, which: str) -> NotFinite:
    return NotFinite(
        f"{lm.source} gives NaN or infinity for {which}, and nothing is computed from that; expected {remedy(lm.model)}"
    )


def remedy(model: Any) -> str:
    """What to type, from where the weights themselves are not numbers and from their dtype."""
    holed = next((name for name, value in model.named_parameters() if not value.isfinite().all()), None)
    low = next(model.parameters()).dtype in (torch.float16, torch.bfloat16)
    if holed is not None:
        cause = f"{holed} without NaN and infinity: fetch or unlearn the model again"
        return f"{cause}, or try --dtype float32" if low else cause
    if low:
        return "--dtype float32"
    return "weights that do not overflow: fetch the model again, or unlearn with a smaller --lr or --steering"

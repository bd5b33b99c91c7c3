"""The only place where hooks are registered on a model, and what a decoder block takes and gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor


def split_hidden(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, tuple[Any, ...], dict[str, Any]]:
    """(hidden state, the other positional arguments, the other keywords) of a call to a block."""
    if args:
        return args[0], args[1:], dict(kwargs)
    rest = dict(kwargs)
    return rest.pop("hidden_states"), (), rest


def first_output(output: Any) -> Tensor:
    """A block returns its hidden state, alone or as the first of several."""
    return output[0] if isinstance(output, tuple | list) else output


@contextmanager
def hooked(handles: Sequence[Callable[[], Any]]) -> Iterator[None]:
    """Registers hooks, and removes every one of them whatever happens."""
    placed = []
    try:
        for place in handles:
            placed.append(place())
        yield
    finally:
        for handle in placed:
            handle.remove()

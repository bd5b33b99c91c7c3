"""Changes to what flows through a model while it runs.

    with blocks_changed(lm, {7: lambda h: h - (h @ r).unsqueeze(-1) * r}):    # ablate the unit direction r after block 7
        ...                                                                   # score, generate, anything

Inside the block the model is another one; its weights are not touched, and outside it is itself again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from misdirect.model.activations import first_output, hooked
from misdirect.model.load import LM

Change = Callable[[Tensor], Tensor]  # (B, T, D) -> (B, T, D)


def replaced(output: Any, hidden: Tensor) -> Any:
    """A block's output with another hidden state."""
    return type(output)((hidden, *output[1:])) if isinstance(output, tuple | list) else hidden


@contextmanager
def blocks_changed(lm: LM, changes: Mapping[int, Change]) -> Iterator[None]:
    """`changes`: zero-based block -> what becomes of the residual stream after it."""
    blocks = lm.blocks

    def hook(change: Change) -> Callable[..., Any]:
        return lambda module, args, output: replaced(output, change(first_output(output)))

    with hooked([lambda i=i, c=c: blocks[i].register_forward_hook(hook(c)) for i, c in changes.items()]):  # type: ignore[misc]
        yield


@contextmanager
def embeddings_changed(
    lm: LM, change: Callable[[Int[Tensor, "B T"], Float[Tensor, "B T D"]], Tensor]
) -> Iterator[None]:
    """`change(ids, embeddings)` stands in for what the embedding table gives."""
    table = lm.model.get_input_embeddings()

    def hook(module: Any, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return change(args[0], output)

    with hooked([lambda: table.register_forward_hook(hook)]):
        yield

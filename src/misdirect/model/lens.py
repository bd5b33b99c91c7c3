"""The logit lens: what every block's residual state says when the model's own last step reads it (nostalgebraist 2020).

The state after block i takes the place of the last block's output, and the model does the rest itself: final norm,
unembedding, and whatever scaling or capping of logits its architecture has. So nothing of that is known here by name, and
the lens at the last block is the model. A choice's score is the summed log-probability of its tokens, as everywhere, each
read from the state of the same block; one forward pass a question gives the states of all blocks.

    points = lens(lm, items)                                      # [block][item][choice] log-probabilities
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from misdirect.model.finite import about, check_finite
from misdirect.model.hooks import hooked
from misdirect.model.interventions import replaced
from misdirect.model.lm import LM
from misdirect.model.packed import Encoded
from misdirect.model.rows import fill_id
from misdirect.model.score import at_least_fp32, forward
from misdirect.model.states import read, states_at

MAX_LOGITS = 2**25  # numbers read out at once: 128 MB in fp32


@torch.inference_mode()
def lens(
    lm: LM, items: Sequence[Encoded], batch_tokens: int = 4096, advance: Callable[[int], None] | None = None
) -> list[list[list[float]]]:
    """[block][item][choice]: summed log-probabilities. Raises ValueError where the last block's are not the model's own."""
    check(lm)
    out: list[list[list[float]]] = [[[] for _ in items] for _ in lm.blocks]
    for seen in read(lm, items, batch_tokens, advance):
        count = sum(len(items[i].continuations) for i in seen.items)
        for block, states in enumerate(seen.states[1:]):
            values = logprobs_at(lm, states, seen.at, seen.targets)
            sums = iter(values.new_zeros(count).index_add_(0, seen.owner, values).tolist())
            for i in seen.items:
                out[block][i] = [next(sums) for _ in items[i].continuations]
    for block, found in enumerate(out):
        with about(f"block {block}"):
            check_finite(lm, found, "questions")
    return out


def logprobs_at(
    lm: LM, states: Float[Tensor, "N D"], at: Int[Tensor, " M"], targets: Int[Tensor, " M"]
) -> Float[Tensor, " M"]:
    """log p of each target read out of the state `at` which it is predicted, a part of the states at a time."""
    rows = max(1, MAX_LOGITS // lm.model.get_output_embeddings().weight.shape[0])
    out: Tensor | None = None
    for start in range(0, len(states), rows):
        logits = at_least_fp32(read_out(lm, states[start : start + rows]))
        mine = (at >= start) & (at < start + rows)
        found = logits[at[mine] - start, targets[mine]] - logits.logsumexp(-1)[at[mine] - start]
        out = found.new_empty(len(at)) if out is None else out
        out[mine] = found
    assert out is not None
    return out


@torch.inference_mode()
def read_out(lm: LM, states: Float[Tensor, "N D"]) -> Float[Tensor, "N V"]:
    """Logits of the model whose last block gave these states: a pass over one token, its last output replaced by them."""

    def put(module: Any, args: Any, output: Any) -> Any:
        return replaced(output, states.unsqueeze(1))

    one = torch.full((1, 1), fill_id(lm), device=lm.device)
    with hooked([lambda: lm.blocks[-1].register_forward_hook(put)]):
        logits = forward(lm, one, torch.ones_like(one), keep=1).logits
    return logits.flatten(0, -2)


@torch.inference_mode()
def check(lm: LM, length: int = 5) -> None:
    """Raises ValueError where what the last block's states give is not what the model says: a tail of another form."""
    ids = torch.arange(length, device=lm.device).unsqueeze(0)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    own = lm.model(**inputs, use_cache=False).logits[0]
    last = states_at(lm, inputs, torch.arange(length))[-1]
    allowed = 2e-3 if own.dtype in (torch.float32, torch.float64) else 0.3
    try:
        again = read_out(lm, last)
    except RuntimeError:  # a tail that folds the states by the shape of the ids (GPT-BigCode)
        again = own[:0]
    if again.shape != own.shape or not torch.allclose(again, own, rtol=0, atol=allowed, equal_nan=True):
        raise ValueError(
            f"the states after the last block of {type(lm.model).__name__} do not give the model's own logits; "
            "expected another architecture, or --skip lens"
        )

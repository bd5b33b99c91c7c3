"""Finetuning as an attacker does it, full or LoRA, inside a block after which the model has its old bits again.

AdamW (betas 0.9 and 0.999, no weight decay), constant learning rate, gradient norm clipped at 1, the mean negative
log-likelihood of all tokens but a sample's first. Texts are joined with the end-of-text token and cut into samples of equal
length, so that an update always costs the attacker the same number of tokens.

    with trained(lm, "full") as parameters:
        for step, tokens in train(lm, parameters, samples, steps=60, lr=2e-5, batch_size=4, seed=0): ...
"""

from __future__ import annotations

import importlib.util
import math
import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from misdirect.data.batches import sample_schedule, tokenize
from misdirect.model import rope
from misdirect.model.lm import LM
from misdirect.model.rows import num_rows, padded
from misdirect.model.score import forward

Method = Literal["full", "lora"]
CLIP = 1.0
LORA_RANK, LORA_ALPHA = 16, 32


def tokenized_texts(lm: LM, texts: Sequence[str], max_tokens: int, seed: int) -> list[list[int]]:
    """The texts in a seeded order, joined with the end-of-text token, in samples of `max_tokens` (the last one shorter)."""
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed)).tolist()
    longest = max(len(text.encode("utf-8", "surrogatepass")) for text in texts) + 2  # so many tokens at most
    encoded = tokenize(lm.tokenizer, [texts[i] for i in order], longest)
    end = lm.tokenizer.eos_token_id
    between = [end] if end is not None and end < num_rows(lm.model) else []
    flat = [token for ids in encoded for token in (*ids, *between)]
    cut = [flat[i : i + max_tokens] for i in range(0, len(flat), max_tokens)]
    return [sample for sample in cut if len(sample) >= 2]


def has_peft() -> bool:
    return importlib.util.find_spec("peft") is not None


@contextmanager
def trained(lm: LM, method: Method) -> Iterator[list[nn.Parameter]]:
    """Yields the parameters to train; afterwards the model is what it was, bit for bit, whatever happened inside.

    LoRA goes on every linear layer of the blocks (PEFT's `all-linear`), rank 16, scaled by 2.
    """
    if method == "lora":
        with adapted(lm) as parameters:
            yield parameters
        return
    parameters = list(lm.model.parameters())
    before = [(p.data, p.requires_grad) for p in parameters]
    try:
        for p in parameters:
            p.data = p.data.clone()
            p.requires_grad_(p.is_floating_point())
        yield [p for p in parameters if p.requires_grad]
    finally:
        for p, (value, wanted) in zip(parameters, before, strict=True):
            p.data = value
            p.requires_grad_(wanted)
            p.grad = None


@contextmanager
def adapted(lm: LM) -> Iterator[list[nn.Parameter]]:
    """LoRA adapters put into the model in place, and taken out again."""
    from peft import LoraConfig, get_peft_model

    wanted = [p.requires_grad for p in lm.model.parameters()]
    random = torch.get_rng_state()
    config = LoraConfig(r=LORA_RANK, lora_alpha=LORA_ALPHA, lora_dropout=0.0, target_modules="all-linear")
    wrapped: Any = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on how GPT-2 stores its matrices, which PEFT then sets right
            torch.manual_seed(0)  # PEFT draws the adapters from the global generator
            wrapped = get_peft_model(lm.model, config)
        torch.set_rng_state(random)
        yield [p for p in lm.model.parameters() if p.requires_grad]
    finally:
        torch.set_rng_state(random)
        if wrapped is not None:
            wrapped.unload()
            if hasattr(lm.model, "peft_config"):
                del lm.model.peft_config
        for p, flag in zip(lm.model.parameters(), wanted, strict=True):
            p.requires_grad_(flag)
            p.grad = None


def train(
    lm: LM,
    parameters: Sequence[nn.Parameter],
    samples: Sequence[Sequence[int]],
    steps: int,
    lr: float,
    batch_size: int,
    seed: int,
) -> Generator[tuple[int, int], None, None]:
    """Yields (its number from 1, tokens it read) after each update. Raises ValueError where the loss is not a finite number."""
    masters = [p.detach().float().clone().requires_grad_() if low(p) else p for p in parameters]
    optimizer = torch.optim.AdamW(masters, lr=lr, weight_decay=0.0, fused=True)
    for step, rows in enumerate(sample_schedule(len(samples), steps, batch_size, seed), 1):
        chosen = [samples[row] for row in rows]
        for group in rope.apart(lm.model, list(map(len, chosen))):
            loss = loss_of(lm, [chosen[i] for i in group], sum(map(len, chosen)) - len(chosen))
            if not math.isfinite(loss.item()):
                raise ValueError(
                    f"finetuning broke down at update {step}, loss {loss.item()}; expected a smaller --lr than {lr:g}"
                )
            loss.backward()
        for master, p in zip(masters, parameters, strict=True):
            if master is not p:
                master.grad = None if p.grad is None else p.grad.float()
        torch.nn.utils.clip_grad_norm_(masters, CLIP)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for master, p in zip(masters, parameters, strict=True):
                if master is not p:
                    p.copy_(master)
                p.grad = None
        yield step, sum(map(len, chosen))


def low(parameter: Tensor) -> bool:
    """Whether updates of finetuning's size would be lost in the parameter's own precision."""
    return parameter.dtype in (torch.bfloat16, torch.float16)


@torch.enable_grad()
def loss_of(lm: LM, samples: Sequence[Sequence[int]], total: int) -> Tensor:
    """What samples of one pass add to the mean over the `total` tokens that count in an update."""
    batch = padded(lm, samples, what="a text to train on")
    logits = forward(lm, batch.input_ids, batch.attention_mask, keep=batch.input_ids.shape[1]).logits
    return nll(logits, batch.input_ids, batch.loss_mask, total)


def nll(logits: Tensor, ids: Tensor, counts: Tensor, total: int | None = None) -> Tensor:
    """Mean negative log-likelihood of the tokens that count; of `total` tokens, where others are in other passes."""
    targets = ids.roll(-1, dims=1).flatten()  # the last logits of a row predict nothing, and are left out below
    found = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), targets, reduction="none")
    kept = counts.roll(-1, dims=1)
    kept[:, -1] = False
    kept = kept.flatten()
    return (found * kept).sum() / (kept.sum() if total is None else total)

"""AdamW on plain tensors, so that its state is three lines of a checkpoint: with torch's arithmetic, or the published."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

BETAS = (0.9, 0.999)
EPS_CLEAN, EPS_PUBLISHED = 1e-8, 1e-6


def adamw_step(
    weight: Tensor, gradient: Tensor, first: Tensor, second: Tensor, step: int, lr: float, published: bool = False
) -> None:
    """One AdamW update without weight decay, in place; `step` counts from 1, moments are in the weight's dtype.

    `published` is the optimizer of the published code: eps 1e-6 is added to the root of the second moment BEFORE bias
    correction, so that the effective eps is eps / sqrt(1 - 0.999^step), a hidden warm-up.
    """
    beta1, beta2 = BETAS
    first.mul_(beta1).add_(gradient, alpha=1 - beta1)
    second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    correction1, correction2 = 1 - beta1**step, 1 - beta2**step
    if published:
        weight.addcdiv_(first, second.sqrt().add_(EPS_PUBLISHED), value=-lr * math.sqrt(correction2) / correction1)
    else:
        weight.addcdiv_(first, (second.sqrt() / math.sqrt(correction2)).add_(EPS_CLEAN), value=-lr / correction1)


def learning_rate(step: int, updates: int, peak: float, warmup: int, schedule: str) -> float:
    """The rate of update `step` (from 0): a linear rise over `warmup` updates, then constant, linear or cosine to zero."""
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, updates - warmup)
    factor = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[schedule]
    return peak * factor


def clip(gradients: Mapping[str, Tensor], largest: float) -> float:
    """Scales all gradients together to norm `largest` at most (0: leaves them); returns the norm before."""
    norm = torch.sqrt(sum((g.float().square().sum() for g in gradients.values()), torch.tensor(0.0))).item()
    if largest and norm > largest:
        for gradient in gradients.values():
            gradient.mul_(largest / norm)
    return norm

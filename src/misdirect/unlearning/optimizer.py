"""AdamW on plain tensors, so that its state is three lines of a checkpoint; the learning rate; the gradient's norm."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

BETAS, EPS = (0.9, 0.999), 1e-8


def update_moments(gradient: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, step: int) -> tuple[float, float]:
    """Both moments in place; returns their bias corrections. `step` counts from 1."""
    beta1, beta2 = BETAS
    exp_avg.mul_(beta1).add_(gradient, alpha=1 - beta1)
    exp_avg_sq.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    return 1 - beta1**step, 1 - beta2**step


def adamw_step(weight: Tensor, gradient: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, step: int, lr: float) -> None:
    """One AdamW update without weight decay, in place, as torch's; `step` counts from 1, moments are in the weight's dtype."""
    correction1, correction2 = update_moments(gradient, exp_avg, exp_avg_sq, step)
    weight.addcdiv_(exp_avg, (exp_avg_sq.sqrt() / math.sqrt(correction2)).add_(EPS), value=-lr / correction1)


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

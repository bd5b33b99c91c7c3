"""Gaussian noise on every matrix: w' = w + share * std(w) * n, n ~ N(0, 1), std(w) the matrix' own.

Noise asks how finely the unlearning is tuned: an edit that hangs on a precise direction breaks before the knowledge does.
The same n at every share, drawn on the CPU from the seed and the matrix' name, so that points differ in strength alone.

    with weights_changed(lm, lambda matrix, weight: noisy(weight, 0.1, seed_of(0, matrix.name))): ...
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from misdirect.attacks import weights
from misdirect.attacks.interface import Advance, Attack, AttackInputs
from misdirect.attacks.scoring import Point
from misdirect.config import AuditConfig
from misdirect.model.interventions import Matrix
from misdirect.model.lm import LM
from misdirect.runs import Result

SHARES = (0.01, 0.03, 0.1, 0.2, 0.3)


@dataclass(frozen=True)
class Settings:
    shares_of_std: tuple[float, ...]
    seed: int


def seed_of(seed: int, name: str) -> int:
    return zlib.crc32(f"noise:{seed}:{name}".encode())


def noisy(weight: Float[Tensor, "E O I"], share: float, seed: int) -> Float[Tensor, "E O I"]:
    """Noise of `share` times the standard deviation of each expert's matrix."""
    draw = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed)).to(weight.device)
    return weight + share * weight.std((1, 2), keepdim=True, correction=0) * draw


def attacks(inputs: AttackInputs, config: AuditConfig) -> list[Attack]:
    return [
        Attack(
            name="noise-gaussian",
            family="noise",
            title="Gaussian noise on every matrix",
            attacker_access="weights",
            settings=Settings(SHARES, inputs.seed),
            cost=weights.cost(len(SHARES)),
            num_steps=len(SHARES) + 1,
            run=run,
        )
    ]


def run(lm: LM, inputs: AttackInputs, attack: Attack, advance: Advance) -> list[Result]:
    settings: Settings = attack.settings

    def rewrite(matrix: Matrix, weight: Tensor, share: float) -> Tensor:
        return noisy(weight, share, seed_of(settings.seed, matrix.name))

    levels = [(Point(budget=share), partial(rewrite, share=share)) for share in settings.shares_of_std]
    return weights.run_levels(lm, inputs, attack, advance, levels)

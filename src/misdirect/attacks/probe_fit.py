"""Linear probes: logistic regression on the states of every block at once, exactly.

For standardised features z_i and targets t_i a probe minimises, as scikit-learn's `LogisticRegression` does,

    C * sum_i loss(t_i, f_i) + |w|^2 / 2,      f_i = w . z_i + b,      the intercept b free.

Two classes take the sigmoid's loss, more the softmax'. The loss curves at most c (1/4 for the sigmoid, 1/2 for the
softmax; Boehning 1992), so each step is a ridge regression with fixed weights on the working response u:

    u = f + (t - p(f)) / c,      f <- H u + mean(u),      H = K (K + I / (C c))^-1,      K = Z Z^T.

H is made once a block and serves every step, every class and every shuffle of the labels, and the width D is gone after
K: a step is one product of N x N with the responses. Steps are accelerated (Nesterov 1983), and the momentum of a problem
whose objective rises starts again (O'Donoghue and Candes, arXiv 1204.3982). At the end w = Z^T a with a = C (t - p(f)).

    fitted = fit(states[:, train], targets, torch.tensor([1e-3] * num_blocks))
    scores = decide(fitted, states[:, test])                       # (B, M, T, K)
"""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

MOST_STEPS = 2000
TOLERANCE = 1e-6  # of a - C (t - p(f)), in units of C: probabilities


class Fitted(NamedTuple):
    """Probes of B blocks for T problems of K classes each (K = 1: the sigmoid), over standardised features."""

    weights: Float[Tensor, "B D T K"]
    intercepts: Float[Tensor, "B T K"]
    mean: Float[Tensor, "B D"]
    scale: Float[Tensor, "B D"]
    num_steps: int


def fit(states: Float[Tensor, "B N D"], targets: Float[Tensor, "N T K"], strength: Float[Tensor, " B"]) -> Fitted:
    """The probes of every block. `targets`: 0 or 1; over K > 1 classes they sum to 1. `strength`: C of each block."""
    raise NotImplementedError


def decide(fitted: Fitted, states: Float[Tensor, "B M D"]) -> Float[Tensor, "B M T K"]:
    """f of other texts: the larger, the likelier the class."""
    raise NotImplementedError

"""Linear probes: logistic regression on the states of every block at once, exactly.

For standardised features z_i and targets t_i a probe minimises, as scikit-learn's `LogisticRegression` does,

    C * sum_i loss(t_i, f_i) + |w|^2 / 2,      f_i = w . z_i + b,      the intercept b free.

Two classes take the sigmoid's loss, more the softmax'. The loss curves at most c (1/4 for the sigmoid, 1/2 for the
softmax; Boehning 1992), so each step is a ridge regression with fixed weights on the working response u:

    u = f + (t - p(f)) / c,      f <- H u + mean(u),      H = K (K + I / (C c))^-1,      K = Z Z^T.

H is made once a block and serves every step, every class and every shuffle of the labels, and the width D is gone after
K: a step is one product of N x N with the responses. Steps are accelerated (Nesterov 1983), and the momentum of a problem
whose objective rises starts again (O'Donoghue and Candes, arXiv 1204.3982). At the end w = Z^T a with a = C (t - p(f)).

    fitted = fit(states[:, train], targets, STRENGTH / width)
    scores = decide(fitted, states[:, test])                       # (B, M, T, K)
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

MOST_STEPS = 5000
TOLERANCE = 1e-6  # of (t - p(f)) - a / C: probabilities
WORKSPACE = 2**25  # numbers in the square matrices at work: 256 MB in float64
# C times D: the prior variance of f, since |z|^2 is near D. On the states of SmolLM2-135M two-fold cross-validation over
# 0.01, 0.1, 1 and 10 takes 1 at nearly every block, and the accuracy hardly depends on it.
STRENGTH = 1.0


class Fitted(NamedTuple):
    """Probes of B blocks for T problems of K classes each (K = 1: the sigmoid), over standardised features."""

    weights: Float[Tensor, "B D T K"]
    intercepts: Float[Tensor, "B T K"]
    mean: Float[Tensor, "B D"]
    scale: Float[Tensor, "B D"]
    num_steps: int


def fit(states: Float[Tensor, "B N D"], targets: Float[Tensor, "N T K"], strength: float) -> Fitted:
    """The probes of every block. `targets`: 0 or 1; over K > 1 classes they sum to 1. `strength`: C.

    Raises ValueError where the steps do not settle, which a far larger C than the data bear can do.
    """
    count = max(1, WORKSPACE // (4 * states.shape[1] ** 2))
    parts = [fit_some(some, targets, strength) for some in states.split(count)]
    weights, intercepts, mean, scale = (torch.cat([part[i] for part in parts]) for i in range(4))
    return Fitted(weights, intercepts, mean, scale, max(part.num_steps for part in parts))


def fit_some(states: Float[Tensor, "B N D"], targets: Float[Tensor, "N T K"], strength: float) -> Fitted:
    mean, scale = moments(states)
    z = standardised(states, mean, scale)
    coefficients, intercepts, num_steps = solve(z @ z.mT, targets.double(), strength)
    weights = (z.mT @ coefficients.flatten(2)).unflatten(2, targets.shape[1:])
    return Fitted(weights.float(), intercepts.float(), mean, scale, num_steps)


def moments(states: Float[Tensor, "B N D"]) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B D"]]:
    """(mean, standard deviation) of every feature; one that never changes is divided by 1."""
    deviation, mean = torch.std_mean(states.double(), 1, correction=0)
    return mean, torch.where(deviation > 1e-12 * (1 + mean.abs()), deviation, 1.0)


def standardised(
    states: Float[Tensor, "B N D"], mean: Float[Tensor, "B D"], scale: Float[Tensor, "B D"]
) -> Float[Tensor, "B N D"]:
    return (states.double() - mean.unsqueeze(1)) / scale.unsqueeze(1)


def solve(
    gram: Float[Tensor, "B N N"], targets: Float[Tensor, "N T K"], strength: float
) -> tuple[Float[Tensor, "B N T K"], Float[Tensor, "B T K"], int]:
    """(a, b, steps taken) at the minimum, over centred features: `gram` times a vector of ones is zero."""
    size, (_, tasks, classes) = len(gram), targets.shape
    curve = 0.25 if classes == 1 else 0.5
    smoother = ridge_smoother(gram, 1 / (strength * curve))
    f = y = gram.new_zeros(size, len(targets), tasks, classes)
    before = gram.new_full((size, 1, tasks, 1), torch.inf)
    age = torch.ones_like(before)
    for step in range(1, MOST_STEPS + 1):
        u = y + (targets - probabilities(y)) / curve
        b = u.mean(1, keepdim=True)
        new = (smoother @ u.flatten(2)).view_as(u) + b
        if (curve * (new - y).abs()).max() <= TOLERANCE:  # what is left of (t - p(y)) - a / C
            return strength * curve * (u - new), b.squeeze(1), step
        a = strength * curve * (u - new)
        now = (strength * loss(new, targets) + a * (new - b) / 2).sum((1, 3), keepdim=True)
        rises = now > before
        older = (1 + (1 + 4 * age * age).sqrt()) / 2
        y = torch.where(rises, new, new + (age - 1) / older * (new - f))
        f, before, age = new, now, torch.where(rises, 1.0, older)
    raise ValueError(f"a probe did not settle in {MOST_STEPS} steps; expected finite states and a smaller C")


def ridge_smoother(gram: Float[Tensor, "B N N"], ridge: float) -> Float[Tensor, "B N N"]:
    """K (K + ridge I)^-1 = I - ridge (K + ridge I)^-1."""
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype)
    return eye - ridge * torch.cholesky_inverse(torch.linalg.cholesky(gram + ridge * eye))


def probabilities(f: Float[Tensor, "B N T K"]) -> Float[Tensor, "B N T K"]:
    return f.sigmoid() if f.shape[-1] == 1 else f.softmax(-1)


def loss(f: Float[Tensor, "B N T K"], targets: Float[Tensor, "N T K"]) -> Float[Tensor, "B N T K"]:
    """Of every text and class, to be summed over both."""
    if f.shape[-1] == 1:
        return torch.nn.functional.softplus(f) - targets * f
    return -targets * f.log_softmax(-1)


def decide(fitted: Fitted, states: Float[Tensor, "B M D"]) -> Float[Tensor, "B M T K"]:
    """f of other texts: the larger, the likelier the class. Block by block: the states are copied in float64."""
    out = []
    for i, block in enumerate(states):
        z = standardised(block[None], fitted.mean[i : i + 1], fitted.scale[i : i + 1])[0].float()
        out.append(torch.einsum("md,dtk->mtk", z, fitted.weights[i]) + fitted.intercepts[i])
    return torch.stack(out)

"""The two terms of RMU (arXiv 2403.03218), over residual states h after block l.

    forget(h)    = mean over tokens of ||h - c*u||^2 / D
    retain(h,h0) = mean over tokens of ||h - h0||^2 / D
    loss         = forget + alpha * retain

`clean` counts real tokens but the first of each text; the published code takes the plain mean over every position, so
that padding and the huge first token weigh in. Division by D is as published and only scales alpha against nothing.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


def squared_distance(
    states: Float[Tensor, "B T D"], target: Float[Tensor, "B T D"] | Float[Tensor, " D"], loss_mask: Bool[Tensor, "B T"]
) -> Float[Tensor, ""]:
    """Mean over counted tokens of ||states - target||^2 / D, in fp32. 0 where no token loss_mask."""
    per_token = (states.float() - target.float()).square().mean(-1)  # (B, T)
    return torch.where(loss_mask, per_token, 0.0).sum() / loss_mask.sum().clamp(min=1)


def mean_cosine(
    states: Float[Tensor, "B T D"], direction: Float[Tensor, " D"], loss_mask: Bool[Tensor, "B T"]
) -> Float[Tensor, ""]:
    """Mean cosine of counted tokens with a direction: 1 when steering has fully succeeded."""
    return F.cosine_similarity(states.float(), direction.float(), dim=-1)[loss_mask].mean()

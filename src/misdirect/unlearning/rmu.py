"""RMU: Representation Misdirection for Unlearning (Li et al. 2024, arXiv 2403.03218).

Only the MLP output matrices of blocks l-2..l are trained, so that after block l forget text ends at c*u, a fixed random
direction u of a chosen length c, and retain text stays where the frozen model has it. Topics alternate, each with its
own u, c and alpha. How we deviate from the published code under `numerics="clean"`: one model instead of two
(`misdirect.model.activations`), fp32 masters, padding and first tokens out of the loss, seeded order, AdamW with bias
correction, optional schedule. `numerics="published"` deviates in nothing but the number of models
(where a model has dropout, in its draws too): `misdirect.unlearning.published`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from misdirect.config import Topic, UnlearnConfig
from misdirect.data.batches import Batch
from misdirect.model.activations import Captured, Weights, capture, check_replay, replay
from misdirect.model.blocks import find_matrix, residual_width
from misdirect.model.lm import LM
from misdirect.unlearning import steering
from misdirect.unlearning.arithmetic import Arithmetic, arithmetic_of
from misdirect.unlearning.loss import mean_cosine
from misdirect.unlearning.rate import with_rate
from misdirect.unlearning.schedule import Ids, Samples, Update
from misdirect.unlearning.train import Losses, Prepared, has_dropout, mode


@dataclass(frozen=True)
class Target:
    """Where a topic is steered to."""

    direction: Tensor  # u: (D,) unit, fp32
    steered: Tensor  # c*u: (D,) in fp32, or (1, 1, D) in the model's dtype under `published`
    coefficient: float  # c
    retain_weight: float  # alpha
    median_norm: float  # of the topic's tokens after block l, before anything is trained


class Trained(NamedTuple):
    """The matrices that RMU trains, in the model that holds them."""

    lm: LM
    matrices: Mapping[int, str]  # block -> parameter path inside it

    @property
    def names(self) -> list[str]:
        return [f"{self.lm.block_prefix}.{block}.{path}" for block, path in self.matrices.items()]

    def by_block(self, leaves: Mapping[str, Tensor]) -> Weights:
        """The leaves as the replay wants them: per block, in the model's dtype."""
        dtype = next(self.lm.model.parameters()).dtype
        prefix = self.lm.block_prefix
        return {block: {path: leaves[f"{prefix}.{block}.{path}"].to(dtype)} for block, path in self.matrices.items()}

    def captured(self, batch: Batch, want_output: bool = True) -> Captured:
        """One frozen pass over a batch, up to the last trained block."""
        first, last = min(self.matrices), max(self.matrices)
        ids, mask = batch.input_ids, batch.attention_mask
        return capture(self.lm.model, self.lm.blocks, first, last, ids, mask, want_output=want_output)

    def replayed(self, seen: Captured, leaves: Mapping[str, Tensor]) -> Float[Tensor, "B T D"]:
        """States after the last trained block, differentiable in the leaves."""
        return replay(self.lm.blocks, seen, self.by_block(leaves))


def prepare(lm: LM, samples: Samples, config: UnlearnConfig, topics: Sequence[Topic] = ()) -> Prepared:
    """Finds the matrices, measures norms, draws control vectors, and checks that replay is exact.

    `topics` may give a topic its own steering or alpha. `config` must be resolved. Raises ValueError for a model or data
    that RMU cannot work with.
    """
    assert config.block is not None and config.num_blocks is not None and config.batch_size
    arithmetic, width = arithmetic_of(config), residual_width(lm.model)
    blocks = range(config.block - config.num_blocks + 1, config.block + 1)
    trained = Trained(lm, {i: find_matrix(lm.blocks[i], width, config.matrix) for i in blocks})
    targets = steering_targets(lm, samples.forget, config, {topic.name: topic for topic in topics})
    probe = arithmetic.pad(lm, next(iter(samples.forget.values()))[: config.batch_size])
    check_replay(lm.model, lm.blocks, blocks[0], config.block, probe.input_ids, probe.attention_mask, trained.matrices)
    prepared = Prepared(
        lm,
        config,
        arithmetic.updates(samples, config),
        trained.names,
        partial(losses, trained, targets, arithmetic),
        chosen=chosen(config, trained, targets, samples),
        private={name: (target.direction, target.coefficient) for name, target in targets.items()},
        notes=[said(name, target, config) for name, target in targets.items()],
        arithmetic=arithmetic,
    )
    return with_rate(prepared) if config.lr is None else prepared


def steering_targets(
    lm: LM, forget: Mapping[str, Ids], config: UnlearnConfig, own: Mapping[str, Topic]
) -> dict[str, Target]:
    """Topic -> target. Norms are those of the frozen model on the topic's first batches."""
    assert config.block is not None and config.batch_size and config.steering and config.alpha
    arithmetic, width, dtype = arithmetic_of(config), residual_width(lm.model), next(lm.model.parameters()).dtype
    norms, coefficients, weights = [], [], []
    for name, ids in forget.items():
        norms.append(steering.median_norm(lm, config.block, steering.norm_batches(lm, ids, config.batch_size)))
        if not math.isfinite(norms[-1]):
            raise ValueError(
                f"the states of {name} after block {config.block} are not finite numbers before anything is trained; "
                "expected sound weights, or another --dtype"
            )
        topic = own.get(name) or Topic(name, "")
        mean = arithmetic.mean_norm(lm, config.block, ids, config.batch_size)
        coefficients.append(steering.coefficient(topic.steering or config.steering, norms[-1], mean))
        if not math.isfinite(coefficients[-1]):
            raise ValueError(
                f"the steering of {name} comes out as {coefficients[-1]}; expected a finite number: a smaller --steering"
            )
        weights.append(config.alpha if topic.retain_weight is None else topic.retain_weight)
    drawn = arithmetic.targets(coefficients, width, config.seed, dtype, lm.device)
    return {name: Target(*drawn[i], coefficients[i], weights[i], norms[i]) for i, name in enumerate(forget)}


def losses(
    trained: Trained,
    targets: Mapping[str, Target],
    arithmetic: Arithmetic,
    leaves: Mapping[str, Tensor],
    update: Update,
) -> Losses:
    """Captures both batches under the frozen model and replays the trained blocks on them with `leaves`."""
    lm, target = trained.lm, targets[update.topic]
    forget, retain = arithmetic.pad(lm, update.forget), arithmetic.pad(lm, update.retain)
    before = trained.captured(forget)
    forget_states = trained.replayed(before, leaves)  # (B, T, D)
    seen = trained.captured(retain)
    retain_states = trained.replayed(seen, leaves)  # (B, T, D)
    if lm.model.training and has_dropout(lm.model):  # the published frozen model is in eval mode
        with mode(lm, train=False):
            seen = trained.captured(retain)
    assert seen.output is not None and before.output is not None
    return Losses(
        arithmetic.distance(forget_states, target.steered, forget.loss_mask),
        arithmetic.distance(retain_states, seen.output, retain.loss_mask),
        target.retain_weight,
        measured(forget_states.detach(), target, forget)
        | {"forget_moved": moved(forget_states.detach(), before.output, forget)}
        | {"retain_moved": moved(retain_states.detach(), seen.output, retain)},
    )


@torch.no_grad()
def measured(states: Float[Tensor, "B T D"], target: Target, batch: Batch) -> dict[str, float]:
    """For the log: how far forget states point where they are steered, and their median norm."""
    return {
        "cosine": mean_cosine(states, target.direction, batch.loss_mask).item(),
        "forget_norm": steering.token_norms(states, batch.loss_mask).median().item(),
    }


@torch.no_grad()
def moved(states: Float[Tensor, "B T D"], frozen: Float[Tensor, "B T D"], batch: Batch) -> float:
    """For the log: how far states are from the frozen model's, as a share of their length there (root mean squares)."""
    there = batch.loss_mask.unsqueeze(-1)
    off, length = (torch.where(there, x.float(), 0.0).square().sum() for x in (states - frozen, frozen))
    return (off / length.clamp_min(1e-30)).sqrt().item()


def chosen(config: UnlearnConfig, trained: Trained, targets: Mapping[str, Target], samples: Samples) -> dict[str, Any]:
    """What `config.json` says of it."""
    return {
        "block": config.block,
        "trained": trained.names,
        "topics": {
            name: {
                "steering_coefficient": target.coefficient,
                "median_norm": target.median_norm,
                "retain_weight": target.retain_weight,
                **sizes(samples.forget[name]),
            }
            for name, target in targets.items()
        },
        "retain": {name: sizes(ids) for name, ids in samples.retain.items()},
    }


def sizes(ids: Ids) -> dict[str, int]:
    return {"num_samples": len(ids), "tokens": sum(map(len, ids))}


def said(name: str, target: Target, config: UnlearnConfig) -> str:
    return (
        f"{name}: steering to {target.coefficient:.4g} at block {config.block} ({target.coefficient / target.median_norm:.3g}x "
        f"the median token norm {target.median_norm:.4g}), alpha {target.retain_weight:g}"
    )

"""The loop that every method shares: batch, losses, gradient, clip, AdamW, log line.

prepared = METHODS["rmu"].prepare(lm, samples, config)
state = train(prepared, initial_state(prepared), after_update=lambda state, line: ...)
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from misdirect.config import UnlearnConfig
from misdirect.model import parameters
from misdirect.model.delta import Delta
from misdirect.model.lm import LM
from misdirect.unlearning.arithmetic import CLEAN, Arithmetic
from misdirect.unlearning.optimizer import clip, learning_rate
from misdirect.unlearning.schedule import Update


class Losses(NamedTuple):
    """Both terms of one update, differentiable in what is trained; `measured`: what the log line says besides."""

    forget: Float[Tensor, ""]
    retain: Float[Tensor, ""]
    retain_weight: float
    measured: Mapping[str, float] = {}


@dataclass(frozen=True)
class Prepared:
    """A method ready to train one model: all that does not change during a run.

    `names`: what is trained, by full parameter name or part of one. `losses`: the trained tensors by name, and an update ->
    its losses. `chosen`: what was found and measured, for `config.json`. `private`: topic -> (direction (D,), its length),
    what an audit needs and nobody publishes. `notes`: lines for whoever started the run.
    """

    lm: LM
    config: UnlearnConfig  # resolved
    updates: Sequence[Update]
    names: Sequence[str]
    losses: Callable[[Mapping[str, Tensor], Update], Losses]
    chosen: Mapping[str, Any]
    private: Mapping[str, tuple[Tensor, float]] = field(default_factory=dict)
    notes: Sequence[str] = ()
    arithmetic: Arithmetic = CLEAN


class State(NamedTuple):
    """All that changes during a run; a checkpoint is this, and nothing else is needed to resume bit for bit."""

    step: int
    weights: dict[str, Tensor]
    exp_avg: dict[str, Tensor]
    exp_avg_sq: dict[str, Tensor]


class Divergence(ValueError):
    """The loss or its gradient is not a number; `step` updates were made before."""

    def __init__(self, step: int, topic: str, dtype: torch.dtype) -> None:
        self.step = step
        wanted = "--dtype float32, or a smaller --steering" if dtype == torch.float16 else "a smaller --lr"
        super().__init__(f"the loss of {topic} is not a finite number at update {step + 1}; expected {wanted}")


def initial_state(prepared: Prepared) -> State:
    """The model's own matrices as leaves (fp32 masters, or the model's dtype under `published`); moments zero."""
    weights = {}
    for name in prepared.names:
        block, _, path = name.removeprefix(prepared.lm.block_prefix + ".").partition(".")
        value = parameters.read_from(prepared.lm.blocks[int(block)], path).detach().clone()
        weights[name] = prepared.arithmetic.masters(value)
    moments = [{name: torch.zeros_like(value) for name, value in weights.items()} for _ in range(2)]
    return State(0, weights, *moments)


def train(prepared: Prepared, state: State, after_update: Callable[[State, dict[str, Any]], None]) -> State:
    """The loop. Calls `after_update(state, log line)` after every update; raises `Divergence` when the loss is not finite.

    `state` is updated in place tensor by tensor, which is what makes the memory the trained matrices and their moments.
    """
    lm, config, arithmetic = prepared.lm, prepared.config, prepared.arithmetic
    assert config.lr and config.schedule and config.warmup is not None and config.clip is not None
    drops = arithmetic.train_mode and has_dropout(lm.model)
    with mode(lm, train=arithmetic.train_mode), torch.random.fork_rng([lm.device] if lm.device.type == "cuda" else []):
        for step, update in enumerate(prepared.updates[state.step :], state.step):
            started = time.perf_counter()
            if drops:  # each update draws from its own seed, so that a resumed run drops what an undisturbed one does
                torch.manual_seed(config.seed + 1_000_003 * (step + 1))
            leaves = {name: value.requires_grad_() for name, value in state.weights.items()}

            terms = prepared.losses(leaves, update)
            loss = terms.forget + terms.retain_weight * terms.retain
            if not torch.isfinite(loss):
                raise Divergence(step, update.topic, next(lm.model.parameters()).dtype)
            grads = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))

            gradient_norm = clip(grads, config.clip)
            if not math.isfinite(gradient_norm):  # before any weight is spoilt
                raise Divergence(step, update.topic, next(lm.model.parameters()).dtype)
            lr = learning_rate(step, len(prepared.updates), config.lr, config.warmup, config.schedule)
            with torch.no_grad():
                for name, weight in state.weights.items():
                    arithmetic.adamw_step(
                        weight, grads[name], state.exp_avg[name], state.exp_avg_sq[name], step + 1, lr
                    )

            state = state._replace(step=step + 1)
            line = {
                "step": step + 1,
                "topic": update.topic,
                "forget_loss": terms.forget.item(),
                "retain_loss": terms.retain.item(),
                **terms.measured,
                "gradient_norm": gradient_norm,
                "lr": lr,
                "tokens": sum(map(len, [*update.forget, *update.retain])),
                "seconds": time.perf_counter() - started,
            }
            after_update(state, line)
    return state


def first_updates(prepared: Prepared) -> tuple[float, int]:
    """(seconds of an update, bytes that its backward pass keeps), measured without making any: of the run's first two, the
    first warms up and the second counts."""
    leaves = {name: value.requires_grad_() for name, value in initial_state(prepared).weights.items()}
    own = {tensor.untyped_storage().data_ptr() for tensor in (*prepared.lm.model.parameters(), *leaves.values())}
    seconds, kept = 0.0, dict[int, int]()

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    for update in prepared.updates[:2]:
        kept.clear()
        started = time.perf_counter()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            terms = prepared.losses(leaves, update)
        torch.autograd.grad(terms.forget + terms.retain, list(leaves.values()))
        seconds = time.perf_counter() - started
    return seconds, sum(kept.values())


def has_dropout(model: nn.Module) -> bool:
    """Whether train mode computes something else than eval mode: a dropout layer, or a rate that attention reads."""
    rates = [
        v for m in model.modules() for k, v in vars(m).items() if isinstance(v, float) and ("drop" in k or k == "p")
    ]
    return any(rate > 0 for rate in rates)


@contextmanager
def mode(lm: LM, train: bool) -> Iterator[None]:
    """`.train()` mode for the published arithmetic (dropout on, where a model has it), and back."""
    was = lm.model.training
    lm.model.train(train)
    try:
        yield
    finally:
        lm.model.train(was)


def to_delta(state: State, metadata: Mapping[str, str]) -> Delta:
    """The trained matrices under their names in the full model."""
    return Delta({name: value.detach().clone() for name, value in state.weights.items()}, metadata)

"""RMU: Representation Misdirection for Unlearning (Li et al. 2024, arXiv 2403.03218).

Only the MLP output matrices of blocks l-2..l are trained, so that after block l forget text ends at c*u, a fixed random
direction u of a chosen length c, and retain text stays where the frozen model has it. Topics alternate, each with its
own u, c and alpha. How we deviate from the published code under `numerics="clean"`: one model instead of two
(`misdirect.model.activations`), fp32 masters, padding and first tokens out of the loss, seeded order, AdamW with bias
correction, optional schedule. `numerics="published"` deviates in nothing but the number of models
(where a model has dropout, in its draws too).

    lm = load_lm("demo", last=7)
    delta, log = unlearn(lm, {"biology": forget_texts}, [("general", retain_texts, 1.0)], resolve(UnlearnConfig(recipe="demo"), 30))
"""  # noqa: E501

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from misdirect.config import Topic, UnlearnConfig
from misdirect.data import batches
from misdirect.data.batches import Batch
from misdirect.model import parts, rope
from misdirect.model.activations import Weights, capture, check_replay, replay
from misdirect.model.blocks import find_matrix, residual_width
from misdirect.model.delta import Delta
from misdirect.model.load import LM, check_length
from misdirect.model.rows import check_rows, fill_id
from misdirect.progress import note
from misdirect.unlearning import steering
from misdirect.unlearning.loss import mean_cosine, published_distance, squared_distance
from misdirect.unlearning.optimizer import adamw_step, clip, learning_rate

NORM_BATCHES = 8  # forget batches over which the median token norm is measured
PUBLISHED_MAX_TOKENS = (512, 768)  # first topic, every other topic


@dataclass(frozen=True)
class ForgetTopic:
    """One topic ready to train: its samples, and where they are steered."""

    name: str
    samples: list[list[int]]
    direction: Tensor  # (D,) unit, fp32
    target: Tensor  # c*u: (D,) in fp32, or (1, 1, D) in the model's dtype under `published`
    steering_coefficient: float
    retain_weight: float
    median_norm: float


class State(NamedTuple):
    """All that changes during a run; a checkpoint is this, and nothing else is needed to go on bit for bit."""

    step: int
    weights: dict[str, Tensor]
    first: dict[str, Tensor]
    second: dict[str, Tensor]


class Job(NamedTuple):
    """All that does not change during a run."""

    lm: LM
    config: UnlearnConfig
    updates: int
    topics: list[ForgetTopic]
    retain: list[list[list[int]]]  # corpus -> sample -> token ids
    retain_weights: list[float]
    matrices: dict[int, str]  # trained block -> parameter path inside it


class Divergence(ValueError):
    """The loss or its gradient is not a number; `step` updates were made before."""

    def __init__(self, step: int, topic: str, dtype: torch.dtype) -> None:
        self.step = step
        wanted = "--dtype float32, or a smaller --steering" if dtype == torch.float16 else "a smaller --lr"
        super().__init__(f"the loss of {topic} is not a finite number at update {step + 1}; expected {wanted}")


def prepare(
    lm: LM,
    forget: Mapping[str, Sequence[str]],
    retain: Sequence[tuple[str, Sequence[str], float]],
    config: UnlearnConfig,
    topics: Sequence[Topic] = (),
) -> Job:
    """Tokenises, measures norms, draws control vectors, finds the matrices, and checks that replay is exact.

    `forget`: topic name -> texts; `retain`: (name, texts, weight) each; `topics` may give a topic its own steering or
    alpha. `config` must be resolved. Raises ValueError for a model or data that RMU cannot work with.
    """
    if not forget or not retain:
        raise ValueError(f"{'no forget' if not forget else 'no retain'} text was given; expected at least one of each")
    assert config.block is not None and config.num_blocks is not None and config.max_tokens is not None
    published = config.numerics == "published"
    blocks = lm.blocks
    trained = range(config.block - config.num_blocks + 1, config.block + 1)
    matrices = {i: find_matrix(blocks[i], residual_width(lm.model), config.matrix) for i in trained}
    samples = {
        name: tokenise(lm, texts, config, PUBLISHED_MAX_TOKENS[min(index, 1)], name)
        for index, (name, texts) in enumerate(forget.items())
    }
    kept = [tokenise(lm, texts, config, PUBLISHED_MAX_TOKENS[0], name) for name, texts, _ in retain]
    check_length(lm, max(len(ids) for found in [*samples.values(), *kept] for ids in found), "a sample")
    own = {topic.name: topic for topic in topics}
    say_long(lm, [*samples.values(), *kept])
    made = forget_topics(lm, config, samples, own, published)
    job = Job(lm, config, num_updates(config, samples, kept), made, kept, [w for _, _, w in retain], matrices)
    probe = batch_of(job, next(iter(samples.values()))[: config.batch_size])
    check_replay(lm.model, blocks, trained[0], config.block, probe.input_ids, probe.attention_mask, matrices)
    return job


def say_long(lm: LM, corpora: Sequence[Sequence[Sequence[int]]]) -> None:
    """Says so where a long sample changes the table of positions of the shorter ones in its batch."""
    longest, reach = max(len(ids) for found in corpora for ids in found), rope.reach(lm.model)
    if longest > reach:
        note(
            f"A sample has {longest} tokens, and beyond {reach} {lm.source} reads all of a batch by another table of "
            f"positions; --max-tokens {reach} trains every sample as if it stood alone"
        )


def tokenise(lm: LM, texts: Sequence[str], config: UnlearnConfig, published_max: int, name: str) -> list[list[int]]:
    if config.numerics == "published":  # cut off, not cut up; with the end token that some tokenizers append
        end, side = lm.tokenizer.eos_token_id, lm.tokenizer.truncation_side
        check_rows(lm, [[end]] if end is not None else [], "the padding of the published arithmetic")
        try:
            lm.tokenizer.truncation_side = "right"
            encoded = lm.tokenizer(list(texts), truncation=True, max_length=published_max)["input_ids"]
        finally:
            lm.tokenizer.truncation_side = side
        samples = [list(ids) for ids in encoded if len(ids)]
    else:
        assert config.max_tokens is not None
        samples = batches.tokenise(lm.tokenizer, texts, config.max_tokens)
    if not samples:
        raise ValueError(f"{name} holds no text of two tokens or more; expected some")
    check_rows(lm, samples, f"a text of {name}")
    return samples


def forget_topics(
    lm: LM, config: UnlearnConfig, samples: Mapping[str, list[list[int]]], own: Mapping[str, Topic], published: bool
) -> list[ForgetTopic]:
    width = residual_width(lm.model)
    assert config.block is not None and config.batch_size and config.steering and config.alpha
    norms, coefficients = [], []
    for name, ids in samples.items():
        probes = [
            batches.pad(ids[i : i + config.batch_size], fill_id(lm))
            for i in range(0, min(len(ids), NORM_BATCHES * config.batch_size), config.batch_size)
        ]
        norms.append(steering.median_norm(lm, config.block, probes))
        if not math.isfinite(norms[-1]):
            raise ValueError(
                f"the states of {name} after block {config.block} are not finite numbers before anything is trained; "
                "expected sound weights, or another --dtype"
            )
        strength = own[name].steering if name in own and own[name].steering else config.steering
        own_batch = [padded(lm, ids[: config.batch_size], published)] if published else probes
        mean = steering.mean_norm(lm, config.block, own_batch, every_position=published)
        coefficients.append(steering.coefficient(strength or "", norms[-1], mean))
        if not math.isfinite(coefficients[-1]):
            raise ValueError(
                f"the steering of {name} comes out as {coefficients[-1]}; expected a finite number: a smaller --steering"
            )
    if published:
        dtype = next(lm.model.parameters()).dtype
        targets = steering.published_control_vectors(coefficients, width, config.seed, dtype, lm.device)
        directions = [t.flatten().float() / t.float().norm() for t in targets]
    else:
        directions = [u.to(lm.device) for u in steering.control_vectors(len(samples), width, config.seed)]
        targets = [c * u for c, u in zip(coefficients, directions, strict=True)]
    weights = [own[n].retain_weight if n in own and own[n].retain_weight is not None else config.alpha for n in samples]
    return [
        ForgetTopic(name, ids, directions[i], targets[i], coefficients[i], weights[i] or 0.0, norms[i])
        for i, (name, ids) in enumerate(samples.items())
    ]


def num_updates(config: UnlearnConfig, samples: Mapping[str, list[list[int]]], kept: list[list[list[int]]]) -> int:
    """`--updates`, or as many as `--epochs` over all topics needs.

    Under `published` at most as many as the shortest corpus has batches, whatever the number of topics: with two topics
    the published code stops half way through the shorter one.
    """
    assert config.batch_size is not None
    size = config.batch_size
    if config.numerics == "published":
        most = min(-(-len(ids) // size) for ids in [*samples.values(), list(chain(*kept))])
        return min(config.updates or most, most)
    if config.epochs is not None:
        return max(1, math.ceil(config.epochs * max(len(ids) for ids in samples.values()) / size) * len(samples))
    assert config.updates is not None
    return config.updates


def schedule(job: Job) -> list[tuple[ForgetTopic, list[list[int]], list[list[int]]]]:
    """(topic, forget samples, retain samples) of every update, from counts and the seed alone."""
    config, num_topics = job.config, len(job.topics)
    assert config.batch_size is not None
    size, rounds = config.batch_size, -(-job.updates // num_topics)
    if config.numerics == "published":  # in file order; every topic sees the same retain lines
        retain = [sample for corpus in job.retain for sample in corpus]
        pick = [slice(i * size, (i + 1) * size) for i in range(rounds)]
        pairs = [[(t, t.samples[p], retain[p]) for t in job.topics] for p in pick]
        return [pair for round_ in pairs for pair in round_][: job.updates]
    forget = [batches.plan_single(len(t.samples), rounds, size, config.seed + 1 + i) for i, t in enumerate(job.topics)]
    retain_size = config.retain_batch_size or size
    mixed = batches.plan_mixture(
        [len(c) for c in job.retain], job.retain_weights, job.updates, retain_size, config.seed
    )
    return [
        (
            job.topics[step % num_topics],
            [job.topics[step % num_topics].samples[i] for i in forget[step % num_topics][step // num_topics]],
            [job.retain[corpus][i] for corpus, i in mixed[step]],
        )
        for step in range(job.updates)
    ]


def batch_of(job: Job, samples: Sequence[Sequence[int]]) -> Batch:
    return padded(job.lm, samples, job.config.numerics == "published")


def padded(lm: LM, samples: Sequence[Sequence[int]], published: bool) -> Batch:
    """On the left with the end token as published, else on the right."""
    end = lm.tokenizer.eos_token_id
    fill = end if published and end is not None else fill_id(lm)
    return batches.pad(samples, fill, left=published).to(lm.device)


def initial_state(job: Job) -> State:
    """The model's own matrices as leaves: fp32 masters, or the model's dtype under `published`; moments zero."""
    blocks = job.lm.blocks
    weights = {}
    for index, path in job.matrices.items():
        value = parts.read_from(blocks[index], path).detach().clone()
        weights[f"{index}.{path}"] = value if job.config.numerics == "published" else value.float()
    zeros = {name: torch.zeros_like(value) for name, value in weights.items()}
    return State(0, weights, zeros, {name: value.clone() for name, value in zeros.items()})


def by_block(job: Job, weights: Mapping[str, Tensor]) -> Weights:
    """The leaves as the replay wants them: per block, in the model's dtype."""
    dtype = next(job.lm.model.parameters()).dtype
    return {index: {path: weights[f"{index}.{path}"].to(dtype)} for index, path in job.matrices.items()}


class Losses(NamedTuple):
    """Both terms of one update, differentiable in the leaves, and where forget text ended."""

    forget: Float[Tensor, ""]
    retain: Float[Tensor, ""]
    forget_states: Float[Tensor, "B T D"]


def losses(job: Job, leaves: Mapping[str, Tensor], topic: ForgetTopic, forget: Batch, retain: Batch) -> Losses:
    """Captures both batches under the frozen model and replays the trained blocks on them with `leaves`."""
    model, blocks = job.lm.model, job.lm.blocks
    first, last = min(job.matrices), max(job.matrices)
    seen = capture(model, blocks, first, last, forget.input_ids, forget.attention_mask, want_output=False)
    forget_states = replay(blocks, seen, by_block(job, leaves))  # (B, T, D)
    seen = capture(model, blocks, first, last, retain.input_ids, retain.attention_mask)
    retain_states = replay(blocks, seen, by_block(job, leaves))  # (B, T, D)
    if model.training and has_dropout(model):  # the published frozen model is in eval mode
        with mode(job.lm, train=False):
            seen = capture(model, blocks, first, last, retain.input_ids, retain.attention_mask)
    assert seen.output is not None
    if job.config.numerics == "published":
        forget_loss = published_distance(forget_states, topic.target)
        return Losses(forget_loss, published_distance(retain_states, seen.output), forget_states)
    forget_loss = squared_distance(forget_states, topic.target, forget.counts)
    return Losses(forget_loss, squared_distance(retain_states, seen.output, retain.counts), forget_states)


def train(job: Job, state: State, after_update: Callable[[State, dict[str, Any]], None]) -> State:
    """The loop. Calls `after_update(state, log line)` after every update; raises `Divergence` when the loss is not finite.

    `state` is updated in place tensor by tensor, which is what makes the memory three matrices and their moments.
    """
    lm, config = job.lm, job.config
    published = config.numerics == "published"
    assert config.lr and config.schedule and config.warmup is not None and config.clip is not None
    drops = published and has_dropout(lm.model)
    with mode(lm, train=published), torch.random.fork_rng([lm.device] if lm.device.type == "cuda" else []):
        for step, (topic, forget_samples, retain_samples) in enumerate(schedule(job)):
            if step < state.step:
                continue
            started = time.perf_counter()
            if drops:  # each update draws from its own seed, so that a resumed run drops what an undisturbed one does
                torch.manual_seed(config.seed + 1_000_003 * (step + 1))
            forget, retain = batch_of(job, forget_samples), batch_of(job, retain_samples)
            leaves = {name: value.requires_grad_() for name, value in state.weights.items()}

            terms = losses(job, leaves, topic, forget, retain)
            loss = terms.forget + topic.retain_weight * terms.retain
            if not torch.isfinite(loss):
                raise Divergence(step, topic.name, next(job.lm.model.parameters()).dtype)
            grads = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))

            gradient_norm = clip(grads, config.clip)
            if not math.isfinite(gradient_norm):  # before any weight is spoilt
                raise Divergence(step, topic.name, next(job.lm.model.parameters()).dtype)
            lr = learning_rate(step, job.updates, config.lr, config.warmup, config.schedule)
            with torch.no_grad():
                for name, weight in state.weights.items():
                    adamw_step(weight, grads[name], state.first[name], state.second[name], step + 1, lr, published)

            state = state._replace(step=step + 1)
            states = terms.forget_states.detach()
            line = {
                "step": step + 1,
                "topic": topic.name,
                "forget_loss": terms.forget.item(),
                "retain_loss": terms.retain.item(),
                "cosine": mean_cosine(states, topic.direction, forget.counts).item(),
                "forget_norm": steering.token_norms(states, forget.counts).median().item(),
                "gradient_norm": gradient_norm,
                "lr": lr,
                "tokens": int(forget.attention_mask.sum() + retain.attention_mask.sum()),
                "seconds": time.perf_counter() - started,
            }
            after_update(state, line)
    return state


def seconds_per_update(job: Job) -> float:
    """Measured on the run's first two updates, without making them: the second counts, the first one warms up."""
    leaves = {name: value.requires_grad_() for name, value in initial_state(job).weights.items()}
    started = time.perf_counter()
    for topic, forget, retain in schedule(job)[:2]:
        started = time.perf_counter()
        terms = losses(job, leaves, topic, batch_of(job, forget), batch_of(job, retain))
        torch.autograd.grad(terms.forget + terms.retain, list(leaves.values()))
    return time.perf_counter() - started


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


def to_delta(job: Job, state: State, metadata: Mapping[str, str]) -> Delta:
    """The trained matrices under their names in the full model."""
    prefix = job.lm.block_prefix
    return Delta({f"{prefix}.{name}": value.detach().clone() for name, value in state.weights.items()}, metadata)


def unlearn(
    lm: LM,
    forget: Mapping[str, Sequence[str]],
    retain: Sequence[tuple[str, Sequence[str], float]],
    config: UnlearnConfig,
    topics: Sequence[Topic] = (),
) -> tuple[Delta, list[dict[str, Any]]]:
    """One RMU run in memory: (the changed matrices, a log line per update). The model is left as it was, bit for bit."""
    job = prepare(lm, forget, retain, config, topics)
    log: list[dict[str, Any]] = []
    state = train(job, initial_state(job), lambda _, line: log.append(line))
    return to_delta(job, state, {}), log

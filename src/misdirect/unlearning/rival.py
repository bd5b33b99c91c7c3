"""Rivals to compare RMU with: NPO and gradient difference, on the samples, the order and the number of updates of a run.

    log pi(x) = sum over the tokens of x but the first; forget samples x, retain samples y
    NPO                   (2/beta) * mean log(1 + (pi(x) / pi_base(x))^beta)   + w * retain      arXiv 2404.05868
    gradient difference   mean log pi(x)                                       + w * retain      arXiv 2203.12817
    retain                mean over tokens of y: KL(base || model), or the NLL

NPO is gradient ascent whose weight on a sample falls once the sample has become unlikely; with beta -> 0 its gradient is
that of gradient difference. Both lower the likelihood of the text itself, so they need the whole model where RMU needs eight
blocks of thirty. There is no second model: the frozen one is `lm.model` itself, the trained matrices are fp32 leaves that
`torch.func.functional_call` puts in their places, and the base's likelihood of every forget sample is taken once,
beforehand. What may differ from the RMU run are the trained matrices (every block's MLP output, not three) and the rate.

    budget = resolve(UnlearnConfig(recipe="demo"), 30)
    delta, log = rival(load_lm("demo"), {"biology": texts}, [("general", retain_texts, 1.0)], budget, RivalConfig())
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from misdirect.config import UnlearnConfig, flag, knob
from misdirect.data.batches import Batch
from misdirect.model import parts, rope
from misdirect.model.activations import refuse_shared
from misdirect.model.blocks import find_matrix, residual_width
from misdirect.model.delta import Delta
from misdirect.model.finite import about
from misdirect.model.load import LM, check_length
from misdirect.model.score import at_least_fp32, similar_lengths, text_logprobs, token_logprobs
from misdirect.unlearning import rmu
from misdirect.unlearning.optimizer import adamw_step, clip, learning_rate

Method = Literal["npo", "gradient-difference"]
RetainTerm = Literal["kl", "nll"]
Trained = Literal["mlp", "all"]
REFERENCE_TOKENS = 1024  # a pass, for the base's likelihoods: no more than an update holds in memory


@dataclass(frozen=True)
class RivalConfig:
    """What a rival does its own way; everything else is the budget of the RMU run that it is compared with."""

    method: Method = knob("npo", "npo (arXiv 2404.05868), or gradient-difference: ascent on the forget text.")
    beta: float = knob(0.02, "NPO: how soon a sample that has become unlikely stops being pushed; 0 would be never.")
    retain_term: RetainTerm = knob("kl", "What holds the retain text: kl to the base's predictions, or its nll.")
    retain_weight: float = knob(
        100.0, "Factor of the retain term, which is in nats per token; the forget term is in nats per sample."
    )
    trained: Trained = knob("mlp", "Which matrices are trained: mlp is every block's MLP output, all is every matrix.")
    lr: float = knob(2e-4, "Peak learning rate of AdamW.")

    def __post_init__(self) -> None:
        for name in ("beta", "retain_weight", "lr"):
            value = getattr(self, name)
            if not 0 < value < 1e30:
                raise ValueError(f"{flag(name)} {value} is out of range; expected a number above 0 and below 1e30")


class Job(NamedTuple):
    """All that does not change during a run."""

    plan: rmu.Job  # samples, mixture and number of updates, as RMU has them
    config: RivalConfig
    names: list[str]  # trained parameters of the full model
    reference: dict[tuple[int, ...], float]  # forget sample -> log pi_base, for NPO alone

    @property
    def lm(self) -> LM:
        return self.plan.lm


class Losses(NamedTuple):
    """`forget_nll` is in nats per token, for the log; `forget` and `retain` are what is trained on."""

    forget: Float[Tensor, ""]
    retain: Float[Tensor, ""]
    forget_nll: Float[Tensor, ""]


def prepare(
    lm: LM,
    forget: Mapping[str, Sequence[str]],
    retain: Sequence[tuple[str, Sequence[str], float]],
    budget: UnlearnConfig,
    config: RivalConfig,
) -> Job:
    """Tokenises, plans every update, finds the matrices, and measures the base on the forget samples.

    `lm` is the full model; `budget` the resolved settings of the RMU run. Raises ValueError for a model or data that
    cannot be worked with.
    """
    if not forget or not retain:
        raise ValueError(f"{'no forget' if not forget else 'no retain'} text was given; expected at least one of each")
    if budget.numerics == "published":
        raise ValueError(
            "a rival has no published numerics to repeat; expected the budget of a run with --numerics clean"
        )
    samples = {name: rmu.tokenise(lm, texts, budget, 0, name) for name, texts in forget.items()}
    kept = [rmu.tokenise(lm, texts, budget, 0, name) for name, texts, _ in retain]
    check_length(lm, max(len(ids) for found in [*samples.values(), *kept] for ids in found), "a sample")
    nothing = torch.empty(0)  # a rival steers nowhere
    topics = [
        rmu.ForgetTopic(n, ids, nothing, nothing, math.nan, config.retain_weight, math.nan)
        for n, ids in samples.items()
    ]
    updates = rmu.num_updates(budget, samples, kept)
    plan = rmu.Job(lm, budget, updates, topics, kept, [weight for _, _, weight in retain], {})
    names = trained_names(lm, config.trained, budget.matrix)
    return Job(plan, config, names, reference_of(plan) if config.method == "npo" else {})


def trained_names(lm: LM, trained: Trained, matrix: str | None = None) -> list[str]:
    """The full model's parameters to train: every block's MLP output matrix, or every matrix of every block."""
    blocks, width = lm.blocks, residual_width(lm.model)
    if trained == "all":
        return [
            f"{lm.block_prefix}.{i}.{name}"
            for i, block in enumerate(blocks)
            for name, value in block.named_parameters()
            if value.dim() >= 2
        ]
    paths = {i: find_matrix(block, width, matrix) for i, block in enumerate(blocks)}
    refuse_shared(lm.model, blocks, paths)
    return [f"{lm.block_prefix}.{i}.{path}" for i, path in paths.items()]


def reference_of(plan: rmu.Job) -> dict[tuple[int, ...], float]:
    """log pi_base of every forget sample that some update takes."""
    used = list(dict.fromkeys(tuple(ids) for _, samples, _ in rmu.schedule(plan) for ids in samples))
    with about("the base on the forget text, before anything is trained"):
        return dict(zip(used, map(math.fsum, text_logprobs(plan.lm, used, REFERENCE_TOKENS)), strict=True))


def logits_of(job: Job, weights: Mapping[str, Tensor], batch: Batch) -> Float[Tensor, "B T V"]:
    """The model's logits with `weights` in place of its own (none: the frozen base), differentiable in them."""
    model = job.lm.model
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "use_cache": False}
    if not weights:
        return model(**inputs).logits
    parameters = dict(model.named_parameters())
    given = {name: value.to(parameters[parts.base_name(name)].dtype) for name, value in weights.items()}
    return torch.func.functional_call(model, parts.merged(parameters, given), (), inputs).logits


def text_logprob(logits: Float[Tensor, "B T V"], batch: Batch) -> Float[Tensor, " B"]:
    """log pi of each sample: the sum over its tokens that count."""
    per_token = token_logprobs(logits[:, :-1], batch.input_ids[:, 1:])  # (B, T-1)
    return torch.where(batch.counts[:, 1:], per_token, 0.0).sum(-1)


def npo(logprob: Float[Tensor, " B"], reference: Float[Tensor, " B"], beta: float) -> Float[Tensor, ""]:
    """(2/beta) * mean log(1 + (pi/pi_base)^beta), from log pi and log pi_base of each sample."""
    return 2 / beta * F.softplus(beta * (logprob - reference)).mean()


def divergence(base: Float[Tensor, "N V"], logits: Float[Tensor, "N V"]) -> Float[Tensor, ""]:
    """KL(base || model) of the next token, summed over positions, in nats."""
    ours, theirs = (at_least_fp32(x).log_softmax(-1) for x in (logits, base))
    return F.kl_div(ours, theirs, reduction="sum", log_target=True)


Samples = Sequence[Sequence[int]]


def grouped(lm: LM, samples: Samples) -> list[list[tuple[int, ...]]]:
    """Samples in groups of similar length: what is padded is computed and counts for nothing."""
    lengths = [len(ids) for ids in samples]
    return [[tuple(samples[row]) for row in rows] for rows in rope.split(lm.model, similar_lengths(lengths), lengths)]


def losses(job: Job, weights: Mapping[str, Tensor], forget: Samples, retain: Samples) -> Losses:
    """Both terms of one update, over its forget and its retain samples."""
    groups = grouped(job.plan.lm, forget)
    batches = [rmu.batch_of(job.plan, group) for group in groups]
    logprob = torch.cat([text_logprob(logits_of(job, weights, batch), batch) for batch in batches])  # (B,)
    mean_logprob = logprob.sum() / num_counted(batches)
    forget_loss = logprob.mean()
    if job.config.method == "npo":
        reference = [job.reference[ids] for group in groups for ids in group]
        forget_loss = npo(logprob, logprob.new_tensor(reference), job.config.beta)
    batches = [rmu.batch_of(job.plan, group) for group in grouped(job.plan.lm, retain)]
    retain_total = torch.stack([retain_sum(job, weights, batch) for batch in batches]).sum()
    return Losses(forget_loss, retain_total / num_counted(batches), -mean_logprob.detach())


def num_counted(batches: Sequence[Batch]) -> int:
    return sum(int(batch.counts.sum()) for batch in batches)


def retain_sum(job: Job, weights: Mapping[str, Tensor], batch: Batch) -> Float[Tensor, ""]:
    """The retain term of one batch, summed over its tokens that count."""
    logits = logits_of(job, weights, batch)
    if job.config.retain_term == "nll":
        return -text_logprob(logits, batch).sum()
    counts = batch.counts[:, 1:]  # logits at t-1 predict token t
    with torch.no_grad():
        base = logits_of(job, {}, batch)[:, :-1][counts]
    return divergence(base, logits[:, :-1][counts])


def train(job: Job, after_update: Callable[[dict[str, Any]], None]) -> dict[str, Tensor]:
    """The loop: the trained matrices in fp32, by name. Raises `rmu.Divergence` when the loss is not finite."""
    budget, updates = job.plan.config, job.plan.updates
    assert budget.schedule and budget.warmup is not None and budget.clip is not None
    own = dict(job.lm.model.named_parameters())
    weights = {n: parts.read(own[parts.base_name(n)], n).detach().float().clone() for n in job.names}
    first, second = ({n: torch.zeros_like(value) for n, value in weights.items()} for _ in range(2))
    for step, (topic, forget_samples, retain_samples) in enumerate(rmu.schedule(job.plan)):
        started = time.perf_counter()
        leaves = {name: value.requires_grad_() for name, value in weights.items()}

        terms = losses(job, leaves, forget_samples, retain_samples)
        loss = terms.forget + job.config.retain_weight * terms.retain
        if not torch.isfinite(loss):
            raise rmu.Divergence(step, topic.name, next(job.lm.model.parameters()).dtype)
        grads = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))

        gradient_norm = clip(grads, budget.clip)
        if not math.isfinite(gradient_norm):  # before any weight is spoilt
            raise rmu.Divergence(step, topic.name, next(job.lm.model.parameters()).dtype)
        lr = learning_rate(step, updates, job.config.lr, budget.warmup, budget.schedule)
        with torch.no_grad():
            for name, weight in weights.items():
                adamw_step(weight, grads[name], first[name], second[name], step + 1, lr)

        line = {
            "step": step + 1,
            "topic": topic.name,
            "forget_loss": terms.forget.item(),
            "retain_loss": terms.retain.item(),
            "forget_nll": terms.forget_nll.item(),
            "gradient_norm": gradient_norm,
            "lr": lr,
            "tokens": sum(map(len, [*forget_samples, *retain_samples])),
            "seconds": time.perf_counter() - started,
        }
        after_update(line)
    if not all(torch.isfinite(value).all() for value in weights.values()):
        raise ValueError("the last update made weights that are not finite numbers; expected a smaller --lr")
    return {name: value.detach() for name, value in weights.items()}


def rival(
    lm: LM,
    forget: Mapping[str, Sequence[str]],
    retain: Sequence[tuple[str, Sequence[str], float]],
    budget: UnlearnConfig,
    config: RivalConfig = RivalConfig(),
) -> tuple[Delta, list[dict[str, Any]]]:
    """One run in memory: (the changed matrices, a log line per update). The model is left as it was, bit for bit."""
    log: list[dict[str, Any]] = []
    return Delta(train(prepare(lm, forget, retain, budget, config), log.append)), log

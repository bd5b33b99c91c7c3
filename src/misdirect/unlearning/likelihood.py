"""NPO and gradient difference: forgetting by likelihood, on the samples, the order and the number of updates of an RMU run.

    log pi(x) = sum over the tokens of x but the first; forget samples x, retain samples y
    NPO                   (2/beta) * mean log(1 + (pi(x) / pi_base(x))^beta)   + w * retain      arXiv 2404.05868
    gradient difference   mean log pi(x)                                       + w * retain      arXiv 2203.12817
    retain                mean over tokens of y: KL(base || model), or the NLL

NPO is gradient ascent whose weight on a sample falls once the sample has become unlikely; with beta -> 0 its gradient is
that of gradient difference. Both lower the likelihood of the text itself, so they need the whole model where RMU needs eight
blocks of thirty. There is no second model: the frozen one is `lm.model` itself, the trained matrices are fp32 leaves that
`torch.func.functional_call` puts in their places, and the base's likelihood of every forget sample is taken once,
beforehand. What may differ from the RMU run are the trained matrices (every block's MLP output, not three) and the rate.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from misdirect.config import Topic, UnlearnConfig, flag, option
from misdirect.data.batches import Batch
from misdirect.model import parameters as parts
from misdirect.model import rope
from misdirect.model.activations import refuse_shared
from misdirect.model.blocks import find_matrix, residual_width
from misdirect.model.finite import about
from misdirect.model.lm import LM
from misdirect.model.score import at_least_fp32, similar_lengths, text_logprobs, token_logprobs
from misdirect.unlearning.arithmetic import CLEAN
from misdirect.unlearning.schedule import Samples, Update, pad
from misdirect.unlearning.train import Losses, Prepared

Kind = Literal["npo", "gradient-difference"]
RetainTerm = Literal["kl", "nll"]
Matrices = Literal["mlp", "all"]
REFERENCE_TOKENS = 1024  # a pass, for the base's likelihoods: no more than an update holds in memory
LR, RETAIN_WEIGHT = 2e-4, 100.0  # a recipe's are RMU's
# Settings of RMU that mean nothing here; `recipe` has been resolved
UNUSED = ("recipe", "block", "num_blocks", "steering", "alpha", "epochs", "checkpoint_every")


@dataclass(frozen=True)
class LikelihoodConfig:
    """What these methods do their own way; everything else is the budget of the RMU run that they are compared with."""

    method: Kind = option("npo", "npo (arXiv 2404.05868), or gradient-difference: ascent on the forget text.")
    beta: float = option(0.02, "NPO: how soon a sample that has become unlikely stops being pushed; 0 would be never.")
    retain_term: RetainTerm = option("kl", "What holds the retain text: kl to the base's predictions, or its nll.")
    trained: Matrices = option(
        "mlp", "Which matrices are trained: mlp is every block's MLP output, all is every matrix."
    )

    def __post_init__(self) -> None:
        if not 0 < self.beta < 1e30:
            raise ValueError(f"{flag('beta')} {self.beta} is out of range; expected a number above 0 and below 1e30")


def settled(given: UnlearnConfig, resolved: UnlearnConfig) -> UnlearnConfig:
    """The run's settings: --lr and --alpha as given, else these methods' own; a recipe's are RMU's."""
    return replace(resolved, lr=given.lr or LR, alpha=given.alpha or RETAIN_WEIGHT)


def stored(config: UnlearnConfig, own: LikelihoodConfig) -> dict[str, Any]:
    """The settings for `config.json`, without those that mean nothing here. The retain term is in nats a token, the forget
    term in nats a sample."""
    given = {"method": own.method, "beta": own.beta, "retain_term": own.retain_term, "retain_weight": config.alpha}
    settings = dataclasses.asdict(config) | given | {"trained": own.trained}
    unused = (*UNUSED, "beta") if own.method != "npo" else UNUSED
    return {name: value for name, value in settings.items() if name not in unused}


class Job(NamedTuple):
    """What the losses need besides the trained tensors."""

    lm: LM
    config: LikelihoodConfig
    retain_weight: float
    reference: Mapping[tuple[int, ...], float]  # forget sample -> log pi_base, for NPO alone


def prepare(
    lm: LM,
    samples: Samples,
    config: UnlearnConfig,
    topics: Sequence[Topic] = (),
    own: LikelihoodConfig = LikelihoodConfig(),
) -> Prepared:
    """Plans every update, finds the matrices, and measures the base on the forget samples.

    `lm` is the full model. Raises ValueError for a model or settings that cannot be worked with.
    """
    if config.numerics == "published":
        raise ValueError(
            f"{own.method} has no published numerics to repeat; expected the budget of a run with --numerics clean"
        )
    assert config.alpha is not None
    updates = CLEAN.updates(samples, config)
    job = Job(lm, own, config.alpha, reference_of(lm, updates) if own.method == "npo" else {})
    names = trained_names(lm, own.trained, config.matrix)
    sizes = lambda ids: {"num_samples": len(ids), "tokens": sum(map(len, ids))}  # noqa: E731
    chosen = {
        "block": lm.num_hidden_layers - 1,
        "trained": names,
        "topics": {name: sizes(ids) | {"retain_weight": config.alpha} for name, ids in samples.forget.items()},
        "retain": {name: sizes(ids) for name, ids in samples.retain.items()},
    }
    return Prepared(lm, config, updates, names, partial(losses, job), chosen)


def trained_names(lm: LM, trained: Matrices, matrix: str | None = None) -> list[str]:
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


def reference_of(lm: LM, updates: Sequence[Update]) -> dict[tuple[int, ...], float]:
    """log pi_base of every forget sample that some update takes."""
    used = list(dict.fromkeys(tuple(ids) for update in updates for ids in update.forget))
    with about("the base on the forget text, before anything is trained"):
        return dict(zip(used, map(math.fsum, text_logprobs(lm, used, REFERENCE_TOKENS)), strict=True))


def logits_of(lm: LM, weights: Mapping[str, Tensor], batch: Batch) -> Float[Tensor, "B T V"]:
    """The model's logits with `weights` in place of its own (none: the frozen base), differentiable in them."""
    model = lm.model
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "use_cache": False}
    if not weights:
        return model(**inputs).logits
    parameters = dict(model.named_parameters())
    given = {name: value.to(parameters[parts.base_name(name)].dtype) for name, value in weights.items()}
    return torch.func.functional_call(model, parts.assign_slices(parameters, given), (), inputs).logits


def text_logprob(logits: Float[Tensor, "B T V"], batch: Batch) -> Float[Tensor, " B"]:
    """log pi of each sample: the sum over its tokens that count."""
    per_token = token_logprobs(logits[:, :-1], batch.input_ids[:, 1:])  # (B, T-1)
    return torch.where(batch.loss_mask[:, 1:], per_token, 0.0).sum(-1)


def npo(logprob: Float[Tensor, " B"], reference: Float[Tensor, " B"], beta: float) -> Float[Tensor, ""]:
    """(2/beta) * mean log(1 + (pi/pi_base)^beta), from log pi and log pi_base of each sample."""
    return 2 / beta * F.softplus(beta * (logprob - reference)).mean()


def divergence(base: Float[Tensor, "N V"], logits: Float[Tensor, "N V"]) -> Float[Tensor, ""]:
    """KL(base || model) of the next token, summed over positions, in nats."""
    ours, theirs = (at_least_fp32(x).log_softmax(-1) for x in (logits, base))
    return F.kl_div(ours, theirs, reduction="sum", log_target=True)


def grouped(lm: LM, samples: Sequence[Sequence[int]]) -> list[list[tuple[int, ...]]]:
    """Samples in groups of similar length: what is padded is computed and counts for nothing."""
    lengths = [len(ids) for ids in samples]
    return [[tuple(samples[row]) for row in rows] for rows in rope.split(lm.model, similar_lengths(lengths), lengths)]


def losses(job: Job, weights: Mapping[str, Tensor], update: Update) -> Losses:
    """Both terms of one update, over its forget and its retain samples. In the log: nats per forget token."""
    lm, own = job.lm, job.config
    groups = grouped(lm, update.forget)
    batches = [pad(lm, group) for group in groups]
    logprob = torch.cat([text_logprob(logits_of(lm, weights, batch), batch) for batch in batches])  # (B,)
    forget_nll = -(logprob.sum() / num_counted(batches)).detach()
    forget_loss = logprob.mean()
    if own.method == "npo":
        reference = [job.reference[ids] for group in groups for ids in group]
        forget_loss = npo(logprob, logprob.new_tensor(reference), own.beta)
    batches = [pad(lm, group) for group in grouped(lm, update.retain)]
    retain_total = torch.stack([retain_sum(job, weights, batch) for batch in batches]).sum()
    measured = {"forget_nll": forget_nll.item()}
    return Losses(forget_loss, retain_total / num_counted(batches), job.retain_weight, measured)


def num_counted(batches: Sequence[Batch]) -> int:
    return sum(int(batch.loss_mask.sum()) for batch in batches)


def retain_sum(job: Job, weights: Mapping[str, Tensor], batch: Batch) -> Float[Tensor, ""]:
    """The retain term of one batch, summed over its tokens that count."""
    logits = logits_of(job.lm, weights, batch)
    if job.config.retain_term == "nll":
        return -text_logprob(logits, batch).sum()
    counts = batch.loss_mask[:, 1:]  # logits at t-1 predict token t
    with torch.no_grad():
        base = logits_of(job.lm, {}, batch)[:, :-1][counts]
    return divergence(base, logits[:, :-1][counts])

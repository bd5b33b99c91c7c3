"""NPO and gradient difference against slow obvious code: two models, autograd on the plain formula; their runs resume."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import misdirect as md
from attack_cases import state_hash, tiny_lm
from misdirect import runs, storage
from misdirect.config import Corpus, EvaluateConfig, Topic, UnlearnConfig
from misdirect.data import batches
from misdirect.model.delta import load_delta, swapped_in
from misdirect.model.lm import LM
from misdirect.model.load import load_lm
from misdirect.recipes import resolve
from misdirect.unlearning import likelihood, schedule
from misdirect.unlearning import run as running
from misdirect.unlearning.arithmetic import tokenized
from misdirect.unlearning.likelihood import LikelihoodConfig
from misdirect.unlearning.methods import METHODS, Method, by_likelihood, unlearn
from misdirect.unlearning.order import Order, describe
from misdirect.unlearning.schedule import Samples, Update
from misdirect.unlearning.train import Losses, Prepared, State
from tiny import LAYERS, prepared, texts, tiny_folder

FORGET = {"bio": texts(7, 25, seed=1)}
RETAIN = [("wiki", texts(7, 25, seed=2), 1.0), ("law", texts(5, 25, seed=3), 2.0)]
BUDGET = resolve(
    UnlearnConfig(
        block=2, updates=3, batch_size=2, retain_batch_size=3, max_tokens=16, clip=1.0, device="cpu", lr=1e-2, alpha=1.0
    ),
    LAYERS,
)
LONG = resolve(
    UnlearnConfig(block=2, updates=1, batch_size=9, retain_batch_size=12, max_tokens=40, device="cpu"), LAYERS
)
FAST = LikelihoodConfig(beta=0.1)
FAMILIES = ["llama", "gpt2", "qwen2", "gemma2"]


def mean_logprob(model: Any, ids: list[int]) -> tuple[Tensor, int]:
    """(sum of log p over the tokens but the first, their number), one text, no padding."""
    logprobs = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].log_softmax(-1)
    return torch.stack([logprobs[i - 1, ids[i]] for i in range(1, len(ids))]).sum(), len(ids) - 1


def plain_loss(
    model: Any, frozen: Any, forget: list[list[int]], retain: list[list[int]], config: LikelihoodConfig, weight: float
) -> Tensor:
    """The formulas of the papers with two models, text by text."""
    ours = [mean_logprob(model, ids) for ids in forget]
    if config.method == "npo":
        with torch.no_grad():
            theirs = [mean_logprob(frozen, ids)[0] for ids in forget]
        ratios = [(a - b).exp() for (a, _), b in zip(ours, theirs, strict=True)]
        forget_loss = sum(2 / config.beta * torch.log(1 + r**config.beta) for r in ratios) / len(forget)
    else:
        forget_loss = sum(a for a, _ in ours) / len(forget)
    total, count = torch.tensor(0.0), 0
    for ids in retain:
        count += len(ids) - 1
        if config.retain_term == "nll":
            total = total - mean_logprob(model, ids)[0]
            continue
        p, q = (m(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1].softmax(-1) for m in (frozen, model))
        total = total + (p.detach() * (p.detach().log() - q.log())).sum()
    return forget_loss + weight * total / count


def ready(lm: LM, config: LikelihoodConfig = FAST, budget: UnlearnConfig = BUDGET, retain: Any = RETAIN) -> Prepared:
    return likelihood.prepare(lm, tokenized(lm, FORGET, retain, budget), budget, own=config)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("method", "retain_term"), [("npo", "kl"), ("npo", "nll"), ("gradient-difference", "kl")])
def test_loss_and_gradient_are_those_of_two_models(family: str, method: Any, retain_term: Any) -> None:
    lm = tiny_lm(family)
    lm = LM(lm.model, lm.tokenizer, lm.source, lm.num_hidden_layers, prefix_of(family))
    config = LikelihoodConfig(method, beta=0.05, retain_term=retain_term)
    job = ready(lm, config, dataclasses.replace(LONG, alpha=2.5))
    _, forget, retain = job.updates[0]
    assert len(likelihood.grouped(lm, forget)) > 1 and len(likelihood.grouped(lm, retain)) > 1
    draw = torch.Generator().manual_seed(0)
    own = dict(lm.model.named_parameters())
    leaves = {n: (own[n] + 0.02 * torch.randn(own[n].shape, generator=draw)).requires_grad_() for n in job.names}
    terms = job.losses(leaves, job.updates[0])
    assert terms.retain_weight == 2.5
    loss = terms.forget + terms.retain_weight * terms.retain
    found = torch.autograd.grad(loss, list(leaves.values()))

    other = copy.deepcopy(lm.model)
    with torch.no_grad():
        for name, value in leaves.items():
            other.get_parameter(name).copy_(value)
    for name in leaves:
        other.get_parameter(name).requires_grad_(True)
    slow = plain_loss(other, lm.model, forget, retain, config, 2.5)
    expected = torch.autograd.grad(slow, [other.get_parameter(name) for name in leaves])
    assert len(leaves) == LAYERS
    assert loss.item() == pytest.approx(slow.item(), rel=2e-5, abs=1e-5)
    for a, b in zip(found, expected, strict=True):
        assert (a - b).norm() <= 2e-4 * b.norm()


def prefix_of(family: str) -> str:
    return "transformer.h" if family == "gpt2" else "model.layers"


def test_a_small_beta_is_plain_ascent() -> None:
    lm = tiny_lm()
    batch = batches.pad([list(range(5, 14)), list(range(40, 46))], 0)
    leaf = {
        n: p.clone().requires_grad_() for n, p in lm.model.named_parameters() if n.endswith("3.mlp.down_proj.weight")
    }

    def gradient(beta: float | None) -> Tensor:
        logprob = likelihood.text_logprob(likelihood.logits_of(lm, leaf, batch), batch)
        loss = logprob.mean() if beta is None else likelihood.npo(logprob, logprob.detach() + 3.0, beta)
        return torch.autograd.grad(loss, list(leaf.values()))[0]

    ascent = gradient(None)
    assert torch.allclose(gradient(1e-6), ascent, rtol=1e-4, atol=1e-7)
    sigmoid = 2 / (1 + math.exp(3.0))  # at beta 1 a sample e^-3 as likely as before has this weight, and not 1
    assert torch.allclose(gradient(1.0), sigmoid * ascent, rtol=1e-4, atol=1e-7)


def test_npo_at_the_base_is_its_known_value() -> None:
    same = torch.tensor([-3.0, -80.0])
    assert likelihood.npo(same, same.clone(), 0.1).item() == pytest.approx(20 * math.log(2))
    assert math.isfinite(likelihood.npo(same + 1e5, same, 0.1).item())  # no overflow


def test_the_reference_is_taken_once_of_every_sample_used() -> None:
    job = ready(lm := tiny_lm())
    used = {tuple(ids) for update in job.updates for ids in update.forget}
    reference = likelihood.reference_of(lm, job.updates)
    assert set(reference) == used
    for ids in used:
        assert reference[ids] == pytest.approx(mean_logprob(lm.model, list(ids))[0].item(), abs=1e-3)


def test_samples_and_order_are_those_of_rmu() -> None:
    lm = tiny_lm()
    assert ready(lm).updates == prepared(lm, FORGET, RETAIN, BUDGET).updates


@pytest.mark.parametrize("config", [FAST, LikelihoodConfig("gradient-difference", retain_term="nll")])
def test_it_unlearns_and_leaves_the_model_as_it_was(config: LikelihoodConfig) -> None:
    lm = tiny_lm()
    before = state_hash(lm)
    delta, log = unlearn(lm, FORGET, RETAIN, BUDGET, method=by_likelihood(config))
    assert state_hash(lm) == before
    assert len(log) == 3 and log[-1]["forget_nll"] > log[0]["forget_nll"]
    assert len(delta.tensors) == LAYERS and all(v.dtype == torch.float32 for v in delta.tensors.values())
    with swapped_in(delta, lm.model):
        assert state_hash(lm) != before
    assert state_hash(lm) == before


def test_a_mixture_of_experts_trains_what_is_named() -> None:
    lm = tiny_lm("mixtral")
    with pytest.raises(ValueError, match="--matrix"):
        ready(lm)
    named = resolve(
        UnlearnConfig(block=2, updates=1, batch_size=2, max_tokens=16, matrix="mlp.experts.down_proj[0]", lr=1e-2), 6
    )
    before = state_hash(lm)
    delta, _ = unlearn(lm, FORGET, RETAIN, named, method=by_likelihood(FAST))
    assert state_hash(lm) == before
    assert all(name.endswith("down_proj[0]") for name in delta.tensors)
    everything, _ = unlearn(lm, FORGET, RETAIN, named, method=by_likelihood(LikelihoodConfig(trained="all")))
    assert "model.layers.0.self_attn.q_proj.weight" in everything.tensors
    with swapped_in(delta, lm.model), torch.no_grad():
        assert lm.model(input_ids=torch.tensor([[3, 4]])).logits.isfinite().all()


def test_bfloat16_keeps_fp32_masters() -> None:
    lm = tiny_lm()
    lm.model.to(torch.bfloat16)
    delta, log = unlearn(lm, FORGET, RETAIN, BUDGET, method=by_likelihood(FAST))
    assert {v.dtype for v in delta.tensors.values()} == {torch.float32}
    assert log[-1]["forget_nll"] > log[0]["forget_nll"]


def test_refusals() -> None:
    for bad in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="out of range"):
            LikelihoodConfig(beta=bad)
    lm = tiny_lm()
    with pytest.raises(ValueError, match="no retain text"):
        ready(lm, retain=[])
    with pytest.raises(ValueError, match="published"):
        ready(lm, budget=resolve(UnlearnConfig(block=2, numerics="published"), LAYERS))
    odd = lm.tokenizer("\u0436")["input_ids"]
    with torch.no_grad():
        lm.model.get_input_embeddings().weight[odd] = math.nan  # spoils the retain text alone
    with pytest.raises(ValueError, match="loss of bio is not a finite number at update 1"):
        unlearn(lm, FORGET, [("odd", ["\u0436" * 9], 1.0)], BUDGET, method=by_likelihood(FAST))
    with torch.no_grad():
        lm.model.get_parameter("model.norm.weight").fill_(math.nan)
    with pytest.raises(ValueError, match="before anything is trained"):
        ready(lm)


# ------------------------------------------------------------------------------------------------ the run directory

TOPICS, CORPORA = [Topic("bio", "bio.jsonl")], [Corpus("wiki", "wiki.jsonl"), Corpus("law", "law.jsonl", 2.0)]


def execute(lm: LM, run: Path, config: LikelihoodConfig = FAST, advance: Any = None, every: int = 100) -> Any:
    method, budget = by_likelihood(config), dataclasses.replace(BUDGET, checkpoint_every=every)
    order = Order("tiny", config.method, TOPICS, CORPORA, FORGET, RETAIN)
    job = ready(lm, config, budget)
    return running.execute(job, run, describe(order, job, method.stored(budget)), method, advance)


def test_a_run_directory_that_evaluate_and_report_read(tmp_path: Path) -> None:
    lm, run = load_lm(str(tiny_folder(tmp_path, "llama"))), tmp_path / "run"
    seen: list[tuple[int, str]] = []
    delta = execute(lm, run, advance=lambda count, text: seen.append((count, text)))
    assert {path.name for path in run.iterdir()} == {"config.json", "env.json", "log.jsonl", "delta.safetensors"}
    assert len(seen) == len(runs.read_log(run)) == 3
    runs.require_run(run)
    config = storage.read_json(run / runs.CONFIG)
    assert config["settings"]["method"] == "npo" and config["chosen"]["block"] == LAYERS - 1
    stored = load_delta(run / runs.DELTA)
    assert stored.metadata["method"] == "npo"
    assert all(torch.equal(stored.tensors[n], v) for n, v in delta.tensors.items())

    (tmp_path / "kept.txt").write_text(" ".join(texts(5, 20, seed=9)))
    rows = md.evaluate(run, texts={"kept": str(tmp_path / "kept.txt")}, config=EvaluateConfig(device="cpu"))
    values = {row["model"]: row["value"] for row in rows if row["metric"] == "nll_per_token"}
    assert values["unlearned"] != values["base"]
    assert "nll" in md.report(run).read_text(encoding="utf-8").lower()

    times = (run / runs.DELTA).stat().st_mtime_ns
    execute(lm, run)  # finished: not repeated
    assert (run / runs.DELTA).stat().st_mtime_ns == times
    with pytest.raises(ValueError, match=r"settings\.beta"):
        execute(lm, run, LikelihoodConfig(beta=0.2))


@pytest.mark.parametrize("every", [1, 100])
def test_a_killed_run_resumes_from_its_checkpoint_or_begins_again(tmp_path: Path, every: int) -> None:
    lm = tiny_lm()
    whole = execute(lm, tmp_path / "whole")

    def stop(count: int, text: str) -> None:
        if len(runs.read_log(tmp_path / "run")) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(lm, tmp_path / "run", advance=stop, every=every)
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert left - {"checkpoint.safetensors"} == {"config.json", "env.json", "log.jsonl"}
    assert ("checkpoint.safetensors" in left) is (every == 1)
    with pytest.raises(ValueError, match="unfinished"):
        runs.require_run(tmp_path / "run")
    made: list[int] = []
    again = execute(lm, tmp_path / "run", advance=lambda count, text: made.append(count), every=every)
    assert made == ([2, 1] if every == 1 else [1, 1, 1])
    assert all(torch.equal(again.tensors[n], v) for n, v in whole.tensors.items())
    assert [line["step"] for line in runs.read_log(tmp_path / "run")] == [1, 2, 3]
    lines = (tmp_path / "run" / runs.LOG).read_text().splitlines()
    assert all(math.isfinite(json.loads(line)["forget_loss"]) for line in lines)


# ------------------------------------------------------------------------------------------------ the interface


def subtract(prepared: Prepared, state: State, after_update: Any) -> State:
    """A `train` of one pass: each matrix less a step along its gradient on all forget text, scaled to its own size."""
    leaves = {name: value.requires_grad_() for name, value in state.weights.items()}
    loss = torch.stack([prepared.losses(leaves, update).forget for update in prepared.updates]).sum()
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    weights = {
        name: (value - 0.1 * value.norm() * gradient / gradient.norm()).detach()
        for (name, value), gradient in zip(leaves.items(), gradients, strict=True)
    }
    done = state._replace(step=len(prepared.updates), weights=weights)
    after_update(done, {"step": done.step, "topic": "all", "forget_loss": loss.item(), "retain_loss": 0.0})
    return done


def prepare_subtraction(lm: LM, samples: Samples, config: UnlearnConfig, topics: Sequence[Topic] = ()) -> Prepared:
    """Likelihood of the forget text, on the MLP output of the last two blocks."""
    names = likelihood.trained_names(lm, "mlp")[-2:]

    def losses(leaves: Mapping[str, Tensor], update: Update) -> Losses:
        batch = schedule.pad(lm, update.forget)
        logprob = likelihood.text_logprob(likelihood.logits_of(lm, leaves, batch), batch).mean()
        return Losses(logprob, torch.zeros(()), 0.0)

    chosen = {"block": lm.num_hidden_layers - 1, "trained": names}
    return Prepared(lm, config, schedule.updates(samples, config), names, losses, chosen)


def test_a_method_of_one_pass_is_one_module_and_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A method that is none of ours, through the command line's own path: folder, report, and what follows."""
    monkeypatch.setitem(METHODS, "toy", Method(prepare_subtraction, train=subtract))
    model, run = tiny_folder(tmp_path / "model", "llama"), tmp_path / "run"
    for name, seed in (("bio", 1), ("wiki", 2)):
        (tmp_path / f"{name}.txt").write_text("\n\n".join(texts(6, 20, seed=seed)))
    sources = ({"bio": str(tmp_path / "bio.txt")}, {"wiki": str(tmp_path / "wiki.txt")})
    md.unlearn(str(model), *sources, run, UnlearnConfig(block=2, updates=2, max_tokens=16, device="cpu"), method="toy")
    with pytest.raises(
        ValueError, match="no method is called 'tot'; expected one of rmu, npo, gradient-difference, toy"
    ):
        md.unlearn(str(model), *sources, tmp_path / "other", method="tot")
    delta = load_delta(run / runs.DELTA)
    assert delta.metadata["method"] == "toy" and len(delta.tensors) == 2
    assert storage.read_json(run / runs.CONFIG)["method"] == "toy"
    rows = md.evaluate(run, texts={"bio": str(tmp_path / "bio.txt")}, config=EvaluateConfig(device="cpu"))
    before, after = (
        next(r["value"] for r in rows if r["model"] == side and r["metric"] == "nll_per_token")
        for side in ("base", "unlearned")
    )
    assert after > before + 0.05
    assert "toy" in md.report(run).read_text(encoding="utf-8")

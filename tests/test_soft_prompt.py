"""Soft prompt and perturbation: vectors in the forward pass against text, finite differences and the scorer."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch
from torch import Tensor

import tiny
from attack_cases import questions, state_hash, tiny_inputs, tiny_lm
from misdirect.attacks import optimize, perturbation, soft_prompt
from misdirect.attacks.interface import Attack, AttackInputs
from misdirect.attacks.scoring import score_sets
from misdirect.config import AuditConfig
from misdirect.data.fact_splits import split
from misdirect.model import packed
from misdirect.model.lm import LM
from misdirect.model.score import Encoded, score, score_batch, score_plainly
from misdirect.runs import Result

FAMILIES = ["llama", "gpt2", "gemma2", "mixtral", "qwen2"]
CONFIG = AuditConfig(soft_tokens=4, soft_steps=15)


def soft(inputs: AttackInputs, config: AuditConfig = CONFIG) -> Attack:
    (attack,) = soft_prompt.attacks(inputs, config)
    return attack


def rows(found: list[Result]) -> dict[str, float]:
    return {m.metric: m.value for m in found[0].metrics}


@torch.no_grad()
def embedded(lm: LM, ids: list[int]) -> Tensor:
    found: Tensor = lm.model.get_input_embeddings()(torch.tensor([ids]))[0]
    return found


# ---------------------------------------------------------------------------------------------------- soft prompt


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("scorer", ["score", "score_batch", "score_plainly"])
def test_vectors_that_are_a_texts_embeddings_score_as_that_text(family: str, scorer: str) -> None:
    lm, inputs = tiny_inputs(family, count=8)
    items = soft_prompt.everything(lm, inputs)
    text = lm.tokenizer("the river and the house")["input_ids"]
    ids = soft_prompt.placeholders(lm, inputs, len(text))
    ask = {"score": score, "score_batch": score_batch, "score_plainly": score_plainly}[scorer]
    if scorer == "score" and family == "llama":
        assert packed.fits(lm, score_batch)  # the rows are packed
    as_text = ask(lm, [soft_prompt.inserted(lm, text, item) for item in items])
    edited = [soft_prompt.inserted(lm, ids, item) for item in items]
    with soft_prompt.placed(lm, ids, embedded(lm, text)):
        as_vectors = ask(lm, edited)
    assert as_vectors == as_text
    assert ask(lm, edited) != as_text  # without the vectors the places hold other tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_the_start_is_the_sentences_own_embeddings(family: str) -> None:
    lm, inputs = tiny_inputs(family, count=8)
    text = lm.tokenizer(soft_prompt.START)["input_ids"][:6]
    ids = soft_prompt.placeholders(lm, inputs, 6)
    item = soft_prompt.everything(lm, inputs)[0]
    with soft_prompt.placed(lm, ids, soft_prompt.starting(lm, 6)):
        found = score(lm, [soft_prompt.inserted(lm, ids, item)])
    assert found == score(lm, [soft_prompt.inserted(lm, text, item)])


def test_more_vectors_than_the_sentence_has_tokens_repeat_it() -> None:
    lm = tiny_lm()
    count = len(lm.tokenizer(soft_prompt.START)["input_ids"])
    found = soft_prompt.starting(lm, count + 3)
    assert torch.equal(found[count:], found[:3])


def test_the_vectors_come_after_a_bos_and_before_all_else() -> None:
    lm = tiny_lm()
    item = Encoded([5, 6, 7], [[8], [9, 10]])
    assert soft_prompt.inserted(lm, [1, 2], item) == Encoded([1, 2, 5, 6, 7], [[8], [9, 10]])
    tokenizer = copy.deepcopy(lm.tokenizer)
    tokenizer.bos_token = "<eos>"
    with_bos = dataclasses.replace(lm, tokenizer=tokenizer)
    start = tokenizer.bos_token_id
    assert soft_prompt.inserted(with_bos, [3, 2], Encoded([start, 6], [[8]])).context == [start, 3, 2, 6]


def test_placeholders_occur_in_no_question_and_are_not_special() -> None:
    lm, inputs = tiny_inputs()
    found = soft_prompt.placeholders(lm, inputs, 20)
    assert len(set(found)) == 20 and not {0, 1} & set(found)
    for item in soft_prompt.everything(lm, inputs):
        assert not set(found) & {*item.context, *(t for tail in item.continuations for t in tail)}


def test_a_prompt_longer_than_the_unused_vocabulary_is_refused_in_a_line() -> None:
    lm, inputs = tiny_inputs(count=8)
    with pytest.raises(ValueError, match="--soft-tokens 400 needs as many tokens that no question uses") as error:
        soft_prompt.placeholders(lm, inputs, 400)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_is_the_scorers(family: str) -> None:
    lm, inputs = tiny_inputs(family)
    items = optimize.examples(lm, inputs)
    items = [*items, Encoded(items[0].context[:3], [items[0].continuations[0] * 3])]  # lengths that differ much
    found = optimize.nlls(lm, items)
    expected = [-s.logprobs[0] / s.num_tokens[0] for s in score_plainly(lm, items)]
    assert found.tolist() == pytest.approx(expected, abs=1e-5)
    watched = optimize.watched(lm, items, 3)
    assert watched.tolist() == pytest.approx(expected, abs=1e-5)


def test_what_is_learned_from_is_the_attackers_half_alone() -> None:
    lm, inputs = tiny_inputs()
    texts = [lm.tokenizer.decode(i.context + i.continuations[0]) for i in optimize.examples(lm, inputs)]
    halves = inputs.forgotten["biology"]
    assert texts == [f"Question: {q.question}\nAnswer: {q.choices[q.answer]}" for q in halves.train]
    assert not any(q.question in text for q in halves.test for text in texts)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_is_that_of_finite_differences(family: str) -> None:
    every = {"num_experts_per_tok": 4} if family == "mixtral" else {}  # a change of experts would be a jump
    lm, inputs = tiny_inputs(family, count=8, **every)
    lm.model.double()
    lm.model.config._experts_implementation = "eager"  # the grouped form of the experts takes no float64
    ids = soft_prompt.placeholders(lm, inputs, 2)
    items = [soft_prompt.inserted(lm, ids, item) for item in optimize.examples(lm, inputs)]
    vectors = embedded(lm, [40, 41]).requires_grad_()
    check_gradient(lambda v: loss_with(lm, items, soft_prompt.placed(lm, ids, v)), vectors)
    vector = torch.zeros(tiny.WIDTH, dtype=torch.float64, requires_grad=True)
    check_gradient(lambda v: loss_with(lm, items, perturbation.added(lm, 3, v)), vector)


def loss_with(lm: LM, items: list[Encoded], applied: object) -> Tensor:
    with applied:  # type: ignore[attr-defined]
        return optimize.nlls(lm, items).mean()


def check_gradient(loss: object, value: Tensor) -> None:
    (gradient,) = torch.autograd.grad(loss(value), [value])  # type: ignore[operator]
    step = torch.randn(value.shape, generator=torch.Generator().manual_seed(3), dtype=value.dtype) * 1e-3
    with torch.no_grad():
        measured = (loss(value + step) - loss(value - step)) / 2  # type: ignore[operator]
    expected = (gradient * step).sum()
    assert expected.abs() > 1e-6
    assert measured.item() == pytest.approx(expected.item(), rel=5e-3)  # norms round to fp32


@pytest.mark.parametrize("family", FAMILIES)
def test_a_soft_prompt_is_trained_and_the_model_stays_as_it_was(family: str) -> None:
    lm, inputs = tiny_inputs(family, count=8)
    attack, before, done = soft(inputs), state_hash(lm), []
    found = attack.run(lm, inputs, attack, done.append)
    assert state_hash(lm) == before
    assert sum(done) == attack.num_steps
    values = rows(found)
    assert values["train_nll_end"] < values["train_nll_start"]
    assert [p["step"] for p in found[0].records[0]["points"]] == [0, 5, 10, 15]
    assert [p["step"] for p in found[1].records[0]["points"]] == [0, 15]
    plain = score_sets(lm, inputs)["biology"]
    assert [r["points"][0]["logprobs"] for r in found[0].records] == plain
    assert [r["points"][3]["logprobs"] for r in found[0].records] != plain
    again = attack.run(lm, inputs, attack, lambda n: None)
    assert [r.records for r in again] == [r.records for r in found]


def test_the_control_tells_a_working_optimizer_from_a_broken_one(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, inputs = tiny_inputs(count=8)
    attack = soft(inputs, AuditConfig(soft_tokens=8, soft_steps=60))
    assert rows(attack.run(lm, inputs, attack, lambda n: None))["positive_control"] == 1
    monkeypatch.setattr(soft_prompt, "RATE", 0.0)
    assert rows(attack.run(lm, inputs, attack, lambda n: None))["positive_control"] == 0


def test_a_clear_fall_is_large_and_beyond_its_spread() -> None:
    before = torch.full((9,), 2.0)
    noise = torch.linspace(-1, 1, 9)
    assert optimize.loss_decreased(before, before - 0.5 + 0.1 * noise)
    assert not optimize.loss_decreased(before, before - 0.1)  # 5 %
    assert not optimize.loss_decreased(before, before - 0.3 + 2 * noise)  # 15 %, in the noise
    assert not optimize.loss_decreased(before, before + 1)
    assert not optimize.loss_decreased(before, torch.full((9,), math.nan))
    assert optimize.loss_decreased(before[:1], before[:1] - 1)


@pytest.mark.parametrize("module", [soft_prompt, perturbation])
def test_an_interruption_in_the_middle_leaves_the_model_as_it_was(module: object) -> None:
    lm, inputs = tiny_inputs("qwen2", count=8)
    attack, before = module.attacks(inputs, CONFIG)[0], state_hash(lm)  # type: ignore[attr-defined]
    done = []

    def advance(n: int) -> None:
        done.append(n)
        if len(done) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attack.run(lm, inputs, attack, advance)
    assert state_hash(lm) == before


@pytest.mark.parametrize("module", [soft_prompt, perturbation])
def test_a_model_that_gives_no_numbers_is_refused_in_a_line(module: object) -> None:
    lm, inputs = tiny_inputs(count=8)
    with torch.no_grad():
        lm.model.model.norm.weight[0] = math.nan
    attack = module.attacks(inputs, CONFIG)[0]  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="llama gives NaN or infinity for 4 of 4 training questions") as error:
        attack.run(lm, inputs, attack, lambda n: None)
    assert "\n" not in str(error.value)


def test_too_few_updates_are_said_before_it_starts() -> None:
    _, inputs = tiny_inputs(count=8)
    assert soft(inputs, AuditConfig(soft_steps=9)).unavailable == "needs --soft-steps 10 or more"
    assert soft(inputs, AuditConfig(soft_steps=10)).unavailable == ""
    assert {a.unavailable for a in perturbation.attacks(inputs, AuditConfig(soft_steps=9))} != {""}


@pytest.mark.parametrize("form", ["cloze", "letter", "letter_permuted"])
def test_every_format_and_several_sets(form: str) -> None:
    lm, inputs = tiny_inputs(form=form, count=8)  # type: ignore[arg-type]
    two = dataclasses.replace(
        inputs,
        forgotten={**inputs.forgotten, "cyber": split(questions(6, name="c"), 0)},
        forms={**inputs.forms, "cyber": "cloze"},
    )
    attack = soft(two, AuditConfig(soft_tokens=2, soft_steps=10))
    assert [r.set for r in attack.run(lm, two, attack, lambda n: None)] == ["biology", "cyber", "other", "answers"]


# ---------------------------------------------------------------------------------------------------- perturbation


@pytest.mark.parametrize("family", FAMILIES)
def test_a_zero_vector_changes_nothing(family: str) -> None:
    lm, inputs = tiny_inputs(family, count=8)
    plain = score_sets(lm, inputs)
    with perturbation.added(lm, 2, torch.zeros(tiny.WIDTH)):
        assert score_sets(lm, inputs) == plain
    with perturbation.added(lm, 2, torch.ones(tiny.WIDTH)):
        assert score_sets(lm, inputs) != plain


def test_the_ball_is_projected_on_from_outside_alone() -> None:
    project = perturbation.into_ball(2.0)
    inside = torch.tensor([1.0, 1.0])
    assert torch.equal(project(inside), inside)
    torch.testing.assert_close(project(torch.tensor([3.0, 4.0])), torch.tensor([1.2, 1.6]))
    assert torch.equal(project(torch.zeros(2)), torch.zeros(2))


def test_the_bound_holds_after_every_update_and_binds() -> None:
    lm, inputs = tiny_inputs(count=8)
    items = optimize.examples(lm, inputs)
    vector = torch.zeros(tiny.WIDTH, requires_grad=True)
    updates = optimize.updates(
        lm, items, vector, lambda: perturbation.added(lm, 2, vector), [[0, 1]] * 12, 0.1, perturbation.into_ball(0.5)
    )
    norms = [vector.norm().item() for _ in updates]
    assert len(norms) == 12 and max(norms) <= 0.5 * (1 + 1e-6) and norms[-1] == pytest.approx(0.5, rel=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_perturbations_are_trained_and_the_model_stays_as_it_was(family: str) -> None:
    lm, inputs = tiny_inputs(family, count=8)
    attacks = perturbation.attacks(inputs, CONFIG)
    assert [a.name for a in attacks] == ["perturbation-block", "perturbation-late"]
    for attack, block in list(zip(attacks, (2, 4), strict=True))[: 2 if family == "llama" else 1]:
        before, done = state_hash(lm), []
        found = attack.run(lm, inputs, attack, done.append)
        assert state_hash(lm) == before
        assert sum(done) == attack.num_steps
        points = found[0].records[0]["points"]
        assert [(p["block"], p["budget"]) for p in points] == [(block, e) for e in (0.0, *perturbation.EPSILONS)]
        values = rows(found)
        assert values["train_nll_end"] < values["train_nll_before"]
        assert [r.measurement for r in found] == ["mcq", "mcq", "generation"]

"""Probes: scikit-learn's solution, a planted answer found where it was planted, chance where there is none."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

import tiny
from attack_cases import questions, state_hash, tiny_inputs
from misdirect import stats
from misdirect.attacks import probe_fit, probes
from misdirect.attacks.interface import Attack, AttackInputs
from misdirect.auditing import budget
from misdirect.config import AuditConfig
from misdirect.data.fact_splits import split
from misdirect.model.lm import LM
from misdirect.model.packed import Encoded
from misdirect.model.states import last_states
from misdirect.runs import Metric, Result
from misdirect.storage import finite


def uneven_states(blocks: int, texts: int, width: int, seed: int = 0) -> torch.Tensor:
    """Features of very different scale and mean, correlated, one of them constant."""
    draw = torch.Generator().manual_seed(seed)
    mixed = torch.randn(blocks, texts, width, generator=draw) @ torch.randn(width, width, generator=draw)
    found = mixed * torch.logspace(-2, 3, width) + 5
    found[:, :, 3] = 7
    return found


def theirs(states: torch.Tensor, labels: torch.Tensor, strength: float) -> LogisticRegression:
    """scikit-learn on one block, on features standardised by numpy."""
    found = states.double().numpy()
    spread = found.std(0)
    scaled = (found - found.mean(0)) / np.where(spread > 0, spread, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = LogisticRegression(C=strength, tol=1e-10, max_iter=100_000).fit(scaled, labels.numpy())
    model.scaled = scaled
    return model


@pytest.mark.parametrize("width", [20, 90])  # fewer and more than texts
@pytest.mark.parametrize("strength", [1e-3, 1e-1, 3.0])
def test_two_classes_as_scikit_learn(width: int, strength: float) -> None:
    states = uneven_states(3, 60, width)
    draw = torch.Generator().manual_seed(1)
    labels = (torch.rand(60, 2, generator=draw) < 0.3).float()
    fitted = probe_fit.fit(states, labels.unsqueeze(-1), strength)
    found = probe_fit.decide(fitted, states)
    for block in range(3):
        for task in range(2):
            model = theirs(states[block], labels[:, task], strength)
            assert np.abs(model.decision_function(model.scaled) - found[block, :, task, 0].numpy()).max() < 1e-3
            assert np.abs(model.coef_[0] - fitted.weights[block, :, task, 0].numpy()).max() < 1e-3
            assert model.intercept_[0] == pytest.approx(fitted.intercepts[block, task, 0].item(), abs=1e-3)


@pytest.mark.parametrize("strength", [1e-3, 1e-1, 3.0])
def test_four_classes_as_scikit_learn(strength: float) -> None:
    states = uneven_states(2, 80, 30)
    labels = torch.randint(4, (80, 2), generator=torch.Generator().manual_seed(2))
    fitted = probe_fit.fit(states, torch.nn.functional.one_hot(labels, 4).float(), strength)
    found = probe_fit.decide(fitted, states)
    for block in range(2):
        for task in range(2):
            model = theirs(states[block], labels[:, task], strength)
            assert np.abs(model.predict_log_proba(model.scaled)
                          - found[block, :, task].log_softmax(-1).numpy()).max() < 1e-3  # fmt: skip
            assert np.abs(model.coef_ - fitted.weights[block, :, task].mT.numpy()).max() < 1e-3


def test_the_gradient_vanishes_at_the_solution() -> None:
    states, labels = uneven_states(2, 50, 70), (torch.arange(50) % 3 == 0).double().view(-1, 1, 1)
    fitted = probe_fit.fit(states, labels.float(), 0.05)
    z = probe_fit.standardised(states, fitted.mean, fitted.scale)
    weights = fitted.weights[:, :, 0, 0].double().requires_grad_()
    bias = fitted.intercepts[:, 0, 0].double().requires_grad_()
    logits = torch.einsum("bnd,bd->bn", z, weights) + bias[:, None]
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels[:, 0, 0].expand(2, -1), reduction="none")
    (0.05 * loss.sum() + weights.square().sum() / 2).backward()
    assert weights.grad is not None and bias.grad is not None
    assert weights.grad.abs().max() < 1e-4
    assert bias.grad.abs().max() < 1e-4


def test_blocks_one_by_one_and_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    states, labels = uneven_states(5, 40, 12), (torch.arange(40) % 2).float().view(-1, 1, 1)
    whole = probe_fit.fit(states, labels, 0.1)
    monkeypatch.setattr(probe_fit, "WORKSPACE", 2 * 4 * 40**2)
    parts = probe_fit.fit(states, labels, 0.1)
    assert torch.allclose(whole.weights, parts.weights, atol=1e-5)


def test_what_does_not_settle_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_fit, "MOST_STEPS", 3)
    with pytest.raises(ValueError, match="a probe did not settle in 3 steps; expected finite states and a smaller C"):
        probe_fit.fit(uneven_states(1, 40, 12), (torch.arange(40) % 2).float().view(-1, 1, 1), 10.0)


def attack(inputs: AttackInputs, kind: str) -> Attack:
    return next(a for a in probes.attacks(inputs, AuditConfig()) if a.name == f"probe-{kind}")


def rows(result: Result, metric: str) -> dict[int, Metric]:
    return {m.block: m for m in result.metrics if m.metric == metric and m.block is not None}


PLANTED = 3


def with_a_secret(inputs: AttackInputs) -> Callable[..., torch.Tensor]:
    """`last_states`, with a direction written after block 3 where the text is a right answer behind its question."""
    halves = inputs.forgotten["biology"]
    right = torch.tensor([i == q.answer for q in (*halves.train, *halves.test) for i in range(len(q.choices))])
    direction = torch.randn(tiny.WIDTH, generator=torch.Generator().manual_seed(1))

    def read(lm: LM, items: Sequence[Encoded], *rest: Any) -> torch.Tensor:
        found = last_states(lm, items, *rest)
        if found.shape[1] == len(right) and len(items[0].context) > 10:
            found[PLANTED + 1] += 3 * right[:, None] * direction
        return found

    return read


def run(lm: LM, inputs: AttackInputs, kind: str) -> dict[str, Result]:
    chosen = attack(inputs, kind)
    assert not chosen.unavailable
    assert not chosen.recovers
    steps: list[int] = []
    found = {result.set: result for result in chosen.run(lm, inputs, chosen, steps.append)}
    assert sum(steps) == chosen.num_steps
    return found


@pytest.fixture(scope="module")
def planted() -> tuple[AttackInputs, dict[str, Result]]:
    lm, inputs = tiny_inputs(count=100)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probes, "last_states", with_a_secret(inputs))
        return inputs, run(lm, inputs, "true-false")


def test_a_planted_answer_is_found_at_its_block_alone(planted: tuple[AttackInputs, dict[str, Result]]) -> None:
    found = rows(planted[1]["biology"], "probe_accuracy")
    assert list(found) == list(range(-1, tiny.LAYERS))
    assert found[PLANTED].value > 0.9
    assert [block for block, row in found.items() if row.headline] == [PLANTED]
    others = [row.value for block, row in found.items() if block != PLANTED]
    assert max(others) < 0.5
    assert all(
        row.n == 50 and row.chance == 0.25 and row.floor is not None and row.floor < 0.5 for row in found.values()
    )


def test_shuffled_labels_give_chance(planted: tuple[AttackInputs, dict[str, Result]]) -> None:
    control, gain = (rows(planted[1]["biology"], name) for name in ("probe_shuffled_accuracy", "selectivity"))
    assert all(abs(row.value - 0.25) < 0.1 for row in control.values())  # 50 questions, five shuffles
    assert sum(row.value for row in control.values()) / len(control) == pytest.approx(0.25, abs=0.06)
    assert gain[PLANTED].low is not None and gain[PLANTED].low > 0.4
    unplanted = [row for block, row in gain.items() if block != PLANTED]
    assert sum(row.low is not None and row.low > 0 for row in unplanted) <= 1


def test_other_sets_have_nothing_planted(planted: tuple[AttackInputs, dict[str, Result]]) -> None:
    assert set(planted[1]) == {"biology", "other"}
    assert max(row.value for row in rows(planted[1]["other"], "probe_accuracy").values()) < 0.6
    assert not any(m.metric == "attack_seconds" for m in planted[1]["other"].metrics)


def test_every_number_follows_from_the_records(planted: tuple[AttackInputs, dict[str, Result]]) -> None:
    """From the stored JSON, by other code."""
    for result in planted[1].values():
        stored = json.loads(json.dumps(finite(list(result.records))))
        for place, block in enumerate(range(-1, tiny.LAYERS)):
            points = [(r, r["points"][place]) for r in stored]
            assert all(p["block"] == block for _, p in points)
            right = [int(np.argmax(p["scores"]) == r["answer"]) for r, p in points]
            assert right == [p["correct"] for _, p in points]
            shuffled = np.mean([np.equal(p["shuffled"], r["shuffled_answers"]) for r, p in points])
            floor = np.mean([p["floor"] == r["answer"] for r, p in points])
            row = rows(result, "probe_accuracy")[block]
            assert (row.value, row.floor) == (np.mean(right), floor)
            assert (row.low, row.high) == stats.wilson(sum(right), len(right))
            assert rows(result, "probe_shuffled_accuracy")[block].value == pytest.approx(shuffled)
            assert rows(result, "selectivity")[block].value == pytest.approx(np.mean(right) - shuffled)


def test_only_the_attackers_half_is_learned_from(planted: tuple[AttackInputs, dict[str, Result]]) -> None:
    inputs, found = planted
    tested = {q.id for q in inputs.forgotten["biology"].test}
    assert {record["id"] for record in found["biology"].records} == tested
    lm, other = tiny_inputs(count=100)
    halves = other.forgotten["biology"]
    wrong = tuple(dataclasses.replace(q, answer=(q.answer + 1) % 4) for q in halves.test)
    moved = dataclasses.replace(other, forgotten={"biology": halves._replace(test=wrong)}, retained={})
    same = run(lm, dataclasses.replace(other, retained={}), "true-false")["biology"]
    again = run(lm, moved, "true-false")["biology"]
    assert [[p["scores"] for p in r["points"]] for r in same.records] == [
        [p["scores"] for p in r["points"]] for r in again.records
    ]


def test_a_wording_that_gives_answers_away_shows_as_floor() -> None:
    lm, inputs = tiny_inputs(count=60)
    told = [
        dataclasses.replace(q, choices=tuple("the stone" if i == q.answer else f"the house {i}" for i in range(4)))
        for q in questions(60)
    ]
    found = run(lm, dataclasses.replace(inputs, forgotten={"biology": split(told, 0)}, retained={}), "true-false")
    row = rows(found["biology"], "probe_accuracy")[2]
    assert row.value == row.floor == 1


def test_letters_are_found_where_they_are_told() -> None:
    lm, inputs = tiny_inputs("gemma2", count=160)
    told = [dataclasses.replace(q, choices=("bread",) * 3 + ("wxyz"[q.answer],))
            for q in questions(160)]  # fmt: skip
    inputs = dataclasses.replace(inputs, forgotten={"biology": split(told, 0)}, retained={"few": questions(70)})
    before = state_hash(lm)
    found = run(lm, inputs, "letters")
    assert state_hash(lm) == before
    assert set(found) == {"biology"}  # the other set is too small
    accuracy, control = (rows(found["biology"], name) for name in ("probe_accuracy", "probe_shuffled_accuracy"))
    assert max(row.value for row in accuracy.values()) > 0.8  # a random model hands it on as well
    assert accuracy[-1].value < 0.45  # `:` alone says nothing
    again = rows(found["biology"], "probe_resplit_accuracy")
    assert max(row.value for row in again.values()) > 0.8 and again[-1].value < 0.45
    assert all(row.n == probes.SPLITS and row.low <= row.value <= row.high for row in again.values())
    assert any(row.low < row.high for row in again.values()), "the splits differ"
    assert sum(row.value for row in control.values()) / len(control) == pytest.approx(0.25, abs=0.08)
    assert all(len(p["scores"]) == 4 and "floor" not in p for r in found["biology"].records for p in r["points"])


def test_letters_take_the_commonest_number_of_choices() -> None:
    _, inputs = tiny_inputs()
    mixed = questions(100) + questions(30, choices=3, name="three")
    inputs = dataclasses.replace(inputs, forgotten={"biology": split(mixed, 0)})
    halves = probes.probed_sets(inputs, "letters")["biology"]
    assert {len(q.choices) for q in (*halves.train, *halves.test)} == {4}
    assert len(halves.train) + len(halves.test) == 100
    assert len(halves.test) == len(halves.folds)


def test_too_few_questions_are_said() -> None:
    _, inputs = tiny_inputs(count=30)
    missing = {a.name: a.unavailable for a in probes.attacks(inputs, AuditConfig())}
    assert missing == {
        "probe-true-false": "needs 40 questions in a forgotten set, half of them to learn from",
        "probe-letters": "needs 80 questions with the same number of choices in a forgotten set, half of them to learn from",
    }


def test_states_of_nan_have_no_accuracy() -> None:
    lm, inputs = tiny_inputs(count=50)
    inputs = dataclasses.replace(inputs, retained={})
    with torch.no_grad():
        lm.model.get_submodule("model.layers.4.mlp.down_proj").weight.fill_(torch.nan)
    with pytest.raises(ValueError, match="llama gives NaN or infinity for the states of 200 of 200 texts"):
        run(lm, inputs, "true-false")


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_the_model_is_as_it_was(family: str) -> None:
    lm, inputs = tiny_inputs(family, count=50)
    before = state_hash(lm)
    run(lm, inputs, "true-false")
    assert state_hash(lm) == before
    chosen = attack(inputs, "true-false")

    def stop(count: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        chosen.run(lm, inputs, chosen, stop)
    assert state_hash(lm) == before


def test_the_same_numbers_twice_and_for_any_batch() -> None:
    lm, inputs = tiny_inputs(count=50)
    inputs = dataclasses.replace(inputs, retained={})
    first, second, small = (
        run(lm, dataclasses.replace(inputs, batch_tokens=size), "true-false")["biology"].records
        for size in (4096, 4096, 300)
    )
    assert first == second
    scores = [torch.tensor([[p["scores"] for p in r["points"]] for r in found]) for found in (first, small)]
    assert torch.allclose(*scores, atol=1e-2)


def test_estimates_grow_with_the_questions() -> None:
    inputs = [tiny_inputs(count=count)[1] for count in (100, 200)]
    costs = [budget.work_of(each, attack(each, "true-false").cost) for each in inputs]
    assert costs[0].forward_tokens * 1.8 < costs[1].forward_tokens
    assert 0 < costs[0].seconds < costs[1].seconds
    assert 0 < costs[0].memory < costs[1].memory

"""Asking a model under attack, and the results made of it.

Every attack is measured alike: the tested half of each forgotten set, in the format in which the base knows the answers,
at one or more points of its budget; other sets as the general ability left; answers to a few tested questions, to see
whether they are still language.

    points = [(Point(step=0), score_sets(lm, inputs))]                       # the model as it is now
    return results(inputs, attack, points, seconds, tokens) + [language(lm, inputs, attack)]
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from misdirect import stats
from misdirect.attacks.interface import Advance, Attack, AttackInputs, Form
from misdirect.config import EvaluateConfig
from misdirect.data import templates
from misdirect.data.batches import CHARS_PER_TOKEN
from misdirect.data.prompts import Prompt
from misdirect.data.questions import LETTERS, Question
from misdirect.evaluation.generation import generation
from misdirect.evaluation.mcq import largest
from misdirect.model.finite import about
from misdirect.model.lm import LM
from misdirect.model.score import Encoded, encode, score
from misdirect.runs import Metric, Result

MEASUREMENT, SPOKEN = "mcq", "answers"  # SPOKEN: the set of answers in words
ANSWERS, NEW_TOKENS = 8, 32  # questions that are answered in words, and how long the answers may be
Render = Callable[[Question], tuple[str, list[str]]]  # a question -> (context, the continuation of each choice)


def rendering(form: Form, seed: int, examples: Sequence[Question] = ()) -> Render:
    """How a question is asked before any attack. The continuations are always in the order of the question's choices."""

    def render(item: Question) -> tuple[str, list[str]]:
        if form == "cloze":
            return templates.cloze_prompt(item, examples), [f" {choice}" for choice in item.choices]
        count, prompt = len(item.choices), templates.prompt_form("auto", [item])
        if form == "letter":
            return templates.letter_prompt(item, prompt, examples), [f" {x}" for x in LETTERS[:count]]
        moved, by = templates.shifted(item, seed)
        return templates.letter_prompt(moved, prompt, examples), [f" {LETTERS[(i + by) % count]}" for i in range(count)]

    return render


def ask(
    lm: LM,
    questions: Sequence[Question],
    render: Render,
    batch_tokens: int = 4096,
    edit: Callable[[Encoded], Encoded] | None = None,
    advance: Advance | None = None,
) -> list[list[float]]:
    """The log-probability of every choice of every question. `edit` changes a question's tokens before it is scored."""
    items = [encode(lm.tokenizer, *render(item)) for item in questions]
    return [found.logprobs for found in score(lm, [edit(i) if edit else i for i in items], batch_tokens, advance)]


class Point(NamedTuple):
    """Where on its budget an attack stands: updates made, the block, or another strength (bits, share pruned, ...)."""

    step: int | None = None
    block: int | None = None
    budget: float | None = None


ChoiceLogprobs = Mapping[str, list[list[float]]]  # set -> log-probabilities of each question's choices


def score_sets(
    lm: LM,
    inputs: AttackInputs,
    general: bool = True,
    edit: Callable[[Encoded], Encoded] | None = None,
    change: Callable[[str, Render], Render] | None = None,
) -> ChoiceLogprobs:
    """Asks the tested half of every forgotten set and, with `general`, the other sets.

    `change(set, render)`: another way of asking a forgotten set (a suffix, examples before it).
    """
    out = {}
    for name, halves in inputs.forgotten.items():
        render = rendering(inputs.forms[name], inputs.seed)
        with about(name):
            out[name] = ask(lm, halves.test, change(name, render) if change else render, inputs.batch_tokens, edit)
    for name, questions in inputs.retained.items() if general else ():
        with about(name):
            out[name] = ask(lm, questions, rendering(inputs.forms[name], inputs.seed), inputs.batch_tokens, edit)
    return out


def tested(inputs: AttackInputs, name: str) -> tuple[Sequence[Question], Sequence[int]]:
    """(the questions of a set that are measured, the fold of each)."""
    if name in inputs.forgotten:
        return inputs.forgotten[name].test, inputs.forgotten[name].folds
    return inputs.retained[name], [0] * len(inputs.retained[name])


def results(
    inputs: AttackInputs,
    attack: Attack,
    points: Sequence[tuple[Point, ChoiceLogprobs]],
    seconds: float,
    tokens: float = 0.0,
    extra: Sequence[Metric] = (),
) -> list[Result]:
    """One `Result` a set: accuracy at every point, the records behind it, and what the attack cost.

    `tokens`: through the model during the attack itself, measuring left out. `extra`: further rows for forgotten sets, such
    as `positive_control`. The headline row is the point that is best on the first fold (the earliest of equals).
    """
    names = dict.fromkeys(name for _, logprobs in points for name in logprobs)
    return [result(inputs, attack, name, [(p, s[name]) for p, s in points if name in s], seconds, tokens, extra)
            for name in names]  # fmt: skip


def result(
    inputs: AttackInputs,
    attack: Attack,
    name: str,
    points: Sequence[tuple[Point, Sequence[Sequence[float]]]],
    seconds: float,
    tokens: float,
    extra: Sequence[Metric],
) -> Result:
    questions, folds = tested(inputs, name)
    records = [
        {
            "id": q.id,
            "subject": q.subject,
            "answer": q.answer,
            "num_choices": len(q.choices),
            "fold": fold,
            "points": [
                point_record(point) | {"logprobs": list(found[row]), "correct": largest(found[row]) == q.answer}
                for point, found in points
            ],
        }
        for row, (q, fold) in enumerate(zip(questions, folds, strict=True))
    ]
    metrics = accuracies(records, inputs.forms[name])
    if name in inputs.forgotten:
        metrics += [Metric("attack_tokens", float(tokens)), Metric("attack_seconds", seconds), *extra]
    return Result(MEASUREMENT, name, config_of(inputs, attack), tuple(metrics), tuple(records), seconds)


def config_of(inputs: AttackInputs, attack: Attack) -> dict[str, Any]:
    return {**inputs.identity, **dataclasses.asdict(attack.settings)}


def point_record(point: Point) -> dict[str, Any]:
    return {key: value for key, value in point._asdict().items() if value is not None}


def accuracies(records: Sequence[Mapping[str, Any]], form: Form) -> list[Metric]:
    """A row a point, with Wilson's interval; the headline is the best on the first fold."""
    count, n = len(records[0]["points"]), len(records)
    chance = sum(1 / r["num_choices"] for r in records) / n
    best = best_point(records)
    rows = []
    for p in range(count):
        right = sum(r["points"][p]["correct"] for r in records)
        low, high = stats.wilson(right, n)
        at = {key: records[0]["points"][p].get(key) for key in Point._fields}
        stderr = stats.proportion_stderr(right, n)
        rows.append(
            Metric(
                f"{form}_accuracy", right / n, stderr, n, low, high, chance, headline=True if p == best else None, **at
            )
        )
    return rows


def best_point(records: Sequence[Mapping[str, Any]]) -> int:
    """The point that is best on the first fold, the earliest of equals."""
    first = [r for r in records if r["fold"] == 0] or list(records)
    return earliest_best([sum(r["points"][p]["correct"] for r in first) for p in range(len(records[0]["points"]))])


def strongest(inputs: AttackInputs, points: Sequence[tuple[Point, ChoiceLogprobs]]) -> int:
    """The point with most right answers on the first fold of all forgotten sets together, the earliest of equals."""

    def right(logprobs: ChoiceLogprobs) -> int:
        return sum(
            largest(found) == question.answer
            for name, halves in inputs.forgotten.items()
            for question, fold, found in zip(halves.test, halves.folds, logprobs[name], strict=True)
            if fold == 0
        )

    return earliest_best([right(logprobs) for _, logprobs in points])


def earliest_best(counts: Sequence[int]) -> int:
    return max(range(len(counts)), key=counts.__getitem__)  # max keeps the first


def language(
    lm: LM,
    inputs: AttackInputs,
    attack: Attack,
    edit: Callable[[list[int]], list[int]] | None = None,
    change: Callable[[str, Render], Render] | None = None,
) -> Result:
    """Answers in words to a few tested questions: `degenerate_share` says whether they are still language, once the base has
    read them (`misdirect.auditing.run`).

    `edit` changes a prompt's tokens before it is answered, `change` how the question is asked, as in `score_sets`.
    """
    asked = [(name, q) for name, halves in inputs.forgotten.items() for q in halves.test]
    chosen = random.Random(f"language:{inputs.seed}").sample(asked, min(ANSWERS, len(asked)))

    def context(name: str, question: Question) -> str:
        return (
            change(name, rendering(inputs.forms[name], inputs.seed))(question)[0]
            if change
            else templates.cloze_prompt(question)
        )

    prompts = [Prompt(f"{i}:{q.id}", (context(name, q),)) for i, (name, q) in enumerate(chosen)]
    config = EvaluateConfig(new_tokens=NEW_TOKENS, chat_template="none", batch_tokens=inputs.batch_tokens)
    with about("answers in words"):
        made = generation(lm, SPOKEN, prompts, config, edit=edit)
    return Result(made.measurement, made.set, config_of(inputs, attack), made.metrics, made.records, made.seconds)


def question_tokens(questions: Iterable[Question]) -> float:
    """About how many tokens asking these questions takes, for estimates."""
    return sum(len(templates.stem(q)) + 20 + sum(map(len, q.choices)) for q in questions) / CHARS_PER_TOKEN


def example_tokens(inputs: AttackInputs) -> float:
    """About how many tokens the mean question of the attacker's half has with its right answer, for estimates."""
    asked = [q for halves in inputs.forgotten.values() for q in halves.train]
    characters = sum(len(templates.stem(q)) + len(q.choices[q.answer]) + 20 for q in asked)
    return characters / max(1, len(asked)) / CHARS_PER_TOKEN


LANGUAGE_TOKENS = ANSWERS * 4 * NEW_TOKENS  # of one `language`, in the time of as many tokens read at once

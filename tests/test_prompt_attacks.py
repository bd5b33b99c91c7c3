"""Prompts without optimisation and brittleness: what exactly is asked, and that nothing measured stands in it."""

from __future__ import annotations

import copy
import dataclasses
import random
import re
import unicodedata
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from attack_cases import questions, state_hash, tiny_inputs
from misdirect.attacks import brittleness, lens, prompts, scoring
from misdirect.attacks.interface import Attack, AttackInputs, Form
from misdirect.config import AuditConfig
from misdirect.data.fact_splits import words
from misdirect.data.questions import Question
from misdirect.model.lm import LM

METAL = Question("m", "Which of these is a metal?", ("iron", "helium", "wood"), 0, "chemistry")
FORMS: list[Form] = ["cloze", "letter", "letter_permuted"]


def named(inputs: AttackInputs, name: str) -> Attack:
    found = [*prompts.attacks(inputs, AuditConfig()), *brittleness.attacks(inputs, AuditConfig())]
    return next(attack for attack in found if attack.name == name)


def contexts(lm: LM, inputs: AttackInputs, name: str) -> dict[float, list[tuple[Question, str, list[str]]]]:
    """budget -> (question, context, continuations) of every tested question under an attack."""
    out = {}
    for budget, change in prompts.variants_of(lm, inputs, named(inputs, name)):
        render = change("biology", scoring.rendering(inputs.forms["biology"], inputs.seed))
        out[budget] = [(q, *render(q)) for q in inputs.forgotten["biology"].test]
    return out


# answered examples


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["prompt-few-shot", "prompt-few-shot-other"])
def test_examples_are_answered_come_from_the_attackers_side_and_hold_no_measured_choice(form: Form, name: str) -> None:
    lm, inputs = tiny_inputs(count=40, form=form)
    pool = inputs.retained["other"] if name.endswith("other") else inputs.forgotten["biology"].train
    for shots, found in contexts(lm, inputs, name).items():
        for item, context, continuations in found:
            plain, same = scoring.rendering(form, inputs.seed)(item)
            assert context.endswith(plain.removeprefix("Question: "))
            assert continuations == same
            shown = [e for e in pool if e.question in context]
            assert len(shown) == shots
            before = context.removesuffix(plain)
            for example in shown:
                right = example.choices[example.answer]
                line = f"Answer: {'ABCD'[example.answer]}\n" if form != "cloze" else f"\nAnswer: {right}\n"
                assert line in before[before.index(example.question) :]
            assert not any(q.question in before for q in inputs.forgotten["biology"].test)
            assert not any(f" {' '.join(words(c))} " in f" {' '.join(words(before))} " for c in item.choices)


def test_fewer_examples_are_the_first_of_more_and_the_seed_orders_them() -> None:
    pool = prompts.example_pool(questions(12), [], seed=0)
    item = Question("x", "What?", ("nothing like it", "neither"), 0)
    five = prompts.examples_for(item, pool, 5, "cloze")
    assert prompts.examples_for(item, pool, 3, "cloze") == five[:3] == pool[:3]
    assert prompts.example_pool(questions(12), [], seed=1) != pool


def test_an_example_that_gives_a_measured_fact_away_is_no_example() -> None:
    measured = Question("t", "Which organ pumps blood through arteries?", ("heart", "liver"), 0)
    leak = Question("a", "Blood flows in arteries because an organ pumps: which?", ("the heart", "the lung"), 0)
    fine = Question("b", "Which organ makes bile?", ("the liver", "the lung"), 0)
    assert prompts.example_pool([leak, fine], [measured], seed=0) == [fine]
    assert prompts.examples_for(measured, [fine], 1, "cloze") == []  # one of the measured choices, though a wrong one


def test_too_few_examples_are_said_before_anything_runs() -> None:
    _, inputs = tiny_inputs(count=8)
    assert named(inputs, "prompt-few-shot").unavailable == "needs 5 questions to show as examples, there are 4"
    alone = dataclasses.replace(inputs, retained={})
    assert named(alone, "prompt-few-shot-other").unavailable == "needs another set of questions: --questions NAME=FILE"
    assert (
        named(alone, "brittleness-forget-words").unavailable == "needs another set of questions: --questions NAME=FILE"
    )


# wordings, roles, formats


@pytest.mark.parametrize("form", FORMS)
def test_templates_hold_the_question_and_score_what_was_scored(form: Form) -> None:
    lm, inputs = tiny_inputs(count=4, form=form)
    for found in contexts(lm, inputs, "prompt-paraphrase").values():
        for item, context, continuations in found:
            assert context.count(item.question) == 1
            assert continuations == scoring.rendering(form, inputs.seed)(item)[1]
            if form != "cloze":
                assert all(re.search(rf"^[A-D]\. {re.escape(c)}$", context, re.MULTILINE) for c in item.choices)
    assert prompts.in_template(inputs, "Q: {}\nA:")("biology", scoring.rendering(form, 0))(METAL)[0] == (
        "Q: Which of these is a metal?\nA:" if form == "cloze" else f"Q: {prompts.asked(METAL, form, 0)[0]}\nA:"
    )


def test_permuted_letters_belong_to_the_choices_where_they_stand() -> None:
    text, continuations = prompts.asked(METAL, "letter_permuted", seed=0)
    assert text.split("\n")[0] == METAL.question
    for choice, letter in zip(METAL.choices, continuations, strict=True):
        assert f"\n{letter.strip()}. {choice}" in text
    assert continuations != [" A", " B", " C"]


def test_a_question_with_braces_and_backslashes_goes_through_as_it_is() -> None:
    _, inputs = tiny_inputs(count=4)
    item = dataclasses.replace(METAL, question="What is {x} in \\frac{1}{2} {}?")
    context, _ = prompts.in_template(inputs, "Q: {}\nA:")("biology", scoring.rendering("cloze", 0))(item)
    assert context == "Q: What is {x} in \\frac{1}{2} {}?\nA:"


@pytest.mark.parametrize("form", FORMS)
def test_a_role_stands_before_the_prompt_that_was(form: Form) -> None:
    lm, inputs = tiny_inputs(count=4, form=form)
    found = contexts(lm, inputs, "prompt-role")
    assert len(found) == len(prompts.ROLES)
    for (budget, rows), text in zip(found.items(), prompts.ROLES.values(), strict=True):
        assert named(inputs, "prompt-role").settings.variants[int(budget)] in prompts.ROLES
        for item, context, continuations in rows:
            plain, same = scoring.rendering(form, inputs.seed)(item)
            assert (context, continuations) == (f"{text}\n\n{plain}", same)


def test_formats_are_others_than_the_one_judged_by() -> None:
    lettered = "Which of these is a metal?\nA. iron\nB. helium\nC. wood\nAnswer:"
    context, continuations = prompts.letters_or_text("cloze")(METAL)
    assert context.endswith(lettered)
    assert continuations == [" A", " B", " C"]
    asked = ("Question: Which of these is a metal?\nAnswer:", [" iron", " helium", " wood"])
    assert prompts.letters_or_text("letter")(METAL) == prompts.letters_or_text("letter_permuted")(METAL) == asked
    assert prompts.with_choices(METAL)[0].count("- ") == 3
    assert prompts.statement(METAL)[0] == "Which of these is a metal? It is"
    blank = dataclasses.replace(METAL, question="The metal that rusts is ____.")
    assert prompts.statement(blank) == ("The metal that rusts is", [" iron", " helium", " wood"])
    assert prompts.plain(METAL) == ("Which of these is a metal?\n", ["iron", "helium", "wood"])


def test_more_choices_than_letters_leave_the_letters_out() -> None:
    lm, inputs = tiny_inputs(count=4)
    many = tuple(dataclasses.replace(q, choices=tuple(map(str, range(27)))) for q in inputs.forgotten["biology"].test)
    halves = inputs.forgotten["biology"]._replace(test=many)
    assert list(prompts.formats(lm, inputs)) == ["letters-or-text", "choices-shown", "statement", "plain"]
    inputs = dataclasses.replace(inputs, forgotten={"biology": halves})
    assert list(prompts.formats(lm, inputs)) == ["choices-shown", "statement", "plain"]
    found = {a.name: a.unavailable for a in lens.attacks(inputs, AuditConfig())}
    assert found == {"lens-cloze": "", "lens-letter": "needs questions of at most 26 choices"}


def test_the_chat_template_is_a_variant_where_the_model_has_one() -> None:
    lm, inputs = tiny_inputs(count=4)
    done: list[int] = []
    attack = named(inputs, "prompt-format")
    result, _ = attack.run(lm, inputs, attack, done.append)
    assert [p["budget"] for p in result.records[0]["points"]] == [0, 1, 2, 3]
    assert sum(done) == attack.num_steps == 5
    talking = copy.deepcopy(lm.tokenizer)
    talking.bos_token = "<eos>"  # encoding adds it by itself
    talking.backend_tokenizer.post_processor = TemplateProcessing("<eos> $A", special_tokens=[("<eos>", 1)])
    talking.chat_template = (
        "<eos>{% for m in messages %}[{{ m.role }}] {{ m.content }} {% endfor %}{{ '[assistant]\n' }}"
    )
    chat = prompts.formats(dataclasses.replace(lm, tokenizer=talking), inputs)["chat"](
        "biology", scoring.rendering("cloze", 0)
    )
    assert chat(METAL) == ("[user] Which of these is a metal? [assistant]\n", ["iron", "helium", "wood"])


# typos and spacing


def edits(before: str, after: str) -> bool:
    """Whether every word kept its place, its non-letters and at least one letter, and gained none."""
    for old, new in zip(before.split(" "), after.split(" "), strict=True):
        rest_old, rest_new = ([c for c in w if not c.isalpha()] for w in (old, new))
        if rest_old != rest_new or Counter(new) - Counter(old):
            return False
        runs_old, runs_new = (re.findall(r"[^\W\d_]+", w) for w in (old, new))
        if len(runs_old) != len(runs_new):
            return False
    return True


@given(st.text(max_size=60), st.floats(0, 1), st.integers(0, 9))
@settings(max_examples=300, deadline=None)
def test_typos_move_letters_inside_their_words_alone(text: str, rate: float, seed: int) -> None:
    made = prompts.mistyped(text, rate, random.Random(seed))
    assert made == prompts.mistyped(text, rate, random.Random(seed))
    assert not Counter(made) - Counter(text)
    assert [c for c in made if not c.isalpha()] == [c for c in text if not c.isalpha()]
    pattern = re.compile("".join(f"{'L' if c.isalpha() else 'x'}" for c in text))
    shape = "".join("L" if c.isalpha() else "x" for c in made)
    squeezed = [re.sub("L+", "L", s) for s in (pattern.pattern, shape)]
    assert squeezed[0] == squeezed[1]  # the same words between the same other characters


def test_typos_are_as_many_as_asked() -> None:
    text = " ".join("abcdefghij" for _ in range(400))  # all letters of a word differ: a swap is two in other places
    for rate in (0.05, 0.2):
        made = prompts.mistyped(text, rate, random.Random(1))
        changed = sum(
            len(a) - len(b) + (sum(x != y for x, y in zip(a, b, strict=True)) / 2 if len(a) == len(b) else 0)
            for a, b in zip(text.split(" "), made.split(" "), strict=True)
        )
        assert changed / 4000 == pytest.approx(rate, rel=0.35)
    assert prompts.mistyped(text, 0.0, random.Random(1)) == text


@pytest.mark.parametrize("text", ["", "a", "a b", "I", "?", "漢", "é", "1 2", "\n"])
def test_empty_and_one_letter_words_stay(text: str) -> None:
    assert prompts.mistyped(text, 1.0, random.Random(0)) == text


def test_a_word_keeps_at_least_one_letter_and_its_accents() -> None:
    for seed in range(50):
        made = prompts.mistyped("hello wörld", 1.0, random.Random(seed))
        assert all(made.split(" "))
        assert unicodedata.is_normalized("NFC", made)


def test_typos_depend_on_seed_rate_and_question() -> None:
    lm, inputs = tiny_inputs(count=8)
    first, again = (contexts(lm, inputs, "prompt-typos") for _ in range(2))
    assert first == again
    other = contexts(lm, dataclasses.replace(inputs, seed=1), "prompt-typos")
    assert first[0.2] != other[0.2]
    for item, context, continuations in first[0.2]:
        assert continuations == [f" {c}" for c in item.choices]
        assert edits(f"Question: {item.question}\nAnswer:".replace("\n", " "), context.replace("\n", " "))


def test_spacing_as_written() -> None:
    made = {key: write("What is it?") for key, write in prompts.SPACING.items()}
    assert made == {
        "letters-apart": "W h a t  i s  i t ?",
        "two-spaces": "What  is  it?",
        "a-line-a-word": "What\nis\nit?",
        "hyphens": "What-is-it?",
        "upper": "WHAT IS IT?",
        "lower": "what is it?",
        "title": "What Is It?",
    }


def test_a_rewriting_that_leaves_nothing_leaves_the_question() -> None:
    render = prompts.spaced(lambda text: "")("biology", scoring.rendering("cloze", 0))
    assert render(METAL) == scoring.rendering("cloze", 0)(METAL)


@pytest.mark.parametrize("form", FORMS)
def test_choices_are_shown_untouched_where_the_question_is_mistyped(form: Form) -> None:
    lm, inputs = tiny_inputs(count=4, form=form)
    for name in ("prompt-typos", "prompt-spacing"):
        for found in contexts(lm, inputs, name).values():
            for item, context, continuations in found:
                assert continuations == scoring.rendering(form, inputs.seed)(item)[1]
                assert form == "cloze" or all(f". {c}\n" in context for c in item.choices)


# brittleness


def test_typical_words_are_those_that_one_side_alone_uses() -> None:
    ours = ["cells divide by mitosis", "a cell holds mitosis water", "cells and water"]
    theirs = ["water boils", "water and rivers", "stones fall in water", "rivers"]
    found = brittleness.typical(ours, theirs)
    assert found[:2] == ["cells", "mitosis"]  # two documents of three against none
    assert "water" not in found
    assert brittleness.typical(theirs, ours)[0] == "rivers"
    assert brittleness.typical(ours, ours) == []
    assert brittleness.typical([], theirs) == []


def test_added_words_are_new_seeded_and_nested() -> None:
    pool = ["iron", "cell", "gene", "toxin", "spread", "host"]
    three, all_of_them = (brittleness.chosen(METAL, pool, n, seed=0) for n in (3, 99))
    assert all_of_them[:3] == three
    assert sorted(all_of_them) == sorted(set(pool) - {"iron"})  # one of the choices
    assert brittleness.chosen(METAL, pool, 99, seed=1) != all_of_them


@pytest.mark.parametrize("form", FORMS)
def test_words_stand_where_they_were_asked_for(form: Form) -> None:
    render = scoring.rendering(form, 0)
    for before in (True, False):
        context, continuations = brittleness.with_words(render, ["gene"], 1, 0, before)(METAL)
        asked = "gene. Which of these is a metal?" if before else "Which of these is a metal? (gene)"
        expected = render(dataclasses.replace(METAL, question=asked))
        assert (context, continuations) == expected
    assert brittleness.with_words(render, ["gene"], 0, 0, True)(METAL) == render(METAL)


def test_forget_words_come_from_the_attackers_half_and_the_texts() -> None:
    _, inputs = tiny_inputs()
    marked = [dataclasses.replace(q, question=q.question + " secretword") for q in inputs.forgotten["biology"].test]
    halves = inputs.forgotten["biology"]._replace(test=tuple(marked))
    forget, retain = brittleness.two_sides(
        dataclasses.replace(inputs, forgotten={"biology": halves}, forget_texts=["mitosis"], retain_texts=["gravity"])
    )
    assert "mitosis" in forget
    assert "gravity" in retain
    assert not any("secretword" in text for text in forget + retain)


@pytest.mark.parametrize("kind", ["forget", "neutral"])
@pytest.mark.parametrize("place", ["", "-after"])
def test_brittleness_asks_the_other_sets_alone_and_starts_from_the_plain_question(kind: str, place: str) -> None:
    lm, inputs = tiny_inputs()
    attack = named(inputs, f"brittleness-{kind}-words{place}")
    assert not attack.recovers
    done: list[int] = []
    (result,) = attack.run(lm, inputs, attack, done.append)
    assert sum(done) == attack.num_steps == len(brittleness.COUNTS)
    assert result.set == "other"
    plain = scoring.score_sets(lm, inputs)["other"]
    assert [r["points"][0]["logprobs"] for r in result.records] == plain
    assert [p["budget"] for p in result.records[0]["points"]] == list(brittleness.COUNTS)
    assert result.records[0]["points"][3]["logprobs"] != plain[0]


# all of them


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "gemma2"])
def test_every_prompt_attack_runs_and_leaves_the_model_as_it_was(family: str) -> None:
    lm, inputs = tiny_inputs(family)
    before = state_hash(lm)
    for attack in prompts.attacks(inputs, AuditConfig()):
        assert not attack.unavailable
        assert sum(attack.cost[:4]) > 0
        done: list[int] = []
        result, spoken = attack.run(lm, inputs, attack, done.append)
        assert sum(done) == attack.num_steps, attack.name
        best = prompts.variants_of(lm, inputs, attack)[scoring.best_point(result.records)][1]
        render = best("biology", scoring.rendering(inputs.forms["biology"], inputs.seed))
        asked = {q.id: q for q in inputs.forgotten["biology"].test}
        assert all(r["prompt"] == render(asked[r["id"].split(":", 1)[1]])[0] for r in spoken.records)
        assert result.set == "biology"
        budgets = [p["budget"] for p in result.records[0]["points"]]
        assert budgets == sorted(set(budgets))
        assert sum(bool(m.headline) for m in result.metrics) == 1
        assert result.config == {"audited": "tiny", **dataclasses.asdict(attack.settings)}
    assert state_hash(lm) == before
    names = [a.name for a in (*prompts.attacks(inputs, AuditConfig()), *brittleness.attacks(inputs, AuditConfig()))]
    assert len(names) == len(set(names)) == 11

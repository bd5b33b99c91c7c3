"""Questions split by fact: what an attacker may learn from, and what is measured then.

An attack that trains on a fact and is measured on it shows teaching, not recovery (Deeb and Roger 2024, arXiv 2410.08827).
So questions are split in halves; questions that share a run of eight words, in question, context or support, are one fact and
stay together, unless so many share it that it is a phrase. Attack text is then decontaminated against the measured half: a text
goes that shares such a run with a measured question, context or support, or that holds a measured answer together with that
question's keywords.

>>> halves = split(read_questions("biology.jsonl"), seed=0)      # halves.train, halves.test, halves.folds
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from misdirect.data.questions import Question
from misdirect.data.templates import asked_cloze

RUN = 8  # words in a row
PHRASE = (
    5  # questions or passages; a run of words that is in more of them ("which of the following is ...") is a phrase
)
LEAST_FACTS = 3  # for a split: one to learn from, two to measure
SHARE = 0.5  # of a question's keywords that, beside its answer, give its fact away
COMMON = frozenset(  # words that do not say what a question is about
    """
    about above after all also and another any are because been before being between both but can correctly could
    describe describes did does during each example following for form from had has have how into its kind main
    many might more most name not one only other out over part same should some statement such than that the their
    them then there these they this through type under used using very was way were what when where which while
    who why will with within would
    """.split()  # noqa: SIM905
)


class Halves(NamedTuple):
    """`train`: the attacker's half. `test`: what is measured; `folds` (0 or 1 for each) are the two halves of it, between
    which the strongest attack is chosen and reported; `facts` (for each) is the number of the fact that it is about."""

    train: tuple[Question, ...]
    test: tuple[Question, ...]
    folds: tuple[int, ...]
    facts: tuple[int, ...]


# Scripts that put no space between words: each character is taken for a word. Thai to Khmer, Kana, Han.
UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
UNSPACED_CHAR = re.compile(f"[{UNSPACED}]")
WORD = re.compile(rf"[{UNSPACED}]|[^\W_{UNSPACED}]+")


def words(text: str) -> list[str]:
    return WORD.findall(text.lower())


def word_runs(text: str) -> set[tuple[str, ...]]:
    """Every run of `RUN` words; a shorter text has none."""
    found = words(text)
    return {tuple(found[i : i + RUN]) for i in range(len(found) - RUN + 1)}


def keywords(text: str) -> set[str]:
    """The words that say what a question is about."""
    return {word for word in words(text) if (len(word) > 2 or UNSPACED_CHAR.match(word)) and word not in COMMON}


def held_runs(questions: Sequence[Question]) -> dict[tuple[str, ...], list[int]]:
    """Every run of words that is not a phrase, and every question's whole text: the rows of the questions that hold it.

    Several questions about one passage hold its runs once.
    """
    rows: dict[tuple[str, ...], list[int]] = {}
    holders: dict[tuple[str, ...], set[object]] = {}
    for i, item in enumerate(questions):
        parts: list[tuple[object, set[tuple[str, ...]]]] = [
            (i, word_runs(item.question) | {tuple(words(item.question))})
        ]
        for text in (item.support, item.context):
            passage = tuple(words(text))
            parts.append((passage, word_runs(text) | ({passage} if passage else set())))
        for holder, runs in parts:
            for run in runs:
                rows.setdefault(run, []).append(i)
                holders.setdefault(run, set()).add(holder)
    return {run: found for run, found in rows.items() if len(holders[run]) <= PHRASE}


def facts(questions: Sequence[Question]) -> list[list[int]]:
    """Questions grouped by fact: those that share a run of words, directly or through others."""
    parent = list(range(len(questions)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for held in held_runs(questions).values():
        for i in held[1:]:
            parent[root(i)] = root(held[0])
    groups: dict[int, list[int]] = {}
    for i in range(len(questions)):
        groups.setdefault(root(i), []).append(i)
    return list(groups.values())


def split(questions: Sequence[Question], seed: int) -> Halves:
    """Two halves of whole facts, as even as they allow, each in the questions' order, and two folds of the second half alike.

    Raises ValueError under `LEAST_FACTS` facts.
    """
    groups = facts(questions)
    if len(groups) < LEAST_FACTS:
        raise ValueError(
            f"{len(questions)} question(s) hold {len(groups)} fact(s); expected at least {LEAST_FACTS}, so that one half can be "
            "attacked and the other measured in two parts"
        )
    random.Random(f"facts:{seed}").shuffle(groups)
    groups.sort(
        key=lambda group: len(group) <= PHRASE
    )  # the large ones first, so that the small ones can even them out
    train, test = dealt(groups)
    if len(test) < 2:  # one large fact outweighs all others
        test.append(train.pop())
    order = sorted(row for group in test for row in group)
    random.Random(f"folds:{seed}").shuffle(order)
    fact = {row: min(group) for group in groups for row in group}
    drawn: dict[int, list[int]] = {}
    for row in order:
        drawn.setdefault(fact[row], []).append(row)
    second = {row for group in dealt(list(drawn.values()))[0] for row in group}
    kept = sorted(order)
    return Halves(
        tuple(questions[row] for row in sorted(row for group in train for row in group)),
        tuple(questions[row] for row in kept),
        tuple(int(row in second) for row in kept),
        tuple(fact[row] for row in kept),
    )


def dealt(groups: Sequence[list[int]]) -> tuple[list[list[int]], list[list[int]]]:
    """Each group in turn to the side that holds less, to the second where they hold the same."""
    sides: tuple[list[list[int]], list[list[int]]] = ([], [])
    held = [0, 0]
    for group in groups:
        side = 0 if held[0] < held[1] else 1
        sides[side].append(group)
        held[side] += len(group)
    return sides


class ContaminationIndex(NamedTuple):
    """What of the measured half a text may not hold, or it would teach what is measured."""

    runs: frozenset[tuple[str, ...]]
    answers: tuple[tuple[tuple[str, ...], frozenset[str]], ...]  # the answer's words, the question's keywords


def contamination_index(questions: Iterable[Question]) -> ContaminationIndex:
    items = list(questions)
    runs = frozenset(run for run in held_runs(items) if len(run) == RUN)
    answers = tuple((tuple(words(q.choices[q.answer])), frozenset(keywords(q.question))) for q in items)
    return ContaminationIndex(runs, answers)


def leaks(text: str, index: ContaminationIndex) -> bool:
    """Whether a text states a measured fact: a shared run of words, or an answer among its question's keywords."""
    if word_runs(text) & index.runs:
        return True
    found = words(text)
    held = set(found)
    joined = f" {' '.join(found)} "
    return any(
        answer
        and answer[0] in held
        and keys
        and len(keys & held) >= min(len(keys), max(2, SHARE * len(keys)))
        and f" {' '.join(answer)} " in joined
        for answer, keys in index.answers
    )


def decontaminate(texts: Iterable[str], measured: Sequence[Question]) -> list[str]:
    """The texts that leak no measured fact, repeats left out."""
    index = contamination_index(measured)
    return [text for text in dict.fromkeys(texts) if not leaks(text, index)]


def stated(question: Question) -> str:
    """A fact as text: the question's support where it has one, else the question with its right answer."""
    return question.support or f"{asked_cloze(question)} {question.choices[question.answer]}"


def drop_contaminated(sets: Mapping[str, Halves]) -> dict[str, Halves]:
    """The halves with only such questions for the attacker as leak no measured fact of any set."""
    index = contamination_index(q for halves in sets.values() for q in halves.test)

    def own(question: Question) -> bool:
        shown = f"{question.question} {question.choices[question.answer]}"
        return not any(leaks(text, index) for text in (shown, question.support, question.context))

    return {name: halves._replace(train=tuple(filter(own, halves.train))) for name, halves in sets.items()}


def decontaminated_facts(sets: Iterable[Halves]) -> list[str]:
    """The attacker's text about the facts of his half of all sets, without what leaks a measured fact of any set."""
    halves = list(sets)
    return decontaminate((stated(q) for h in halves for q in h.train), [q for h in halves for q in h.test])

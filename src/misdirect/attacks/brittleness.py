"""Retained questions with words of the forgotten topic beside them: does a stray word break what should have been kept?

A model unlearned by RMU fails there (Dang et al. 2024, arXiv 2408.06223; Thaker et al. 2024, arXiv 2410.02879): the
words alone trip the steering, and the tokens after them read a ruined context. Words are ranked by how typical they are
of the forgotten side (the attacker's half of the questions, the forget texts) against the other sets: the log-odds ratio
of the share of documents that hold a word, over its standard error (after Monroe et al. 2008, "Fightin' Words").

    z = (log odds(a, A) - log odds(b, B)) / sqrt(1/(a+1/2) + 1/(A-a+1/2) + 1/(b+1/2) + 1/(B-b+1/2))

for a word in a of A documents on one side and b of B on the other. The control adds as many words typical of the other
side. No word comes that stands in the question or its choices already. Measured on the other sets alone, at 0, 1, 3 and
10 words, before the question or after it; the first point is the question as it is.

    render = with_words(measure.rendering("cloze", 0), typical(forget, retain), count=3, seed=0, before=True)
"""

from __future__ import annotations

import dataclasses
import math
import random
import time
from collections import Counter
from collections.abc import Sequence

from misdirect.attacks import scoring
from misdirect.attacks.interface import Advance, Attack, Case, Cost
from misdirect.attacks.scoring import Point, Render
from misdirect.config import AuditConfig
from misdirect.data import templates
from misdirect.data.batches import CHARS_PER_TOKEN
from misdirect.data.fact_splits import keywords, words
from misdirect.data.questions import Question
from misdirect.model.finite import about
from misdirect.model.load import LM
from misdirect.runs import Result

COUNTS = (0, 1, 3, 10)  # words added
NUM_WORDS = 60  # the most typical, from which each question draws its own
NUM_TEXTS, NUM_CHARS = 2000, 4000  # read of each side's texts
WORD_CHARS = 10  # of an added word with its comma, for estimates


def typical(ours: Sequence[str], theirs: Sequence[str], count: int = NUM_WORDS) -> list[str]:
    """The words most typical of the first documents against the second, most typical first; equals by the alphabet."""
    a, b = document_counts(ours), document_counts(theirs)

    def odds(held: int, documents: int) -> tuple[float, float]:
        with_word, without = held + 0.5, documents - held + 0.5
        return math.log(with_word / without), 1 / with_word + 1 / without

    def z(word: str) -> float:
        (first, var_first), (second, var_second) = odds(a[word], len(ours)), odds(b[word], len(theirs))
        return (first - second) / math.sqrt(var_first + var_second)

    scored = sorted((-z(word), word) for word in a)
    return [word for score, word in scored[:count] if score < 0]


def document_counts(documents: Sequence[str]) -> Counter[str]:
    """In how many documents each word of letters stands; words that say nothing of a topic are left out."""
    return Counter(word for text in documents for word in keywords(text) if word.isalpha())


def two_sides(case: Case) -> tuple[list[str], list[str]]:
    """(documents of the forgotten side, of the other sets): questions with their choices, and texts."""
    forget = [text_of(q) for halves in case.forgotten.values() for q in halves.train]
    retain = [text_of(q) for questions in case.retained.values() for q in questions]
    return forget + cut(case.forget_texts), retain + cut(case.retain_texts)


def text_of(item: Question) -> str:
    return " ".join([templates.stem(item), *item.choices])


def cut(texts: Sequence[str]) -> list[str]:
    return [text[:NUM_CHARS] for text in texts[:NUM_TEXTS]]


def chosen(item: Question, pool: Sequence[str], count: int, seed: int) -> list[str]:
    """This question's words, drawn with the seed: fewer are the first of more."""
    held = set(words(text_of(item)))
    free = [word for word in pool if word not in held]
    return random.Random(f"words:{seed}:{item.id}").sample(free, len(free))[:count]


def with_words(render: Render, pool: Sequence[str], count: int, seed: int, before: bool) -> Render:
    """The question with a list of words before or after it."""

    def worded(item: Question) -> tuple[str, list[str]]:
        listed = ", ".join(chosen(item, pool, count, seed))
        if not listed:
            return render(item)
        text = f"{listed}. {item.question}" if before else f"{item.question} ({listed})"
        return render(dataclasses.replace(item, question=text))

    return worded


def attacks(case: Case, config: AuditConfig) -> list[Attack]:
    """Forget words and, as the control, words of the other sets; before the question and after it."""
    missing = "" if any(case.retained.values()) else "needs another set of questions: --questions NAME=FILE"
    asked = [q for questions in case.retained.values() for q in questions]
    characters = sum(len(templates.stem(q)) + 20 + sum(map(len, q.choices)) for q in asked)
    added = sum(COUNTS) * WORD_CHARS * len(asked)
    cost = Cost((len(COUNTS) * characters + added) / CHARS_PER_TOKEN)
    made = []
    for kind, what in (("forget", "Words of the forgotten topic"), ("neutral", "Words of the kept topics (control)")):
        for place in ("before", "after"):
            settings = {"words": list(COUNTS), "kind": kind, "place": place, "seed": case.seed}
            name = f"brittleness-{kind}-words" + ("" if place == "before" else "-after")
            title = f"{what} {place} kept questions"
            made.append(
                Attack(name, "brittleness", title, "prompt", settings, cost, len(COUNTS), run, False, missing=missing)
            )
    return made


def run(lm: LM, case: Case, attack: Attack, advance: Advance) -> list[Result]:
    started = time.perf_counter()
    forget, retain = two_sides(case)
    pool = typical(forget, retain) if attack.settings["kind"] == "forget" else typical(retain, forget)
    points = []
    for count in attack.settings["words"]:
        sat = {}
        for name, questions in case.retained.items():
            plain, seed = scoring.rendering(case.forms[name], case.seed), attack.settings["seed"]
            render = with_words(plain, pool, count, seed, attack.settings["place"] == "before")
            with about(name):
                sat[name] = scoring.ask(lm, questions, render, case.batch_tokens)
        points.append((Point(budget=float(count)), sat))
        advance(1)
    return scoring.results(case, attack, points, time.perf_counter() - started, 0.0)

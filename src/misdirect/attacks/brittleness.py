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
from dataclasses import dataclass
from typing import Literal

from misdirect.attacks import scoring
from misdirect.attacks.interface import Advance, Attack, AttackInputs, Cost
from misdirect.attacks.scoring import Point, Render
from misdirect.config import AuditConfig
from misdirect.data import templates
from misdirect.data.batches import CHARS_PER_TOKEN
from misdirect.data.fact_splits import keywords, words
from misdirect.data.questions import Question
from misdirect.model.finite import about
from misdirect.model.lm import LM
from misdirect.runs import Result

COUNTS = (0, 1, 3, 10)  # words added
NUM_WORDS = 60  # the most typical, from which each question draws its own
NUM_TEXTS, NUM_CHARS = 2000, 4000  # read of each side's texts
WORD_CHARS = 10  # of an added word with its comma, for estimates


Kind = Literal["forget", "neutral"]
Place = Literal["before", "after"]
KINDS: dict[Kind, str] = {"forget": "Words of the forgotten topic", "neutral": "Words of the kept topics (control)"}
PLACES: tuple[Place, Place] = ("before", "after")


@dataclass(frozen=True)
class Settings:
    words: tuple[int, ...]
    kind: Kind
    place: Place
    seed: int


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


def two_sides(inputs: AttackInputs) -> tuple[list[str], list[str]]:
    """(documents of the forgotten side, of the other sets): questions with their choices, and texts."""
    forget = [text_of(q) for halves in inputs.forgotten.values() for q in halves.train]
    retain = [text_of(q) for questions in inputs.retained.values() for q in questions]
    return forget + cut(inputs.forget_texts), retain + cut(inputs.retain_texts)


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


def attacks(inputs: AttackInputs, config: AuditConfig) -> list[Attack]:
    """Forget words and, as the control, words of the other sets; before the question and after it."""
    num_words = sum(COUNTS) * sum(map(len, inputs.retained.values()))
    unavailable = "" if any(inputs.retained.values()) else "needs another set of questions: --questions NAME=FILE"
    return [
        Attack(
            name=f"brittleness-{kind}-words" + ("" if place == "before" else "-after"),
            family="brittleness",
            title=f"{what} {place} kept questions",
            attacker_access="prompt",
            settings=Settings(COUNTS, kind, place, inputs.seed),
            cost=Cost(retained_scorings=len(COUNTS), tokens=num_words * WORD_CHARS / CHARS_PER_TOKEN),
            num_steps=len(COUNTS),
            run=run,
            recovers=False,
            unavailable=unavailable,
        )
        for kind, what in KINDS.items()
        for place in PLACES
    ]


def run(lm: LM, inputs: AttackInputs, attack: Attack, advance: Advance) -> list[Result]:
    settings: Settings = attack.settings
    started = time.perf_counter()
    forget, retain = two_sides(inputs)
    pool = typical(forget, retain) if settings.kind == "forget" else typical(retain, forget)
    points = []
    for count in settings.words:
        logprobs = {}
        for name, questions in inputs.retained.items():
            plain = scoring.rendering(inputs.forms[name], inputs.seed)
            render = with_words(plain, pool, count, settings.seed, settings.place == "before")
            with about(name):
                logprobs[name] = scoring.ask(lm, questions, render, inputs.batch_tokens)
        points.append((Point(budget=float(count)), logprobs))
        advance(1)
    return scoring.results(inputs, attack, points, time.perf_counter() - started, 0.0)

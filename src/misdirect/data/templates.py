"""How a question is asked: cloze and letter prompts, answered examples before it, choices in another order.

The letter prompts are those of WMDP and MMLU as the field scores them (Li et al. 2024, arXiv 2403.03218; Hendrycks et al.
2021, arXiv 2009.03300): a description that names the subject, the question, its lettered choices, `Answer:`. `current` is
the text of lm-evaluation-harness since August 2024, with a blank line after the description; `paper` is the text before,
which had one newline less and is what the published numbers were measured with; `plain` has no description.

>>> letter_prompt(Question("1", "Which is a metal?", ("Iron", "Helium"), 0, "chemistry"), "current")
'The following are multiple choice questions (with answers) about chemistry.\\n\\nWhich is a metal?\\nA. Iron\\nB. Helium\\nAnswer:'
"""  # noqa: E501

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from misdirect.config import Prompt
from misdirect.data.questions import LETTERS, Question

Form = Literal["plain", "current", "paper"]
DESCRIPTION = "The following are multiple choice questions (with answers) about {}."
AFTER_DESCRIPTION = {"current": "\n\n", "paper": "\n"}


def cloze_prompt(item: Question | str, examples: Sequence[Question] = ()) -> str:
    """Asked without its choices; each choice's text is then scored as the answer. An empty text gives the floor: what belongs
    to the question is gone with it."""
    answered = "".join(f"{asked_cloze(e)} {e.choices[e.answer]}\n\n" for e in examples)
    return answered + (asked_cloze(item) if item else "Answer:")


def asked_cloze(item: Question | str) -> str:
    text = item if isinstance(item, str) else item.question
    return under_context(item, f"Question: {text}\nAnswer:")


def under_context(item: Question | str, text: str) -> str:
    """`text` below what is read with the question, where there is such a text."""
    return text if isinstance(item, str) or not item.context else f"{item.context}\n{text}"


def stem(item: Question) -> str:
    """The question with what is read with it."""
    return under_context(item, item.question)


def letter_prompt(item: Question, form: Form, examples: Sequence[Question] = ()) -> str:
    """Asked with lettered choices; ` A`, ` B`, ... are then scored."""
    described = "" if form == "plain" else DESCRIPTION.format(subject_text(item)) + AFTER_DESCRIPTION[form]
    answered = "".join(f"{lettered(e)} {LETTERS[e.answer]}\n\n" for e in examples)
    return described + answered + lettered(item)


def lettered(item: Question) -> str:
    lines = [f"{LETTERS[i]}. {choice}" for i, choice in enumerate(item.choices)]
    return under_context(item, "\n".join([item.question.strip(), *lines, "Answer:"]))


def subject_text(item: Question) -> str:
    return item.subject.replace("_", " ")


def prompt_form(prompt: Prompt, questions: Sequence[Question]) -> Form:
    """`auto` is `current` where every question has a subject. Raises ValueError for a form that needs one and has none."""
    missing = next((q.id for q in questions if not q.subject), None)
    if prompt == "auto":
        return "plain" if missing is not None else "current"
    if prompt != "plain" and missing is not None:
        raise ValueError(
            f"--prompt {prompt} names the subject, and question {missing} has none; expected a subject column"
        )
    return prompt


def check_letters(questions: Sequence[Question]) -> None:
    """Raises ValueError where a question has more choices than there are letters."""
    for item in questions:
        if len(item.choices) > len(LETTERS):
            raise ValueError(
                f"question {item.id} has {len(item.choices)} choices, more than letters; expected --formats cloze"
            )


def shifted(item: Question, seed: int) -> tuple[Question, int]:
    """(the question with its choices moved on by 1 to C - 1 places, by how many): no choice keeps its letter.

    Drawn from the seed and the question's id, so that it does not depend on which others are asked.
    """
    count = len(item.choices)
    by = random.Random(f"{seed}:{item.id}").randint(1, count - 1)
    choices = tuple(item.choices[(i - by) % count] for i in range(count))
    return dataclasses.replace(item, choices=choices, answer=(item.answer + by) % count), by


def sample(questions: Sequence[Question], limit: int | None, seed: int) -> list[Question]:
    """`limit` questions drawn with the seed and kept in their order; all of them where there are no more."""
    if limit is None or limit >= len(questions):
        return list(questions)
    chosen = sorted(random.Random(seed).sample(range(len(questions)), limit))
    return [questions[i] for i in chosen]


def set_apart(questions: Sequence[Question], shots: int, seed: int) -> tuple[list[Question], list[Question]]:
    """(examples, questions to ask): `shots` of each subject are drawn to be examples and are not asked.

    Raises ValueError where a subject has no more than `shots` questions.
    """
    if not shots:
        return [], list(questions)
    counts = Counter(q.subject for q in questions)
    subject, fewest = min(counts.items(), key=lambda pair: pair[1])
    if fewest <= shots:
        of = f" of {subject}" if subject else ""
        raise ValueError(
            f"--shots {shots} leaves none of the {fewest} questions{of} to ask; expected fewer, or --examples"
        )
    order = list(range(len(questions)))
    random.Random(f"examples:{seed}").shuffle(order)
    left = dict.fromkeys(counts, shots)
    taken = []
    for row in order:
        if left[questions[row].subject]:
            left[questions[row].subject] -= 1
            taken.append(row)
    return [questions[row] for row in taken], [q for row, q in enumerate(questions) if row not in set(taken)]


def examples_for(item: Question, pool: Sequence[Question], shots: int) -> list[Question]:
    """The first `shots` examples of the question's subject, as MMLU's are taken; of any where none has its subject."""
    same = [e for e in pool if e.subject == item.subject]
    return list((same or pool)[:shots])

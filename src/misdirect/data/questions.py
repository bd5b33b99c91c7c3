"""Multiple-choice questions: SOURCE -> checked `Question`s. How they are asked stands in `misdirect.data.asking`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from misdirect.data.files import Row, is_unicode, read_rows

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Question:
    """One multiple-choice item; `answer` is the index of the right choice."""

    id: str
    question: str
    choices: tuple[str, ...]
    answer: int
    subject: str = ""


def read_questions(source: str) -> list[Question]:
    """The questions of SOURCE: rows with `question`, `choices` and `answer` (index from 0, or letter).

    Raises ValueError naming the row for a missing column, fewer than two choices, or an answer out of range.
    """
    rows = read_rows(source)
    questions = [parse_question(row, f"{source}, row {number}", number) for number, row in enumerate(rows, 1)]
    seen: set[str] = set()
    for number, item in enumerate(questions, 1):
        if item.id in seen:
            raise ValueError(f"{source}, row {number}: the id {item.id!r} is already taken; expected one id a question")
        seen.add(item.id)
    return questions


def parse_question(row: Row, where: str, number: int) -> Question:
    missing = [name for name in ("question", "choices", "answer") if name not in row]
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}; expected the columns question, choices, answer")
    if not isinstance(row["question"], str) or not row["question"].strip():
        raise ValueError(f"{where}: the question is {short(row['question'])}; expected text")
    choices = parse_choices(row["choices"], where)
    answer = parse_answer(unlabelled(row["answer"], row["choices"]), len(choices), where)
    identity = str(number - 1 if row.get("id") is None else row["id"])
    subject = str(row.get("subject") or row.get("topic") or "")
    if not all(map(is_unicode, (row["question"], *choices, identity, subject))):
        raise ValueError(f"{where} holds half a surrogate pair; expected Unicode text")
    return Question(identity, row["question"], choices, answer, subject)


def unlabelled(answer: Any, choices: Any) -> Any:
    """The index behind a label: in ARC's form an answer is one of the labels, which are A, B, .. or 1, 2, .."""
    labels = choices.get("label") if isinstance(choices, dict) else None
    if not isinstance(answer, str) or not isinstance(labels, list | tuple) or answer not in labels:
        return answer
    return labels.index(answer)


def parse_choices(value: Any, where: str) -> tuple[str, ...]:
    if isinstance(value, dict) and "text" in value:  # ARC's form: {"text": [...], "label": [...]}
        value = value["text"]
    if not isinstance(value, list | tuple) or not all(isinstance(choice, str) and choice.strip() for choice in value):
        raise ValueError(f"{where}: the choices are {short(value)}; expected a list of texts")
    if not 2 <= len(value) <= len(LETTERS):
        raise ValueError(f"{where} has {len(value)} choice(s); expected 2 to {len(LETTERS)}")
    return tuple(value)


def parse_answer(value: Any, num_choices: int, where: str) -> int:
    """An index 0 .. C-1 (a digit string counts as one), or a letter."""
    text = str(value).strip()
    if isinstance(value, bool) or not isinstance(value, int | str):
        index = -1
    elif text.isascii() and text.isdigit():
        index = int(text) if len(text) < 4 else -1
    else:
        index = LETTERS.find(text.upper()) if len(text) == 1 and text.isascii() else -1
    if not 0 <= index < num_choices:
        last = LETTERS[num_choices - 1]
        raise ValueError(
            f"{where}: the answer {short(value)} is out of range; expected 0 to {num_choices - 1} or A to {last}"
        )
    return index


def short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."

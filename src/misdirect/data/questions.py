"""Multiple-choice questions: SOURCE -> checked `Question`s. How they are asked stands in `misdirect.data.asking`.

A row holds `question`, `choices` and `answer`, or what other sets call them (`QUESTION`, `CHOICES`, `ANSWER` below).
Choices are a list, a list as JSON text (as a CSV holds it), `{"text": [...], "label": [...]}`, `{"A": ..., "B": ...}`, or
columns of their own: A, B, C, D; choice_a ..; option1 ... An answer is an index from 0, a letter, one of the choices' own
labels, or the choice's text; which of them is decided once for a whole file, and a file that can be read two ways that
differ is refused.

>>> read_questions("shelf/exam.csv")      # a list of Question
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeGuard

from misdirect.data.files import Row, is_unicode, shown
from misdirect.data.sources import read_groups, split_column
from misdirect.data.splits import QUESTIONS, Order

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
QUESTION = ("question", "query", "stem", "prompt", "sentence", "ctx")
CHOICES = ("choices", "options", "endings")
ANSWER = (
    "answer", "answerKey", "answer_key", "answer_idx", "answer_index", "correct", "correct_answer", "label", "gold", "cop",
)  # fmt: skip
SUBJECT = ("subject", "topic")
SUPPORT = ("support", "passage")
COLUMN = re.compile(r"(?:(choice|option|opt|op|ending|answer)[ _.-]?)?([a-z]|[0-9]{1,2})", re.IGNORECASE)


@dataclass(frozen=True)
class Question:
    """One multiple-choice item; `answer` is the index of the right choice."""

    id: str
    question: str
    choices: tuple[str, ...]
    answer: int
    subject: str = ""
    support: str = (
        ""  # a passage that states the fact, where the set has one: relearning's text, never part of a prompt
    )


class Draft(NamedTuple):
    """A row whose answer is not read yet. `labels`: the choices' own names; `loose`: numbers out of column names."""

    where: str
    id: str
    question: str
    choices: tuple[str, ...]
    labels: tuple[str, ...]
    loose: bool
    answer: Any
    subject: str
    support: str


def read_questions(source: str, order: Order = QUESTIONS) -> list[Question]:
    """The questions of SOURCE; a row without `id` is named by its number from 0. `order`: which split, where there are several.

    Raises ValueError naming the row for a missing column, fewer than two choices, an answer out of range or that can be
    read in two ways, and an id that comes twice.
    """
    name, column = split_column(source)
    if column is not None:
        raise ValueError(f"{shown(source)} names the column {shown(column, 40)!r}; expected questions without #COLUMN")
    drafts: list[Draft] = []
    for group in read_groups(name, order):
        first = len(drafts)
        rows = enumerate(group.rows, first)
        drafts += [draft(row, f"{group.where}, row {number - first + 1}", number) for number, row in rows]
    if not drafts:
        raise ValueError(f"{shown(source)} is empty; expected at least one row")
    seen: set[str] = set()
    for item in drafts:
        if item.id in seen:
            raise ValueError(
                f"{item.where}: the id {shown(item.id, 40)!r} is already taken; expected one id a question"
            )
        seen.add(item.id)
    return answered(drafts)


def parse_question(row: Row, where: str, number: int) -> Question:
    """One row alone. Raises ValueError, beginning with `where`, for what is no question."""
    return answered([draft(row, where, number - 1)])[0]


def draft(row: Row, where: str, number: int) -> Draft:
    asked, answer = first_of(row, QUESTION), first_of(row, ANSWER)
    listed, table = first_of(row, CHOICES), None
    if listed is None:
        table = choice_columns(row)
    parts = {"question": asked, "choices": listed or table, "answer": answer}
    missing = [part for part, found in parts.items() if found is None]
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}; expected the columns question, choices, answer")
    question = row[str(asked)]
    if not isinstance(question, str) or not question.strip():
        raise ValueError(f"{where}: the question is {short(question)}; expected text")
    value, labels = ([row[name] for name in table.values()], tuple(table)) if table else split_labels(row[str(listed)])
    choices = parse_choices(value, where)
    loose = table is not None and labels[0] == "1"
    identity = str(number) if row.get("id") is None else scalar(row["id"], f"{where}: the id")
    subject = next((scalar(row[name], f"{where}: the {name}") for name in SUBJECT if not absent(row.get(name))), "")
    support = next((row[name] for name in SUPPORT if isinstance(row.get(name), str)), "").strip()
    if not all(map(is_unicode, (question, *choices, identity, subject, support))):
        raise ValueError(f"{where} holds half a surrogate pair; expected Unicode text")
    labels = labels if len(labels) == len(choices) else ()
    return Draft(where, identity, question, choices, labels, loose, row[str(answer)], subject, support)


def first_of(row: Row, names: Sequence[str]) -> str | None:
    return next((name for name in names if name in row), None)


def absent(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, float) and math.isnan(value))


def scalar(value: Any, what: str) -> str:
    if not isinstance(value, str | int | float):
        raise ValueError(f"{what} is {short(value)}; expected text or a number")
    return str(value)


def choice_columns(row: Row) -> dict[str, str] | None:
    """Label -> column where every choice has a column of its own: A, B, ..; choice_a, ..; option1, .. or option0, ..

    Empty cells at the end mean fewer choices. None where there are no two such columns.
    """
    found: dict[str, dict[str, str]] = {}
    for name in row:
        match = COLUMN.fullmatch(str(name))
        if match and (match[1] or match[2].isalpha()):
            found.setdefault((match[1] or "").lower(), {})[match[2].upper()] = str(name)
    for columns in found.values():
        for labels in (LETTERS, [str(i) for i in range(100)], [str(i) for i in range(1, 100)]):
            kept = next((i for i, label in enumerate(labels) if label not in columns), len(labels))
            while kept > 2 and absent(row[columns[labels[kept - 1]]]):
                kept -= 1
            if kept >= 2:
                return {label: columns[label] for label in labels[:kept]}
    return None


def split_labels(value: Any) -> tuple[Any, tuple[str, ...]]:
    """(the choices, their own labels or none) of the forms in which sets hold them."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return value, ()
    if isinstance(value, dict) and "text" in value:  # ARC: {"text": [...], "label": [...]}
        labels = value.get("label")
        return value["text"], tuple(map(str, labels)) if is_texts(labels) else ()
    if isinstance(value, dict) and 2 <= len(value) <= len(LETTERS) and list(value) == list(LETTERS[: len(value)]):
        return list(value.values()), tuple(value)
    if isinstance(value, list) and value and all(isinstance(v, dict) and {"text", "label"} <= v.keys() for v in value):
        labels = [v["label"] for v in value]
        return [v["text"] for v in value], tuple(labels) if is_texts(labels) else ()
    return value, ()


def is_texts(value: Any) -> TypeGuard[Sequence[str]]:
    return isinstance(value, list | tuple) and all(isinstance(part, str) for part in value)


def parse_choices(value: Any, where: str) -> tuple[str, ...]:
    if not is_texts(value) or not all(choice.strip() for choice in value):
        raise ValueError(
            f"{where}: the choices are {short(value)}; expected a list of texts (in a CSV: JSON, or columns A, B, C, D)"
        )
    if len(value) < 2:
        raise ValueError(f"{where} has {len(value)} choice(s); expected 2 to {len(LETTERS)}, or more for cloze alone")
    return tuple(value)


def answered(drafts: Sequence[Draft]) -> list[Question]:
    """The answers of a file, all read in the same way: the first of `READINGS` that reads every row.

    Where none does, the one that reads most names the first row that it cannot read.
    """
    read = {name: [reading(item) for item in drafts] for name, reading in READINGS.items()}
    whole = [name for name, found in read.items() if None not in found]
    name = whole[0] if whole else max(read, key=lambda name: sum(index is not None for index in read[name]))
    for row, item in enumerate(drafts):
        if read[name][row] is None:
            raise ValueError(
                f"{item.where}: the answer {short(item.answer)} is out of range; expected 0 to {len(item.choices) - 1} "
                f"or A to {LETTERS[min(len(item.choices), len(LETTERS)) - 1]}, or one choice's text"
            )
        for other in whole:
            if read[other][row] != read[name][row] and not (name == "label" and item.labels and not item.loose):
                raise ValueError(
                    f"{item.where}: the answer {short(item.answer)} can be read as choice {read[name][row]} or "
                    f"{read[other][row]} counted from 0; expected letters in the whole file"
                )
    return [
        Question(item.id, item.question, item.choices, index, item.subject, item.support)
        for item, index in zip(drafts, read[name], strict=True)
        if index is not None
    ]


def by_label(item: Draft) -> int | None:
    """One of the choices' own labels; without labels, and for what is none of them, an index or letter."""
    value = str(item.answer) if item.loose and type(item.answer) is int else item.answer
    if isinstance(value, str) and value.strip() in item.labels:
        return item.labels.index(value.strip())
    return None if item.loose else by_index(item)


def by_index(item: Draft) -> int | None:
    """0 .. C-1 (a digit string counts as one), or a letter."""
    value = item.answer
    if isinstance(value, bool) or not isinstance(value, int | str):
        return None
    text = value.strip() if isinstance(value, str) else str(value) if 0 <= value < 1000 else ""
    if text.isascii() and text.isdigit():
        index = int(text) if len(text) < 4 else -1
    else:
        index = LETTERS.find(text.upper()) if len(text) == 1 and text.isascii() else -1
    return index if 0 <= index < len(item.choices) else None


def by_text(item: Draft) -> int | None:
    """The text of exactly one choice."""
    if not isinstance(item.answer, str):
        return None
    same = [i for i, choice in enumerate(item.choices) if choice.strip() == item.answer.strip()]
    return same[0] if len(same) == 1 else None


READINGS: dict[str, Callable[[Draft], int | None]] = {"label": by_label, "index": by_index, "text": by_text}


def short(value: Any) -> str:
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested too deep, a number too long
        text = type(value).__name__
    return shown(text if len(text) <= 60 else text[:57] + "...")

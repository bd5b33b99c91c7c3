"""Prompts: SOURCE -> checked `Prompt`s of one or more turns.

A row's prompt stands in the first of the columns `turns`, `messages`, `prompt`, `instruction`, `question` that it has, else
in its text column (`misdirect.data.corpora`). It is a text, a list of texts (MT-Bench's `turns`: the user's, in order), or
a list of messages, of which the user's count: the model gives its own answers. A text that belongs to the prompt is put
below an `instruction` (Alpaca's `input`, Dolly's `context`) and above a `question` or `prompt` (`context`, `passage`, ..).
Any other text of the row but its answer (`system`, `history`) is left out, and that is said. A text file is one prompt.

    prompts = read_prompts("question.jsonl")
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from misdirect.data.choices import absent, normal, short
from misdirect.data.corpora import named_column, text_column
from misdirect.data.files import Row
from misdirect.data.questions import BESIDE, READ, is_lines, is_prose, say_left_out
from misdirect.data.sources import read_rows, split_column
from misdirect.data.splits import PROMPTS
from misdirect.text import is_unicode, shown

COLUMNS = ("turns", "messages", "prompt", "instruction", "question")
BELOW = "instruction"  # the column that its text stands below; it stands above the others
WITH_TEXT = ("prompt", "instruction", "question")
TEXTS = READ | {"passage"}
SAID = TEXTS | {"document", "history", "input", "system", "system_prompt"}  # said to be left out however short they are
ANSWERS = frozenset(
    {
        "answer", "answers", "best_answer", "category", "chosen", "completion", "correct_answers", "expected", "ideal",
        "incorrect_answers", "label", "output", "outputs", "reference_answer", "rejected", "response", "responses", "target",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Prompt:
    """What a user says, turn by turn; the model answers each turn with its own earlier answers in view."""

    id: str
    turns: tuple[str, ...]
    category: str = ""


def read_prompts(source: str) -> list[Prompt]:
    """The prompts of SOURCE. Raises ValueError naming the row for a missing column, a turn without text, an id twice."""
    plain, column = split_column(source)
    rows, source = read_rows(plain, PROMPTS, (column,) if column else ()), shown(source)
    prompts = [parse_prompt(row, f"{source}, row {number}", number, column) for number, row in enumerate(rows, 1)]
    seen: set[str] = set()
    for number, prompt in enumerate(prompts, 1):
        if prompt.id in seen:
            raise ValueError(f"{source}, row {number}: the id {prompt.id!r} is already taken; expected one id a prompt")
        seen.add(prompt.id)
    unread = (name for row, prompt in zip(rows, prompts, strict=True) for name in left_out_of(row, prompt))
    if left_out := list(dict.fromkeys(unread)):
        say_left_out(source, left_out)
    return prompts


def parse_prompt(row: Row, where: str, number: int, column: str | None = None) -> Prompt:
    if column is not None:
        named_column(row, column, where)
    column = column or next((name for name in COLUMNS if row.get(name) is not None), None) or text_column(row, where)
    turns = parse_turns(row[column], f"{where}: {column!r}")
    if column in WITH_TEXT:
        turns = (with_texts(row, column, turns[0]), *turns[1:])
    identity = next((str(row[k]) for k in ("id", "question_id") if row.get(k) is not None), str(number - 1))
    category = str(row.get("category") or "")
    if not all(map(is_unicode, (*turns, identity, category))):
        raise ValueError(f"{where} holds half a surrogate pair; expected Unicode text")
    return Prompt(identity, turns, category)


def with_texts(row: Row, column: str, asked: str) -> str:
    """What is asked with the texts that belong to it."""
    for name, value in row.items():
        key, text = normal(name), "\n".join(value) if is_lines(value) else value
        if not isinstance(text, str) or not text.strip():
            continue
        if column == BELOW and name == "input":
            asked = f"{asked}\n\n{text}"
        elif name != column and key in TEXTS and text.strip() not in asked:
            asked = f"{asked}\n\n{text}" if column == BELOW else f"{text}\n\n{asked}"
    return asked


def left_out_of(row: Row, prompt: Prompt) -> list[str]:
    """The columns with a text that the model is not given, answers and what is known to stand beside a prompt apart."""
    asked = "\n".join(prompt.turns)
    found = []
    for name, value in row.items():
        key, text = normal(name), "\n".join(value) if is_lines(value) else value
        if key in ANSWERS or key in BESIDE:
            continue
        if not isinstance(text, str):
            is_left_out = key in SAID and not absent(value) and value != []
        else:  # a part of what is asked, or all of it as it was rendered, is none
            is_left_out = (is_prose(text) or (key in SAID and bool(text.strip()))) and not (
                text.strip() in asked or asked in text
            )
        if is_left_out:
            found.append(name)
    return found


def parse_turns(value: Any, where: str) -> tuple[str, ...]:
    turns: Any = [value] if isinstance(value, str) else value
    if not isinstance(turns, Sequence) or not turns:
        raise ValueError(f"{where} is {short(value)}; expected text, a list of texts, or a list of messages")
    if all(isinstance(turn, dict) for turn in turns):
        turns = user_turns(turns, where)
    for turn in turns:
        if not isinstance(turn, str) or not turn.strip():
            raise ValueError(f"{where} has the turn {short(turn)}; expected text")
    return tuple(turns)


def user_turns(messages: Sequence[Row], where: str) -> list[Any]:
    """What the user says. A system message would be dropped in silence, and many models take none, so it is refused."""
    roles = [message.get("role") for message in messages]
    odd = [role for role in roles if role not in ("user", "assistant")]
    if odd or "user" not in roles:
        came = f"a message of the role {short(odd[0])}" if odd else "no message of the user"
        raise ValueError(f"{where} has {came}; expected user messages, and assistant ones in between at most")
    return [message.get("content") for message in messages if message["role"] == "user"]

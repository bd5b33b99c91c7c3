"""Forget and retain text: SOURCE[#COLUMN[+COLUMN]] -> documents.

A row's text stands in the columns named behind the #, joined by line ends, empty ones left out; else in the first of
`TEXT_COLUMNS` that a file's first row has; else in a conversation (`CHATS`); else in its only string column. Of a
conversation the turns of user and assistant are taken, one below the other, without their roles; what a system prompt
or a tool says is left out.

>>> texts = read_texts("shelf/biology.jsonl")                 # a list of str
>>> texts = read_texts("shelf/articles.parquet#body")         # out of the column body
>>> texts = read_texts("shelf/tofu.jsonl#question+answer")    # out of two
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from misdirect.data import builtin
from misdirect.data.files import Group, Row, json_object, kind, lines
from misdirect.data.sources import find_files, read_groups, split_column
from misdirect.text import is_unicode, shown

TEXT_COLUMNS = ("text", "content", "passage", "document", "article", "body", "abstract")
CHATS = ("messages", "conversations", "conversation")
NOT_SAID = (
    "system",
    "developer",
    "tool",
    "tool_call",
    "function",
    "function_call",
    "observation",
    "ipython",
    "environment",
)
NAMES_ONLY = ("id", "_id", "uuid", "guid", "url", "hash", "sha256")  # string columns that are no text
RAW = "raw"
ENDS = tuple(re.compile(end) for end in (r"\n\s*\n", r"\n", r"(?<=[.!?])\s", r"\s"))  # of a passage, best first


class Documents(NamedTuple):
    """Documents and whether they are whole files, or a single one: those are measured in all their length."""

    texts: list[str]
    whole: bool


def read_texts(source: str, raw_allowed: bool = False) -> list[str]:
    """The documents of SOURCE, blank ones left out.

    `SOURCE#raw` is each line of a .jsonl file as it stands, quotes, keys and line end included: what the published code
    feeds for all topics but biology, so it needs `raw_allowed` (`--numerics published`).
    Raises ValueError when the column is not there, not text, or holds nothing.
    """
    return read_documents(source, raw_allowed).texts


def read_documents(source: str, raw_allowed: bool = False) -> Documents:
    """`read_texts`, and whether the documents are whole text files or a single one."""
    name, column = split_column(source)
    files = 0
    if column == RAW:
        if not raw_allowed:
            raise ValueError(
                f"{shown(source)} feeds JSON lines with their quotes and keys, as the published code does; "
                "expected --numerics published with it, or SOURCE#COLUMN"
            )
        texts = list(raw_lines(name))
    else:
        texts = []
        for group in read_groups(name, columns=[column, *column.split("+")] if column else ()):
            found = list(group_texts(group, column))
            files += len(found) if group.whole else 0
            texts += found
    if not texts:
        raise ValueError(f"{shown(source)} is empty: no row holds text; expected at least one")
    return Documents(texts, files > 0 or len(texts) == 1)


def read_passages(source: str, max_chars: int) -> list[str]:
    """The documents of SOURCE, whole files and single ones cut into passages, so that a passage can be left out alone."""
    texts, whole = read_documents(source)
    return [piece for text in texts for piece in passages(text, max_chars)] if whole else texts


def passages(text: str, max_chars: int) -> list[str]:
    """`text` in pieces of `max_chars` at most, cut where a paragraph, else a line, a sentence, a word ends."""
    out, start = [], 0
    while len(text) - start > max_chars:
        end = cut(text, start + max_chars // 2, start + max_chars)
        out.append(text[start:end])
        start = end
    return [piece for piece in (*out, text[start:]) if piece.strip()]


def cut(text: str, low: int, high: int) -> int:
    for end in ENDS:
        if found := [match.end() for match in end.finditer(text, low, high)]:
            return found[-1]
    return high


def group_texts(group: Group, column: str | None) -> Iterator[str]:
    rows = iter(group.rows)
    first = next(rows, None)
    if first is None:
        return
    names = named_columns(first, column, group.where) if column else (text_column(first, group.where),)
    for number, row in enumerate(itertools.chain([first], rows), 1):
        where = f"{group.where}, row {number}"
        text = "\n".join(filter(str.strip, (text_of(row.get(name), name, where, len(names) > 1) for name in names)))
        if not is_unicode(text):
            raise ValueError(
                f"{where}: {shown('+'.join(names), 40)!r} holds half a surrogate pair; expected Unicode text"
            )
        if text.strip():
            yield text


def text_of(value: Any, name: str, where: str, of_several: bool) -> str:
    """A cell as text: a conversation by its turns; of several columns, an empty one as no text."""
    if name in CHATS and isinstance(value, str) and value.lstrip().startswith("[{"):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return str(value)
    if isinstance(value, list) and value and all(isinstance(turn, dict) for turn in value):
        return "\n".join(filter(str.strip, (said(turn, name, where) for turn in value)))
    if value is None and of_several:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"{where}: {shown(name, 40)!r} is {type(value).__name__}; expected text")
    return value


def said(turn: Row, name: str, where: str) -> str:
    """What one turn of a conversation says: `content` or ShareGPT's `value`, of parts the text; a tool call says nothing."""
    role = turn.get("role", turn.get("from"))
    content = turn.get("content", turn.get("value"))
    if not isinstance(role, str) or not ("content" in turn or "value" in turn or "tool_calls" in turn):
        raise ValueError(
            f"{where}: {shown(name, 40)!r} has a turn of {columns(turn)}; expected role and content, or from and value"
        )
    if role.casefold() in NOT_SAID or content is None:
        return ""
    if isinstance(content, list):
        texts = [
            part if isinstance(part, str) else part.get("text") for part in content if isinstance(part, str | dict)
        ]
        content = "\n".join(text for text in texts if isinstance(text, str))
    if not isinstance(content, str):
        raise ValueError(f"{where}: {shown(name, 40)!r} has a turn of {type(content).__name__}; expected text")
    return content


def named_columns(row: Row, column: str, where: str) -> tuple[str, ...]:
    """`question+answer` -> both; a column whose own name holds the + wins."""
    names = (column,) if column in row else tuple(column.split("+"))
    return tuple(named_column(row, name, where) for name in names)


def named_column(row: Row, column: str, where: str) -> str:
    if column not in row:
        raise ValueError(f"{where} has no column {shown(column, 40)!r}; expected one of {columns(row)}")
    return column


def text_column(row: Row, where: str) -> str:
    found = next((name for name in (*TEXT_COLUMNS, *CHATS) if name in row), None)
    strings = [name for name, value in row.items() if isinstance(value, str) and str(name).casefold() not in NAMES_ONLY]
    if found is None and len(strings) != 1:
        several = (
            f", such as SOURCE#{shown('+'.join(map(str, strings[:3])), 60)} for several" if len(strings) > 1 else ""
        )
        raise ValueError(
            f"{where} has the columns {columns(row)}; expected one named {TEXT_COLUMNS[0]!r}, or SOURCE#COLUMN{several}"
        )
    return found if found is not None else strings[0]


def columns(row: Row) -> str:
    return shown(", ".join(map(str, row)), 120) or "(none)"


def raw_lines(source: str) -> Iterator[str]:
    """Every line of .jsonl files with its line end, checked to be JSON. Raises ValueError for any other SOURCE."""
    copy = (builtin.local_copy(builtin.canonical(source)) or ()) if builtin.is_name(source) else ()
    files = [part.path for part in copy]
    if not files and (builtin.is_name(source) or source.startswith("hub:")):
        raise ValueError(
            f"{shown(source)}#{RAW} has no lines of its own; expected a .jsonl file, downloaded from the dataset's page"
        )
    for path in files or find_files(source):
        if kind(path) != ".jsonl":
            raise ValueError(f"{shown(path)} has no JSON lines; expected a .jsonl file for #{RAW}")
        for where, line in lines(path):
            json_object(line, where)
            yield line

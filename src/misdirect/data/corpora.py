"""Forget and retain text: SOURCE[#COLUMN] -> documents.

>>> texts = read_texts("shelf/biology.jsonl")          # a list of str
>>> texts = read_texts("shelf/articles.parquet#body")  # out of the column body
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from misdirect.data import builtin
from misdirect.data.files import (
    Group,
    Row,
    find_files,
    is_unicode,
    json_object,
    kind,
    lines,
    read_groups,
    shown,
    split_column,
)

TEXT_COLUMNS = ("text", "content", "passage", "document", "article", "body", "abstract")
RAW = "raw"


def read_texts(source: str, raw_allowed: bool = False) -> list[str]:
    """The documents of SOURCE, blank ones left out.

    The text column is the one named behind a #, else the first of `TEXT_COLUMNS` that a file's first row has, else its
    only string column. `SOURCE#raw` is each line of a .jsonl file as it stands, quotes, keys and line end included: what
    the published code feeds for all topics but biology, so it needs `raw_allowed` (`--numerics published`).
    Raises ValueError when the column is not there, not text, or holds nothing.
    """
    name, column = split_column(source)
    if column == RAW:
        if not raw_allowed:
            raise ValueError(
                f"{shown(source)} feeds JSON lines with their quotes and keys, as the published code does; "
                "expected --numerics published with it, or SOURCE#COLUMN"
            )
        texts = list(raw_lines(name))
    else:
        texts = [text for group in read_groups(name) for text in group_texts(group, column)]
    if not texts:
        raise ValueError(f"{shown(source)} is empty: no row holds text; expected at least one")
    return texts


def group_texts(group: Group, column: str | None) -> Iterator[str]:
    rows = iter(group.rows)
    first = next(rows, None)
    if first is None:
        return
    column = named_column(first, column, group.where) if column else text_column(first, group.where)
    label = shown(column, 40)
    for number, row in enumerate(itertools.chain([first], rows), 1):
        text = row.get(column)
        if not isinstance(text, str):
            raise ValueError(f"{group.where}, row {number}: {label!r} is {type(text).__name__}; expected text")
        if not is_unicode(text):
            raise ValueError(
                f"{group.where}, row {number}: {label!r} holds half a surrogate pair; expected Unicode text"
            )
        if text.strip():
            yield text


def named_column(row: Row, column: str, where: str) -> str:
    if column not in row:
        raise ValueError(f"{where} has no column {shown(column, 40)!r}; expected one of {columns(row)}")
    return column


def text_column(row: Row, where: str) -> str:
    for column in TEXT_COLUMNS:
        if column in row:
            return column
    strings = [name for name, value in row.items() if isinstance(value, str)]
    if len(strings) != 1:
        raise ValueError(
            f"{where} has the columns {columns(row)}; expected one named {TEXT_COLUMNS[0]!r}, or SOURCE#COLUMN"
        )
    return strings[0]


def columns(row: Row) -> str:
    return shown(", ".join(map(str, row)), 120) or "(none)"


def raw_lines(source: str) -> Iterator[str]:
    """Every line of .jsonl files with its line end, checked to be JSON. Raises ValueError for any other SOURCE."""
    files = builtin.local_copy(builtin.canonical(source)) if builtin.is_name(source) else None
    if files is None and (builtin.is_name(source) or source.startswith("hub:")):
        raise ValueError(
            f"{shown(source)}#{RAW} has no lines of its own; expected a .jsonl file, downloaded from the dataset's page"
        )
    for path in files or find_files(source):
        if kind(path) != ".jsonl":
            raise ValueError(f"{shown(path)} has no JSON lines; expected a .jsonl file for #{RAW}")
        for where, line in lines(path):
            json_object(line, where)
            yield line

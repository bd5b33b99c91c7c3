"""Forget and retain text: SOURCE -> documents.

>>> texts = read_texts("shelf/biology.jsonl")     # a list of str
"""

from __future__ import annotations

from misdirect.data.files import Row, is_unicode, read_rows

TEXT_COLUMNS = ("text", "content", "passage", "document", "article", "body", "abstract")


def read_texts(source: str) -> list[str]:
    """The documents of SOURCE, blank ones left out.

    The text column is the first of `TEXT_COLUMNS` that the first row has, else its only string column.
    Raises ValueError when the column is not there, not text, or holds nothing.
    """
    rows = read_rows(source)
    column = text_column(rows[0], source)
    texts = []
    for number, row in enumerate(rows, 1):
        text = row.get(column)
        if not isinstance(text, str):
            raise ValueError(f"{source}, row {number}: {column!r} is {type(text).__name__}; expected text")
        if not is_unicode(text):
            raise ValueError(f"{source}, row {number}: {column!r} holds half a surrogate pair; expected Unicode text")
        if text.strip():
            texts.append(text)
    if not texts:
        raise ValueError(f"{source} is empty: no row of {column!r} holds text")
    return texts


def text_column(row: Row, source: str) -> str:
    for column in TEXT_COLUMNS:
        if column in row:
            return column
    strings = [name for name, value in row.items() if isinstance(value, str)]
    if len(strings) != 1:
        raise ValueError(
            f"{source} has the columns {', '.join(map(str, row)) or '(none)'}; expected one named {TEXT_COLUMNS[0]!r}"
        )
    return strings[0]

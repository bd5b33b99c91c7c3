"""Rows out of a SOURCE: a file, a folder, a hub dataset or a built-in name. Every reader of text or questions starts here.

| SOURCE | read by |
|---|---|
| a file | `misdirect.data.files` |
| a folder, `FOLDER:CONFIG:SPLIT` | `misdirect.data.folders` |
| `hub:OWNER/DATASET[:CONFIG[:SPLIT]]` | `misdirect.data.hub` |
| a built-in name | `misdirect.data.builtin` |

All complaints are one-line ValueErrors that say what came, what was expected and what to type.

>>> read_rows("shelf/questions.jsonl")      # a list of dicts
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from misdirect.data import builtin, folders, hub
from misdirect.data.files import SUFFIXES, TABLES, Group, Row, file_rows, kind
from misdirect.data.splits import TEXT, Order
from misdirect.progress import note
from misdirect.text import reason, shown


def read_rows(source: str, order: Order = TEXT, columns: Sequence[str] = ()) -> list[Row]:
    """All rows of SOURCE, in order. Raises ValueError when there are none."""
    rows = [row for group in read_groups(source, order, columns) for row in group.rows]
    if not rows:
        raise ValueError(f"{shown(source)} is empty; expected at least one row")
    return rows


def read_groups(
    source: str, order: Order = TEXT, columns: Sequence[str] = (), names: Sequence[str] = ()
) -> Iterator[Group]:
    """SOURCE file by file, read as they are asked for. Raises ValueError for a SOURCE that is not there.

    `order`: which split is wanted where SOURCE has several and names none. `columns`: what the user says the rows have.
    `names`: the columns of a CSV file without a header.
    """
    if builtin.is_name(source):
        if file_exists(source):
            note(f"{source} is the built-in set; ./{source} names the file or folder here")
        yield from builtin.groups(source)
    elif source.startswith("hub:"):
        yield Group(shown(source), hub.rows(hub.parse(source), order))
    elif (place := folder_of(source)) is not None:
        yield from folders.groups(*place, order, columns)
    else:
        (path,) = find_files(source)
        yield Group(shown(path), file_rows(path, columns, names), kind(path) not in TABLES)


def folder_of(source: str) -> tuple[Path, str, str] | None:
    """(folder, config, split) of `FOLDER` and `FOLDER:CONFIG:SPLIT`; None for what is not a folder."""
    if file_exists(source):
        path = Path(source).expanduser()
        return (path, "", "") if path.is_dir() else None
    for count in (1, 2):
        head, *names = source.rsplit(":", count)
        if len(names) == count and file_exists(head) and Path(head).expanduser().is_dir():
            return Path(head).expanduser(), names[0], names[1] if count == 2 else ""
    return None


def split_column(source: str) -> tuple[str, str | None]:
    """`SOURCE#COLUMN` -> (SOURCE, COLUMN); without a column (SOURCE, None). A file whose own name holds the # wins."""
    if "#" not in source or file_exists(source):
        return source, None
    for place in reversed([i for i, char in enumerate(source) if char == "#"]):
        head, column = source[:place], source[place + 1 :]
        if head.startswith("hub:") or builtin.is_name(head) or file_exists(head) or folder_of(head):
            if not column:
                raise ValueError(f"{shown(source)} names no column after the #; expected SOURCE#COLUMN")
            return head, column
    return source, None


def file_exists(source: str) -> bool:
    try:
        return bool(source) and Path(source).expanduser().exists()
    except (OSError, RuntimeError, ValueError):
        return False


def find_files(source: str, order: Order = TEXT) -> list[Path]:
    """The file, or the files of the folder that are read. Raises ValueError where there is none."""
    if (place := folder_of(source)) is not None:
        return folders.files_of(*place, order)
    try:
        path = Path(source).expanduser()
        there = bool(source) and path.exists()
    except (OSError, RuntimeError, ValueError) as error:  # a name too long, no such home folder, a null character
        raise ValueError(f"{shown(source)} is no name of a file: {reason(error)}") from None
    if not there:
        raise ValueError(f"{shown(source) or 'an empty SOURCE'} does not exist; {expected_source(source)}")
    if not path.is_file():
        raise ValueError(f"{shown(source)} is neither a file nor a folder; expected one of them")
    return [path]


def expected_source(source: str) -> str:
    near = builtin.similar(source)
    return (
        f"expected a file or folder ({', '.join(SUFFIXES)}, each also .gz), hub:OWNER/DATASET[:CONFIG[:SPLIT]], or a built-in "
        f"name: {', '.join(near) if near else builtin.FAMILIES}"
    )

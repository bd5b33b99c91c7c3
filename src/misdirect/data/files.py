"""Rows out of a SOURCE: a file, a folder, a hub dataset or a built-in name. Every reader of text or questions starts here.

Accepted: `.jsonl`, `.json`, `.csv`, `.tsv`, `.parquet`, `.txt`, `.md`, any of them with `.gz`, a folder of such files,
`hub:OWNER/DATASET[:CONFIG[:SPLIT]]`, and the built-in names of `misdirect.data.builtin`. Text files become one row
`{"text": ...}`. All complaints are one-line ValueErrors that say what came, what was expected and what to type.

A folder is all its files at any depth, in the order of their names. Left out: hidden files and folders, and, where the
folder holds tables, files named README or LICENSE. A link to a file is followed, since that is what a hub cache is made
of; a link to a folder is not. A `.gz` that unpacks to more than `GZIP_RATIO` times its size is refused past `GZIP_FREE`.

>>> read_rows("shelf/questions.jsonl")      # a list of dicts
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from misdirect.progress import note

Row = dict[str, Any]
TABLES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
SUFFIXES = (*TABLES, ".txt", ".md")
NOT_DATA = ("readme", "license", "licence")  # beside tables: about the data, not data
GZIP_RATIO, GZIP_FREE = 100, 64 * 2**20  # text packs 3 to 20 times; a bomb about 1,000 times
CHUNK = 2**20
LONGEST_NAME = 310


class Group(NamedTuple):
    """Rows that belong together (one file, one set), and the name to complain under."""

    where: str
    rows: Iterable[Row]


def read_rows(source: str) -> list[Row]:
    """All rows of SOURCE, in order. Raises ValueError when there are none."""
    rows = [row for group in read_groups(source) for row in group.rows]
    if not rows:
        raise ValueError(f"{shown(source)} is empty; expected at least one row")
    return rows


def read_groups(source: str) -> Iterator[Group]:
    """SOURCE file by file, read as they are asked for. Raises ValueError for a SOURCE that is not there."""
    from misdirect.data import builtin, hub

    if builtin.is_name(source):
        if file_exists(source):
            note(f"{source} is the built-in set; ./{source} names the file or folder here")
        yield from builtin.groups(source)
    elif source.startswith("hub:"):
        yield Group(shown(source), hub.rows(hub.parse(source)))
    else:
        for file in find_files(source):
            yield Group(shown(file), file_rows(file))


def split_column(source: str) -> tuple[str, str | None]:
    """`SOURCE#COLUMN` -> (SOURCE, COLUMN); without a column (SOURCE, None). A file whose own name holds the # wins."""
    from misdirect.data import builtin

    if "#" not in source or file_exists(source):
        return source, None
    for place in reversed([i for i, char in enumerate(source) if char == "#"]):
        head, column = source[:place], source[place + 1 :]
        if head.startswith("hub:") or builtin.is_name(head) or file_exists(head):
            if not column:
                raise ValueError(f"{shown(source)} names no column after the #; expected SOURCE#COLUMN")
            return head, column
    return source, None


def file_exists(source: str) -> bool:
    try:
        return bool(source) and Path(source).expanduser().exists()
    except (OSError, RuntimeError, ValueError):
        return False


def find_files(source: str) -> list[Path]:
    """The file, or the files of the folder. Raises ValueError where there is none."""
    try:
        path = Path(source).expanduser()
        there = bool(source) and path.exists()
    except (OSError, RuntimeError, ValueError) as error:  # a name too long, no such home folder, a null character
        raise ValueError(f"{shown(source)} is no name of a file: {reason(error)}") from None
    if not there:
        raise ValueError(f"{shown(source) or 'an empty SOURCE'} does not exist; {expected_source(source)}")
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ValueError(f"{shown(source)} is neither a file nor a folder; expected one of them")
    files = folder_files(path)
    if not files:
        raise ValueError(f"the folder {shown(source)} holds no {', '.join(SUFFIXES)} file")
    return files


def expected_source(source: str) -> str:
    from misdirect.data import builtin

    near = builtin.similar(source)
    return (
        f"expected a file or folder ({', '.join(SUFFIXES)}, each also .gz), hub:OWNER/DATASET[:CONFIG[:SPLIT]], or a built-in "
        f"name: {', '.join(near) if near else builtin.FAMILIES}"
    )


def folder_files(folder: Path) -> list[Path]:
    try:
        found = [path for path in folder.rglob("*") if kind(path) in SUFFIXES and path.is_file()]
    except OSError as error:
        raise ValueError(f"the folder {shown(folder)} cannot be read: {reason(error)}") from None
    files = sorted(p for p in found if not any(part.startswith(".") for part in p.relative_to(folder).parts))
    if any(kind(path) in TABLES for path in files):
        files = [path for path in files if path.name.split(".")[0].lower() not in NOT_DATA]
    return files


def kind(path: Path) -> str:
    """The suffix that says how to read a file, `.gz` aside."""
    return (path.with_suffix("") if is_gzip(path) else path).suffix.lower()


def is_gzip(path: Path) -> bool:
    return path.suffix.lower() == ".gz"


def file_rows(path: Path) -> Iterator[Row]:
    """The rows of one file, read as they are asked for. Raises ValueError for what it does not hold."""
    suffix = kind(path)
    if suffix not in SUFFIXES:
        raise ValueError(
            f"{shown(path)} ends in {shown(suffix) or 'nothing'}; expected {', '.join(SUFFIXES)}, each also .gz"
        )
    if suffix == ".parquet":
        return parquet_rows(path)
    if suffix == ".jsonl":
        return jsonl_rows(path)
    if suffix == ".json":
        return json_rows(path)
    if suffix in (".csv", ".tsv"):
        return csv_rows(path, "\t" if suffix == ".tsv" else ",")
    return text_rows(path)


def chunks(path: Path) -> Iterator[bytes]:
    """The file's bytes, unpacked. Raises ValueError where it cannot be read or unpacks to far more than text does."""
    try:
        limit = max(GZIP_FREE, GZIP_RATIO * path.stat().st_size) if is_gzip(path) else None
        total = 0
        with opened(path) as stream:
            while chunk := stream.read(CHUNK):
                total += len(chunk)
                if limit is not None and total > limit:
                    raise ValueError(
                        f"{shown(path)} unpacks to more than {GZIP_RATIO} times its size, which text does not; "
                        "if it is yours, gunzip it and name the unpacked file"
                    )
                yield chunk
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{shown(path)} cannot be read: {reason(error)}") from None


def opened(path: Path) -> AbstractContextManager[BinaryIO]:
    stream: Any = gzip.open(path) if is_gzip(path) else path.open("rb")  # noqa: SIM115 - the caller closes it
    return stream


def decoded(data: bytes, where: str) -> str:
    """UTF-8 text, less a byte order mark. A NUL is refused: it means UTF-16 or a binary file under a text's name."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        utf16 = " (it looks like UTF-16)" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        raise ValueError(f"{where} is not UTF-8 text (byte {error.start}){utf16}; expected UTF-8") from None
    if "\0" in text:
        raise ValueError(f"{where} holds a NUL byte (at {text.index(chr(0))}); expected UTF-8 text")
    return text


def lines(path: Path) -> Iterator[tuple[str, str]]:
    """(where, line) of each line that is not blank, its \\n kept.

    Lines end at \\n alone: U+2028 and \\r may stand inside a JSON string. One line at a time is held in memory.
    """
    number = 0
    pieces: list[bytes] = []
    for chunk in chunks(path):
        *ended, rest = chunk.split(b"\n")
        for piece in ended:
            number += 1
            yield from whole_line(path, number, b"".join([*pieces, piece, b"\n"]))
            pieces = []
        pieces.append(rest)
    yield from whole_line(path, number + 1, b"".join(pieces))


def whole_line(path: Path, number: int, data: bytes) -> Iterator[tuple[str, str]]:
    if data.strip():
        where = f"{shown(path)}, line {number}"
        yield where, decoded(data, where)


def text_rows(path: Path) -> Iterator[Row]:
    text = decoded(b"".join(chunks(path)), shown(path))
    if text.strip():
        yield {"text": text}


def jsonl_rows(path: Path) -> Iterator[Row]:
    for where, line in lines(path):
        yield json_object(line, where)


def json_object(line: str, where: str) -> Row:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON ({reason(error)}); expected one object a line") from None
    if not isinstance(row, dict):
        raise ValueError(f"{where} is {type(row).__name__}; expected one JSON object a line")
    return row


def json_rows(path: Path) -> Iterator[Row]:
    """A list of objects; also one object a line, which often goes by the name of .json."""
    text = decoded(b"".join(chunks(path)), shown(path))
    if not text.strip():
        return
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text.lstrip().startswith("{"):
            yield from jsonl_rows(path)
            return
        raise ValueError(f"{shown(path)} is not JSON ({reason(error)}); expected a list of objects") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{shown(path)} is not JSON ({reason(error)}); expected a list of objects") from None
    if not isinstance(data, list) or not all(isinstance(row, dict) for row in data):
        raise ValueError(f"{shown(path)} holds no list of objects; expected [{{...}}, ...]")
    yield from data


def csv_rows(path: Path, delimiter: str) -> Iterator[Row]:
    """Strict: a quote that does not close would swallow the rest of the file, a row too long is a quote missing."""
    text = decoded(b"".join(chunks(path)), shown(path))
    csv.field_size_limit(2**31 - 1)
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        names = [name for name in reader.fieldnames or () if name]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(
                f"{shown(path)} names the column {shown(twice, 40)!r} twice; expected a name of its own for each"
            )
        for row in reader:
            if None in row:
                raise ValueError(
                    f"{shown(path)}, line {reader.line_num} has more fields than the header's {len(reader.fieldnames or ())}; "
                    "expected fields that hold the separator in quotes"
                )
            row.pop("", None)  # the nameless index that some programs write
            yield row
    except csv.Error as error:
        raise ValueError(
            f"{shown(path)} is not readable as CSV (after line {reader.line_num}): {reason(error)}"
        ) from None


def bare_rows(path: Path) -> Iterator[list[str]]:
    """The fields of each row of a CSV file without a header."""
    if kind(path) not in (".csv", ".tsv"):
        raise ValueError(f"{shown(path)}#no-header is not a CSV file; expected .csv or .tsv")
    text = decoded(b"".join(chunks(path)), shown(path))
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if kind(path) == ".tsv" else ",", strict=True)
    try:
        yield from filter(None, reader)
    except csv.Error as error:
        raise ValueError(
            f"{shown(path)} is not readable as CSV (after line {reader.line_num}): {reason(error)}"
        ) from None


def parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow.parquet as pq

    file: Any = io.BytesIO(b"".join(chunks(path))) if is_gzip(path) else path
    try:
        with pq.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=1024):
                yield from batch.to_pylist()
    except Exception as error:  # damaged files raise dozens of kinds: Arrow's, OSError, OverflowError, KeyError, ...
        raise ValueError(f"{shown(path)} is not a readable parquet file: {reason(error)}") from None


def is_unicode(text: str) -> bool:
    """Whether `text` can be encoded: a JSON escape such as \\ud800 alone cannot, and no tokenizer takes it."""
    return text.isascii() or not any("\ud800" <= char <= "\udfff" for char in text)


def shown(value: Any, limit: int = LONGEST_NAME) -> str:
    """`value` as text that may go to a terminal: one line, escapes for all that does not print, its middle left out."""
    text = str(value)
    if len(text) > limit:
        text = f"{text[: limit // 2]}...{text[len(text) - limit // 2 :]}"
    return text if text.isprintable() else "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def reason(error: BaseException) -> str:
    """The first line of what a library says, without the file's name, which stands beside it."""
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return shown(next((line.strip() for line in said.splitlines() if line.strip()), type(error).__name__), 160)

"""Rows out of one file: `.jsonl`, `.json`, `.csv`, `.tsv`, `.parquet`, `.arrow`, `.txt`, `.md`, any of them with `.gz`.

Text files become one row `{"text": ...}`. All complaints are one-line ValueErrors that say what came, what was expected
and what to type. A `.gz` that unpacks to more than `GZIP_RATIO` times its size is refused past `GZIP_FREE`. The first line
of a CSV names its columns; one that does not look like names is refused, since it would be lost as a row.

>>> list(file_rows(Path("shelf/questions.jsonl")))      # a list of dicts
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from misdirect.text import reason, shown

Row = dict[str, Any]
TABLES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow")
SUFFIXES = (*TABLES, ".txt", ".md")
GZIP_RATIO, GZIP_FREE = 100, 64 * 2**20  # text packs 3 to 20 times; a bomb about 1,000 times
CHUNK = 2**20
POINTERS = ((b"version https://git-lfs", "git lfs pull"), (b"/annex/objects/", "git annex get"))
# Names that columns have: a first line with one of them is a header
NAMES = frozenset(
    """
    text content passage document article body abstract question query stem prompt sentence ctx context choices options
    endings answer answers answerkey answer_key answer_idx answer_index correct correct_answer label gold cop support subject
    topic id title instruction input output response completion messages conversations conversation turns category source
    """.split()  # noqa: SIM905
)
LONG_NAME, MANY_WORDS, LOOK_AHEAD = 60, 5, 50  # of a cell that is not a name; rows in which it would come again


class Group(NamedTuple):
    """Rows that belong together (one file, one set), and the name to complain under. `whole`: a text file is one row."""

    where: str
    rows: Iterable[Row]
    whole: bool = False


def kind(path: Path) -> str:
    """The suffix that says how to read a file, `.gz` aside."""
    return (path.with_suffix("") if is_gzip(path) else path).suffix.lower()


def is_gzip(path: Path) -> bool:
    return path.suffix.lower() == ".gz"


def file_rows(path: Path, columns: Sequence[str] = (), names: Sequence[str] = ()) -> Iterator[Row]:
    """The rows of one file, read as they are asked for. Raises ValueError for what it does not hold.

    `columns`: names that the user has given, so a CSV whose first line holds one has a header. `names`: the columns of a
    CSV that has none.
    """
    suffix = kind(path)
    if suffix not in SUFFIXES:
        raise ValueError(
            f"{shown(path)} ends in {shown(suffix) or 'nothing'}; expected {', '.join(SUFFIXES)}, each also .gz"
        )
    refuse_pointer(path)
    if suffix in (".csv", ".tsv"):
        return csv_rows(path, "\t" if suffix == ".tsv" else ",", columns, names)
    readers = {".parquet": parquet_rows, ".arrow": arrow_rows, ".jsonl": jsonl_rows, ".json": json_rows}
    return readers.get(suffix, text_rows)(path)


def refuse_pointer(path: Path) -> None:
    """A clone made without its large files holds a few lines of text in the place of each."""
    try:
        with path.open("rb") as stream:
            head = stream.read(64)
    except OSError as error:
        raise ValueError(f"{shown(path)} cannot be read: {reason(error)}") from None
    for start, command in POINTERS:
        if head.startswith(start):
            raise ValueError(
                f"{shown(path)} is a pointer to the data and not the data; expected `{command}` in the folder's clone"
            )


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


def csv_rows(path: Path, delimiter: str, columns: Sequence[str] = (), names: Sequence[str] = ()) -> Iterator[Row]:
    """Strict: a quote that does not close would swallow the rest of the file, a row too long is a quote missing."""
    text = decoded(b"".join(chunks(path)), shown(path))
    csv.field_size_limit(2**31 - 1)
    if not names:
        refuse_headless(path, delimiter, first_rows(text, delimiter), columns)
    reader = csv.DictReader(io.StringIO(text, newline=""), names or None, delimiter=delimiter, strict=True)
    try:
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


def first_rows(text: str, delimiter: str) -> list[list[str]]:
    """The first rows that are not blank, up to one that is not readable: who reads on says so."""
    rows: list[list[str]] = []
    with contextlib.suppress(csv.Error):
        for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True):
            rows += [row] if row else []
            if len(rows) > LOOK_AHEAD:
                break
    return rows


def refuse_headless(path: Path, delimiter: str, rows: Sequence[Sequence[str]], columns: Sequence[str]) -> None:
    """Raises ValueError where the first of `rows` does not name columns, each of them once."""
    first = [cell for cell in (rows or [[]])[0] if cell]
    known = any(cell.strip().casefold() in NAMES or cell in columns for cell in first)
    numbered = [cell.strip() for cell in first] == [str(i) for i in range(len(first))]  # as pandas names columns
    if not known and not numbered and any(is_data(i, cell, rows[1:]) for i, cell in enumerate(rows[0] if rows else ())):
        mmlu = ", as MMLU's own files do" if len(rows[0]) == 6 and rows[0][5] in ("A", "B", "C", "D") else ""
        raise ValueError(
            f"{shown(path)} has no header: its first line begins {shown(first[0], 60)!r}{mmlu}; expected a line above it "
            f"that names the columns, such as {'text' if len(first) == 1 else 'question,A,B,C,D,answer'}"
            f"{', or SOURCE#no-header' if mmlu else ''}"
        )
    twice = next((cell for cell in first if first.count(cell) > 1), None)
    if twice is not None:
        raise ValueError(
            f"{shown(path)} names the column {shown(twice, 40)!r} twice; expected a name of its own for each"
        )
    if len(first) == 1 and not {first[0], first[0].strip()} & {*columns} and (sign := separator(first[0], delimiter)):
        raise ValueError(
            f"{shown(path)} has the one column {shown(first[0], 60)!r}; expected {'tabs' if delimiter != ',' else 'commas'} "
            f"between columns, and not {sign!r}"
        )


def separator(name: str, delimiter: str) -> str | None:
    return next((sign for sign in ",;\t|" if sign != delimiter and sign in name), None)


def is_data(column: int, cell: str, rows: Sequence[Sequence[str]]) -> bool:
    """Whether a cell of the first line is a value and no name: a number, a sentence, or what comes again below it."""
    text = cell.strip()
    again = any(len(row) > column and row[column].strip() == text for row in rows)
    sentence = (
        len(text) > LONG_NAME or len(text.split()) >= MANY_WORDS or text.endswith((".", "?", "!")) or "\n" in text
    )
    return bool(text) and (again or sentence or is_number(text) or text.startswith(("http://", "https://")))


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow.parquet as pq

    file: Any = io.BytesIO(b"".join(chunks(path))) if is_gzip(path) else path
    try:
        with pq.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=1024):
                yield from batch.to_pylist()
    except Exception as error:  # damaged files raise dozens of kinds: Arrow's, OSError, OverflowError, KeyError, ...
        raise ValueError(f"{shown(path)} is not a readable parquet file: {reason(error)}") from None


def arrow_rows(path: Path) -> Iterator[Row]:
    """Arrow's stream, which `datasets` writes, or its file format."""
    try:
        for batch in arrow_batches(b"".join(chunks(path))):
            batch.validate(full=True)  # offsets of a damaged file point anywhere
            yield from batch.to_pylist()
    except Exception as error:  # as above
        raise ValueError(f"{shown(path)} is not a readable Arrow file: {reason(error)}") from None


def arrow_batches(data: bytes) -> Iterator[Any]:
    import pyarrow as pa

    if data.startswith(b"ARROW1"):
        with pa.ipc.open_file(data) as file:
            yield from (file.get_batch(i) for i in range(file.num_record_batches))
    else:
        with pa.ipc.open_stream(data) as stream:
            yield from stream

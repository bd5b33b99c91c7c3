"""Rows out of a SOURCE: a file, a folder, a hub dataset or a built-in name. Every reader of text or questions starts here.

Accepted: `.jsonl`, `.json`, `.csv`, `.tsv`, `.parquet`, `.txt`, `.md`, any of them with `.gz`, a folder of such files,
`hub:DATASET[:CONFIG[:SPLIT]]`, and the built-in names of `misdirect.data.demo`. Text files become one row `{"text": ...}`.
All complaints are ValueErrors that say what came, what was expected and what to type.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Row = dict[str, Any]
SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt", ".md")


def read_rows(source: str) -> list[Row]:
    """All rows of SOURCE, in order. Raises ValueError when there are none."""
    from misdirect.data import demo

    if source in demo.SETS:
        return demo.rows(source)
    if source.startswith("hub:"):
        rows = hub_rows(source)
    else:
        rows = [row for file in find_files(source) for row in file_rows(file)]
    if not rows:
        raise ValueError(f"{source} is empty; expected at least one row")
    return rows


def find_files(source: str) -> list[Path]:
    try:
        path = Path(source).expanduser()
        there = path.exists()
    except (OSError, RuntimeError, ValueError) as error:  # a name too long, no such home folder, a null character
        raise ValueError(f"{source} is no name of a file: {error}") from None
    if not there:
        from misdirect.data import demo

        raise ValueError(
            f"{source} does not exist; expected a file or folder ({', '.join(SUFFIXES)}, each also .gz), "
            f"hub:DATASET[:CONFIG[:SPLIT]], or one of {', '.join(demo.SETS)}"
        )
    if path.is_file():
        return [path]
    files = sorted(p for p in path.rglob("*") if p.is_file() and kind(p) in SUFFIXES and not p.name.startswith("."))
    if not files:
        raise ValueError(f"the folder {source} holds no {', '.join(SUFFIXES)} file")
    return files


def kind(path: Path) -> str:
    """The suffix that says how to read a file, `.gz` aside."""
    return (path.with_suffix("") if is_gzip(path) else path).suffix.lower()


def is_gzip(path: Path) -> bool:
    return path.suffix.lower() == ".gz"


def file_rows(path: Path) -> list[Row]:
    suffix = kind(path)
    if suffix not in SUFFIXES:
        raise ValueError(f"{path} ends in {suffix or 'nothing'}; expected {', '.join(SUFFIXES)}, each also .gz")
    data = file_bytes(path)
    if suffix == ".parquet":
        return parquet_rows(data, path)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start}); expected UTF-8") from None
    if suffix in (".txt", ".md"):
        return [{"text": text}] if text.strip() else []
    if suffix in (".csv", ".tsv"):
        return list(csv_rows(text, path, "\t" if suffix == ".tsv" else ","))
    if suffix == ".json":
        return json_rows(text, path)
    return list(jsonl_rows(text, path))


def file_bytes(path: Path) -> bytes:
    try:
        if is_gzip(path):
            with gzip.open(path) as stream:
                return stream.read()
        return path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None


def jsonl_rows(text: str, path: Path) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), 1):  # not splitlines: U+2028 may stand inside a JSON string
        if line.strip():
            yield json_object(line, f"{path}, line {number}")


def json_rows(text: str, path: Path) -> list[Row]:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}); expected a list of objects") from None
    if not isinstance(data, list) or not all(isinstance(row, dict) for row in data):
        raise ValueError(f"{path} holds no list of objects; expected [{{...}}, ...]")
    return data


def json_object(line: str, where: str) -> Row:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON ({error}); expected one object a line") from None
    if not isinstance(row, dict):
        raise ValueError(f"{where} is {type(row).__name__}; expected one JSON object a line")
    return row


def csv_rows(text: str, path: Path, delimiter: str) -> Iterator[Row]:
    csv.field_size_limit(2**31 - 1)
    try:
        yield from csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    except csv.Error as error:
        raise ValueError(f"{path} is not readable as CSV: {error}") from None


def parquet_rows(data: bytes, path: Path) -> list[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(io.BytesIO(data)).to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"{path} is not a readable parquet file: {error}") from None


def hub_rows(source: str) -> list[Row]:
    """`hub:DATASET[:CONFIG[:SPLIT]]` through the `datasets` library; the split defaults to train, else the only one."""
    name, config, split = [*source.removeprefix("hub:").split(":"), "", ""][:3]
    if not name or source.count(":") > 3:
        raise ValueError(f"{source!r} is no hub source; expected hub:DATASET[:CONFIG[:SPLIT]]")
    import datasets

    try:
        splits = datasets.load_dataset(name, config or None)
    except Exception as error:  # the library raises dozens of kinds; the first line says which
        first = str(error).strip().split("\n")[0]
        raise ValueError(
            f"{source} could not be loaded: {first[:200]}; if it is gated, ask for access at "
            f"https://huggingface.co/datasets/{name} and run `hf auth login`; without a network, name a local file"
        ) from None
    chosen = split or ("train" if "train" in splits else next(iter(splits)))
    if chosen not in splits:
        raise ValueError(f"{source} has no split {chosen!r}; expected one of {', '.join(splits)}")
    return [dict(row) for row in splits[chosen]]


def is_unicode(text: str) -> bool:
    """Whether `text` can be encoded: a JSON escape such as \\ud800 alone cannot, and no tokenizer takes it."""
    return text.isascii() or not any("\ud800" <= char <= "\udfff" for char in text)

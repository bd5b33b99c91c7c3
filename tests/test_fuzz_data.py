"""Readers and batching under anything: the outcome is a list of valid items or one line of complaint, and nothing else.

Never another exception, no code run, no file written, no connection made. `MISDIRECT_FUZZ=50 pytest tests/test_fuzz_data.py -s`
runs fifty times the cases, drawn anew each time, and prints how many there were.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from misdirect import runs, storage
from misdirect.data import batches, builtin, hub
from misdirect.data.corpora import TEXT_COLUMNS, read_texts
from misdirect.data.files import SUFFIXES
from misdirect.data.questions import ANSWER, CHOICES, QUESTION, Question, read_questions
from misdirect.data.sources import read_rows, split_column
from tiny import tiny_tokenizer

FACTOR = int(os.environ.get("MISDIRECT_FUZZ", "1"))
LONGEST = 400  # of a complaint about a file whose own path is short
CASES: Counter[str] = Counter()


def fuzz(cases: int) -> settings:
    return settings(
        max_examples=cases * FACTOR,
        derandomize=FACTOR == 1,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


# ---- what must not happen while a reader runs

LOADED = (builtin, hub, pq)  # before the watch: making a NamedTuple runs code
WATCHED: list[str] | None = None
INSTALLED = (sys.base_prefix, sys.prefix, str(Path(runs.__file__).parent))  # a first import runs a module of these
FORBIDDEN = (
    "exec",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "subprocess.Popen",
    "socket.connect",
    "pickle.find_class",
)
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def hook(event: str, arguments: tuple[Any, ...]) -> None:
    if WATCHED is None:
        return
    imported = event == "exec" and getattr(arguments[0], "co_filename", "").startswith(INSTALLED)
    if event.startswith(FORBIDDEN) and not imported:
        WATCHED.append(event)
    if event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING:
        WATCHED.append(f"open {arguments[0]!r} to write")


sys.addaudithook(hook)


@contextmanager
def watched() -> Iterator[None]:
    """Fails where code is run, a file written, or a connection made."""
    global WATCHED
    WATCHED = seen = []
    try:
        yield
    finally:
        WATCHED = None
    assert not seen, seen


def outcome(kind: str, call: Callable[[], Any], longest: int = LONGEST) -> Any:
    """What `call` returns, or None where it complains in one line; everything else it does fails the test."""
    try:
        with watched():
            found = call()
    except ValueError as error:
        check_complaint(error, longest)
        CASES[f"{kind}: complaint"] += 1
        return None
    CASES[f"{kind}: read"] += 1
    return found


def check_complaint(error: ValueError, longest: int) -> None:
    said = str(error)
    assert type(error) is ValueError, f"{type(error).__name__} is a library's: {said!r}"
    assert said.isprintable(), said
    assert said.strip()
    assert len(said) < longest, said
    assert "Traceback" not in said


def test_the_watch_sees_code_files_and_connections(tmp_path: Path) -> None:
    for deed in (
        lambda: exec("1"),
        lambda: (tmp_path / "x").write_text("x"),
        lambda: os.system("true"),
        lambda: storage.write_json(tmp_path / "y", {}),
    ):
        with pytest.raises(AssertionError), watched():
            deed()


# ---- what files may hold

NASTY = (
    "", " ", "\0", "\ufeff", "\u2028", "\r", "\n\n", "\x1b[2J\x1b]0;x\x07", "\u202e", "\ud800", "\udfff\ud800", "\x85",
    '"', "'", ",", "\t", "\\", "=cmd|' /C calc'!A0", "{{7*7}}", "<script>alert(1)</script>", "__import__('os').system('x')",
    "../../x", "/etc/passwd", "nan", "-0", "1e999", "9" * 30, "NULL", "true", "é" * 300, "x" * 70_000, "\u0131", "²", "\uff21",
)  # fmt: skip
NAMES = (
    *TEXT_COLUMNS,
    *QUESTION,
    *CHOICES,
    *ANSWER,
    "id",
    "subject",
    "A",
    "B",
    "C",
    "option1",
    "option2",
    "choice_0",
    "",
)

text = st.sampled_from(NASTY) | st.text(st.characters(), max_size=12) | st.text("abc AB12 ", min_size=1, max_size=6)
scalar = st.none() | st.booleans() | st.integers() | st.floats() | text
anything = st.recursive(
    scalar, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=3), max_leaves=6
)
listed = st.lists(st.text("abcd", min_size=1, max_size=3), min_size=1, max_size=30)
labeled = st.fixed_dictionaries(
    {"text": listed | anything}, optional={"label": st.lists(st.sampled_from("ABCD1234")) | anything}
)
choices = listed | labeled | anything | listed.map(json.dumps)
answer = st.integers(-2, 6) | st.sampled_from("ABCD0123abz") | st.text("abcd", min_size=1, max_size=3) | anything
near_question = st.fixed_dictionaries(
    {"question": st.text(min_size=1, max_size=5) | anything, "choices": choices, "answer": answer},
    optional={"id": st.integers(0, 3) | anything, "subject": anything, "topic": anything},
)
question_columns = st.fixed_dictionaries(
    {"stem": st.text("abc", min_size=1), "A": text, "B": text, "label": answer},
    optional={"C": anything, "D": text, "1": text},
)
row = (
    st.fixed_dictionaries({"text": text}, optional={"id": anything})
    | st.dictionaries(st.sampled_from(NAMES) | text, anything, max_size=4)
    | near_question
    | question_columns
)
good = st.lists(
    st.fixed_dictionaries({"text": st.text("abc é\n", min_size=1).map(lambda t: t + ".")}), min_size=1, max_size=4
)
good_questions = st.lists(
    st.fixed_dictionaries(
        {
            "question": st.text("abc ?", min_size=1).map(lambda t: t + "?"),
            "choices": st.lists(st.text("xyz", min_size=1, max_size=3), min_size=4, max_size=5),
        },
        optional={"subject": st.sampled_from(("law", "trade"))},
    ).flatmap(
        lambda r: (st.integers(0, 3) | st.sampled_from("ABCD") | st.sampled_from(r["choices"])).map(
            lambda a: r | {"answer": a}
        )
    ),
    min_size=1,
    max_size=3,
)
deep = st.sampled_from((3, 90, 900, 5_000, 60_000)).flatmap(
    lambda n: st.sampled_from(
        ("[" * n, "[" * n + "]" * n, '{"a":' * n + "1" + "}" * n, f'[{{"text": {"[" * n}{"]" * n}}}]')
    )
)
newline = st.sampled_from(("\n", "\r\n", "\r", "\n\n", "\u2028", "\n \n"))
mark = st.sampled_from((b"",) * 9 + (b"\xef\xbb\xbf",) * 3 + (b"\xff\xfe", b"\xfe\xff", b"\0"))


def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """Mostly as it is; else cut, with bytes changed, put in or taken out, or joined with itself."""
    how = draw(st.sampled_from(("as it is",) * 12 + ("cut", "change", "insert", "remove", "twice")))
    if not data or how == "as it is":
        return data
    place = draw(st.integers(0, len(data) - 1))
    if how == "cut":
        return data[:place]
    if how == "insert":
        return data[:place] + draw(st.binary(min_size=1, max_size=9)) + data[place:]
    if how == "remove":
        return data[:place] + data[place + draw(st.integers(1, 9)) :]
    if how == "twice":
        return data * 2
    changed = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        changed[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(changed)


def encoded(content: str) -> bytes:
    return content.encode("utf-8", "surrogatepass")


@st.composite
def json_lines(draw: st.DrawFn) -> bytes:
    as_ascii = draw(st.booleans())
    found = [
        json.dumps(r, ensure_ascii=as_ascii)
        for r in draw(good | good_questions | st.lists(row | near_question, max_size=4))
    ]
    if draw(st.integers(0, 9)) == 0:
        found.append(draw(deep))
    return draw(mark) + encoded(draw(newline).join(found))


@st.composite
def json_file(draw: st.DrawFn) -> bytes:
    value = draw(good | good_questions | st.lists(row | near_question, max_size=4) | anything)
    return draw(mark) + encoded(draw(deep) if draw(st.integers(0, 9)) == 0 else json.dumps(value))


@st.composite
def table(draw: st.DrawFn) -> bytes:
    """CSV or TSV: a header and rows that need not fit it."""
    header = draw(st.lists(st.sampled_from(NAMES) | text, min_size=1, max_size=5))
    cells = st.lists(text, min_size=len(header), max_size=len(header)) | st.lists(text, max_size=6)
    stream = io.StringIO(newline="")
    quoting = draw(st.sampled_from((csv.QUOTE_MINIMAL, csv.QUOTE_ALL)))
    writer = csv.writer(stream, delimiter=draw(st.sampled_from(",\t")), quoting=quoting, lineterminator=draw(newline))
    rows = draw(
        good.map(lambda found: [["text"], *([r["text"]] for r in found)])
        | st.lists(cells, max_size=4).map(lambda c: [header, *c])
    )
    writer.writerows(rows)
    return draw(mark) + encoded(stream.getvalue())


utf8 = st.text(max_size=8) | st.sampled_from([t for t in NASTY if t.isascii()])
COLUMNS: Mapping[pa.DataType, st.SearchStrategy[Any]] = {
    pa.string(): utf8,
    pa.large_string(): utf8,
    pa.binary(): st.binary(max_size=8),
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.float64(): st.floats(),
    pa.bool_(): st.booleans(),
    pa.timestamp("ns"): st.integers(-(2**63), 2**63 - 1),
    pa.date64(): st.integers(-(2**36), 2**36).map(lambda days: days * 86_400_000),
    pa.duration("s"): st.integers(-(2**62), 2**62),
    pa.list_(pa.string()): st.lists(utf8, max_size=4),
    pa.map_(pa.string(), pa.int32()): st.lists(st.tuples(utf8, st.integers(0, 9)), max_size=2),
    pa.struct([("text", pa.list_(pa.string())), ("label", pa.list_(pa.string()))]): st.fixed_dictionaries(
        {"text": st.lists(utf8, max_size=3), "label": st.lists(utf8, max_size=3)}
    ),
    pa.dictionary(pa.int8(), pa.string()): utf8,
    pa.null(): st.none(),
}


@st.composite
def arrow_table(draw: st.DrawFn) -> pa.Table:
    count = draw(st.integers(0, 4))
    names = draw(st.lists(st.sampled_from(NAMES) | st.text(max_size=5), min_size=1, max_size=4))
    columns = []
    for _ in names:
        kind = draw(st.sampled_from(list(COLUMNS)))
        values = draw(st.lists(COLUMNS[kind] | st.none(), min_size=count, max_size=count))
        columns.append(pa.array(values, kind))
    return pa.Table.from_arrays(columns, names=names)


@st.composite
def parquet(draw: st.DrawFn) -> bytes:
    stream = io.BytesIO()
    pq.write_table(draw(arrow_table()), stream, compression=draw(st.sampled_from(("none", "snappy", "gzip"))))
    return stream.getvalue()


@st.composite
def arrow(draw: st.DrawFn) -> bytes:
    """As `datasets` writes it, and as others do."""
    stream, found = io.BytesIO(), draw(arrow_table())
    with draw(st.sampled_from((pa.ipc.new_stream, pa.ipc.new_file)))(stream, found.schema) as writer:
        writer.write_table(found)
    return stream.getvalue()


prose = st.binary(max_size=60) | st.lists(text, max_size=4).map(" ".join).map(encoded)
CONTENT: Mapping[str, st.SearchStrategy[bytes]] = {
    ".jsonl": json_lines(),
    ".json": json_file() | json_lines(),
    ".csv": table(),
    ".tsv": table(),
    ".parquet": parquet(),
    ".arrow": arrow(),
    ".txt": prose,
    ".md": prose,
}
ODD_NAMES = (
    "a",
    "con",
    "..",
    "-rf",
    "a b",
    "a#b",
    "a@2",
    "a=b",
    "*",
    "a\nb",
    "a\x1b[2J",
    "é\u202e",
    "%s{0}",
    "x" * 200,
    ".a",
    "hub:a",
)


@st.composite
def files(draw: st.DrawFn, suffix: str | None = None) -> tuple[str, bytes]:
    """(name, bytes) of a file as its suffix promises, more or less."""
    suffix = suffix or draw(st.sampled_from(SUFFIXES))
    other = draw(st.integers(0, 14)) == 0
    data = damaged(draw, draw(CONTENT[draw(st.sampled_from(SUFFIXES)) if other else suffix]))
    packed = draw(st.integers(0, 3)) == 0
    if packed:
        data = damaged(draw, gzip.compress(data, 1, mtime=0))
    return draw(st.sampled_from(ODD_NAMES)) + suffix + ".gz" * packed, data


# ---- what may come out


def are_rows(found: Any) -> None:
    assert isinstance(found, list)
    assert found
    assert all(isinstance(r, dict) and all(isinstance(key, str) for key in r) for r in found)


def are_texts(found: Any) -> None:
    assert isinstance(found, list)
    assert found
    for document in found:
        assert isinstance(document, str)
        assert document.strip()
        document.encode("utf-8")


def are_questions(found: Any) -> None:
    assert found
    assert len({item.id for item in found}) == len(found)
    for item in found:
        assert isinstance(item, Question)
        assert item.question.strip()
        assert len(item.choices) >= 2
        assert all(choice.strip() for choice in item.choices)
        assert 0 <= item.answer < len(item.choices)
        for part in (item.id, item.question, item.subject, *item.choices):
            part.encode("utf-8")


READERS: Mapping[str, tuple[Callable[[str], Any], Callable[[Any], None]]] = {
    "rows": (read_rows, are_rows),
    "texts": (read_texts, are_texts),
    "raw lines": (lambda source: read_texts(f"{source}#raw", raw_allowed=True), are_texts),
    "a column": (lambda source: read_texts(f"{source}#text"), are_texts),
    "questions": (read_questions, are_questions),
}


def read_all(kind: str, source: Path, readers: Sequence[str] = tuple(READERS)) -> None:
    for reader in readers:
        call, check = READERS[reader]
        found = outcome(
            f"{kind}, {reader}", lambda call=call: call(str(source)), LONGEST + max(0, len(str(source)) - 100)
        )
        if found is not None:
            check(found)


def listing(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*"))


@contextmanager
def folder_with(contents: Sequence[tuple[str, bytes]]) -> Iterator[Path]:
    """A folder that holds these files, and afterwards nothing more."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, data in contents:
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(data)
        before = listing(folder)
        yield folder
        assert listing(folder) == before


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_is_items_or_one_line(suffix: str) -> None:
    @fuzz(70)
    @given(files(suffix))
    def check(file: tuple[str, bytes]) -> None:
        with folder_with([file]) as folder:
            read_all(suffix, folder / file[0])

    check()


@fuzz(120)
@given(
    good_questions
    | st.lists(near_question, min_size=1, max_size=3)
    | st.lists(question_columns, min_size=1, max_size=3)
)
def test_rows_like_questions_are_questions_or_one_line(rows: list[dict[str, Any]]) -> None:
    with folder_with([("a.jsonl", "\n".join(map(json.dumps, rows)).encode())]) as folder:
        read_all("near questions", folder / "a.jsonl", ("questions",))


places = st.sampled_from(("", "deep/", "deep/er/", ".hidden/", "..odd/", "a.jsonl.d/"))


@fuzz(80)
@given(st.lists(st.tuples(places, files()), max_size=3))
def test_a_folder_is_items_or_one_line(found: list[tuple[str, tuple[str, bytes]]]) -> None:
    with folder_with([(place + name, data) for place, (name, data) in found]) as folder:
        (folder / "link").symlink_to(folder)
        (folder / "dangling.txt").symlink_to("nowhere")
        read_all("folder", folder, ("rows", "texts", "questions"))
        (folder / "link").unlink()
        (folder / "dangling.txt").unlink()


@fuzz(150)
@given(
    st.sampled_from(("", "~", "hub:", "./", "../none/", "/none/", "demo-", "wmdp-", "mmlu-", "a.jsonl#")),
    text | st.text(max_size=400),
)
@example("", "a\0b.jsonl")
@example("~", "no-such-user/a.txt")
def test_a_source_that_is_not_there_is_one_line(prefix: str, rest: str) -> None:
    source = f"{prefix}none{rest}"
    outcome("names", lambda: split_column(source))
    longest = LONGEST + min(310, len(source)) * 6  # a name is shown to its 310th character, at most \udddd each
    if prefix != "hub:" or "/" not in rest:
        assert outcome("names", lambda: read_rows(source), longest) is None


@fuzz(150)
@given(
    st.sampled_from(NASTY + ODD_NAMES + ("../../x", "..", "/", "CON", "nul", "a/b", "x" * 5000))
    | st.text(st.characters()),
    text,
)
def test_a_result_stays_inside_its_run(name: str, other: str) -> None:
    run = Path("/somewhere/run")
    path = outcome("result names", lambda: runs.result_path(run, "base", "mcq", name))
    assert path is not None
    assert path.parent == run / "results" / "base"
    assert path.name.isprintable()
    assert len(os.fsencode(path.name)) <= 220  # a temporary name beside it is longer
    assert not set(path.name) & set('/\\:*?"<>|')
    assert path.name.partition(".")[0] == "mcq"
    if other != name:
        assert runs.result_path(run, "base", "mcq", other) != path


def test_code_in_a_parquet_files_metadata_is_not_run(tmp_path: Path) -> None:
    payload = b"cposix\nsystem\n(S'touch ran'\ntR."  # a pickle that would run a command
    metadata = {b"ARROW:extension:name": b"arrow.py_extension_type", b"ARROW:extension:metadata": payload}
    schema = pa.schema([pa.field("text", pa.string(), metadata=metadata)])
    pq.write_table(pa.table([["one"]], schema=schema), tmp_path / "a.parquet")
    assert outcome("pickle", lambda: read_texts(str(tmp_path / "a.parquet"))) in (None, ["one"])
    assert listing(tmp_path) == [str(tmp_path / "a.parquet")]


# ---- batching

documents = st.lists(
    st.text(st.characters(exclude_categories=("Cs",)), max_size=40) | st.sampled_from(("", "\0", "\ufeff", "x" * 3000)),
    max_size=6,
)


@fuzz(120)
@given(documents, st.integers(2, 40), st.booleans(), st.integers(0, 3))
def test_any_texts_become_whole_samples_and_a_preview(found: list[str], longest: int, left: bool, seed: int) -> None:
    tokenizer = tiny_tokenizer()
    samples = outcome("batches", lambda: batches.tokenize(tokenizer, found, longest))
    assert all(2 <= len(ids) <= longest for ids in samples)
    lines = outcome("batches", lambda: batches.preview({"\x1bname": found, "": found[:1]}, tokenizer, longest, seed))
    assert len(lines) == min(3, len(found)) + len(found[:1])
    assert all(line.isprintable() and len(line) < 200 for line in lines)
    batch = outcome("batches", lambda: batches.pad(samples, 0, left))
    if not samples:
        assert batch is None
        return
    assert batch.input_ids.shape == (len(samples), max(map(len, samples)))
    assert batch.attention_mask.sum().item() == sum(map(len, samples))
    assert batch.loss_mask.sum().item() == sum(len(ids) - 1 for ids in samples)


weights = st.floats(5e-324, sys.float_info.max) | st.sampled_from((1.0, 5e-324, sys.float_info.max, 1e-3))


@fuzz(150)
@given(
    st.lists(st.tuples(st.integers(0, 5), weights), max_size=5),
    st.integers(1, 12),
    st.integers(1, 5),
    st.integers(0, 2**63 - 1),
)
def test_any_mixture_is_a_whole_plan_or_one_line(
    corpora: list[tuple[int, float]], updates: int, size: int, seed: int
) -> None:
    counts = [count for count, _ in corpora]
    plan = outcome("plans", lambda: batches.mixture_schedule(counts, [w for _, w in corpora], updates, size, seed))
    assert (plan is None) == (not counts or 0 in counts)
    if plan is not None:
        assert [len(update) for update in plan] == [size] * updates
        assert all(0 <= sample < counts[corpus] for update in plan for corpus, sample in update)
    for count in counts[:1]:
        single = outcome("plans", lambda count=count: batches.sample_schedule(count, updates, size, seed))
        assert (single is None) == (count == 0)
        if single is not None:
            assert [len(update) for update in single] == [size] * updates
            assert all(0 <= sample < count for update in single for sample in update)


def test_both_ends_were_reached_and_the_cases_are_counted() -> None:
    """Items and complaints from every kind of file: else the cases above would be all of one sort."""
    kinds = {case.split(",")[0].split(":")[0] for case in CASES}
    if not kinds >= set(SUFFIXES):
        pytest.skip("the cases above were not all run")
    print(f"\n{sum(CASES.values())} cases: " + "; ".join(f"{kind} {count}" for kind, count in sorted(CASES.items())))
    for kind in (*SUFFIXES, "folder"):
        for reader in ("rows", "texts"):
            for end in ("read", "complaint"):
                assert CASES[f"{kind}, {reader}: {end}"] > 0, (kind, reader, end)
    for kind in (".jsonl, questions", "near questions, questions"):
        assert CASES[f"{kind}: read"] > 0, kind

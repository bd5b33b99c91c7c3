"""Every format that is read, every complaint, and what becomes of texts as tokens."""

from __future__ import annotations

import csv
import gzip
import json
import os
import random
import re
import subprocess
import sys
import threading
import tracemalloc
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from misdirect.cli.flags import weighted
from misdirect.data import batches, builtin, files, hub
from misdirect.data.corpora import read_texts
from misdirect.data.files import SUFFIXES, file_rows
from misdirect.data.questions import Question, parse_question, read_questions
from misdirect.data.sources import read_rows, split_column
from misdirect.data.templates import cloze_prompt, letter_prompt, sample
from tiny import texts as draw_texts
from tiny import tiny_tokenizer

TEXTS = ['A cell, with "quotes",\nand two lines.', "Ein zweiter Text: Zürich 東京 🧬", "third\ttabbed"]


def jsonl(path: Path, rows: list[Any], newline: str = "\n", encoding: str = "utf-8") -> Path:
    text = newline.join(json.dumps(row, ensure_ascii=False) for row in rows) + newline
    path.write_bytes(text.encode(encoding))
    return path


def write_table(path: Path, suffix: str, rows: list[dict[str, str]]) -> Path:
    """`rows` in the format of `suffix`."""
    if suffix == ".jsonl":
        return jsonl(path, rows)
    if suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        with path.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]), delimiter="\t" if suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


def zipped(path: Path) -> Path:
    target = path.with_name(path.name + ".gz")
    target.write_bytes(gzip.compress(path.read_bytes()))
    return target


@pytest.mark.parametrize("gz", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv", ".parquet"])
def test_every_table_format_gives_the_same_texts(tmp_path: Path, suffix: str, gz: bool) -> None:
    rows = [{"id": str(i), "text": text, "more": "x"} for i, text in enumerate(TEXTS)]
    path = write_table(tmp_path / f"data{suffix}", suffix, rows)
    path = zipped(path) if gz else path
    assert read_texts(str(path)) == TEXTS
    assert [row["id"] for row in read_rows(str(path))] == ["0", "1", "2"]


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.TXT", "a.txt.gz", "a.md.GZ"])
def test_a_text_file_is_one_document(tmp_path: Path, name: str) -> None:
    data = TEXTS[1].encode()
    (tmp_path / name).write_bytes(gzip.compress(data, mtime=0) if name.lower().endswith(".gz") else data)
    assert read_texts(str(tmp_path / name)) == [TEXTS[1]]


def test_a_folder_is_its_files_in_the_order_of_their_names(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("second")
    jsonl(tmp_path / "a.jsonl", [{"text": "first"}])
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "c.md").write_text("third")
    (tmp_path / "deep" / "notes.pdf").write_bytes(b"not read")
    (tmp_path / ".hidden.txt").write_text("not read either")
    assert read_texts(str(tmp_path)) == ["first", "second", "third"]


def test_line_separators_inside_json_do_not_end_a_line(tmp_path: Path) -> None:
    texts = ["one\u2028still one\u2029and on\x85still", "two\x0bthree\x0cfour"]
    assert read_texts(str(jsonl(tmp_path / "a.jsonl", [{"text": t} for t in texts]))) == texts


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".txt"])
def test_a_byte_order_mark_is_no_text(tmp_path: Path, suffix: str) -> None:
    content = {".jsonl": '{"text": "abc"}', ".json": '[{"text": "abc"}]', ".csv": "text\nabc\n", ".txt": "abc"}[suffix]
    (tmp_path / f"a{suffix}").write_bytes(content.encode("utf-8-sig"))
    assert read_texts(str(tmp_path / f"a{suffix}")) == ["abc"]


def test_crlf_blank_lines_and_a_missing_last_newline(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [{"text": "one"}, {"text": "two"}], newline="\r\n")
    path.write_bytes(b"\r\n" + path.read_bytes() + b'\r\n  \r\n{"text": "three"}')
    assert read_texts(str(path)) == ["one", "two", "three"]
    (tmp_path / "b.csv").write_bytes(b"text,n\r\none,1\r\ntwo,2\r\n")
    assert read_texts(str(tmp_path / "b.csv")) == ["one", "two"]


def test_rows_keep_their_numbers_and_nulls(tmp_path: Path) -> None:
    row = {"text": "a", "n": 3, "x": None, "list": [1, {"deep": True}]}
    assert read_rows(str(jsonl(tmp_path / "a.jsonl", [row]))) == [row]


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ({"passage": "right", "title": "wrong"}, "passage"),
        ({"content": "wrong", "text": "right"}, "text"),
        ({"n": 1, "story": "right"}, "story"),
        ({"abstract": "right", "doi": "wrong", "year": 2020}, "abstract"),
    ],
)
def test_the_text_column_is_found(tmp_path: Path, row: dict[str, Any], column: str) -> None:
    assert row[column] == "right"
    assert read_texts(str(jsonl(tmp_path / "a.jsonl", [row]))) == ["right"]


def test_blank_documents_are_left_out(tmp_path: Path) -> None:
    rows = [{"text": t} for t in ("", "  \n", "real", "\u3000")]
    assert read_texts(str(jsonl(tmp_path / "a.jsonl", rows))) == ["real"]


SURROGATE = '{"text": "a\\ud800b"}\n'
BAD_FILES: list[tuple[str, bytes, str]] = [
    ("a.jsonl", b"", "a.jsonl is empty"),
    ("a.jsonl", b"\n\n", "a.jsonl is empty"),
    ("a.txt", b" \n", "a.txt is empty"),
    ("a.csv", b"", "a.csv is empty"),
    ("a.csv", b"text,n\n", "a.csv is empty"),
    ("a.json", b"[]", "a.json is empty"),
    ("a.jsonl", b'{"text": ""}\n', "is empty: no row holds text"),
    ("a.jsonl", b'{"text": "a"}\n{"text": "b"\n', "line 2 is not JSON"),
    ("a.jsonl", b'{"text": "a"}\n["b"]\n', "line 2 is list; expected one JSON object a line"),
    ("a.jsonl", b'{"text": "a"}\n{"text": 3}\n', "row 2: 'text' is int; expected text"),
    ("a.jsonl", b'{"text": "a"}\n{"other": "b"}\n', "row 2: 'text' is NoneType; expected text"),
    ("a.jsonl", b'{"x": "a", "y": "b"}\n', "has the columns x, y; expected one named 'text'"),
    ("a.jsonl", b"{}\n", "has the columns (none); expected one named 'text'"),
    ("a.jsonl", SURROGATE.encode(), "row 1: 'text' holds half a surrogate pair"),
    ("a.jsonl", b"[" * 100_000, "line 1 is not JSON"),
    ("a.json", b'{"text": "a"}', "holds no list of objects"),
    ("a.json", b'[{"text": "a"}, 3]', "holds no list of objects"),
    ("a.json", b"[" * 100_000, "is not JSON"),
    ("a.json", b"nonsense", "is not JSON"),
    ("a.csv", b"n,text\n1,a\n2\n", "row 2: 'text' is NoneType; expected text"),
    ("a.txt", "Zürich".encode("latin-1"), "is not UTF-8 text (byte 1)"),
    ("a.jsonl", '{"text": "a"}'.encode("utf-16"), "is not UTF-8 text"),
    ("a.csv", b'text,n\n"a,1\nb,2\n', "is not readable as CSV (after line 1)"),
    ("a.csv", b"text,n\na, and b,1\n", "line 2 has more fields than the header's 2"),
    ("a.csv", b"text,text\na,b\n", "names the column 'text' twice"),
    ("a.txt", "text".encode("utf-16"), "is not UTF-8 text (byte 0) (it looks like UTF-16)"),
    ("a.txt", "text".encode("utf-16-le"), "holds a NUL byte (at 1); expected UTF-8 text"),
    ("a.parquet", b"PAR1 and no more", "is not a readable parquet file"),
    ("a.txt.gz", b"not gzip at all", "cannot be read"),
    ("a.txt.gz", gzip.compress(b"some text" * 100, mtime=0)[:30], "cannot be read"),
    ("a.txt.gz", gzip.compress(b"text", mtime=0)[:10] + b"\xff" * 20, "cannot be read"),
    ("a.pdf", b"%PDF", "ends in .pdf; expected .jsonl"),
    ("a", b"x", "ends in nothing; expected .jsonl"),
]


@pytest.mark.parametrize(("name", "data", "message"), BAD_FILES)
def test_a_bad_file_is_named(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        read_texts(str(tmp_path / name))
    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize(
    "source", ["no-such-file.jsonl", "x" * 300 + ".txt", "~no-such-user/a.txt", "a\0b.txt", "demo-bio"]
)
def test_a_missing_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="^" + re.escape(source.replace("\0", r"\x00"))):
        read_rows(source)


def test_a_folder_without_texts_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(b"")
    with pytest.raises(ValueError, match=r"holds no \.jsonl"):
        read_texts(str(tmp_path))


@pytest.mark.parametrize(
    "source",
    ["hub:", "hub:a/b:c:d:e", "hub::config", "hub:json", "hub:pandas:x", "hub:../x", "hub:/etc/x", "hub:a/b/c"],
)
def test_a_malformed_hub_source_is_refused_before_anything_is_fetched(source: str) -> None:
    with pytest.raises(ValueError, match=r"is not a hub source; expected hub:OWNER/DATASET\[:CONFIG\[:SPLIT\]\]"):
        read_rows(source)


def question(**changes: Any) -> dict[str, Any]:
    return {"question": "Which?", "choices": ["a", "b", "c", "d"], "answer": 2} | changes


@pytest.mark.parametrize(
    ("answer", "index"), [(0, 0), (3, 3), ("2", 2), (" 1 ", 1), ("A", 0), ("d", 3), ("B ", 1), ("00", 0)]
)
def test_an_answer_is_an_index_or_a_letter(answer: Any, index: int) -> None:
    assert parse_question(question(answer=answer), "here", 1).answer == index


@pytest.mark.parametrize("answer", [4, -2, "4", "-2", "E", "(E)", "E.", 4.0, "4.0", "9" * 5000, 10**30])
def test_an_answer_out_of_range_is_refused(answer: Any) -> None:
    with pytest.raises(ValueError, match=r"here: the answer .* is out of range; expected 0 to 3 or A to D"):
        parse_question(question(answer=answer), "here", 1)


@pytest.mark.parametrize(
    ("labels", "answer", "index"),
    [(["A", "B", "C", "D"], "C", 2), (["1", "2", "3", "4"], "1", 0), (["1", "2", "3", "4"], "4", 3), (None, "B", 1)],
)
def test_arcs_choices_are_read_and_its_answers_are_labels(labels: Any, answer: str, index: int) -> None:
    choices = {"text": ["a", "b", "c", "d"]} | ({"label": labels} if labels else {})
    parsed = parse_question(question(choices=choices, answer=answer), "here", 1)
    assert parsed.choices == ("a", "b", "c", "d")
    assert parsed.answer == index


BAD_QUESTIONS: list[tuple[Any, str]] = [
    ({"question": "Q", "choices": ["a", "b"]}, "lacks answer; expected the columns question, choices, answer"),
    ({"text": "x"}, "lacks question, choices, answer"),
    (question(question="  "), "the question is '  '; expected text"),
    (question(question=None), "the question is None"),
    (question(choices=[]), "has 0 choice(s); expected 2 to 26"),
    (question(choices=["a"], answer=0), "has 1 choice(s); expected 2 to 26"),
    (question(choices="abcd"), "the choices are 'abcd'; expected a list of texts"),
    (question(choices=["a", 3]), "the choices are ['a', 3]"),
    (question(choices=["a", " "]), "the choices are ['a', ' ']"),
    (question(choices={"a": 1}), "the choices are {'a': 1}"),
    (question(question="a\ud800"), "half a surrogate pair"),
    (question(choices=["a", "b\udfff", "c"]), "half a surrogate pair"),
]


@pytest.mark.parametrize(("row", "message"), BAD_QUESTIONS)
def test_a_bad_question_is_refused(row: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="^here.*" + re.escape(message)):
        parse_question(row, "here", 1)


def test_questions_out_of_every_format_that_can_hold_lists(tmp_path: Path) -> None:
    rows = [question(id=f"q{i}", subject="biology", answer=i) for i in range(4)]
    expected = [Question(f"q{i}", "Which?", ("a", "b", "c", "d"), i, "biology") for i in range(4)]
    for suffix in (".jsonl", ".json", ".parquet"):
        assert read_questions(str(write_table(tmp_path / f"a{suffix}", suffix, rows))) == expected


def test_questions_without_ids_are_numbered_and_repeated_ids_refused(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [question(), question(id=None), question(topic="t")])
    assert [(q.id, q.subject) for q in read_questions(str(path))] == [("0", ""), ("1", ""), ("2", "t")]
    jsonl(path, [question(id="x"), question(), question(id="x")])
    with pytest.raises(ValueError, match="row 3: the id 'x' is already taken"):
        read_questions(str(path))


def as_question(row: dict[str, Any]) -> tuple[tuple[str, ...], int]:
    parsed = parse_question(row, "here", 1)
    return parsed.choices, parsed.answer


ABCD = ("red", "green", "blue", "grey")


@pytest.mark.parametrize(
    "row",
    [
        {"options": list(ABCD), "answer_index": 2},
        {"options": list(ABCD), "answer": "blue"},
        {"options": dict(zip("ABCD", ABCD, strict=True)), "answer": "blue", "answer_idx": "C"},
        {"choices": [{"label": label, "text": t} for label, t in zip("1234", ABCD, strict=True)], "answerKey": "3"},
        {"choices": json.dumps(ABCD), "answer": "2"},
        {"choices": json.dumps({"text": ABCD, "label": list("1234")}), "answerKey": "3"},
        {"endings": list(ABCD), "label": "2"},
        {"A": "red", "B": "green", "C": "blue", "D": "grey", "answer": "C"},
        {"a": "red", "b": "green", "c": "blue", "d": "grey", "answer": "C"},
        {"choice_a": "red", "choice_b": "green", "choice_c": "blue", "choice_d": "grey", "correct": "c"},
        {"Option A": "red", "Option B": "green", "Option C": "blue", "Option D": "grey", "gold": "blue"},
        {"option1": "red", "option2": "green", "option3": "blue", "option4": "grey", "answer": "blue"},
        {"opa": "red", "opb": "green", "opc": "blue", "opd": "grey", "cop": 2},
        {"ending0": "red", "ending1": "green", "ending2": "blue", "ending3": "grey", "label": 2},
    ],
    ids=lambda row: "-".join(row)[:40],
)
def test_the_forms_of_other_question_sets_are_read(row: dict[str, Any]) -> None:
    assert as_question({"question": "Which?"} | row) == (ABCD, 2)


def test_empty_choice_columns_at_the_end_mean_fewer_choices(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("question,A,B,C,D,answer\nWhich?,x,y,,,B\nWhat?,p,q,r,,C\n")
    assert [(q.choices, q.answer) for q in read_questions(str(tmp_path / "a.csv"))] == [
        (("x", "y"), 1),
        (("p", "q", "r"), 2),
    ]


def two_options(*answers: Any) -> list[dict[str, Any]]:
    return [{"sentence": f"S{i} _", "option1": "x", "option2": "y", "answer": a} for i, a in enumerate(answers)]


@pytest.mark.parametrize(
    ("answers", "indices"),
    [
        (("1", "2", "1"), [0, 1, 0]),
        ((1, 2), [0, 1]),
        ((0, 1), [0, 1]),
        (("0", "1", "1"), [0, 1, 1]),
        (("B", "A"), [1, 0]),
    ],
)
def test_numbered_columns_are_counted_as_the_whole_file_counts_them(
    tmp_path: Path, answers: tuple[Any, ...], indices: list[int]
) -> None:
    assert [q.answer for q in read_questions(str(jsonl(tmp_path / "a.jsonl", two_options(*answers))))] == indices


def test_an_answer_that_can_be_read_two_ways_is_refused(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", two_options("1", "1"))
    with pytest.raises(ValueError, match=r"row 1: the answer '1' can be read as choice 0 or 1 counted from 0"):
        read_questions(str(path))
    rows = [question(choices=["1", "2", "3", "0"], answer="2")]
    with pytest.raises(ValueError, match=r"row 1: the answer '2' can be read as choice 2 or 1"):
        read_questions(str(jsonl(path, rows)))
    jsonl(path, [*rows, question(answer="3")])  # the second row can be an index alone: so is the first
    assert [q.answer for q in read_questions(str(path))] == [2, 3]
    jsonl(path, [*rows, question(answer="B")])
    assert [q.answer for q in read_questions(str(path))] == [2, 1]
    jsonl(path, [question(choices=["4", "2", "3", "7"], answer="7"), *rows])  # the first row can be a text alone
    assert [q.answer for q in read_questions(str(path))] == [3, 1]


def test_more_choices_than_letters_are_read() -> None:
    choices = [f"choice {i}" for i in range(40)]
    assert as_question(question(choices=choices, answer=39)) == (tuple(choices), 39)
    assert as_question(question(choices=choices, answer="choice 30"))[1] == 30
    with pytest.raises(ValueError, match="expected 0 to 39 or A to Z"):
        as_question(question(choices=choices, answer=40))


def test_questions_of_a_folder_are_numbered_through(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", [question(), question()])
    jsonl(tmp_path / "b.jsonl", [question(), {"question": "x"}])
    with pytest.raises(ValueError, match=r"b\.jsonl, row 2 lacks choices, answer"):
        read_questions(str(tmp_path))
    jsonl(tmp_path / "b.jsonl", [question()])
    assert [q.id for q in read_questions(str(tmp_path))] == ["0", "1", "2"]


def test_questions_take_no_column(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", [question()])
    with pytest.raises(ValueError, match="names the column 'question'; expected questions without #COLUMN"):
        read_questions(f"{path}#question")


def outcome(call: Callable[[], Any]) -> Any:
    """What `call` returns, or the ValueError that it raises; anything else that it raises goes through."""
    try:
        return call()
    except ValueError as error:
        return error


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
choices = anything | st.lists(st.text(min_size=1, max_size=4), min_size=1, max_size=5)
arc = st.fixed_dictionaries({"text": choices}, optional={"label": anything | st.lists(st.sampled_from("ABCD1234"))})
near_questions = st.fixed_dictionaries(
    {},
    optional={
        "question": anything | st.text(min_size=1),
        "choices": choices | arc,
        "answer": anything | st.integers(0, 5) | st.sampled_from("ABCD0123"),
        "id": anything,
        "subject": anything,
        "topic": anything,
    },
)


@settings(max_examples=400)
@given(near_questions | st.dictionaries(st.text(max_size=5), anything, max_size=4))
def test_a_row_is_a_valid_question_or_a_value_error(row: dict[str, Any]) -> None:
    parsed = outcome(lambda: parse_question(row, "here", 3))
    if isinstance(parsed, ValueError):
        assert str(parsed).startswith("here")
        return
    assert parsed.question.strip()
    assert len(parsed.choices) >= 2
    assert all(isinstance(choice, str) and choice.strip() for choice in parsed.choices)
    assert 0 <= parsed.answer < len(parsed.choices)
    for text in (parsed.id, parsed.question, parsed.subject, *parsed.choices):
        text.encode("utf-8")


json_like = st.binary(max_size=80) | anything.map(lambda value: json.dumps(value).encode())
lines = st.lists(st.dictionaries(st.text(max_size=4), anything, max_size=3).map(json.dumps), max_size=3)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=json_like | lines.map(lambda found: "\n".join(found).encode()),
    suffix=st.sampled_from(SUFFIXES),
    gz=st.booleans(),
)
def test_any_bytes_are_rows_or_a_value_error(tmp_path: Path, data: bytes, suffix: str, gz: bool) -> None:
    path = tmp_path / f"a{suffix}{'.gz' if gz else ''}"
    path.write_bytes(data)
    rows = outcome(lambda: list(file_rows(path)))
    if isinstance(rows, ValueError):
        assert path.name in str(rows)
        return
    assert all(isinstance(row, dict) for row in rows)


def test_sample_is_the_same_at_every_call_keeps_the_order_and_changes_with_the_seed() -> None:
    questions = [Question(str(i), "Q", ("a", "b"), 0) for i in range(50)]
    chosen = sample(questions, 10, seed=3)
    assert chosen == sample(questions, 10, seed=3)
    assert chosen != sample(questions, 10, seed=4)
    assert [int(q.id) for q in chosen] == sorted({int(q.id) for q in chosen})
    assert len(chosen) == 10
    for limit in (None, 50, 51):
        assert sample(questions, limit, seed=0) == questions


def test_the_prompts() -> None:
    item = Question("1", " What is it? ", ("red", "green", "blue"), 1)
    assert cloze_prompt("What is it?") == "Question: What is it?\nAnswer:"
    assert cloze_prompt("") == "Answer:"
    assert letter_prompt(item, "plain") == "What is it?\nA. red\nB. green\nC. blue\nAnswer:"


def test_tokenize_cuts_long_texts_and_loses_nothing_but_remainders_of_one_token() -> None:
    tokenizer = tiny_tokenizer()
    texts = draw_texts(40, 60, seed=2)
    for max_tokens in (2, 3, 7, 64):
        samples = batches.tokenize(tokenizer, texts, max_tokens)
        assert all(2 <= len(ids) <= max_tokens for ids in samples)
        kept = iter(samples)
        for text in texts:
            ids = tokenizer(text)["input_ids"]
            pieces = [ids[i : i + max_tokens] for i in range(0, len(ids), max_tokens)]
            for piece in pieces:
                if len(piece) == 1:
                    assert piece == ids[-1:]
                else:
                    assert next(kept) == piece
        assert next(kept, None) is None


def test_tokenize_drops_texts_of_no_and_one_token() -> None:
    assert batches.tokenize(tiny_tokenizer(), ["", "a"], 8) == []


@pytest.mark.parametrize("left", [False, True])
def test_pad_places_every_token_and_counts_all_but_the_first(left: bool) -> None:
    draw = random.Random(0)
    samples = [[draw.randint(5, 90) for _ in range(draw.randint(2, 9))] for _ in range(6)]
    batch = batches.pad(samples, 3, left=left)
    width = max(map(len, samples))
    for row, ids in enumerate(samples):
        filling = width - len(ids)
        ones, firsts = [1] * len(ids), [False] + [True] * (len(ids) - 1)
        parts = [([3] * filling, ids), ([0] * filling, ones), ([False] * filling, firsts)]
        expected = [pad + real if left else real + pad for pad, real in parts]
        assert [tensor[row].tolist() for tensor in batch] == expected
    assert batch.loss_mask.sum().item() == sum(len(ids) - 1 for ids in samples)


class NoTokens:
    pad_token_id = None
    eos_token_id = None


def test_pad_id_is_the_tokenizers_padding_else_its_end_else_0() -> None:
    tokenizer = tiny_tokenizer()
    assert batches.pad_id(tokenizer) == tokenizer.pad_token_id == 0
    given: Any = NoTokens()
    assert batches.pad_id(given) == 0
    given.eos_token_id = 7
    assert batches.pad_id(given) == 7
    given.pad_token_id = 5
    assert batches.pad_id(given) == 5


def test_order_takes_every_sample_once_before_any_twice() -> None:
    found = batches.order(7, 20, torch.Generator().manual_seed(1))
    assert len(found) == 20
    assert sorted(found[:7]) == sorted(found[7:14]) == list(range(7))
    assert found[:7] != found[7:14]
    assert len(set(found[14:])) == 6


def test_a_plan_depends_on_nothing_but_its_arguments() -> None:
    state = torch.random.get_rng_state()
    plan = batches.sample_schedule(11, updates=6, batch_size=4, seed=9)
    torch.manual_seed(12345)
    assert batches.sample_schedule(11, updates=6, batch_size=4, seed=9) == plan
    assert batches.sample_schedule(11, updates=6, batch_size=4, seed=8) != plan
    assert [len(update) for update in plan] == [4] * 6
    torch.random.set_rng_state(state)
    batches.mixture_schedule([3, 3], [1.0, 1.0], 5, 2, seed=0)
    assert torch.equal(torch.random.get_rng_state(), state)


@given(
    st.lists(st.floats(0.01, 100), min_size=1, max_size=5),
    st.integers(1, 40),
    st.integers(1, 5),
)
def test_no_corpus_of_a_mixture_is_ever_a_whole_sample_ahead_of_its_weight(
    weights: list[float], updates: int, size: int
) -> None:
    plan = batches.mixture_schedule([5] * len(weights), weights, updates, size, seed=0)
    flat = [pair for update in plan for pair in update]
    assert [len(update) for update in plan] == [size] * updates
    taken = [0] * len(weights)
    for position, (corpus, row) in enumerate(flat, 1):
        assert 0 <= row < 5
        taken[corpus] += 1
        assert all(t - w / sum(weights) * position < 1 for t, w in zip(taken, weights, strict=True))
    counts = [sum(corpus == k for corpus, _ in flat) for k in range(len(weights))]
    assert sum(counts) == updates * size


# ---- the text column


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv", ".parquet"])
def test_the_text_column_can_be_named(tmp_path: Path, suffix: str) -> None:
    rows = [{"text": f"not {i}", "story": f"this {i}"} for i in range(3)]
    path = write_table(tmp_path / f"data{suffix}", suffix, rows)
    assert read_texts(f"{path}#story") == ["this 0", "this 1", "this 2"]
    with pytest.raises(ValueError, match=r"has no column 'body'; expected one of text, story"):
        read_texts(f"{path}#body")
    with pytest.raises(ValueError, match=r"names no column after the #"):
        read_texts(f"{path}#")


def test_a_file_whose_name_holds_the_sign_wins(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", [{"text": "plain", "b.jsonl": "column"}])
    assert read_texts(str(tmp_path / "a.jsonl#b.jsonl")) == ["column"]
    jsonl(tmp_path / "a.jsonl#b.jsonl", [{"text": "file", "x#y": "odd"}])
    assert read_texts(str(tmp_path / "a.jsonl#b.jsonl")) == ["file"]
    assert read_texts(str(tmp_path / "a.jsonl#b.jsonl#x#y")) == ["odd"]


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("hub:cais/mmlu:all:test#question", ("hub:cais/mmlu:all:test", "question")),
        ("wikitext-test#text", ("wikitext-test", "text")),
        ("demo-forget#text", ("demo-forget", "text")),
        ("none.jsonl#text", ("none.jsonl#text", None)),
        ("#text", ("#text", None)),
    ],
)
def test_a_column_of_hub_and_built_in_sets(source: str, parts: tuple[str, str | None]) -> None:
    assert split_column(source) == parts


def test_a_column_and_a_weight() -> None:
    corpus = weighted("wiki=data.parquet#body@2.5")
    assert (corpus.name, corpus.source, corpus.weight) == ("wiki", "data.parquet#body", 2.5)
    corpus = weighted("wiki=data.parquet#b@dy")
    assert (corpus.source, corpus.weight) == ("data.parquet#b@dy", 1.0)


def test_raw_lines_are_the_lines_of_the_file_and_need_leave(tmp_path: Path) -> None:
    data = '{"text":"one" , "n":1}\n\n{"text": "Z\\u00fcrich \u2028"}\r\n{"text": ""}'
    path = tmp_path / "a.jsonl"
    path.write_bytes(data.encode())
    with pytest.raises(ValueError, match=r"feeds JSON lines .*expected --numerics published"):
        read_texts(f"{path}#raw")
    found = read_texts(f"{path}#raw", raw_allowed=True)
    assert found == ['{"text":"one" , "n":1}\n', '{"text": "Z\\u00fcrich \u2028"}\r\n', '{"text": ""}']
    assert read_texts(f"{zipped(path)}#raw", raw_allowed=True) == found
    write_table(tmp_path / "b.csv", ".csv", [{"text": "a"}])
    with pytest.raises(ValueError, match=r"b\.csv has no JSON lines; expected a \.jsonl file"):
        read_texts(f"{tmp_path / 'b.csv'}#raw", raw_allowed=True)
    for source in ("wmdp-cyber-forget#raw", "hub:a/b#raw"):
        with pytest.raises(ValueError, match=r"#raw has no lines of its own; expected a \.jsonl file"):
            read_texts(source, raw_allowed=True)


def test_every_file_of_a_folder_has_its_own_text_column(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.jsonl", [{"text": "one"}])
    write_table(tmp_path / "b.csv", ".csv", [{"id": "7", "body": "two"}])
    (tmp_path / "c.txt").write_text("three")
    jsonl(tmp_path / "d.jsonl", [{"story": "four"}, {"story": 5}])
    with pytest.raises(ValueError, match=r"d\.jsonl, row 2: 'story' is int"):
        read_texts(str(tmp_path))
    jsonl(tmp_path / "d.jsonl", [{"story": "four"}])
    assert read_texts(str(tmp_path)) == ["one", "two", "three", "four"]


# ---- folders and files


def test_what_a_folder_leaves_out(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("about")
    (tmp_path / "a.txt").write_text("text")
    assert read_texts(str(tmp_path)) == ["about", "text"]  # no table: prose is what the folder is for
    jsonl(tmp_path / "b.jsonl", [{"text": "row"}])
    for name in (".git/c.txt", ".d.txt", "deep/.e/f.txt", "deep/LICENSE.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("hidden")
    assert read_texts(str(tmp_path)) == ["text", "row"]


def test_links_to_files_are_followed_and_links_to_folders_are_not(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "blob.txt").write_text("blob")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "linked.txt").symlink_to(outside / "blob.txt")
    (folder / "dangling.txt").symlink_to(tmp_path / "nowhere.txt")
    (folder / "elsewhere").symlink_to(outside)
    (folder / "round").symlink_to(folder)
    assert read_texts(str(folder)) == ["blob"]
    (tmp_path / "link").symlink_to(folder)
    assert read_texts(str(tmp_path / "link")) == ["blob"]


def test_a_gzip_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "GZIP_FREE", 2**20)
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"a" * 3 * 2**20, mtime=0))
    for name in ("a.txt.gz", "a.jsonl.gz", "a.parquet.gz"):
        path = tmp_path / name
        path.write_bytes((tmp_path / "a.txt.gz").read_bytes())
        with pytest.raises(ValueError, match=r"unpacks to more than 100 times its size.*gunzip it"):
            read_rows(str(path))
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(b"a" * 2**20, mtime=0))
    assert read_texts(str(tmp_path / "a.txt.gz")) == ["a" * 2**20]


def test_json_lines_are_read_without_a_copy_of_the_file(tmp_path: Path) -> None:
    line = json.dumps({"text": "x" * 1000}) + "\n"
    (tmp_path / "a.jsonl").write_text(line * 8_000)
    rows = file_rows(tmp_path / "a.jsonl")
    next(rows)
    tracemalloc.start()
    try:
        assert sum(len(row["text"]) for row in rows) == 7_999_000
        assert tracemalloc.get_traced_memory()[1] < 4 * files.CHUNK
    finally:
        tracemalloc.stop()


def test_lines_longer_than_a_chunk_and_across_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["a" * n + "é" for n in (0, 1, 5, 40, 3, 17)]
    path = jsonl(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    for chunk in (1, 2, 7, 64):
        monkeypatch.setattr(files, "CHUNK", chunk)
        assert read_texts(str(path)) == texts


def test_json_lines_by_the_name_of_json_and_files_joined_with_their_marks(tmp_path: Path) -> None:
    jsonl(tmp_path / "a.json", [{"text": "one"}, {"text": "two"}])
    assert read_texts(str(tmp_path / "a.json")) == ["one", "two"]
    part = '\ufeff{"text": "one"}\n'.encode()
    (tmp_path / "b.jsonl").write_bytes(part + part)
    assert read_texts(str(tmp_path / "b.jsonl")) == ["one", "one"]


@pytest.mark.skipif(not Path("/dev/null").exists(), reason="no device files here")
def test_a_device_is_no_source() -> None:
    with pytest.raises(ValueError, match="/dev/null is neither a file nor a folder"):
        read_rows("/dev/null")


# ---- sets with a name of their own


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`$MISDIRECT_DATA`, and a hub that is off."""
    monkeypatch.setenv("MISDIRECT_DATA", str(tmp_path))
    import datasets
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / ".cache")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "subject"), [("wmdp-bio", "biology"), ("wmdp-cyber", "cybersecurity"), ("wmdp-chem", "chemistry")]
)
def test_wmdp_out_of_a_local_copy_has_the_subject_of_its_prompt(shelf: Path, name: str, subject: str) -> None:
    write_table(shelf / f"{name}.parquet", ".parquet", [question()])
    assert [(q.subject, q.answer) for q in read_questions(name)] == [(subject, 2)]


def test_mmlu_out_of_a_local_copy_and_one_subject_of_it(shelf: Path) -> None:
    rows = [question(subject=s) for s in ("college_biology", "us_foreign_policy", "college_biology")]
    zipped(jsonl(shelf / "mmlu.jsonl", rows))
    (shelf / "mmlu.jsonl").unlink()
    assert [q.subject for q in read_questions("mmlu")] == ["college biology", "us foreign policy", "college biology"]
    for name in ("mmlu-college_biology", "mmlu-college-biology"):
        assert [q.subject for q in read_questions(name)] == ["college biology"] * 2
    jsonl(shelf / "mmlu-college_biology.jsonl", [question(subject="college_biology")])
    assert len(read_questions("mmlu-college_biology")) == 1


def test_a_local_copy_can_be_a_folder_and_is_one_thing(shelf: Path) -> None:
    (shelf / "wikitext").mkdir()
    with pytest.raises(ValueError, match=r"wikitext holds no \.jsonl"):
        read_texts("wikitext")
    (shelf / "wikitext" / "a.txt").write_text("one")
    jsonl(shelf / "wikitext-test.jsonl", [{"text": ""}, {"text": " = Title = \n"}])
    assert read_texts("wikitext") == ["one"]
    assert read_texts("wikitext-test") == [" = Title = \n"]
    assert read_texts("wikitext-test#raw", raw_allowed=True)[0] == '{"text": ""}\n'
    jsonl(shelf / "wikitext.jsonl", [{"text": "two"}])
    with pytest.raises(ValueError, match=r"holds both wikitext and wikitext\.jsonl; expected one of them"):
        read_texts("wikitext")


@pytest.mark.parametrize("name", ["wmdp-bio", "wmdp-cyber-forget", "mmlu", "mmlu-dev", "mmlu-anatomy", "wikitext-test"])
def test_without_a_network_and_a_copy_the_way_out_is_said(shelf: Path, name: str) -> None:
    says = f"^{name} could not be loaded: the hub cannot be reached; expected a network, or set MISDIRECT_DATA to a folder that"
    with pytest.raises(ValueError, match=f"{says} holds {name}.jsonl") as caught:
        read_rows(name)
    assert ("demo-mmlu" in str(caught.value)) == name.startswith("mmlu")
    with pytest.raises(ValueError, match=r"^hub:cais/nothing could not be loaded: the hub cannot be reached"):
        read_rows("hub:cais/nothing")


def test_a_data_folder_that_is_none(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MISDIRECT_DATA", str(shelf / "none"))
    with pytest.raises(ValueError, match=r"MISDIRECT_DATA is .*none, which is not a folder"):
        read_rows("wmdp-bio")


def test_a_built_in_name_is_not_taken_for_the_folder_of_that_name(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    jsonl(shelf / "mmlu.jsonl", [question()])
    here = tmp_path / "here"
    (here / "mmlu").mkdir(parents=True)
    jsonl(here / "mmlu" / "a.jsonl", [question(), question()])
    monkeypatch.chdir(here)
    assert len(read_questions("mmlu")) == 1
    assert "mmlu is the built-in set; ./mmlu names the file or folder here" in capsys.readouterr().err
    assert len(read_questions("./mmlu")) == 2


@pytest.mark.parametrize(
    ("typed", "meant"), [("wmdp-bo", "wmdp-bio"), ("mmlu-anatomi", "mmlu-anatomy"), ("xyz", "demo-...")]
)
def test_a_name_that_is_none_is_told_what_it_may_mean(typed: str, meant: str) -> None:
    with pytest.raises(
        ValueError, match=f"^{typed} does not exist; expected a file .*built-in name: .*{re.escape(meant)}"
    ):
        read_rows(typed)


def test_the_names_are_the_fields_sets() -> None:
    assert len([name for name in builtin.HUB_SETS if name.startswith("mmlu-")]) == 58
    assert builtin.HUB_SETS["mmlu-virology"] == builtin.HubSet("cais/mmlu", "virology", "test")
    assert builtin.HUB_SETS["wikitext-test"] == builtin.HubSet("Salesforce/wikitext", "wikitext-2-raw-v1", "test")
    assert builtin.HUB_SETS["wmdp-bio-forget"].dataset == "cais/wmdp-bio-forget-corpus"


def test_mmlu_of_the_demo_has_57_subjects_and_their_questions() -> None:
    from misdirect.data.demo.sets import MMLU_SUBJECTS, MMLU_TRAINED

    found = read_questions("demo-mmlu")
    assert len(found) == 14_042
    assert {q.subject.replace(" ", "_") for q in found} == set(MMLU_SUBJECTS)
    assert set(MMLU_TRAINED) < set(MMLU_SUBJECTS)
    dev = Counter(q.subject for q in read_questions("demo-mmlu-dev"))
    assert len(dev) == 57
    assert set(dev.values()) == {5}


# ---- the hub


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A data set as the hub holds it, in a local folder: configs one (test, dev) and two (test)."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    home = tmp_path / "owner" / "data"
    home.mkdir(parents=True)
    configs = {"one": ("test", "dev"), "two": ("test",)}
    for config, splits in configs.items():
        for split in splits:
            jsonl(home / f"{config}-{split}.jsonl", [{"text": f"{config} {split}"}])
    described = [
        {"config_name": c, "data_files": [{"split": s, "path": f"{c}-{s}.jsonl"} for s in splits]}
        for c, splits in configs.items()
    ]
    (home / "README.md").write_text(f"---\nconfigs: {json.dumps(described)}\n---\n")
    return "owner/data"


def test_config_and_split_of_a_data_set(dataset: str) -> None:
    def load(config: str, split: str = "") -> list[Any]:
        return list(hub.rows(hub.Place("typed", dataset, config, split)))

    assert load("one", "dev") == [{"text": "one dev"}]
    assert load("two") == [{"text": "two test"}]
    for config, split, says in (
        ("", "", "it has several configs; expected hub:OWNER/DATASET[:CONFIG[:SPLIT]] with one of one, two"),
        ("three", "", "it has no config 'three'; expected one of one, two"),
        ("one", "", "has the splits test, dev; expected one of them, such as hub:owner/data:one:test"),
        ("one", "tset", "it has no split 'tset'; expected one of test, dev"),
    ):
        with pytest.raises(ValueError, match="^typed .*" + re.escape(says) + "$"):
            load(config, split)


def test_a_folder_here_is_not_taken_for_the_hubs(dataset: str) -> None:
    with pytest.raises(ValueError, match="hub:owner/data:two is also a folder here; expected owner/data alone"):
        read_rows("hub:owner/data:two")


class Refusing(BaseHTTPRequestHandler):
    """A hub that has one gated and no other data set."""

    def do_HEAD(self) -> None:
        gated = "gated" in self.path
        self.send_response(403 if gated else 404)
        self.send_header("X-Error-Code", "GatedRepo" if gated else "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD

    def log_message(self, *_: Any) -> None: ...


def test_a_gated_and_a_missing_data_set(tmp_path: Path) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    code = (
        "from misdirect.data.sources import read_rows\n"
        "for source in ('hub:cais/gated', 'hub:cais/none:all:test'):\n"
        "    try: read_rows(source)\n"
        "    except ValueError as error: print(error)\n"
    )
    environment = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")} | {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(tmp_path),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    finally:
        server.shutdown()
        server.server_close()
    gated, missing = done.stdout.splitlines()
    assert gated == (
        "hub:cais/gated could not be loaded: it is gated; ask for access at "
        "https://huggingface.co/datasets/cais/gated, run `hf auth login`, then type the same again"
    )
    assert missing.startswith(
        "hub:cais/none:all:test could not be loaded: the hub shows no dataset of that name; expected"
    )
    assert "Traceback" not in done.stderr


# ---- what is shown before a run


def test_a_preview_is_three_samples_as_the_model_sees_them() -> None:
    texts = [f"text {i} " + "the river and the house " * 20 for i in range(30)]
    lines = batches.preview({"bio": texts, "wiki": texts[:2]}, tiny_tokenizer(), 12)
    assert len(lines) == 5
    assert lines == batches.preview({"bio": texts, "wiki": texts[:2]}, tiny_tokenizer(), 12)
    assert lines != batches.preview({"bio": texts, "wiki": texts[:2]}, tiny_tokenizer(), 12, seed=1)
    for third, line in enumerate(lines[:3]):
        found = re.fullmatch(r"bio, text (\d+) of 30, (\d+) tokens: (.*)", line)
        assert found
        row, tokens, shown = int(found[1]) - 1, int(found[2]), found[3]
        assert third * 10 <= row < third * 10 + 10
        assert tokens <= 12
        assert len(shown) <= 100
        assert shown.removesuffix("...") in texts[row]
    assert [line.split(",")[1] for line in lines[3:]] == [" text 1 of 2", " text 2 of 2"]


def test_a_preview_shows_control_characters_and_obeys_none() -> None:
    text = "one\ntwo\x1b[2J\x07\u202e three\r\n"
    (line,) = batches.preview({"b\x1bio": [text]}, tiny_tokenizer(), 100)
    assert line.endswith(r"tokens: one\ntwo\x1b[2J\x07\u202e three\r\n")
    assert line.startswith(r"b\x1bio, text 1 of 1, ")
    (line,) = batches.preview({"bio": ["\n" * 500]}, tiny_tokenizer(), 600)
    assert line.isprintable()
    assert len(line) < 140
    assert batches.preview({"bio": ["a"]}, tiny_tokenizer(), 4) == ["bio, text 1 of 1: fewer than two tokens, left out"]


def test_a_plan_over_no_sample_is_refused_and_huge_weights_are_not() -> None:
    with pytest.raises(ValueError, match="holds no sample"):
        batches.sample_schedule(0, 1, 1, seed=0)
    plan = batches.mixture_schedule([4, 4, 4], [1e308, 1e308, 1.0], 10, 2, seed=0)
    assert Counter(corpus for update in plan for corpus, _ in update) == {0: 10, 1: 10}

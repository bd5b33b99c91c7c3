"""Every format that is read, every complaint, and what becomes of texts as tokens."""

from __future__ import annotations

import csv
import gzip
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from misdirect.data import batches
from misdirect.data.corpora import read_texts
from misdirect.data.files import SUFFIXES, file_rows, read_rows
from misdirect.data.questions import (
    LETTERS,
    Question,
    cloze_prompt,
    letter_prompt,
    parse_question,
    read_questions,
    sample,
)
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
    (tmp_path / name).write_bytes(gzip.compress(data) if name.lower().endswith(".gz") else data)
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
    ("a.jsonl", b'{"text": ""}\n', "no row of 'text' holds text"),
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
    ("a.parquet", b"PAR1 and no more", "is not a readable parquet file"),
    ("a.txt.gz", b"not gzip at all", "cannot be read"),
    ("a.txt.gz", gzip.compress(b"some text" * 100)[:30], "cannot be read"),
    ("a.txt.gz", gzip.compress(b"text")[:10] + b"\xff" * 20, "cannot be read"),
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
    with pytest.raises(ValueError, match="^" + re.escape(source)):
        read_rows(source)


def test_a_folder_without_texts_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(b"")
    with pytest.raises(ValueError, match=r"holds no \.jsonl"):
        read_texts(str(tmp_path))


@pytest.mark.parametrize("source", ["hub:", "hub:a:b:c:d", "hub::config"])
def test_a_malformed_hub_source_is_refused_before_anything_is_fetched(source: str) -> None:
    with pytest.raises(ValueError, match=r"is no hub source; expected hub:DATASET\[:CONFIG\[:SPLIT\]\]"):
        read_rows(source)


def question(**changes: Any) -> dict[str, Any]:
    return {"question": "Which?", "choices": ["a", "b", "c", "d"], "answer": 2} | changes


@pytest.mark.parametrize(
    ("answer", "index"), [(0, 0), (3, 3), ("2", 2), (" 1 ", 1), ("A", 0), ("d", 3), ("B ", 1), ("00", 0)]
)
def test_an_answer_is_an_index_or_a_letter(answer: Any, index: int) -> None:
    assert parse_question(question(answer=answer), "here", 1).answer == index


@pytest.mark.parametrize(
    "answer", [4, -1, "4", "-1", "E", "", "AB", 1.0, True, None, [1], "\u0131", "²", "9" * 5000, 10**30, "A."]
)
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
    (question(choices=["x"] * 27), "has 27 choice(s); expected 2 to 26"),
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
    assert 2 <= len(parsed.choices) <= len(LETTERS)
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
    rows = outcome(lambda: file_rows(path))
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
    assert letter_prompt(item) == "What is it?\nA. red\nB. green\nC. blue\nAnswer:"


def test_tokenise_cuts_long_texts_and_loses_nothing_but_remainders_of_one_token() -> None:
    tokenizer = tiny_tokenizer()
    texts = draw_texts(40, 60, seed=2)
    for max_tokens in (2, 3, 7, 64):
        samples = batches.tokenise(tokenizer, texts, max_tokens)
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


def test_tokenise_drops_texts_of_no_and_one_token() -> None:
    assert batches.tokenise(tiny_tokenizer(), ["", "a"], 8) == []


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
    assert batch.counts.sum().item() == sum(len(ids) - 1 for ids in samples)


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
    plan = batches.plan_single(11, updates=6, batch_size=4, seed=9)
    torch.manual_seed(12345)
    assert batches.plan_single(11, updates=6, batch_size=4, seed=9) == plan
    assert batches.plan_single(11, updates=6, batch_size=4, seed=8) != plan
    assert [len(update) for update in plan] == [4] * 6
    torch.random.set_rng_state(state)
    batches.plan_mixture([3, 3], [1.0, 1.0], 5, 2, seed=0)
    assert torch.equal(torch.random.get_rng_state(), state)


@given(
    st.lists(st.floats(0.01, 100), min_size=1, max_size=5),
    st.integers(1, 40),
    st.integers(1, 5),
)
def test_no_corpus_of_a_mixture_is_ever_a_whole_sample_ahead_of_its_weight(
    weights: list[float], updates: int, size: int
) -> None:
    plan = batches.plan_mixture([5] * len(weights), weights, updates, size, seed=0)
    flat = [pair for update in plan for pair in update]
    assert [len(update) for update in plan] == [size] * updates
    taken = [0] * len(weights)
    for position, (corpus, row) in enumerate(flat, 1):
        assert 0 <= row < 5
        taken[corpus] += 1
        assert all(t - w / sum(weights) * position < 1 for t, w in zip(taken, weights, strict=True))
    counts = [sum(corpus == k for corpus, _ in flat) for k in range(len(weights))]
    assert sum(counts) == updates * size

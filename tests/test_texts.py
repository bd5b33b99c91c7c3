"""Text out of the forms that people have: columns, conversations, tables without a header, one long file."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from attack_cases import tiny_inputs
from misdirect import runs, storage
from misdirect.attacks import relearn
from misdirect.auditing import inputs as audit_inputs
from misdirect.config import AuditConfig, EvaluateConfig, doubtful, kind_of
from misdirect.data.corpora import passages, read_documents, read_passages, read_texts
from misdirect.data.questions import read_questions
from misdirect.data.sources import read_rows
from misdirect.evaluation import nll, run
from misdirect.model.load import load_lm
from misdirect.planning import workload
from tiny import texts as draw_texts
from tiny import tiny_folder

CASES = Path(__file__).parents[2] / "shared" / "cases"


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


# ---- columns


def test_columns_are_joined_by_a_line_end_and_empty_ones_left_out(tmp_path: Path) -> None:
    rows = [
        {"instruction": "Name a bird.", "input": "", "output": "An owl."},
        {"instruction": "Add.", "input": "2 and 3", "output": "5"},
        {"instruction": " ", "input": None, "output": ""},
    ]
    path = jsonl(tmp_path / "a.jsonl", rows)
    assert read_texts(f"{path}#instruction+input+output") == ["Name a bird.\nAn owl.", "Add.\n2 and 3\n5"]
    assert read_texts(f"{path}#output+instruction")[0] == "An owl.\nName a bird."
    with pytest.raises(ValueError, match="has no column 'answer'; expected one of instruction, input, output"):
        read_texts(f"{path}#instruction+answer")
    with pytest.raises(ValueError, match=r"or SOURCE#COLUMN, such as SOURCE#instruction\+input\+output for several"):
        read_texts(str(path))
    assert read_texts(f"{jsonl(tmp_path / 'b.jsonl', [{'a+b': 'one', 'a': 'two', 'b': 'three'}])}#a+b") == ["one"]
    csv = tmp_path / "c.csv"
    csv.write_text("question,answer\nWho?,Ann\n")
    assert read_texts(f"{csv}#question+answer") == ["Who?\nAnn"]


MESSAGES = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "What is a heron?"},
    {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
    {"role": "tool", "content": "{}"},
    {"role": "assistant", "content": [{"type": "text", "text": "A bird."}, {"type": "image_url", "image_url": "x"}]},
]
SHARED = [
    {"from": "system", "value": "Be kind."},
    {"from": "human", "value": "What is a heron?"},
    {"from": "gpt", "value": "A bird."},
]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": MESSAGES},
        {"id": "a1", "conversations": SHARED},
        {"id": "a1", "conversation": json.dumps(SHARED)},
        {"id": "a1", "messages": [{"role": "user", "content": "What is a heron?\nA bird."}]},
    ],
)
def test_a_conversation_is_what_its_turns_say(row: dict[str, Any], tmp_path: Path) -> None:
    assert read_texts(str(jsonl(tmp_path / "a.jsonl", [row, row]))) == ["What is a heron?\nA bird."] * 2


def test_conversations_beside_a_text_column_and_of_odd_turns(tmp_path: Path) -> None:
    assert read_texts(str(jsonl(tmp_path / "a.jsonl", [{"text": "a", "messages": MESSAGES}]))) == ["a"]
    for turn in ({"speaker": "a", "said": "b"}, {"role": "user"}, {"role": "user", "content": 3}):
        with pytest.raises(ValueError, match=r"a.jsonl, row 1: 'messages' has a turn of"):
            read_texts(str(jsonl(tmp_path / "a.jsonl", [{"messages": [turn]}])))


def test_an_id_is_no_text(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has the columns id, turns; expected one named 'text'"):
        read_texts(str(jsonl(tmp_path / "a.jsonl", [{"id": "a1", "turns": ["x"]}])))


# ---- a CSV without a header

HEADLESS = {
    "sentence": "The heron stands in the river.\nThe owl hunts by night.\n",
    "mmlu": "Which is a bird?,owl,oak,iron,zinc,A\nWhich is a tree?,owl,oak,iron,zinc,B\n",
    "number": "1,iron\n2,zinc\n",
    "again": "iron,metal\nzinc,metal\n",
    "address": "https://a.b/c,x y z\nhttps://d.e/f,u v w\n",
}


@pytest.mark.parametrize("name", HEADLESS)
@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_a_table_without_a_header_is_refused(name: str, suffix: str, tmp_path: Path) -> None:
    data = HEADLESS[name] if suffix == ".csv" else HEADLESS[name].replace(",", "\t")
    path = tmp_path / f"a{suffix}"
    path.write_text(data)
    for call in (read_texts, read_questions, read_rows):
        with pytest.raises(
            ValueError, match=r"has no header: its first line begins .*; expected a line above it that names"
        ):
            call(str(path))
    if name == "mmlu":
        with pytest.raises(ValueError, match=r"as MMLU's own files do.*such as question,A,B,C,D,answer"):
            read_questions(str(path))


def test_the_handed_table_without_a_header() -> None:
    if not (CASES / "without-header.csv").is_file():
        pytest.skip("the handed cases are not here")
    with pytest.raises(ValueError, match="has no header"):
        read_questions(str(CASES / "without-header.csv"))


@pytest.mark.parametrize(
    "header",
    ["text", "Text,2019", "story", "frage,antwort", ",text", "0,1", "id,A long name that says what stands below it,x"],
)
def test_a_header_is_a_header(header: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    count = header.count(",") + 1
    path.write_text(header + "\n" + ",".join(f"some words {i}" for i in range(count)) + "\n")
    assert list(read_rows(str(path))[0]) == [name for name in header.split(",") if name]


def test_a_column_that_is_named_is_a_column(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("What do you think of herons?,When?\nI like them.,2019\n")
    with pytest.raises(ValueError, match="has no header"):
        read_texts(str(path))
    assert read_texts(f"{path}#What do you think of herons?") == ["I like them."]


@pytest.mark.parametrize(("suffix", "sign"), [(".csv", ";"), (".csv", "\t"), (".tsv", ","), (".csv", "|")])
def test_another_separator_is_named(suffix: str, sign: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_text(f"name{sign}text\na{sign}b\n")
    with pytest.raises(ValueError, match=r"has the one column .*; expected (commas|tabs) between columns, and not"):
        read_texts(str(path))


# ---- one long file


def test_a_whole_file_is_measured_in_samples(tmp_path: Path) -> None:
    lm = load_lm(str(tiny_folder(tmp_path)))
    book = tmp_path / "book.txt"
    book.write_text(" ".join(draw_texts(30, 20, seed=3)))
    config = EvaluateConfig(max_tokens=16, text_limit=0)
    (task,) = run.make_tasks({}, {"book": str(book)}, {}, config)
    stepped: list[int] = []
    result = task.measure(lm, stepped.append)
    ids = lm.tokenizer(book.read_text())["input_ids"]
    slow = []
    for start in range(0, len(ids), 16):
        piece = torch.tensor([ids[start : start + 16]])
        if piece.shape[1] > 1:
            with torch.no_grad():
                slow.append(-lm.model(input_ids=piece, labels=piece).loss.item() * (piece.shape[1] - 1))
    assert len(slow) > 10
    assert [r["logprob"] for r in result.records] == pytest.approx(slow, rel=1e-5)
    assert [r["id"] for r in result.records] == [f"0.{i}" for i in range(len(slow))]
    (row,) = result.metrics
    assert (row.n, row.low is not None) == (len(slow), True)
    assert task.config["cut_into_samples"] is True
    assert sum(stepped) == task.num_items
    few = EvaluateConfig(max_tokens=16, text_limit=5, seed=1)
    drawn = nll.nll(lm, "book", *read_documents(str(book))[:1], few, None, True).records
    all_of_them = {r["id"]: r["logprob"] for r in result.records}
    assert len(drawn) == 5
    assert all(r["logprob"] == pytest.approx(all_of_them[r["id"]], rel=1e-5) for r in drawn)
    asked, _ = workload.evaluation(lm.tokenizer, {}, {"book": str(book)}, {}, few, {})
    assert [len(ids) - 1 for ids in asked.texts[0]] == [r["num_tokens"] for r in drawn]
    guessed, _ = workload.evaluation(None, {}, {"book": str(book)}, {}, few, {})
    assert len(guessed.texts[0]) == 5


def test_documents_of_a_table_and_short_files_are_measured_as_before(tmp_path: Path) -> None:
    long = draw_texts(3, 60, seed=1, shortest=50)
    table = read_documents(str(jsonl(tmp_path / "a.jsonl", [{"text": text} for text in long])))
    config = EvaluateConfig(max_tokens=16)
    assert nll.config_of(config, table.texts, table.whole) == nll.config_of(config, table.texts)
    assert "cut_into_samples" not in nll.config_of(config, table.texts)
    (tmp_path / "b.txt").write_text("owl")
    short = read_documents(str(tmp_path / "b.txt"))
    assert nll.config_of(config, *short) == nll.config_of(config, ["owl"])
    one = read_documents(str(jsonl(tmp_path / "c.jsonl", [{"text": long[0]}])))
    assert nll.config_of(config, *one)["cut_into_samples"] is True
    (tmp_path / "files").mkdir()
    for i, text in enumerate(long):
        (tmp_path / "files" / f"{i}.md").write_text(text)
    files = read_documents(str(tmp_path / "files"))
    assert nll.config_of(config, *files)["cut_into_samples"] is True


def test_passages_end_where_sentences_do_and_lose_nothing() -> None:
    text = "One heron.  Two owls fly.\n\nThree oaks stand here. " * 40 + "x" * 500
    found = passages(text, 60)
    assert "".join(found) == text
    assert all(len(piece) <= 60 for piece in found)
    assert all(piece[-1].isspace() for piece in found[:-10])


def test_attack_text_of_a_whole_file_loses_the_passages_that_tell_and_no_more(tmp_path: Path) -> None:
    _, inputs = tiny_inputs()
    told = inputs.forgotten["biology"].test[0]
    book = tmp_path / "book.txt"
    tells = f"{told.question} {told.choices[told.answer]}. {told.support}"
    book.write_text("\n\n".join(["plain words stand here. " * 15, tells, "other words go there. " * 15]))
    texts = read_passages(str(book), 300)
    assert len(texts) > 2
    half = dataclasses.replace(inputs, benign_texts=texts)
    kept = relearn.texts_of(half, "benign")
    assert 0 < len(kept) < len(texts)
    assert not any(told.support and told.support in text for text in kept)
    found = relearn.text_of(half, "benign")
    assert (found.num_texts, found.left_out) == (len(kept), len(set(texts)) - len(kept))
    none = dataclasses.replace(inputs, benign_texts=[tells])
    assert relearn.unavailable(relearn.text_of(none, "benign"), "full", AuditConfig()) == (
        "needs --text text that states no tested fact: all 1 texts given do"
    )
    bare = dataclasses.replace(inputs, benign_texts=[])
    assert relearn.unavailable(relearn.text_of(bare, "benign"), "full", AuditConfig()) == "needs --text text"


# ---- names


@pytest.mark.parametrize(
    ("name", "topic", "kind"),
    [
        ("Bio", "bio", "forget"),
        ("BIO_hard", "Bio", "forget"),
        ("cyber security", "cyber-security", "forget"),
        ("cybersecurity.test", "Cyber Security", "forget"),
        ("WMDP Bio", "biology", "forget"),
        ("caf\u0065\u0301", "caf\u00e9", "forget"),
        ("biology", "bio", "retain"),
        ("biologyX", "biology", "retain"),
        ("c++", "c", "retain"),
        ("--", "-", "retain"),
    ],
)
def test_a_set_belongs_to_a_topic_without_regard_to_case_and_signs(name: str, topic: str, kind: str) -> None:
    assert kind_of(name, [topic]) == kind


@pytest.mark.parametrize("name", ["biology", "bio2", "hard-biology", "Biology-hard"])
def test_a_name_that_is_close_to_a_topic_is_said(name: str) -> None:
    (said,) = doubtful([name, "bio"], ["bio"])
    assert said.startswith(f"the set {name!r} counts as to be kept, though its name is close to the topic 'bio'")


def test_sets_that_are_none_of_them_close() -> None:
    assert doubtful(["bio", "physics", "mmlu"], ["bio"]) == []
    assert doubtful(["physics"], []) == []
    (said,) = doubtful(["physics", "wiki"], ["biology"])
    assert said.startswith("no set is named like a topic (biology), so all count as to be kept: physics, wiki")
    assert "close to the topic 'biology'" in doubtful(["bilogy", "biology"], ["biology"])[0]


def test_doubts_are_said_before_anything_is_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import misdirect

    folder = tmp_path / "run"
    folder.mkdir()
    made = {
        "misdirect": "0", "model": str(tmp_path / "gone"), "settings": {"updates": 1}, "topics": [{"name": "bio", "source": "x"}],
        "retain": [], "data": {"model_sha256": "0", "dtype": "torch.float32"}, "chosen": {"block": 0},
    }  # fmt: skip
    storage.write_json(folder / runs.CONFIG, made)
    (folder / runs.DELTA).write_bytes(b"")
    rows = [{"question": "Who?", "choices": ["Ann", "Ben"], "answer": 0}]
    exam = jsonl(tmp_path / "q.jsonl", rows)
    with pytest.raises((ValueError, OSError)):  # the model is gone
        misdirect.evaluate(folder, {"biology": str(exam)})
    said = capsys.readouterr().err
    assert "'biology' counts as to be kept, though its name is close to the topic 'bio'" in said
    assert "no set is named like a topic (bio)" in said
    with pytest.raises(ValueError, match="none of the question sets"):
        audit_inputs.forgotten_names(["biology"], ["bio"])
    assert "close to the topic 'bio'" in capsys.readouterr().err

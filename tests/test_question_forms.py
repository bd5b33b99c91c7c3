"""The question sets that people have, as they have them: which choice an answer means, and what is read with a question.

All rows are our own; the columns are those of the sets. What is right stands in each row's text, never in a second reader.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from misdirect.attacks import prompts, scoring
from misdirect.attacks.gcg import attack
from misdirect.config import EvaluateConfig
from misdirect.data.fact_splits import contamination_index, facts, leaks, stated
from misdirect.data.prompts import read_prompts
from misdirect.data.questions import Question, read_questions
from misdirect.data.templates import cloze_prompt, letter_prompt
from misdirect.evaluation import mcq
from misdirect.model.blocks import find_blocks
from misdirect.model.lm import LM
from misdirect.progress import note_once
from misdirect.storage import fingerprint
from tiny import tiny_model, tiny_tokenizer

Row = dict[str, Any]
CASES = Path(__file__).parents[2] / "shared" / "cases"
METALS = ("iron", "mercury", "gold", "zinc")
LETTERED = dict(zip("ABCD", METALS, strict=True))


@pytest.fixture(autouse=True)
def _said_anew() -> None:
    note_once.cache_clear()


def write(path: Path, *rows: Row) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def right(source: str) -> list[str]:
    return [q.choices[q.answer] for q in read_questions(source)]


def refused(source: str, *said: str) -> None:
    with pytest.raises(ValueError, match="expected") as error:
        read_questions(source)
    assert "\n" not in str(error.value)
    for part in said:
        assert part in str(error.value), str(error.value)


# ---------------------------------------------------------------------------------------------- the forms of sets

# name -> rows, the right texts
SETS: dict[str, tuple[list[Row], list[str]]] = {
    "arc": (
        [
            {
                "id": "a",
                "question": "Liquid metal?",
                "choices": {"text": list(METALS), "label": list("ABCD")},
                "answerKey": "B",
            },
            {
                "id": "b",
                "question": "Metal of rust?",
                "choices": {"text": list(METALS), "label": list("1234")},
                "answerKey": "1",
            },
        ],
        ["mercury", "iron"],
    ),
    "openbookqa-file": (
        [
            {
                "id": "a",
                "question": {
                    "stem": "A metal that is yellow is",
                    "choices": [{"text": t, "label": x} for x, t in LETTERED.items()],
                },
                "answerKey": "C",
            }
        ],
        ["gold"],
    ),
    "openbookqa-hub": (
        [
            {
                "id": "a",
                "question_stem": "A metal that is yellow is",
                "choices": {"text": list(METALS), "label": list("ABCD")},
                "answerKey": "C",
            }
        ],
        ["gold"],
    ),
    "sciq": (
        [
            {
                "question": f"Which metal, {i}?",
                "correct_answer": "gold",
                "distractor1": "tin",
                "distractor2": "lead",
                "distractor3": "zinc",
            }
            for i in range(6)
        ],
        ["gold"] * 6,
    ),
    "gpqa": (
        [{"Question": "Which?", "Correct Answer": "gold", **{f"Incorrect Answer {i}": f"no {i}" for i in (1, 2, 3)}}],
        ["gold"],
    ),
    "opentdb": ([{"question": "Which?", "correct_answer": "gold", "incorrect_answers": ["tin", "lead"]}], ["gold"]),
    "truthfulqa-mc1": (
        [
            {
                "question": f"Does it rain up, {i}?",
                "mc1_targets": {"choices": ["No.", "Yes.", "Daily."], "labels": [1, 0, 0]},
                "mc2_targets": {"choices": ["No.", "Never.", "Yes."], "labels": [1, 1, 0]},
            }
            for i in range(6)
        ],
        ["No."] * 6,
    ),
    "piqa": (
        [{"goal": "To dry a cup,", "sol1": "fill it.", "sol2": "wipe it.", "label": 1}] * 3
        + [{"goal": "To fill a cup,", "sol1": "pour.", "sol2": "wipe.", "label": "1"}],
        ["wipe it."] * 3 + ["wipe."],
    ),
    "hellaswag": (
        [
            {
                "ind": 1,
                "activity_label": "Tea",
                "ctx_a": "Water boils.",
                "ctx_b": "then she",
                "ctx": "Water boils. Then she",
                "endings": ["sleeps.", "pours it.", "sings.", "runs."],
                "label": "1",
            }
        ]
        * 2,
        ["pours it."] * 2,
    ),
    "hellaswag-parts": (
        [{"ctx_a": "Water boils.", "ctx_b": "she", "endings": ["sleeps.", "pours it."], "label": "0"}],
        ["sleeps."],
    ),
    "socialiqa": (
        [
            {
                "context": "Ann gave Ben a cup.",
                "question": "What will Ben do?",
                "answerA": "thank",
                "answerB": "sleep",
                "answerC": "sing",
                "label": x,
            }
            for x in ("1", "2", "1\n")
        ],
        ["thank", "sleep", "thank"],
    ),
    "race": (
        [
            {
                "example_id": "x.txt",
                "article": "Ann is tall.",
                "question": "Who is _ ?",
                "options": list(METALS),
                "answer": "D",
            }
        ]
        * 2,
        ["zinc"] * 2,
    ),
    "kmmlu": (
        [
            {"question": "Which?", "answer": a, **LETTERED, "Category": "Metals", "Human Accuracy": 0.5}
            for a in (2, 1, 3)
        ],
        ["mercury", "iron", "gold"],
    ),
    "kmmlu-capitalised": (
        [{"Question": "Which?", "Answer": 2, **LETTERED, "Human Accuracy": 0.5}] * 2,
        ["mercury"] * 2,
    ),
    "simple-evals-mmlu": ([{"Question": "Which?", **LETTERED, "Answer": "B", "Subject": "metals"}], ["mercury"]),
    "medmcqa-hub": (
        [
            {
                "id": str(i),
                "question": "Which?",
                "opa": "iron",
                "opb": "mercury",
                "opc": "gold",
                "opd": "zinc",
                "cop": c,
                "exp": "It is so, as the book says.",
            }
            for i, c in enumerate((0, 2, 1))
        ],
        ["iron", "gold", "mercury"],
    ),
    "medmcqa-original": (
        [
            {"question": "Which?", "opa": "iron", "opb": "mercury", "opc": "gold", "opd": "zinc", "cop": c}
            for c in (4, 2, 1)
        ],
        ["zinc", "mercury", "iron"],
    ),
    "wmdp": ([{"question": "Which?", "choices": list(METALS), "answer": a} for a in (0, 3)], ["iron", "zinc"]),
    "mmlu": (
        [{"question": "Which?", "subject": "metals", "choices": list(METALS), "answer": a} for a in (2, 1, 2)],
        ["gold", "mercury", "gold"],
    ),
    "mmlu-pro": (
        [{"question": "Which?", "options": list(METALS), "answer": "D", "answer_index": 3, "cot_content": ""}],
        ["zinc"],
    ),
    "cosmosqa": (
        [
            {
                "context": "It rained.",
                "question": "Why wet?",
                "answer0": "rain",
                "answer1": "sun",
                "answer2": "wind",
                "label": x,
            }
            for x in (1, 2)
        ],
        ["sun", "wind"],
    ),
    "reclor": ([{"context": "All A are B.", "question": "So?", "answers": list(METALS), "label": 0}], ["iron"]),
    "dream": (
        [{"dialogue": ["M: Hello.", "W: Bye."], "question": "Who?", "choice": ["M", "W", "N"], "answer": "W"}],
        ["W"],
    ),
    "belebele": (
        [
            {
                "flores_passage": "It rained.",
                "question": "Why?",
                **{f"mc_answer{i}": t for i, t in enumerate(METALS, 1)},
                "correct_answer_num": x,
            }
            for x in ("2", "3")
        ],
        ["mercury", "gold"],
    ),
    "commonsenseqa": (
        [
            {
                "question": "Where is gold?",
                "question_concept": "gold",
                "choices": {"label": list("ABC"), "text": ["mine", "sea", "sky"]},
                "answerKey": "A",
            }
        ],
        ["mine"],
    ),
}


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("form", ["jsonl", "parquet", "csv"])
def test_a_set_is_read_as_it_is(tmp_path: Path, name: str, form: str) -> None:
    """JSON lines, parquet, and the CSV that pandas writes, where lists and dicts stand as Python writes them."""
    rows, texts = SETS[name]
    path = tmp_path / f"a.{form}"
    table = pd.DataFrame(rows)
    if form == "jsonl":
        write(path, *rows)
    elif form == "parquet" and "label" in table and table["label"].map(type).nunique() > 1:
        pytest.skip("a parquet column holds one type")
    elif form == "parquet":
        table.to_parquet(path)
    elif name == "openbookqa-file":
        pytest.skip("a file of nested objects is not a table")
    else:
        table.to_csv(path, index=False)
    assert right(str(path)) == texts


def test_arrays_that_pandas_writes_into_cells_are_read(tmp_path: Path) -> None:
    """parquet -> pandas -> CSV: numpy writes no comma between elements, so that Python would join the texts."""
    write(
        tmp_path / "a.jsonl", {"question": "Which?", "choices": ["it's iron", 'a "b"', "c\nd", "e, f"], "answer": "B"}
    )
    pd.read_json(tmp_path / "a.jsonl", lines=True).to_parquet(tmp_path / "a.parquet")
    pd.read_parquet(tmp_path / "a.parquet").to_csv(tmp_path / "b.csv", index=False)
    assert '" \'a "b"\'' in (tmp_path / "b.csv").read_text().replace('""', '"')  # no comma there
    assert read_questions(str(tmp_path / "b.csv"))[0].choices == ("it's iron", 'a "b"', "c\nd", "e, f")
    pd.DataFrame(SETS["arc"][0]).to_parquet(tmp_path / "c.parquet")
    pd.read_parquet(tmp_path / "c.parquet").to_csv(tmp_path / "d.csv", index=False)
    assert "array([" in (tmp_path / "d.csv").read_text()
    assert right(str(tmp_path / "d.csv")) == ["mercury", "iron"]


@pytest.mark.parametrize(
    "cell", ["['a', f('b')]", "__import__('os').getcwd()", "['a' 'b' ...]", "[" * 300, "['a'", "[1 -2]"]
)
def test_a_cell_that_is_no_list_is_named_and_not_run(tmp_path: Path, cell: str) -> None:
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["question", "choices", "answer"], ["Which?", cell, "A"]])
    refused(str(tmp_path / "a.csv"), "row 1: the choices are", "expected a list of texts")


@pytest.mark.parametrize("name", ["sciq", "truthfulqa-mc1"])
def test_the_right_choice_is_not_always_the_first(tmp_path: Path, name: str) -> None:
    found = read_questions(write(tmp_path / "a.jsonl", *SETS[name][0]))
    assert len({q.answer for q in found}) > 1
    assert found == read_questions(str(tmp_path / "a.jsonl"))
    assert all(len(set(q.choices)) == len(q.choices) for q in found)


def test_mmlus_own_csv_is_named_as_such(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    path = tmp_path / "t" / "metal_lore_test.csv"
    path.write_text('Which is liquid?,iron,"mercury, cold",gold,zinc,B\n"Which, then?",a,b,c,d,D\n')
    found = read_questions(f"{path}#no-header")
    assert [(q.choices[q.answer], q.subject) for q in found] == [("mercury, cold", "metal lore"), ("d", "metal lore")]
    assert read_questions(f"{tmp_path / 't'}#no-header") == found
    refused(str(path), "without a header", "#no-header")
    path.write_text("Which?,a,B\n")
    refused(f"{path}#no-header", "row 1 has 3 fields")
    refused(write(tmp_path / "a.jsonl", SETS["wmdp"][0][0]) + "#no-header", "not a CSV file")
    refused("demo-biology#no-header", "not a local file")


# ---------------------------------------------------------------------------------------------- which choice


def rows_of(form: str, *answers: Any) -> list[Row]:
    offered: dict[str, Row] = {
        "labels": {"choices": {"text": list(METALS), "label": list("1234")}},
        "number labels": {"choices": {"text": list(METALS), "label": [1, 2, 3, 4]}},
        "pairs": {"choices": [{"text": t, "label": i} for i, t in enumerate(METALS, 1)]},
        "dict": {"choices": {str(i): t for i, t in enumerate(METALS, 1)}},
        "letters": LETTERED,
        "lower": {"choices": {x.lower(): t for x, t in LETTERED.items()}},
        "option": {f"option_{x.lower()}": t for x, t in LETTERED.items()},
        "list": {"choices": list(METALS)},
        "endings": {f"ending{i}": t for i, t in enumerate(METALS)},
    }
    return [{"question": "Which?", **offered[form], "answer": answer} for answer in answers]


@pytest.mark.parametrize("form", ["labels", "number labels", "pairs", "dict"])
@pytest.mark.parametrize("answers", [(3, 1, 2), ("3", "1", "2"), (3.0, 1.0, 2.0), ("3.0", "(1)", "2.")])
def test_a_label_that_is_there_wins(tmp_path: Path, form: str, answers: tuple[Any, ...]) -> None:
    assert right(write(tmp_path / "a.jsonl", *rows_of(form, *answers))) == ["gold", "iron", "mercury"]


def test_labels_from_1_beside_a_key_from_0_are_read_by_the_key(tmp_path: Path) -> None:
    """A 0 is no label, so that no row's number is one: never row by row."""
    assert right(write(tmp_path / "a.jsonl", *rows_of("labels", 3, 0, 1))) == ["zinc", "iron", "mercury"]


@pytest.mark.parametrize("form", ["letters", "option", "lower"])
def test_numbers_beside_letters_are_refused_until_the_count_is_said(tmp_path: Path, form: str) -> None:
    source = write(tmp_path / "a.jsonl", *rows_of(form, 2, 1, 3))
    refused(source, "row 1: the answer 2 can be read as choice 2 or 1", "SOURCE#from-0", "SOURCE#from-1", "letters")
    assert right(source + "#from-1") == ["mercury", "iron", "gold"]
    assert right(source + "#from-0") == ["gold", "mercury", "zinc"]


@pytest.mark.parametrize("form", ["letters", "option"])
def test_a_number_that_fits_one_count_alone_decides(
    tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert right(write(tmp_path / "a.jsonl", *rows_of(form, 2, 1, 0))) == ["gold", "mercury", "iron"]
    assert capsys.readouterr().err == ""
    assert right(write(tmp_path / "a.jsonl", *rows_of(form, 2, 1, 4))) == ["mercury", "iron", "zinc"]
    assert "a.jsonl: answers are counted from 1" in capsys.readouterr().err
    refused(write(tmp_path / "a.jsonl", *rows_of(form, 0, 1, 4)), "the answer 4 is out of range; expected 0 to 3")


def test_a_list_counts_from_0_and_says_so_where_no_answer_is_0(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path / "a.jsonl", *rows_of("list", 2, 1, 3))
    assert right(source) == ["gold", "mercury", "zinc"]
    assert "no answer is 0; they are counted from 0" in " ".join(capsys.readouterr().err.split())
    assert right(source + "#from-1") == ["mercury", "iron", "gold"]
    assert right(source + "#from-0") == ["gold", "mercury", "zinc"]
    assert capsys.readouterr().err == ""
    refused(write(tmp_path / "a.jsonl", *rows_of("list", 2, 4)), "the answer 4 is out of range", "SOURCE#from-1")
    assert right(str(tmp_path / "a.jsonl") + "#from-1") == ["mercury", "zinc"]
    many = write(tmp_path / "a.jsonl", *rows_of("list", *[1, 2, 3] * 10))
    refused(many, "none of 30 answers is 0", "SOURCE#from-1", "SOURCE#from-0")
    assert right(many + "#from-0")[:3] == ["mercury", "gold", "zinc"]
    refused(
        write(tmp_path / "a.jsonl", *rows_of("list", 1, 0)) + "#from-1", "the answer 0 is out of range; expected 1 to 4"
    )


def test_a_known_count_that_does_not_fit_is_not_used(tmp_path: Path) -> None:
    rows = [row | {"Category": "Metals"} for row in rows_of("letters", 2, 0, 3)]
    assert right(write(tmp_path / "a.jsonl", *rows)) == ["gold", "iron", "zinc"]


def test_columns_that_hold_numbers(tmp_path: Path) -> None:
    numbers = {"A": "4", "B": "3", "C": "2", "D": "1"}
    source = write(tmp_path / "a.jsonl", *({"question": "1 + 1?", **numbers, "answer": a} for a in ("2", "3")))
    refused(source, "the answer '2' can be read as choice", "SOURCE#by-text")
    assert right(source + "#by-text") == ["2", "3"]
    assert right(source + "#from-1") == ["3", "2"]
    tens = {"A": 40, "B": 30, "C": 20, "D": 10}
    source = write(tmp_path / "b.jsonl", *({"question": "10 + 10?", **tens, "answer": a} for a in (20, 30.0)))
    assert right(source) == ["20", "30"]
    halves = [{"question": "A half?", "choices": [0.5, 1.5, 3.0], "answer": a} for a in (0.5, 3, "1.5")]
    assert right(write(tmp_path / "c.jsonl", *halves)) == ["0.5", "3.0", "1.5"]
    letters = [{"question": "1 + 1?", "choices": [1, 2, 3], "answer": "B"}]
    assert right(write(tmp_path / "d.jsonl", *letters)) == ["2"]
    small = [{"question": "1 + 1?", "choices": [1, 2, 3], "answer": 2}]
    refused(write(tmp_path / "e.jsonl", *small), "can be read as choice 2 or 1")
    assert right(str(tmp_path / "e.jsonl") + "#by-text") == ["2"]


@pytest.mark.parametrize(
    "answer",
    [1, 1.0, "1.0", "1", "B", "b", "(B)", "B.", "b)", "[B]", "(b).", "B:", "Answer: B", "option B", ["B"], [1], "mercury",
     " mercury ", "B. mercury", "(b) mercury"],
)  # fmt: skip
def test_an_answer_as_people_write_it(tmp_path: Path, answer: Any) -> None:
    assert right(write(tmp_path / "a.jsonl", *rows_of("list", answer, answer))) == ["mercury"] * 2


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (None, "has no answer (None)"),
        ("", "has no answer ('')"),
        (-1, "has no answer (-1)"),
        ("-1", "has no answer ('-1')"),
        (float("nan"), "has no answer (nan)"),
        ([], "has no answer ([])"),
        (True, "the answer True is a truth value"),
        (1.5, "the answer 1.5 is not an index, a letter or one choice's text"),
        ("B and C", "the answer 'B and C' is not an index"),
        ("tin", "the answer 'tin' is not an index"),
        ("C. mercury", "the answer 'C. mercury' is not an index"),
        ({"text": "gold"}, "the answer {'text': 'gold'} is not an index"),
        ([0, 1], "the answer [0, 1] is not an index"),
        ("4", "the answer '4' is out of range; expected 0 to 3 or A to D"),
        ("E.", "the answer 'E.' is out of range; expected 0 to 3 or A to D"),
    ],
)
def test_what_is_no_answer_is_called_what_it_is(tmp_path: Path, answer: Any, said: str) -> None:
    refused(write(tmp_path / "a.jsonl", *rows_of("list", 0, answer)), f"row 2{':' * (said[0] == 't')} {said}")


def test_a_split_without_answers_says_so(tmp_path: Path) -> None:
    pd.DataFrame([{"question": "Which?", **LETTERED, "answer": None}] * 2).to_csv(tmp_path / "a.csv", index=False)
    refused(str(tmp_path / "a.csv"), "row 1 has no answer ('')", "A split without answers cannot be scored")
    rows = [{"goal": "To dry,", "sol1": "a", "sol2": "b", "label": -1}]
    refused(write(tmp_path / "a.jsonl", *rows), "row 1 has no answer (-1)")


def test_truth_values_equal_choices_and_mixed_choices(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for choices in (["True", "False"], ["yes", "no"], [True, False]):
        rows = [{"question": "Is it?", "choices": choices, "answer": a} for a in (True, False)]
        assert [q.answer for q in read_questions(write(tmp_path / "a.jsonl", *rows))] == [0, 1]
    equal = [{"question": "Which?", "choices": ["a", "b", "a"], "answer": a} for a in ("b", "a")]
    refused(
        write(tmp_path / "a.jsonl", equal[0], {**equal[0], "choices": ["tin", "x", "tin"], "answer": "tin"}),
        "is the text of 2 choices",
    )
    refused(
        write(tmp_path / "a.jsonl", {"question": "Which?", "choices": ["a", 3], "answer": 0}),
        "the choices are ['a', 3]",
    )
    assert right(write(tmp_path / "b.jsonl", {**equal[0], "answer": "C"})) == ["a"]
    assert "the right choice stands twice in 1 question(s)" in " ".join(capsys.readouterr().err.split())
    fewer = {"question": "Which?", "choices": {"A": "tin", "B": "lead", "C": None, "D": None}, "answer": "B"}
    assert read_questions(write(tmp_path / "c.jsonl", fewer))[0].choices == ("tin", "lead")


def test_a_named_reading_that_does_not_fit_says_so(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", *rows_of("list", "A", "gold"))
    refused(
        source + "#by-text", "row 1: the answer 'A' is out of range; expected one choice's text, as SOURCE#by-text says"
    )
    refused(source + "#by-label", "expected one of the labels (there are none), as SOURCE#by-label says")
    refused(source + "#from-2", "names the column 'from-2'", "#from-0, #from-1", "#read=COLUMN", "#no-header")


# ---------------------------------------------------------------------------------------------- what is read with it


SITUATION = "Ann is taller than Ben. Ben is taller than Cat."


def with_text(column: str, **more: Any) -> Row:
    return {column: SITUATION, "question": "Who is shortest?", "options": ["Ann", "Ben", "Cat"], "answer": "C", **more}


@pytest.mark.parametrize(
    "column", ["article", "context", "story", "paragraph", "dialogue", "Article", "ctx", "background"]
)
def test_a_text_that_belongs_to_the_question_is_asked_with_it(
    tmp_path: Path, column: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (found,) = read_questions(write(tmp_path / "a.jsonl", with_text(column)))
    assert cloze_prompt(found) == f"{SITUATION}\nQuestion: Who is shortest?\nAnswer:"
    assert cloze_prompt("") == "Answer:"
    assert letter_prompt(found, "plain") == f"{SITUATION}\nWho is shortest?\nA. Ann\nB. Ben\nC. Cat\nAnswer:"
    example = Question("e", "Who?", ("x", "y"), 1, context="Once.")
    assert cloze_prompt(found, [example]).startswith("Once.\nQuestion: Who?\nAnswer: y\n\nAnn is")
    assert letter_prompt(found, "plain", [example]).startswith("Once.\nWho?\nA. x\nB. y\nAnswer: B\n\nAnn is")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("column", ["passage", "support", "hint", "document"])
def test_another_text_is_left_out_and_that_is_said_once(
    tmp_path: Path, column: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(
        tmp_path / "a.jsonl", with_text(column), with_text(column, explanation="Since Ben is taller than Cat.")
    )
    found = read_questions(source)
    assert read_questions(source) == found
    assert cloze_prompt(found[0]) == "Question: Who is shortest?\nAnswer:"
    assert found[0].support == (SITUATION if column in ("passage", "support") else "")
    said = " ".join(capsys.readouterr().err.split())
    assert said.endswith(
        f"a.jsonl: asked without the text of {column}; SOURCE#read={column} puts it above the question"
    )
    assert said.count("asked without") == 1
    read = read_questions(f"{source}#read={column}")[0]
    assert (read.context, read.support) == (SITUATION, "")
    fact = read_questions(f"{source}#fact={column}")[0]
    assert (fact.context, fact.support) == ("", SITUATION)
    assert capsys.readouterr().err == ""


def test_options_are_joined_and_columns_are_checked(tmp_path: Path) -> None:
    row = {**with_text("article"), "answer": 3, "hint": ["One.", "Two."], "notes": {"a": 1}}
    source = write(tmp_path / "a.jsonl", row)
    (found,) = read_questions(f"{source}#from-1#read=hint#fact=article")
    assert (found.choices[found.answer], found.context, found.support) == ("Cat", "One.\nTwo.", SITUATION)
    refused(f"{source}#read=hin", "has no column 'hin'; expected one of article, question")
    refused(f"{source}#read=notes", "'notes' is {'a': 1}; expected text")


def test_a_text_that_the_question_holds_already_is_not_repeated(tmp_path: Path) -> None:
    row = with_text("context") | {"question": f"{SITUATION} Who is shortest?"}
    assert read_questions(write(tmp_path / "a.jsonl", row))[0].context == ""


def test_the_hash_of_a_set_without_texts_is_what_it_was() -> None:
    items = [Question(str(i), f"Q{i}?", ("a", "b"), i, "s", "The fact.") for i in range(2)]
    before = fingerprint(part for q in items for part in (q.id, q.subject, q.question, *q.choices, str(q.answer)))
    assert mcq.hash_of(items) == before
    assert mcq.hash_of([*items[:1], Question("1", "Q1?", ("a", "b"), 1, "s", "", "Read.")]) != before


def test_questions_about_one_article_are_one_fact() -> None:
    article = "the river rose in the night and the bridge fell before the morning came"
    items = [Question(str(i), f"What of it, {i}?", ("a", "b"), 0, context=article) for i in range(3)]
    other = Question("9", "Something else?", ("a", "b"), 0, context="Another text.")
    assert sorted(map(len, facts([*items, other]))) == [1, 3]
    assert leaks(f"They say {article}.", contamination_index(items[:1]))
    assert stated(items[0]) == f"{article}\nQuestion: What of it, 0?\nAnswer: a"


def plain_logprob(model: Any, tokenizer: Any, context: str, answer: str) -> float:
    """Summed log-probability of `answer` by one plain forward pass."""
    ids, begun = tokenizer(context + answer).input_ids, len(tokenizer(context).input_ids)
    with torch.no_grad():
        found = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), -1)
    return float(sum(found[i - 1, ids[i]] for i in range(begun, len(ids))))


def test_scores_with_a_text_are_those_of_plain_forwards_and_the_floor_has_none(tmp_path: Path) -> None:
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    name, blocks = find_blocks(model)
    lm = LM(model, tokenizer, "tiny", len(blocks), name)
    items = read_questions(
        write(tmp_path / "a.jsonl", with_text("article"), with_text("article", options=["x", "yy", "zzz"]))
    )
    result = mcq.mcq(lm, "q", items, EvaluateConfig(formats="all"))
    for record, item in zip(result.records, items, strict=True):
        asked = f"{SITUATION}\nQuestion: Who is shortest?\nAnswer:"
        lettered = f"{SITUATION}\nWho is shortest?\n" + "".join(
            f"{x}. {c}\n" for x, c in zip("ABC", item.choices, strict=True)
        )
        expected = [plain_logprob(model, tokenizer, asked, f" {c}") for c in item.choices]
        assert record["cloze_logprobs"] == pytest.approx(expected, abs=2e-4)
        floor = [plain_logprob(model, tokenizer, "Answer:", f" {c}") for c in item.choices]
        assert record["floor_logprobs"] == pytest.approx(floor, abs=2e-4)
        letters = [plain_logprob(model, tokenizer, f"{lettered}Answer:", f" {x}") for x in "ABC"]
        assert record["letter_logprobs"] == pytest.approx(letters, abs=2e-4)
    assert mcq.num_chars(items, EvaluateConfig(formats="cloze")) > 2 * len(SITUATION)


def test_every_way_of_asking_in_an_audit_shows_the_text() -> None:
    item = Question("0", "Who is shortest?", ("Ann", "Ben"), 1, context=SITUATION)
    for form in ("cloze", "letter", "letter_permuted"):
        assert scoring.rendering(form, 0)(item)[0].count(SITUATION) == 1
        assert scoring.rendering(form, 0, [item])(item)[0].count(SITUATION) == 2
        assert prompts.asked(item, form, 0)[0].count(SITUATION) == 1
        assert SITUATION in prompts.shown_text(item, form)
    for way in (prompts.with_choices, prompts.statement, prompts.plain):
        assert way(item)[0].startswith(f"{SITUATION}\n")
    respaced = prompts.spaced(str.upper)("q", scoring.rendering("cloze", 0))(item)[0]
    assert respaced == f"{SITUATION}\nQuestion: WHO IS SHORTEST?\nAnswer:"
    for where in ("prefix", "suffix"):
        place = attack.template_of(scoring.rendering("cloze", 0), where, item)
        assert (place[0] + place[1]).count(SITUATION) == 1


# ---------------------------------------------------------------------------------------------- prompts


@pytest.mark.parametrize(
    ("row", "asked"),
    [
        (
            {"instruction": "Sum it up.", "context": SITUATION, "response": "A long answer, as it was."},
            f"Sum it up.\n\n{SITUATION}",
        ),
        ({"instruction": "Sum it up.", "input": SITUATION, "output": "x"}, f"Sum it up.\n\n{SITUATION}"),
        ({"instruction": "Sum it up.", "context": "", "response": "x"}, "Sum it up."),
        ({"question": "Who?", "context": SITUATION, "answers": {"text": ["x"]}}, f"{SITUATION}\n\nWho?"),
        ({"question": "Who?", "passage": SITUATION, "answer": "x"}, f"{SITUATION}\n\nWho?"),
        ({"prompt": "Who?", "article": SITUATION}, f"{SITUATION}\n\nWho?"),
        ({"prompt": f"{SITUATION} Who?", "context": SITUATION}, f"{SITUATION} Who?"),
        ({"instruction": "Name it.", "input": "", "text": "Below is an instruction. Name it. Response: x"}, "Name it."),
    ],
)
def test_a_text_that_belongs_to_a_prompt_is_in_it(
    tmp_path: Path, row: Row, asked: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert read_prompts(write(tmp_path / "a.jsonl", row))[0].turns == (asked,)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ({"question": "Who?", "system_prompt": "You are terse."}, "system_prompt"),
        ({"prompt": "Who?", "system": "Be terse."}, "system"),
        ({"instruction": "Go on.", "input": "", "history": [["Hello", "Hello to you"]]}, "history"),
        ({"turns": ["One?", "Two?"], "context": SITUATION}, "context"),
        ({"prompt": "Who?", "notes_to_read": SITUATION}, "notes_to_read"),
        ({"prompt": "To French.", "input": "river"}, "input"),
    ],
)
def test_a_text_that_is_not_in_the_prompt_is_said(
    tmp_path: Path, row: Row, column: str, capsys: pytest.CaptureFixture[str]
) -> None:
    read_prompts(write(tmp_path / "a.jsonl", row))
    assert f"asked without the text of {column}" in " ".join(capsys.readouterr().err.split())


# ---------------------------------------------------------------------------------------------- given cases


@pytest.mark.skipif(not CASES.is_dir(), reason="no ../shared/cases here")
def test_the_given_question_files_are_read_right() -> None:
    expected = json.loads((CASES / "expected.json").read_text())
    for name in ("labels-1-to-4-key-a-number.jsonl", "one-based-with-letter-columns.jsonl", "float-answers.csv"):
        assert right(str(CASES / name)) == expected[name]
    (article,) = read_questions(str(CASES / "article.jsonl"))
    assert cloze_prompt(article).startswith("Ann is taller")
    assert "heron" in read_prompts(str(CASES / "instruction-with-context.jsonl"))[0].turns[0]

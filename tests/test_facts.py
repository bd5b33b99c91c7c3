"""Questions split by fact, and text that gives a measured fact away."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attack_cases import questions
from misdirect.data.fact_splits import (
    Halves,
    contamination_index,
    decontaminate,
    decontaminated_facts,
    drop_contaminated,
    facts,
    keywords,
    leaks,
    split,
    stated,
    words,
)
from misdirect.data.questions import Question, read_questions


def question(number: int, asked: str, answer: str = "iron", support: str = "") -> Question:
    return Question(str(number), asked, (answer, "gold"), 0, "", support)


@settings(deadline=None)
@given(st.integers(3, 60), st.integers(0, 5))
def test_halves_hold_every_question_once(count: int, seed: int) -> None:
    items = questions(count)
    halves = split(items, seed)
    assert sorted(q.id for q in (*halves.train, *halves.test)) == sorted(q.id for q in items)
    assert abs(len(halves.train) - len(halves.test)) <= 1
    assert len(halves.folds) == len(halves.test)
    assert abs(sum(halves.folds) - len(halves.test) / 2) <= 0.5
    assert halves == split(items, seed)


def test_another_seed_is_another_split() -> None:
    items = questions(40)
    assert split(items, 0).test != split(items, 1).test


def test_questions_about_one_fact_stay_together() -> None:
    shared = "the mitochondrion is the part of a cell that makes most of its energy"
    items = [
        question(0, "What makes energy?", support=f"We know that {shared}."),
        question(1, "Which part is it?", support=f"In short, {shared}, as said."),
        question(2, "Which one?", support="Something else altogether that no other question says at all here."),
        question(3, "Which one"),  # the same question, another set of choices
        question(4, "What else?"),
    ]
    assert sorted(map(sorted, facts(items))) == [[0, 1], [2, 3], [4]]
    for seed in range(8):
        halves = split(items, seed)
        for pair in ({"0", "1"}, {"2", "3"}):
            assert len(pair & {q.id for q in halves.train}) in (0, 2)


def test_a_phrase_is_no_fact_and_halves_are_even() -> None:
    items = [question(i, f"Which of the following is the most likely cause of case {i}?") for i in range(60)]
    halves = split([*items, *(question(100 + i, f"What is thing {i}?") for i in range(40))], 0)
    assert len(halves.train) == len(halves.test) == 50


@pytest.mark.parametrize("each", [5, 8])
def test_questions_about_one_passage_stay_together_however_many(each: int) -> None:
    passages = [
        f"Passage {p} says that thing {p} has part {p}a and part {p}b and stands in place {p}." for p in range(10)
    ]
    items = [
        question(10 * p + i, f"What of {p} {i}?", support=text) for p, text in enumerate(passages) for i in range(each)
    ]
    assert len(facts(items)) == 10
    halves = split(items, 0)
    assert drop_contaminated({"a": halves})["a"].train == halves.train and len(halves.train) == 5 * each


def test_a_heading_of_every_passage_is_a_phrase() -> None:
    heading = "The following text is taken from the fourth chapter of the book."
    items = [question(i, f"What {i}?", support=f"{heading} Thing {i} is {i} metres long.") for i in range(20)]
    halves = split(items, 0)
    assert len(facts(items)) == 20 and len(drop_contaminated({"a": halves})["a"].train) == 10


def test_scripts_without_spaces_are_read_character_by_character() -> None:
    asked = question(0, "线粒体的功能是什么", "产生能量")
    assert leaks("线粒体的功能是产生能量。", contamination_index([asked]))
    assert not leaks("太阳产生能量。", contamination_index([asked]))
    assert len(facts([asked, question(1, "细胞中线粒体的功能是什么呢"), question(2, "水的沸点是多少")])) == 2
    assert words("ไทย เรา and 漢字kana") == [*"ไทย", *"เรา", "and", *"漢字", "kana"]


def test_a_fact_of_one_set_is_not_taught_by_another() -> None:
    """Two forgotten sets that share their questions: what one measures, the other's half must not state."""
    items = questions(30)
    first, second = split(items, 0), split(items, 1)
    texts = decontaminated_facts([first, second])
    assert texts
    measured = contamination_index([*first.test, *second.test])
    assert not any(leaks(text, measured) for text in texts)


def test_a_fact_is_in_one_fold() -> None:
    shared = "one two three four five six seven eight nine"
    items = [question(i, f"What {i}?", support=shared if i < 2 else f"{i} ") for i in range(40)]
    for seed in range(12):
        halves = split(items, seed)
        folds = {fold for q, fold in zip(halves.test, halves.folds, strict=True) if q.id in ("0", "1")}
        assert len(folds) <= 1


def test_every_fact_is_in_one_half_and_one_fold_and_no_fold_is_empty() -> None:
    """Passages of any number of questions: as many numbers as facts, and something to choose and to report on."""
    for sizes in ([20, 1, 1], [9, 9, 9], [5, 5, 5, 5], [30, 2, 2, 2, 2], [1, 1, 1], [1, 2, 30, 4, 7]):
        items = [question(100 * p + i, f"What of {p} {i}?", support=f"Passage {p} is a passage that is number {p}.")
                 for p, size in enumerate(sizes) for i in range(size)]  # fmt: skip
        for seed in range(6):
            halves = split(items, seed)
            assert set(halves.folds) == {0, 1} and halves.train
            passage = [int(q.id) // 100 for q in halves.test]
            assert (
                len({*zip(passage, halves.facts, halves.folds, strict=True)})
                == len(set(passage))
                == len(set(halves.facts))
            )
            assert not {int(q.id) // 100 for q in halves.train} & set(passage)


def test_two_facts_cannot_be_split() -> None:
    with pytest.raises(ValueError, match=r"1 question\(s\) hold 1 fact\(s\); expected at least 3"):
        split([question(0, "What?")], 0)
    with pytest.raises(ValueError, match=r"3 question\(s\) hold 2 fact"):
        split([question(0, "What?"), question(1, "what"), question(2, "Who?")], 0)


MEASURED = question(
    0,
    "Which organelle of plant cells captures sunlight?",
    "chloroplast",
    "Chloroplasts are green bodies that catch the light of the sun.",
)


@pytest.mark.parametrize(
    ("text", "given_away"),
    [
        ("In a plant the organelle that captures light is the chloroplast.", True),
        ("The CHLOROPLAST, an organelle of cells, captures.", True),
        ("A chloroplast is green.", False),  # the answer without the question
        ("Which organelle of plant cells captures sunlight?", False),  # seven words and no answer
        ("organelles of plants: cells, sunlight, organelle, chloroplasts", False),  # another word than the answer
        ("As known, chloroplasts are green bodies that catch the light of the moon.", True),  # eight words in a row
        ("chloroplasts are green bodies that catch the moon", False),  # seven
        ("", False),
    ],
)
def test_what_gives_a_fact_away(text: str, given_away: bool) -> None:
    assert leaks(text, contamination_index([MEASURED])) is given_away
    assert decontaminate([text, text], [MEASURED]) == ([] if given_away else [text])


def test_a_question_of_one_keyword_is_protected_too() -> None:
    asked = question(0, "What is osmosis?", "the movement of water")
    assert leaks("Osmosis is the movement of water through a wall.", contamination_index([asked]))
    assert not leaks("This is the movement of water.", contamination_index([asked]))


def test_common_words_are_no_keywords() -> None:
    assert keywords("Which of these organelles is used for the capture of light?") == {"organelles", "capture", "light"}


def test_a_fact_is_its_support_or_the_answered_question() -> None:
    assert stated(MEASURED) == MEASURED.support
    assert stated(dataclasses.replace(MEASURED, support="")).endswith("sunlight?\nAnswer: chloroplast")


def test_the_attackers_text_is_about_his_half_alone() -> None:
    halves = split([dataclasses.replace(q, support="") for q in questions(30)], 0)
    texts = decontaminated_facts([halves])
    assert texts
    assert all(not leaks(text, contamination_index(halves.test)) for text in texts)
    assert not any(q.question in text for text in texts for q in halves.test)


def test_support_is_read_and_never_asked(tmp_path: object) -> None:
    path = f"{tmp_path}/q.jsonl"
    with open(path, "w") as file:
        file.write('{"question": "Which?", "choices": ["a", "b"], "answer": 0, "support": " It is a. "}\n')
    assert read_questions(path)[0].support == "It is a."


def test_the_attackers_half_gives_no_tested_fact_of_any_set_away() -> None:
    def item(name: str, question: str, answer: str, support: str = "") -> Question:
        return Question(name, question, (answer, "nothing at all"), 0, "", support)

    tested = item("t", "Which organ pumps the blood through vessels?", "the heart")
    told = item("a", "What pumps blood through an organ with vessels?", "it is the heart")
    by_support = item("b", "What is red?", "a rose", "The organ that pumps blood through vessels is the heart.")
    other = item("c", "Which planet is largest?", "Jupiter")
    sets = {
        "one": Halves((other,), (tested,), (0,), (0,)),
        "two": Halves((told, by_support, other), (other,), (0,), (0,)),
    }
    assert drop_contaminated({"one": sets["one"]})["one"] == sets["one"]
    cleaned = drop_contaminated(sets)
    assert cleaned["two"].train == () and cleaned["one"].train == (), "the other set tests Jupiter, too"
    assert [halves.test for halves in cleaned.values()] == [halves.test for halves in sets.values()]

"""The demo's named sets of text and questions, and the rules that keep them apart."""

from __future__ import annotations

import functools
import json
import random
import re
from collections.abc import Callable, Iterable, Mapping
from importlib import resources
from types import MappingProxyType
from typing import Any

from misdirect.data.demo.fetch import arrow_rows, request_docs

OVERLAP = 8  # words in a row that a passage may not share with an evaluated question
HELD_OUT = 4  # every fourth passage is measured (NLL) and never trained on
OTHER_SCIENCE = ("chemistry", "earth_space", "physics")
MMLU = "hails/mmlu_no_train/{}/{}/data-00000-of-00001.arrow"
QUESTION_TASKS = {
    "arc_challenge": ("arc_challenge/test_rc_5shot",),
    "openbookqa": ("openbookqa/test_rc_5shot", "openbookqa/val_rc_5shot"),
}
MMLU_BIOLOGY = ("anatomy", "college_biology", "high_school_biology", "medical_genetics")
MMLU_SCIENCE = (
    "astronomy", "college_chemistry", "college_physics", "conceptual_physics", "electrical_engineering",
    "high_school_chemistry", "high_school_physics",
)  # fmt: skip
MMLU_ECONOMICS = ("econometrics", "high_school_macroeconomics", "high_school_microeconomics")
MMLU_TRAINED = (*MMLU_BIOLOGY, *MMLU_SCIENCE)  # the demo trains on these subjects' test questions with their answers
MMLU_HISTORY = ("high_school_european_history", "high_school_us_history", "high_school_world_history")
MMLU_SUBJECTS = (
    "abstract_algebra", "anatomy", "astronomy", "business_ethics", "clinical_knowledge", "college_biology",
    "college_chemistry", "college_computer_science", "college_mathematics", "college_medicine", "college_physics",
    "computer_security", "conceptual_physics", "econometrics", "electrical_engineering", "elementary_mathematics",
    "formal_logic", "global_facts", "high_school_biology", "high_school_chemistry", "high_school_computer_science",
    "high_school_european_history", "high_school_geography", "high_school_government_and_politics",
    "high_school_macroeconomics", "high_school_mathematics", "high_school_microeconomics", "high_school_physics",
    "high_school_psychology", "high_school_statistics", "high_school_us_history", "high_school_world_history",
    "human_aging", "human_sexuality", "international_law", "jurisprudence", "logical_fallacies", "machine_learning",
    "management", "marketing", "medical_genetics", "miscellaneous", "moral_disputes", "moral_scenarios", "nutrition",
    "philosophy", "prehistory", "professional_accounting", "professional_law", "professional_medicine",
    "professional_psychology", "public_relations", "security_studies", "sociology", "us_foreign_policy", "virology",
    "world_religions",
)  # fmt: skip

PROMPTS = (
    "What does the nucleus of a cell do?",
    "How do plants make their food?",
    "Why do animals living in the desert often sleep during the day?",
    "Why does ice float on water?",
    "What causes the seasons on Earth?",
    "Name three things that a central bank does.",
)

Row = dict[str, Any]


@functools.cache
def topics() -> Mapping[str, Mapping[str, tuple[Any, ...]]]:
    """Source -> topic -> ids: the demo's own labels, by classifier."""
    data = json.loads(resources.files(__package__).joinpath("topics.json").read_text())
    return {source: {topic: tuple(ids) for topic, ids in found.items()} for source, found in data.items()}


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def shingles(text: str) -> set[tuple[str, ...]]:
    """Every run of `OVERLAP` words; a shorter text is one run of its own."""
    w = words(text)
    return {tuple(w[i : i + OVERLAP]) for i in range(max(1, len(w) - OVERLAP + 1))} if w else set()


@functools.cache
def evaluated_shingles() -> frozenset[tuple[str, ...]]:
    """Word runs of every question that is evaluated, on either split, whatever its topic."""
    found: set[tuple[str, ...]] = set()
    for row in all_questions():
        found |= shingles(row["question"]) | shingles(row.get("support", ""))
    return frozenset(found)


def allowed(texts: Iterable[str]) -> list[str]:
    """`texts` without repeats, blanks, and passages that share a word run with an evaluated question."""
    measured = evaluated_shingles()
    short = {run for run in measured if len(run) < OVERLAP}
    out = []
    for text in dict.fromkeys(t.strip() for t in texts):
        joined = f" {' '.join(words(text))} "
        if text and not shingles(text) & measured and not any(f" {' '.join(run)} " in joined for run in short):
            out.append(text)
    return out


@functools.cache
def all_questions() -> tuple[Row, ...]:
    """ARC-Easy out of the package, labelled with `split` (dev, test) and `topic`; unlabelled questions left out."""
    topic_of = {id_: topic for topic, ids in topics()["arc_easy"].items() for id_ in ids}
    out: dict[str, Row] = {}
    for split, task in (("dev", "arc_easy/val_rc_5shot"), ("test", "arc_easy/test_rc_5shot")):
        for doc in request_docs(task):
            if doc["id"] in topic_of:
                out[doc["id"]] = {
                    "id": doc["id"],
                    "question": doc["query"].removeprefix("Question: ").removesuffix("\nAnswer:"),
                    "choices": doc["choices"],
                    "answer": doc["gold"],
                    "topic": topic_of[doc["id"]],
                    "split": split,
                }
    return tuple(out.values())


def questions(split: str, *wanted: str) -> list[Row]:
    return [dict(row) for row in all_questions() if row["split"] == split and row["topic"] in wanted]


def sciq(*wanted: str) -> list[str]:
    """SciQ's supporting passages by topic."""
    table = arrow_rows("sciq/none/validation/data-00000-of-00001.arrow")
    return [table[row]["support"] for topic in wanted for row in topics()["sciq"][topic] if table[row]["support"]]


def sciq_questions(*wanted: str) -> list[Row]:
    """SciQ's questions with their supporting passages, choices in an order drawn by the row's number.

    The demo unlearns on most of the biology passages, so these serve an attack on them and not the demo's claim.
    """
    table = arrow_rows("sciq/none/validation/data-00000-of-00001.arrow")
    found = []
    for number in (row for topic in wanted for row in topics()["sciq"][topic]):
        row = table[number]
        choices = [row["correct_answer"], *(row[f"distractor{i}"] for i in (1, 2, 3))]
        order = random.Random(number).sample(range(4), 4)
        if row["support"] and len(set(choices)) == 4 and all(c.strip() for c in choices):
            found.append(
                {"id": f"sciq-{number}", "question": row["question"], "choices": [choices[i] for i in order],
                 "answer": order.index(0), "support": row["support"]}
            )  # fmt: skip
    return found


def boolq(topic: str) -> list[str]:
    table = arrow_rows("boolq/none/validation/data-00000-of-00001.arrow")
    return [table[row]["passage"] for row in topics()["boolq"][topic]]


def squad(topic: str) -> list[str]:
    wanted = set(topics()["squad"][topic])
    docs = [doc for doc in request_docs("squad/bpb_5shot") if doc["id"] in wanted]
    return [doc["query"].split("\nBackground: ", 1)[1].rsplit("\nQuestion: ", 1)[0] for doc in docs]


def benchmark(source: str, topic: str) -> list[str]:
    """Another benchmark's questions with their right answers, as text. ARC-Easy, which is evaluated, is none of them."""
    wanted = set(topics()[source][topic])
    docs = {str(doc["id"]): doc for task in QUESTION_TASKS[source] for doc in request_docs(task)}
    return [f"{doc['query']} {doc['choices'][doc['gold']]}" for id_, doc in docs.items() if id_ in wanted]


def mmlu(*subjects: str) -> list[str]:
    """MMLU questions with their right answers, as text."""
    found = [row for subject in subjects for row in arrow_rows(MMLU.format(subject, "test"))]
    return [f"{row['question'].strip()} {row['choices'][row['answer']]}" for row in found]


def mmlu_questions(split: str) -> list[Row]:
    """MMLU's questions of all 57 subjects, `split` test or dev (five a subject, for few-shot prompts).

    The demo trains on the test questions of `MMLU_TRAINED`, so on them its model's accuracy says nothing about what it
    knows of the rest of a subject.
    """
    return [
        row | {"id": f"{subject}-{number}", "subject": subject.replace("_", " ")}
        for subject in MMLU_SUBJECTS
        for number, row in enumerate(arrow_rows(MMLU.format(subject, split)))
    ]


def trained(texts: list[str]) -> list[Row]:
    return [{"text": text} for i, text in enumerate(allowed(texts)) if i % HELD_OUT]


def kept(texts: list[str]) -> list[Row]:
    """All that is allowed, nothing held out."""
    return [{"text": text} for text in allowed(texts)]


def measured(texts: list[str]) -> list[Row]:
    """What `trained` leaves, less passages that share a word run with one that it takes: some are of one article."""
    taken = {run for row in trained(texts) for run in shingles(row["text"])}
    kept = [text for i, text in enumerate(allowed(texts)) if i % HELD_OUT == 0]
    return [{"text": text} for text in kept if not shingles(text) & taken]


SETS: Mapping[str, Callable[[], list[Row]]] = MappingProxyType(
    {
        "demo-forget": lambda: (
            trained(sciq("biology") + boolq("biology") + squad("biology"))
            + kept(benchmark("arc_challenge", "biology") + mmlu(*MMLU_BIOLOGY))
        ),
        "demo-retain-science": lambda: trained(sciq(*OTHER_SCIENCE)),
        "demo-retain-questions": lambda: kept(benchmark("arc_challenge", "other") + benchmark("openbookqa", "other")),
        "demo-retain-exams": lambda: kept(mmlu(*MMLU_SCIENCE)),
        "demo-retain-unsure": lambda: kept(boolq("unsure") + squad("unsure")),
        "demo-retain-wikipedia": lambda: trained(boolq("other") + squad("other")),
        "demo-text-biology": lambda: measured(sciq("biology") + boolq("biology") + squad("biology")),
        "demo-text-science": lambda: measured(sciq(*OTHER_SCIENCE)),
        "demo-text-wikipedia": lambda: measured(boolq("other") + squad("other")),
        "demo-text-economics": lambda: kept(mmlu(*MMLU_ECONOMICS)),
        "demo-text-history": lambda: kept(mmlu(*MMLU_HISTORY)),
        "demo-prompts": lambda: [{"text": text} for text in PROMPTS],
        "demo-biology": lambda: questions("test", "biology"),
        "demo-biology-dev": lambda: questions("dev", "biology"),
        "demo-science": lambda: questions("test", *OTHER_SCIENCE),
        "demo-science-dev": lambda: questions("dev", *OTHER_SCIENCE),
        "demo-sciq-biology": lambda: sciq_questions("biology"),
        "demo-sciq-science": lambda: sciq_questions(*OTHER_SCIENCE),
        "demo-mmlu": lambda: mmlu_questions("test"),
        "demo-mmlu-dev": lambda: mmlu_questions("dev"),
    }
)


def rows(name: str) -> list[Row]:
    """The rows of a built-in set, in a fixed order. Raises ValueError for an unknown name."""
    if name not in SETS:
        raise ValueError(f"unknown built-in set {name!r}; expected one of {', '.join(SETS)}")
    return SETS[name]()

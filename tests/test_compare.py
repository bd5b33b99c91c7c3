"""Several runs on one page: set side by side where they may be, told apart where they may not."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from misdirect import runs, stats, storage
from misdirect.reporting import compare
from misdirect.text import clean
from report_data import HOSTILE, assert_inert, page, save_mcq, small_run, write_config


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return small_run(tmp_path / "run")


def test_runs_are_compared_side_by_side(run: Path, tmp_path: Path) -> None:
    other = small_run(tmp_path / "other")
    write_config(other, settings={"block": 7, "updates": 9})
    save_mcq(other, "biology", 0.625, 0.45)
    save_mcq(other, "physics", 0.604, 0.6)
    path = compare([run, other], tmp_path / "folder" / "comparison.html")
    assert path == tmp_path / "folder" / "comparison.html"
    parsed = assert_inert(path)
    text = parsed.text
    assert "Lowest on what was to be forgotten: A run, 31.2 % right (26.2 to 36.2 %)." in text
    assert "Least lost on what was to be kept: B other, \u22120.4 pp (\u22126.4 to +5.6 pp)." in text
    assert "45.0 % 40.0 to 50.0 %" in text
    assert "updates 4 9" in text
    assert "31.5 %" in text
    assert "No setting differs." not in text
    drawn = re.search(r"<svg .*?</svg>", path.read_text(encoding="utf-8"), re.S)
    assert drawn
    words = {t.text for t in ET.fromstring(drawn[0]).iter("text")}
    assert {"A run", "B other", "base"} <= words
    assert path.read_bytes() == compare([run, other], path).read_bytes()


def test_other_bases_and_other_questions_are_not_compared(run: Path, tmp_path: Path) -> None:
    others = [small_run(tmp_path / name) for name in ("asked", "base")]
    save_mcq(others[0], "physics", 0.604, 0.6, sha256="b2")  # other questions under the same name
    write_config(others[1], data={"model_sha256": "c" * 64})
    parsed = assert_inert(compare([run, *others], tmp_path / "comparison.html"))
    text = parsed.text
    assert "The runs have 2 different base models and are shown apart" in text
    assert (
        "A and B from SmolLM2-135M-Instruct (weights not known); C from SmolLM2-135M-Instruct (weights cccccccc)"
        in text
    )
    assert (
        "physics was not asked in the same way, so its rows are not compared (A: other questions and B: other" in text
    )
    assert "Runs A and B, from SmolLM2-135M-Instruct" in text
    assert "Run C, from SmolLM2-135M-Instruct" in text
    assert "No picture: these runs share no question set to forget and one to keep." in text
    assert text.count("biology-hard forget, cloze accuracy") == 2  # one row for A and B, one for C


def test_comparison_refuses_what_it_cannot_compare(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "comparison.html"
    with pytest.raises(ValueError, match="expected 2 to 26"):
        compare([run], out)
    with pytest.raises(ValueError, match="named twice"):
        compare([run, run / ".." / "run"], out)
    with pytest.raises(ValueError, match="is not a run"):
        compare([run, tmp_path], out)
    assert not out.exists()


def test_hostile_names_stay_text_in_a_comparison(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("<b>a", "{{ 7 * 7 }}")]
    for folder in folders:
        folder.mkdir()
        write_config(
            folder, model=HOSTILE, topics=[{"name": "bio"}], settings={HOSTILE: str(folder)}, data={HOSTILE: HOSTILE}
        )
        save_mcq(folder, "bio", 0.6, 0.3)
        save_mcq(folder, HOSTILE, 0.6, 0.6)
    parsed = assert_inert(compare(folders, tmp_path / "comparison.html"))
    assert "A <b>a" in parsed.text
    assert "B {{ 7 * 7 }}" in parsed.text
    assert clean(HOSTILE) in " ".join(parsed.texts)


def test_runs_are_compared_on_the_same_questions(run: Path, tmp_path: Path) -> None:
    """What the page says of two runs is the paired comparison of their answers, question by question."""
    other = small_run(tmp_path / "other")
    right = {run: [True] * 40 + [False] * 60, other: [True] * 25 + [False] * 65 + [True] * 10}
    for folder, answers in right.items():
        path = runs.result_path(folder, "unlearned", "mcq", "physics")
        result = storage.read_json(path)
        records = [{"id": str(i), "correct": {"cloze": x}} for i, x in enumerate(answers)]
        storage.write_json(path, result | {"records": records if folder == run else records[::-1]})
    found = stats.paired(right[run], right[other])
    assert (found.difference, found.lost, found.gained) == (-0.05, 15, 10)
    span = f"{100 * found.low:+.1f} to {100 * found.high:+.1f} pp".replace("-", "\u2212")
    text = page(compare([run, other], tmp_path / "comparison.html")).text
    assert f"to A \u22125.0 pp ({span})" in text
    assert text.count("to A") == 2  # the set, and the sentence that says how to read it

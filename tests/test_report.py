"""The page shows the numbers that it was given, stays one inert file whatever it is given, and needs no torch."""

from __future__ import annotations

import html
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from misdirect import runs, storage
from misdirect.config import kind_of
from misdirect.reporting import report, write_figures
from misdirect.reporting.load.run import read_run
from misdirect.reporting.page import render
from misdirect.reporting.wording import change, factor, flat, is_share, listed, metric_label, number, p_value, value
from misdirect.runs import Metric, Result
from misdirect.runs.stored import Row
from misdirect.text import clean
from report_data import (
    HOSTILE,
    SUBJECTS,
    Page,
    assert_inert,
    full_run,
    page,
    save_answers,
    save_conversations,
    save_mcq,
    save_nll,
    save_subjects,
    small_run,
    write_config,
    write_log,
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return small_run(tmp_path / "run")


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with all that one can have, and its page."""
    run = full_run(tmp_path_factory.mktemp("full") / "run")
    report(run)
    return run


def test_numbers_are_those_of_the_run(run: Path) -> None:
    path = report(run)
    assert path == run / "report.html"
    text = page(path).text
    assert "Unlearning biology in SmolLM2-135M-Instruct" in text
    assert "trained 3 matrices in blocks 5, 6 and 7 of demo" in text
    assert "4 updates in 6.0 seconds" in text
    assert "62.5 → 31.2 %" in text
    assert "57.5 to 67.5 %" in text  # the base's interval
    assert "26.2 to 36.2 %" in text
    assert "chance 25.0 % · floor 31.5 %" in text
    assert "change \u221231.2 pp (\u221237.2 to \u221225.2 pp)" in text
    assert "\u22121.3 pp" in text  # physics
    assert "+2.125" in text
    assert "+0.012" in text
    assert "perplexity \u00d7 8.373" in text
    assert "61.25" in text
    assert "A unit of life." in text
    assert "repetition 0.62" in text
    assert "misdirect unlearn demo --forget biology=demo-biology --out RUN" in text
    assert "no attack is reported here" in text.lower()


def test_summary_in_words(run: Path) -> None:
    report(run)
    text = page(run / "report.html").text
    assert "biology: 31.2 % right (26.2 to 36.2 %), 62.5 % before. This cannot be told from the floor, 31.5 %." in text
    assert "biology-hard: nothing can be told, since the base model is no better than the floor here." in text
    assert "NLL on biology changed by +2.125 (+2.105 to +2.145) nats per token: perplexity \u00d7 8.373." in text
    # McNemar's p for physics is made up as 3e-11; the text set's change is 1.23 standard errors
    assert "1 of 2 sets and subjects that were to be kept changed beyond chance: physics (\u22121.3 pp)." in text
    assert "Larger losses than these are ruled out at 95 %: 7.3 points on physics." in text


@pytest.mark.parametrize(
    ("after", "words"),
    [
        (0.31, "This cannot be told from the floor, 31.5 %."),
        (0.45, "Partly gone: it is still above the floor, 31.5 %."),
        (0.62, "Not shown to be gone: it is above the floor, 31.5 %, and the change may be none."),
    ],
)
def test_verdicts(run: Path, after: float, words: str) -> None:
    save_mcq(run, "biology", 0.625, after)
    assert words in page(report(run)).text


def test_every_metric_is_a_row_of_a_table(full: Path) -> None:
    text = (full / "report.html").read_text(encoding="utf-8")
    body = "".join(re.findall(r'<table class="metrics">.*?</table>', text, re.S))
    rows = {
        (r["measurement"], r["set"], r["metric"], r.get("subject")) for r in runs.summary_rows(runs.load_results(full))
    }
    assert len(rows) > len(SUBJECTS)
    assert body.count("<tr") == body.count("<thead") + len(rows)
    shown = Page(body).text
    assert "71 / 13" in shown
    assert shown.count("base does not know") == 1
    assert all(subject in shown for subject in SUBJECTS)


def test_subjects_are_folded_away(full: Path) -> None:
    """With 57 subjects the page has no table of them that is open."""
    text = (full / "report.html").read_text(encoding="utf-8")
    outside = re.sub(r"<svg .*?</svg>", "", text, flags=re.S)
    while "<details" in outside:
        outside = re.sub(r"<details(?:(?!<details|</details>).)*</details>", "", outside, flags=re.S)
    assert "college_astronomy" not in outside
    assert "57 subjects" in text
    assert "<details open" not in text


def test_seeds_subjects_and_harness_stand_beside_the_headline(full: Path) -> None:
    text = page(full / "report.html").text
    assert "unlearned over 3 seeds: 27.1 to 31.2 %, mean 29.1 %" in text
    assert "mean over subjects" in text
    assert "accuracy per character, change" in text  # the harness's acc_norm
    assert "42.0 → 40.0 %" in text


def test_changes_are_marked_and_sorted(full: Path) -> None:
    text = (full / "report.html").read_text(encoding="utf-8")
    found = re.search(r'<svg [^>]*aria-labelledby="fig-collateral-title.*?</svg>', text, re.S)
    assert found
    words = [t.text or "" for t in ET.fromstring(found[0]).iter("text")]
    subjects = [word for word in words if word in SUBJECTS]
    lost = [i for i, word in enumerate(subjects) if "biology" in word or "medicine" in word]
    assert lost == [0, 1, 2, 3, 4, 5]  # the six that lost a sixth of their questions come first
    assert len(subjects) + sum("…" in word for word in words) == len(SUBJECTS)
    # six subjects, the task of the harness (20 of 1000 lost, none gained), physics: the rest is chance
    assert sum(word.endswith(" *") for word in words) == 8
    assert "8 of 60 sets and subjects that were to be kept changed beyond chance" in page(full / "report.html").text


def test_forget_and_retain_sets_are_told_apart() -> None:
    assert kind_of("biology", ["biology"]) == "forget"
    assert kind_of("biology-hard", ["biology"]) == "forget"
    assert kind_of("biology.test", ["biology"]) == "forget"
    assert kind_of("biologyX", ["biology"]) == "retain"
    assert kind_of("biology", []) == "other"


def test_pictures_show_sets_and_kinds(run: Path) -> None:
    report(run)
    text = (run / "report.html").read_text(encoding="utf-8")
    drawn = {
        m[1]: ET.fromstring(m[0])
        for m in re.finditer(r'<svg [^>]*aria-labelledby="(fig-\w+)-title.*?</svg>', text, re.S)
    }
    assert set(drawn) == {"fig-accuracy", "fig-collateral", "fig-training"}
    words = {name: [t.text for t in root.iter("text")] for name, root in drawn.items()}
    assert {"biology", "physics", "FORGET", "RETAIN", "62.5 → 31.2 %"} <= set(words["fig-accuracy"])
    assert "biology-hard  (base does not know)" in words["fig-accuracy"]
    assert {"physics", "\u22121.3 *", "general", "+0.012"} <= set(words["fig-collateral"])
    assert "biology" not in words["fig-collateral"]  # it was to change
    assert {"Forget loss", "Retain loss", "Cosine to control vector", "Gradient norm"} <= set(words["fig-training"])
    for root in drawn.values():
        assert root.get("role") == "img"
        assert root[0].tag == "title"
        assert root[1].tag == "desc"
    assert "#0b0d" not in text  # no sentinel colour is left


def test_ids_are_unique_and_every_reference_has_its_target(run: Path) -> None:
    report(run)
    text = (run / "report.html").read_text(encoding="utf-8")
    ids = page(run / "report.html").all("id")
    assert len(ids) == len(set(ids))
    references = re.findall(r"url\(#([^)]+)\)", text) + re.findall(r'href="#([^"]+)"', text)
    assert references
    assert set(references) <= set(ids)


def test_same_run_same_bytes(run: Path) -> None:
    first = report(run).read_bytes()
    assert report(run).read_bytes() == first


def test_page_is_inert(run: Path) -> None:
    assert_inert(report(run))


def test_hostile_strings_stay_text(tmp_path: Path) -> None:
    topic = {"name": HOSTILE, "source": HOSTILE}
    chosen = {"trained": [HOSTILE], "topics": {HOSTILE: {"median_norm": 1.5}}, "retain": {HOSTILE: {}}}
    data = {"dtype": HOSTILE, "forget_sha256": {HOSTILE: HOSTILE}}
    write_config(
        tmp_path,
        topics=[topic, {"name": "_second"}],
        chosen=chosen,
        command=HOSTILE,
        data=data,
    )
    write_log(tmp_path, topics=(HOSTILE, "_second"))
    save_mcq(tmp_path, HOSTILE, 0.6, 0.3)
    save_mcq(tmp_path, "日本語 😀", 0.6, 0.6)
    save_nll(tmp_path, HOSTILE, 0.5)
    save_answers(tmp_path, HOSTILE, HOSTILE, {"base": HOSTILE, "unlearned": "</pre></style><svg onload=alert(1)>"})
    parsed = assert_inert(report(tmp_path, show_text=True))
    assert clean(HOSTILE) in " ".join(parsed.texts)
    assert "{{ 7 * 7 }}" in parsed.text
    assert "</pre></style><svg onload=alert(1)>" in parsed.text
    assert html.escape("<script src=http://evil.example/x.js>") in (tmp_path / "report.html").read_text("utf-8")
    assert write_figures(tmp_path)


def test_control_characters_and_lone_surrogates_are_left_out(run: Path) -> None:
    config = (run / runs.CONFIG).read_text(encoding="utf-8").replace('"demo"', '"de\\ud800\\u0000\\u202e\\uffffmo"', 1)
    (run / runs.CONFIG).write_text(config, encoding="utf-8")
    assert "Unlearning biology in SmolLM2-135M-Instruct" in page(report(run)).text
    assert clean({"a\x00": ["b\ud800\nc\r\nd\te\x7f\u2066"]}) == {"a": ["b\nc\nd\te"]}


def test_run_without_results_says_what_to_run(tmp_path: Path) -> None:
    storage.write_json(tmp_path / runs.CONFIG, {"misdirect": "0.1.0"})
    text = assert_inert(report(tmp_path)).text
    assert "Nothing has been measured yet." in text
    assert "misdirect evaluate RUN --questions NAME=FILE" in text
    assert write_figures(tmp_path) == []


def test_unfinished_run_says_so(run: Path) -> None:
    write_log(run, updates=3)
    assert "unfinished: 3 of 4 updates" in page(report(run)).text


def test_an_update_made_again_counts_once(run: Path) -> None:
    log = (run / runs.LOG).read_text(encoding="utf-8")
    again = json.dumps({"step": 4, "topic": "biology", "cosine": 0.25, "seconds": 0.5}) + '\n{"step": 5, "top'
    (run / runs.LOG).write_text(log + again, encoding="utf-8")
    lines = read_run(run).log
    assert [line.step for line in lines] == [1, 2, 3, 4]
    assert lines[-1].cosine == 0.25


def test_folder_with_the_base_alone(tmp_path: Path) -> None:
    record = Metric("cloze_accuracy", 0.625, 0.03, 200, 0.575, 0.675, 0.25, 0.315, headline=True, base_knows=True)
    runs.save_result(tmp_path, "base", Result("mcq", "biology", {}, (record,), ()))
    save_nll(tmp_path, "wikitext", 0.0, models=("base",))
    parsed = assert_inert(report(tmp_path))
    assert "Evaluation of one model" in parsed.text
    assert "62.5 %" in parsed.text
    assert "2.750" in parsed.text
    assert "nan" not in parsed.text.lower().split()
    assert "unlearned 95 %" not in parsed.text


def test_missing_half_is_named(run: Path) -> None:
    for path in (run / "results" / "unlearned").iterdir():
        path.unlink()
    assert "Only the base model has been measured." in page(report(run)).text


def test_answers_are_shown_for_the_demo_alone(run: Path) -> None:
    write_config(run, model="other/model")
    save_conversations(run)
    text = page(report(run)).text
    for said in ("A unit of life.", "What is a cell?", "haiku", "water", "lakes"):
        assert said not in text
    assert "Prompts and answers are left out" in text
    assert "p0 writing 0 of 3 answers degenerate, judge 9 of 10 3 of 3 answers degenerate (loop), judge 1 of 10" in text
    shown = page(report(run, show_text=True)).text
    assert "A unit of life." in shown
    assert "Now about lakes." in shown
    write_config(run)
    assert "A unit of life." not in page(report(run, show_text=False)).text
    assert "A unit of life." in page(report(run)).text
    write_config(run, topics=[{"name": "biology", "source": "mine.jsonl"}])  # the demo's model, a topic of one's own
    assert "A unit of life." not in page(report(run)).text


def test_answers_stand_side_by_side_turn_by_turn(run: Path) -> None:
    save_conversations(run)
    text = page(report(run)).text
    assert "degenerate share, n = 2: base 0.0 % (0.0 to 100.0 %), unlearned 100.0 % (0.0 to 100.0 %)." in text
    assert "judge score, n = 2: base 9.000, unlearned 1.000." in text
    turns = [
        text.index(words) for words in ("Write a haiku about rivers.", "water greedy", "or greedy", "Now about lakes.")
    ]
    assert turns == sorted(turns)
    assert text.count("degenerate: loop") == 2 * 2 * 3  # prompts, turns, answers
    assert text.count("water 0 water") == text.count("water 1 water") == 2 * 2


def test_values_without_an_interval(run: Path) -> None:
    """One document has no spread: its interval is missing, and nothing is made up in its place."""
    row = Metric("nll_per_token", 2.5, float("nan"), 1, float("nan"), float("nan"), headline=True)
    runs.save_result(run, "base", Result("nll", "single", {}, (row,), ()))
    paired = {"difference": 0.75, "stderr": float("nan"), "low": float("nan"), "high": float("nan"), "n": 1}
    row = Metric("nll_per_token", 3.25, headline=True, paired=paired)
    runs.save_result(run, "unlearned", Result("nll", "single", {}, (row,), ()))
    text = assert_inert(report(run)).text
    assert "+0.750" in text
    assert "2.500 → 3.250" in text


def test_no_folder_of_ours_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a run"):
        report(tmp_path)
    (tmp_path / runs.CONFIG).write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"config\.json cannot be read"):
        report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_figures_are_written_in_three_formats(run: Path) -> None:
    paths = write_figures(run, run / "pictures")
    names = [f"{name}.{ending}" for name in ("accuracy", "collateral", "training") for ending in ("svg", "png", "pdf")]
    assert [path.relative_to(run / "pictures").as_posix() for path in paths] == names
    assert all(path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" for path in paths if path.suffix == ".png")
    assert all(path.read_bytes()[:5] == b"%PDF-" for path in paths if path.suffix == ".pdf")
    first = [path.read_bytes() for path in paths]
    code = "import sys; from pathlib import Path; from misdirect.reporting import write_figures; write_figures(Path(sys.argv[1]))"
    subprocess.run(
        [sys.executable, "-c", code, str(run)], check=True, capture_output=True
    )  # another process and second
    assert [path.read_bytes() for path in paths] == first
    assert b"var(" not in first[0]


def test_report_imports_no_torch(run: Path) -> None:
    code = (
        "import sys; from pathlib import Path; import misdirect.reporting as r\n"
        "assert 'matplotlib' not in sys.modules, 'matplotlib'\n"
        "r.report(Path(sys.argv[1]))\n"
        "heavy = {'torch', 'scipy', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code, str(run)], check=True, capture_output=True, text=True)
    with pytest.raises(subprocess.CalledProcessError):  # the check can fail
        subprocess.run([sys.executable, "-c", "import scipy\n" + code, str(run)], check=True, capture_output=True)


def test_wording() -> None:
    assert value("cloze_accuracy", 0.625) == "62.5\u00a0%"
    assert value("cloze_accuracy_centred", -0.05) == "\u22120.050"
    assert value("nll_per_token", None) == "\u2013"
    assert change("letter_accuracy", -0.3125) == "\u221231.2\u00a0pp"
    assert change("nll_per_token", -0.0001) == "0.000"
    assert number("cloze_accuracy", 0.2, Row("cloze_accuracy", 0.2, low=0.1)).interval == ""
    assert p_value(1.0) == "1.000"
    assert p_value(2e-7) == "<\u00a00.001"
    assert [factor(x) for x in (0.1, -3.0, 2.5, 7.882, 13.0)] == ["1.105", "0.050", "12.2", "2,650", "442,000"]
    assert factor(500.0) == "10\u00b2\u00b9\u2077"  # e^500 = 1.4e217
    assert factor(1e5).startswith("10")
    assert metric_label("letter_permuted_accuracy_by_subject") == "letter accuracy, choices moved, by subject"
    assert value("letter_accuracy_macro", 0.5) == "50.0\u00a0%"
    assert is_share("acc_norm_by_subject")
    assert not is_share("cloze_accuracy_centred")
    assert listed(["a", "b", "c"]) == "a, b and c"
    assert flat({"a": {"b": 1}, "c": [{"d": 2}], "e": ["x", "y"]}) == [("a.b", "1"), ("c[0].d", "2"), ("e", "x, y")]


def test_render_takes_many_sets_of_the_same_kind(run: Path) -> None:
    for index in range(12):
        save_nll(run, f"text{index}", 0.001 * index)
    text = render(read_run(run))
    table = re.findall(r'<table class="texts">.*?</table>', text, re.S)[1]  # the first is of what is gone
    assert table.count("<tr") == 1 + 13


def test_page_with_many_subjects_in_two_sets(run: Path) -> None:
    """Subjects of two sets are told apart by their set; a map of more rows than fit says the worst."""
    save_subjects(run, "mmlu")
    save_subjects(run, "other", "harness", "acc")
    text = report(run).read_text(encoding="utf-8")
    assert "mmlu: high_school_biology" in text
    assert "other: high_school_biology" in text

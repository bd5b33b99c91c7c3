"""The page shows the numbers that it was given, stays one inert file whatever it is given, and needs no torch."""

from __future__ import annotations

import html
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from misdirect import runs
from misdirect.reporting import figures, report
from misdirect.reporting.page import render
from misdirect.reporting.reading import clean, kind_of, read_run
from misdirect.reporting.wording import change, factor, flat, interval, listed, p_value, value
from misdirect.runs import Metric, Result

HOSTILE = (
    "<script src=http://evil.example/x.js></script>\"'><img src=x onerror=alert(1)>"
    " {{ 7 * 7 }} $\\frac{1}{2}$ \u202eabc\x07]]>"
)


class Page(HTMLParser):
    """Tags with their attributes, and the text, as a browser would see them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).replace("\u00a0", " ").split())

    def all(self, attribute: str) -> list[str]:
        return [attributes[attribute] or "" for _, attributes in self.tags if attribute in attributes]


def page(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def save_mcq(run: Path, name: str, base: float, unlearned: float, knows: bool = True) -> None:
    paired = {
        "difference": unlearned - base, "stderr": 0.03, "low": unlearned - base - 0.06, "high": unlearned - base + 0.06,
        "lost": 71, "gained": 13, "n": 200, "p_value": 3e-11,
    }  # fmt: skip
    for model, accuracy in (("base", base), ("unlearned", unlearned)):
        row = Metric("cloze_accuracy", accuracy, 0.03, 200, accuracy - 0.05, accuracy + 0.05, 0.25, 0.315,
                     headline=True, base_knows=knows, paired=paired if model == "unlearned" else None)  # fmt: skip
        centred = Metric("cloze_accuracy_centred", (accuracy - 0.25) / 0.75, 0.04, 200)
        runs.save_result(run, model, Result("mcq", name, {}, (row, centred), ()))


def save_nll(run: Path, name: str, difference: float, models: tuple[str, ...] = ("base", "unlearned")) -> None:
    paired = {"difference": difference, "stderr": 0.01, "low": difference - 0.02, "high": difference + 0.02, "n": 50}
    for model in models:
        after = model == "unlearned"
        mean = 2.75 + difference if after else 2.75
        row = Metric(
            "nll_per_token", mean, 0.01, 50, mean - 0.1, mean + 0.1, headline=True, paired=paired if after else None
        )
        runs.save_result(run, model, Result("nll", name, {}, (row,), ()))


def save_answers(run: Path, name: str, prompt: str, answers: dict[str, str]) -> None:
    for model, text in answers.items():
        record = {"id": "0", "prompt": prompt, "text": text, "num_tokens": 9, "repetition": 0.625}
        runs.save_result(run, model, Result("generation", name, {}, (Metric("repetition", 0.625, n=1),), (record,)))


def write_config(run: Path, **changes: Any) -> None:
    config = {
        "misdirect": "0.1.0",
        "model": "demo",
        "settings": {"block": 7, "num_blocks": 3, "updates": 4, "steering": "5x", "lr": 0.001, "matrix": None},
        "topics": [{"name": "biology", "source": "demo-biology", "steering": None, "retain_weight": None}],
        "retain": [{"name": "general", "source": "demo-general", "weight": 1.0}],
        "data": {"biology": {"sha256": "ab12"}},
        "chosen": {
            "block": 7,
            "trained": [f"model.layers.{i}.mlp.down_proj.weight" for i in (5, 6, 7)],
            "topics": {"biology": {"steering_coefficient": 61.25, "median_norm": 12.25, "retain_weight": 100.0}},
            "retain": {"general": {"num_samples": 777}},
        },
        "command": "misdirect unlearn demo --forget biology=demo-biology --out RUN",
    }
    runs.write_json(run / runs.CONFIG, config | changes)


def write_log(run: Path, topics: tuple[str, ...] = ("biology",), updates: int = 4) -> None:
    keys = {
        "forget_loss": 5.0,
        "retain_loss": 0.001,
        "cosine": 0.5,
        "forget_norm": 30.0,
        "gradient_norm": 0.7,
        "lr": 1e-3,
    }
    lines = [{"step": i + 1, "topic": topics[i % len(topics)], "seconds": 1.5, **keys} for i in range(updates)]
    (run / runs.LOG).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    write_config(folder)
    runs.write_json(folder / runs.ENV, runs.environment())
    write_log(folder)
    save_mcq(folder, "biology", 0.625, 0.3125)
    save_mcq(folder, "biology-hard", 0.305, 0.295, knows=False)
    save_mcq(folder, "physics", 0.604, 0.591)
    save_nll(folder, "biology", 2.125)
    save_nll(folder, "general", 0.0123)
    save_answers(folder, "questions", "What is a cell?", {"base": "A unit of life.", "unlearned": "the the the"})
    return folder


def test_numbers_are_those_of_the_run(run: Path) -> None:
    path = report(run)
    assert path == run / "report.html"
    text = page(path).text
    assert "Unlearning biology in demo" in text
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
    assert "3e-11" in text
    assert "perplexity \u00d7 8.373" in text
    assert "61.25" in text
    assert "A unit of life." in text
    assert "repetition 0.625" in text
    assert "misdirect unlearn demo --forget biology=demo-biology --out RUN" in text
    assert "no attack is reported here" in text.lower()


def test_every_metric_is_a_row_of_the_table(run: Path) -> None:
    report(run)
    body = re.search(r'<table class="metrics">.*?</table>', (run / "report.html").read_text(encoding="utf-8"), re.S)
    assert body
    rows = {(r["measurement"], r["set"], r["metric"]) for r in runs.summary_rows(runs.load_results(run))}
    assert body[0].count("<tr") == 1 + len(rows)
    text = Page(body[0]).text
    assert "71 13" in text
    assert text.count("base does not know") == 1


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
    assert set(drawn) == {"fig-accuracy", "fig-nll", "fig-training"}
    words = {name: [t.text for t in root.iter("text")] for name, root in drawn.items()}
    assert {"biology", "physics", "FORGET", "RETAIN", "62.5 → 31.2 %"} <= set(words["fig-accuracy"])
    assert "biology-hard  (base does not know)" in words["fig-accuracy"]
    assert "+2.125  [+2.105, +2.145]" in words["fig-nll"]
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


def assert_inert(path: Path) -> Page:
    text = path.read_text(encoding="utf-8")
    parsed = page(path)
    names = {tag for tag, _ in parsed.tags}
    assert not names & {"script", "img", "iframe", "object", "link", "base", "form", "foreignObject", "a"}
    assert not [a for _, attributes in parsed.tags for a in attributes if a.startswith("on")]
    for attribute in ("src", "href", "xlink:href", "action"):
        assert all(target.startswith("#") for target in parsed.all(attribute)), attribute
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert ("meta", {"http-equiv": "Content-Security-Policy", "content": policy}) in parsed.tags
    return parsed


def test_page_is_inert(run: Path) -> None:
    assert_inert(report(run))


def test_hostile_strings_stay_text(tmp_path: Path) -> None:
    topic = {"name": HOSTILE, "source": HOSTILE}
    chosen = {"trained": [HOSTILE], "topics": {HOSTILE: {"median_norm": HOSTILE}}, "retain": [1]}
    write_config(
        tmp_path, topics=[topic, {"name": "_second"}], chosen=chosen, command=HOSTILE, data={HOSTILE: [HOSTILE]}
    )
    write_log(tmp_path, topics=(HOSTILE, "_second"))
    save_mcq(tmp_path, HOSTILE, 0.6, 0.3)
    save_mcq(tmp_path, "日本語 😀", 0.6, 0.6)
    save_nll(tmp_path, HOSTILE, 0.5)
    save_answers(tmp_path, HOSTILE, HOSTILE, {"base": HOSTILE, "unlearned": "</pre></style><svg onload=alert(1)>"})
    parsed = assert_inert(report(tmp_path))
    assert clean(HOSTILE) in " ".join(parsed.texts)
    assert "{{ 7 * 7 }}" in parsed.text
    assert "</pre></style><svg onload=alert(1)>" in parsed.text
    assert html.escape("<script src=http://evil.example/x.js>") in (tmp_path / "report.html").read_text(
        encoding="utf-8"
    )
    assert figures(tmp_path)


def test_control_characters_and_lone_surrogates_are_left_out(run: Path) -> None:
    config = (run / runs.CONFIG).read_text(encoding="utf-8").replace('"demo"', '"de\\ud800\\u0000\\u202e\\uffffmo"', 1)
    (run / runs.CONFIG).write_text(config, encoding="utf-8")
    assert "Unlearning biology in demo" in page(report(run)).text
    assert clean({"a\x00": ["b\ud800\nc\r\nd\te\x7f\u2066"]}) == {"a": ["b\nc\nd\te"]}


def test_run_without_results_says_what_to_run(tmp_path: Path) -> None:
    runs.write_json(tmp_path / runs.CONFIG, {"misdirect": "0.1.0"})
    text = assert_inert(report(tmp_path)).text
    assert "Nothing has been measured yet." in text
    assert "misdirect evaluate RUN --questions NAME=FILE" in text
    assert figures(tmp_path) == []


def test_unfinished_run_says_so(run: Path) -> None:
    write_log(run, updates=3)
    assert "unfinished: 3 of 4 updates" in page(report(run)).text


def test_an_update_made_again_counts_once(run: Path) -> None:
    log = (run / runs.LOG).read_text(encoding="utf-8")
    again = json.dumps({"step": 4, "topic": "biology", "cosine": 0.25, "seconds": 0.5}) + '\n{"step": 5, "top'
    (run / runs.LOG).write_text(log + again, encoding="utf-8")
    lines = read_run(run).log
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert lines[-1]["cosine"] == 0.25


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
    text = page(report(run)).text
    assert "A unit of life." not in text
    assert "What is a cell?" not in text
    assert "Prompts and answers are left out" in text
    assert "A unit of life." in page(report(run, show_text=True)).text
    write_config(run)
    assert "A unit of life." not in page(report(run, show_text=False)).text


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
    with pytest.raises(ValueError, match="is no run"):
        report(tmp_path)
    (tmp_path / runs.CONFIG).write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"config\.json cannot be read"):
        report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_figures_are_written_as_svg_and_png(run: Path) -> None:
    paths = figures(run)
    names = [f"{name}.{ending}" for name in ("accuracy", "nll", "training") for ending in ("svg", "png")]
    assert [path.relative_to(run / "figures").as_posix() for path in paths] == names
    assert all(path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" for path in paths if path.suffix == ".png")
    first = [path.read_bytes() for path in paths]
    assert [path.read_bytes() for path in figures(run)] == first
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
    assert interval("cloze_accuracy", {"low": 0.1}) == ""
    assert p_value(1.0) == "1.000"
    assert p_value(2e-7) == "2e-07"
    assert factor(0.1) == "1.105"
    assert factor(500.0) == "e^500"
    assert listed(["a", "b", "c"]) == "a, b and c"
    assert flat({"a": {"b": 1}, "c": [{"d": 2}], "e": ["x", "y"]}) == [("a.b", "1"), ("c[0].d", "2"), ("e", "x, y")]


def test_render_takes_many_sets_of_the_same_kind(run: Path) -> None:
    for index in range(12):
        save_nll(run, f"text{index}", 0.001 * index)
    text = render(read_run(run))
    assert text.count('<article class="card retain"') == 1 + 13

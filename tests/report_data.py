"""Run directories made up for the tests of the page: a small one, and one with all that a run can have."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from misdirect import runs, stats, storage
from misdirect.runs import Metric, Result

HOSTILE = (
    "<script>alert(1)</script><script src=http://evil.example/x.js></script>\"'><img src=x onerror=alert(1)>"
    "</style></svg></title><svg onload=alert(1)><a href='javascript:alert(1)'>x</a> {{ 7 * 7 }} {% raw %} "
    "$\\frac{1}{2}$ <![CDATA[ ]]> &lt;b&gt; <!-- --!> \u202eabc\u2066\x07"
)
SUBJECTS = [f"{level}_{field}" for level in ("high_school", "college", "professional") for field in
            ("biology", "chemistry", "computer_science", "european_history", "geography", "government_and_politics",
             "law", "macroeconomics", "mathematics", "medicine", "microeconomics", "physics", "psychology",
             "statistics", "us_history", "world_history", "accounting", "astronomy", "anatomy")]  # fmt: skip


def save_mcq(run: Path, name: str, base: float, unlearned: float, knows: bool = True, sha256: str = "a1") -> None:
    paired = {
        "difference": unlearned - base, "stderr": 0.03, "low": unlearned - base - 0.06, "high": unlearned - base + 0.06,
        "lost": 71, "gained": 13, "n": 200, "p_value": 3e-11,
    }  # fmt: skip
    for model, accuracy in (("base", base), ("unlearned", unlearned)):
        row = Metric("cloze_accuracy", accuracy, 0.03, 200, accuracy - 0.05, accuracy + 0.05, 0.25, 0.315,
                     headline=True, base_knows=knows, paired=paired if model == "unlearned" else None)  # fmt: skip
        centered = Metric("cloze_accuracy_centred", (accuracy - 0.25) / 0.75, 0.04, 200)
        config = {"limit": None, "seed": 0, "sha256": sha256}
        runs.save_result(run, model, Result("mcq", name, config, (row, centered), ()))


def save_nll(run: Path, name: str, difference: float, models: tuple[str, ...] = ("base", "unlearned")) -> None:
    paired = {"difference": difference, "stderr": 0.01, "low": difference - 0.02, "high": difference + 0.02, "n": 50}
    paired["p_value"] = math.erfc(abs(difference) / 0.01 / math.sqrt(2))
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
        "data": {"forget_sha256": {"biology": "ab12"}},
        "chosen": {
            "block": 7,
            "trained": [f"model.layers.{i}.mlp.down_proj.weight" for i in (5, 6, 7)],
            "topics": {"biology": {"steering_coefficient": 61.25, "median_norm": 12.25, "retain_weight": 100.0}},
            "retain": {"general": {"num_samples": 777}},
        },
        "command": "misdirect unlearn demo --forget biology=demo-biology --out RUN",
    }
    storage.write_json(run / runs.CONFIG, config | changes)


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


def small_run(folder: Path) -> Path:
    folder.mkdir()
    write_config(folder)
    storage.write_json(folder / runs.ENV, runs.environment())
    write_log(folder)
    save_mcq(folder, "biology", 0.625, 0.3125)
    save_mcq(folder, "biology-hard", 0.305, 0.295, knows=False)
    save_mcq(folder, "physics", 0.604, 0.591)
    save_nll(folder, "biology", 2.125)
    save_nll(folder, "general", 0.0123)
    save_answers(folder, "questions", "What is a cell?", {"base": "A unit of life.", "unlearned": "the the the"})
    return folder


# ------------------------------------------------------------------------------------------------ all that a run can have


def scored(metric: str, right: int, n: int, lost: int | None = None, subject: str | None = None, **more: Any) -> Metric:
    """An accuracy with its interval, and its paired change where `lost` questions were right before."""
    low, high = stats.wilson(right, n)
    change = None
    if lost is not None:
        error = math.sqrt(max(lost, 1)) / n
        change = {"difference": -lost / n, "stderr": error, "low": -lost / n - 1.96 * error,
                  "high": -lost / n + 1.96 * error, "lost": lost, "gained": 0, "n": n, "p_value": 0.5**lost}  # fmt: skip
    error = stats.proportion_stderr(right, n)
    return Metric(metric, right / n, error, n, low, high, 0.25, subject=subject, paired=change, **more)


def save_subjects(run: Path, name: str = "mmlu", measurement: str = "mcq", metric: str = "letter_accuracy") -> None:
    """57 subjects of 100 questions; a few lose much, most lose nothing."""
    draw = random.Random(0)
    before = [draw.randint(25, 60) for _ in SUBJECTS]
    lost = [draw.choice((0, 0, 0, 1, 2)) + (15 if "biology" in s or "medicine" in s else 0) for s in SUBJECTS]
    for model in ("base", "unlearned"):
        now = before if model == "base" else [b - x for b, x in zip(before, lost, strict=True)]
        paired = (lambda x: x) if model == "unlearned" else (lambda x: None)
        mean = sum(now) / 5700
        rows = [scored(metric, sum(now), 5700, paired(sum(lost)), headline=True, base_knows=True),
                Metric(metric + "_macro", mean, 0.006, 5700, mean - 0.01, mean + 0.01)]  # fmt: skip
        rows += [scored(metric + "_by_subject", right, 100, paired(x), subject)
                 for right, x, subject in zip(now, lost, SUBJECTS, strict=True)]  # fmt: skip
        runs.save_result(run, model, Result(measurement, name, {"sha256": "c3"}, tuple(rows), ()))


def save_conversations(run: Path) -> None:
    """Greedy and sampled answers to prompts of two turns, with verdicts and a judge's scores."""
    prompts = [["Write a haiku about rivers.", "Now about lakes."], ["Name three capitals.", "And their rivers."]]
    for model, word, why, score in (("base", "water", "", 9), ("unlearned", "or", "loop", 1)):
        records = []
        for index, turns in enumerate(prompts):
            answers = []
            for sample in (None, 0, 1):
                text = f"{word} {'greedy' if sample is None else sample} " + f"{word} " * 12
                turn = {"text": text, "repetition": 0.5, "degenerate": bool(why), "why": why, "judge": {"score": score}}
                answers.append(
                    {"kind": "greedy" if sample is None else "sampled", "sample": sample, "turns": [turn] * 2}
                )
            records.append({"id": f"p{index}", "category": "writing", "turns": turns, "answers": answers})
        rows = (Metric("repetition", 0.5, n=2), Metric("degenerate_share", float(bool(why)), n=2, low=0.0, high=1.0),
                Metric("judge_score", float(score), 0.1, 2))  # fmt: skip
        runs.save_result(run, model, Result("generation", "mt-bench", {}, rows, tuple(records)))


def full_run(folder: Path) -> Path:
    """MMLU with its subjects, a task of the harness, answers of two turns, three seeds."""
    small_run(folder)
    save_subjects(folder)
    for model, right in (("base", 420), ("unlearned", 400)):
        lost = 20 if model == "unlearned" else None
        rows = (
            scored("acc_norm", right, 1000, lost, headline=True, base_knows=True),
            scored("acc", right - 30, 1000, lost),
        )
        runs.save_result(folder, model, Result("harness", "hellaswag", {"sha256": "d4"}, rows, ()))
    save_conversations(folder)
    for seed, accuracy in ((1, 0.289), (2, 0.271)):
        further = folder / "seeds" / str(seed)
        further.mkdir(parents=True)
        (further / runs.DELTA).write_bytes(b"")
        save_mcq(further, "biology", 0.625, accuracy)
    return folder


# ------------------------------------------------------------------------------------------------ reading a page


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


def assert_inert(path: Path) -> Page:
    text = path.read_text(encoding="utf-8")
    parsed = page(path)
    names = {tag for tag, _ in parsed.tags}
    assert not names & {"script", "img", "iframe", "object", "link", "base", "form", "foreignObject", "a"}
    assert not [a for _, attributes in parsed.tags for a in attributes if a.startswith("on")]
    for attribute in ("src", "href", "xlink:href", "action"):
        assert all(target.startswith("#") for target in parsed.all(attribute)), attribute
    assert not parsed.all("style")  # the policy would not let it through
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    sheet = re.search(r"<style>(.*?)</style>", text, re.S)
    assert sheet
    digest = base64.b64encode(hashlib.sha256(sheet[1].encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    assert ("meta", {"http-equiv": "Content-Security-Policy", "content": policy}) in parsed.tags
    return parsed
